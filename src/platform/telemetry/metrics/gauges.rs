//! The metrics that are read at a scrape: name, unit and help text of each, once.

use std::sync::{Arc, Mutex};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Meter};
use strum::{EnumMessage, IntoStaticStr, VariantArray};
use tokio::time::Instant;

use super::labels::SIDES;
use super::series::help;
use super::state::{Compared, State, lock};
use crate::platform::telemetry::health::Health;
use crate::platform::telemetry::laws::Laws;
use crate::platform::telemetry::logs::dropped_lines;

/// Git's name of the commit this was built from, when the build could tell.
const REVISION: &str = match option_env!("VOTE_AGGREGATOR_REVISION") {
    Some(revision) if !revision.is_empty() => revision,
    _ => "unknown",
};

/// A variant's name is the metric's, its documentation is the help text.
#[derive(Clone, Copy, EnumMessage, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub(super) enum Gauge {
    /// Votes counted so far, as stored in the database
    CurrentVoteTotals,
    /// Always 1; version and git revision of this program
    BuildInfo,
    /// Number of cells; 1 without cells
    Cells,
    /// Batches being committed now, retries and their delays included
    BatchesInFlight,
    /// Time the last batch took to commit, retries included
    BatchProcessingDuration,
    /// Time since the last commit of votes, or since the start while there was none
    LastCommitAge,
    /// State of the session with RabbitMQ: 1 for the current one
    SessionState,
    /// Number of the address in use, or tried, in the order of the setting, by server
    AddressInUse,
    /// Whether the broker keeps rejected messages: 1 for the current state
    DeadLetterRoute,
    /// Deliveries received and neither acknowledged nor rejected yet
    DeliveriesUnacked,
    /// Time since the oldest of the unacknowledged deliveries was received; 0 without any
    OldestUnackedAge,
    /// Messages ready in the queue; absent while the broker does not answer
    QueueMessages,
    /// Messages ready in the dead-letter queue; absent while the broker does not answer
    DeadLetterQueueMessages,
    /// Whether a vote that is held has come back nearly as often as the queue's delivery limit allows (1) or not (0)
    DeliveryLimitNear,
    /// State of the circuit breaker for PostgreSQL: 1 for the current one; open: not consuming
    BreakerState,
    /// Connections of the pool, by state
    PostgresConnections,
    /// Connections that the pool may open
    PostgresConnectionsMax,
    /// Standbys connected to PostgreSQL; absent while PostgreSQL does not answer
    PostgresStandbys,
    /// Whether a commit waits for a standby (1) or not (0); absent while PostgreSQL does not answer
    PostgresSynchronousStandby,
    /// Votes that vote_results has too many or too few, by law and choice, as last compared with vote_audit
    ResultsDriftVotes,
    /// Laws whose counts in vote_results differ from vote_audit, as last compared
    ResultsDriftLaws,
    /// Time since vote_results was last compared with vote_audit; absent until it was
    LastReconciliationAge,
    /// Time between two comparisons of vote_results with vote_audit; absent when they are off
    ReconciliationInterval,
}

pub(super) fn register(
    meter: &Meter,
    laws: &Arc<Laws>,
    health: &Arc<Health>,
    state: &Arc<Mutex<State>>,
) {
    let began = Instant::now();
    for gauge in Gauge::VARIANTS {
        let (laws, health, state) = (Arc::clone(laws), Arc::clone(health), Arc::clone(state));
        let read = Read { laws, health, state, began };
        let name: &str = gauge.into();
        let is_time = ["_duration", "_age", "_interval"].iter().any(|end| name.ends_with(end));
        let builder = meter.f64_observable_gauge(name).with_unit(if is_time { "s" } else { "" });
        let builder = builder.with_description(help(gauge));
        // The SDK keeps the callback; the handle itself is not needed.
        let _gauge = builder.with_callback(move |to| read.observe(*gauge, to)).build();
    }
    let help = "Log lines dropped because standard error was not read fast enough";
    let counter = meter.u64_observable_counter("log_lines_dropped").with_description(help);
    let _counter = counter.with_callback(|counter| counter.observe(dropped_lines(), &[])).build();
}

/// What gauges are read from.
struct Read {
    laws: Arc<Laws>,
    health: Arc<Health>,
    state: Arc<Mutex<State>>,
    began: Instant,
}

impl Read {
    fn observe(&self, gauge: Gauge, to: &dyn AsyncInstrument<f64>) {
        let state = || lock(&self.state);
        let comparison = |read: fn(&Compared) -> f64| state().compared.as_ref().map(read);
        // None: the gauge is absent.
        let value = match gauge {
            Gauge::CurrentVoteTotals => {
                return self.laws.for_each(|labels, total| to.observe(total as f64, labels));
            }
            Gauge::BuildInfo => {
                let version = KeyValue::new("version", env!("CARGO_PKG_VERSION"));
                return to.observe(1.0, &[version, KeyValue::new("revision", REVISION)]);
            }
            Gauge::SessionState => return one_of(to, state().session),
            Gauge::DeadLetterRoute => return one_of(to, self.health.dead_letter_route()),
            Gauge::BreakerState => return one_of(to, state().breaker),
            Gauge::PostgresConnections => {
                let pool = state().pool();
                for (state, count) in [("idle", pool.idle), ("in_use", pool.in_use)] {
                    to.observe(count.into(), &[KeyValue::new("state", state)]);
                }
                return;
            }
            Gauge::AddressInUse => {
                for (side, (number, _)) in SIDES.into_iter().zip(self.health.addresses_in_use()) {
                    to.observe(number as f64, &[KeyValue::new("side", side)]);
                }
                return;
            }
            Gauge::Cells => Some(state().cells.into()),
            Gauge::BatchesInFlight => Some(state().in_flight as f64),
            Gauge::BatchProcessingDuration => Some(state().last_batch.as_secs_f64()),
            Gauge::LastCommitAge => Some(age(state().last_commit.unwrap_or(self.began))),
            Gauge::DeliveriesUnacked => Some(state().unacked as f64),
            Gauge::OldestUnackedAge => Some(state().oldest_unacked.map_or(0.0, age)),
            Gauge::QueueMessages => state().depths.queue.map(f64::from),
            Gauge::DeadLetterQueueMessages => state().depths.dead_letters.map(f64::from),
            Gauge::DeliveryLimitNear => Some(self.health.delivery_limit_near().into()),
            Gauge::PostgresConnectionsMax => Some(state().pool().max.into()),
            Gauge::PostgresStandbys => state().standbys.map(|it| it.connected as f64),
            Gauge::PostgresSynchronousStandby => state().standbys.map(|it| it.waited_for.into()),
            Gauge::ResultsDriftVotes => comparison(|it| it.drift_votes as f64),
            Gauge::ResultsDriftLaws => comparison(|it| it.drift_laws as f64),
            Gauge::LastReconciliationAge => comparison(|it| age(it.at)),
            Gauge::ReconciliationInterval => state().comparison_interval.map(|it| it.as_secs_f64()),
        };
        if let Some(value) = value {
            to.observe(value, &[]);
        }
    }
}

/// One series for each state: 1 for the current one, else 0.
fn one_of<S>(gauge: &dyn AsyncInstrument<f64>, current: S)
where
    S: VariantArray + Copy + PartialEq + Into<&'static str>,
{
    for state in S::VARIANTS {
        gauge.observe((*state == current).into(), &[KeyValue::new("state", (*state).into())]);
    }
}

fn age(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}
