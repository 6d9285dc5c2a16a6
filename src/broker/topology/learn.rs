//! Learning a queue's arguments, which AMQP never lists.

use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, Error};

use super::{Arguments, Flags, PASSIVE, declare_on};
use crate::broker::connect::amqp_code;
use crate::broker::{long_string, management};
use crate::config::RabbitMq as Config;

/// Types of queues that are a list of messages, each gone once it is acked.
const SUITABLE_TYPES: [&str; 2] = ["quorum", "classic"];
/// More rounds of redeclaring than a queue has arguments.
const MAX_ROUNDS: usize = 24;

/// What is known of a queue.
pub(super) struct Known {
    pub(super) arguments: Arguments,
    pub(super) flags: Flags,
    /// Whether policies are in the arguments, too.
    pub(super) policies: bool,
}

impl Known {
    pub(super) fn text(&self, name: &str) -> Option<String> {
        match self.arguments.get(name)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            _ => None,
        }
    }

    /// Returns the queue's type when its acks, rejects and requeues do not mean what the service
    /// relies on. A stream, for one, keeps what is acked and dead-letters nothing.
    pub(super) fn unsuitable_type(&self) -> Option<String> {
        self.text("x-queue-type").filter(|kind| !SUITABLE_TYPES.contains(&kind.as_str()))
    }

    pub(super) fn number(&self, name: &str) -> Option<i64> {
        self.arguments.get(name).and_then(number)
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

/// What could be learned.
pub(super) struct Learned {
    pub(super) known: Option<Known>,
    /// Why the management API did not tell, when it was asked.
    pub(super) management_failed: Option<String>,
}

/// Asks the management API where one is configured; where there is none, or it does not tell, the
/// broker by redeclaring, beginning with `expected`.
pub(super) async fn queue(
    connection: &Connection,
    config: &Config,
    queue: &str,
    expected: Arguments,
) -> Learned {
    let mut management_failed = None;
    if let Some(url) = &config.management_url {
        match management::queue(url, &config.vhost, queue).await {
            Ok(management::Told { arguments, durable, auto_delete, exclusive }) => {
                let flags = Flags { durable, auto_delete, exclusive };
                let known = Some(Known { arguments, flags, policies: true });
                return Learned { known, management_failed };
            }
            Err(error) => management_failed = Some(error),
        }
    }
    Learned { known: redeclare(connection, queue, expected).await, management_failed }
}

/// Learns the arguments from the broker's refusals: AMQP never lists them, but a declare that
/// differs is answered by a 406 that names one and its current value.
async fn redeclare(connection: &Connection, queue: &str, expected: Arguments) -> Option<Known> {
    let mut arguments = expected;
    let mut flags = Flags::DURABLE;
    for _ in 0..MAX_ROUNDS {
        let error = match declare_again(connection, queue, flags, arguments.clone()).await {
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
        let known = Known { arguments, flags, policies: false };
        if known.unsuitable_type().is_some() {
            // It takes other arguments, and none of them matters any more.
            return Some(known);
        }
        Known { arguments, flags, .. } = known;
    }
    None
}

/// A declare of a queue that is there. A plain one would create a queue that has vanished, with
/// what is known of it so far: a passive declare right before it, on the same channel, ends in a
/// 404 then. What is left is a queue that vanishes between these two frames.
async fn declare_again(
    connection: &Connection,
    queue: &str,
    flags: Flags,
    arguments: Arguments,
) -> Result<(), Error> {
    let channel = connection.create_channel().await?;
    channel.queue_declare(queue.into(), PASSIVE, FieldTable::default()).await?;
    declare_on(&channel, queue, flags, arguments).await?;
    channel.close(200, "OK".into()).await
}

/// One argument in which a queue differs from a declare.
#[derive(Debug, PartialEq)]
struct Difference {
    name: String,
    current: Current,
}

#[derive(Debug, PartialEq)]
enum Current {
    None,
    Flag(bool),
    Value(AMQPValue),
    /// Some arguments are told without their type.
    Untyped(String),
}

impl Difference {
    /// Reads `… inequivalent arg 'NAME' for queue … but current is CURRENT`, where CURRENT is
    /// `none`, `'true'`, `'untyped'` or `the value 'V' of type 'T'`.
    fn parse(told: &str) -> Option<Self> {
        let (_, rest) = told.split_once("inequivalent arg '")?;
        let (name, rest) = rest.split_once('\'')?;
        let (_, current) = rest.rsplit_once(" but current is ")?;
        let current = match current.strip_prefix("the value '") {
            None => match current.trim_matches('\'') {
                "none" => Current::None,
                "true" => Current::Flag(true),
                "false" => Current::Flag(false),
                text => Current::Untyped(text.to_owned()),
            },
            Some(typed) => {
                let (value, kind) = typed.rsplit_once("' of type '")?;
                Current::Value(typed_value(value, kind.split('\'').next()?)?)
            }
        };
        Some(Self { name: name.to_owned(), current })
    }
}

fn typed_value(value: &str, kind: &str) -> Option<AMQPValue> {
    Some(match kind {
        "longstr" => long_string(value),
        "bool" => AMQPValue::Boolean(value.parse().ok()?),
        // Every integer type compares equal to any other of the same value.
        _ => AMQPValue::LongLongInt(value.parse().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(told: &str) -> Option<Difference> {
        Difference::parse(told)
    }

    #[test]
    fn refusals_of_a_declare_are_read() {
        let head = "protocol error: AMQP soft error: PRECONDITION-FAILED: PRECONDITION_FAILED - ";
        let cases = [
            (
                "inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': received none but \
                 current is the value '60000' of type 'signedint'",
                "x-message-ttl",
                Current::Value(AMQPValue::LongLongInt(60_000)),
            ),
            (
                "inequivalent arg 'x-dead-letter-exchange' for queue 'q' in vhost '/': received \
                 the value '' of type 'longstr' but current is none",
                "x-dead-letter-exchange",
                Current::None,
            ),
            (
                "inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but \
                 current is 'false'",
                "durable",
                Current::Flag(false),
            ),
            (
                "inequivalent arg 'x-queue-type' for queue 'it's' in vhost '/': received \
                 'quorum' but current is 'classic'",
                "x-queue-type",
                Current::Untyped("classic".to_owned()),
            ),
        ];
        for (told, name, current) in cases {
            let expected = Difference { name: name.to_owned(), current };
            assert_eq!(difference(&format!("{head}{told}")), Some(expected), "{told}");
        }
    }

    #[test]
    fn a_refusal_that_is_cut_off_or_foreign_is_no_guess() {
        assert_eq!(difference("PRECONDITION_FAILED - inequivalent arg 'x-mess"), None);
        assert_eq!(difference("RESOURCE_LOCKED - cannot obtain exclusive access"), None);
    }
}
