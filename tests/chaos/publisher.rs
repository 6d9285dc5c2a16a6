//! Publishes until it is stopped, past every proxy, and keeps the ledger. Also a part of `cluster`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection, PublisherConfirm};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::phase::Phase;
use crate::traffic::{Message, Traffic};
use crate::{Result, SILENCE, lock};

const PERSISTENT: u8 = 2;
/// Messages on their way to a confirm at a time.
const UNCONFIRMED_AT_MOST: usize = 1_000;
/// An even rate, in portions.
const TICK: Duration = Duration::from_millis(20);
/// Messages until the publisher itself fails, without waiting for what is unconfirmed: most of that
/// arrives, and the ledger does not know what.
const FAILS_AFTER: std::ops::Range<usize> = 3_000..10_000;
/// For what is left when the traffic ends.
const LAST_CONFIRMS: Duration = Duration::from_secs(60);
/// Votes confirmed and not yet counted above which nothing new is published.
const BACKLOG: u64 = 20_000;
/// The share of unconfirmed messages that is published again.
const AGAIN: f64 = 0.7;

pub struct Publisher {
    phase: &'static Phase,
    traffic: Traffic,
    rng: fastrand::Rng,
    stop: CancellationToken,
    /// Unconfirmed messages to publish once more.
    again: VecDeque<Message>,
}

/// By number, so oldest first.
type Unconfirmed = BTreeMap<u64, Message>;

impl Publisher {
    pub fn new(phase: &'static Phase, stop: CancellationToken) -> Self {
        let mut rng = fastrand::Rng::with_seed(phase.setup.seed);
        let traffic = Traffic::new(rng.u64(..), 15 * u64::from(phase.setup.rate));
        Self { phase, traffic, rng: rng.fork(), stop, again: VecDeque::new() }
    }

    /// Publishes until `stop`; then until what is to be published again is confirmed.
    ///
    /// # Errors
    /// When the broker confirms nothing for a long time after the end of the traffic.
    pub async fn run(mut self) -> Result<()> {
        let stop = self.stop.clone();
        let last = async {
            stop.cancelled().await;
            sleep(LAST_CONFIRMS).await;
        };
        tokio::select! {
            done = self.publish() => done,
            () = last => Err("RabbitMQ does not confirm the last messages".into()),
        }
    }

    async fn publish(&mut self) -> Result<()> {
        loop {
            let Ok((connection, channel)) = self.connect().await else {
                sleep(Duration::from_millis(300)).await;
                continue;
            };
            let mut unconfirmed = Unconfirmed::new();
            let done = self.use_up(&channel, &mut unconfirmed).await;
            for message in unconfirmed.into_values() {
                if self.rng.f64() < AGAIN {
                    self.again.push_back(message);
                } else {
                    lock(&self.phase.ledger).counts.indeterminate += 1;
                }
            }
            // A broker that stands still never answers; the socket is closed by the drop.
            timeout(Duration::from_secs(1), connection.close(200, "OK".into())).await.ok();
            if done {
                return Ok(());
            }
        }
    }

    async fn connect(&self) -> Result<(Connection, Channel)> {
        let connection = self.phase.setup.servers.amqp().await?;
        let opening = async {
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok::<_, lapin::Error>(channel)
        };
        let channel = timeout(SILENCE, opening).await??;
        Ok((connection, channel))
    }

    /// Publishes on one channel until it fails (`false`) or everything is done.
    async fn use_up(&mut self, channel: &Channel, unconfirmed: &mut Unconfirmed) -> bool {
        let rate = f64::from(self.phase.setup.rate);
        let mut confirms = FuturesUnordered::<BoxFuture<'static, (u64, bool)>>::new();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let mut due = 0.0;
        let mut left = self.rng.usize(FAILS_AFTER);
        loop {
            tokio::select! {
                Some((number, confirmed)) = confirms.next() => {
                    if !confirmed {
                        return false;
                    }
                    heard = Instant::now();
                    if let Some(message) = unconfirmed.remove(&number) {
                        lock(&self.phase.ledger).confirm(&message);
                    }
                    continue;
                }
                _ = ticks.tick() => {}
            }
            if !unconfirmed.is_empty() && heard.elapsed() > SILENCE {
                return false;
            }
            if self.stop.is_cancelled() && self.again.is_empty() && unconfirmed.is_empty() {
                return true;
            }
            due = (due + rate * TICK.as_secs_f64()).min(rate);
            while due >= 1.0 && unconfirmed.len() < UNCONFIRMED_AT_MOST {
                due -= 1.0;
                let message = match self.again.pop_front() {
                    Some(message) => message,
                    None if self.stop.is_cancelled() || self.is_far_ahead() => break,
                    None => self.traffic.next(),
                };
                if unconfirmed.is_empty() {
                    heard = Instant::now();
                }
                lock(&self.phase.ledger).attempt(&message);
                let number = message.number;
                let sent = timeout(SILENCE, send(channel, &self.phase.queue, &message.body)).await;
                unconfirmed.insert(number, message);
                let Ok(Ok(confirm)) = sent else { return false };
                // Returned, refused and failed are all the same: not confirmed.
                let confirmed = confirm.map(|reply| matches!(reply, Ok(Confirmation::Ack(None))));
                confirms.push(confirmed.map(move |confirmed| (number, confirmed)).boxed());
                left -= 1;
                if left == 0 {
                    return false;
                }
            }
        }
    }

    fn is_far_ahead(&self) -> bool {
        let counted = self.phase.counted.load(Ordering::Relaxed);
        lock(&self.phase.ledger).counts.votes_confirmed.saturating_sub(counted) > BACKLOG
    }
}

async fn send(channel: &Channel, queue: &str, body: &[u8]) -> lapin::Result<PublisherConfirm> {
    let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    channel.basic_publish("".into(), queue.into(), mandatory, body, properties).await
}
