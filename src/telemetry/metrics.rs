//! The instruments: OpenTelemetry meters, exported in Prometheus' text format.

mod catalogue;
mod exporter;
mod labels;
mod observed;
mod outage;
mod reconciliation;
mod tally;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};
use tokio::time::Instant;

use self::catalogue::{self as metric, Entry};
pub use self::exporter::{Metrics, MetricsError, metrics_wanted};
pub use self::labels::{BreakerState, ErrorType, SessionState};
use self::labels::{Outcome, SQLSTATE_CLASSES, Side, sqlstate_class};
use self::observed::Observed;
pub use self::observed::{InFlight, PoolUse, QueueDepths, Standbys};
pub use self::outage::Losses;
use self::outage::Outage;
pub use self::reconciliation::Reconciliation;
use self::tally::Tally;
use super::health::Health;
use super::laws::{Laws, RefreshMark};
use super::repeats::Repeats;
use super::spans::Spans;
use crate::ports::{Class, Counted};
use crate::vote::Reason;

/// What the pipeline counts with.
#[derive(Clone, Debug)]
pub struct Instruments {
    /// Nobody wants metrics: nothing is noted that only they show.
    off: bool,
    laws: Arc<Laws>,
    health: Arc<Health>,
    tally: Arc<Tally>,
    repeats: Arc<Repeats>,
    observed: Arc<Observed>,
    /// The spans of what is counted.
    pub spans: Spans,
    pub reconciliation: Arc<Reconciliation>,
    broker: Arc<Outage>,
    postgres: Arc<Outage>,
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
    reconnects: Counter<u64>,
}

impl Instruments {
    fn new(meter: &Meter, laws: Arc<Laws>, health: Arc<Health>, off: bool) -> Self {
        let observed = Arc::new(Observed::default());
        observed.register(meter, &laws, &health);
        let reconciliation = Arc::<Reconciliation>::default();
        reconciliation.register(meter);
        let counter = |Entry { name, unit, help }| {
            meter.u64_counter(name).with_unit(unit).with_description(help).build()
        };
        let histogram = |Entry { name, unit, help }, buckets: &[f64]| {
            let builder = meter.f64_histogram(name).with_unit(unit).with_description(help);
            builder.with_boundaries(buckets.to_vec()).build()
        };
        let Entry { name, unit, help } = metric::BATCH_PROCESSING_DURATION;
        let instruments = Self {
            off,
            laws,
            health,
            tally: Arc::default(),
            repeats: Arc::default(),
            observed,
            spans: Spans::default(),
            reconciliation,
            broker: Arc::new(Outage::of_a_stranger()),
            // It was prepared before the first vote was taken.
            postgres: Arc::new(Outage::of_a_known_one()),
            votes_aggregated: counter(metric::VOTES_AGGREGATED),
            batch_processing_duration: meter
                .f64_gauge(name)
                .with_unit(unit)
                .with_description(help)
                .build(),
            batch_size_processed: counter(metric::BATCH_SIZE_PROCESSED),
            aggregation_errors: counter(metric::AGGREGATION_ERRORS),
            vote_latency: histogram(metric::VOTE_LATENCY, metric::LATENCY_SECONDS),
            votes_rejected: counter(metric::VOTES_REJECTED),
            votes_replayed: counter(metric::VOTES_REPLAYED),
            duplicate_attempts: counter(metric::DUPLICATE_ATTEMPTS),
            votes_isolated: counter(metric::VOTES_ISOLATED),
            deliveries_requeued: counter(metric::DELIVERIES_REQUEUED),
            deliveries_settled: counter(metric::DELIVERIES_SETTLED),
            deliveries_committed_unacked: counter(metric::DELIVERIES_COMMITTED_UNACKED),
            acknowledged_votes_lost: counter(metric::ACKNOWLEDGED_VOTES_LOST),
            batch_wait: histogram(metric::BATCH_WAIT, metric::BATCH_SECONDS),
            batch_duration: histogram(metric::BATCH_DURATION, metric::BATCH_SECONDS),
            batch_votes: histogram(metric::BATCH_VOTES, metric::VOTES),
            batch_retries: counter(metric::BATCH_RETRIES),
            reconnects: counter(metric::RECONNECTS),
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
        for error_type in ErrorType::ALL {
            self.errors(error_type, 0);
        }
        for reason in Reason::ALL {
            self.votes_rejected.add(0, &[KeyValue::new("reason", reason.as_str())]);
        }
        for class in SQLSTATE_CLASSES {
            self.batch_retries.add(0, &[KeyValue::new("sqlstate_class", class)]);
        }
        for outcome in Outcome::ALL {
            self.settled(outcome, 0);
        }
        for side in Side::ALL {
            self.reconnects.add(0, &[KeyValue::new("side", side.as_str())]);
        }
    }

    /// The deliveries that are taken and not settled, as they are now.
    pub fn unacked(&self, count: usize, oldest: Option<Instant>) {
        if self.off {
            return;
        }
        self.observed.unacked(count, oldest);
    }

    /// A batch is complete, `waited` after its first vote was taken; it is in flight for as long
    /// as the returned value lives.
    pub fn batch_complete(&self, waited: Duration) -> InFlight {
        self.batch_wait.record(waited.as_secs_f64(), &[]);
        self.observed.batch()
    }

    /// A transaction is about to begin; goes with its outcome to [`Instruments::committed`].
    pub fn transaction_begins(&self) -> Losses {
        self.postgres.ask()
    }

    /// A transaction is committed.
    pub fn committed(&self, counted: &Counted, begun: Losses) {
        self.health.postgres_answers();
        self.observed.committed();
        self.back(&self.postgres, begun, Side::Postgres);
        self.tally.committed(counted);
        if self.off {
            return;
        }
        self.laws.committed(&counted.laws, |labels, added| {
            for (labels, votes) in labels.iter().zip(added) {
                self.votes_aggregated.add(votes, labels);
            }
        });
        self.votes_replayed.add(counted.replays, &[]);
        self.duplicate_attempts.add(counted.attempts, &[]);
        let votes = counted.deliveries();
        self.batch_size_processed.add(votes, &[]);
    }

    /// All of a batch of `votes` is committed or dead-lettered, `elapsed` after it was complete;
    /// `published` are the times of its votes that told one.
    pub fn batch_settled(&self, votes: usize, elapsed: Duration, published: &[SystemTime]) {
        if self.off {
            return;
        }
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

    /// A transaction is about to be tried again.
    pub fn retried(&self, sqlstate: Option<&str>) {
        self.batch_retries.add(1, &[KeyValue::new("sqlstate_class", sqlstate_class(sqlstate))]);
    }

    /// A malformed message was rejected.
    pub fn rejected(&self, reason: Reason) {
        self.tally.rejected();
        self.settled(Outcome::Rejected, 1);
        self.votes_rejected.add(1, &[KeyValue::new("reason", reason.as_str())]);
        self.errors(ErrorType::Malformed, 1);
    }

    /// A transaction failed.
    pub fn database_fault(&self, class: Class) {
        if matches!(class, Class::Reconnect | Class::UnknownOutcome) {
            self.postgres.lost();
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
        self.tally.isolated();
        self.votes_isolated.add(1, &[]);
        self.errors(ErrorType::Unstorable, 1);
    }

    /// The broker was told that these deliveries are done with.
    pub fn acked(&self, deliveries: u64) {
        self.tally.acked(deliveries);
        self.settled(Outcome::Acked, deliveries);
    }

    /// The broker was not told of these deliveries, and can't be any more.
    pub fn committed_unacked(&self, deliveries: u64) {
        self.tally.committed_unacked(deliveries);
        self.deliveries_committed_unacked.add(deliveries, &[]);
    }

    /// Acknowledged batches were found missing from the audit.
    pub fn acknowledged_votes_lost(&self, batches: u64) {
        self.acknowledged_votes_lost.add(batches, &[]);
    }

    /// Deliveries that were counted, or dead-lettered by us, beyond those of which the broker was
    /// told, or should have been: 0 when no batch is in flight.
    pub fn imbalance(&self) -> i64 {
        self.tally.imbalance()
    }

    /// A session with the broker failed, or could not be opened.
    pub fn broker_fault(&self) {
        self.broker.lost();
        self.errors(ErrorType::Broker, 1);
    }

    /// Keeps log lines about single messages from becoming as many as those.
    pub fn repeats(&self) -> &Repeats {
        &self.repeats
    }

    /// Where the session with the broker stands from now on.
    pub fn session(&self, state: SessionState) {
        self.observed.session(state);
        if state == SessionState::Consuming {
            self.back(&self.broker, self.broker.ask(), Side::RabbitMq);
        }
    }

    /// Where the breaker before the store stands from now on.
    pub fn breaker(&self, state: BreakerState) {
        self.observed.breaker(state);
    }

    /// What was held is given back to the queue.
    pub fn requeued(&self, deliveries: usize) {
        self.deliveries_requeued.add(deliveries as u64, &[]);
    }

    /// What the broker said of its queues, or that it did not.
    pub fn queue_depths(&self, depths: QueueDepths) {
        self.observed.depths(depths);
    }

    /// Where the state of the database pool is read at each scrape.
    pub fn watch_pool(&self, pool: impl Fn() -> PoolUse + Send + Sync + 'static) {
        self.observed.watch_pool(pool);
    }

    /// Sets what is known of the database's standbys; `None`: it does not answer.
    pub fn standbys(&self, standbys: Option<Standbys>) {
        self.observed.set_standbys(standbys);
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
        self.aggregation_errors.add(count, &[KeyValue::new("error_type", error_type.as_str())]);
    }

    fn settled(&self, outcome: Outcome, deliveries: u64) {
        self.deliveries_settled.add(deliveries, &[KeyValue::new("outcome", outcome.as_str())]);
    }

    fn back(&self, outage: &Outage, asked: Losses, side: Side) {
        if outage.over(asked) {
            self.reconnects.add(1, &[KeyValue::new("side", side.as_str())]);
        }
    }
}
