//! Every metric: its name, unit, help text and labels, once. OpenTelemetry meters, exported in
//! Prometheus' text format.
//!
//! The exporter puts `_total` behind counters and the unit behind names, so neither is part of a
//! name here.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Meter, MeterProvider};
use opentelemetry_sdk::metrics::{Instrument, SdkMeterProvider, Stream};
use prometheus::{Registry, TextEncoder};

use super::health::{DeadLetterRoute, Health};
use super::laws::{Laws, RefreshMark};
use super::repeats::Repeats;
use crate::ports::{Class, Counted};
use crate::vote::Reason;

/// Value of the label `error_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorType {
    /// A message that is no valid vote.
    Malformed,
    /// A transaction failed.
    Database,
    /// A session with the broker failed, or could not be opened.
    Broker,
    /// A valid vote that the database refuses for what is in it.
    Unstorable,
    /// A mistake of this service.
    Internal,
}

impl ErrorType {
    pub const ALL: [Self; 5] =
        [Self::Malformed, Self::Database, Self::Broker, Self::Unstorable, Self::Internal];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Database => "database",
            Self::Broker => "broker",
            Self::Unstorable => "unstorable",
            Self::Internal => "internal",
        }
    }
}

/// What the pipeline counts with.
#[derive(Clone, Debug)]
pub struct Instruments {
    laws: Arc<Laws>,
    health: Arc<Health>,
    tally: Arc<Tally>,
    repeats: Arc<Repeats>,
    votes_aggregated: Counter<u64>,
    batch_processing_duration: Gauge<f64>,
    batch_size_processed: Counter<u64>,
    aggregation_errors: Counter<u64>,
    votes_rejected: Counter<u64>,
    votes_replayed: Counter<u64>,
    duplicate_attempts: Counter<u64>,
    votes_isolated: Counter<u64>,
}

impl Instruments {
    fn new(meter: &Meter, laws: Arc<Laws>, health: Arc<Health>) -> Self {
        let (gauged, examined) = (Arc::clone(&laws), Arc::clone(&health));
        // The SDK keeps the callback; the handle itself is not needed.
        let _current_vote_totals = meter
            .u64_observable_gauge("current_vote_totals")
            .with_description("Votes counted so far, as the database has them")
            .with_callback(move |gauge| {
                gauged.for_each(|labels, totals| {
                    for (labels, total) in labels.iter().zip(totals) {
                        gauge.observe(total, labels);
                    }
                });
            })
            .build();
        let _dead_letter_route = meter
            .u64_observable_gauge("dead_letter_route")
            .with_description("Whether the broker keeps rejected messages: 1 on the state it is in")
            .with_callback(move |gauge| {
                let found = examined.dead_letter_route();
                for state in DeadLetterRoute::ALL {
                    let label = KeyValue::new("state", state.as_str());
                    gauge.observe(u64::from(state == found), &[label]);
                }
            })
            .build();

        let instruments = Self {
            laws,
            health,
            tally: Arc::default(),
            repeats: Arc::default(),
            votes_aggregated: meter
                .u64_counter("votes_aggregated")
                .with_description("Votes added to the totals by this process")
                .build(),
            batch_processing_duration: meter
                .f64_gauge("batch_processing_duration")
                .with_unit("s")
                .with_description("Time the last batch took to commit, retries included")
                .build(),
            batch_size_processed: meter
                .u64_counter("batch_size_processed")
                .with_description("Votes in committed batches: counted, replays and attempts")
                .build(),
            aggregation_errors: meter
                .u64_counter("aggregation_errors")
                .with_description("Errors, by where they come from")
                .build(),
            votes_rejected: meter
                .u64_counter("votes_rejected")
                .with_description("Malformed messages rejected without requeue, by reason")
                .build(),
            votes_replayed: meter
                .u64_counter("votes_replayed")
                .with_description("Deliveries equal to a vote already counted")
                .build(),
            duplicate_attempts: meter
                .u64_counter("duplicate_attempts")
                .with_description("Deliveries that differ from the counted vote of their vote_hash")
                .build(),
            votes_isolated: meter
                .u64_counter("votes_isolated")
                .with_description("Votes the database refused, published to the dead-letter queue")
                .build(),
        };
        instruments.touch();
        instruments
    }

    /// An untouched instrument is absent from a scrape: every known series starts at zero.
    fn touch(&self) {
        self.batch_processing_duration.record(0.0, &[]);
        for counter in [
            &self.batch_size_processed,
            &self.votes_replayed,
            &self.duplicate_attempts,
            &self.votes_isolated,
        ] {
            counter.add(0, &[]);
        }
        for error_type in ErrorType::ALL {
            self.errors(error_type, 0);
        }
        for reason in Reason::ALL {
            self.votes_rejected.add(0, &[KeyValue::new("reason", reason.as_str())]);
        }
    }

    /// A transaction is committed.
    pub fn committed(&self, counted: &Counted) {
        self.health.postgres_answers();
        self.laws.committed(&counted.laws, |labels, added| {
            for (labels, votes) in labels.iter().zip(added) {
                self.votes_aggregated.add(votes, labels);
            }
        });
        self.tally.committed(counted);
        self.votes_replayed.add(counted.replays, &[]);
        self.duplicate_attempts.add(counted.attempts, &[]);
        let votes = counted.added() + counted.replays + counted.attempts;
        self.batch_size_processed.add(votes, &[]);
    }

    /// All of a batch is committed or dead-lettered; `elapsed` since its chunk was complete.
    pub fn batch_settled(&self, elapsed: Duration) {
        self.batch_processing_duration.record(elapsed.as_secs_f64(), &[]);
    }

    /// A malformed message was rejected.
    pub fn rejected(&self, reason: Reason) {
        Tally::add(&self.tally.rejected, 1);
        self.votes_rejected.add(1, &[KeyValue::new("reason", reason.as_str())]);
        self.errors(ErrorType::Malformed, 1);
    }

    /// A transaction failed.
    pub fn database_fault(&self, class: Class) {
        match class {
            // Counted by vote when it is isolated; the halves before it are no errors.
            Class::Isolate => {}
            Class::Bug => self.errors(ErrorType::Internal, 1),
            _ => self.errors(ErrorType::Database, 1),
        }
    }

    /// A vote was published to the dead-letter queue.
    pub fn isolated(&self) {
        Tally::add(&self.tally.isolated, 1);
        self.votes_isolated.add(1, &[]);
        self.errors(ErrorType::Unstorable, 1);
    }

    /// A session with the broker failed, or could not be opened.
    pub fn broker_fault(&self) {
        self.errors(ErrorType::Broker, 1);
    }

    /// Keeps log lines about single messages from becoming as many as those.
    pub fn repeats(&self) -> &Repeats {
        &self.repeats
    }

    /// What this process did with its deliveries so far, in one line.
    pub fn summary(&self) -> impl fmt::Display {
        Arc::clone(&self.tally)
    }

    /// To be called before all totals are read for [`Instruments::totals_refreshed`].
    pub fn refresh_begins(&self) -> RefreshMark {
        self.laws.refresh_begins()
    }

    /// The laws that have series of their own.
    pub fn named_laws(&self) -> Vec<String> {
        self.laws.named()
    }

    /// Takes in totals as the database has them: `(law_id, [oui, non])`, and of all other laws the
    /// sum.
    pub fn totals_refreshed(
        &self,
        mark: RefreshMark,
        laws: Vec<(String, [u64; 2])>,
        rest: [u64; 2],
    ) {
        self.laws.refreshed(mark, laws, rest, |labels| {
            for labels in labels {
                self.votes_aggregated.add(0, labels);
            }
        });
    }

    fn errors(&self, error_type: ErrorType, count: u64) {
        self.aggregation_errors.add(count, &[KeyValue::new("error_type", error_type.as_str())]);
    }
}

/// Deliveries by what became of them: instruments can be written only, and the stop line tells.
#[derive(Debug, Default)]
struct Tally {
    counted: AtomicU64,
    replays: AtomicU64,
    attempts: AtomicU64,
    rejected: AtomicU64,
    isolated: AtomicU64,
}

impl Tally {
    fn committed(&self, counted: &Counted) {
        Self::add(&self.counted, counted.added());
        Self::add(&self.replays, counted.replays);
        Self::add(&self.attempts, counted.attempts);
    }

    fn add(to: &AtomicU64, count: u64) {
        to.fetch_add(count, Ordering::Relaxed);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [counted, replays, attempts, rejected, isolated] =
            [&self.counted, &self.replays, &self.attempts, &self.rejected, &self.isolated]
                .map(|count| count.load(Ordering::Relaxed));
        write!(
            f,
            "{counted} votes counted, {replays} replays, {attempts} duplicate attempts, \
             {rejected} malformed, {isolated} unstorable"
        )
    }
}

/// The instruments and the registry they are scraped from.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    pub instruments: Instruments,
    // Dropping the provider shuts its instruments down.
    _provider: SdkMeterProvider,
}

impl Metrics {
    /// Instruments of their own registry, with series for at most `max_laws` laws and `other`.
    ///
    /// # Errors
    /// When the exporter can't be set up: a mistake of this service.
    pub fn new(max_laws: usize, health: Arc<Health>) -> Result<Self, MetricsError> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .without_target_info()
            .build()
            .map_err(|error| MetricsError(error.to_string()))?;
        // The SDK folds everything past 2,000 series into one; we bound them ourselves.
        let cardinality = 2 * (max_laws + 1) + 1;
        let per_law = move |instrument: &Instrument| {
            matches!(instrument.name(), "votes_aggregated" | "current_vote_totals")
                .then(|| Stream::builder().with_cardinality_limit(cardinality).build().ok())
                .flatten()
        };
        let provider = SdkMeterProvider::builder().with_reader(exporter).with_view(per_law).build();
        let laws = Arc::new(Laws::new(max_laws));
        let instruments = Instruments::new(&provider.meter("vote-aggregator"), laws, health);
        Ok(Self { registry, instruments, _provider: provider })
    }

    /// All series in Prometheus' text format.
    ///
    /// # Errors
    /// When a series can't be encoded: a mistake of this service.
    pub fn scrape(&self) -> Result<String, MetricsError> {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .map_err(|error| MetricsError(error.to_string()))
    }
}

/// The metrics can't be set up or encoded.
#[derive(Debug, thiserror::Error)]
#[error("metrics: {0}")]
pub struct MetricsError(String);
