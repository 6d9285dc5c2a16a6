//! Deliveries by what became of them: instruments can be written only, and the stop line tells.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ports::Counted;

#[derive(Debug, Default)]
pub(super) struct Tally {
    counted: AtomicU64,
    replays: AtomicU64,
    attempts: AtomicU64,
    rejected: AtomicU64,
    isolated: AtomicU64,
    acked: AtomicU64,
    committed_unacked: AtomicU64,
}

impl Tally {
    pub(super) fn committed(&self, counted: &Counted) {
        add(&self.counted, counted.added());
        add(&self.replays, counted.replays);
        add(&self.attempts, counted.attempts);
    }

    pub(super) fn rejected(&self) {
        add(&self.rejected, 1);
    }

    pub(super) fn isolated(&self) {
        add(&self.isolated, 1);
    }

    pub(super) fn acked(&self, deliveries: u64) {
        add(&self.acked, deliveries);
    }

    pub(super) fn committed_unacked(&self, deliveries: u64) {
        add(&self.committed_unacked, deliveries);
    }

    /// Deliveries that were counted, or dead-lettered by us, beyond those of which the broker was
    /// told, or should have been.
    pub(super) fn imbalance(&self) -> i64 {
        let sum = |counts: &[&AtomicU64]| -> i64 {
            counts.iter().map(|count| count.load(Ordering::Relaxed) as i64).sum()
        };
        sum(&[&self.counted, &self.replays, &self.attempts, &self.isolated])
            - sum(&[&self.acked, &self.committed_unacked])
    }
}

fn add(to: &AtomicU64, count: u64) {
    to.fetch_add(count, Ordering::Relaxed);
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
