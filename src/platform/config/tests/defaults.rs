use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use secrecy::ExposeSecret as _;

use super::*;

/// The values themselves stand in pipeline.toml, and `.env.example` repeats them; here are those that
/// are no text of their own.
#[test]
fn without_anything_set_the_defaults_hold() {
    let config = load(&[]);
    assert_eq!(config.rabbitmq.password.current().expose_secret(), "guest");
    assert_eq!(config.rabbitmq.dead_letter_queue, "votes.aggregation.dlq");
    assert!(config.rabbitmq.management_url.is_none());
    assert!(config.postgres.password.is_none());
    assert_eq!(config.postgres.sslmode, SslMode::Prefer);
    let timeout = Duration::from_secs(1);
    assert_eq!(config.batch, Batch { size: 100, timeout, max_message_bytes: 16_384 });
    assert_eq!(config.retry, Retry { max_attempts: 3, delay: Duration::from_secs(1) });
    assert_eq!(config.monitoring.host, Ipv4Addr::UNSPECIFIED);
    assert_eq!(config.monitoring.reconcile_interval, Some(Duration::from_secs(600)));
    assert_eq!(config.batches_in_flight(), 1);
}

#[test]
fn the_throughput_profile_has_larger_batches_and_prefetch() {
    let config = load(&[("PIPELINE_PROFILE", "throughput")]);
    assert_eq!(config.profile, "throughput");
    assert_eq!(config.batch.size, 2000);
    assert_eq!(config.rabbitmq.prefetch, 8000);
    assert_eq!(config.batches_in_flight(), 4);
    assert_eq!(source(&config, "batch.size"), "shipped profile throughput");
    assert_eq!(source(&config, "batch.timeout_seconds"), "shipped defaults");
}

/// Every variable under its own name: a value that differs from the default arrives.
#[test]
fn every_variable_is_read() {
    let directory = Directory::new(&[("file.pem", &pem()), ("password", "from file\n")]);
    let pem = directory.file("file.pem");
    let variables = [
        ("RABBITMQ_HOST", "mq", "mq"),
        ("RABBITMQ_PORT", "5673", "5673"),
        ("RABBITMQ_USER", "u", "u"),
        ("RABBITMQ_PASSWORD", "p", "***"),
        ("RABBITMQ_VHOST", "v", "v"),
        ("RABBITMQ_QUEUE", "q.1", "q.1"),
        ("RABBITMQ_DEAD_LETTER_QUEUE", "q.1.d", "q.1.d"),
        ("CELL", " crc32:01/2", "crc32:1/2"),
        ("RABBITMQ_PREFETCH_COUNT", "400", "400"),
        ("RABBITMQ_HEARTBEAT_SECONDS", "20", "20"),
        ("RABBITMQ_CONSUMER_TIMEOUT_SECONDS", "3600", "3600"),
        ("RABBITMQ_TLS", "yes", "true"),
        ("RABBITMQ_TLS_CA_FILE", &pem, &pem),
        ("RABBITMQ_TLS_CERT_FILE", &pem, &pem),
        ("RABBITMQ_TLS_KEY_FILE", &pem, &pem),
        ("RABBITMQ_MANAGEMENT_URL", "http://a:b@mq:15672", "http://mq:15672/"),
        ("POSTGRES_HOST", "pg", "pg"),
        ("POSTGRES_PORT", "5433", "5433"),
        ("POSTGRES_DB", "db", "db"),
        ("POSTGRES_USER", "pu", "pu"),
        ("POSTGRES_PASSWORD", "pp", "***"),
        ("POSTGRES_MIN_CONNECTIONS", "1", "1"),
        ("POSTGRES_MAX_CONNECTIONS", "3", "3"),
        ("POSTGRES_SSLMODE", "Verify-Full", "verify-full"),
        ("POSTGRES_SSLROOTCERT", &pem, &pem),
        ("POSTGRES_SSLCERT", &pem, &pem),
        ("POSTGRES_SSLKEY", &pem, &pem),
        ("POSTGRES_STATEMENT_TIMEOUT_SECONDS", "2.5", "2.5"),
        ("POSTGRES_ALLOW_LOSSY", "on", "true"),
        ("POSTGRES_REQUIRE_STANDBY", "1", "true"),
        ("POSTGRES_ACCEPT_LOST", "0A1B2C3D, 00000001", "0a1b2c3d,00000001"),
        ("MIGRATE_ON_START", "0", "false"),
        ("BATCH_SIZE", "200", "200"),
        ("BATCH_TIMEOUT_SECONDS", "0.5", "0.5"),
        ("MAX_MESSAGE_BYTES", "256", "256"),
        ("MAX_RETRY_ATTEMPTS", "5", "5"),
        ("RETRY_DELAY_SECONDS", "0.25", "0.25"),
        ("PROMETHEUS_HOST", "::1", "::1"),
        ("PROMETHEUS_PORT", "0", "0"),
        ("LOG_LEVEL", "critical", "error"),
        ("LOG_FORMAT", "JSON", "json"),
        ("METRICS_MAX_LAWS", "7", "7"),
        ("METRICS_TOTALS", "Sums", "sums"),
        ("TOTALS_REFRESH_SECONDS", "9", "9"),
        ("RECONCILE_INTERVAL_SECONDS", "0", "0"),
        ("SHUTDOWN_TIMEOUT_SECONDS", "30", "30"),
        ("PUBLICATION_FOUR_EYES", "yes", "true"),
    ];
    let config = load(&variables.map(|(name, value, _)| (name, value)));
    let settings = config.redacted();
    assert_eq!(settings.len(), variables.len());
    for (setting, (name, _, expected)) in settings.iter().zip(variables) {
        let key = keys::by_path(setting.path).expect("a listed path is a setting's");
        assert_eq!(key.variable, name);
        assert_eq!(setting.value, expected, "{name}");
        assert_eq!(setting.set_by, format!("environment variable {name}"));
    }
    assert_eq!(config.monitoring.reconcile_interval, None, "0 is off");
    // The four that are read as others: addresses as their parts, password files as passwords.
    assert_eq!(keys::ALL.len(), variables.len() + 4);
    let config = load(&[
        ("RABBITMQ_PASSWORD_FILE", &directory.file("password")),
        ("POSTGRES_PASSWORD_FILE", &directory.file("password")),
    ]);
    assert_eq!(config.rabbitmq.password.current().expose_secret(), "from file");
    let url = load(&[("RABBITMQ_URL", "amqp://mq2"), ("DATABASE_URL", "postgres://pg2")]);
    let hosts = [url.rabbitmq.host, url.postgres.host].map(|host| host.to_string());
    assert_eq!(hosts, ["mq2", "pg2"]);
}

#[test]
fn the_example_environment_has_every_variable_with_its_default() {
    let example = include_str!("../../../../.env.example");
    let mut listed = BTreeMap::new();
    for line in example.lines() {
        let line = line.trim_start_matches("# ");
        let Some((name, value)) = line.split_once('=') else {
            continue;
        };
        if name.chars().all(|c| c.is_ascii_uppercase() || c == '_') {
            assert!(listed.insert(name, value).is_none(), "{name} is there twice");
        }
    }
    for key in keys::ALL {
        let default = shipped_default(key).unwrap_or_default();
        assert_eq!(listed.remove(key.variable), Some(default.as_str()), "{}", key.variable);
    }
    assert_eq!(listed.remove("PIPELINE_CONFIG"), Some(""));
    assert_eq!(listed.remove("PIPELINE_PROFILE"), Some(DEFAULT_PROFILE));
    assert!(listed.is_empty(), "{listed:?}");
}

#[test]
fn the_example_environment_is_a_valid_one_as_it_is_and_uncommented() {
    let example = include_str!("../../../../.env.example");
    let uncommented: String = example
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| line.split_once('=').is_some_and(|(name, _)| !name.contains(' ')))
        .fold(String::new(), |text, line| text + line + "\n");
    assert!(uncommented.contains("\nBATCH_SIZE=100\n"));
    for text in [example, &uncommented] {
        let directory = Directory::new(&[(".env", text)]);
        let config = loaded(&directory.sources(&[]));
        let defaults = load(&[]);
        for (setting, default) in config.redacted().iter().zip(defaults.redacted()) {
            assert_eq!(setting.value, default.value, "{}", setting.path);
        }
    }
}
