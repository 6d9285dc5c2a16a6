//! Every metric as documented, valid for Prometheus, and with the right value.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use tokio::process::Command;

use crate::support::{Files, Stage, ended, eventually, message, repository, votes};

const DOCUMENTATION: &str = include_str!("../../docs/metrics.md");

/// What is documented of a metric besides its name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Family {
    kind: String,
    labels: BTreeSet<String>,
    help: String,
}

/// Every metric of a scrape; the parts of a histogram are one.
pub fn scraped(scrape: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for line in scrape.lines() {
        let comment = |of: &str| line.strip_prefix(of).and_then(|rest| rest.split_once(' '));
        if let Some((name, help)) = comment("# HELP ") {
            families.entry(name.to_owned()).or_default().help = help.to_owned();
        } else if let Some((name, kind)) = comment("# TYPE ") {
            families.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else if let Some((name, rest)) = line.split_once('{') {
            let mut suffixes = ["_bucket", "_sum", "_count"].iter();
            let base = suffixes.find_map(|suffix| name.strip_suffix(suffix));
            let name = base.filter(|base| families.contains_key(*base)).unwrap_or(name);
            let labels = rest.rsplit_once('}').expect("closed").0;
            let family = families.get_mut(name).expect("a family has its TYPE first");
            let names = labels.split("\",").filter_map(|label| label.split_once('='));
            family.labels.extend(names.map(|(label, _)| label.to_owned()).filter(|l| l != "le"));
        }
    }
    families
}

/// The rows of a document's table of metrics.
pub fn table(document: &str) -> impl Iterator<Item = Vec<&str>> {
    let table = document.split("| metric | type |").nth(1).expect("a table of metrics");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
}

/// Every metric of a document's first table.
pub fn documented(document: &str) -> BTreeMap<String, Family> {
    table(document)
        .map(|row| {
            let [name, kind, labels, help] = row[..] else { panic!("four columns: {row:?}") };
            let labels = labels.split(", ").map(|label| label.trim_matches('`'));
            let family = Family {
                kind: kind.to_owned(),
                labels: labels.filter(|label| !label.is_empty()).map(str::to_owned).collect(),
                help: help.to_owned(),
            };
            (name.trim_matches('`').to_owned(), family)
        })
        .collect()
}

/// The path of promtool; Debian's package installs Prometheus itself in the same directory.
pub fn promtool_path() -> PathBuf {
    PathBuf::from(repository::run("script/services", &["promtool"]).assert(0, &[]).stdout.trim())
}

/// Whether promtool accepts a scrape, and what it prints.
pub async fn promtool(scrape: &str) -> (bool, String) {
    let files = Files::new("scrape");
    let scrape = File::open(files.write("scrape", scrape)).expect("just written");
    let mut command = Command::new(promtool_path());
    command.args(["check", "metrics"]).stdin(scrape);
    let ended = ended(command).await;
    (ended.code == Some(0), ended.stdout + &ended.stderr)
}

#[tokio::test]
async fn a_scrape_is_what_is_documented_and_promtool_finds_nothing_in_it() {
    let (stage, service) = Stage::started("catalogue", &[]).await;
    let sample = ["--count", "300", "--duplicates", "0.1", "--malformed", "0.1"];
    stage.run("publish", &sample).await.assert(0, &[]);
    eventually("every metric has a series", async || {
        let scrape = service.get("/metrics").await.body;
        documented(DOCUMENTATION).keys().all(|name| scrape.contains(&format!("# TYPE {name} ")))
    })
    .await;
    let scrape = service.get("/metrics").await.body;
    let (scraped, documented) = (scraped(&scrape), documented(DOCUMENTATION));
    let names = |of: &BTreeMap<String, Family>| of.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&scraped), names(&documented));
    for (name, family) in &documented {
        assert_eq!(&scraped[name], family, "{name}");
    }

    assert_eq!(promtool(&scrape).await, (true, String::new()));
    let (ok, found) = promtool("# TYPE votes counter\nvotes 1\n").await;
    assert!(!ok && found.contains("_total"), "it does check: {found}");
    service.stop().await;
}

fn micros_ago(age: Duration) -> i64 {
    let then = (SystemTime::now() - age).duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(then.expect("after 1970").as_micros()).expect("before the year 290000")
}

#[tokio::test]
async fn latency_counts_from_the_header_else_from_the_timestamp_else_not_at_all() {
    let (stage, service) = Stage::started("latency", &[]).await;
    let mut header = FieldTable::default();
    let minute_ago = micros_ago(Duration::from_secs(60));
    header.insert("x-published-at-us".into(), AMQPValue::LongLongInt(minute_ago));
    let hours_ago = micros_ago(Duration::from_secs(10_000)) as u64 / 1_000_000;
    for (vote, properties) in votes(0, 3).iter().zip([
        BasicProperties::default().with_headers(header).with_timestamp(1),
        BasicProperties::default().with_timestamp(hours_ago),
        BasicProperties::default(),
    ]) {
        stage.publish_with(&stage.queue, &message(vote), properties).await;
    }
    service.until_metric("vote_latency_seconds_count", 2.0).await;
    let sum = service.metric("vote_latency_seconds_sum").await.expect("a sum");
    assert!((10_060.0..10_200.0).contains(&sum), "{sum}");
    service.until_metric("vote_latency_seconds_bucket{le=\"30\"}", 0.0).await;
    service.until_metric("batch_votes_sum", 3.0).await;
    service.stop().await;
}

#[tokio::test]
async fn gauges_show_what_is_held_and_what_waits() {
    let small = [("BATCH_SIZE", "50"), ("RABBITMQ_PREFETCH_COUNT", "100")];
    let (stage, service) = Stage::started("held", &small).await;
    let lock = stage.hold("LOCK TABLE vote_audit").await;
    let all = stage.publish_new(0, 250).await;
    for (series, value) in [
        ("breaker_state{state=\"closed\"}", 1.0),
        ("session_state{state=\"consuming\"}", 1.0),
        ("postgres_connections_max", 10.0),
        ("deliveries_unacked", 100.0),
        ("batches_in_flight", 2.0),
        ("postgres_connections{state=\"in_use\"}", 2.0),
        ("queue_messages", 150.0),
        ("dead_letter_queue_messages", 0.0),
    ] {
        service.until_metric(series, value).await;
    }
    assert!(service.metric("oldest_unacked_age_seconds").await > Some(0.0));
    eventually("the lock was waited for too long", async || {
        service.metric("batch_retries_total{sqlstate_class=\"55\"}").await > Some(0.0)
    })
    .await;

    drop(lock);
    stage.until_counted(250).await;
    for series in ["deliveries_unacked", "batches_in_flight", "oldest_unacked_age_seconds"] {
        service.until_metric(series, 0.0).await;
    }
    service.until_metric("reconnects_total{side=\"postgres\"}", 0.0).await;
    assert!(service.metric("last_commit_age_seconds").await < Some(60.0));
    stage.finish([service], &all).await;
}
