//! Each rule with a configuration that it is about, and with one that it is not.

use std::ffi::OsString;

use super::*;
use crate::platform::config::Sources;

/// The configuration that environment variables make, written as for a shell.
pub(super) fn config(variables: &str) -> Config {
    let variables = variables.split_whitespace().filter_map(|variable| variable.split_once('='));
    let environment =
        variables.map(|(name, value)| (name.to_owned(), OsString::from(value))).collect();
    let sources = Sources { environment, ..Sources::default() };
    Config::load(&sources).unwrap_or_else(|problems| panic!("{problems}"))
}

/// Variables that a rule warns of | what silences it | the setting in the finding: what it names. The
/// prefetch rises to the batch size, and no further; ten retries take 1,023 s and a quarter on top.
const CASES: &str = "
RABBITMQ_HOST=mq.example RABBITMQ_TLS=true | RABBITMQ_USER=counter | rabbitmq.user: loopback_users
RABBITMQ_HOST=mq.example RABBITMQ_USER=counter | RABBITMQ_HOST=127.0.0.2 | rabbitmq.tls: mq.example
RABBITMQ_HOST=[::1],mq.example RABBITMQ_USER=counter | RABBITMQ_HOST=[::1],localhost:1 | rabbitmq.tls: mq.example
RABBITMQ_MANAGEMENT_URL=http://a.b | RABBITMQ_MANAGEMENT_URL=http://[::1] | rabbitmq.management_url: https
RABBITMQ_HEARTBEAT_SECONDS=61 | RABBITMQ_HEARTBEAT_SECONDS=60 | rabbitmq.heartbeat_seconds: 122 s
POSTGRES_HOST=db.example | POSTGRES_SSLMODE=verify-full | postgres.sslmode: not checked
POSTGRES_HOST=localhost,db.example | POSTGRES_HOST=localhost,127.0.0.1 | postgres.sslmode: not checked
POSTGRES_HOST=db.example POSTGRES_SSLMODE=require | POSTGRES_HOST=/run/pg | postgres.sslmode: pose as
POSTGRES_HOST=db.example POSTGRES_SSLMODE=disable | POSTGRES_HOST=localhost | postgres.sslmode: unencrypted
POSTGRES_ALLOW_LOSSY=true | POSTGRES_ALLOW_LOSSY=false | postgres.allow_lossy: crash
BATCH_SIZE=1 | BATCH_SIZE=10 | batch.size: BATCH_SIZE to 100
BATCH_SIZE=500 | RABBITMQ_PREFETCH_COUNT=1000 | rabbitmq.prefetch_count: PREFETCH_COUNT to 2000
RABBITMQ_PREFETCH_COUNT=199 | POSTGRES_MAX_CONNECTIONS=1 | rabbitmq.prefetch_count: 9 of 10 connections
RABBITMQ_PREFETCH_COUNT=1100 | RABBITMQ_PREFETCH_COUNT=1099 | postgres.max_connections: 11 batches of 100
BATCH_SIZE=5000 RABBITMQ_PREFETCH_COUNT=16385 | RABBITMQ_PREFETCH_COUNT=16384 | rabbitmq.prefetch_count: 256 MiB
MAX_RETRY_ATTEMPTS=0 | MAX_RETRY_ATTEMPTS=1 | retry.max_attempts: delivery limit
RETRY_DELAY_SECONDS=0 | RETRY_DELAY_SECONDS=0.5 | retry.delay_seconds: all 3 retries
MAX_RETRY_ATTEMPTS=10 | MAX_RETRY_ATTEMPTS=9 | retry.max_attempts: 1278 s
SHUTDOWN_TIMEOUT_SECONDS=10 | SHUTDOWN_TIMEOUT_SECONDS=9.9 | shutdown.timeout_seconds: after 10 s unless
SHUTDOWN_TIMEOUT_SECONDS=30 | SHUTDOWN_TIMEOUT_SECONDS=8 | shutdown.timeout_seconds: Kubernetes after 30 s
SHUTDOWN_TIMEOUT_SECONDS=5 | POSTGRES_STATEMENT_TIMEOUT_SECONDS=5 | shutdown.timeout_seconds: 10 s
RECONCILE_INTERVAL_SECONDS=0 | RECONCILE_INTERVAL_SECONDS=60 | monitoring.reconcile_interval_seconds: recount
PROMETHEUS_PORT=0 | PROMETHEUS_PORT=1 PIPELINE_PROFILE=throughput | monitoring.port: health-check
";

#[test]
fn each_rule_sees_what_it_is_about_and_nothing_else() {
    let findings = |variables: &str| configuration(&config(variables)).findings;
    assert_eq!(findings(""), []);
    for case in CASES.lines().skip(1) {
        let parts: Vec<&str> = case.split(" | ").collect();
        let [wrong, change, expected] = parts[..] else { panic!("{case}") };
        let (subject, named) = expected.split_once(": ").expect("a setting and a text");
        let found = findings(wrong);
        let [finding] = found.as_slice() else { panic!("{case}: {found:#?}") };
        let is_note = subject.starts_with("monitoring.");
        let severity = if is_note { Severity::Info } else { Severity::Warning };
        assert_eq!((finding.subject.as_str(), finding.severity), (subject, severity));
        let text = format!("{} {}", finding.meaning, finding.remedy);
        assert!(text.contains(named), "{named:?} in {text}");
        assert!(finding.value.is_some() && finding.set_by.is_some(), "{finding:?}");
        assert_eq!(findings(&format!("{wrong} {change}")), [], "{case}");
    }
}

#[test]
fn variables_that_no_setting_reads_are_warned_of() {
    let found = configuration(&config("RABITMQ_HOST=mq.example POSTGRES_INITDB_ARGS=-k")).findings;
    let [finding] = found.as_slice() else { panic!("{found:#?}") };
    assert_eq!((finding.subject.as_str(), finding.severity), ("RABITMQ_HOST", Severity::Warning));
    assert_eq!(finding.set_by.as_deref(), Some("environment variable RABITMQ_HOST"));
    assert!(finding.remedy.contains("RABBITMQ_HOST?"), "{finding:?}");
}

#[test]
fn a_finding_about_a_setting_says_where_its_value_came_from_and_hides_passwords() {
    let config = config(
        "RABBITMQ_URL=amqp://counter:hunter2@mq.example/votes BATCH_SIZE=500 \
         DATABASE_URL=postgres://counter:hunter2@db.example/votes \
         RABBITMQ_MANAGEMENT_URL=http://counter:hunter2@mq.example:15672",
    );
    let found = configuration(&config).findings;
    assert_eq!(found.len(), 4, "{found:#?}");
    let json = serde_json::to_string(&found).expect("JSON");
    assert!(!json.contains("hunter2"), "{json}");
    let prefetch = found.iter().find(|finding| finding.subject == "rabbitmq.prefetch_count");
    let set_by = prefetch.and_then(|finding| finding.set_by.as_deref());
    assert_eq!(set_by, Some("follows batch.size (environment variable BATCH_SIZE)"));
}

#[test]
fn only_what_is_this_machine_for_certain_is_local() {
    for host in ["localhost", "LOCALHOST.", "db.localhost", "127.9.9.9", "::1", "/run"] {
        assert!(is_local(host), "{host}");
    }
    for host in ["rabbitmq", "localhost.example", "10.0.0.1", "0.0.0.0", "::2"] {
        assert!(!is_local(host), "{host}");
    }
}
