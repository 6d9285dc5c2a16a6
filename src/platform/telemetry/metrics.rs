//! The instruments: OpenTelemetry meters, exported in Prometheus' text format. Name, unit, help text
//! and buckets of each metric are in `metrics/series.rs` or `metrics/gauges.rs`, once.

mod board;
mod exporter;
mod gauges;
mod labels;
mod registered;
mod seal;
mod series;
mod state;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};
use strum::VariantArray;
use tokio::time::Instant;

pub use self::board::{BoardLabels, BoardMetrics};
pub use self::exporter::{Metrics, MetricsError, metrics_wanted};
pub use self::labels::{BreakerState, PlainInsert, SessionState};
use self::labels::{ErrorType, OUTCOMES, SIDES, SQLSTATE_CLASSES, sqlstate_class};
pub use self::seal::{SealMetrics, SealProgress};
use self::series::{Count, Measure, help};
use self::state::{Compared, State, lock};
pub use self::state::{Deliveries, InFlight, PoolUse, QueueDepths, Standbys};
use super::health::Health;
use super::laws::{Laws, RefreshMark};
use super::log_rate_limiter::LogRateLimiter;
use super::spans::Spans;
use crate::model::ports::{Class, Counted};
use crate::model::vote::Reason;

/// What the pipeline counts with.
#[derive(Clone)]
pub struct Instruments {
    laws: Arc<Laws>,
    state: Arc<Mutex<State>>,
    /// The rate limit for log lines about single messages.
    pub log_limiter: Arc<LogRateLimiter>,
    /// The spans of what is counted.
    pub spans: Spans,
    /// In the order of [`Count`].
    counters: Arc<[Counter<u64>]>,
    /// In the order of [`Measure`].
    histograms: Arc<[Histogram<f64>]>,
}

impl Instruments {
    fn new(meter: &Meter, laws: Laws, health: &Arc<Health>) -> Self {
        let (laws, state) = (Arc::new(laws), Arc::default());
        gauges::register(meter, &laws, health, &state);
        let counters = Count::VARIANTS.iter().map(|count| {
            let name: &str = count.into();
            meter.u64_counter(name).with_description(help(count)).build()
        });
        let histograms = Measure::VARIANTS.iter().map(|measure| {
            let (unit, buckets) = measure.unit_and_buckets();
            let name: &str = measure.into();
            let builder = meter.f64_histogram(name).with_unit(unit).with_description(help(measure));
            builder.with_boundaries(buckets.to_vec()).build()
        });
        let instruments = Self {
            laws,
            state,
            log_limiter: Arc::default(),
            spans: Spans::default(),
            counters: counters.collect(),
            histograms: histograms.collect(),
        };
        instruments.start_at_zero();
        instruments
    }

    /// An untouched counter is absent from a scrape: every known series starts at zero, those of laws
    /// excepted. A histogram has no zero to start at; it appears with the first batch.
    fn start_at_zero(&self) {
        for count in Count::VARIANTS {
            let labels = match count {
                Count::VotesAggregated => continue,
                Count::AggregationErrors => names(ErrorType::VARIANTS),
                Count::VotesRejected => names(Reason::ALL),
                Count::BatchRetries => SQLSTATE_CLASSES.to_vec(),
                Count::DeliveriesSettled => OUTCOMES.to_vec(),
                Count::PlainInserts => names(PlainInsert::VARIANTS),
                Count::Reconnects => SIDES.to_vec(),
                _ => {
                    self.add(*count, 0);
                    continue;
                }
            };
            labels.into_iter().for_each(|label| self.add_to(*count, label, 0));
        }
    }

    fn add(&self, count: Count, added: u64) {
        self.counters[count as usize].add(added, &[]);
    }

    /// Adds to the series with this value of the counter's label.
    fn add_to(&self, count: Count, value: &'static str, added: u64) {
        let label = match count {
            Count::AggregationErrors => "error_type",
            Count::VotesRejected => "reason",
            Count::BatchRetries => "sqlstate_class",
            Count::DeliveriesSettled | Count::PlainInserts => "outcome",
            _ => "side",
        };
        self.counters[count as usize].add(added, &[KeyValue::new(label, value)]);
    }

    fn record(&self, measure: Measure, value: f64) {
        self.histograms[measure as usize].record(value, &[]);
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
        self.record(Measure::BatchWait, waited.as_secs_f64());
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
            self.add_to(Count::Reconnects, "postgres", 1);
        }
        self.laws.committed(&counted.laws, |labels, added| {
            self.counters[Count::VotesAggregated as usize].add(added, labels);
        });
        self.add(Count::VotesReplayed, counted.replays);
        self.add(Count::DuplicateAttempts, counted.attempts);
        self.add(Count::BatchSizeProcessed, counted.deliveries());
    }

    /// All of a batch of `votes` is committed or dead-lettered, `elapsed` after it was complete;
    /// `published` are the times of publication of those votes that have one.
    pub fn batch_settled(&self, votes: usize, elapsed: Duration, published: &[SystemTime]) {
        self.state().last_batch = elapsed;
        self.record(Measure::BatchDuration, elapsed.as_secs_f64());
        self.record(Measure::BatchVotes, votes as f64);
        let now = SystemTime::now();
        for published in published {
            // A publisher's clock may be ahead of ours.
            let latency = now.duration_since(*published).unwrap_or_default();
            self.record(Measure::VoteLatency, latency.as_secs_f64());
        }
    }

    /// A transaction is about to be retried.
    pub fn retried(&self, sqlstate: Option<&str>) {
        self.add_to(Count::BatchRetries, sqlstate_class(sqlstate), 1);
    }

    /// A plain INSERT of a batch ended.
    pub fn plain_insert(&self, outcome: PlainInsert) {
        self.add_to(Count::PlainInserts, outcome.into(), 1);
    }

    /// A malformed message was rejected.
    pub fn rejected(&self, reason: Reason) {
        self.state().deliveries.malformed += 1;
        self.add_to(Count::DeliveriesSettled, "rejected", 1);
        self.add_to(Count::VotesRejected, reason.as_str(), 1);
        self.error(ErrorType::Malformed);
    }

    /// A transaction failed.
    pub fn database_fault(&self, class: Class) {
        if matches!(class, Class::Reconnect | Class::UnknownOutcome) {
            self.state().postgres_lost = Some(Instant::now());
        }
        match class {
            // Counted by vote when it is isolated; the halves before it are no errors.
            Class::Isolate => {}
            Class::Bug => self.error(ErrorType::Internal),
            _ => self.error(ErrorType::Database),
        }
    }

    /// A vote was published to the dead-letter queue.
    pub fn isolated(&self) {
        self.state().deliveries.unstorable += 1;
        self.add(Count::VotesIsolated, 1);
        self.error(ErrorType::Unstorable);
    }

    /// These deliveries were acknowledged.
    pub fn acked(&self, deliveries: u64) {
        self.state().deliveries.acked += deliveries;
        self.add_to(Count::DeliveriesSettled, "acked", deliveries);
    }

    /// These deliveries are committed or dead-lettered, and can't be acknowledged any more.
    pub fn committed_unacked(&self, deliveries: u64) {
        let mut state = self.state();
        let before = state.deliveries.committed_unacked;
        // An ack that came too early makes the number negative, which `imbalance` shows.
        state.deliveries.committed_unacked = before.wrapping_add(deliveries);
        drop(state);
        self.add(Count::DeliveriesCommittedUnacked, deliveries);
    }

    /// Acknowledged batches were found missing from the audit.
    pub fn acknowledged_votes_lost(&self, batches: u64) {
        self.add(Count::AcknowledgedVotesLost, batches);
    }

    /// What this process did with its deliveries so far.
    pub fn deliveries(&self) -> Deliveries {
        self.state().deliveries
    }

    /// The broker ended a session: a delivery was held for too long.
    pub fn consumer_timed_out(&self) {
        self.add(Count::ConsumerTimeouts, 1);
    }

    /// A session with the broker failed, or could not be opened.
    pub fn broker_fault(&self) {
        self.error(ErrorType::Broker);
    }

    /// A session was opened after one was lost.
    pub fn broker_reconnected(&self) {
        self.add_to(Count::Reconnects, "rabbitmq", 1);
    }

    pub fn session(&self, session: SessionState) {
        self.state().session = session;
    }

    pub fn breaker(&self, breaker: BreakerState) {
        self.state().breaker = breaker;
    }

    /// The deliveries held were requeued.
    pub fn requeued(&self, deliveries: usize) {
        self.add(Count::DeliveriesRequeued, deliveries as u64);
    }

    /// What the broker answered about its queues.
    pub fn queue_depths(&self, depths: QueueDepths) {
        self.state().depths = depths;
    }

    /// Where the state of the database pool is read at each scrape.
    pub fn watch_pool(&self, pool: impl Fn() -> PoolUse + Send + 'static) {
        self.state().pool = Some(Box::new(pool));
    }

    /// Sets the number of cells.
    fn cells(&self, cells: u16) {
        self.state().cells = cells;
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
            self.counters[Count::VotesAggregated as usize].add(0, labels);
        });
    }

    fn error(&self, error_type: ErrorType) {
        self.add_to(Count::AggregationErrors, error_type.into(), 1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// The names of the variants of an enum.
fn names<V: Copy + Into<&'static str>>(variants: &[V]) -> Vec<&'static str> {
    variants.iter().map(|variant| (*variant).into()).collect()
}

#[cfg(test)]
mod tests;
