//! What gauges and the shutdown summary show: set where it changes, read at a scrape.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::labels::{BreakerState, SessionState};

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

/// Messages ready in the queues; `None`: the queue does not exist, or the broker does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueDepths {
    pub queue: Option<u32>,
    pub dead_letters: Option<u32>,
}

/// A comparison of the totals with the audit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Compared {
    pub(super) at: Instant,
    pub(super) drift_votes: u64,
    pub(super) drift_laws: u64,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) cells: u16,
    pub(super) session: SessionState,
    pub(super) breaker: BreakerState,
    /// Batches in flight, and all batches of this process.
    pub(super) in_flight: u64,
    pub(super) batches: u64,
    pub(super) unacked: usize,
    /// When the oldest unacked delivery was taken.
    pub(super) oldest_unacked: Option<Instant>,
    pub(super) last_commit: Option<Instant>,
    /// How long the last batch took.
    pub(super) last_batch: Duration,
    /// When a connection to PostgreSQL was last lost; `None` once a later transaction committed.
    pub(super) postgres_lost: Option<Instant>,
    pub(super) depths: QueueDepths,
    pub(super) pool: Option<Box<dyn Fn() -> PoolUse + Send>>,
    /// `None`: unknown, since the database does not answer.
    pub(super) standbys: Option<Standbys>,
    /// `None` until the first comparison.
    pub(super) compared: Option<Compared>,
    /// `None` while nothing is compared at all.
    pub(super) comparison_interval: Option<Duration>,
    pub(super) deliveries: Deliveries,
}

impl State {
    pub(super) fn pool(&self) -> PoolUse {
        self.pool.as_ref().map(|pool| pool()).unwrap_or_default()
    }
}

pub(super) fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A batch in flight, counted until it is dropped.
#[must_use]
pub struct InFlight {
    /// Its number among the batches of this process, from 1.
    pub number: u64,
    pub(super) state: Arc<Mutex<State>>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        lock(&self.state).in_flight -= 1;
    }
}

/// Deliveries by what became of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deliveries {
    pub counted: u64,
    pub replays: u64,
    pub attempts: u64,
    pub malformed: u64,
    pub unstorable: u64,
    pub acked: u64,
    pub committed_unacked: u64,
}

impl Deliveries {
    /// Deliveries counted, or dead-lettered by us, beyond those acked or known to come again: 0 when no
    /// batch is in flight.
    pub const fn imbalance(&self) -> i64 {
        let committed = self.counted + self.replays + self.attempts + self.unstorable;
        // More acked than committed, as with an ack too early, is negative on either side.
        let done = self.acked.wrapping_add(self.committed_unacked);
        committed.wrapping_sub(done).cast_signed()
    }
}

impl fmt::Display for Deliveries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { counted, replays, attempts, malformed, unstorable, .. } = self;
        write!(
            f,
            "{counted} votes counted, {replays} replays, {attempts} duplicate attempts, \
             {malformed} malformed, {unstorable} unstorable"
        )
    }
}
