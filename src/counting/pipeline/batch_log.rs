//! Log lines about one batch: the same fields on every line, so that a search for its number
//! finds all of them.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Level;

use super::Failure;
use crate::model::ports::{Counted, DeadLetter, Fault, Votes};
use crate::model::vote::Vote;
use crate::platform::telemetry::{Instruments, SUMMARISED, seconds};

const RETRYING: &str = "batch not committed, trying again";
const UNSTORABLE: &str = "the database refuses this vote, publishing it to the dead-letter queue";

/// Logs about one batch.
pub(super) struct BatchLog<'a> {
    batch: u64,
    votes: Votes,
    began: Instant,
    instruments: &'a Instruments,
}

/// A line about `$votes` of the batch, of which `$attempt` transactions were tried so far.
macro_rules! line {
    ($level:expr, $($rest:tt)+) => { line!(to module_path!(), $level, $($rest)+) };
    (
        to $target:expr,
        $level:expr, $batch_log:expr, $votes:expr, $attempt:expr, $sqlstate:expr, $($rest:tt)+
    ) => {
        tracing::event!(
            target: $target,
            $level,
            batch = $batch_log.batch,
            votes = $votes.len(),
            law_count = law_count($votes),
            attempt = $attempt,
            sqlstate = $sqlstate,
            elapsed = seconds($batch_log.began.elapsed()),
            $($rest)+
        )
    };
}

impl<'a> BatchLog<'a> {
    /// Of the batch with this number, complete since `began`.
    pub(super) const fn new(
        batch: u64,
        votes: Votes,
        began: Instant,
        instruments: &'a Instruments,
    ) -> Self {
        Self { batch, votes, began, instruments }
    }

    pub(super) fn committed(&self, counted: &Counted, attempt: u32) {
        line!(
            Level::DEBUG,
            self,
            &self.votes,
            attempt,
            None::<&str>,
            counted = counted.added(),
            replays = counted.replays,
            duplicate_attempts = counted.attempts,
            "batch committed"
        );
    }

    /// Many batches may meet the same fault many times: the log gets the first lines of a minute, a trace
    /// all of its own batches.
    pub(super) fn retrying(&self, part: &Votes, attempt: u32, fault: &Fault, delay: Duration) {
        let (class, sqlstate) = (fault.class.as_str(), fault.sqlstate.as_deref());
        let delay = seconds(delay);
        if self.instruments.log_limiter.admit(RETRYING, class) {
            line!(Level::WARN, self, part, attempt, sqlstate, class, delay, "{RETRYING}: {fault}");
        } else {
            line!(to SUMMARISED,
                Level::WARN, self, part, attempt, sqlstate, class, delay, "{RETRYING}: {fault}");
        }
    }

    pub(super) fn halving(&self, part: &Votes, attempt: u32, fault: &Fault) {
        let (class, sqlstate) = (fault.class.as_str(), fault.sqlstate.as_deref());
        line!(Level::DEBUG, self, part, attempt, sqlstate, class, "halving the batch: {fault}");
    }

    /// Rate-limited: a publisher may repeat such a vote endlessly.
    pub(super) fn unstorable(&self, dead_letter: &DeadLetter, attempt: u32) {
        if self.instruments.log_limiter.admit(UNSTORABLE, "unstorable") {
            line!(
                Level::WARN,
                self,
                &self.votes,
                attempt,
                dead_letter.sqlstate,
                vote_hash = dead_letter.vote_hash,
                "{UNSTORABLE}"
            );
        }
    }

    pub(super) fn given_up(&self, failure: &Failure, attempt: u32) {
        let (sqlstate, why) = match failure {
            Failure::Paused(fault) => (fault.sqlstate.as_deref(), fault.to_string()),
            Failure::Lost(lost) | Failure::DeadLetterFailed(lost) => (None, lost.to_string()),
        };
        line!(
            Level::WARN,
            self,
            &self.votes,
            attempt,
            sqlstate,
            "batch abandoned, its deliveries are requeued: {why}"
        );
    }
}

fn law_count(votes: &[Vote]) -> usize {
    votes.iter().map(|vote| vote.law_id.as_str()).collect::<BTreeSet<_>>().len()
}
