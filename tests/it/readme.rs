//! The README and the documents of the commands: what they tell people to run is run here, as written
//! but for the database and the port.

use std::os::unix::fs::symlink;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;
use vote_aggregator::model::vote;
use vote_aggregator::platform::config::{keys, shipped_default};

use crate::metrics::table;
use crate::support::repository::ROOT;
use crate::support::{BINARY, Ended, Files, Servers, Stage, eventually};

const README: &str = include_str!("../../README.md");
const CONFIGURATION: &str = include_str!("../../docs/configuration.md");
/// In the order in which their commands can be run.
const DOCUMENTS: [&str; 4] = [
    README,
    include_str!("../../docs/commands.md"),
    include_str!("../../docs/security.md"),
    include_str!("../../docs/observability.md"),
];

/// Bodies of the fenced blocks in `language`, in order.
fn blocks(language: &str) -> Vec<String> {
    let (documents, fence) = (DOCUMENTS.join("\n"), format!("```{language}\n"));
    let blocks = documents.split(&fence).skip(1);
    blocks.map(|block| block.split("```").next().expect("a body").to_owned()).collect()
}

/// A directory with the shipped SQL files and the binary, for bash.
struct Checkout<'s> {
    stage: &'s Stage<'s>,
    files: Files,
    /// Of a service that runs.
    address: String,
}

impl<'s> Checkout<'s> {
    fn new(stage: &'s Stage<'s>) -> Self {
        let files = Files::new("readme");
        symlink(BINARY, files.join("vote-aggregator")).expect("a link");
        for script in ["init_db.sql", "roles.sql"] {
            symlink(format!("{ROOT}/{script}"), files.join(script)).expect("a link");
        }
        Self { stage, files, address: String::new() }
    }

    /// The output of a command, in which the names of the database and the port are those of the stage.
    async fn run(&self, command: &str) -> String {
        let command = command
            .replace("-d election_votes", &format!("-d {}", self.stage.database))
            .replace("localhost:8001", &self.address);
        let path = std::env::var("PATH").unwrap_or_default();
        let server = |name: &str| self.stage.servers.get(&format!("POSTGRES_{name}"));
        let child = Command::new("bash")
            .args(["-euo", "pipefail", "-c", &command])
            .current_dir(self.files.path())
            .envs(self.stage.environment())
            .env("PATH", format!("{}:{path}", self.files.path()))
            .env("PROMETHEUS_PORT", self.address.rsplit(':').next().unwrap_or_default())
            .envs([("PGHOST", server("HOST")), ("PGPORT", server("PORT"))])
            .env("PGPASSWORD", server("PASSWORD"))
            .kill_on_drop(true)
            .output();
        let output = timeout(Duration::from_secs(120), child).await.expect("ends in time");
        let Ended { code, stdout, stderr } = output.expect("bash runs").into();
        assert_eq!(code, Some(0), "{command}\n{stdout}{stderr}");
        stdout
    }

    /// The answer to a query, by psql.
    async fn query(&self, query: &str) -> String {
        self.files.write("query.sql", query);
        let psql = "psql -X -v ON_ERROR_STOP=1 -U postgres -d election_votes -f query.sql";
        self.run(psql).await.trim_end().to_owned()
    }
}

#[tokio::test]
async fn its_commands_work_as_written() {
    let stage = Stage::new(Servers::shared(), "readme").await;
    let mut checkout = Checkout::new(&stage);
    let mut service = None;
    let mut ran = 0;
    let commands = blocks("bash").concat();
    for command in commands.lines().filter(|line| !line.is_empty()) {
        // The first has a test of its own; the second was run for this one.
        if ["script/demo", "cargo build --release --locked"].contains(&command) {
            continue;
        }
        if command.contains("vote-aggregator publish") && service.is_none() {
            let started = stage.start(&[]).await;
            checkout.address = started.address().await;
            service = Some(started);
        }
        if command.contains(" -c \"SELECT ") {
            eventually("the published vote is in the results", async || {
                checkout.run(command).await.contains(" law-001 |         1 |         0")
            })
            .await;
        } else {
            assert!(!checkout.run(command).await.is_empty(), "{command} has an output");
        }
        ran += 1;
    }
    assert_eq!(ran, 13, "every command of the README is accounted for");
    service.expect("started").stop().await;

    let queries = blocks("sql");
    let answer = checkout.query(&queries[0]).await;
    assert!(answer.contains("oui_percentage"), "{answer}");
    assert!(answer.ends_with("(0 rows)"), "totals and audit agree: {answer}");
    for query in &queries[1..] {
        let counter = format!("counter_{}", stage.database);
        checkout.query(&query.replace("election_counter", &counter)).await;
    }
    // The comparison sees a difference on either side.
    for differing in [
        "INSERT INTO vote_results VALUES ('law-nowhere', 1, 0)",
        "DELETE FROM vote_results; INSERT INTO vote_results VALUES ('law-empty', 0, 0)",
    ] {
        stage.execute(differing).await;
        let answer = checkout.query(&queries[0]).await;
        assert!(!answer.ends_with("(0 rows)"), "{differing}: {answer}");
    }
}

#[tokio::test]
async fn its_message_readiness_and_metrics_are_those_of_the_service() {
    let json = blocks("json");
    let vote = vote::decode(json[0].as_bytes(), 16_384).expect("the example message is a vote");
    assert_eq!(vote.law_id, "law-001");
    let documented: Value = serde_json::from_str(&json[1]).expect("JSON");
    assert_eq!(documented["checks"]["rabbitmq"]["reason"], "consuming");

    let (stage, service) = Stage::started("readme_shape", &[]).await;
    stage.count(0, 10).await;
    let fields = |readiness: &Value| -> Vec<(String, Vec<String>)> {
        let checks = readiness["checks"].as_object().expect("checks").iter();
        let names = |check: &Value| check.as_object().expect("a check").keys().cloned().collect();
        checks.map(|(side, check)| (side.clone(), names(check))).collect()
    };
    assert_eq!(fields(&service.get("/readyz").await.json()), fields(&documented));

    // The process hears of its commit after others can see it.
    service.until_metric("batch_size_processed_total", 10.0).await;
    let scrape = service.get("/metrics").await.body;
    for row in table(README) {
        let line = format!("# TYPE {} {}", row[0].trim_matches('`'), row[1]);
        assert!(scrape.lines().any(|scraped| scraped == line), "{line}");
    }
    assert_eq!(table(README).count(), 5, "the contract's; all others are in docs/metrics.md");
    service.stop().await;
}

#[test]
fn its_configuration_table_is_that_of_the_code() {
    let table = CONFIGURATION.split("<!-- configuration: begin -->\n").nth(1).expect("a begin");
    let table = table.split("<!-- configuration: end -->").next().expect("an end");
    let mut rows = table.lines().filter(|line| line.starts_with('|')).skip(2);
    for key in keys::SELECTORS.iter().chain(keys::ALL) {
        let default = shipped_default(key).map(|value| format!("`{value}`")).unwrap_or_default();
        let row = format!("| `{}` | `{}` | {default} | ", key.variable, key.path);
        let documented = rows.next().and_then(|found| found.strip_prefix(&row));
        assert!(documented.is_some_and(|help| help.ends_with(". |")), "no such row: {row}");
    }
    assert_eq!(rows.next(), None);
}
