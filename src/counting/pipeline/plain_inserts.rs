//! Which batches are inserted plainly, without `ON CONFLICT`: it costs PostgreSQL a fifth less, and all
//! of the batch's work where one `vote_hash` is in the audit already.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::model::ports::{Counted, Insert};

/// Batches without a known `vote_hash` before a plain INSERT is tried (again). Bounds what failed tries
/// cost: the work of one batch in flight out of so many, and as many dead rows.
pub const PLAIN_AFTER: u32 = 64;

/// One batch in so many is inserted with `ON CONFLICT` all the same: PostgreSQL refuses that (42P10) where
/// the audit has lost its key, without which a plain INSERT would count a vote twice.
const KEY_CHECKED_EVERY: u32 = 32;

/// Belongs to one session, since what a session before took and did not ack comes again as replays.
pub(super) struct PlainInserts {
    after: u32,
    /// Transactions in a row that met no known `vote_hash` and no fault.
    clean: AtomicU32,
    batches: AtomicU32,
}

impl PlainInserts {
    pub(super) const fn new(after: u32) -> Self {
        Self { after, clean: AtomicU32::new(0), batches: AtomicU32::new(0) }
    }

    /// How to insert a batch. One with a delivery that the broker redelivered may be counted already.
    pub(super) fn choose(&self, redelivered: bool) -> Insert {
        let checks_key =
            self.batches.fetch_add(1, Relaxed) % KEY_CHECKED_EVERY == KEY_CHECKED_EVERY - 1;
        if redelivered || checks_key || self.clean.load(Relaxed) < self.after {
            Insert::OnConflict
        } else {
            Insert::Plain
        }
    }

    pub(super) fn committed(&self, counted: &Counted) {
        if counted.replays + counted.attempts > 0 {
            self.reset();
        } else if self.clean.load(Relaxed) < self.after {
            self.clean.fetch_add(1, Relaxed);
        }
    }

    /// A transaction failed, for whatever reason.
    pub(super) fn reset(&self) {
        self.clean.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_insert_is_tried_behind_a_run_of_clean_batches_and_never_for_redelivered_votes() {
        let inserts = PlainInserts::new(2);
        let clean = Counted::default();
        assert_eq!(inserts.choose(false), Insert::OnConflict, "a new session");
        inserts.committed(&clean);
        assert_eq!(inserts.choose(false), Insert::OnConflict);
        inserts.committed(&clean);
        assert_eq!(inserts.choose(false), Insert::Plain);
        assert_eq!(inserts.choose(true), Insert::OnConflict);

        inserts.committed(&Counted { replays: 1, ..Counted::default() });
        assert_eq!(inserts.choose(false), Insert::OnConflict, "a replay was met");
        inserts.committed(&clean);
        inserts.committed(&clean);
        assert_eq!(inserts.choose(false), Insert::Plain);
        inserts.reset();
        assert_eq!(inserts.choose(false), Insert::OnConflict, "a fault was met");
    }

    #[test]
    fn some_batches_are_inserted_with_on_conflict_in_any_case() {
        let inserts = PlainInserts::new(0);
        let chosen: Vec<Insert> = (0..KEY_CHECKED_EVERY).map(|_| inserts.choose(false)).collect();
        assert_eq!(chosen.iter().filter(|insert| **insert == Insert::OnConflict).count(), 1);
    }
}
