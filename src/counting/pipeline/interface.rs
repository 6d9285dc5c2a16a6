//! The parameters of a chain, and how it ends.

use std::time::Duration;

use super::acknowledged::Acknowledged;
use super::upsert::{IsolationBudget, RetryPolicy};
use crate::model::cell::Cell;
use crate::model::ports::{BrokerError, Fault};
use crate::platform::retry::Jitter;
use crate::platform::telemetry::{Health, Instruments};

/// Sizes and times of the chain.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Votes in a full batch.
    pub batch_size: usize,
    /// How long the first vote of a batch waits for the others.
    pub batch_timeout: Duration,
    /// Longest time from the first delivery of a batch until the last thing is begun for it: a
    /// transaction, a dead letter. Past it the batch pauses (semantics, section 6).
    pub batch_deadline: Duration,
    /// Batches being committed at the same time.
    pub in_flight: usize,
    /// Longest message body, in bytes.
    pub max_message_bytes: usize,
    /// The cell that the queue belongs to, if there are cells.
    pub cell: Option<Cell>,
    /// Most deliveries that one ack covers.
    pub most_acked: u64,
    /// Batches without a known `vote_hash` before a plain INSERT is tried; see [`super::PLAIN_AFTER`].
    pub plain_after: u32,
    pub retry: RetryPolicy,
}

/// What the chain works with besides the session, for as long as the process lives.
pub struct Tools<'a, T, D> {
    pub store: &'a T,
    pub dead_letters: &'a D,
    pub limits: &'a Limits,
    pub budget: &'a IsolationBudget,
    pub jitter: &'a Jitter,
    pub instruments: &'a Instruments,
    /// Shows after each committed batch that the database answers.
    pub health: &'a Health,
    pub acknowledged: &'a Acknowledged,
}

/// Whether the chain runs normally or tests that the store takes votes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Flowing,
    /// Ends, with everything taken settled, after the first batch that commits or once the queue is empty.
    HalfOpen,
}

/// Why a chain failed.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// The session with the broker is over; what was not acked will be delivered again.
    Lost(BrokerError),
    /// The store takes no votes for now; what is held is requeued.
    Paused(Fault),
    /// A vote that the store refuses cannot be published to the dead-letter queue; neither it nor any
    /// later delivery may be acked.
    DeadLetterFailed(BrokerError),
}

/// How a chain ended.
#[derive(Debug)]
pub struct Ended {
    /// `None`: everything taken is settled, at a stop or at the end of a half-open chain.
    pub failure: Option<Failure>,
    /// Deliveries taken and not settled: the broker requeues them with the session.
    pub held: usize,
    /// At least one delivery of the session was acked.
    pub acked: bool,
    /// A batch committed of which at least one vote was counted, now or before.
    pub committed: bool,
    /// Half-open, and the queue was empty.
    pub empty: bool,
}
