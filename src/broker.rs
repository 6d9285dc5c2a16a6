//! RabbitMQ: sessions, settlement frames, topology, confirmed publishing.
//!
//! Architecture invariants: nothing here knows the database; lapin's own recovery stays off (in
//! 4.12.3 its stream waits for ever after a channel-level close, and ends silently when its
//! retries do), the supervisor opens a new session instead.

mod connect;
mod management;
mod publisher;
mod session;
mod topology;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokio::sync::Mutex;
use tokio::time::timeout;

pub use self::publisher::{Confirm, Publisher};
pub use self::session::{RabbitChannel, RabbitSession};
pub use self::topology::Found;
use crate::config::RabbitMq as Config;
use crate::pipeline::ports::{Broker, DeadLetter, DeadLetters, Lost, OpenError};
use crate::telemetry::Health;

/// From the first byte to consuming; a broker that takes longer is not well.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest wait for the confirm of a dead letter. A blocked connection (memory or disk alarm of
/// the broker) takes no publishes at all.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// The broker, as configured.
pub struct RabbitMq {
    config: Config,
    health: Arc<Health>,
    /// Examining costs a dozen channels, each answered by an error: done once for each queue.
    examined: AtomicBool,
    /// On a connection of its own: a blocked connection must not hold up acks.
    dead_letters: Mutex<Option<Publisher>>,
}

impl RabbitMq {
    /// A broker that tells `health` what it finds out about its queue. Connects on first use.
    pub fn new(config: Config, health: Arc<Health>) -> Self {
        Self { config, health, examined: AtomicBool::new(false), dead_letters: Mutex::new(None) }
    }

    async fn open_session(&self, prefetch: u16) -> Result<RabbitSession, OpenError> {
        let config = &self.config;
        let refused = |error: &lapin::Error| connect::refused(config, error);
        let connection = connect::open(config, "consumer").await?;
        let found = topology::ensure(&connection, config).await.map_err(|e| refused(&e))?;
        if found == Found::Created || !self.examined.load(Ordering::Relaxed) {
            let examined = topology::examine(&connection, config).await;
            for warning in &examined.warnings {
                tracing::warn!(queue = config.queue, "{warning}");
            }
            self.health.queue_examined(examined.route, examined.warnings);
            self.examined.store(true, Ordering::Relaxed);
        }

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

    async fn publish_dead_letter(&self, letter: &DeadLetter) -> Result<(), Lost> {
        let mut slot = self.dead_letters.lock().await;
        // Taken out: a publish that fails or is dropped must not leave a doubtful channel behind.
        let publisher = match slot.take() {
            Some(publisher) => publisher,
            None => self.open_dead_letters().await.map_err(|error| Lost(error.to_string()))?,
        };
        let mut headers = FieldTable::default();
        headers.insert("x-sqlstate".into(), long_string(&letter.sqlstate));
        headers.insert("x-vote-hash".into(), long_string(&letter.vote_hash));
        let queue = &self.config.dead_letter_queue;
        publisher.publish(queue, &letter.body, headers).await?.await?;
        *slot = Some(publisher);
        Ok(())
    }

    async fn open_dead_letters(&self) -> Result<Publisher, OpenError> {
        let connection = connect::open(&self.config, "dead letters").await?;
        topology::ensure_dead_letter_queue(&connection, &self.config)
            .await
            .map_err(|error| connect::refused(&self.config, &error))?;
        Publisher::on(connection).await.map_err(|error| connect::refused(&self.config, &error))
    }

    /// A confirming publisher to the queue on a connection of its own; creates the queue, with its
    /// dead-letter queue, when it does not exist.
    ///
    /// # Errors
    /// [`OpenError`] with what was refused.
    pub async fn publisher(&self) -> Result<Publisher, OpenError> {
        let connection = connect::open(&self.config, "publisher").await?;
        let refused = |error: &lapin::Error| connect::refused(&self.config, error);
        topology::ensure(&connection, &self.config).await.map_err(|e| refused(&e))?;
        Publisher::on(connection).await.map_err(|e| refused(&e))
    }
}

impl Broker for RabbitMq {
    type Session = RabbitSession;

    async fn open(&self, prefetch: u16) -> Result<RabbitSession, OpenError> {
        match timeout(OPEN_TIMEOUT, self.open_session(prefetch)).await {
            Ok(opened) => opened,
            Err(_) => Err(OpenError::Unavailable(format!(
                "{} did not let us consume within {OPEN_TIMEOUT:?}",
                connect::describe(&self.config)
            ))),
        }
    }
}

impl DeadLetters for RabbitMq {
    async fn publish(&self, letter: &DeadLetter) -> Result<(), Lost> {
        match timeout(CONFIRM_TIMEOUT, self.publish_dead_letter(letter)).await {
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
