//! Publishes for as long as it is told to, past every proxy, and keeps the ledger.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection, PublisherConfirm};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::Result;
use crate::ledger::Ledger;
use crate::servers::Servers;
use crate::traffic::{Message, Traffic};

const PERSISTENT: u8 = 2;
/// Messages on their way to a confirm at a time.
const UNCONFIRMED_AT_MOST: usize = 1_000;
/// An even rate, in portions.
const TICK: Duration = Duration::from_millis(20);
/// Without a confirm for so long, the connection is given up. Longer than a memory alarm, so that
/// some alarms end with the same connection.
const SILENCE: Duration = Duration::from_secs(15);
/// Messages until the publisher itself falls over, without waiting for what is unconfirmed: most of
/// that arrives, and nobody knows.
const STUMBLE_AFTER: std::ops::Range<usize> = 3_000..10_000;
/// For what is left when the traffic ends.
const LAST_CONFIRMS: Duration = Duration::from_secs(60);

pub struct Publisher {
    pub servers: Arc<Servers>,
    pub queue: String,
    pub ledger: Arc<Mutex<Ledger>>,
    /// Messages a second.
    pub rate: u32,
    /// Above it, nothing is published until votes are counted.
    pub backlog: u64,
    /// Votes counted so far, as the watch sees them.
    pub counted: Arc<AtomicU64>,
    /// Of unconfirmed messages, the share that is published again.
    pub again: f64,
    pub rng: fastrand::Rng,
}

impl Publisher {
    /// Publishes until `stop`; then until what is to be published again is confirmed.
    ///
    /// # Errors
    /// When the broker confirms nothing for a long time after the end of the traffic.
    pub async fn run(mut self, mut traffic: Traffic, stop: CancellationToken) -> Result<()> {
        let mut again = VecDeque::new();
        let last = async {
            stop.cancelled().await;
            sleep(LAST_CONFIRMS).await;
        };
        tokio::select! {
            done = self.publish(&mut traffic, &mut again, &stop) => done,
            () = last => Err("RabbitMQ does not confirm the last messages".into()),
        }
    }

    async fn publish(
        &mut self,
        traffic: &mut Traffic,
        again: &mut VecDeque<Message>,
        stop: &CancellationToken,
    ) -> Result<()> {
        loop {
            let connected = match self.servers.amqp().await {
                Ok(connection) => {
                    confirming(&connection).await.map(|channel| (connection, channel))
                }
                Err(error) => Err(error),
            };
            let Ok((connection, channel)) = connected else {
                sleep(Duration::from_millis(300)).await;
                continue;
            };
            let mut unconfirmed = Unconfirmed::default();
            let done = self.use_up(&channel, traffic, again, &mut unconfirmed, stop).await?;
            for message in unconfirmed.messages {
                if self.rng.f64() < self.again {
                    again.push_back(message);
                } else {
                    self.ledger().give_up(&message)?;
                }
            }
            // A broker that stands still never answers; the socket is closed by the drop.
            timeout(Duration::from_secs(1), connection.close(200, "OK".into())).await.ok();
            if done {
                return self.ledger().flush();
            }
        }
    }

    /// Publishes on one channel until it fails (`false`) or everything is done.
    async fn use_up(
        &mut self,
        channel: &Channel,
        traffic: &mut Traffic,
        again: &mut VecDeque<Message>,
        unconfirmed: &mut Unconfirmed,
        stop: &CancellationToken,
    ) -> Result<bool> {
        let mut confirms: FuturesUnordered<BoxFuture<'static, (u64, bool)>> =
            FuturesUnordered::new();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let mut due = 0.0;
        let mut left = self.rng.usize(STUMBLE_AFTER);
        loop {
            tokio::select! {
                Some((number, sure)) = confirms.next() => {
                    if !sure {
                        return Ok(false);
                    }
                    heard = Instant::now();
                    if let Some(message) = unconfirmed.take(number) {
                        self.ledger().confirm(&message)?;
                    }
                    continue;
                }
                _ = ticks.tick() => {}
            }
            if !unconfirmed.messages.is_empty() && heard.elapsed() > SILENCE {
                return Ok(false);
            }
            if stop.is_cancelled() && again.is_empty() && unconfirmed.messages.is_empty() {
                return Ok(true);
            }
            due = (due + f64::from(self.rate) * TICK.as_secs_f64()).min(f64::from(self.rate));
            while due >= 1.0 && unconfirmed.messages.len() < UNCONFIRMED_AT_MOST {
                due -= 1.0;
                let message = match again.pop_front() {
                    Some(message) => message,
                    None if stop.is_cancelled() || self.is_far_ahead() => break,
                    None => traffic.next(),
                };
                if unconfirmed.messages.is_empty() {
                    heard = Instant::now();
                }
                self.ledger().attempt(&message)?;
                let number = message.number;
                let sent = timeout(SILENCE, send(channel, &self.queue, &message.body)).await;
                unconfirmed.messages.push_back(message);
                match sent {
                    Ok(Ok(confirm)) => confirms.push(confirmed(number, confirm).boxed()),
                    Ok(Err(_)) | Err(_) => return Ok(false),
                }
                left -= 1;
                if left == 0 {
                    return Ok(false);
                }
            }
        }
    }

    fn is_far_ahead(&self) -> bool {
        let counted = self.counted.load(Ordering::Relaxed);
        self.ledger().counts.votes_confirmed.saturating_sub(counted) > self.backlog
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Oldest first: confirms come nearly in order.
#[derive(Default)]
struct Unconfirmed {
    messages: VecDeque<Message>,
}

impl Unconfirmed {
    fn take(&mut self, number: u64) -> Option<Message> {
        let position = self.messages.iter().position(|message| message.number == number)?;
        self.messages.remove(position)
    }
}

async fn confirming(connection: &Connection) -> Result<Channel> {
    let opening = async {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok::<_, lapin::Error>(channel)
    };
    Ok(timeout(SILENCE, opening).await??)
}

/// Returned, refused and failed are all the same: not confirmed.
async fn confirmed(number: u64, confirm: PublisherConfirm) -> (u64, bool) {
    (number, matches!(confirm.await, Ok(Confirmation::Ack(None))))
}

async fn send(channel: &Channel, queue: &str, body: &[u8]) -> lapin::Result<PublisherConfirm> {
    let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    channel.basic_publish("".into(), queue.into(), mandatory, body, properties).await
}
