//! What counting asks of the store: batches counted exactly once, or a fault that says what to do.

use std::fmt;
use std::future::Future;
use std::ops::{Deref, Range};
use std::sync::Arc;

use compact_str::CompactString;
use strum::IntoStaticStr;

use crate::model::vote::Vote;

/// Votes of one batch, shared with the task that stores them: the whole or a part of it.
#[derive(Clone, Debug)]
pub struct Votes {
    all: Arc<[Vote]>,
    range: Range<usize>,
    insert: Insert,
}

impl Votes {
    pub fn new(votes: Vec<Vote>) -> Self {
        Self { range: 0..votes.len(), all: votes.into(), insert: Insert::OnConflict }
    }

    /// The same votes, to be inserted in this way.
    pub fn inserted(self, insert: Insert) -> Self {
        Self { insert, ..self }
    }

    pub fn insert(&self) -> Insert {
        self.insert
    }

    /// Where this part lies in the whole batch.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The two halves, the first first; a single vote has no halves.
    pub fn halves(&self) -> Option<[Self; 2]> {
        let Range { start, end } = self.range;
        let middle = start + (end - start) / 2;
        let part = |range| Self { all: Arc::clone(&self.all), range, insert: self.insert };
        (end - start > 1).then(|| [part(start..middle), part(middle..end)])
    }
}

impl Deref for Votes {
    type Target = [Vote];

    fn deref(&self) -> &[Vote] {
        &self.all[self.range.clone()]
    }
}

/// What one committed transaction did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Per law touched, in law order.
    pub laws: Vec<LawCount>,
    /// Deliveries equal to the stored vote in every field: nothing to record.
    pub replays: u64,
    /// Deliveries that differ from the stored vote of the same hash: recorded, not counted.
    pub attempts: u64,
    /// `vote_hash` of a row that this transaction added to the audit; of the newest one that it found
    /// there when it added none. A row that is looked up later shows whether the commit was lost (semantics,
    /// section 10).
    pub marker: Option<CompactString>,
}

impl Counted {
    /// Votes that this transaction added to the totals.
    pub fn added(&self) -> u64 {
        self.laws.iter().map(|law| law.added.iter().sum::<u64>()).sum()
    }

    /// All deliveries of this transaction: counted, replays and attempts.
    pub fn deliveries(&self) -> u64 {
        self.added() + self.replays + self.attempts
    }

    /// Takes in what another transaction of the same batch did.
    pub fn absorb(&mut self, other: Self) {
        let added = other.added();
        self.laws.extend(other.laws);
        self.replays += other.replays;
        self.attempts += other.attempts;
        if self.marker.is_none() || added > 0 {
            self.marker = other.marker;
        }
    }
}

/// One law's share in a transaction, `[oui, non]` each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LawCount {
    pub law_id: String,
    pub added: [u64; 2],
    /// The law's totals as this transaction left them. Signed: totals that the service's predecessor
    /// left may be negative.
    pub totals: [i64; 2],
}

/// How the rows of a batch get into the audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insert {
    /// `ON CONFLICT DO NOTHING`: what is there already is classified.
    OnConflict,
    /// Without: cheaper, and refused as a whole ([`Class::KnownHash`]) where a `vote_hash` is there already.
    Plain,
}

/// What a failed transaction calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Class {
    /// A plain INSERT met a `vote_hash` that the audit has: the same batch again at once, by
    /// [`Insert::OnConflict`].
    KnownHash,
    /// Another transaction was in the way: the same batch again after 10–100 ms.
    Retry,
    /// The connection or the server is gone: back off, the same batch again.
    Reconnect,
    /// COMMIT may or may not have happened: the same batch again, counting is idempotent.
    UnknownOutcome,
    /// Too much at once: halve the batch, then as `Pause`.
    Split,
    /// Operator action is required: stop consuming, dead-letter nothing.
    Pause,
    /// A vote the store refuses: bisect, and dead-letter the one.
    Isolate,
    /// Only a mistake of this service explains it: pause, loudly.
    Bug,
}

impl Class {
    /// The name in logs and metric labels.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Why a transaction failed. Holds nothing of a vote: safe to log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Fault {
    pub class: Class,
    /// `None` when the server did not get to say.
    pub sqlstate: Option<String>,
    pub message: String,
}

impl Fault {
    /// A fault that the server did not report.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self { class, sqlstate: None, message: message.into() }
    }

    /// Whether the server refused the login: nothing was begun.
    pub fn is_login_refused(&self) -> bool {
        self.sqlstate.as_deref().is_some_and(|code| code.starts_with("28"))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.sqlstate {
            Some(code) => write!(f, "{} (SQLSTATE {code})", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// Counts votes, each exactly once.
pub trait Store: Send + Sync {
    /// Counts all of `votes` in one transaction, or none of them.
    ///
    /// # Errors
    /// [`Fault`] with what to do about it. After [`Class::UnknownOutcome`] the votes may be
    /// counted; asking again counts none of them twice.
    fn count(&self, votes: Votes) -> impl Future<Output = Result<Counted, Fault>> + Send;

    /// Asks the store to write as counting does, and to forget it: succeeds when counting would.
    ///
    /// # Errors
    /// [`Fault`] when it would not.
    fn probe(&self) -> impl Future<Output = Result<(), Fault>> + Send;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_shown_with_the_sqlstate_that_the_server_gave() {
        let fault = Fault { class: Class::Pause, sqlstate: None, message: "no answer".to_owned() };
        assert_eq!(fault.to_string(), "no answer");
        let fault = Fault { sqlstate: Some("53100".to_owned()), ..fault };
        assert_eq!(fault.to_string(), "no answer (SQLSTATE 53100)");
    }
}
