//! `check`: its findings and exit codes, and that it changes nothing.

mod blockers;
mod database;
mod migrations;
mod queues;

use serde_json::Value;

use crate::support::{Ended, Servers, Stage, assert_lacks, listen, login};

/// Counts tables, indexes and the like.
const RELATIONS: &str = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";

impl Ended {
    /// The findings of `--json`.
    pub fn findings(&self) -> Vec<Value> {
        self.json()["findings"].as_array().expect("findings").clone()
    }

    /// The severity of the one finding that has `words` in any field.
    fn severity(&self, words: &str) -> String {
        let findings = self.findings();
        let has_words = |finding: &&Value| {
            let mut fields = finding.as_object().expect("a finding").values();
            fields.any(|field| field.as_str().is_some_and(|field| field.contains(words)))
        };
        let found: Vec<&Value> = findings.iter().filter(has_words).collect();
        let [finding] = found[..] else { panic!("{words:?} in {}", self.stdout) };
        finding["severity"].as_str().unwrap_or_default().to_owned()
    }

    /// Asserts the exit code and, for each pair, the severity of the finding that has these words.
    fn finds(&self, code: i32, expected: &[(&str, &str)]) {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        for (severity, words) in expected {
            assert_eq!(self.severity(words), *severity, "{words}");
        }
    }
}

async fn check(stage: &Stage<'_>, arguments: &[&str], overrides: &[(&str, &str)]) -> Ended {
    let ended = stage.run_with(&[&["check"], arguments].concat(), overrides).await;
    let message = format!("{}{}", ended.stdout, ended.stderr);
    let password = stage.servers.get("POSTGRES_PASSWORD");
    assert_lacks(&message, &[password, "wrong-secret", "citizen-0"]);
    ended
}

async fn connected(stage: &Stage<'_>, overrides: &[(&str, &str)]) -> Ended {
    check(stage, &["--connect", "--json"], overrides).await
}

/// The number of tables in this stage's database, and its queues with their arguments.
async fn everything(stage: &Stage<'_>) -> (i64, String) {
    let tables = stage.number(RELATIONS).await;
    let queues = stage.servers.ctl(&["list_queues", "name", "durable", "arguments", "consumers"]);
    let ours: Vec<&str> = queues.lines().filter(|line| line.contains(&stage.queue)).collect();
    (tables, ours.join("\n"))
}

#[tokio::test]
async fn good_servers_pass_and_stay_as_they_were() {
    let stage = Stage::with_roles(Servers::shared(), "checkgood").await;
    let role = stage.role("login", "IN ROLE vote_service").await;
    let strict = ["--connect", "--strict", "--json"];
    let before = everything(&stage).await;
    assert_eq!(before.1, "", "no queue yet");
    let found = check(&stage, &strict, &login(&role)).await;
    found.finds(0, &[]);
    let not_there = |f: &&Value| f["value"] == "not there" && f["severity"] == "info";
    assert_eq!(found.findings().iter().filter(not_there).count(), 2, "{}", found.stdout);
    assert_eq!(everything(&stage).await, before);
    assert_eq!(stage.number("SELECT count(*) FROM vote_audit").await, 0);

    // The queue as the service creates it, with votes in it.
    stage.publish_new(0, 3).await;
    let before = everything(&stage).await;
    check(&stage, &strict, &login(&role)).await.finds(0, &[("info", "3 messages ready")]);
    assert_eq!(everything(&stage).await, before);
    assert_eq!(stage.ready(&stage.queue).await, Some(3));

    let parts =
        ["checked: ", "the configuration:", "RabbitMQ on", "PostgreSQL, database", "a batch"];
    let ended = check(&stage, &["--connect"], &login(&role)).await.assert(0, &parts);
    assert!(ended.stdout.ends_with("no errors, no warnings\n"), "{}", ended.stdout);
}

async fn closed_port() -> String {
    listen().await.1
}

#[tokio::test]
async fn servers_that_are_down_or_silent_are_errors_and_not_waited_for() {
    let stage = Stage::migrated(Servers::shared(), "checkdown").await;
    let closed = closed_port().await;
    let down = [("RABBITMQ_PORT", closed.as_str()), ("POSTGRES_PORT", &closed)];
    let hosts = [("error", "rabbitmq.host"), ("error", "postgres.host")];
    connected(&stage, &down).await.finds(1, &hosts);
    // Without --connect no server is asked.
    check(&stage, &[], &down).await.assert(0, &[]);

    // The kernel accepts connections, and no answer follows.
    let (_silent, port) = listen().await;
    let silent = [("RABBITMQ_PORT", port.as_str()), ("POSTGRES_PORT", &port)];
    let unanswered = [("error", "did not answer within"), ("error", "no connection within")];
    connected(&stage, &silent).await.finds(1, &unanswered);
}

#[tokio::test]
async fn refused_credentials_and_missing_places_are_errors() {
    let stage = Stage::migrated(Servers::shared(), "checkrefused").await;
    for (variable, value, named) in [
        ("POSTGRES_PASSWORD", "wrong-secret", "28P01"),
        ("RABBITMQ_PASSWORD", "wrong-secret", "RABBITMQ_PASSWORD"),
        ("POSTGRES_DB", "no_such_database", "3D000"),
        ("RABBITMQ_VHOST", "no-such-vhost", "RABBITMQ_VHOST"),
    ] {
        connected(&stage, &[(variable, value)]).await.finds(1, &[("error", named)]);
    }
}

#[tokio::test]
async fn an_invalid_configuration_ends_with_78_and_warnings_fail_only_with_strict() {
    let stage = Stage::new(Servers::shared(), "checkconfig").await;
    let wrong = [("BATCH_SIZE", "many"), ("LOG_LEVEL", "chatty")];
    let ended = check(&stage, &[], &wrong).await;
    let ended = ended.assert(78, &["the configuration has 2 problems"]);
    assert_eq!(ended.stdout, "");
    let json = connected(&stage, &wrong).await;
    json.finds(78, &[("error", "environment variable BATCH_SIZE")]);
    assert_eq!((json.findings().len(), &json.stderr), (2, &ended.stderr));

    let wasteful = [("BATCH_SIZE", "1000")];
    let warned = ["set by: follows batch.size", "no errors, 1 warning\n"];
    check(&stage, &[], &wasteful).await.assert(0, &warned);
    check(&stage, &["--strict"], &wasteful).await.assert(1, &[]);
    check(&stage, &["--strict"], &[]).await.assert(0, &[]);
}
