//! RabbitMQ: sessions, settlement frames, topology, confirmed publishing.
//!
//! Architecture invariants: nothing here knows the database; lapin's own recovery stays off (in
//! 4.12.3 its stream waits for ever after a channel-level close, and ends silently when its
//! retries do), the supervisor opens a new session instead.

mod check;
mod connect;
mod dead_letters;
mod depth;
mod headers;
mod management;
mod permissions;
mod publisher;
mod refusal;
mod runtime;
mod screen;
mod session;
mod topology;

use std::sync::Arc;
use std::time::Duration;

use lapin::Connection;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

pub use self::check::check;
pub use self::dead_letters::{
    Confirmed, DeadLetterMessage, DeadLetterQueue, DeliveryLimit, Republisher, RequeueReport,
};
pub use self::depth::{QueueStanding, QueueWatch};
use self::permissions::Publishing;
pub use self::publisher::{Confirm, NotPublished, Publisher};
pub use self::screen::Frames;
pub use self::session::{RabbitChannel, RabbitSession};
use self::topology::{Assessment, Found};
use crate::config::RabbitMq as Config;
use crate::ports::{Broker, DeadLetter, DeadLetters, Lost, OpenError};
use crate::telemetry::Health;

/// From the first byte to consuming, without the examination of the queue; a broker that takes
/// longer is not well.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest examination of the queue: dozens of round trips, or some to the management API.
const EXAMINE_TIMEOUT: Duration = Duration::from_secs(15);
/// A queue may be made anew with other arguments while we are away.
const EXAMINED_FOR: Duration = Duration::from_secs(60);
/// Longest wait for the confirm of a dead letter. A blocked connection (memory or disk alarm of
/// the broker) takes no publishes at all.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// The broker, as configured.
pub struct RabbitMq {
    config: Config,
    health: Arc<Health>,
    /// Examining costs a dozen channels, each answered by an error: not done at every reconnect.
    examined: Mutex<Option<(Instant, Vec<String>)>>,
    /// On a connection of its own: a blocked connection must not hold up acks.
    dead_letters: Mutex<Option<Publisher>>,
}

impl RabbitMq {
    /// A broker that tells `health` what it finds out about its queue. Connects on first use.
    pub fn new(config: Config, health: Arc<Health>) -> Self {
        Self { config, health, examined: Mutex::new(None), dead_letters: Mutex::new(None) }
    }

    async fn connect(&self) -> Result<(Connection, Found), OpenError> {
        let connection = connect::open(&self.config, "consumer").await?;
        let found = topology::ensure(&connection, &self.config).await;
        Ok((connection, found.map_err(|e| connect::refused(&self.config, &e))?))
    }

    async fn consume(
        &self,
        connection: Connection,
        prefetch: u16,
    ) -> Result<RabbitSession, OpenError> {
        let config = &self.config;
        let refused = |error: &lapin::Error| connect::refused(config, error);
        let channel = connection.create_channel().await.map_err(|e| refused(&e))?;
        let each_consumer = BasicQosOptions { global: false };
        channel.basic_qos(prefetch, each_consumer).await.map_err(|e| refused(&e))?;
        let consumer = channel
            .basic_consume(
                config.queue.as_str().into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(|e| refused(&e))?;
        Ok(RabbitSession::new(connection, channel, consumer))
    }

    /// Warns of what can lose votes; of the same only once.
    ///
    /// # Errors
    /// [`OpenError::Configuration`] for a type of queue that votes can't be taken from.
    async fn examine(&self, connection: &Connection, found: Found) -> Result<(), OpenError> {
        let mut last = self.examined.lock().await;
        let recently = last.as_ref().is_some_and(|(when, _)| when.elapsed() < EXAMINED_FOR);
        if found == Found::Existing && recently {
            return Ok(());
        }
        let queue = &self.config.queue;
        let examining = topology::examine(connection, &self.config);
        let assessment = match timeout(EXAMINE_TIMEOUT, examining).await {
            Ok(assessment) => assessment,
            Err(_) => Assessment::unfinished(queue, EXAMINE_TIMEOUT),
        };
        let Assessment { route, noted, management_failed, unsuitable_type, .. } = assessment;
        if let Some(error) = management_failed {
            tracing::warn!("RABBITMQ_MANAGEMENT_URL: {error}");
        }
        let told = noted.iter().filter(|noted| noted.at_start);
        let shown = told.clone().map(|noted| noted.shown).collect();
        let warnings: Vec<String> = told.map(|noted| noted.finding.line()).collect();
        if unsuitable_type.is_some() {
            self.health.queue_examined(route, shown);
            return Err(OpenError::Configuration(warnings.join("; ")));
        }
        for warning in &warnings {
            if last.as_ref().is_none_or(|(_, told)| !told.contains(warning)) {
                tracing::warn!(queue, "{warning}");
            }
        }
        self.health.queue_examined(route, shown);
        *last = Some((Instant::now(), warnings));
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
        let mut told = vec![
            (headers::SQLSTATE, &*letter.sqlstate),
            (headers::VOTE_HASH, &letter.vote_hash),
            (headers::REFUSED_AT, &now),
        ];
        if letter.replays > 0 {
            told.push((headers::REPLAYS, &replays));
        }
        Ok(publisher.publish(&self.config.dead_letter_queue, &letter.body, &told).await?.await?)
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
        let probed = if publisher.is_blocked() {
            Ok(Publishing::Unanswered)
        } else {
            publisher.probe().await
        };
        // Kept where it is blocked: its end could not be sent, and every session would leave one more.
        match probed {
            Ok(Publishing::Allowed) => *slot = Some(publisher),
            Ok(Publishing::Unanswered) => {
                *slot = Some(publisher);
                return Err(OpenError::Unavailable(
                    "the broker takes no publishes; is it blocked by a memory or disk alarm?"
                        .to_owned(),
                ));
            }
            Err(error) => return Err(connect::refused(&self.config, &error)),
        }
        Ok(())
    }

    async fn open_dead_letters(&self) -> Result<Publisher, OpenError> {
        let connection = connect::open(&self.config, "dead letters").await?;
        topology::ensure_dead_letter_queue(&connection, &self.config)
            .await
            .map_err(|error| connect::refused(&self.config, &error))?;
        let opened = Publisher::on(connection, &self.config).await;
        opened.map_err(|error| connect::refused(&self.config, &error))
    }

    /// A confirming publisher to the queue on a connection of its own; creates the queue, with its
    /// dead-letter queue, when it does not exist.
    ///
    /// # Errors
    /// [`OpenError`] with what was refused.
    pub async fn publisher(&self) -> Result<Publisher, OpenError> {
        let connection = connect::open(&self.config, "publisher").await?;
        let refused = |error: &lapin::Error| connect::refused(&self.config, error);
        let found = topology::ensure(&connection, &self.config).await.map_err(|e| refused(&e))?;
        let publisher = Publisher::on(connection, &self.config).await.map_err(|e| refused(&e))?;
        Ok(publisher.with_queue(found))
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
        let (connection, found) = timeout(OPEN_TIMEOUT, self.connect()).await.map_err(late)??;
        let left = OPEN_TIMEOUT.saturating_sub(began.elapsed());
        self.prepare_dead_letters().await?;
        self.examine(&connection, found).await?;
        timeout(left, self.consume(connection, prefetch)).await.map_err(late)?
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
