//! What counting asks of the broker: deliveries, their settlement, and a place for votes that cannot be
//! stored.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::Stream;

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
    /// The broker ended the consumer, without a reason. `timeout`: the consumer time-out that it applies to
    /// it, where that is known.
    #[error("the broker ended the consumer: the queue was deleted, moved or lost its leader")]
    ConsumerEnded { timeout: Option<Duration> },
    /// A delivery was held for too long. All that are held are in the queue again.
    #[error("consumer time-out, all votes that are held are delivered again: {0}")]
    ConsumerTimeout(String),
    /// The connection is open, and its node cannot reach the queue.
    #[error("{0}")]
    OutOfReach(String),
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

    /// The address of its server, for the log.
    fn address(&self) -> Option<String> {
        None
    }

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

#[cfg(test)]
mod tests {
    use super::*;

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
