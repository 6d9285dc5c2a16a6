//! The instruments: OpenTelemetry meters, exported in Prometheus' text format. Name, unit, help text
//! and buckets of each metric stand here or in `metrics/gauges.rs`, once.
//!
//! The exporter puts `_total` behind counters and the unit behind names, so neither is part of a name.

mod exporter;
mod gauges;
mod labels;
mod state;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};
use strum::VariantArray;
use tokio::time::Instant;

pub use self::exporter::{Metrics, MetricsError, metrics_wanted};
pub use self::labels::{BreakerState, PlainInsert, SessionState};
use self::labels::{ErrorType, OUTCOMES, SIDES, SQLSTATE_CLASSES, sqlstate_class};
use self::state::{Compared, State, lock};
pub use self::state::{Deliveries, InFlight, PoolUse, QueueDepths, Standbys};
use super::health::Health;
use super::laws::{Laws, RefreshMark};
use super::log_rate_limiter::LogRateLimiter;
use super::spans::Spans;
use crate::model::ports::{Class, Counted};
use crate::model::vote::Reason;

const VOTES_AGGREGATED: &str = "votes_aggregated";

/// Seconds, for a transaction: from a batch on an idle disk to one that was retried to the end.
const BATCH_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Seconds, from publication to commit: a batch's wait at its shortest, a night's backlog at its
/// longest.
const LATENCY_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0,
    7_200.0,
];
const VOTES: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0, 10_000.0];

/// What the pipeline counts with.
#[derive(Clone)]
pub struct Instruments {
    laws: Arc<Laws>,
    state: Arc<Mutex<State>>,
    /// The rate limit for log lines about single messages.
    pub log_limiter: Arc<LogRateLimiter>,
    /// The spans of what is counted.
    pub spans: Spans,
    votes_aggregated: Counter<u64>,
    batch_processing_duration: Gauge<f64>,
    batch_size_processed: Counter<u64>,
    aggregation_errors: Counter<u64>,
    vote_latency: Histogram<f64>,
    votes_rejected: Counter<u64>,
    votes_replayed: Counter<u64>,
    duplicate_attempts: Counter<u64>,
    votes_isolated: Counter<u64>,
    deliveries_requeued: Counter<u64>,
    deliveries_settled: Counter<u64>,
    deliveries_committed_unacked: Counter<u64>,
    acknowledged_votes_lost: Counter<u64>,
    batch_wait: Histogram<f64>,
    batch_duration: Histogram<f64>,
    batch_votes: Histogram<f64>,
    batch_retries: Counter<u64>,
    plain_inserts: Counter<u64>,
    reconnects: Counter<u64>,
}

impl Instruments {
    fn new(meter: &Meter, max_laws: usize, health: &Arc<Health>) -> Self {
        let (laws, state) = (Arc::new(Laws::new(max_laws)), Arc::default());
        gauges::register(meter, &laws, health, &state);
        let counter = |name, help| meter.u64_counter(name).with_description(help).build();
        let histogram = |name, unit, buckets: &[f64], help| {
            let builder = meter.f64_histogram(name).with_unit(unit).with_description(help);
            builder.with_boundaries(buckets.to_vec()).build()
        };
        let instruments = Self {
            laws,
            state,
            log_limiter: Arc::default(),
            spans: Spans::default(),
            // The contract's, with the gauge of all totals.
            votes_aggregated: counter(
                VOTES_AGGREGATED,
                "Votes added to the totals by this process",
            ),
            batch_processing_duration: meter
                .f64_gauge("batch_processing_duration")
                .with_unit("s")
                .with_description("Time the last batch took to commit, retries included")
                .build(),
            batch_size_processed: counter(
                "batch_size_processed",
                "Votes in committed batches: counted, replays and duplicate attempts",
            ),
            aggregation_errors: counter("aggregation_errors", "Errors, by where they come from"),
            // Votes.
            vote_latency: histogram(
                "vote_latency",
                "s",
                LATENCY_SECONDS,
                "Time from a vote's publication to the commit of its batch",
            ),
            votes_rejected: counter(
                "votes_rejected",
                "Malformed messages rejected without requeue, by reason",
            ),
            votes_replayed: counter("votes_replayed", "Deliveries equal to a vote already counted"),
            duplicate_attempts: counter(
                "duplicate_attempts",
                "Deliveries that differ from the counted vote of their vote_hash",
            ),
            votes_isolated: counter(
                "votes_isolated",
                "Votes the database refused, published to the dead-letter queue",
            ),
            deliveries_requeued: counter(
                "deliveries_requeued",
                "Deliveries requeued unsettled while no votes can be stored",
            ),
            deliveries_settled: counter(
                "deliveries_settled",
                "Deliveries acknowledged or rejected, by outcome",
            ),
            deliveries_committed_unacked: counter(
                "deliveries_committed_unacked",
                "Deliveries committed or dead-lettered whose ack could not be sent: they come again, as \
                 replays",
            ),
            acknowledged_votes_lost: counter(
                "acknowledged_votes_lost",
                "Batches acknowledged by this process whose votes a failover or a restore of \
                 PostgreSQL lost",
            ),
            // Batches.
            batch_wait: histogram(
                "batch_wait",
                "s",
                BATCH_SECONDS,
                "Time from the arrival of the first vote of a batch until the batch was complete",
            ),
            batch_duration: histogram(
                "batch_duration",
                "s",
                BATCH_SECONDS,
                "Time from a complete batch to its commit, retries included",
            ),
            batch_votes: histogram("batch_votes", "", VOTES, "Votes in a committed batch"),
            batch_retries: counter(
                "batch_retries",
                "Transactions retried, by class of the SQLSTATE; none: no answer came",
            ),
            plain_inserts: counter(
                "plain_inserts",
                "Batches inserted without ON CONFLICT, by outcome; conflict: a vote_hash was in the audit \
                 already, and the batch was inserted again with it",
            ),
            reconnects: counter(
                "reconnects",
                "Times a lost server took work again: RabbitMQ a session, PostgreSQL a commit",
            ),
        };
        instruments.touch();
        instruments
    }

    /// An untouched instrument is absent from a scrape: every known series starts at zero. A
    /// histogram has no zero to start at; it appears with the first batch.
    fn touch(&self) {
        self.batch_processing_duration.record(0.0, &[]);
        for counter in [
            &self.batch_size_processed,
            &self.votes_replayed,
            &self.duplicate_attempts,
            &self.votes_isolated,
            &self.deliveries_requeued,
            &self.deliveries_committed_unacked,
            &self.acknowledged_votes_lost,
        ] {
            counter.add(0, &[]);
        }
        for error_type in ErrorType::VARIANTS {
            self.errors(*error_type, 0);
        }
        for reason in Reason::ALL {
            self.votes_rejected.add(0, &[KeyValue::new("reason", reason.as_str())]);
        }
        for class in SQLSTATE_CLASSES {
            self.batch_retries.add(0, &[KeyValue::new("sqlstate_class", class)]);
        }
        for outcome in PlainInsert::VARIANTS {
            self.plain_inserts.add(0, &[outcome.label()]);
        }
        for outcome in OUTCOMES {
            self.settled(outcome, 0);
        }
        for side in SIDES {
            self.reconnects.add(0, &[KeyValue::new("side", side)]);
        }
    }

    /// The deliveries that are taken and not settled, as they are now.
    pub fn unacked(&self, count: usize, oldest: Option<Instant>) {
        let mut state = self.state();
        state.unacked = count;
        state.oldest_unacked = oldest;
    }

    /// A batch is complete, `waited` after its first vote was taken; it is in flight for as long
    /// as the returned value lives.
    pub fn batch_complete(&self, waited: Duration) -> InFlight {
        self.batch_wait.record(waited.as_secs_f64(), &[]);
        let mut state = self.state();
        state.in_flight += 1;
        state.batches += 1;
        InFlight { number: state.batches, state: Arc::clone(&self.state) }
    }

    /// A transaction that began at `begun` is committed.
    pub fn committed(&self, counted: &Counted, begun: Instant) {
        let mut state = self.state();
        state.last_commit = Some(Instant::now());
        state.deliveries.counted += counted.added();
        state.deliveries.replays += counted.replays;
        state.deliveries.attempts += counted.attempts;
        // A server that shuts down ends its connections one by one: only a transaction that began after
        // the last loss shows that it is back.
        let reconnected = state.postgres_lost.take_if(|lost| begun > *lost).is_some();
        drop(state);
        if reconnected {
            self.reconnects.add(1, &[KeyValue::new("side", "postgres")]);
        }
        self.laws.committed(&counted.laws, |labels, added| {
            for (labels, votes) in labels.iter().zip(added) {
                self.votes_aggregated.add(votes, labels);
            }
        });
        self.votes_replayed.add(counted.replays, &[]);
        self.duplicate_attempts.add(counted.attempts, &[]);
        self.batch_size_processed.add(counted.deliveries(), &[]);
    }

    /// All of a batch of `votes` is committed or dead-lettered, `elapsed` after it was complete;
    /// `published` are the times of publication of those votes that have one.
    pub fn batch_settled(&self, votes: usize, elapsed: Duration, published: &[SystemTime]) {
        self.batch_processing_duration.record(elapsed.as_secs_f64(), &[]);
        self.batch_duration.record(elapsed.as_secs_f64(), &[]);
        self.batch_votes.record(votes as f64, &[]);
        let now = SystemTime::now();
        for published in published {
            // A publisher's clock may be ahead of ours.
            let latency = now.duration_since(*published).unwrap_or_default();
            self.vote_latency.record(latency.as_secs_f64(), &[]);
        }
    }

    /// A transaction is about to be retried.
    pub fn retried(&self, sqlstate: Option<&str>) {
        self.batch_retries.add(1, &[KeyValue::new("sqlstate_class", sqlstate_class(sqlstate))]);
    }

    /// A plain INSERT of a batch ended.
    pub fn plain_insert(&self, outcome: PlainInsert) {
        self.plain_inserts.add(1, &[outcome.label()]);
    }

    /// A malformed message was rejected.
    pub fn rejected(&self, reason: Reason) {
        self.state().deliveries.malformed += 1;
        self.settled("rejected", 1);
        self.votes_rejected.add(1, &[KeyValue::new("reason", reason.as_str())]);
        self.errors(ErrorType::Malformed, 1);
    }

    /// A transaction failed.
    pub fn database_fault(&self, class: Class) {
        if matches!(class, Class::Reconnect | Class::UnknownOutcome) {
            self.state().postgres_lost = Some(Instant::now());
        }
        match class {
            // Counted by vote when it is isolated; the halves before it are no errors.
            Class::Isolate => {}
            Class::Bug => self.errors(ErrorType::Internal, 1),
            _ => self.errors(ErrorType::Database, 1),
        }
    }

    /// A vote was published to the dead-letter queue.
    pub fn isolated(&self) {
        self.state().deliveries.unstorable += 1;
        self.votes_isolated.add(1, &[]);
        self.errors(ErrorType::Unstorable, 1);
    }

    /// These deliveries were acknowledged.
    pub fn acked(&self, deliveries: u64) {
        self.state().deliveries.acked += deliveries;
        self.settled("acked", deliveries);
    }

    /// These deliveries are committed or dead-lettered, and can't be acknowledged any more.
    pub fn committed_unacked(&self, deliveries: u64) {
        self.state().deliveries.committed_unacked += deliveries;
        self.deliveries_committed_unacked.add(deliveries, &[]);
    }

    /// Acknowledged batches were found missing from the audit.
    pub fn acknowledged_votes_lost(&self, batches: u64) {
        self.acknowledged_votes_lost.add(batches, &[]);
    }

    /// What this process did with its deliveries so far.
    pub fn deliveries(&self) -> Deliveries {
        self.state().deliveries
    }

    /// A session with the broker failed, or could not be opened.
    pub fn broker_fault(&self) {
        self.errors(ErrorType::Broker, 1);
    }

    /// A session was opened after one was lost.
    pub fn broker_reconnected(&self) {
        self.reconnects.add(1, &[KeyValue::new("side", "rabbitmq")]);
    }

    pub fn session(&self, session: SessionState) {
        self.state().session = session;
    }

    pub fn breaker(&self, breaker: BreakerState) {
        self.state().breaker = breaker;
    }

    /// The deliveries held were requeued.
    pub fn requeued(&self, deliveries: usize) {
        self.deliveries_requeued.add(deliveries as u64, &[]);
    }

    /// What the broker answered about its queues.
    pub fn queue_depths(&self, depths: QueueDepths) {
        self.state().depths = depths;
    }

    /// Where the state of the database pool is read at each scrape.
    pub fn watch_pool(&self, pool: impl Fn() -> PoolUse + Send + 'static) {
        self.state().pool = Some(Box::new(pool));
    }

    /// Sets what is known of the database's standbys; `None`: it does not answer.
    pub fn standbys(&self, standbys: Option<Standbys>) {
        self.state().standbys = standbys;
    }

    /// A comparison of the totals with the audit, `age` old, by any instance: they differ by so many
    /// votes, in so many laws.
    pub fn compared(&self, drift_votes: u64, drift_laws: u64, age: Duration) {
        // No instant lies before the boot of this machine.
        let at = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
        self.state().compared = Some(Compared { at, drift_votes, drift_laws });
    }

    /// The time from the end of one comparison to the next.
    pub fn comparison_interval(&self, interval: Duration) {
        self.state().comparison_interval = Some(interval);
    }

    /// To be called before all totals are read for [`Instruments::totals_refreshed`].
    pub fn refresh_begins(&self) -> RefreshMark {
        self.laws.refresh_begins()
    }

    /// The laws that have series of their own.
    pub fn named_laws(&self) -> Vec<String> {
        self.laws.named()
    }

    /// Takes in the database's totals: `(law_id, [oui, non])`, and the sum of all other laws.
    pub fn totals_refreshed(
        &self,
        mark: RefreshMark,
        laws: Vec<(String, [i64; 2])>,
        rest: [i64; 2],
    ) {
        self.laws.refreshed(mark, laws, rest, |labels| {
            for labels in labels {
                self.votes_aggregated.add(0, labels);
            }
        });
    }

    fn errors(&self, error_type: ErrorType, count: u64) {
        let error_type: &str = error_type.into();
        self.aggregation_errors.add(count, &[KeyValue::new("error_type", error_type)]);
    }

    fn settled(&self, outcome: &'static str, deliveries: u64) {
        self.deliveries_settled.add(deliveries, &[KeyValue::new("outcome", outcome)]);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

#[cfg(test)]
mod tests;
