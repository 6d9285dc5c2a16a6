//! One batch, from its votes to its commit: retried, split and bisected as the store's faults
//! call for, its unstorable votes dead-lettered.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::batch_log::BatchLog;
use super::plain_inserts::PlainInserts;
use super::unacked::Unacked;
use super::{Failure, Tools};
use crate::model::ports::{
    BrokerError, Class, Counted, DeadLetter, DeadLetters, Fault, Insert, Store, Votes,
};
use crate::platform::retry::Backoff;
use crate::platform::telemetry::PlainInsert;

/// How often and at which intervals a batch is tried before its votes are requeued, its deadline aside.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// Tries after the first one.
    pub max_attempts: u32,
    /// Delay before the first of them; doubled each time.
    pub delay: Duration,
}

/// Deadlocks and serialization failures do not count as attempts, but a batch that meets nothing
/// else for this many tries has met a fault of another kind.
const MAX_CONFLICTS: u32 = 20;
const CONFLICT_DELAYS: (Duration, Duration) =
    (Duration::from_millis(10), Duration::from_millis(100));

/// More isolated votes than this a minute are a fault of the database, not of single votes.
const MAX_ISOLATED_PER_MINUTE: usize = 20;

/// Guards against dead-lettering good votes for a fault that is not theirs: a constraint added by
/// mistake refuses every vote with the same SQLSTATE as one bad vote. Votes are counted, not their
/// deliveries: one bad vote that its publisher repeats must not stop the service.
#[derive(Debug, Default)]
pub struct IsolationBudget {
    recent: Mutex<VecDeque<(Instant, String)>>,
}

impl IsolationBudget {
    /// Whether `isolated` votes of a batch of `size` are more than max(3, 5 %).
    fn exceeds_batch(isolated: usize, size: usize) -> bool {
        isolated > 3.max(size / 20)
    }

    /// Whether these votes, by hash, and those of the last minute are no more than allowed.
    fn fits_minute(&self, mut hashes: BTreeSet<&str>) -> bool {
        let now = Instant::now();
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        while recent.front().is_some_and(|(then, _)| now - *then >= Duration::from_secs(60)) {
            recent.pop_front();
        }
        for (_, booked) in recent.iter() {
            hashes.remove(booked.as_str());
        }
        recent.len() + hashes.len() <= MAX_ISOLATED_PER_MINUTE
    }

    /// Books one vote: only what was really dead-lettered counts towards the minute.
    fn book(&self, hash: &str) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if !recent.iter().any(|(_, booked)| booked == hash) {
            recent.push_back((Instant::now(), hash.to_owned()));
        }
    }
}

/// What a batch needs from the pipeline it runs in.
pub(super) struct Upsert<'a, T, D> {
    pub(super) tools: &'a Tools<'a, T, D>,
    /// Nothing is begun for the batch from here on.
    pub(super) deadline: Instant,
    /// Cancelled when the pipeline has failed: no further try is begun.
    pub(super) halt: &'a CancellationToken,
    pub(super) batch_log: &'a BatchLog<'a>,
    pub(super) unacked: &'a Unacked<'a>,
    /// How the first transaction inserts the batch; each further one goes by [`Insert::OnConflict`], since
    /// the one before may have committed.
    pub(super) insert: Insert,
    pub(super) plain_inserts: &'a PlainInserts,
}

/// Why a batch was not settled.
pub(super) enum Unsettled {
    Failed(Failure),
    /// Another batch failed first; this one was not tried to its end.
    Halted,
}

impl<T: Store, D: DeadLetters> Upsert<'_, T, D> {
    /// Counts the votes and dead-letters those the store refuses: when it returns `Ok`, every
    /// delivery of the batch may be acked.
    pub(super) async fn settle(
        &self,
        votes: Votes,
        bodies: Vec<Vec<u8>>,
        replays: &[u32],
    ) -> Result<Counted, Unsettled> {
        // Transactions tried, with or without success.
        let mut attempt = 0;
        let settled = async {
            let (counted, refused) = self.count(votes.clone(), &mut attempt).await?;
            if !refused.is_empty() {
                self.dead_letter(&votes, bodies, replays, refused, attempt).await?;
            }
            Ok(counted)
        };
        let settled = settled.await;
        match &settled {
            Ok(counted) => self.batch_log.committed(counted, attempt),
            Err(Unsettled::Failed(failure)) => self.batch_log.given_up(failure, attempt),
            Err(Unsettled::Halted) => {}
        }
        settled
    }

    /// The one place where a transaction is tried again.
    async fn count(
        &self,
        batch: Votes,
        attempt: &mut u32,
    ) -> Result<(Counted, Vec<Refused>), Unsettled> {
        let Tools { store, jitter, instruments, limits, .. } = *self.tools;
        let size = batch.len();
        let mut retries = 0;
        let mut conflicts = 0;
        let mut backoff = Backoff::new(limits.retry.delay, Duration::MAX);
        let mut counted = Counted::default();
        let mut refused = Vec::new();
        let mut last_fault = None;
        let mut insert = self.insert;
        // A stack, so that parts are tried in the order of their votes.
        let mut parts = vec![batch.clone()];

        while let Some(part) = parts.pop() {
            if Instant::now() >= self.deadline {
                return Err(out_of_time(last_fault));
            }
            *attempt += 1;
            let begun = Instant::now();
            let counting = store.count(part.clone().inserted(insert));
            let fault = match instruments.spans.transaction(part.len(), counting).await {
                Ok(done) => {
                    // At once: the parts that did commit count even if another part fails.
                    instruments.committed(&done, begun);
                    self.plain_inserts.committed(&done);
                    // What differs within a batch is inserted with ON CONFLICT in any case.
                    if insert == Insert::Plain && done.attempts == 0 {
                        instruments.plain_insert(PlainInsert::Committed);
                    }
                    self.unacked.add(part.len());
                    counted.absorb(done);
                    continue;
                }
                Err(fault) => fault,
            };
            insert = Insert::OnConflict;
            self.plain_inserts.reset();
            if fault.class == Class::KnownHash {
                instruments.plain_insert(PlainInsert::Conflict);
                parts.push(part);
                continue;
            }
            instruments.database_fault(fault.class);
            let conflict = fault.class == Class::Retry && conflicts < MAX_CONFLICTS;
            let delay = match (fault.class, part.halves()) {
                (Class::Retry, _) if conflict => {
                    conflicts += 1;
                    jitter.between(CONFLICT_DELAYS.0, CONFLICT_DELAYS.1)
                }
                (Class::Retry | Class::Reconnect | Class::UnknownOutcome, _) => {
                    if retries == limits.retry.max_attempts {
                        return Err(paused(fault));
                    }
                    retries += 1;
                    jitter.stretch(backoff.next_delay())
                }
                (Class::Split | Class::Isolate, Some([first, second])) => {
                    self.batch_log.halving(&part, *attempt, &fault);
                    parts.extend([second, first]);
                    last_fault = Some(fault);
                    continue;
                }
                (Class::Isolate, None) => {
                    refused.push(Refused { index: part.range().start, fault: fault.clone() });
                    let hashes = hashes(&batch, &refused).len();
                    if IsolationBudget::exceeds_batch(hashes, size) {
                        return Err(self.systemic(hashes, size, &fault));
                    }
                    last_fault = Some(fault);
                    continue;
                }
                (Class::Split | Class::Pause | Class::Bug | Class::KnownHash, _) => {
                    return Err(paused(fault));
                }
            };
            if Instant::now() + delay >= self.deadline {
                return Err(out_of_time(Some(fault)));
            }
            self.batch_log.retrying(&part, *attempt, &fault, delay);
            tokio::select! {
                biased;
                () = self.halt.cancelled() => return Err(Unsettled::Halted),
                () = tokio::time::sleep(delay) => {}
            }
            instruments.retried(fault.sqlstate.as_deref());
            last_fault = Some(fault);
            parts.push(part);
        }
        Ok((counted, refused))
    }

    async fn dead_letter(
        &self,
        votes: &Votes,
        mut bodies: Vec<Vec<u8>>,
        replays: &[u32],
        refused: Vec<Refused>,
        attempt: u32,
    ) -> Result<(), Unsettled> {
        let Tools { dead_letters, budget, instruments, .. } = *self.tools;
        let hashes = hashes(votes, &refused);
        if !budget.fits_minute(hashes.clone())
            && let Some(Refused { fault, .. }) = refused.first()
        {
            return Err(self.systemic(hashes.len(), votes.len(), fault));
        }
        for Refused { index, fault } in refused {
            let dead_letter = DeadLetter {
                body: bodies.get_mut(index).map(std::mem::take).unwrap_or_default(),
                vote_hash: votes[index].vote_hash.to_string(),
                sqlstate: fault.sqlstate.unwrap_or_default(),
                replays: replays[index],
            };
            self.batch_log.unstorable(&dead_letter, attempt);
            let published = timeout_at(self.deadline, dead_letters.publish(&dead_letter)).await;
            published
                .unwrap_or_else(|_| {
                    Err(BrokerError::Timeout("no confirm before the batch's deadline".to_owned()))
                })
                .map_err(|lost| Unsettled::Failed(Failure::DeadLetterFailed(lost)))?;
            budget.book(&dead_letter.vote_hash);
            instruments.isolated();
            self.unacked.add(1);
        }
        Ok(())
    }

    fn systemic(&self, refused: usize, size: usize, fault: &Fault) -> Unsettled {
        self.tools.instruments.database_fault(Class::Pause);
        paused(Fault {
            class: Class::Pause,
            sqlstate: fault.sqlstate.clone(),
            message: format!(
                "{refused} of a batch of {size} votes refused: too many for faults of single \
                 votes; look for a constraint or trigger that refuses good votes: {}",
                fault.message
            ),
        })
    }
}

struct Refused {
    /// Position in the batch.
    index: usize,
    fault: Fault,
}

/// The refused votes, each once however often it was delivered.
fn hashes<'v>(votes: &'v Votes, refused: &[Refused]) -> BTreeSet<&'v str> {
    refused.iter().map(|Refused { index, .. }| votes[*index].vote_hash.as_str()).collect()
}

/// The batch's deadline has passed, `last` being the latest fault that it met.
fn out_of_time(last: Option<Fault>) -> Unsettled {
    let because = match &last {
        Some(fault) => format!("; last: {}", fault.message),
        None => ", which other batches used up".to_owned(),
    };
    paused(Fault {
        class: Class::Pause,
        sqlstate: last.and_then(|fault| fault.sqlstate),
        message: format!("not committed within the batch's time{because}"),
    })
}

const fn paused(fault: Fault) -> Unsettled {
    Unsettled::Failed(Failure::Paused(fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Semantics, section 5: more than max(3, 5 %) of a batch is a fault of the database.
    #[test]
    fn a_batch_may_lose_three_votes_or_one_in_twenty() {
        for (size, most) in [(4, 3), (10, 3), (60, 3), (79, 3), (80, 4), (100, 5), (1_000, 50)] {
            assert!(!IsolationBudget::exceeds_batch(most, size), "{most} of {size}");
            assert!(IsolationBudget::exceeds_batch(most + 1, size), "{} of {size}", most + 1);
        }
    }

    /// So are more than 20 votes in a minute, in however many batches.
    #[tokio::test(start_paused = true)]
    async fn a_minute_allows_twenty_votes_each_counted_once() {
        let budget = IsolationBudget::default();
        let hashes: Vec<String> = (0..22).map(|number| format!("hash-{number}")).collect();
        let some =
            |range: std::ops::Range<usize>| hashes[range].iter().map(String::as_str).collect();
        assert!(budget.fits_minute(some(0..20)) && !budget.fits_minute(some(0..21)));
        for hash in hashes[..19].iter().chain(&hashes[..19]) {
            budget.book(hash);
        }
        assert!(budget.fits_minute(some(0..20)), "nineteen are booked, once each");
        assert!(!budget.fits_minute(some(0..21)));
        tokio::time::advance(Duration::from_secs(59)).await;
        budget.book(&hashes[19]);
        assert!(budget.fits_minute(some(0..20)) && !budget.fits_minute(some(20..21)), "full");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(
            budget.fits_minute(some(0..19)) && !budget.fits_minute(some(0..21)),
            "one is left over"
        );
    }
}
