//! The runbook: a heading for each alert, and SQL and commands that do what it says.

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::{document, read, text};
use crate::documents::{anchor, headings};
use crate::support::{Servers, Service, Stage, eventually};

#[test]
fn every_alert_has_its_heading_and_names_it() {
    let runbook = read("docs/runbook.md");
    let headings: Vec<&str> = headings(&runbook);
    let rules = document("deploy/prometheus/alerts.yml");
    let mut alerts = BTreeSet::new();
    for group in rules["groups"].as_array().expect("groups") {
        let rules = group["rules"].as_array().expect("rules").iter();
        for rule in rules.filter(|rule| rule.get("record").is_none()) {
            let name = text(&rule["alert"]);
            assert_eq!(headings.iter().filter(|heading| **heading == name).count(), 1, "{name}");
            let link = text(&rule["annotations"]["runbook"]);
            assert_eq!(link, format!("docs/runbook.md#{}", anchor(name)));
            alerts.insert(name.to_owned());
        }
    }
    assert!(alerts.len() >= 20, "{} alerts", alerts.len());
    let (_, about) = runbook.split_once("\n## Alerts").expect("a part about alerts");
    let (about, _) = about.split_once("\n## PostgreSQL is restored").expect("what follows");
    let described = about.lines().filter_map(|line| line.strip_prefix("### "));
    assert_eq!(described.map(str::to_owned).collect::<BTreeSet<_>>(), alerts, "none that is gone");
}

/// The block of SQL that has `words` in it.
pub fn sql_block(words: &str) -> String {
    let runbook = read("docs/runbook.md");
    let mut blocks = runbook.split("```sql\n").skip(1);
    let block = blocks.find(|block| block.split("```").next().is_some_and(|b| b.contains(words)));
    block.and_then(|block| block.split("```").next()).expect("such a block").to_owned()
}

#[tokio::test]
async fn its_sql_shows_who_waits_for_whom() {
    let stage = Stage::migrated(Servers::shared(), "runbook").await;
    let block = sql_block("Who waits for whom");
    let waiting = block.trim().trim_end_matches(';');
    let found = format!("SELECT count(*) FROM ({waiting}) AS w WHERE blocked_by <> '{{}}'");
    let blocked = async || {
        let asked = sqlx::query_scalar::<_, i64>(AssertSqlSafe(found.clone()));
        asked.fetch_one(&stage.sql).await.expect("it runs")
    };
    assert_eq!(blocked().await, 0);

    let mut holder = stage.sql.begin().await.expect("a transaction");
    sqlx::raw_sql("LOCK TABLE vote_audit").execute(&mut *holder).await.expect("locked");
    let sql = stage.sql.clone();
    let waiter = tokio::spawn(async move { sqlx::raw_sql("TABLE vote_audit").execute(&sql).await });
    eventually("it shows who waits", async || blocked().await == 1).await;
    holder.rollback().await.expect("unlocked");
    waiter.await.expect("no panic").expect("it got its turn");
}

#[tokio::test]
async fn its_sql_shows_who_holds_the_lock_on_comparing() {
    let stage = Stage::migrated(Servers::shared(), "comparing").await;
    let comparing = sql_block("'advisory'");
    let found = format!("SELECT count(*) FROM ({}) AS l", comparing.trim().trim_end_matches(';'));
    let holders = async || {
        let asked = sqlx::query_scalar::<_, i64>(AssertSqlSafe(found.clone()));
        asked.fetch_one(&stage.sql).await.expect("it runs")
    };
    assert_eq!(holders().await, 0);
    let store = stage.store().await;
    let mut other = stage.sql.begin().await.expect("a transaction");
    sqlx::raw_sql("LOCK TABLE vote_audit").execute(&mut *other).await.expect("locked");
    let comparing = tokio::spawn(async move { store.reconcile(Duration::ZERO, 1).await });
    eventually("it shows who compares", async || holders().await == 1).await;
    other.rollback().await.expect("unlocked");
    comparing.await.expect("no panic").expect("compared");
}

/// What is to be typed on such an evening has to be there.
#[tokio::test]
async fn its_commands_are_the_binarys() {
    for (command, options) in [
        ("recount", &["--repair", "--reason"][..]),
        ("publish", &["--file", "--checkpoint", "--dry-run"]),
        ("dlq list", &["--json", "--max", "--reason"]),
        ("dlq show", &["--reason", "--max", "--reveal"]),
        (
            "dlq replay",
            &[
                "--sqlstate",
                "--dry-run",
                "--yes",
                "--rate",
                "--max-replays",
                "--no-trial",
                "--trial-seconds",
            ],
        ),
        ("dlq purge", &["--reason", "--save", "--hold"]),
        ("migrate", &[]),
        ("run", &["--profile"]),
    ] {
        let words: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let (code, help) = Service::output(&words).await;
        assert_eq!(code, Some(0), "{command}");
        for option in options {
            assert!(help.contains(option), "{command} {option}");
        }
    }
    for guide in ["docs/runbook.md", "docs/scaling.md", "docs/deployment.md"] {
        for command in read(guide).split("vote-aggregator ").skip(1) {
            let word = command.split(|c: char| !c.is_ascii_lowercase()).next().unwrap_or_default();
            let quoted = command.starts_with(|c: char| c.is_ascii_lowercase());
            let (code, _) =
                if quoted { Service::output(&[word, "--help"]).await } else { continue };
            assert_eq!(code, Some(0), "{guide}: vote-aggregator {word}");
        }
    }
}
