//! The dead-letter queue under an operator's eyes: each message is read once, held on the broker
//! until the end, and then removed or given back. What is not acked is never lost: the broker gives
//! it back by itself when the channel goes, however it goes.
//!
//! Looking costs: each time a message is given back, a quorum queue counts one delivery more, and
//! drops a message beyond its `x-delivery-limit`. A message that comes near is put back as a copy,
//! confirmed, before the original is acked: a copy starts from nought.

mod finish;
mod letter;
mod limit;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{FuturesUnordered, SelectAll};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, Consumer};
use tokio::time::timeout;

pub use self::letter::Letter;
pub use self::limit::DeliveryLimit;
use super::connect::{self, amqp_code};
use super::refusal::is_out_of_reach;
use super::session::{lost, sent};
use super::{OPEN_TIMEOUT, Publisher, topology};
use crate::config::RabbitMq as Config;
use crate::ports::{DeliveryTag, Lost, OpenError};

/// Deliveries that the first consumer holds. Where more have to be held, another consumer is begun: a
/// prefetch for all of them would have the broker send everything at once, into our memory.
const FIRST_WINDOW: u16 = 50;
/// What each further consumer may hold: of messages as large as those before, about this much.
const WINDOW_BYTES: u64 = 8 << 20;
const WINDOW: RangeInclusive<u64> = 10..=500;
/// Bodies and headers that the broker holds for us; a classic queue has them in memory.
const HELD_BYTES_AT_MOST: usize = 128 << 20;
/// Without a delivery for this long, the queue is asked whether it is empty.
const QUIET: Duration = Duration::from_secs(2);
/// Longest wait for an answer, and for a delivery that the queue owes us.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Copies on their way to a confirm at a time.
const COPIES_AT_MOST: usize = 200;

/// What was left in the queue at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GivenBack {
    /// Messages that were put back as copies, since the queue would have dropped them soon.
    pub copied: u64,
    /// Whether all others were seen to be back.
    pub arrived: bool,
}

/// The dead-letter queue, being read from its beginning to where its end was when it was opened.
pub struct DeadLetterQueue {
    config: Config,
    connection: Connection,
    channel: Channel,
    deliveries: SelectAll<Consumer>,
    consumers: Vec<ShortString>,
    /// What all consumers may hold.
    capacity: usize,
    depth: u64,
    limit: DeliveryLimit,
    hold_at_most: usize,
    /// Messages read that were there when it was opened. Tags count the deliveries of a channel in
    /// their order, so they say which ones those are; consumers come to be heard in any order.
    read: u64,
    bytes_read: u64,
    /// What is neither acked nor given back, with its size.
    held: BTreeMap<DeliveryTag, usize>,
    held_bytes: usize,
    full: bool,
    /// Something was acked, and the queue may not know yet.
    removed: bool,
    /// On a connection of its own: a blocked one must not hold up acks.
    copier: Option<Publisher>,
    copies: FuturesUnordered<Copying>,
    given_back: GivenBack,
}

type Copying = std::pin::Pin<Box<dyn Future<Output = (DeliveryTag, Result<(), Lost>)> + Send>>;

impl DeadLetterQueue {
    /// Connects and asks how many messages there are. Of those at most `hold_at_most` are held at
    /// the same time.
    ///
    /// # Errors
    /// [`OpenError`]; a queue that does not exist is [`OpenError::Configuration`].
    pub async fn open(config: &Config, hold_at_most: usize) -> Result<Self, OpenError> {
        match timeout(OPEN_TIMEOUT, Self::connect(config, hold_at_most)).await {
            Ok(opened) => opened,
            Err(_) => Err(OpenError::Unavailable(format!(
                "{} did not tell about {} within {OPEN_TIMEOUT:?}",
                connect::describe(config),
                config.dead_letter_queue
            ))),
        }
    }

    async fn connect(config: &Config, hold_at_most: usize) -> Result<Self, OpenError> {
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
        let depth = depth(&channel, config).await.map_err(|e| refused(&e))?;
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
            hold_at_most,
            read: 0,
            bytes_read: 0,
            held: BTreeMap::new(),
            held_bytes: 0,
            full: false,
            removed: false,
            copier: None,
            copies: FuturesUnordered::new(),
            given_back: GivenBack::default(),
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

    /// What is known of the queue's delivery limit.
    pub fn limit(&self) -> DeliveryLimit {
        self.limit
    }

    /// Whether [`DeadLetterQueue::next`] ended because no more may be held, and not because there
    /// was nothing left to read.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// The next message, in the order of the queue; `None` behind the last one that was there when
    /// the queue was opened, or when no more may be held. What comes in later, or comes back, is not
    /// read. Each one is to be [removed](Self::remove) or [kept](Self::keep).
    ///
    /// # Errors
    /// [`Lost`] when the broker is gone or delivers nothing: everything is still in the queue.
    pub async fn next(&mut self) -> Result<Option<Letter>, Lost> {
        if self.read >= self.depth {
            return Ok(None);
        }
        self.full = self.held.len() >= self.hold_at_most || self.held_bytes >= HELD_BYTES_AT_MOST;
        if self.full {
            return Ok(None);
        }
        let (mut waited, mut empty) = (Duration::ZERO, 0);
        loop {
            if self.held.len() >= self.capacity {
                self.widen().await?;
            }
            let next = match timeout(QUIET, self.deliveries.next()).await {
                Ok(next) => next,
                // RabbitMQ takes seconds to encode one message whose headers nest deep, and answers
                // behind it: what is delivered meanwhile comes first.
                Err(_) => tokio::select! {
                    biased;
                    next = self.deliveries.next() => next,
                    ready = answered("passive declare", depth(&self.channel, &self.config)) => {
                        waited += QUIET;
                        empty = if ready? == 0 { empty + 1 } else { 0 };
                        // Somebody else may have taken what was counted; what is on its way to us
                        // is not ready either, hence twice.
                        if empty == 2 {
                            return Ok(None);
                        }
                        if waited < ANSWER_TIMEOUT {
                            continue;
                        }
                        return Err(Lost(format!(
                            "the queue has messages, and none was delivered within {waited:?}: is \
                             another consumer the only one allowed (x-single-active-consumer)?"
                        )));
                    }
                },
            };
            let delivery = match next {
                Some(delivery) => delivery.map_err(|error| lost("consume", &error))?,
                None => {
                    return Err(Lost(
                        "the broker ended the consumer: the queue was deleted, or lost its leader"
                            .to_owned(),
                    ));
                }
            };
            let letter = self.hold(delivery);
            if letter.tag <= self.depth {
                self.read += 1;
                self.bytes_read += letter.size() as u64;
                return Ok(Some(letter));
            }
            // Came in, or came back, after the beginning.
            self.keep(&letter).await?;
        }
    }

    /// Takes a message out of the queue for good. The broker has it done for certain once
    /// [`DeadLetterQueue::finish`] returns.
    ///
    /// # Errors
    /// [`Lost`]: then it is still there.
    pub async fn remove(&mut self, tag: DeliveryTag) -> Result<(), Lost> {
        sent("ack", self.channel.basic_ack(tag, BasicAckOptions::default())).await?;
        self.removed = true;
        if let Some(size) = self.held.remove(&tag) {
            self.held_bytes -= size;
        }
        Ok(())
    }

    /// Leaves a message in the queue; it goes back at the end, or at once as a copy when the queue
    /// would drop it otherwise.
    ///
    /// # Errors
    /// [`Lost`] when a copy is needed and can't be published: the message itself is still there.
    pub async fn keep(&mut self, letter: &Letter) -> Result<(), Lost> {
        if !self.limit.is_near(letter.given_back()) {
            return Ok(());
        }
        if self.copier.is_none() {
            self.copier = Some(self.open_copier().await?);
        }
        if let Some(copier) = &self.copier {
            let confirm = copier.copy(&self.config.dead_letter_queue, letter).await?;
            let tag = letter.tag;
            self.copies.push(Box::pin(async move { (tag, confirm.await.map_err(Lost::from)) }));
        }
        while self.copies.len() >= COPIES_AT_MOST {
            self.copied().await?;
        }
        Ok(())
    }

    fn hold(&mut self, delivery: Delivery) -> Letter {
        let tag = delivery.delivery_tag;
        let letter = Letter::delivered(tag, delivery.data, delivery.properties);
        let size = letter.size();
        self.held.insert(tag, size);
        self.held_bytes += size;
        letter
    }

    /// Begins another consumer.
    async fn widen(&mut self) -> Result<(), Lost> {
        let window = match self.bytes_read / self.read.max(1) {
            0 if self.read == 0 => FIRST_WINDOW,
            mean => {
                let fitting = WINDOW_BYTES / mean.max(1);
                u16::try_from(fitting.clamp(*WINDOW.start(), *WINDOW.end())).unwrap_or(FIRST_WINDOW)
            }
        };
        // For the consumers that are begun from now on.
        let each_consumer = BasicQosOptions { global: false };
        answered("qos", self.channel.basic_qos(window, each_consumer)).await?;
        let consuming = self.channel.basic_consume(
            self.config.dead_letter_queue.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = answered("consume", consuming).await?;
        self.capacity += usize::from(window);
        self.consumers.push(consumer.tag());
        self.deliveries.push(consumer);
        Ok(())
    }

    async fn ready(&self) -> Result<u64, Lost> {
        answered("passive declare", depth(&self.channel, &self.config)).await
    }

    async fn open_copier(&self) -> Result<Publisher, Lost> {
        let connection = connect::open(&self.config, "dead letters, copies").await;
        let connection = connection.map_err(|error| Lost(error.to_string()))?;
        answered("confirm.select", Publisher::on(connection, &self.config)).await
    }

    /// Acks an original whose copy is confirmed.
    async fn copied(&mut self) -> Result<(), Lost> {
        let confirmed = timeout(ANSWER_TIMEOUT, self.copies.next()).await;
        match confirmed {
            Ok(Some((tag, Ok(())))) => {
                self.remove(tag).await?;
                self.given_back.copied += 1;
                Ok(())
            }
            Ok(Some((_, Err(lost)))) => {
                Err(Lost(format!("a copy near the delivery limit: {lost}")))
            }
            Ok(None) => Ok(()),
            Err(_) => Err(Lost(format!(
                "no confirm for a copy within {ANSWER_TIMEOUT:?}; is the broker blocked by a memory \
                 or disk alarm?"
            ))),
        }
    }
}

async fn depth(channel: &Channel, config: &Config) -> Result<u64, lapin::Error> {
    let queue = config.dead_letter_queue.as_str().into();
    let declared = channel.queue_declare(queue, topology::PASSIVE, FieldTable::default()).await?;
    Ok(declared.message_count().into())
}

/// Waits for the broker's reply; a frozen one never sends it.
async fn answered<T>(what: &str, asked: impl Future<Output = lapin::Result<T>>) -> Result<T, Lost> {
    match timeout(ANSWER_TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(|error| lost(what, &error)),
        Err(_) => Err(Lost(format!("{what}: no answer from the broker within {ANSWER_TIMEOUT:?}"))),
    }
}
