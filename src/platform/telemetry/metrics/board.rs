//! The metrics of the public board: when it read and wrote, and what state it shows. No counts by choice: before its
//! time a result is in no metric.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{
    Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};
use strum::{EnumMessage, IntoStaticStr};
use tokio::time::Instant;

use super::MetricsError;
use super::registered::{self, Registered};

/// A variant's name behind `board_` is the metric's, its documentation is the help text.
#[derive(Clone, Copy, EnumMessage, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
enum Series {
    /// Time since the published views were last read, or since the start while they were not
    SnapshotAgeSeconds,
    /// Time since the files were last made and written, or since the start while they were not
    CheckedAgeSeconds,
    /// What the public sees: 1 for the current state
    PublicationState,
    /// Whether the numbers shown may not be the newest, by reason: 1 for the one that holds
    Stale,
    /// Answers on the public port, by status
    RequestsTotal,
    /// Connections open on the public port
    Connections,
    /// Times that a file could not be written
    WriteErrorsTotal,
    /// Votes counted after the frozen copy that is shown; 0 in any other state
    VotesSinceFinal,
    /// How far the clock of this machine is ahead of PostgreSQL's; negative: behind
    ClockSkewSeconds,
}

/// The label values that each scrape has.
#[derive(Clone, Copy, Debug)]
pub struct BoardLabels {
    pub states: &'static [&'static str],
    pub stale: &'static [&'static str],
    pub statuses: &'static [u16],
}

/// What a board tells of itself.
#[derive(Clone)]
pub struct BoardMetrics(Arc<Inner>);

struct Inner {
    labels: BoardLabels,
    registry: Registry,
    snapshot_age: Gauge,
    checked_age: Gauge,
    state: GaugeVec,
    stale: GaugeVec,
    requests: IntCounterVec,
    connections: IntGauge,
    write_errors: IntCounter,
    since_final: IntGauge,
    clock_skew: Gauge,
    /// The last reading and the last writing.
    last: Mutex<[Instant; 2]>,
}

impl BoardMetrics {
    /// Every series is there from the first scrape on.
    ///
    /// # Errors
    /// When a series cannot be registered: a mistake of this program.
    pub fn new(labels: BoardLabels) -> Result<Self, MetricsError> {
        let metrics = Inner::new(labels).map_err(failed)?;
        metrics.show(labels.states.first().copied().unwrap_or_default(), None);
        for status in labels.statuses {
            metrics.requests.with_label_values(&[&status.to_string()]).inc_by(0);
        }
        Ok(Self(Arc::new(metrics)))
    }

    /// The views were read; by so much this machine's clock is ahead.
    pub fn read(&self, skew: Duration, ahead: bool) {
        let seconds = skew.as_secs_f64();
        self.0.clock_skew.set(if ahead { seconds } else { -seconds });
        self.0.last()[0] = Instant::now();
    }

    /// The files were made and written.
    pub fn written(&self) {
        self.0.last()[1] = Instant::now();
    }

    pub fn write_failed(&self) {
        self.0.write_errors.inc();
    }

    /// What the public sees.
    pub fn shown(&self, state: &str, stale: Option<&str>, since_final: i64) {
        self.0.show(state, stale);
        self.0.since_final.set(since_final);
    }

    pub fn answered(&self, status: u16) {
        self.0.requests.with_label_values(&[&status.to_string()]).inc();
    }

    /// All series in Prometheus' text format.
    ///
    /// # Errors
    /// When a series can't be encoded: a mistake of this program.
    pub fn scrape(&self, connections: usize) -> Result<String, MetricsError> {
        let inner = &self.0;
        inner.connections.set(i64::try_from(connections).unwrap_or(i64::MAX));
        for (gauge, at) in [&inner.snapshot_age, &inner.checked_age].into_iter().zip(*inner.last())
        {
            gauge.set(at.elapsed().as_secs_f64());
        }
        TextEncoder::new().encode_to_string(&inner.registry.gather()).map_err(failed)
    }
}

impl Inner {
    fn new(labels: BoardLabels) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let now = Instant::now();
        let register = Registered(&registry);
        Ok(Self {
            labels,
            snapshot_age: register.gauge(opts(Series::SnapshotAgeSeconds))?,
            checked_age: register.gauge(opts(Series::CheckedAgeSeconds))?,
            state: register.add(GaugeVec::new(opts(Series::PublicationState), &["state"])?)?,
            stale: register.add(GaugeVec::new(opts(Series::Stale), &["reason"])?)?,
            requests: register
                .add(IntCounterVec::new(opts(Series::RequestsTotal), &["status"])?)?,
            connections: register.add(IntGauge::with_opts(opts(Series::Connections))?)?,
            write_errors: register.add(IntCounter::with_opts(opts(Series::WriteErrorsTotal))?)?,
            since_final: register.add(IntGauge::with_opts(opts(Series::VotesSinceFinal))?)?,
            clock_skew: register.gauge(opts(Series::ClockSkewSeconds))?,
            last: Mutex::new([now, now]),
            registry,
        })
    }

    fn show(&self, state: &str, stale: Option<&str>) {
        for known in self.labels.states {
            self.state.with_label_values(&[known]).set((*known == state).into());
        }
        for known in self.labels.stale {
            self.stale.with_label_values(&[known]).set((Some(*known) == stale).into());
        }
    }

    fn last(&self) -> std::sync::MutexGuard<'_, [Instant; 2]> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn opts(series: Series) -> Opts {
    registered::opts("board", &series)
}

fn failed(error: prometheus::Error) -> MetricsError {
    MetricsError::new(&error)
}
