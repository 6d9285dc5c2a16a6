//! The queue: used as it is when it exists, created safe when it does not, and examined, because
//! a queue without a dead-letter route or with a TTL loses votes quietly.

mod refusal;

use std::collections::BTreeMap;

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, Error};

use self::refusal::{Current, Difference};
use super::connect::amqp_code;
use super::{DeliveryLimit, long_string, management};
use crate::config::RabbitMq as Config;
use crate::telemetry::DeadLetterRoute;

/// High enough that no outage drops a vote, finite because RabbitMQ 3.10 takes -1 for "none" and
/// drops at the first requeue.
const DELIVERY_LIMIT: i64 = 1000;
/// A limit up to this, RabbitMQ 4's own default, can drop good votes in a long outage.
const LOW_DELIVERY_LIMIT: i64 = 20;
/// More rounds of redeclaring than a queue has arguments.
const MAX_ROUNDS: usize = 24;

/// Whether the queue was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Existing,
    Created,
}

/// What the broker told of the queue.
#[derive(Debug)]
pub(super) struct Examined {
    pub(super) route: DeadLetterRoute,
    pub(super) warnings: Vec<String>,
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
        declare(connection, &config.dead_letter_queue, Flags::DURABLE, quorum()).await?;
    }
    Ok(())
}

type Arguments = BTreeMap<String, AMQPValue>;

fn quorum() -> Arguments {
    BTreeMap::from([("x-queue-type".to_owned(), long_string("quorum"))])
}

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
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    match channel.queue_declare(queue.into(), passive, FieldTable::default()).await {
        Ok(_) => channel.close(200, "OK".into()).await.map(|()| true),
        Err(error) if amqp_code(&error) == Some(404) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn declare(
    connection: &Connection,
    queue: &str,
    flags: Flags,
    arguments: Arguments,
) -> Result<(), Error> {
    let channel = connection.create_channel().await?;
    let Flags { durable, auto_delete, exclusive } = flags;
    let options =
        QueueDeclareOptions { durable, auto_delete, exclusive, ..QueueDeclareOptions::default() };
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert(name.into(), value);
    }
    channel.queue_declare(queue.into(), options, table).await?;
    channel.close(200, "OK".into()).await
}

/// Finds out what can lose votes: from the management API where one is configured, else by
/// redeclaring.
pub(super) async fn examine(connection: &Connection, config: &Config) -> Examined {
    let known = learn(connection, config, queue_arguments(config)).await;
    let Some(known) = known else {
        let warning = "the broker does not tell this queue's arguments; whether rejected messages \
                       are kept is unknown";
        return Examined { route: DeadLetterRoute::Unknown, warnings: vec![warning.to_owned()] };
    };
    let target = match known.target() {
        Target::Queue(name) if matches!(exists(connection, &name).await, Ok(false)) => {
            Target::Missing(format!("the queue {name:?}"))
        }
        Target::Exchange(name) if exchange_is_missing(connection, &name).await => {
            Target::Missing(format!("the exchange {name:?}"))
        }
        target => target,
    };
    assess(&known, &target)
}

/// What is known of how often the dead-letter queue lets a message be given back.
pub(super) async fn delivery_limit(connection: &Connection, config: &Config) -> DeliveryLimit {
    let queue = config.dead_letter_queue.clone();
    let config = Config { queue, ..config.clone() };
    match learn(connection, &config, quorum()).await {
        None => DeliveryLimit::Unknown,
        Some(known) => match known.number("x-delivery-limit") {
            Some(limit) => DeliveryLimit::Set(limit),
            None if known.policies => DeliveryLimit::Unset,
            None => DeliveryLimit::Unknown,
        },
    }
}

/// The arguments of `config.queue`; `guess` is what it was most likely declared with.
async fn learn(connection: &Connection, config: &Config, guess: Arguments) -> Option<Known> {
    let known = match &config.management_url {
        Some(url) => match management::queue(url, config).await {
            Ok((arguments, [durable, auto_delete])) => {
                let flags = Flags { durable, auto_delete, exclusive: false };
                Some(Known { arguments, flags, policies: true })
            }
            Err(error) => {
                tracing::warn!("RABBITMQ_MANAGEMENT_URL: {error}");
                None
            }
        },
        None => None,
    };
    match known {
        Some(known) => Some(known),
        None => redeclare(connection, &config.queue, guess).await,
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

/// Where rejected messages go.
#[derive(Debug, PartialEq)]
enum Target {
    Queue(String),
    /// Through an exchange, whose bindings AMQP does not show.
    Exchange(String),
    /// To the default exchange under the key they came with: into this very queue.
    Itself,
    /// Somewhere that does not exist.
    Missing(String),
    Nowhere,
}

/// What is known of a queue.
struct Known {
    arguments: Arguments,
    flags: Flags,
    /// Whether policies are in the arguments, too.
    policies: bool,
}

impl Known {
    fn text(&self, name: &str) -> Option<String> {
        match self.arguments.get(name)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            _ => None,
        }
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.arguments.get(name).and_then(number)
    }

    fn target(&self) -> Target {
        let key = self.text("x-dead-letter-routing-key");
        match (self.text("x-dead-letter-exchange"), key) {
            (None, _) => Target::Nowhere,
            (Some(exchange), _) if !exchange.is_empty() => Target::Exchange(exchange),
            (Some(_), Some(queue)) => Target::Queue(queue),
            (Some(_), None) => Target::Itself,
        }
    }
}

fn number(value: &AMQPValue) -> Option<i64> {
    match *value {
        AMQPValue::ShortShortInt(n) => Some(n.into()),
        AMQPValue::ShortShortUInt(n) => Some(n.into()),
        AMQPValue::ShortInt(n) => Some(n.into()),
        AMQPValue::ShortUInt(n) => Some(n.into()),
        AMQPValue::LongInt(n) => Some(n.into()),
        AMQPValue::LongUInt(n) => Some(n.into()),
        AMQPValue::LongLongInt(n) => Some(n),
        _ => None,
    }
}

fn assess(known: &Known, target: &Target) -> Examined {
    use DeadLetterRoute::{No, Unknown, Yes};
    let (route, warning) = match target {
        Target::Queue(_) => (Yes, None),
        Target::Exchange(name) => (
            Unknown,
            Some(format!(
                "rejected messages go to the exchange {name:?}; whether a queue is bound to it \
                 can't be seen, and if none is they vanish"
            )),
        ),
        Target::Itself => (
            No,
            Some(
                "rejected messages go to the default exchange under the key they came with: back \
                 into this queue, or nowhere; set x-dead-letter-routing-key"
                    .to_owned(),
            ),
        ),
        Target::Missing(what) => (
            No,
            Some(format!(
                "rejected messages are routed to {what}, which does not exist: they vanish"
            )),
        ),
        Target::Nowhere if known.policies => (
            No,
            Some(
                "the queue has no dead-letter exchange: a rejected message vanishes; set one by \
                 a policy"
                    .to_owned(),
            ),
        ),
        Target::Nowhere => (
            Unknown,
            Some(
                "the queue was declared without a dead-letter exchange: unless a policy sets one \
                 (RABBITMQ_MANAGEMENT_URL lets us see it), a rejected message vanishes"
                    .to_owned(),
            ),
        ),
    };
    let mut warnings = Vec::from_iter(warning);
    if let Some(ttl) = known.number("x-message-ttl") {
        warnings.push(format!("x-message-ttl={ttl}: votes older than {ttl} ms are dropped"));
    }
    if let Some(expires) = known.number("x-expires") {
        warnings
            .push(format!("x-expires={expires}: unused for {expires} ms, the queue is deleted"));
    }
    let overflow = known.text("x-overflow").unwrap_or_else(|| "drop-head".to_owned());
    for name in ["x-max-length", "x-max-length-bytes"] {
        if let Some(length) = known.number(name)
            && overflow == "drop-head"
        {
            warnings.push(format!(
                "{name}={length} with drop-head: a full queue drops its oldest votes"
            ));
        }
    }
    if let Some(limit) = known.number("x-delivery-limit")
        && limit <= LOW_DELIVERY_LIMIT
    {
        warnings.push(format!(
            "x-delivery-limit={limit}: votes given back {limit} times in an outage are dropped"
        ));
    }
    if !known.flags.durable {
        warnings.push("the queue is not durable: a restart of the broker empties it".to_owned());
    }
    if known.flags.auto_delete {
        warnings.push("the queue is auto-delete: it goes with its last consumer".to_owned());
    }
    Examined { route, warnings }
}

/// Learns the arguments from the broker's refusals: AMQP never lists them, but a declare that
/// differs is answered by a 406 that names one and its current value. A queue that vanished
/// meanwhile is created by this, with what is known of it so far.
async fn redeclare(
    connection: &Connection,
    queue: &str,
    mut arguments: Arguments,
) -> Option<Known> {
    let mut flags = Flags::DURABLE;
    for _ in 0..MAX_ROUNDS {
        let error = match declare(connection, queue, flags, arguments.clone()).await {
            Ok(()) => return Some(Known { arguments, flags, policies: false }),
            Err(error) => error,
        };
        tracing::debug!(queue, "learning the queue's arguments: {error}");
        if amqp_code(&error) != Some(406) {
            return None;
        }
        let Difference { name, current } = Difference::parse(&error.to_string())?;
        match (name.as_str(), current) {
            ("durable", Current::Flag(on)) => flags.durable = on,
            ("auto_delete", Current::Flag(on)) => flags.auto_delete = on,
            ("exclusive", Current::Flag(on)) => flags.exclusive = on,
            (_, Current::None) => drop(arguments.remove(&name)),
            (_, Current::Value(value)) => drop(arguments.insert(name, value)),
            (_, Current::Untyped(text)) => {
                // A number as often as a text; what is refused as a number was a text.
                let as_number = text.parse().ok().map(AMQPValue::LongLongInt);
                let tried = arguments.get(&name) == as_number.as_ref();
                let value = as_number.filter(|_| !tried).unwrap_or_else(|| long_string(&text));
                drop(arguments.insert(name, value));
            }
            (_, Current::Flag(_)) => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests;
