//! The service itself: batches, retries, monitoring, shutdown.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Serialize, Serializer};
use strum::{EnumString, VariantNames};

use super::keys;
use super::reader::Reader;
use super::values::{address, as_seconds, seconds, whole, word};

/// How votes are gathered before they are written together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Batch {
    /// Votes per batch, 1 to 65535.
    pub size: usize,
    /// After this, counted from its first vote, a batch is processed although it is not full.
    #[serde(rename = "timeout_seconds", serialize_with = "as_seconds")]
    pub timeout: Duration,
    /// Largest message body, in bytes; RabbitMQ itself carries at most 128 MiB.
    pub max_message_bytes: usize,
}

impl Batch {
    pub(super) fn read(from: &mut Reader) -> Self {
        Self {
            size: from.get(&keys::BATCH_SIZE, whole(1..=65_535)),
            timeout: from.get(&keys::BATCH_TIMEOUT_SECONDS, seconds(0.001..=3_600.0)),
            max_message_bytes: from.get(&keys::MAX_MESSAGE_BYTES, whole(256..=134_217_728)),
        }
    }
}

/// How a failed batch is retried before its votes go back to the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Retry {
    /// Retries after the first attempt, 0 to 30.
    pub max_attempts: u32,
    /// Before the first retry; doubled before each further one.
    #[serde(rename = "delay_seconds", serialize_with = "as_seconds")]
    pub delay: Duration,
}

impl Retry {
    pub(super) fn read(from: &mut Reader) -> Self {
        Self {
            max_attempts: from.get(&keys::MAX_RETRY_ATTEMPTS, whole(0..=30)),
            delay: from.get(&keys::RETRY_DELAY_SECONDS, seconds(0.0..=3_600.0)),
        }
    }
}

/// Metrics, health and logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
    #[serde(rename = "totals_refresh_seconds", serialize_with = "as_seconds")]
    pub totals_refresh: Duration,
    /// Between two comparisons of the totals with the audit; `None`: they are never compared.
    #[serde(rename = "reconcile_interval_seconds", serialize_with = "as_seconds_or_zero")]
    pub reconcile_interval: Option<Duration>,
}

impl Monitoring {
    pub(super) fn read(from: &mut Reader) -> Self {
        let interval = from.get(&keys::RECONCILE_INTERVAL_SECONDS, seconds(0.0..=86_400.0));
        Self {
            host: from.get(&keys::PROMETHEUS_HOST, address),
            port: from.get(&keys::PROMETHEUS_PORT, whole(0..=65_535)),
            log_level: from.get(&keys::LOG_LEVEL, word),
            log_format: from.get(&keys::LOG_FORMAT, word),
            max_laws: from.get(&keys::METRICS_MAX_LAWS, whole(1..=100_000)),
            totals_refresh: from.get(&keys::TOTALS_REFRESH_SECONDS, seconds(0.1..=86_400.0)),
            reconcile_interval: Some(interval).filter(|interval| !interval.is_zero()),
        }
    }
}

fn as_seconds_or_zero<S: Serializer>(value: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    as_seconds(&value.unwrap_or_default(), to)
}

/// How the service ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shutdown {
    /// How long a graceful shutdown may take.
    #[serde(rename = "timeout_seconds", serialize_with = "as_seconds")]
    pub timeout: Duration,
}

impl Shutdown {
    pub(super) fn read(from: &mut Reader) -> Self {
        Self { timeout: from.get(&keys::SHUTDOWN_TIMEOUT_SECONDS, seconds(0.1..=3_600.0)) }
    }
}

/// The least severe events that are logged, under Python's names; there is nothing above an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, Serialize, VariantNames)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", ascii_case_insensitive)]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// What helps to find a fault.
    Debug,
    /// What happens.
    Info,
    /// What should be looked at.
    #[strum(to_string = "warn", serialize = "warning")]
    Warn,
    /// What went wrong.
    #[strum(to_string = "error", serialize = "critical", serialize = "fatal")]
    Error,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, Serialize, VariantNames)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", ascii_case_insensitive)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
