//! How the totals stood to the audit when they were last compared.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use opentelemetry::metrics::{AsyncInstrument, Meter};
use tokio::time::Instant;

use super::catalogue::{self as metric, Entry};
use super::observed::gauge;

/// Noted after each comparison, read when somebody scrapes. Nothing is shown before the first
/// one: a zero would claim what nobody has looked at.
#[derive(Debug, Default)]
pub struct Reconciliation(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Compared>,
    /// `None` while nothing is compared at all.
    interval: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Compared {
    at: Instant,
    drift_votes: u64,
    drift_laws: u64,
}

impl Reconciliation {
    /// Notes a comparison that is `age` old, by whichever instance: the totals differ from the audit
    /// by so many votes, in so many laws.
    pub fn compared(&self, drift_votes: u64, drift_laws: u64, age: Duration) {
        // No instant lies before the boot of this machine.
        let at = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
        self.state().last = Some(Compared { at, drift_votes, drift_laws });
    }

    /// From the end of one comparison to the next it takes so long.
    pub fn every(&self, interval: Duration) {
        self.state().interval = Some(interval);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn register(self: &Arc<Self>, meter: &Meter) {
        self.gauge(meter, metric::RESULTS_DRIFT_VOTES, |state| {
            state.last.map(|compared| compared.drift_votes as f64)
        });
        self.gauge(meter, metric::RESULTS_DRIFT_LAWS, |state| {
            state.last.map(|compared| compared.drift_laws as f64)
        });
        self.gauge(meter, metric::LAST_RECONCILIATION_AGE, |state| {
            state.last.map(|compared| compared.at.elapsed().as_secs_f64())
        });
        self.gauge(meter, metric::RECONCILIATION_INTERVAL, |state| {
            state.interval.map(|interval| interval.as_secs_f64())
        });
    }

    fn gauge(
        self: &Arc<Self>,
        meter: &Meter,
        entry: Entry,
        read: impl Fn(&State) -> Option<f64> + Send + Sync + 'static,
    ) {
        let it = Arc::clone(self);
        gauge(meter, entry, move |gauge: &dyn AsyncInstrument<f64>| {
            if let Some(value) = read(&it.state()) {
                gauge.observe(value, &[]);
            }
        });
    }
}
