//! The runbook: a section for each alert, and SQL that does what it says. Its commands and options are
//! checked with those of all documents.

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::{document, list, read, text};
use crate::documents::{anchor, headings};
use crate::support::{Stage, eventually};

#[test]
fn every_alert_has_its_heading_and_names_it() {
    let runbook = read("docs/runbook.md");
    let headings: Vec<&str> = headings(&runbook);
    let rules = document("deploy/prometheus/alerts.yml");
    let mut alerts = BTreeSet::new();
    let rules = list(&rules["groups"]).flat_map(|group| list(&group["rules"]));
    for rule in rules.filter(|rule| rule.get("record").is_none()) {
        let name = text(&rule["alert"]);
        assert_eq!(headings.iter().filter(|heading| **heading == name).count(), 1, "{name}");
        let link = text(&rule["annotations"]["runbook"]);
        assert_eq!(link, format!("docs/runbook.md#{}", anchor(name)));
        alerts.insert(name);
    }
    assert!(alerts.len() >= 20, "{} alerts", alerts.len());
    let (_, about) = runbook.split_once("\n## Alerts").expect("a part about alerts");
    let (about, _) = about.split_once("\n## PostgreSQL is restored").expect("what follows");
    let described = about.lines().filter_map(|line| line.strip_prefix("### "));
    assert_eq!(described.collect::<BTreeSet<_>>(), alerts, "no alert that is gone");
}

/// The block of SQL that contains `words`.
pub fn sql_block(words: &str) -> String {
    let runbook = read("docs/runbook.md");
    let mut blocks = runbook.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.find(|block| block.contains(words)).expect("such a block").to_owned()
}

/// The number of rows that such a block finds.
async fn rows_of(stage: &Stage<'_>, words: &str, condition: &str) -> i64 {
    let block = sql_block(words);
    let query = block.trim().trim_end_matches(';');
    let count = format!("SELECT count(*) FROM ({query}) AS found WHERE {condition}");
    sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&stage.sql).await.expect("it runs")
}

#[tokio::test]
async fn its_sql_shows_who_waits_for_whom_and_who_holds_the_lock_on_comparing() {
    let (stage, store) = Stage::with_store("runbook").await;
    let blocked = async || rows_of(&stage, "Who waits for whom", "blocked_by <> '{}'").await;
    let comparing = async || rows_of(&stage, "'advisory'", "true").await;
    assert_eq!((blocked().await, comparing().await), (0, 0));
    let holder = stage.hold("LOCK TABLE vote_audit").await;
    let waiter = tokio::spawn(async move { store.reconcile(Duration::ZERO, 1).await });
    eventually("both show it", async || (blocked().await, comparing().await) == (1, 1)).await;
    holder.rollback().await.expect("unlocked");
    waiter.await.expect("no panic").expect("compared");
}
