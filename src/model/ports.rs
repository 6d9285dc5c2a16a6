//! What the pipeline needs: a stream of deliveries, a channel that settles them, a store that counts,
//! and a place for votes that cannot be stored. The broker and the store implement these; so does a simulation of both.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::time::SystemTime;

use compact_str::CompactString;
use futures::Stream;
use strum::IntoStaticStr;

use crate::model::vote::Vote;

/// Number of a delivery on its channel: 1, 2, 3, …; means nothing on any other channel.
pub type DeliveryTag = u64;

/// One message as the broker handed it over.
#[derive(Clone, PartialEq, Eq)]
pub struct Delivery {
    pub tag: DeliveryTag,
    pub body: Vec<u8>,
    /// When it was published, if its publisher set that. Only for metrics.
    pub published_at: Option<SystemTime>,
    pub trace: TraceContext,
    /// How often an operator put it back from the dead-letter queue.
    pub replays: u32,
    /// Whether its properties were valid; a message without is malformed, whatever its body.
    pub valid_properties: bool,
    /// The broker's flag. A hint for speed alone, and never decided by: after a crash of the broker it is
    /// set on messages that were never delivered.
    pub redelivered: bool,
}

impl Delivery {
    /// A delivery of which nothing but its body is known.
    pub const fn new(tag: DeliveryTag, body: Vec<u8>) -> Self {
        Self {
            tag,
            body,
            published_at: None,
            trace: TraceContext(None),
            replays: 0,
            valid_properties: true,
            redelivered: false,
        }
    }
}

/// The trace that a message belongs to, as its publisher wrote it: read only where traces are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext(Option<Box<str>>);

impl TraceContext {
    /// Longer than any W3C `traceparent` of today; a longer one is ignored.
    const MAX_LENGTH: usize = 128;

    /// Of the text of a W3C `traceparent` header.
    pub fn new(traceparent: &str) -> Self {
        let fits = !traceparent.is_empty() && traceparent.len() <= Self::MAX_LENGTH;
        Self(fits.then(|| traceparent.into()))
    }

    pub fn traceparent(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

/// Leaves the body out: it shows who voted what.
impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("tag", &self.tag).finish_non_exhaustive()
    }
}

/// Why the broker did not do what it was asked to.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BrokerError {
    /// The connection, the channel or the consumer has ended.
    #[error("{action}: {source}")]
    Disconnected { action: &'static str, source: Arc<dyn Error + Send + Sync> },
    #[error("{0}")]
    Timeout(String),
    /// The broker does not take the message now.
    #[error("publish not confirmed: the broker refused it: {0}")]
    Refused(&'static str),
    /// There is no such queue. The AMQP client may report it for another message under way.
    #[error("publish not confirmed: the broker returned it: no such queue")]
    Returned,
    /// The connection could not be opened, or the broker refuses the message at every try.
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl BrokerError {
    pub fn disconnected(
        action: &'static str,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::Disconnected { action, source: source.into().into() }
    }
}

/// By their messages: a source cannot be compared.
impl PartialEq for BrokerError {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

/// One channel's settlement. Never used for a delivery of any other channel.
pub trait Channel: Send + Sync {
    /// `basic.ack` with `multiple`: every delivery up to and including `tag` is done with.
    ///
    /// # Errors
    /// [`BrokerError`] when the channel is dead: then nothing was acked.
    fn ack_up_to(&self, tag: DeliveryTag) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// `basic.reject` without requeue: the broker dead-letters the message.
    ///
    /// # Errors
    /// [`BrokerError`] when the channel is dead: then the message will be delivered again.
    fn reject(&self, tag: DeliveryTag) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// `basic.cancel`: no delivery is sent after its reply; the stream ends behind those that were.
    ///
    /// # Errors
    /// [`BrokerError`] when the channel is dead or the broker did not answer.
    fn cancel(&self) -> impl Future<Output = Result<(), BrokerError>> + Send;
}

/// Connection → channel → prefetch → consume: from the first delivery to the first error.
pub trait Session: Send {
    type Channel: Channel;
    type Deliveries: Stream<Item = Result<Delivery, BrokerError>> + Send;

    /// The two halves the pipeline runs on. The deliveries can be taken once.
    fn split(&mut self) -> (&Self::Channel, Self::Deliveries);

    /// Requeues everything that is held: cancel, `basic.nack` of all with requeue, close.
    fn requeue(self) -> impl Future<Output = ()> + Send;

    /// Closes channel and connection, and waits for the replies. They prove nothing about acks: for
    /// a quorum queue a channel holds acks back while 32 others are under way, and forgets those
    /// when it is closed. Those votes are committed; they come again and are replays then.
    ///
    /// # Errors
    /// [`BrokerError`] when the broker did not answer.
    fn close(self) -> impl Future<Output = Result<(), BrokerError>> + Send;
}

/// Why no session could be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Credentials or permissions (AMQP 403), or a client's certificate that the broker refuses.
    #[error("{0}")]
    Credentials(String),
    /// Something that the configuration names is not there (AMQP 530: the virtual host), or the
    /// broker's certificate is not trusted.
    #[error("{0}")]
    Configuration(String),
    /// Another client holds what is needed: connections up to a limit, the queue exclusively. Waited
    /// for, as [`OpenError::Unavailable`] is; `phrase` is what readiness shows of it.
    #[error("{message}")]
    Occupied { phrase: &'static str, message: String },
    /// Anything else: the broker is down, or coming up.
    #[error("{0}")]
    Unavailable(String),
}

impl OpenError {
    /// Whether the service gives up at start. Later on it waits, as the cause may be fixed meanwhile.
    pub const fn is_fatal_at_start(&self) -> bool {
        matches!(self, Self::Credentials(_) | Self::Configuration(_))
    }
}

/// Opens sessions.
pub trait Broker: DeadLetters {
    type Session: Session;

    /// Connects, makes sure of the queue, and consumes with at most `prefetch` unsettled deliveries.
    ///
    /// # Errors
    /// [`OpenError`] with what was refused.
    fn open(&self, prefetch: u16) -> impl Future<Output = Result<Self::Session, OpenError>> + Send;
}

/// A vote the store refuses for what is in it.
#[derive(Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The message as it was published.
    pub body: Vec<u8>,
    pub vote_hash: String,
    /// SQLSTATE of the refusal.
    pub sqlstate: String,
    /// As its delivery had it: bounds how often a message is replayed.
    pub replays: u32,
}

/// Where isolated votes go.
pub trait DeadLetters: Send + Sync {
    /// Publishes one message: mandatory, persistent, and confirmed by the broker on return.
    ///
    /// # Errors
    /// [`BrokerError`] when the confirm did not come: the message may or may not be in the queue.
    fn publish(&self, message: &DeadLetter)
    -> impl Future<Output = Result<(), BrokerError>> + Send;
}

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

    #[test]
    fn a_delivery_is_shown_by_its_tag_and_without_its_body() {
        let shown = format!("{:?}", Delivery::new(7, b"who voted what".to_vec()));
        assert_eq!(shown, "Delivery { tag: 7, .. }");
    }

    #[test]
    fn a_traceparent_is_kept_as_it_is_unless_it_can_be_none() {
        let known = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(TraceContext::new(known).traceparent(), Some(known));
        let long = "0".repeat(TraceContext::MAX_LENGTH + 1);
        for none in ["", &long] {
            assert_eq!(TraceContext::new(none).traceparent(), None);
        }
    }
}
