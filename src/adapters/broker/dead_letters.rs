//! The dead-letter queue for an operator's commands: each message is read once, stays unacked until
//! the end, and is then acked or requeued. What is not acked is never lost: the broker requeues it
//! when the channel closes, for whatever reason.
//!
//! Each requeue counts as a delivery, and a quorum queue drops a message beyond its
//! `x-delivery-limit`. A message close to the limit is republished, confirmed, and then acked: the
//! copy's count starts at zero.

mod finish;
mod limit;
mod message;
mod republish;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::stream::SelectAll;
use futures::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, Consumer};
use tokio::time::timeout;

pub use self::limit::DeliveryLimit;
pub use self::message::DeadLetterMessage;
pub use self::republish::{Confirmed, Republisher};
use super::connect::{self, amqp_code};
use super::refusal::is_out_of_reach;
use super::session::{lost, sent};
use super::{OPEN_TIMEOUT, Publisher, topology};
use crate::model::ports::{DeliveryTag, Lost, OpenError};
use crate::platform::config::RabbitMq as Config;

/// Prefetch of the first consumer. To hold more, another consumer is added: one prefetch for all of
/// them would buffer the whole queue in this process. (`basic.get` needs no prefetch, but reads a
/// quorum queue at 1,200 messages a second: measured on RabbitMQ 3.10.8.)
const FIRST_PREFETCH: u64 = 50;
/// Bytes that each further consumer may have in flight, by the mean size so far.
const PREFETCH_BYTES: u64 = 8 << 20;
/// Bodies and headers that stay unacked; a classic queue has them in memory.
const MAX_HELD_BYTES: usize = 128 << 20;
/// Longest wait for a reply or for the next delivery. RabbitMQ takes seconds to encode one message
/// with deeply nested headers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What was left in the queue at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequeueReport {
    /// Messages replaced by a copy because they were close to the delivery limit.
    pub copied: u64,
    /// Whether all others were seen to be ready again.
    pub complete: bool,
}

/// Reads the dead-letter queue up to the message that was its last when it was opened.
pub struct DeadLetterQueue {
    config: Config,
    connection: Connection,
    channel: Channel,
    deliveries: SelectAll<Consumer>,
    consumers: Vec<ShortString>,
    /// Sum of the consumers' prefetch counts.
    capacity: usize,
    depth: u64,
    limit: DeliveryLimit,
    max_held: usize,
    read: u64,
    bytes_read: u64,
    /// Unacked messages with their sizes in bytes.
    held: BTreeMap<DeliveryTag, usize>,
    held_bytes: usize,
    /// Acks were sent that the queue may not have applied.
    acks_pending: bool,
    copies: Option<Republisher>,
    copied: u64,
}

impl DeadLetterQueue {
    /// Connects and reads the number of ready messages. At most `max_held` messages stay unacked at
    /// the same time.
    ///
    /// # Errors
    /// [`OpenError`]; a queue that does not exist is [`OpenError::Configuration`].
    pub async fn open(config: &Config, max_held: usize) -> Result<Self, OpenError> {
        match timeout(OPEN_TIMEOUT, Self::connect(config, max_held)).await {
            Ok(opened) => opened,
            Err(_) => Err(OpenError::Unavailable(format!(
                "{} did not open {} within {OPEN_TIMEOUT:?}",
                connect::describe(config),
                config.dead_letter_queue
            ))),
        }
    }

    async fn connect(config: &Config, max_held: usize) -> Result<Self, OpenError> {
        let refused = |error: &lapin::Error| match amqp_code(error) {
            Some(404) if !is_out_of_reach(error) => OpenError::Configuration(format!(
                "there is no queue {:?} on {}. The service creates it when it starts; \
                 RABBITMQ_DEAD_LETTER_QUEUE names another",
                config.dead_letter_queue,
                connect::describe(config)
            )),
            _ => connect::refused(config, error),
        };
        let connection = connect::open(config, "dead letters, by hand").await?;
        let channel = connection.create_channel().await.map_err(|e| refused(&e))?;
        let depth = ready(&channel, config).await.map_err(|e| refused(&e))?;
        let limit = topology::delivery_limit(&connection, config).await;
        Ok(Self {
            config: config.clone(),
            connection,
            channel,
            deliveries: SelectAll::new(),
            consumers: Vec::new(),
            capacity: 0,
            depth,
            limit,
            max_held,
            read: 0,
            bytes_read: 0,
            held: BTreeMap::new(),
            held_bytes: 0,
            acks_pending: false,
            copies: None,
            copied: 0,
        })
    }

    /// Messages that were ready when it was opened.
    pub fn depth(&self) -> u64 {
        self.depth
    }

    /// Messages read so far.
    pub fn read(&self) -> u64 {
        self.read
    }

    /// The queue's delivery limit, as far as it is known.
    pub fn limit(&self) -> DeliveryLimit {
        self.limit
    }

    /// Whether [`DeadLetterQueue::next`] ends early because no more messages may stay unacked.
    pub fn is_full(&self) -> bool {
        self.read < self.depth
            && (self.held.len() >= self.max_held || self.held_bytes >= MAX_HELD_BYTES)
    }

    /// Returns the next message in the queue's order; `None` after the last one that was there when
    /// the queue was opened, or when no more may stay unacked. Messages that arrived or came back
    /// later are not returned. Each message is to be [acked](Self::ack) or [kept](Self::keep).
    ///
    /// # Errors
    /// [`Lost`] when the connection is lost or nothing is delivered: everything is still queued.
    pub async fn next(&mut self) -> Result<Option<DeadLetterMessage>, Lost> {
        while self.read < self.depth && !self.is_full() {
            if self.held.len() >= self.capacity {
                self.add_consumer().await?;
            }
            let next = match timeout(ANSWER_TIMEOUT, self.deliveries.next()).await {
                Ok(next) => next,
                Err(_) if self.ready().await? == 0 => {
                    // Delivered meanwhile, or another consumer took what was counted.
                    let Some(next) = self.deliveries.next().now_or_never() else {
                        return Ok(None);
                    };
                    next
                }
                Err(_) => {
                    return Err(Lost(format!(
                        "the queue has messages, and none was delivered within \
                         {ANSWER_TIMEOUT:?}: is another consumer the only one allowed \
                         (x-single-active-consumer)?"
                    )));
                }
            };
            let Some(delivery) = next else {
                return Err(Lost(
                    "the broker cancelled the consumer: the queue was deleted, or lost its leader"
                        .to_owned(),
                ));
            };
            let message = self.hold(delivery.map_err(|error| lost("consume", &error))?);
            // Tags count a channel's deliveries in the queue's order, whichever consumer has them.
            if message.tag <= self.depth {
                self.read += 1;
                self.bytes_read += message.size() as u64;
                return Ok(Some(message));
            }
            self.keep(message).await?;
        }
        Ok(None)
    }

    /// Removes a message from the queue. The broker has applied it once [`DeadLetterQueue::finish`]
    /// returns.
    ///
    /// # Errors
    /// [`Lost`]: the message is still queued.
    pub async fn ack(&mut self, tag: DeliveryTag) -> Result<(), Lost> {
        sent("ack", self.channel.basic_ack(tag, BasicAckOptions::default())).await?;
        self.acks_pending = true;
        self.held_bytes -= self.held.remove(&tag).unwrap_or_default();
        Ok(())
    }

    /// Leaves a message in the queue: it is requeued at the end, or replaced by a copy if the queue
    /// might drop it.
    ///
    /// # Errors
    /// [`Lost`] when a copy is needed and cannot be published: the message itself is still queued.
    pub async fn keep(&mut self, message: DeadLetterMessage) -> Result<(), Lost> {
        if !self.limit.is_near(message.delivery_count()) {
            return Ok(());
        }
        let copies = match &mut self.copies {
            Some(copies) => copies,
            // On a connection of its own: a blocked one must not hold up acks.
            none => none.insert(open_copies(&self.config).await?),
        };
        copies.copy(&self.config.dead_letter_queue, message).await?;
        if copies.is_full() {
            self.ack_copied().await?;
        }
        Ok(())
    }

    fn hold(&mut self, delivery: Delivery) -> DeadLetterMessage {
        let tag = delivery.delivery_tag;
        let message = DeadLetterMessage::delivered(tag, delivery.data, delivery.properties);
        self.held.insert(tag, message.size());
        self.held_bytes += message.size();
        message
    }

    /// Acks the originals of all copies, once those are confirmed.
    async fn ack_copied(&mut self) -> Result<(), Lost> {
        let Some(copies) = &mut self.copies else {
            return Ok(());
        };
        let Confirmed { messages, error, .. } = copies.confirms().await?;
        for message in messages {
            self.ack(message.tag).await?;
            self.copied += 1;
        }
        match error {
            Some(error) => Err(Lost(format!("a copy near the delivery limit: {error}"))),
            None => Ok(()),
        }
    }

    async fn add_consumer(&mut self) -> Result<(), Lost> {
        let prefetch = match self.bytes_read.checked_div(self.read) {
            Some(mean) => (PREFETCH_BYTES / mean.max(1)).clamp(10, 500),
            None => FIRST_PREFETCH,
        };
        let prefetch = u16::try_from(prefetch).unwrap_or(u16::MAX);
        // Not global: for the consumers that are added from now on.
        let qos = self.channel.basic_qos(prefetch, BasicQosOptions { global: false });
        answered("qos", qos).await?;
        let consume = self.channel.basic_consume(
            self.config.dead_letter_queue.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = answered("consume", consume).await?;
        self.capacity += usize::from(prefetch);
        self.consumers.push(consumer.tag());
        self.deliveries.push(consumer);
        Ok(())
    }

    async fn ready(&self) -> Result<u64, Lost> {
        answered("passive declare", ready(&self.channel, &self.config)).await
    }
}

async fn open_copies(config: &Config) -> Result<Republisher, Lost> {
    let connection = connect::open(config, "dead letters, copies").await;
    let connection = connection.map_err(|error| Lost(error.to_string()))?;
    let publisher = answered("confirm.select", Publisher::on(connection, config)).await?;
    Ok(Republisher::new(publisher))
}

async fn ready(channel: &Channel, config: &Config) -> Result<u64, lapin::Error> {
    let queue = config.dead_letter_queue.as_str().into();
    let declared = channel.queue_declare(queue, topology::PASSIVE, FieldTable::default()).await?;
    Ok(declared.message_count().into())
}

/// Waits for the broker's reply; a frozen broker never sends it.
async fn answered<T>(what: &str, reply: impl Future<Output = lapin::Result<T>>) -> Result<T, Lost> {
    match timeout(ANSWER_TIMEOUT, reply).await {
        Ok(answer) => answer.map_err(|error| lost(what, &error)),
        Err(_) => Err(Lost(format!("{what}: no answer from the broker within {ANSWER_TIMEOUT:?}"))),
    }
}
