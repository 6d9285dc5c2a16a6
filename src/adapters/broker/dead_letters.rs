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
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};
use tokio::time::timeout;

pub use self::limit::DeliveryLimit;
pub use self::message::DeadLetterMessage;
pub use self::republish::{Confirmed, Republisher};
use super::connect::{self, Opened, amqp_code};
use super::refusal::is_out_of_reach;
use super::session::{SEND_TIMEOUT, within};
use super::{OPEN_TIMEOUT, Publisher, topology};
use crate::model::ports::{BrokerError, DeliveryTag, OpenError};
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
        let what = format!("open {}", config.dead_letter_queue);
        connect::within(config, OPEN_TIMEOUT, &what, Self::connect(config, max_held)).await
    }

    async fn connect(config: &Config, max_held: usize) -> Result<Self, OpenError> {
        let Opened { connection, config, .. } =
            connect::open(config, "dead letters, by hand").await?;
        let opening = async {
            let channel = connection.create_channel().await?;
            let depth = ready(&channel, &config).await?;
            Ok((channel, depth))
        };
        let (channel, depth) = opening.await.map_err(|error| match amqp_code(&error) {
            Some(404) if !is_out_of_reach(&error) => OpenError::Configuration(format!(
                "there is no queue {:?} on {}. The service creates it when it starts; \
                 RABBITMQ_DEAD_LETTER_QUEUE names another",
                config.dead_letter_queue,
                connect::describe(&config)
            )),
            _ => connect::refused(&config, &error),
        })?;
        let limit = topology::delivery_limit(&connection, &config).await;
        Ok(Self {
            config,
            connection,
            channel,
            deliveries: SelectAll::new(),
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
    /// [`BrokerError`] when the connection is lost or nothing is delivered: everything is still queued.
    pub async fn next(&mut self) -> Result<Option<DeadLetterMessage>, BrokerError> {
        while self.read < self.depth && !self.is_full() {
            if self.held.len() >= self.capacity {
                self.add_consumer().await?;
            }
            let next = match timeout(ANSWER_TIMEOUT, self.deliveries.next()).await {
                Ok(next) => next,
                Err(_) if self.ready().await? > 0 => {
                    return Err(BrokerError::Timeout(format!(
                        "the queue has messages, and none was delivered within \
                         {ANSWER_TIMEOUT:?}: is another consumer the only one allowed \
                         (x-single-active-consumer)?"
                    )));
                }
                // Delivered meanwhile, or another consumer took what was counted.
                Err(_) => match self.deliveries.next().now_or_never() {
                    Some(next) => next,
                    None => return Ok(None),
                },
            };
            let delivery = next.ok_or_else(|| {
                BrokerError::disconnected(
                    "the broker cancelled the consumer",
                    "the queue was deleted, or lost its leader",
                )
            })?;
            let message = self.hold(delivery)?;
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
    /// [`BrokerError`]: the message is still queued.
    pub async fn ack(&mut self, tag: DeliveryTag) -> Result<(), BrokerError> {
        let ack = self.channel.basic_ack(tag, BasicAckOptions::default());
        within(SEND_TIMEOUT, "ack", ack).await?;
        self.acks_pending = true;
        self.held_bytes -= self.held.remove(&tag).unwrap_or_default();
        Ok(())
    }

    /// Leaves a message in the queue: it is requeued at the end, or replaced by a copy if the queue
    /// might drop it.
    ///
    /// # Errors
    /// [`BrokerError`] when a copy is needed and cannot be published: the message itself is still queued.
    pub async fn keep(&mut self, message: DeadLetterMessage) -> Result<(), BrokerError> {
        if !self.limit.is_near(message.delivery_count()) {
            return Ok(());
        }
        let copies = match &mut self.copies {
            Some(copies) => copies,
            // On a connection of its own: a blocked one must not hold up acks.
            none => {
                let opened = connect::open(&self.config, "dead letters, copies").await?;
                let publisher = Publisher::on(opened.connection, &self.config);
                none.insert(Republisher::new(answered("confirm.select", publisher).await?))
            }
        };
        let properties = message.copied();
        copies.publish(&self.config.dead_letter_queue, message, properties).await?;
        if copies.is_full() {
            self.ack_copied().await?;
        }
        Ok(())
    }

    fn hold(
        &mut self,
        delivery: lapin::Result<Delivery>,
    ) -> Result<DeadLetterMessage, BrokerError> {
        let delivery = delivery.map_err(|error| BrokerError::disconnected("consume", error))?;
        let tag = delivery.delivery_tag;
        let message = DeadLetterMessage::delivered(tag, delivery.data, delivery.properties);
        self.held.insert(tag, message.size());
        self.held_bytes += message.size();
        Ok(message)
    }

    /// Acks the originals of all copies, once those are confirmed.
    async fn ack_copied(&mut self) -> Result<(), BrokerError> {
        let Some(copies) = &mut self.copies else {
            return Ok(());
        };
        let Confirmed { messages, error, .. } = copies.confirms().await?;
        for message in messages {
            self.ack(message.tag).await?;
            self.copied += 1;
        }
        error.map_or(Ok(()), Err)
    }

    async fn add_consumer(&mut self) -> Result<(), BrokerError> {
        let prefetch = match self.bytes_read.checked_div(self.read) {
            Some(mean) => (PREFETCH_BYTES / mean.max(1)).clamp(10, 500),
            None => FIRST_PREFETCH,
        };
        let prefetch = u16::try_from(prefetch).unwrap_or(u16::MAX);
        let consuming = async {
            // Not global: for the consumers that are added from now on.
            self.channel.basic_qos(prefetch, BasicQosOptions { global: false }).await?;
            let queue = self.config.dead_letter_queue.as_str().into();
            let options = BasicConsumeOptions::default();
            self.channel.basic_consume(queue, "".into(), options, FieldTable::default()).await
        };
        self.deliveries.push(answered("consume", consuming).await?);
        self.capacity += usize::from(prefetch);
        Ok(())
    }

    async fn ready(&self) -> Result<u64, BrokerError> {
        answered("passive declare", ready(&self.channel, &self.config)).await
    }
}

async fn ready(channel: &Channel, config: &Config) -> Result<u64, lapin::Error> {
    let queue = config.dead_letter_queue.as_str().into();
    let declared = channel.queue_declare(queue, topology::passive(), FieldTable::default()).await?;
    Ok(declared.message_count().into())
}

/// Waits for the broker's reply.
async fn answered<T>(
    action: &'static str,
    reply: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    within(ANSWER_TIMEOUT, action, reply).await
}
