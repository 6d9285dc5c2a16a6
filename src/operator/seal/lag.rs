//! How long votes have waited to be sealed, as this process saw it: count_batch has no times.

use tokio::time::Instant;

use super::round::Round;

/// What a sealer has seen.
#[derive(Debug, Default)]
pub(super) struct Lag {
    /// When enough votes for a round were there, and the id that all their transactions are below.
    waiting: Option<(Instant, u64)>,
    /// Since when this is the oldest transaction in progress, and keeps votes from being sealed.
    held: Option<(Instant, u64)>,
}

impl Lag {
    /// Takes in a round that has ended.
    pub fn seen(&mut self, round: &Round, min_rows: u64) {
        let now = Instant::now();
        let enough = round.left >= min_rows.max(1);
        // Otherwise all that was visible then is sealed.
        let same = self.waiting.filter(|(_, next)| *next > round.covered);
        self.waiting = enough.then(|| same.unwrap_or((now, round.next)));
        let undecided = round.unsealed.votes > round.unsealed.decided;
        let same = self.held.filter(|(_, horizon)| *horizon == round.horizon);
        self.held = undecided.then(|| same.unwrap_or((now, round.horizon)));
    }

    pub fn waiting(&self) -> Option<Instant> {
        self.waiting.map(|(since, _)| since)
    }

    pub fn held(&self) -> Option<Instant> {
        self.held.map(|(since, _)| since)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::adapters::store::Unsealed;

    fn round(left: u64, undecided: i64, [covered, horizon, next]: [u64; 3]) -> Round {
        Round {
            unsealed: Unsealed { votes: undecided, decided: 0 },
            left,
            covered,
            next,
            horizon,
            drift: 0,
            held_by: None,
            sealed: None,
            findings: Vec::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn votes_wait_from_when_they_were_seen_until_the_horizon_has_passed_them() {
        let mut lag = Lag::default();
        let ages = |lag: &Lag| {
            [lag.waiting(), lag.held()].map(|since| since.map(|since| since.elapsed().as_secs()))
        };
        let mut see = async |round: Round| {
            lag.seen(&round, 1_000);
            tokio::time::advance(Duration::from_secs(5)).await;
            ages(&lag)
        };
        assert_eq!(see(round(999, 0, [50, 100, 100])).await, [None, None], "too few");
        // Counting goes on: each round seals what the one before it saw.
        assert_eq!(see(round(1_500, 500, [150, 150, 160])).await, [Some(5), Some(5)]);
        assert_eq!(see(round(1_500, 500, [250, 250, 260])).await, [Some(5), Some(5)]);
        // A transaction stays open.
        assert_eq!(see(round(2_000, 2_000, [255, 255, 360])).await, [Some(10), Some(5)]);
        assert_eq!(see(round(4_000, 4_000, [255, 255, 460])).await, [Some(15), Some(10)]);
        // It ended; a backlog takes several rounds.
        assert_eq!(see(round(4_000, 0, [259, 470, 470])).await, [Some(20), None]);
        assert_eq!(see(round(2_000, 0, [300, 470, 470])).await, [Some(5), None]);
        assert_eq!(see(round(0, 0, [470, 470, 470])).await, [None, None]);
    }
}
