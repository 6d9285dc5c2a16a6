//! Votes of acknowledged batches, remembered so that their loss is noticed: a failover or a restore may
//! lose commits after their deliveries were acked (semantics, section 10).

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use compact_str::CompactString;

/// Remembered at most, while the database cannot be queried.
const MOST: usize = 10_000;
/// Kept after they were found in the audit, since a later failover may lose them: more than there can be
/// batches in flight.
const KEPT: u64 = 256;

/// One `vote_hash` of each of the last acknowledged batches. The newest one that is still there shows
/// that all older ones are: WAL is replayed in order.
#[derive(Debug, Default)]
pub struct Acknowledged(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    hashes: VecDeque<CompactString>,
    /// How many were forgotten: the number of the first that is left.
    forgotten: u64,
}

/// What is to be looked up in the audit.
#[derive(Debug)]
pub struct Remembered {
    pub hashes: Vec<String>,
    /// Number of the batch behind the last of them.
    end: u64,
}

impl Acknowledged {
    /// Adds the marker of a batch that was acknowledged.
    pub(super) fn remember(&self, marker: Option<CompactString>) {
        let Some(marker) = marker else { return };
        let mut state = self.state();
        state.hashes.push_back(marker);
        if state.hashes.len() > MOST {
            state.forget();
        }
    }

    /// Returns everything that is remembered, oldest first.
    pub fn remembered(&self) -> Remembered {
        let state = self.state();
        let hashes: Vec<String> = state.hashes.iter().map(ToString::to_string).collect();
        Remembered { end: state.forgotten + hashes.len() as u64, hashes }
    }

    /// Forgets what was looked up except the newest: each was found, or its loss is recorded.
    pub fn looked_up(&self, remembered: &Remembered) {
        let mut state = self.state();
        while state.forgotten + KEPT < remembered.end {
            state.forget();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget(&mut self) {
        self.hashes.pop_front();
        self.forgotten += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remember(acknowledged: &Acknowledged, range: std::ops::Range<usize>) {
        range.for_each(|n| acknowledged.remember(Some(format!("h{n}").into())));
    }

    #[test]
    fn what_was_not_looked_up_is_kept_and_of_the_rest_the_newest() {
        let acknowledged = Acknowledged::default();
        acknowledged.remember(None);
        remember(&acknowledged, 0..1_000);
        let looked_up = acknowledged.remembered();
        assert_eq!((looked_up.hashes.len(), looked_up.hashes[0].as_str()), (1_000, "h0"));
        remember(&acknowledged, 1_000..3_000);
        acknowledged.looked_up(&looked_up);
        let left = acknowledged.remembered().hashes;
        assert_eq!((left.len(), left[0].as_str()), (2_000 + 256, "h744"));
    }

    #[test]
    fn memory_is_bounded_while_nothing_can_be_looked_up() {
        let acknowledged = Acknowledged::default();
        remember(&acknowledged, 0..30_000);
        let remembered = acknowledged.remembered();
        assert_eq!((remembered.hashes.len(), remembered.hashes[0].as_str()), (MOST, "h20000"));
        acknowledged.looked_up(&remembered);
        assert_eq!(acknowledged.remembered().hashes.len(), 256);
    }
}
