//! The queue: used as it is when it exists, created safe when it does not, and examined, because
//! a queue without a dead-letter route or with a TTL loses votes quietly.

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, Error};
use serde_json::Value;

use super::arguments::{self, QueueArguments};
use super::connect::amqp_code;
use super::refusal::is_out_of_reach;
use super::{DeliveryLimit, long_string, management};
use crate::platform::config::RabbitMq as Config;

/// High enough that no outage drops a vote, finite because RabbitMQ 3.10 takes -1 for "none" and
/// drops at the first requeue.
const DELIVERY_LIMIT: i64 = 1000;

/// What a passive declare says of a queue.
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
}

/// Where rejected messages go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeadLetterTarget {
    Queue(String),
    /// Through an exchange, whose bindings AMQP does not show.
    Exchange(String),
    /// To an exchange that the management API shows without any binding.
    UnboundExchange(String),
    /// To the default exchange under the key they came with: into this very queue.
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
    declare(connection, &config.queue, Flags::default(), queue_arguments(config)).await?;
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
    if status(connection, &config.dead_letter_queue).await?.is_none() {
        let arguments = dead_letter_arguments();
        declare(connection, &config.dead_letter_queue, Flags::default(), arguments).await?;
    }
    Ok(())
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
    ]
}

fn dead_letter_arguments() -> Vec<(&'static str, Value)> {
    vec![("x-queue-type", "quorum".into())]
}

/// A queue's flags besides its arguments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flags {
    pub(super) durable: bool,
    pub(super) auto_delete: bool,
}

impl Default for Flags {
    fn default() -> Self {
        Self { durable: true, auto_delete: false }
    }
}

/// Creates and changes nothing.
pub(super) const PASSIVE: QueueDeclareOptions = QueueDeclareOptions {
    passive: true,
    durable: false,
    exclusive: false,
    auto_delete: false,
    nowait: false,
};

/// Looks at a queue by a passive declare; `None` when it does not exist.
pub(super) async fn status(
    connection: &Connection,
    queue: &str,
) -> Result<Option<QueueStatus>, Error> {
    let channel = connection.create_channel().await?;
    match channel.queue_declare(queue.into(), PASSIVE, FieldTable::default()).await {
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
    Flags { durable, auto_delete }: Flags,
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
    let options = QueueDeclareOptions { durable, auto_delete, ..QueueDeclareOptions::default() };
    let channel = connection.create_channel().await?;
    channel.queue_declare(queue.into(), options, table).await?;
    channel.close(200, "OK".into()).await
}

/// Finds out what can lose votes: from the management API where one is configured, else by
/// redeclaring. Creates nothing.
pub(super) async fn examine(
    connection: &Connection,
    config: &Config,
    redeclares: usize,
) -> QueueFacts {
    let expected = queue_arguments(config);
    let mut facts = learn(connection, config, &config.queue, expected, redeclares).await;
    facts.target = target(connection, config, &facts.arguments).await;
    facts
}

/// Finds out what can lose dead letters, in the same way.
pub(super) async fn examine_dead_letters(
    connection: &Connection,
    config: &Config,
    redeclares: usize,
) -> QueueFacts {
    let queue = &config.dead_letter_queue;
    learn(connection, config, queue, dead_letter_arguments(), redeclares).await
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

/// Returns how often the dead-letter queue lets a message be given back.
pub(super) async fn delivery_limit(connection: &Connection, config: &Config) -> DeliveryLimit {
    let facts = examine_dead_letters(connection, config, arguments::FOR_A_COMMAND).await;
    match facts.arguments.number("x-delivery-limit") {
        Some(limit) => DeliveryLimit::Set(limit),
        None if facts.arguments.policies => DeliveryLimit::Unset,
        None => DeliveryLimit::Unknown,
    }
}

/// The target of a queue's dead letters, and whether it is there.
async fn target(
    connection: &Connection,
    config: &Config,
    arguments: &QueueArguments,
) -> Option<DeadLetterTarget> {
    const KEY: &str = "x-dead-letter-routing-key";
    let Some(exchange) = arguments.text("x-dead-letter-exchange") else {
        let unset = arguments.is_unset("x-dead-letter-exchange");
        return unset.then_some(DeadLetterTarget::Nowhere);
    };
    if exchange.is_empty() {
        let Some(queue) = arguments.text(KEY) else {
            return arguments.is_unset(KEY).then_some(DeadLetterTarget::SameQueue);
        };
        let missing = matches!(status(connection, queue).await, Ok(None));
        let queue = queue.to_owned();
        return Some(if missing {
            DeadLetterTarget::MissingQueue(queue)
        } else {
            DeadLetterTarget::Queue(queue)
        });
    }
    let name = exchange.to_owned();
    if exchange_is_missing(connection, exchange).await {
        return Some(DeadLetterTarget::MissingExchange(name));
    }
    Some(match &config.management_url {
        // Only of an API that has just answered about the queue.
        Some(url)
            if arguments.policies && management::is_unbound(url, &config.vhost, exchange).await =>
        {
            DeadLetterTarget::UnboundExchange(name)
        }
        _ => DeadLetterTarget::Exchange(name),
    })
}

async fn exchange_is_missing(connection: &Connection, exchange: &str) -> bool {
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let Ok(channel) = connection.create_channel().await else { return false };
    // Of a passive declare only the name counts.
    let kind = lapin::ExchangeKind::Direct;
    let declared = channel.exchange_declare(exchange.into(), kind, passive, FieldTable::default());
    matches!(declared.await, Err(error) if amqp_code(&error) == Some(404))
}
