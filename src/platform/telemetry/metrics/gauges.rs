//! The metrics that are read at a scrape: name, unit and help text of each, once.

use std::sync::{Arc, Mutex};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Meter};
use strum::VariantArray;
use tokio::time::Instant;

use super::state::{State, lock};
use crate::platform::telemetry::health::Health;
use crate::platform::telemetry::laws::Laws;
use crate::platform::telemetry::logs::dropped_lines;

/// Git's name of the commit this was built from, when the build could tell.
const REVISION: &str = match option_env!("VOTE_AGGREGATOR_REVISION") {
    Some(revision) if !revision.is_empty() => revision,
    _ => "unknown",
};

pub(super) const CURRENT_VOTE_TOTALS: &str = "current_vote_totals";

pub(super) fn register(
    meter: &Meter,
    laws: &Arc<Laws>,
    health: &Arc<Health>,
    state: &Arc<Mutex<State>>,
) {
    let laws = Arc::clone(laws);
    let help = "Votes counted so far, as the database has them";
    gauge(meter, CURRENT_VOTE_TOTALS, "", help, move |gauge| {
        laws.for_each(|labels, totals| {
            for (labels, total) in labels.iter().zip(totals) {
                gauge.observe(total as f64, labels);
            }
        });
    });
    let health = Arc::clone(health);
    let help = "Whether the broker keeps rejected messages: 1 for the current state";
    gauge(meter, "dead_letter_route", "", help, move |gauge| {
        one_of(gauge, health.dead_letter_route());
    });
    let help = "Always 1; version and git revision of this program";
    gauge(meter, "build_info", "", help, |gauge| {
        let version = KeyValue::new("version", env!("CARGO_PKG_VERSION"));
        gauge.observe(1.0, &[version, KeyValue::new("revision", REVISION)]);
    });
    let help = "Log lines dropped because standard error was not read fast enough";
    let counter = meter.u64_observable_counter("log_lines_dropped").with_description(help);
    // The SDK keeps the callback.
    let _counter = counter.with_callback(|counter| counter.observe(dropped_lines(), &[])).build();

    Gauges { meter, state }.register();
}

/// Gauges of [`State`].
struct Gauges<'a> {
    meter: &'a Meter,
    state: &'a Arc<Mutex<State>>,
}

impl Gauges<'_> {
    fn register(&self) {
        // Votes and batches.
        self.value(
            ("batches_in_flight", ""),
            "Batches being committed now, retries and their delays included",
            |state| Some(state.in_flight as f64),
        );
        let began = Instant::now();
        self.value(
            ("last_commit_age", "s"),
            "Time since the last commit of votes, or since the start while there was none",
            move |state| Some(age(state.last_commit.unwrap_or(began))),
        );

        // RabbitMQ.
        self.series(
            "session_state",
            "State of the session with RabbitMQ: 1 for the current one",
            |state, gauge| one_of(gauge, state.session),
        );
        self.value(
            ("deliveries_unacked", ""),
            "Deliveries taken and neither acknowledged nor rejected yet",
            |state| Some(state.unacked as f64),
        );
        self.value(
            ("oldest_unacked_age", "s"),
            "Time since the oldest of the unacknowledged deliveries was taken; 0 without any",
            |state| Some(state.oldest_unacked.map_or(0.0, age)),
        );
        self.value(
            ("queue_messages", ""),
            "Messages ready in the queue; absent while the broker does not answer",
            |state| state.depths.queue.map(f64::from),
        );
        self.value(
            ("dead_letter_queue_messages", ""),
            "Messages ready in the dead-letter queue; absent while the broker does not answer",
            |state| state.depths.dead_letters.map(f64::from),
        );

        // PostgreSQL.
        self.series(
            "breaker_state",
            "State of the breaker before PostgreSQL: 1 for the current one; open: no votes are taken",
            |state, gauge| one_of(gauge, state.breaker),
        );
        self.series("postgres_connections", "Connections of the pool, by state", |state, gauge| {
            let pool = state.pool();
            for (state, count) in [("idle", pool.idle), ("in_use", pool.in_use)] {
                gauge.observe(count.into(), &[KeyValue::new("state", state)]);
            }
        });
        self.value(
            ("postgres_connections_max", ""),
            "Connections that the pool may open",
            |state| Some(state.pool().max.into()),
        );
        self.value(
            ("postgres_standbys", ""),
            "Standbys connected to PostgreSQL; absent while PostgreSQL does not answer",
            |state| state.standbys.map(|standbys| standbys.connected as f64),
        );
        self.value(
            ("postgres_synchronous_standby", ""),
            "Whether a commit waits for a standby (1) or not (0); absent while PostgreSQL does not \
             answer",
            |state| state.standbys.map(|standbys| f64::from(u8::from(standbys.waited_for))),
        );

        // Reconciliation.
        self.value(
            ("results_drift_votes", ""),
            "Votes that vote_results has too many or too few, by law and choice, as last compared \
             with vote_audit",
            |state| state.compared.map(|compared| compared.drift_votes as f64),
        );
        self.value(
            ("results_drift_laws", ""),
            "Laws whose counts in vote_results differ from vote_audit, as last compared",
            |state| state.compared.map(|compared| compared.drift_laws as f64),
        );
        self.value(
            ("last_reconciliation_age", "s"),
            "Time since vote_results was last compared with vote_audit; absent until it was",
            |state| state.compared.map(|compared| age(compared.at)),
        );
        self.value(("reconciliation_interval", "s"),
            "Time between two comparisons of vote_results with vote_audit; absent when they are off",
            |state| state.comparison_interval.map(|interval| interval.as_secs_f64()),
        );
    }

    /// A gauge with one series, which is absent while there is no value.
    fn value(
        &self,
        (name, unit): (&'static str, &'static str),
        help: &'static str,
        read: impl Fn(&State) -> Option<f64> + Send + Sync + 'static,
    ) {
        let state = Arc::clone(self.state);
        gauge(self.meter, name, unit, help, move |gauge| {
            if let Some(value) = read(&lock(&state)) {
                gauge.observe(value, &[]);
            }
        });
    }

    fn series(
        &self,
        name: &'static str,
        help: &'static str,
        read: impl Fn(&State, &dyn AsyncInstrument<f64>) + Send + Sync + 'static,
    ) {
        let state = Arc::clone(self.state);
        gauge(self.meter, name, "", help, move |gauge| read(&lock(&state), gauge));
    }
}

fn gauge(
    meter: &Meter,
    name: &'static str,
    unit: &'static str,
    help: &'static str,
    read: impl Fn(&dyn AsyncInstrument<f64>) + Send + Sync + 'static,
) {
    let builder = meter.f64_observable_gauge(name).with_unit(unit).with_description(help);
    // The SDK keeps the callback; the handle itself is not needed.
    let _gauge = builder.with_callback(read).build();
}

/// One series for each state: 1 for the current one, else 0.
fn one_of<S>(gauge: &dyn AsyncInstrument<f64>, current: S)
where
    S: VariantArray + Copy + PartialEq + Into<&'static str>,
{
    for state in S::VARIANTS {
        let value = f64::from(u8::from(*state == current));
        gauge.observe(value, &[KeyValue::new("state", (*state).into())]);
    }
}

fn age(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}
