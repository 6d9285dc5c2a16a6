//! The service itself: batches, retries, monitoring, shutdown; and every value as text.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use super::Config;
use super::keys::{self, Key};
use super::problems::{HIDDEN, Refusal};
use super::reader::Reader;
use super::values::{address, port, seconds, whole};

/// How votes are gathered before they are written together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Votes per batch, 1 to 65535.
    pub size: usize,
    /// After this, counted from its first vote, a batch is processed although it is not full.
    pub timeout: Duration,
    /// Largest message body, in bytes.
    pub max_message_bytes: usize,
}

/// How a failed batch is retried before its votes go back to the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Retries after the first attempt, 0 to 30.
    pub max_attempts: u32,
    /// Before the first retry; doubled before each further one.
    pub delay: Duration,
}

/// Metrics, health and logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitoring {
    /// The address the metrics and health endpoints listen on.
    pub host: IpAddr,
    /// Their port; 0 lets the system choose a free one.
    pub port: u16,
    /// The least severe events that are logged.
    pub log_level: LogLevel,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// Laws that get metric series of their own.
    pub max_laws: usize,
    /// Between two readings of the totals in the database.
    pub totals_refresh: Duration,
    /// Between two comparisons of the totals with the audit; `None`: they are never compared.
    pub reconcile_interval: Option<Duration>,
}

/// The least severe events that are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// What helps to find a fault.
    Debug,
    /// What happens.
    Info,
    /// What should be looked at.
    Warn,
    /// What went wrong.
    Error,
}

impl LogLevel {
    /// The name that `tracing` has for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }

    /// Python's names, in any case; there is nothing above an error here.
    fn parse(text: &str) -> Result<Self, Refusal> {
        match text.trim().to_ascii_uppercase().as_str() {
            "TRACE" => Ok(Self::Trace),
            "DEBUG" => Ok(Self::Debug),
            "INFO" => Ok(Self::Info),
            "WARNING" | "WARN" => Ok(Self::Warn),
            "ERROR" | "CRITICAL" | "FATAL" => Ok(Self::Error),
            _ => Err(Refusal::new(
                "is not a log level",
                "give TRACE, DEBUG, INFO, WARNING, ERROR or CRITICAL",
            )),
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// The word for it in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }

    fn parse(text: &str) -> Result<Self, Refusal> {
        match text.trim().to_ascii_lowercase().as_str() {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(Refusal::new("is not a log format", "give text or json")),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Reads the section; none when something in it is refused, which the reader notes.
pub(super) fn monitoring(reader: &mut Reader) -> Option<Monitoring> {
    let host = reader.required(&keys::PROMETHEUS_HOST, address);
    let port = reader.required(&keys::PROMETHEUS_PORT, port(0));
    let log_level = reader.required(&keys::LOG_LEVEL, LogLevel::parse);
    let log_format = reader.required(&keys::LOG_FORMAT, LogFormat::parse);
    let max_laws = reader.required(&keys::METRICS_MAX_LAWS, whole(1, 100_000));
    let totals_refresh = reader.required(&keys::TOTALS_REFRESH_SECONDS, seconds(0.1, 86_400.0));
    let reconcile = reader.required(&keys::RECONCILE_INTERVAL_SECONDS, seconds(0.0, 86_400.0));
    Some(Monitoring {
        host: host?,
        port: port?,
        log_level: log_level?,
        log_format: log_format?,
        max_laws: max_laws?,
        totals_refresh: totals_refresh?,
        reconcile_interval: reconcile.map(|interval| Some(interval).filter(|i| !i.is_zero()))?,
    })
}

/// How long a graceful shutdown may take; none when refused, which the reader notes.
pub(super) fn shutdown_timeout(reader: &mut Reader) -> Option<Duration> {
    reader.required(&keys::SHUTDOWN_TIMEOUT_SECONDS, seconds(0.1, 3600.0))
}

impl Config {
    /// Every effective value as text, passwords hidden, in the order of the shipped file.
    pub(super) fn values(&self) -> Vec<(&'static Key, Option<String>)> {
        fn text(value: impl fmt::Display) -> Option<String> {
            Some(value.to_string())
        }
        fn seconds(value: Duration) -> Option<String> {
            text(value.as_secs_f64())
        }
        fn file(path: Option<&Path>) -> Option<String> {
            path.map(|path| path.display().to_string())
        }
        let Self { rabbitmq, postgres, batch, retry, monitoring, .. } = self;
        let tls = rabbitmq.tls.as_ref();
        let ssl = &postgres.ssl;
        let accepted = &postgres.accept_lost;
        let accepted = (!accepted.is_empty()).then(|| accepted.join(","));
        vec![
            (&keys::RABBITMQ_HOST, text(&rabbitmq.host)),
            (&keys::RABBITMQ_PORT, text(rabbitmq.port)),
            (&keys::RABBITMQ_USER, text(&rabbitmq.user)),
            (&keys::RABBITMQ_PASSWORD, text(HIDDEN)),
            (&keys::RABBITMQ_VHOST, text(&rabbitmq.vhost)),
            (&keys::RABBITMQ_QUEUE, text(&rabbitmq.queue)),
            (&keys::RABBITMQ_DEAD_LETTER_QUEUE, text(&rabbitmq.dead_letter_queue)),
            (&keys::RABBITMQ_PREFETCH_COUNT, text(rabbitmq.prefetch)),
            (&keys::RABBITMQ_HEARTBEAT_SECONDS, seconds(rabbitmq.heartbeat)),
            (&keys::RABBITMQ_CONSUMER_TIMEOUT_SECONDS, seconds(rabbitmq.consumer_timeout)),
            (&keys::RABBITMQ_TLS, text(tls.is_some())),
            (&keys::RABBITMQ_TLS_CA_FILE, file(tls.and_then(|tls| tls.ca_file.as_deref()))),
            (&keys::RABBITMQ_TLS_CERT_FILE, file(tls.and_then(|tls| tls.cert_file.as_deref()))),
            (&keys::RABBITMQ_TLS_KEY_FILE, file(tls.and_then(|tls| tls.key_file.as_deref()))),
            (
                &keys::RABBITMQ_MANAGEMENT_URL,
                rabbitmq.management_url.as_ref().and_then(|management| text(&management.url)),
            ),
            (&keys::POSTGRES_HOST, text(&postgres.host)),
            (&keys::POSTGRES_PORT, text(postgres.port)),
            (&keys::POSTGRES_DB, text(&postgres.database)),
            (&keys::POSTGRES_USER, text(&postgres.user)),
            (&keys::POSTGRES_PASSWORD, postgres.password.as_ref().and_then(|_| text(HIDDEN))),
            (&keys::POSTGRES_MIN_CONNECTIONS, text(postgres.min_connections)),
            (&keys::POSTGRES_MAX_CONNECTIONS, text(postgres.max_connections)),
            (&keys::POSTGRES_SSLMODE, text(ssl.mode)),
            (&keys::POSTGRES_SSLROOTCERT, file(ssl.root_cert.as_deref())),
            (&keys::POSTGRES_SSLCERT, file(ssl.cert.as_deref())),
            (&keys::POSTGRES_SSLKEY, file(ssl.key.as_deref())),
            (&keys::POSTGRES_STATEMENT_TIMEOUT_SECONDS, seconds(postgres.statement_timeout)),
            (&keys::POSTGRES_ALLOW_LOSSY, text(postgres.allow_lossy)),
            (&keys::POSTGRES_REQUIRE_STANDBY, text(postgres.require_standby)),
            (&keys::POSTGRES_ACCEPT_LOST, accepted),
            (&keys::MIGRATE_ON_START, text(postgres.migrate_on_start)),
            (&keys::BATCH_SIZE, text(batch.size)),
            (&keys::BATCH_TIMEOUT_SECONDS, seconds(batch.timeout)),
            (&keys::MAX_MESSAGE_BYTES, text(batch.max_message_bytes)),
            (&keys::MAX_RETRY_ATTEMPTS, text(retry.max_attempts)),
            (&keys::RETRY_DELAY_SECONDS, seconds(retry.delay)),
            (&keys::PROMETHEUS_HOST, text(monitoring.host)),
            (&keys::PROMETHEUS_PORT, text(monitoring.port)),
            (&keys::LOG_LEVEL, text(monitoring.log_level)),
            (&keys::LOG_FORMAT, text(monitoring.log_format)),
            (&keys::METRICS_MAX_LAWS, text(monitoring.max_laws)),
            (&keys::TOTALS_REFRESH_SECONDS, seconds(monitoring.totals_refresh)),
            (
                &keys::RECONCILE_INTERVAL_SECONDS,
                seconds(monitoring.reconcile_interval.unwrap_or_default()),
            ),
            (&keys::SHUTDOWN_TIMEOUT_SECONDS, seconds(self.shutdown_timeout)),
        ]
    }
}
