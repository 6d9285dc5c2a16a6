//! The queue: used as it is when it exists, created safe when it does not, and examined, because
//! a queue without a dead-letter route or with a TTL loses votes without an error.

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, Error};
use serde_json::Value;

use super::arguments::{self, QueueArguments};
use super::connect::amqp_code;
use super::refusal::is_out_of_reach;
use super::{DeliveryLimit, ServerVersion, long_string, management};
use crate::platform::config::RabbitMq as Config;

/// High enough that no outage drops a vote, finite because RabbitMQ 3.10 takes -1 for "none" and
/// drops at the first requeue.
const DELIVERY_LIMIT: i64 = 1000;

/// Where a cluster puts the leaders of new queues: else all are on the node that we are connected to.
const LEADER: &str = "balanced";

/// RabbitMQ 4's, for a quorum queue without one.
const DEFAULT_DELIVERY_LIMIT: u32 = 20;

/// What a passive declare returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStatus {
    /// Messages ready in the queue.
    pub ready: u32,
    pub consumers: u32,
}

/// What is known of a queue that exists.
#[derive(Clone, Debug, Default)]
pub struct QueueFacts {
    pub arguments: QueueArguments,
    /// Where rejected messages go, when that is known.
    pub target: Option<DeadLetterTarget>,
    /// Why the management API did not answer, when it was asked.
    pub management_error: Option<String>,
    /// Which RabbitMQ it is on.
    pub server: Option<ServerVersion>,
    /// How often the broker got back, at most, a vote that is held now.
    pub returned: u32,
}

impl QueueFacts {
    /// How often a vote may come back before the broker takes it out of the queue: as set, or the broker's
    /// default where none is known to be set. `None` for no limit.
    pub fn delivery_limit(&self) -> Option<u32> {
        match self.arguments.number("x-delivery-limit") {
            Some(limit) => u32::try_from(limit).ok(),
            None => self.has_default_limit().then_some(DEFAULT_DELIVERY_LIMIT),
        }
    }

    /// How often a vote that is held now may come back again. `None` while none has, or without a limit.
    pub fn returns_left(&self) -> Option<u32> {
        let limit = self.delivery_limit().filter(|_| self.returned > 0)?;
        Some(limit.saturating_sub(self.returned))
    }

    fn has_default_limit(&self) -> bool {
        let kind = self.arguments.text("x-queue-type");
        let quorum = kind.map_or(!self.arguments.is_unset("x-queue-type"), |kind| kind == "quorum");
        quorum && self.server >= Some(ServerVersion::LIMIT_BY_DEFAULT)
    }
}

/// Where rejected messages go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeadLetterTarget {
    Queue(String),
    /// Through an exchange, whose bindings AMQP does not show.
    Exchange(String),
    /// To an exchange that the management API shows without any binding.
    UnboundExchange(String),
    /// To the default exchange with their own routing key: into this queue again.
    SameQueue,
    MissingQueue(String),
    MissingExchange(String),
    Nowhere,
}

/// Makes sure of the queue, and returns whether it was created. Declared passively first, each time on
/// a channel of its own, since a refusal closes the channel.
pub(super) async fn ensure(connection: &Connection, config: &Config) -> Result<bool, Error> {
    if status(connection, &config.queue).await?.is_some() {
        return Ok(false);
    }
    ensure_dead_letter_queue(connection, config).await?;
    declare(connection, &config.queue, durable(), queue_arguments(config)).await?;
    tracing::info!(
        queue = config.queue,
        dead_letter_queue = config.dead_letter_queue,
        "queue created: quorum, dead-lettering"
    );
    Ok(true)
}

/// Makes sure of the dead-letter queue.
pub(super) async fn ensure_dead_letter_queue(
    connection: &Connection,
    config: &Config,
) -> Result<(), Error> {
    let queue = &config.dead_letter_queue;
    match status(connection, queue).await? {
        Some(_) => Ok(()),
        None => declare(connection, queue, durable(), dead_letter_arguments()).await,
    }
}

/// In the order in which RabbitMQ compares them.
fn queue_arguments(config: &Config) -> Vec<(&'static str, Value)> {
    vec![
        ("x-dead-letter-exchange", "".into()),
        ("x-dead-letter-routing-key", config.dead_letter_queue.as_str().into()),
        ("x-dead-letter-strategy", "at-least-once".into()),
        // At-least-once dead-lettering works with this overflow only.
        ("x-overflow", "reject-publish".into()),
        ("x-queue-type", "quorum".into()),
        ("x-delivery-limit", DELIVERY_LIMIT.into()),
        ("x-queue-leader-locator", LEADER.into()),
    ]
}

fn dead_letter_arguments() -> Vec<(&'static str, Value)> {
    vec![("x-queue-type", "quorum".into()), ("x-queue-leader-locator", LEADER.into())]
}

pub(super) fn durable() -> QueueDeclareOptions {
    QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() }
}

/// Creates and changes nothing.
pub(super) fn passive() -> QueueDeclareOptions {
    QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() }
}

/// Looks at a queue by a passive declare; `None` when it does not exist.
pub(super) async fn status(
    connection: &Connection,
    queue: &str,
) -> Result<Option<QueueStatus>, Error> {
    let channel = connection.create_channel().await?;
    match channel.queue_declare(queue.into(), passive(), FieldTable::default()).await {
        Ok(found) => {
            channel.close(200, "OK".into()).await?;
            let (ready, consumers) = (found.message_count(), found.consumer_count());
            Ok(Some(QueueStatus { ready, consumers }))
        }
        Err(error) if amqp_code(&error) == Some(404) && !is_out_of_reach(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) async fn declare(
    connection: &Connection,
    queue: &str,
    options: QueueDeclareOptions,
    arguments: impl IntoIterator<Item = (impl Into<String>, Value)>,
) -> Result<(), Error> {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Value::String(text) => long_string(&text),
            Value::Bool(on) => AMQPValue::Boolean(on),
            other => AMQPValue::LongLongInt(other.as_i64().unwrap_or_default()),
        };
        table.insert(name.into().into(), value);
    }
    let channel = connection.create_channel().await?;
    channel.queue_declare(queue.into(), options, table).await?;
    channel.close(200, "OK".into()).await
}

/// Finds out what can lose votes: from the management API where one is configured, else by
/// redeclaring. Creates nothing.
pub(super) async fn examine(
    connection: &Connection,
    server: Option<ServerVersion>,
    config: &Config,
    redeclares: usize,
) -> QueueFacts {
    let expected = queue_arguments(config);
    let mut facts = learn(connection, config, &config.queue, expected, redeclares).await;
    facts.target = target(connection, config, &facts.arguments).await;
    facts.server = server;
    facts
}

/// Finds out what can lose dead letters, in the same way, for a command.
pub(super) async fn examine_dead_letters(connection: &Connection, config: &Config) -> QueueFacts {
    let (queue, expected) = (&config.dead_letter_queue, dead_letter_arguments());
    learn(connection, config, queue, expected, arguments::FOR_A_COMMAND).await
}

async fn learn(
    connection: &Connection,
    config: &Config,
    queue: &str,
    expected: Vec<(&str, Value)>,
    redeclares: usize,
) -> QueueFacts {
    let mut facts = QueueFacts::default();
    if let Some(url) = &config.management_url {
        match management::queue(url, &config.vhost, queue).await {
            Ok(arguments) => return QueueFacts { arguments, ..facts },
            Err(error) => facts.management_error = Some(error),
        }
    }
    facts.arguments = arguments::learn(connection, queue, expected, redeclares).await;
    facts
}

/// How often the dead-letter queue lets a message be requeued.
pub(super) async fn delivery_limit(connection: &Connection, config: &Config) -> DeliveryLimit {
    let arguments = examine_dead_letters(connection, config).await.arguments;
    match arguments.number("x-delivery-limit") {
        Some(limit) => DeliveryLimit::Set(limit),
        None if arguments.policies => DeliveryLimit::Unset,
        None => DeliveryLimit::Unknown,
    }
}

/// The target of a queue's dead letters, and whether it is there.
async fn target(
    connection: &Connection,
    config: &Config,
    arguments: &QueueArguments,
) -> Option<DeadLetterTarget> {
    const EXCHANGE: &str = "x-dead-letter-exchange";
    const KEY: &str = "x-dead-letter-routing-key";
    match (arguments.text(EXCHANGE), arguments.text(KEY)) {
        (None, _) => arguments.is_unset(EXCHANGE).then_some(DeadLetterTarget::Nowhere),
        (Some(""), None) => arguments.is_unset(KEY).then_some(DeadLetterTarget::SameQueue),
        (Some(""), Some(queue)) => Some(match status(connection, queue).await {
            Ok(None) => DeadLetterTarget::MissingQueue(queue.to_owned()),
            _ => DeadLetterTarget::Queue(queue.to_owned()),
        }),
        (Some(exchange), _) => {
            let name = exchange.to_owned();
            if exchange_is_missing(connection, exchange).await {
                return Some(DeadLetterTarget::MissingExchange(name));
            }
            // Only ask an API that has just answered about the queue.
            let api = config.management_url.as_ref().filter(|_| arguments.policies);
            Some(match api {
                Some(api) if management::is_unbound(api, &config.vhost, exchange).await => {
                    DeadLetterTarget::UnboundExchange(name)
                }
                _ => DeadLetterTarget::Exchange(name),
            })
        }
    }
}

async fn exchange_is_missing(connection: &Connection, exchange: &str) -> bool {
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let Ok(channel) = connection.create_channel().await else { return false };
    // A passive declare compares the name alone.
    let kind = lapin::ExchangeKind::Direct;
    let declared = channel.exchange_declare(exchange.into(), kind, passive, FieldTable::default());
    matches!(declared.await, Err(error) if amqp_code(&error) == Some(404))
}
