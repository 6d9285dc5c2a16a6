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
    /// Takes in a round that has ended; `sealed` is the log's horizon behind it.
    pub fn seen(&mut self, round: &Round, min_rows: u64, sealed: u64) {
        let now = Instant::now();
        // All that was visible then is sealed.
        self.waiting = self.waiting.filter(|(_, next)| *next > sealed);
        let enough = round.unsealed.votes.unsigned_abs() >= min_rows.max(1);
        if enough && self.waiting.is_none() && round.next > sealed {
            self.waiting = Some((now, round.next));
        }
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

    fn round(votes: i64, decided: i64, (horizon, next): (u64, u64)) -> Round {
        Round {
            unsealed: Unsealed { votes, decided },
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
        let mut see = async |round: Round, sealed| {
            lag.seen(&round, 1_000, sealed);
            tokio::time::advance(Duration::from_secs(5)).await;
            ages(&lag)
        };
        assert_eq!(see(round(999, 999, (100, 100)), 50).await, [None, None], "too few");
        // Counting goes on: each round seals what the one before it saw.
        assert_eq!(see(round(2_000, 1_500, (150, 160)), 150).await, [Some(5), Some(5)]);
        assert_eq!(see(round(2_000, 1_500, (250, 260)), 250).await, [Some(5), Some(5)]);
        // A transaction stays open.
        assert_eq!(see(round(2_000, 0, (255, 360)), 255).await, [Some(10), Some(5)]);
        assert_eq!(see(round(4_000, 0, (255, 460)), 255).await, [Some(15), Some(10)]);
        assert_eq!(see(round(6_000, 6_000, (470, 470)), 470).await, [None, None]);
    }
}
