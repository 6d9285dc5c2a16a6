//! What the gauges show: noted in atomics where it changes, read when somebody scrapes.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Meter};
use tokio::time::Instant;

use super::catalogue::{self as metric, Entry};
use super::labels::{BreakerState, SessionState};
use crate::telemetry::health::{DeadLetterRoute, Health};
use crate::telemetry::laws::Laws;
use crate::telemetry::logs::dropped_lines;

/// Git's name of the commit this was built from, when the build could tell.
const REVISION: &str = match option_env!("VOTE_AGGREGATOR_REVISION") {
    Some(revision) if !revision.is_empty() => revision,
    _ => "unknown",
};

/// Connections of the database pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUse {
    pub idle: u32,
    pub in_use: u32,
    pub max: u32,
}

/// Standbys of the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standbys {
    /// Standbys that stream from the server.
    pub connected: u64,
    /// `synchronous_standby_names` is set.
    pub named: bool,
    /// A commit of this service waits for a standby.
    pub waited_for: bool,
}

/// Messages ready in the queues; `None` for one that is not there or can't be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueDepths {
    pub queue: Option<u32>,
    pub dead_letters: Option<u32>,
}

/// State behind the gauges, shared with their callbacks.
pub(super) struct Observed {
    began: Instant,
    session: AtomicU8,
    breaker: AtomicU8,
    in_flight: AtomicU64,
    batches: AtomicU64,
    unacked: AtomicU64,
    oldest_unacked: Moment,
    last_commit: Moment,
    queue: Depth,
    dead_letters: Depth,
    pool: OnceLock<Box<dyn Fn() -> PoolUse + Send + Sync>>,
    standbys: Mutex<Option<Standbys>>,
}

impl Default for Observed {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            session: AtomicU8::default(),
            breaker: AtomicU8::default(),
            in_flight: AtomicU64::default(),
            batches: AtomicU64::default(),
            unacked: AtomicU64::default(),
            oldest_unacked: Moment::default(),
            last_commit: Moment::default(),
            queue: Depth::default(),
            dead_letters: Depth::default(),
            pool: OnceLock::new(),
            standbys: Mutex::default(),
        }
    }
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observed").finish_non_exhaustive()
    }
}

impl Observed {
    pub(super) fn session(&self, state: SessionState) {
        self.session.store(state as u8, Relaxed);
    }

    pub(super) fn breaker(&self, state: BreakerState) {
        self.breaker.store(state as u8, Relaxed);
    }

    pub(super) fn unacked(&self, count: usize, oldest: Option<Instant>) {
        self.unacked.store(u64::try_from(count).unwrap_or(u64::MAX), Relaxed);
        self.oldest_unacked.set(oldest, self.began);
    }

    /// A batch is being committed for as long as the value lives.
    pub(super) fn batch(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Relaxed);
        InFlight { number: 1 + self.batches.fetch_add(1, Relaxed), observed: Arc::clone(self) }
    }

    pub(super) fn committed(&self) {
        self.last_commit.set(Some(Instant::now()), self.began);
    }

    pub(super) fn depths(&self, depths: QueueDepths) {
        self.queue.set(depths.queue);
        self.dead_letters.set(depths.dead_letters);
    }

    /// Where the pool's state is read; the first to say so is asked.
    pub(super) fn watch_pool(&self, pool: impl Fn() -> PoolUse + Send + Sync + 'static) {
        // A second store in one process does not happen outside tests.
        let _taken = self.pool.set(Box::new(pool));
    }

    /// `None`: not known, since the database does not answer.
    pub(super) fn set_standbys(&self, standbys: Option<Standbys>) {
        *self.standbys.lock().unwrap_or_else(PoisonError::into_inner) = standbys;
    }

    fn standbys(&self) -> Option<Standbys> {
        *self.standbys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool(&self) -> PoolUse {
        self.pool.get().map(|pool| pool()).unwrap_or_default()
    }

    /// Registers every gauge that is computed when it is scraped.
    pub(super) fn register(
        self: &Arc<Self>,
        meter: &Meter,
        laws: &Arc<Laws>,
        health: &Arc<Health>,
    ) {
        let laws = Arc::clone(laws);
        gauge(meter, metric::CURRENT_VOTE_TOTALS, move |gauge| {
            laws.for_each(|labels, totals| {
                for (labels, total) in labels.iter().zip(totals) {
                    gauge.observe(total as f64, labels);
                }
            });
        });
        let health = Arc::clone(health);
        gauge(meter, metric::DEAD_LETTER_ROUTE, move |gauge| {
            let is = health.dead_letter_route();
            for state in DeadLetterRoute::ALL {
                state_of(gauge, state.as_str(), state == is);
            }
        });
        self.gauge(meter, metric::SESSION_STATE, |it, gauge| {
            let is = it.session.load(Relaxed);
            for state in SessionState::ALL {
                state_of(gauge, state.as_str(), state as u8 == is);
            }
        });
        self.gauge(meter, metric::BREAKER_STATE, |it, gauge| {
            let is = it.breaker.load(Relaxed);
            for state in BreakerState::ALL {
                state_of(gauge, state.as_str(), state as u8 == is);
            }
        });
        self.gauge(meter, metric::BATCHES_IN_FLIGHT, |it, gauge| {
            gauge.observe(it.in_flight.load(Relaxed) as f64, &[]);
        });
        self.gauge(meter, metric::DELIVERIES_UNACKED, |it, gauge| {
            gauge.observe(it.unacked.load(Relaxed) as f64, &[]);
        });
        self.gauge(meter, metric::OLDEST_UNACKED_AGE, |it, gauge| {
            gauge.observe(it.oldest_unacked.age(it.began).unwrap_or_default(), &[]);
        });
        self.gauge(meter, metric::LAST_COMMIT_AGE, |it, gauge| {
            let since = it.last_commit.age(it.began);
            gauge.observe(since.unwrap_or_else(|| it.began.elapsed().as_secs_f64()), &[]);
        });
        self.gauge(meter, metric::QUEUE_MESSAGES, |it, gauge| it.queue.observe(gauge));
        self.gauge(meter, metric::DEAD_LETTER_QUEUE_MESSAGES, |it, gauge| {
            it.dead_letters.observe(gauge);
        });
        self.gauge(meter, metric::POSTGRES_CONNECTIONS, |it, gauge| {
            let PoolUse { idle, in_use, .. } = it.pool();
            for (state, count) in [("idle", idle), ("in_use", in_use)] {
                gauge.observe(count.into(), &[KeyValue::new("state", state)]);
            }
        });
        self.gauge(meter, metric::POSTGRES_CONNECTIONS_MAX, |it, gauge| {
            gauge.observe(it.pool().max.into(), &[]);
        });
        self.gauge(meter, metric::POSTGRES_STANDBYS, |it, gauge| {
            if let Some(standbys) = it.standbys() {
                gauge.observe(standbys.connected as f64, &[]);
            }
        });
        self.gauge(meter, metric::POSTGRES_SYNCHRONOUS_STANDBY, |it, gauge| {
            if let Some(standbys) = it.standbys() {
                gauge.observe(f64::from(u8::from(standbys.waited_for)), &[]);
            }
        });
        let Entry { name, unit, help } = metric::LOG_LINES_DROPPED;
        let counter = meter.u64_observable_counter(name).with_unit(unit).with_description(help);
        // The SDK keeps the callback.
        let _counter = counter.with_callback(|it| it.observe(dropped_lines(), &[])).build();
        gauge(meter, metric::BUILD_INFO, |gauge| {
            let version = KeyValue::new("version", env!("CARGO_PKG_VERSION"));
            gauge.observe(1.0, &[version, KeyValue::new("revision", REVISION)]);
        });
    }

    fn gauge(
        self: &Arc<Self>,
        meter: &Meter,
        entry: Entry,
        read: impl Fn(&Self, &dyn AsyncInstrument<f64>) + Send + Sync + 'static,
    ) {
        let it = Arc::clone(self);
        gauge(meter, entry, move |gauge| read(&it, gauge));
    }
}

pub(super) fn gauge(
    meter: &Meter,
    Entry { name, unit, help }: Entry,
    read: impl Fn(&dyn AsyncInstrument<f64>) + Send + Sync + 'static,
) {
    let builder = meter.f64_observable_gauge(name).with_unit(unit).with_description(help);
    // The SDK keeps the callback; the handle itself is not needed.
    let _gauge = builder.with_callback(read).build();
}

fn state_of(gauge: &dyn AsyncInstrument<f64>, state: &'static str, is: bool) {
    gauge.observe(if is { 1.0 } else { 0.0 }, &[KeyValue::new("state", state)]);
}

/// A batch in flight, counted until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct InFlight {
    number: u64,
    observed: Arc<Observed>,
}

impl InFlight {
    /// Of the batches of this process, the how manieth it is.
    pub const fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.observed.in_flight.fetch_sub(1, Relaxed);
    }
}

/// A point in time that may be read while it is set: microseconds behind a beginning, plus one.
#[derive(Debug, Default)]
struct Moment(AtomicU64);

impl Moment {
    fn set(&self, at: Option<Instant>, began: Instant) {
        let micros = at.map_or(0, |at| 1 + at.saturating_duration_since(began).as_micros() as u64);
        self.0.store(micros, Relaxed);
    }

    /// Seconds since then; `None` when it is not set.
    fn age(&self, began: Instant) -> Option<f64> {
        let micros = self.0.load(Relaxed).checked_sub(1)?;
        Some((began.elapsed().as_secs_f64() - micros as f64 / 1e6).max(0.0))
    }
}

/// A number of messages, or unknown.
#[derive(Debug, Default)]
struct Depth(AtomicU64);

impl Depth {
    fn set(&self, depth: Option<u32>) {
        self.0.store(depth.map_or(0, |depth| 1 + u64::from(depth)), Relaxed);
    }

    fn observe(&self, gauge: &dyn AsyncInstrument<f64>) {
        if let Some(depth) = self.0.load(Relaxed).checked_sub(1) {
            gauge.observe(depth as f64, &[]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ages_grow_with_the_clock_and_end_with_what_they_are_of() {
        let observed = Observed::default();
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(observed.oldest_unacked.age(observed.began), None);
        observed.unacked(1, Some(Instant::now()));
        assert_eq!(observed.oldest_unacked.age(observed.began), Some(0.0));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(observed.oldest_unacked.age(observed.began), Some(3.0));
        observed.unacked(0, None);
        assert_eq!(observed.oldest_unacked.age(observed.began), None);
    }
}
