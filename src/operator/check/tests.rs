//! Each rule with a configuration that it is about, and with one that it is not.

use std::ffi::OsString;

use super::*;
use crate::platform::config::Sources;

fn findings(variables: &[(&str, &str)]) -> Vec<Finding> {
    let environment =
        variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value)));
    let sources = Sources { environment: environment.collect(), ..Sources::default() };
    let config = Config::load(&sources).unwrap_or_else(|problems| panic!("{problems}"));
    configuration(&config).findings
}

/// Variables that a rule is about, others that it is not, and the finding: subject, severity, and
/// what it has to name.
type Case = (
    &'static [(&'static str, &'static str)],
    &'static [(&'static str, &'static str)],
    (&'static str, Severity, &'static str),
);

const CASES: &[Case] = &[
    (
        &[("RABBITMQ_HOST", "mq.example"), ("RABBITMQ_TLS", "true")],
        &[("RABBITMQ_HOST", "mq.example"), ("RABBITMQ_TLS", "true"), ("RABBITMQ_USER", "counter")],
        ("rabbitmq.user", Severity::Warning, "loopback_users"),
    ),
    (
        &[("RABBITMQ_HOST", "mq.example"), ("RABBITMQ_USER", "counter")],
        &[("RABBITMQ_HOST", "127.0.0.2"), ("RABBITMQ_USER", "counter")],
        ("rabbitmq.tls", Severity::Warning, "in clear to mq.example"),
    ),
    (
        &[("RABBITMQ_MANAGEMENT_URL", "http://mq.example:15672")],
        &[("RABBITMQ_MANAGEMENT_URL", "http://[::1]:15672")],
        ("rabbitmq.management_url", Severity::Warning, "https"),
    ),
    (
        &[("RABBITMQ_HEARTBEAT_SECONDS", "61")],
        &[("RABBITMQ_HEARTBEAT_SECONDS", "60")],
        ("rabbitmq.heartbeat_seconds", Severity::Warning, "122 s"),
    ),
    (
        &[("POSTGRES_HOST", "db.example")],
        &[("POSTGRES_HOST", "db.example"), ("POSTGRES_SSLMODE", "verify-full")],
        ("postgres.sslmode", Severity::Warning, "certificate is not checked"),
    ),
    (
        &[("POSTGRES_HOST", "db.example"), ("POSTGRES_SSLMODE", "require")],
        &[("POSTGRES_HOST", "/run/postgresql"), ("POSTGRES_SSLMODE", "require")],
        ("postgres.sslmode", Severity::Warning, "pose as the server"),
    ),
    (
        &[("POSTGRES_HOST", "db.example"), ("POSTGRES_SSLMODE", "disable")],
        &[("POSTGRES_HOST", "localhost"), ("POSTGRES_SSLMODE", "disable")],
        ("postgres.sslmode", Severity::Warning, "in clear"),
    ),
    (
        &[("POSTGRES_ALLOW_LOSSY", "true")],
        &[("POSTGRES_ALLOW_LOSSY", "false")],
        ("postgres.allow_lossy", Severity::Warning, "crash"),
    ),
    (
        &[("BATCH_SIZE", "1")],
        &[("BATCH_SIZE", "10")],
        ("batch.size", Severity::Warning, "BATCH_SIZE to 100"),
    ),
    (
        // The prefetch rises to the batch size, and no further.
        &[("BATCH_SIZE", "500")],
        &[("BATCH_SIZE", "500"), ("RABBITMQ_PREFETCH_COUNT", "1000")],
        ("rabbitmq.prefetch_count", Severity::Warning, "RABBITMQ_PREFETCH_COUNT to 2000"),
    ),
    (
        &[("RABBITMQ_PREFETCH_COUNT", "199")],
        &[("RABBITMQ_PREFETCH_COUNT", "199"), ("POSTGRES_MAX_CONNECTIONS", "1")],
        ("rabbitmq.prefetch_count", Severity::Warning, "9 of 10 connections"),
    ),
    (
        &[("RABBITMQ_PREFETCH_COUNT", "1100")],
        &[("RABBITMQ_PREFETCH_COUNT", "1099")],
        ("postgres.max_connections", Severity::Warning, "11 batches of 100"),
    ),
    (
        &[("BATCH_SIZE", "5000"), ("RABBITMQ_PREFETCH_COUNT", "16385")],
        &[("BATCH_SIZE", "5000"), ("RABBITMQ_PREFETCH_COUNT", "16384")],
        ("rabbitmq.prefetch_count", Severity::Warning, "256 MiB"),
    ),
    (
        &[("MAX_RETRY_ATTEMPTS", "0")],
        &[("MAX_RETRY_ATTEMPTS", "1")],
        ("retry.max_attempts", Severity::Warning, "delivery limit"),
    ),
    (
        &[("RETRY_DELAY_SECONDS", "0")],
        &[("RETRY_DELAY_SECONDS", "0.5")],
        ("retry.delay_seconds", Severity::Warning, "all 3 retries"),
    ),
    (
        // 127 s of delays and a quarter on top: 158.75 s.
        &[("MAX_RETRY_ATTEMPTS", "7"), ("RABBITMQ_CONSUMER_TIMEOUT_SECONDS", "317")],
        &[("MAX_RETRY_ATTEMPTS", "7"), ("RABBITMQ_CONSUMER_TIMEOUT_SECONDS", "318")],
        ("retry.max_attempts", Severity::Warning, "158 s"),
    ),
    (
        &[("SHUTDOWN_TIMEOUT_SECONDS", "10")],
        &[("SHUTDOWN_TIMEOUT_SECONDS", "9.9")],
        ("shutdown.timeout_seconds", Severity::Warning, "docker stop kills after 10 s unless"),
    ),
    (
        &[("SHUTDOWN_TIMEOUT_SECONDS", "30")],
        &[("SHUTDOWN_TIMEOUT_SECONDS", "8")],
        ("shutdown.timeout_seconds", Severity::Warning, "Kubernetes after 30 s"),
    ),
    (
        &[("SHUTDOWN_TIMEOUT_SECONDS", "5")],
        &[("SHUTDOWN_TIMEOUT_SECONDS", "5"), ("POSTGRES_STATEMENT_TIMEOUT_SECONDS", "5")],
        ("shutdown.timeout_seconds", Severity::Warning, "10 s"),
    ),
    (
        &[("RECONCILE_INTERVAL_SECONDS", "0")],
        &[("RECONCILE_INTERVAL_SECONDS", "60")],
        ("monitoring.reconcile_interval_seconds", Severity::Info, "recount"),
    ),
    (
        &[("PROMETHEUS_PORT", "0")],
        &[("PROMETHEUS_HOST", "0.0.0.0")],
        ("monitoring.port", Severity::Info, "health-check"),
    ),
];

#[test]
fn each_rule_sees_what_it_is_about_and_nothing_else() {
    for (wrong, right, (subject, severity, named)) in CASES {
        let found = findings(wrong);
        let [finding] = found.as_slice() else { panic!("{wrong:?}: {found:#?}") };
        assert_eq!((finding.subject.as_str(), finding.severity), (*subject, *severity));
        let text = format!("{} {}", finding.meaning, finding.remedy);
        assert!(text.contains(named), "{named:?} in {text}");
        assert!(!finding.meaning.is_empty() && !finding.remedy.is_empty());
        assert!(finding.value.is_some() && finding.set_by.is_some(), "{finding:?}");
        assert_eq!(findings(right), [], "{right:?}");
    }
}

#[test]
fn variables_that_no_setting_reads_are_warned_of() {
    let [finding] =
        &findings(&[("RABITMQ_HOST", "mq.example"), ("POSTGRES_INITDB_ARGS", "-k")])[..]
    else {
        panic!("one finding")
    };
    assert_eq!((finding.subject.as_str(), finding.severity), ("RABITMQ_HOST", Severity::Warning));
    assert_eq!(finding.set_by.as_deref(), Some("environment variable RABITMQ_HOST"));
    assert!(finding.remedy.contains("RABBITMQ_HOST?"), "{finding:?}");
}

#[test]
fn shipped_profiles_on_this_machine_give_nothing() {
    assert_eq!(findings(&[]), []);
    assert_eq!(findings(&[("PIPELINE_PROFILE", "throughput")]), []);
}

#[test]
fn a_finding_about_a_setting_says_where_its_value_came_from_and_hides_passwords() {
    let found = findings(&[
        ("RABBITMQ_URL", "amqp://counter:hunter2@mq.example/votes"),
        ("DATABASE_URL", "postgres://counter:hunter2@db.example/votes"),
        ("RABBITMQ_MANAGEMENT_URL", "http://counter:hunter2@mq.example:15672"),
        ("BATCH_SIZE", "500"),
    ]);
    assert_eq!(found.len(), 4, "{found:#?}");
    let json = serde_json::to_string(&found).expect("JSON");
    assert!(!json.contains("hunter2"), "{json}");
    let prefetch = found.iter().find(|finding| finding.subject == "rabbitmq.prefetch_count");
    let set_by = prefetch.and_then(|finding| finding.set_by.as_deref());
    assert_eq!(set_by, Some("follows batch.size (environment variable BATCH_SIZE)"));
}

#[test]
fn only_what_is_this_machine_for_certain_is_local() {
    for host in ["localhost", "LOCALHOST.", "db.localhost", "127.0.0.1", "127.9.9.9", "::1", "/run"]
    {
        assert!(is_local(host), "{host}");
    }
    for host in ["rabbitmq", "localhost.example", "10.0.0.1", "0.0.0.0", "::2", "2001:db8::1"] {
        assert!(!is_local(host), "{host}");
    }
}
