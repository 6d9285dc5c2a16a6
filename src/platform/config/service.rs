//! The service itself: batches, retries, monitoring, shutdown, publication.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use strum::{EnumString, VariantNames};

use super::values::{Seconds, SecondsOrNever, Whole, address, boolean, word};

/// How votes are gathered before they are written together.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Batch {
    /// Votes per batch, 1 to 65535.
    #[serde(deserialize_with = "Whole::<1, 65_535>::deserialize")]
    pub size: usize,
    /// After this, counted from its first vote, a batch is processed although it is not full.
    #[serde(rename = "timeout_seconds", with = "Seconds::<1, 3_600_000>")]
    pub timeout: Duration,
    /// Largest message body, in bytes; RabbitMQ itself carries at most 128 MiB.
    #[serde(deserialize_with = "Whole::<256, 134_217_728>::deserialize")]
    pub max_message_bytes: usize,
}

/// How a failed batch is retried before its votes go back to the queue.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Retry {
    /// Retries after the first attempt, 0 to 30.
    #[serde(deserialize_with = "Whole::<0, 30>::deserialize")]
    pub max_attempts: u32,
    /// Before the first retry; doubled before each further one.
    #[serde(rename = "delay_seconds", with = "Seconds::<0, 3_600_000>")]
    pub delay: Duration,
}

/// Metrics, health and logs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Monitoring {
    /// The address the metrics and health endpoints listen on.
    #[serde(deserialize_with = "address")]
    pub host: IpAddr,
    /// Their port; 0 lets the system choose a free one.
    #[serde(deserialize_with = "Whole::<0, 65_535>::deserialize")]
    pub port: u16,
    /// The least severe events that are logged.
    #[serde(deserialize_with = "word")]
    pub log_level: LogLevel,
    /// How log lines are written.
    #[serde(deserialize_with = "word")]
    pub log_format: LogFormat,
    /// Laws that get metric series of their own.
    #[serde(deserialize_with = "Whole::<1, 100_000>::deserialize")]
    pub max_laws: usize,
    /// What the metrics and the log show of the totals.
    #[serde(deserialize_with = "word")]
    pub totals: ShownTotals,
    /// Between two readings of the totals in the database.
    #[serde(rename = "totals_refresh_seconds", with = "Seconds::<100, 86_400_000>")]
    pub totals_refresh: Duration,
    /// Between two comparisons of the totals with the audit; `None`: they are never compared.
    #[serde(rename = "reconcile_interval_seconds", with = "SecondsOrNever::<86_400_000>")]
    pub reconcile_interval: Option<Duration>,
}

/// How the service ends.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Shutdown {
    /// How long a graceful shutdown may take.
    #[serde(rename = "timeout_seconds", with = "Seconds::<100, 3_600_000>")]
    pub timeout: Duration,
}

/// Who decides what the public sees.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Publication {
    /// `final`, and an earlier time, need another database user than the change before.
    #[serde(deserialize_with = "boolean")]
    pub four_eyes: bool,
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

/// What the metrics and the log show of the totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, Serialize, VariantNames)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", ascii_case_insensitive)]
pub enum ShownTotals {
    /// Each law's, by choice: partial results, for everybody who can read them.
    Full,
    /// How many votes are counted, on all laws and for both choices together: turnout.
    Sums,
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
