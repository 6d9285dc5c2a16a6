//! The queue: used as it is when it exists, created safe when it does not, and examined, because
//! a queue without a dead-letter route or with a TTL loses votes quietly.

mod assess;
mod learn;

use std::collections::BTreeMap;

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, Error};

pub(super) use self::assess::{Assessment, Noted, Target};
use self::assess::{assess, assess_dead_letters};
use self::learn::{Known, Learned};
use super::connect::amqp_code;
use super::refusal::is_out_of_reach;
use super::{DeliveryLimit, long_string, management};
use crate::config::RabbitMq as Config;

/// High enough that no outage drops a vote, finite because RabbitMQ 3.10 takes -1 for "none" and
/// drops at the first requeue.
const DELIVERY_LIMIT: i64 = 1000;

/// Whether the queue was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Existing,
    Created,
}

/// How a queue is found, without touching it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    There {
        ready: u32,
        consumers: u32,
    },
    Missing,
    /// Another connection has it to itself.
    Exclusive,
}

/// Makes sure of the queue. Declared passively first, each time on a channel of its own, since a
/// refusal closes the channel.
pub(super) async fn ensure(connection: &Connection, config: &Config) -> Result<Found, Error> {
    if exists(connection, &config.queue).await? {
        return Ok(Found::Existing);
    }
    ensure_dead_letter_queue(connection, config).await?;
    declare(connection, &config.queue, Flags::DURABLE, queue_arguments(config)).await?;
    tracing::info!(
        queue = config.queue,
        dead_letter_queue = config.dead_letter_queue,
        "queue created: quorum, dead-lettering"
    );
    Ok(Found::Created)
}

/// Makes sure of the dead-letter queue.
pub(super) async fn ensure_dead_letter_queue(
    connection: &Connection,
    config: &Config,
) -> Result<(), Error> {
    if !exists(connection, &config.dead_letter_queue).await? {
        let arguments = dead_letter_arguments();
        declare(connection, &config.dead_letter_queue, Flags::DURABLE, arguments).await?;
    }
    Ok(())
}

type Arguments = BTreeMap<String, AMQPValue>;

fn queue_arguments(config: &Config) -> Arguments {
    let arguments = [
        ("x-queue-type", long_string("quorum")),
        ("x-dead-letter-exchange", long_string("")),
        ("x-dead-letter-routing-key", long_string(&config.dead_letter_queue)),
        ("x-dead-letter-strategy", long_string("at-least-once")),
        // At-least-once dead-lettering works with this overflow only.
        ("x-overflow", long_string("reject-publish")),
        ("x-delivery-limit", AMQPValue::LongLongInt(DELIVERY_LIMIT)),
    ];
    arguments.map(|(name, value)| (name.to_owned(), value)).into()
}

fn dead_letter_arguments() -> Arguments {
    BTreeMap::from([("x-queue-type".to_owned(), long_string("quorum"))])
}

#[derive(Clone, Copy, Debug)]
struct Flags {
    durable: bool,
    auto_delete: bool,
    exclusive: bool,
}

impl Flags {
    const DURABLE: Self = Self { durable: true, auto_delete: false, exclusive: false };
}

async fn exists(connection: &Connection, queue: &str) -> Result<bool, Error> {
    let channel = connection.create_channel().await?;
    match channel.queue_declare(queue.into(), PASSIVE, FieldTable::default()).await {
        Ok(_) => channel.close(200, "OK".into()).await.map(|()| true),
        Err(error) if amqp_code(&error) == Some(404) && !is_out_of_reach(&error) => Ok(false),
        Err(error) => Err(error),
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

/// Looks at a queue by a passive declare, which creates and changes nothing.
pub(super) async fn standing(connection: &Connection, queue: &str) -> Result<Standing, Error> {
    let channel = connection.create_channel().await?;
    match channel.queue_declare(queue.into(), PASSIVE, FieldTable::default()).await {
        Ok(found) => {
            channel.close(200, "OK".into()).await?;
            let (ready, consumers) = (found.message_count(), found.consumer_count());
            Ok(Standing::There { ready, consumers })
        }
        Err(error) => match amqp_code(&error) {
            Some(404) if !is_out_of_reach(&error) => Ok(Standing::Missing),
            Some(405) => Ok(Standing::Exclusive),
            _ => Err(error),
        },
    }
}

async fn declare(
    connection: &Connection,
    queue: &str,
    flags: Flags,
    arguments: Arguments,
) -> Result<(), Error> {
    let channel = connection.create_channel().await?;
    declare_on(&channel, queue, flags, arguments).await?;
    channel.close(200, "OK".into()).await
}

async fn declare_on(
    channel: &lapin::Channel,
    queue: &str,
    flags: Flags,
    arguments: Arguments,
) -> Result<(), Error> {
    let Flags { durable, auto_delete, exclusive } = flags;
    let options =
        QueueDeclareOptions { durable, auto_delete, exclusive, ..QueueDeclareOptions::default() };
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert(name.into(), value);
    }
    channel.queue_declare(queue.into(), options, table).await.map(drop)
}

/// Finds out what can lose votes: from the management API where one is configured, else by
/// redeclaring. Creates nothing.
pub(super) async fn examine(connection: &Connection, config: &Config) -> Assessment {
    let learned = learn::queue(connection, config, &config.queue, queue_arguments(config)).await;
    let Learned { known, management_failed } = learned;
    let mut assessment = match known {
        None => Assessment::of_unknown(&config.queue),
        Some(known) => {
            let target = existing(connection, config, &known).await;
            assess(&config.queue, &known, target)
        }
    };
    assessment.management_failed = management_failed;
    assessment
}

/// Finds out what can lose dead letters, in the same way.
pub(super) async fn examine_dead_letters(connection: &Connection, config: &Config) -> Vec<Noted> {
    let queue = &config.dead_letter_queue;
    let learned = learn::queue(connection, config, queue, dead_letter_arguments()).await;
    learned.known.map_or_else(Vec::new, |known| assess_dead_letters(queue, &known))
}

/// How often the dead-letter queue lets a message be given back, by all that can be learned.
pub(super) async fn delivery_limit(connection: &Connection, config: &Config) -> DeliveryLimit {
    let queue = &config.dead_letter_queue;
    let learned = learn::queue(connection, config, queue, dead_letter_arguments()).await;
    match learned.known {
        None => DeliveryLimit::Unknown,
        Some(known) => match known.number("x-delivery-limit") {
            Some(limit) => DeliveryLimit::Set(limit),
            None if known.policies => DeliveryLimit::Unset,
            None => DeliveryLimit::Unknown,
        },
    }
}

/// The target of a queue's dead letters, if it leads anywhere.
async fn existing(connection: &Connection, config: &Config, known: &Known) -> Target {
    match known.target() {
        Target::Queue(name) if matches!(exists(connection, &name).await, Ok(false)) => {
            Target::Missing(format!("the queue {name:?}"))
        }
        Target::Exchange(name) if exchange_is_missing(connection, &name).await => {
            Target::Missing(format!("the exchange {name:?}"))
        }
        // Only of an API that has just told of the queue.
        Target::Exchange(name) if known.policies => match &config.management_url {
            Some(url) if management::is_unbound(url, &config.vhost, &name).await => {
                Target::Unbound(name)
            }
            _ => Target::Exchange(name),
        },
        target => target,
    }
}

async fn exchange_is_missing(connection: &Connection, exchange: &str) -> bool {
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let Ok(channel) = connection.create_channel().await else { return false };
    // Of a passive declare only the name counts.
    let kind = lapin::ExchangeKind::Direct;
    let declared = channel.exchange_declare(exchange.into(), kind, passive, FieldTable::default());
    matches!(declared.await, Err(error) if amqp_code(&error) == Some(404))
}
