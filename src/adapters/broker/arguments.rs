//! A queue's arguments, which AMQP never lists.
//!
//! RabbitMQ refuses a declare that differs from an existing queue with a 406 that names one argument
//! and its current value. A redeclare must create nothing when the queue has vanished meanwhile, so each
//! one has an [`IMPOSSIBLE`] argument.

use std::collections::BTreeMap;

use lapin::Connection;
use lapin::options::QueueDeclareOptions;
use serde_json::Value;

use super::connect::amqp_code;
use super::topology;

/// An argument that RabbitMQ (3.10 to 4.3) ignores when it compares a declare with a quorum or a classic
/// queue, and that makes it refuse to create either: it belongs to streams. An integer is refused (406)
/// for its type; a text would have to be parsed first.
const IMPOSSIBLE: (&str, i64) = ("x-max-age", 0);

/// Redeclares at the start of a session: each refusal is an error in the broker's log.
pub(super) const AT_START: usize = 2;
/// Redeclares for an operator's command: more than a queue has arguments.
pub(super) const FOR_A_COMMAND: usize = 24;

/// Types of queues that are a list of messages, each gone once it is acked.
const SUITABLE_TYPES: [&str; 2] = ["quorum", "classic"];

/// What is known of a queue's arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueArguments {
    /// Null for an argument that is known not to be set.
    known: BTreeMap<String, Value>,
    pub durable: bool,
    pub auto_delete: bool,
    /// Whether all arguments that are set are known.
    pub complete: bool,
    /// Whether policies are included.
    pub policies: bool,
}

impl Default for QueueArguments {
    /// Of a queue of which nothing is known.
    fn default() -> Self {
        Self {
            known: BTreeMap::new(),
            durable: true,
            auto_delete: false,
            complete: false,
            policies: false,
        }
    }
}

impl QueueArguments {
    /// Of a queue that has these and no others.
    pub(crate) fn all(arguments: impl IntoIterator<Item = (String, Value)>) -> Self {
        Self { known: arguments.into_iter().collect(), complete: true, ..Self::default() }
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.known.get(name)?.as_str()
    }

    pub fn number(&self, name: &str) -> Option<i64> {
        self.known.get(name)?.as_i64()
    }

    /// Whether the argument is known not to be set.
    pub fn is_unset(&self, name: &str) -> bool {
        self.known.get(name).map_or(self.complete, Value::is_null)
    }

    pub fn is_quorum(&self) -> bool {
        self.text("x-queue-type") == Some("quorum")
    }

    /// Returns the queue's type when its acks, rejects and requeues do not mean what the service
    /// relies on. A stream, for one, keeps what is acked and dead-letters nothing.
    pub fn unsuitable_type(&self) -> Option<&str> {
        self.text("x-queue-type").filter(|kind| !SUITABLE_TYPES.contains(kind))
    }
}

/// Learns the arguments of a queue by at most so many redeclares, the first one with `expected`: in the
/// order in which RabbitMQ compares them, so that all before one that differs are equal.
pub(super) async fn learn(
    connection: &Connection,
    queue: &str,
    expected: Vec<(&str, Value)>,
    redeclares: usize,
) -> QueueArguments {
    let mut sent: Vec<(String, Value)> =
        expected.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let mut learned = QueueArguments::default();
    for _ in 0..redeclares {
        let QueueArguments { durable, auto_delete, .. } = learned;
        let options = QueueDeclareOptions { durable, auto_delete, ..Default::default() };
        let impossible = (IMPOSSIBLE.0.to_owned(), Value::from(IMPOSSIBLE.1));
        let arguments = sent.iter().cloned().chain([impossible]);
        let Err(error) = topology::declare(connection, queue, options, arguments).await else {
            learned.known.extend(sent);
            learned.complete = true;
            break;
        };
        tracing::debug!(queue, "learning the queue's arguments: {error}");
        let text = error.to_string();
        let difference = Difference::parse(&text).filter(|_| amqp_code(&error) == Some(406));
        let Some(difference) = difference else { break };
        learned.add(difference, &mut sent);
        // A queue of such a type has other arguments, and none of them matters.
        if learned.unsuitable_type().is_some() {
            break;
        }
    }
    learned
}

impl QueueArguments {
    /// Adds what a refusal says, and corrects what is sent next.
    fn add(&mut self, difference: Difference<'_>, sent: &mut Vec<(String, Value)>) {
        let Difference { name, current } = difference;
        let is_on = current.is_some_and(|(value, _)| value == "true");
        match name {
            "durable" => return self.durable = is_on,
            "auto_delete" => return self.auto_delete = is_on,
            _ => {}
        }
        let place = sent.iter().position(|(sent, _)| sent == name);
        let is_text = place.is_some_and(|place| sent[place].1.is_string());
        let place = place.unwrap_or_default();
        self.known.extend(sent[..place].iter().cloned());

        let current = match current {
            None => Value::Null,
            Some((value, Some("bool"))) => Value::from(value == "true"),
            Some((value, Some("longstr"))) => Value::from(value),
            // A value of the type that was sent is named without its type.
            Some((value, None)) if is_text => Value::from(value),
            Some((value, _)) => value.parse::<i64>().map_or_else(|_| value.into(), Value::from),
        };
        self.known.insert(name.to_owned(), current.clone());
        sent.retain(|(sent, _)| sent != name);
        if !current.is_null() {
            sent.insert(place, (name.to_owned(), current));
        } else if name == "x-dead-letter-exchange" {
            // Most likely the queue has none of what goes with it either.
            sent.retain(|(name, _)| !name.starts_with("x-dead-letter-") && name != "x-overflow");
        }
    }
}

/// One argument in which a queue differs from a declare.
#[derive(Debug, PartialEq)]
struct Difference<'a> {
    name: &'a str,
    /// Its value in the queue, with the type of that where it is named.
    current: Option<(&'a str, Option<&'a str>)>,
}

impl<'a> Difference<'a> {
    /// Reads `… inequivalent arg 'NAME' for queue … but current is CURRENT`, where CURRENT is
    /// `none`, `'VALUE'` or `the value 'VALUE' of type 'TYPE'`. RabbitMQ cuts off what is too long.
    fn parse(refusal: &'a str) -> Option<Self> {
        let (_, rest) = refusal.split_once("inequivalent arg '")?;
        let (name, rest) = rest.split_once('\'')?;
        let (_, current) = rest.rsplit_once(" but current is ")?;
        let current = match current.strip_prefix("the value '") {
            _ if current == "none" => None,
            Some(typed) => {
                let (value, kind) = typed.strip_suffix('\'')?.rsplit_once("' of type '")?;
                Some((value, Some(kind)))
            }
            None => Some((current.strip_prefix('\'')?.strip_suffix('\'')?, None)),
        };
        Some(Self { name, current })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECLARED: &str = "inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' \
                            but current is 'false'";
    const TTL: &str = "inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': received none \
                       but current is the value '60000' of type 'signedint'";
    const NO_EXCHANGE: &str = "inequivalent arg 'x-dead-letter-exchange' for queue 'q' in vhost '/': \
                               received the value '' of type 'longstr' but current is none";
    const LIMIT: &str = "inequivalent arg 'x-delivery-limit' for queue 'it's' in vhost '/': received \
                         '1000' but current is '3'";
    const KEY: &str = "inequivalent arg 'x-dead-letter-routing-key' for queue 'q' in vhost '/': \
                       received 'votes.dlq' but current is '7'";

    fn learned(refusals: &[&str]) -> (QueueArguments, Vec<(String, Value)>) {
        let mut sent: Vec<(String, Value)> = [
            ("x-dead-letter-exchange", Value::from("")),
            ("x-dead-letter-routing-key", Value::from("votes.dlq")),
            ("x-queue-type", Value::from("quorum")),
            ("x-delivery-limit", Value::from(1_000)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let mut learned = QueueArguments::default();
        for refusal in refusals {
            let whole = format!("AMQP soft error: PRECONDITION_FAILED - {refusal}");
            learned.add(Difference::parse(&whole).expect("a difference"), &mut sent);
        }
        (learned, sent)
    }

    #[test]
    fn what_a_refusal_names_is_known_and_sent_next() {
        let (found, sent) = learned(&[DECLARED, TTL]);
        assert!(!found.durable && !found.auto_delete && !found.complete);
        assert_eq!(found.number("x-message-ttl"), Some(60_000));
        assert_eq!(sent[0], ("x-message-ttl".to_owned(), Value::from(60_000)));
        assert!(!found.is_unset("x-dead-letter-exchange"), "unknown is not unset");
    }

    #[test]
    fn what_is_compared_before_a_difference_is_equal() {
        let (plain, sent) = learned(&[NO_EXCHANGE, LIMIT]);
        assert!(plain.is_unset("x-dead-letter-exchange") && plain.is_quorum());
        assert_eq!(plain.number("x-delivery-limit"), Some(3));
        assert_eq!(sent.len(), 2, "no key without an exchange: {sent:?}");
        let (elsewhere, _) = learned(&[KEY]);
        let text = |name| elsewhere.text(name);
        assert_eq!(text("x-dead-letter-exchange"), Some(""));
        assert_eq!(text("x-dead-letter-routing-key"), Some("7"), "a text, as was sent");
        assert_eq!(text("x-queue-type"), None, "compared later");
    }

    #[test]
    fn a_refusal_that_is_cut_off_or_for_another_reason_is_not_guessed() {
        for text in [
            &TTL[..TTL.len() - 1],
            &LIMIT[..LIMIT.len() - 1],
            "PRECONDITION_FAILED - invalid arg 'x-max-age' for queue 'q' in vhost '/'",
        ] {
            assert_eq!(Difference::parse(text), None, "{text}");
        }
    }
}
