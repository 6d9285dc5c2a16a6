//! The metrics of the sealer: how far the log is behind, and what is wrong. No counts by choice.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{Gauge, GaugeVec, IntCounter, IntGauge, Registry, TextEncoder};
use strum::{EnumMessage, IntoStaticStr};
use tokio::time::Instant;

use super::MetricsError;
use super::registered::{self, Registered};

/// A variant's name behind `seal_` is the metric's, its documentation is the help text.
#[derive(Clone, Copy, EnumMessage, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
enum Series {
    /// Entries of the log, all of which are signed
    Entries,
    /// Votes among the entries
    Votes,
    /// Votes that are committed and not sealed
    UnsealedVotes,
    /// How long the oldest votes that a round would seal have waited for it; 0 while there are fewer than --min-rows
    LagSeconds,
    /// How long the oldest transaction in progress has kept committed votes from being sealed; 0: none does
    HeldSeconds,
    /// Votes that the totals have more than the log and count_batch together; negative: fewer
    DriftVotes,
    /// Rows of the audit that were missing, too many, or no votes when they were sealed: each is in the log of the sealer
    FindingsTotal,
    /// Checkpoints that were signed
    CheckpointsTotal,
    /// Time since the database was last read, or since the start while it was not
    ReadAgeSeconds,
    /// Whether nothing is sealed, by reason: 1 for the one that holds
    Stopped,
}

/// How far the log is, as a round left it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SealProgress {
    pub entries: u64,
    pub votes: u64,
    pub unsealed: u64,
    pub drift: i64,
}

/// What a sealer tells of itself.
#[derive(Clone)]
pub struct SealMetrics(Arc<Inner>);

struct Inner {
    reasons: &'static [&'static str],
    registry: Registry,
    entries: IntGauge,
    votes: IntGauge,
    unsealed: IntGauge,
    lag: Gauge,
    held: Gauge,
    drift: IntGauge,
    findings: IntCounter,
    checkpoints: IntCounter,
    read_age: Gauge,
    stopped: GaugeVec,
    times: Mutex<Times>,
}

/// When things began, for the series that are ages.
#[derive(Clone, Copy)]
struct Times {
    read: Instant,
    waiting: Option<Instant>,
    held: Option<Instant>,
}

impl SealMetrics {
    /// Every series is there from the first scrape on; `reasons` are those for which nothing is sealed.
    ///
    /// # Errors
    /// When a series cannot be registered: a mistake of this program.
    pub fn new(reasons: &'static [&'static str]) -> Result<Self, MetricsError> {
        let inner = Inner::new(reasons).map_err(|error| MetricsError::new(&error))?;
        let metrics = Self(Arc::new(inner));
        metrics.stopped(None);
        Ok(metrics)
    }

    /// The database was read. Votes wait since `waiting`, because of one transaction since `held`.
    pub fn read(&self, progress: SealProgress, waiting: Option<Instant>, held: Option<Instant>) {
        let inner = &self.0;
        for (gauge, value) in [
            (&inner.entries, progress.entries),
            (&inner.votes, progress.votes),
            (&inner.unsealed, progress.unsealed),
        ] {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        inner.drift.set(progress.drift);
        *inner.times() = Times { read: Instant::now(), waiting, held };
    }

    /// A checkpoint was signed.
    pub fn signed(&self) {
        self.0.checkpoints.inc();
    }

    pub fn found(&self, findings: usize) {
        self.0.findings.inc_by(findings as u64);
    }

    /// Nothing is sealed for this reason; `None`: the last round ended well.
    pub fn stopped(&self, reason: Option<&str>) {
        for known in self.0.reasons {
            self.0.stopped.with_label_values(&[known]).set((Some(*known) == reason).into());
        }
    }

    /// All series in Prometheus' text format.
    ///
    /// # Errors
    /// When a series can't be encoded: a mistake of this program.
    pub fn scrape(&self) -> Result<String, MetricsError> {
        let inner = &self.0;
        let Times { read, waiting, held } = *inner.times();
        let age = |since: Option<Instant>| since.map_or(Duration::ZERO, |it| it.elapsed());
        inner.read_age.set(read.elapsed().as_secs_f64());
        inner.lag.set(age(waiting).as_secs_f64());
        inner.held.set(age(held).as_secs_f64());
        let encoded = TextEncoder::new().encode_to_string(&inner.registry.gather());
        encoded.map_err(|error| MetricsError::new(&error))
    }
}

impl Inner {
    fn new(reasons: &'static [&'static str]) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let register = Registered(&registry);
        let opts = |series: Series| registered::opts("seal", &series);
        Ok(Self {
            reasons,
            entries: register.int_gauge(opts(Series::Entries))?,
            votes: register.int_gauge(opts(Series::Votes))?,
            unsealed: register.int_gauge(opts(Series::UnsealedVotes))?,
            lag: register.gauge(opts(Series::LagSeconds))?,
            held: register.gauge(opts(Series::HeldSeconds))?,
            drift: register.int_gauge(opts(Series::DriftVotes))?,
            findings: register.counter(opts(Series::FindingsTotal))?,
            checkpoints: register.counter(opts(Series::CheckpointsTotal))?,
            read_age: register.gauge(opts(Series::ReadAgeSeconds))?,
            stopped: register.add(GaugeVec::new(opts(Series::Stopped), &["reason"])?)?,
            times: Mutex::new(Times { read: Instant::now(), waiting: None, held: None }),
            registry,
        })
    }

    fn times(&self) -> std::sync::MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
