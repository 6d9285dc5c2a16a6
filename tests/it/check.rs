//! `check`: what it finds, on what it ends with which code, and that it leaves everything as it was.

mod blockers;
mod database;
mod migrations;
mod queues;

use serde_json::Value;
use tokio::net::TcpListener;

use crate::support::{BINARY, Ended, Servers, Stage, command, ended, execute, votes};

const ROLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/roles.sql");

impl Ended {
    /// The findings of `--json`.
    fn findings(&self) -> Vec<Value> {
        let object = self.json();
        let findings = object["findings"].as_array().expect("findings").clone();
        let count = |severity| findings.iter().filter(|f| f["severity"] == severity).count();
        assert_eq!(object["errors"], count("error"), "{object}");
        assert_eq!(object["warnings"], count("warning"), "{object}");
        assert!(object["checked"].as_array().is_some_and(|all| !all.is_empty()), "{object}");
        for finding in &findings {
            for field in ["severity", "subject", "meaning", "remedy"] {
                assert!(finding[field].as_str().is_some_and(|t| !t.is_empty()), "{finding}");
            }
        }
        findings
    }

    /// How bad the one finding is that holds `words`, in whatever field.
    fn severity(&self, words: &str) -> String {
        let findings = self.findings();
        let holding: Vec<&Value> = findings
            .iter()
            .filter(|finding| {
                let fields = finding.as_object().expect("a finding").values();
                fields.filter_map(Value::as_str).any(|field| field.contains(words))
            })
            .collect();
        let [finding] = holding.as_slice() else { panic!("{words:?} in {}", self.stdout) };
        finding["severity"].as_str().unwrap_or_default().to_owned()
    }
}

async fn check(stage: &Stage<'_>, arguments: &[&str], overrides: &[(&str, &str)]) -> Ended {
    let mut command = command(stage, BINARY, &[&["check"], arguments].concat());
    command.envs(overrides.iter().copied());
    let ended = ended(command).await;
    let message = format!("{}{}", ended.stdout, ended.stderr);
    let mut environment = stage.environment();
    environment.extend(overrides.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())));
    for (variable, secret) in &environment {
        // guest's password is its name, which is told.
        if variable.contains("PASSWORD") && secret != "guest" {
            assert!(!message.contains(secret.as_str()), "{variable} in {message}");
        }
    }
    assert!(!message.contains("citizen-0"), "a citizen in {message}");
    ended
}

/// A login role of this stage's own, in no group and without grants.
async fn login(stage: &Stage<'_>) -> String {
    let role = format!("login_{}", stage.database);
    execute(stage, &format!("CREATE ROLE {role} LOGIN PASSWORD 'least-of-all'")).await;
    role
}

fn as_role(role: &str) -> [(&str, &str); 2] {
    [("POSTGRES_USER", role), ("POSTGRES_PASSWORD", "least-of-all")]
}

fn grant(stage: &Stage<'_>) {
    stage.servers.script(&["psql", "--", "-d", &stage.database, "-X", "-q", "-f", ROLES]);
}

/// How many tables there are in this stage's database, and the queues with their arguments.
async fn everything(stage: &Stage<'_>) -> (i64, String) {
    let tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    let tables = stage.number(tables).await;
    let list = ["ctl", "--", "-q", "list_queues", "name", "durable", "arguments", "consumers"];
    let queues = stage.servers.script(&list);
    let ours: Vec<&str> = queues.lines().filter(|line| line.contains(&stage.queue)).collect();
    (tables, ours.join("\n"))
}

#[tokio::test]
async fn good_servers_pass_and_stay_as_they_were() {
    let stage = Stage::migrated(Servers::shared(), "checkgood").await;
    grant(&stage);
    let role = login(&stage).await;
    execute(&stage, &format!("GRANT vote_service TO {role}")).await;
    let before = everything(&stage).await;
    assert_eq!(before.1, "", "no queue yet");

    let strict = ["--connect", "--strict", "--json"];
    let found = check(&stage, &strict, &as_role(&role)).await;
    assert_eq!((found.code, found.stderr.as_str()), (Some(0), ""), "{}", found.stdout);
    let not_there = |f: &&Value| f["value"] == "not there" && f["severity"] == "info";
    assert_eq!(found.findings().iter().filter(not_there).count(), 2, "{}", found.stdout);
    assert_eq!(everything(&stage).await, before);
    assert_eq!(stage.number("SELECT count(*) FROM vote_audit").await, 0);

    // The queue as the service makes it, with votes in it.
    stage.publish_votes(&votes(0, 3)).await;
    let before = everything(&stage).await;
    let found = check(&stage, &strict, &as_role(&role)).await;
    assert_eq!((found.code, found.stderr.as_str()), (Some(0), ""), "{}", found.stdout);
    assert_eq!(found.severity("3 messages ready"), "info");
    assert_eq!(everything(&stage).await, before);
    assert_eq!(stage.ready(&stage.queue).await, Some(3));

    let ended = check(&stage, &["--connect"], &as_role(&role)).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stdout);
    assert!(ended.stdout.ends_with("no errors, no warnings\n"), "{}", ended.stdout);
    for looked_at in ["the configuration:", "RabbitMQ on", "PostgreSQL, database", "a batch"] {
        let checked = ended.stdout.split_once("checked: ").expect("what was checked").1;
        assert!(checked.contains(looked_at), "{looked_at} in {checked}");
    }
}

async fn closed_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    listener.local_addr().expect("an address").port()
}

#[tokio::test]
async fn servers_that_are_down_or_silent_are_errors_and_not_waited_for() {
    let stage = Stage::migrated(Servers::shared(), "checkdown").await;
    let closed = closed_port().await.to_string();
    let down = [("RABBITMQ_PORT", closed.as_str()), ("POSTGRES_PORT", &closed)];
    let ended = check(&stage, &["--connect", "--json"], &down).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stdout);
    for setting in ["rabbitmq.host", "postgres.host"] {
        assert_eq!(ended.severity(setting), "error");
    }
    assert_eq!(check(&stage, &[], &down).await.code, Some(0), "no server is touched");

    // Takes connections, as the kernel does for it, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = silent.local_addr().expect("an address").port().to_string();
    let silent_ones = [("RABBITMQ_PORT", port.as_str()), ("POSTGRES_PORT", &port)];
    let ended = check(&stage, &["--connect", "--json"], &silent_ones).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stdout);
    assert_eq!(ended.severity("did not answer within"), "error");
    assert_eq!(ended.severity("no connection within"), "error");
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
        let ended = check(&stage, &["--connect", "--json"], &[(variable, value)]).await;
        assert_eq!(ended.code, Some(1), "{variable}: {}", ended.stdout);
        assert_eq!(ended.severity(named), "error", "{variable}");
    }
}

#[tokio::test]
async fn a_configuration_that_cannot_be_used_ends_with_78_and_is_json_when_asked_for() {
    let stage = Stage::new(Servers::shared(), "checkconfig").await;
    let wrong = [("BATCH_SIZE", "many"), ("LOG_LEVEL", "chatty")];
    let ended = check(&stage, &[], &wrong).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(78), ""));
    assert!(ended.stderr.contains("the configuration has 2 problems"), "{}", ended.stderr);
    let json = check(&stage, &["--connect", "--json"], &wrong).await;
    assert_eq!((json.code, &json.stderr), (Some(78), &ended.stderr));
    assert_eq!(json.findings().len(), 2, "{}", json.stdout);
    assert_eq!(json.severity("environment variable BATCH_SIZE"), "error");
}

#[tokio::test]
async fn warnings_fail_only_where_that_is_asked_for() {
    let stage = Stage::new(Servers::shared(), "checkstrict").await;
    let wasteful = [("BATCH_SIZE", "1000")];
    let ended = check(&stage, &[], &wasteful).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stdout);
    assert!(ended.stdout.ends_with("no errors, 1 warning\n"), "{}", ended.stdout);
    assert!(ended.stdout.contains("set by: follows batch.size"), "{}", ended.stdout);
    assert_eq!(check(&stage, &["--strict"], &wasteful).await.code, Some(1));
    assert_eq!(check(&stage, &["--strict"], &[]).await.code, Some(0));
}
