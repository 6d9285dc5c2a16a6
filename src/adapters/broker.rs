//! RabbitMQ: sessions, settlement, topology, confirmed publishing.
//!
//! Architecture invariants: nothing here knows the database; lapin's own recovery stays off (in
//! 4.12.3 its stream waits without an end after a channel-level close, and ends without an error when
//! its retries do), the supervisor opens a new session instead.

mod arguments;
mod connect;
mod dead_letters;
mod depth;
mod headers;
mod inspect;
mod management;
mod permissions;
mod publisher;
mod reach;
mod refusal;
mod returns;
mod runtime;
mod screen;
mod server_version;
mod session;
mod topology;

use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

pub use self::arguments::QueueArguments;
pub use self::connect::describe;
use self::connect::{Opened, Unclaimed};
pub use self::dead_letters::{
    Confirmed, DeadLetterMessage, DeadLetterQueue, DeliveryLimit, Republisher, RequeueReport,
};
pub use self::depth::QueueWatch;
pub use self::inspect::{BrokerFacts, InspectedQueue, Publishing, QueueState, inspect, reach};
pub use self::publisher::{Confirm, Publisher};
pub use self::refusal::grant;
use self::returns::Returns;
pub use self::screen::Frames;
pub use self::server_version::ServerVersion;
pub use self::session::{Deliveries, RabbitChannel, RabbitSession};
pub use self::topology::{DeadLetterTarget, QueueFacts, QueueStatus};
use crate::model::ports::{Broker, BrokerError, DeadLetter, DeadLetters, OpenError};
use crate::platform::config::RabbitMq as Config;

/// From the first byte to consuming, without the examination of the queue.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest examination of the queue; the management API has five seconds for each answer.
const EXAMINE_TIMEOUT: Duration = Duration::from_secs(15);
/// A queue may be created anew with other arguments while the service is disconnected.
const EXAMINED_FOR: Duration = Duration::from_secs(60);
/// Longest wait for the confirm of a dead letter. A blocked connection (memory or disk alarm of
/// the broker) takes no publishes at all.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

type Observer = Arc<dyn Fn(&QueueFacts) + Send + Sync>;

/// A connection whose queue is there.
struct Connected {
    connection: Unclaimed,
    version: Option<ServerVersion>,
    /// The configuration with its address alone.
    config: Config,
    /// The queue was created by it.
    created: bool,
}

/// The broker, as configured.
pub struct RabbitMq {
    config: Config,
    observe: Observer,
    /// Each examination may leave errors in the broker's log: not done at every reconnect.
    examined: Mutex<Option<(Instant, QueueFacts)>>,
    /// The queue takes no consumer with a time-out; asked once, as a refusal is an error in the broker's log.
    without_timeout: AtomicBool,
    /// On a connection of its own: a blocked connection must not hold up acks.
    dead_letters: Mutex<Option<Publisher>>,
}

impl RabbitMq {
    /// Connects on first use; of several addresses, to a random one first.
    pub fn new(config: Config) -> Self {
        Self::observed(config, |_| ())
    }

    /// Passes what sessions find out about their queue to `observe`.
    pub fn observed(config: Config, observe: impl Fn(&QueueFacts) + Send + Sync + 'static) -> Self {
        let (examined, dead_letters) = (Mutex::new(None), Mutex::new(None));
        let (observe, without_timeout) = (Arc::new(observe), AtomicBool::new(false));
        // Instances that start together take different nodes.
        config.host.set_in_use(fastrand::usize(..config.host.count()));
        Self { config, observe, examined, without_timeout, dead_letters }
    }

    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Opens a session at the one address of `config`.
    async fn open_at(&self, config: &Config, prefetch: u16) -> Result<RabbitSession, OpenError> {
        let (began, what) = (Instant::now(), "let us consume");
        let connecting = connect_to_queue(config, "consumer");
        let connected = connect::within(config, OPEN_TIMEOUT, what, connecting).await?;
        let left = OPEN_TIMEOUT.saturating_sub(began.elapsed());
        self.prepare_dead_letters(config).await?;
        let facts = self.examine(&connected).await?;
        connect::within(config, left, what, self.consume(connected, facts, prefetch)).await
    }

    async fn consume(
        &self,
        Connected { connection, version, config, .. }: Connected,
        facts: QueueFacts,
        prefetch: u16,
    ) -> Result<RabbitSession, OpenError> {
        let returns = Returns::new(facts, Arc::clone(&self.observe));
        let limit = self.config.consumer_timeout;
        let cancels = version >= Some(ServerVersion::CONSUMER_TIMEOUTS);
        let consuming = async {
            let asked = (!self.without_timeout.load(Ordering::Relaxed)).then_some(limit);
            let (consumer, has) = match self.consumer(connection.get(), prefetch, asked).await {
                Err(error) if refusal::is_without_timeout(&error) => {
                    self.without_timeout.store(true, Ordering::Relaxed);
                    (self.consumer(connection.get(), prefetch, None).await?, None)
                }
                other => (other?, asked),
            };
            let limit = has.filter(|_| cancels);
            let connection = connection.claim();
            Ok(RabbitSession::new(config.clone(), connection, consumer, limit, returns))
        };
        consuming.await.map_err(|error| connect::refused(&config, &error))
    }

    /// Consumes on a channel of its own. A `timeout` wins over the queue's and the broker's from RabbitMQ 4.3
    /// on, which refuses it for a classic queue, since that has none; earlier ones ignore it.
    async fn consumer(
        &self,
        connection: &Connection,
        prefetch: u16,
        timeout: Option<Duration>,
    ) -> lapin::Result<(Channel, Consumer)> {
        let channel = connection.create_channel().await?;
        channel.basic_qos(prefetch, BasicQosOptions { global: false }).await?;
        let mut arguments = FieldTable::default();
        if let Some(timeout) = timeout {
            let millis = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
            arguments.insert("x-consumer-timeout".into(), AMQPValue::LongLongInt(millis));
        }
        let (queue, options) = (self.config.queue.as_str(), BasicConsumeOptions::default());
        let consumer = channel.basic_consume(queue.into(), "".into(), options, arguments).await?;
        Ok((channel, consumer))
    }

    /// Finds out what can lose votes.
    ///
    /// # Errors
    /// [`OpenError::Configuration`] for a type of queue that votes can't be taken from.
    async fn examine(&self, connected: &Connected) -> Result<QueueFacts, OpenError> {
        let Connected { connection, version, config, created } = connected;
        let mut last = self.examined.lock().await;
        if let Some((when, facts)) = &*last
            && !created
            && when.elapsed() < EXAMINED_FOR
        {
            return Ok(facts.clone());
        }
        let examining = topology::examine(connection.get(), *version, config, arguments::AT_START);
        let facts = timeout(EXAMINE_TIMEOUT, examining).await.unwrap_or_default();
        if let Some(kind) = facts.arguments.unsuitable_type() {
            return Err(OpenError::Configuration(format!(
                "the queue {:?} has x-queue-type={kind}: acks do not remove messages there and \
                 rejects do not dead-letter them, so that votes would never be counted, or again; \
                 {}. Name a quorum queue in RABBITMQ_QUEUE; the service creates one that does not \
                 exist",
                config.queue,
                describe(config)
            )));
        }
        *last = Some((Instant::now(), facts.clone()));
        Ok(facts)
    }

    /// Opens, with each session, what a refused vote needs: the connection, the dead-letter queue, and
    /// the permission to publish there.
    ///
    /// # Errors
    /// [`OpenError`] for what an operator has to change. Anything else is a warning: valid votes are
    /// counted meanwhile, and a vote that is refused waits.
    async fn prepare_dead_letters(&self, config: &Config) -> Result<(), OpenError> {
        let opening = self.open_and_probe(config);
        match connect::within(config, OPEN_TIMEOUT, "answer", opening).await {
            Err(error) if !error.is_fatal_at_start() => {
                tracing::warn!(
                    queue = self.config.dead_letter_queue,
                    "dead letters can't be published now; votes that PostgreSQL refuses will wait: \
                     {error}"
                );
                Ok(())
            }
            prepared => prepared,
        }
    }

    async fn open_and_probe(&self, config: &Config) -> Result<(), OpenError> {
        let mut slot = self.dead_letters.lock().await;
        // A kept one at another address may lead to a node that was cut off.
        let publisher = match slot.take().filter(|kept| kept.is_connected_to(config)) {
            Some(kept) => kept,
            None => open_dead_letters(config).await?,
        };
        let probed = permissions::write(&publisher.connection).await;
        let answered = probed.map_err(|error| connect::refused(config, &error))?;
        // Kept when it is blocked: its close could not be sent, and every session would leave one more.
        *slot = Some(publisher);
        if answered {
            return Ok(());
        }
        Err(OpenError::Unavailable(
            "the broker accepts no publishes; is it blocked by a memory or disk alarm?".to_owned(),
        ))
    }

    async fn publish_dead_letter(
        &self,
        slot: &mut Option<Publisher>,
        dead_letter: &DeadLetter,
    ) -> Result<(), BrokerError> {
        // Taken out, so that a publish that fails or is dropped leaves no channel in an unknown state.
        // The kept one may have died: try again on a new one, since a dead letter may be repeated.
        if let Some(kept) = slot.take()
            && self.publish_on(&kept, dead_letter).await.is_ok()
        {
            *slot = Some(kept);
            return Ok(());
        }
        let fresh = open_dead_letters(&self.config).await?;
        self.publish_on(&fresh, dead_letter).await?;
        *slot = Some(fresh);
        Ok(())
    }

    async fn publish_on(
        &self,
        publisher: &Publisher,
        dead_letter: &DeadLetter,
    ) -> Result<(), BrokerError> {
        let DeadLetter { body, vote_hash, sqlstate, replays } = dead_letter;
        let (now, count) = (headers::now(), replays.to_string());
        let mut table = vec![
            (headers::SQLSTATE, sqlstate.as_str()),
            (headers::VOTE_HASH, vote_hash),
            (headers::REFUSED_AT, &now),
        ];
        if *replays > 0 {
            table.push((headers::REPLAYS, &count));
        }
        publisher.publish(&self.config.dead_letter_queue, body, &table).await?.await
    }

    /// A confirming publisher to the queue on a connection of its own; creates the queue, with its
    /// dead-letter queue, when it does not exist.
    ///
    /// # Errors
    /// [`OpenError`] with what was refused.
    pub async fn publisher(&self) -> Result<Publisher, OpenError> {
        self.publisher_to(slice::from_ref(&self.config)).await
    }

    /// As [`RabbitMq::publisher`], to the queues of all these configurations.
    ///
    /// # Errors
    /// [`OpenError`] with what was refused.
    pub async fn publisher_to(&self, queues: &[Config]) -> Result<Publisher, OpenError> {
        let Opened { connection, config, .. } = connect::open(&self.config, "publisher").await?;
        let opening = async {
            let mut created = false;
            for queue in queues {
                created |= topology::ensure(&connection, queue).await?;
            }
            let mut publisher = Publisher::on(connection, &config).await?;
            publisher.made_queue = created;
            Ok(publisher)
        };
        opening.await.map_err(|error| connect::refused(&config, &error))
    }
}

impl Broker for RabbitMq {
    type Session = RabbitSession;

    /// At the address in use, else at the next one where that is possible.
    async fn open(&self, prefetch: u16) -> Result<RabbitSession, OpenError> {
        let mut failures = Vec::new();
        for index in self.config.host.in_turn() {
            let config = self.config.at(index);
            match self.open_at(&config, prefetch).await {
                Ok(session) => {
                    for error in failures {
                        tracing::warn!("no session at another address: {error}");
                    }
                    return Ok(session);
                }
                Err(error) => failures.push(error),
            }
            config.host.leave();
        }
        Err(connect::at_no_address(failures))
    }
}

impl DeadLetters for RabbitMq {
    async fn publish(&self, dead_letter: &DeadLetter) -> Result<(), BrokerError> {
        // Each has the whole time, however many were before it.
        let mut slot = self.dead_letters.lock().await;
        confirmed(self.publish_dead_letter(&mut slot, dead_letter)).await
    }
}

/// Connects, and makes sure of the queue.
async fn connect_to_queue(config: &Config, purpose: &str) -> Result<Connected, OpenError> {
    let Opened { connection, version, config } = connect::open(config, purpose).await?;
    let connection = Unclaimed::new(connection);
    let created = topology::ensure(connection.get(), &config).await;
    let created = created.map_err(|error| connect::refused(&config, &error))?;
    Ok(Connected { connection, version, config, created })
}

async fn open_dead_letters(config: &Config) -> Result<Publisher, OpenError> {
    let Opened { connection, config, .. } = connect::open(config, "dead letters").await?;
    let opening = async {
        topology::ensure_dead_letter_queue(&connection, &config).await?;
        Publisher::on(connection, &config).await
    };
    opening.await.map_err(|error| connect::refused(&config, &error))
}

/// Bounds the wait for a confirm.
async fn confirmed<T>(
    publishing: impl Future<Output = Result<T, BrokerError>>,
) -> Result<T, BrokerError> {
    timeout(CONFIRM_TIMEOUT, publishing).await.unwrap_or_else(|_| {
        Err(BrokerError::Timeout(format!(
            "no confirm within {CONFIRM_TIMEOUT:?}; is the broker blocked by a memory or disk alarm?"
        )))
    })
}

fn long_string(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

#[cfg(test)]
mod tests;
