//! RabbitMQ: sessions, settlement frames, topology, confirmed publishing.
//!
//! Architecture invariants: nothing here knows the database; lapin's own recovery stays off (in
//! 4.12.3 its stream waits for ever after a channel-level close, and ends silently when its
//! retries do), the supervisor opens a new session instead.

mod arguments;
mod connect;
mod dead_letters;
mod depth;
mod headers;
mod look;
mod management;
mod permissions;
mod publisher;
mod refusal;
mod runtime;
mod screen;
mod session;
mod topology;

use std::time::Duration;

use lapin::Connection;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

pub use self::arguments::QueueArguments;
pub use self::connect::describe;
pub use self::dead_letters::{
    Confirmed, DeadLetterMessage, DeadLetterQueue, DeliveryLimit, Republisher, RequeueReport,
};
pub use self::depth::QueueWatch;
pub use self::look::{BrokerFacts, Publishing, QueueLook, QueueState, look};
pub use self::publisher::{Confirm, NotPublished, Publisher};
pub use self::refusal::grant;
pub use self::screen::Frames;
pub use self::session::{RabbitChannel, RabbitSession};
pub use self::topology::{DeadLetterTarget, QueueFacts, QueueStatus};
use crate::model::ports::{Broker, DeadLetter, DeadLetters, Lost, OpenError};
use crate::platform::config::RabbitMq as Config;

/// From the first byte to consuming, without the examination of the queue; a broker that takes
/// longer is not well.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest examination of the queue; the management API has five seconds for each answer.
const EXAMINE_TIMEOUT: Duration = Duration::from_secs(15);
/// A queue may be made anew with other arguments while we are away.
const EXAMINED_FOR: Duration = Duration::from_secs(60);
/// Longest wait for the confirm of a dead letter. A blocked connection (memory or disk alarm of
/// the broker) takes no publishes at all.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

type Observer = Box<dyn Fn(&QueueFacts) + Send + Sync>;

/// The broker, as configured.
pub struct RabbitMq {
    config: Config,
    observe: Observer,
    /// Each examination may leave errors in the broker's log: not done at every reconnect.
    examined: Mutex<Option<Instant>>,
    /// On a connection of its own: a blocked connection must not hold up acks.
    dead_letters: Mutex<Option<Publisher>>,
}

impl RabbitMq {
    /// Connects on first use.
    pub fn new(config: Config) -> Self {
        Self::observed(config, |_| ())
    }

    /// Passes what sessions find out about their queue to `observe`.
    pub fn observed(config: Config, observe: impl Fn(&QueueFacts) + Send + Sync + 'static) -> Self {
        let (examined, dead_letters) = (Mutex::new(None), Mutex::new(None));
        Self { config, observe: Box::new(observe), examined, dead_letters }
    }

    fn refused(&self, error: &lapin::Error) -> OpenError {
        connect::refused(&self.config, error)
    }

    /// Returns also whether the queue was created.
    async fn connect(&self) -> Result<(Connection, bool), OpenError> {
        let connection = connect::open(&self.config, "consumer").await?;
        let created = topology::ensure(&connection, &self.config).await;
        Ok((connection, created.map_err(|error| self.refused(&error))?))
    }

    async fn consume(&self, connection: Connection, prefetch: u16) -> lapin::Result<RabbitSession> {
        let channel = connection.create_channel().await?;
        let each_consumer = BasicQosOptions { global: false };
        channel.basic_qos(prefetch, each_consumer).await?;
        let queue = self.config.queue.as_str().into();
        let options = BasicConsumeOptions::default();
        let consumer =
            channel.basic_consume(queue, "".into(), options, FieldTable::default()).await?;
        Ok(RabbitSession::new(connection, channel, consumer))
    }

    /// Finds out what can lose votes, and passes it on.
    ///
    /// # Errors
    /// [`OpenError::Configuration`] for a type of queue that votes can't be taken from.
    async fn examine(&self, connection: &Connection, created: bool) -> Result<(), OpenError> {
        let mut last = self.examined.lock().await;
        if !created && last.is_some_and(|when| when.elapsed() < EXAMINED_FOR) {
            return Ok(());
        }
        let examining = topology::examine(connection, &self.config, arguments::AT_START);
        let facts = timeout(EXAMINE_TIMEOUT, examining).await.unwrap_or_default();
        if let Some(kind) = facts.arguments.unsuitable_type() {
            return Err(OpenError::Configuration(format!(
                "the queue {:?} has x-queue-type={kind}: acks and rejects remove and dead-letter \
                 nothing there, so that votes would be counted never or again; {}. Name a quorum \
                 queue in RABBITMQ_QUEUE; the service creates one that does not exist",
                self.config.queue,
                describe(&self.config)
            )));
        }
        (self.observe)(&facts);
        *last = Some(Instant::now());
        Ok(())
    }

    async fn publish_dead_letter(
        &self,
        slot: &mut Option<Publisher>,
        letter: &DeadLetter,
    ) -> Result<(), Lost> {
        // Taken out: a publish that fails or is dropped must not leave a doubtful channel behind.
        // One that was kept may have died since; twice is no loss, a dead letter may be repeated.
        if let Some(kept) = slot.take()
            && self.publish_on(&kept, letter).await.is_ok()
        {
            *slot = Some(kept);
            return Ok(());
        }
        let fresh = self.open_dead_letters().await.map_err(|error| Lost(error.to_string()))?;
        self.publish_on(&fresh, letter).await?;
        *slot = Some(fresh);
        Ok(())
    }

    async fn publish_on(&self, publisher: &Publisher, letter: &DeadLetter) -> Result<(), Lost> {
        let (now, replays) = (headers::now(), letter.replays.to_string());
        let mut properties = vec![
            (headers::SQLSTATE, &*letter.sqlstate),
            (headers::VOTE_HASH, &letter.vote_hash),
            (headers::REFUSED_AT, &now),
        ];
        if letter.replays > 0 {
            properties.push((headers::REPLAYS, &replays));
        }
        Ok(publisher
            .publish(&self.config.dead_letter_queue, &letter.body, &properties)
            .await?
            .await?)
    }

    /// Opens, with each session, what a refused vote will need on a bad day: the connection, the
    /// dead-letter queue, and the permission to publish there.
    ///
    /// # Errors
    /// [`OpenError`] for what somebody has to change, a permission say. Whatever time mends is warned
    /// of: valid votes are counted meanwhile, and a vote that is refused waits for it.
    async fn prepare_dead_letters(&self) -> Result<(), OpenError> {
        let why = match timeout(OPEN_TIMEOUT, self.open_and_probe()).await {
            Ok(Err(error)) if error.is_fatal_at_start() => return Err(error),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {OPEN_TIMEOUT:?}"),
            Ok(Ok(())) => return Ok(()),
        };
        tracing::warn!(
            queue = self.config.dead_letter_queue,
            "dead letters can't be published now; votes that PostgreSQL refuses will wait: {why}"
        );
        Ok(())
    }

    async fn open_and_probe(&self) -> Result<(), OpenError> {
        let mut slot = self.dead_letters.lock().await;
        let publisher = match slot.take().filter(Publisher::is_connected) {
            Some(kept) => kept,
            None => self.open_dead_letters().await?,
        };
        let probed = if publisher.is_blocked() { Ok(false) } else { publisher.probe().await };
        let answered = probed.map_err(|error| self.refused(&error))?;
        // Kept where it is blocked: its end could not be sent, and every session would leave one more.
        *slot = Some(publisher);
        if answered {
            return Ok(());
        }
        Err(OpenError::Unavailable(
            "the broker takes no publishes; is it blocked by a memory or disk alarm?".to_owned(),
        ))
    }

    async fn open_dead_letters(&self) -> Result<Publisher, OpenError> {
        let connection = connect::open(&self.config, "dead letters").await?;
        let ensured = topology::ensure_dead_letter_queue(&connection, &self.config).await;
        ensured.map_err(|error| self.refused(&error))?;
        let opened = Publisher::on(connection, &self.config).await;
        opened.map_err(|error| self.refused(&error))
    }

    /// A confirming publisher to the queue on a connection of its own; creates the queue, with its
    /// dead-letter queue, when it does not exist.
    ///
    /// # Errors
    /// [`OpenError`] with what was refused.
    pub async fn publisher(&self) -> Result<Publisher, OpenError> {
        let connection = connect::open(&self.config, "publisher").await?;
        let opening = async {
            let created = topology::ensure(&connection, &self.config).await?;
            Ok(Publisher::on(connection, &self.config).await?.with_made_queue(created))
        };
        opening.await.map_err(|error| self.refused(&error))
    }
}

impl Broker for RabbitMq {
    type Session = RabbitSession;

    async fn open(&self, prefetch: u16) -> Result<RabbitSession, OpenError> {
        let late = |_| {
            OpenError::Unavailable(format!(
                "{} did not let us consume within {OPEN_TIMEOUT:?}",
                connect::describe(&self.config)
            ))
        };
        let began = Instant::now();
        let (connection, created) = timeout(OPEN_TIMEOUT, self.connect()).await.map_err(late)??;
        let left = OPEN_TIMEOUT.saturating_sub(began.elapsed());
        self.prepare_dead_letters().await?;
        self.examine(&connection, created).await?;
        let consuming = timeout(left, self.consume(connection, prefetch)).await.map_err(late)?;
        consuming.map_err(|error| self.refused(&error))
    }
}

impl DeadLetters for RabbitMq {
    async fn publish(&self, letter: &DeadLetter) -> Result<(), Lost> {
        // Each letter has the whole time, however many were before it.
        let mut slot = self.dead_letters.lock().await;
        match timeout(CONFIRM_TIMEOUT, self.publish_dead_letter(&mut slot, letter)).await {
            Ok(published) => published,
            Err(_) => Err(Lost(format!(
                "no confirm for a dead letter within {CONFIRM_TIMEOUT:?}; is the broker blocked by \
                 a memory or disk alarm?"
            ))),
        }
    }
}

fn long_string(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

#[cfg(test)]
mod tests;
