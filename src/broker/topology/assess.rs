//! What a queue's arguments mean for votes: one list of findings, from which both the warnings at
//! start and `vote-aggregator check` are told.

use std::time::Duration;

use super::learn::Known;
use crate::check::{Finding, Severity};
use crate::telemetry::DeadLetterRoute;

use Severity::{Error, Warning};

/// A limit up to this, RabbitMQ 4's own default, can drop good votes in a long outage.
const LOW_DELIVERY_LIMIT: i64 = 20;

/// How to get another queue: its arguments and its type never change.
macro_rules! recreate {
    ($queue:literal) => {
        concat!(
            "stop the publishers (without a queue the broker confirms votes and drops them), drain the ",
            "queue, delete it and let the service create ",
            $queue
        )
    };
}

/// What to do about most arguments.
const REMAKE: &str = concat!("if a policy sets it, change the policy; if not, ", recreate!("it"));

/// A policy does not create the queue that it leads to.
const SET_ROUTE: &str = "see that the dead-letter queue exists (the service creates it when it \
                         starts), then set a policy: docs/runbook.md#votedeadletterroutemissing";

/// A finding, and who is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    pub(crate) finding: Finding,
    /// At start, too. What only makes a loss in a crash less unlikely is for `check` alone.
    pub(crate) at_start: bool,
    /// What readiness shows of it: names of queues and exchanges are for the log.
    pub(crate) shown: &'static str,
}

/// What the broker told of the queue.
#[derive(Debug)]
pub(crate) struct Assessment {
    pub(crate) route: DeadLetterRoute,
    pub(crate) noted: Vec<Noted>,
    /// Where rejected messages go, when that is known.
    pub(crate) target: Option<Target>,
    /// A quorum queue that nobody set a delivery limit for: RabbitMQ's own default holds.
    pub(crate) default_limit: bool,
    /// The queue's type, when it is none that the service can take votes from.
    pub(crate) unsuitable_type: Option<String>,
    /// The queue's own consumer timeout, when it has one.
    pub(crate) consumer_timeout: Option<Duration>,
    /// Why the management API did not tell, when it was asked.
    pub(crate) management_failed: Option<String>,
}

/// Where rejected messages go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Queue(String),
    /// Through an exchange, whose bindings AMQP does not show.
    Exchange(String),
    /// To an exchange that the management API shows without any binding.
    Unbound(String),
    /// To the default exchange under the key they came with: into this very queue.
    Itself,
    /// Somewhere that does not exist.
    Missing(String),
    Nowhere,
}

impl Known {
    pub(super) fn target(&self) -> Target {
        let key = self.text("x-dead-letter-routing-key");
        match (self.text("x-dead-letter-exchange"), key) {
            (None, _) => Target::Nowhere,
            (Some(exchange), _) if !exchange.is_empty() => Target::Exchange(exchange),
            (Some(_), Some(queue)) => Target::Queue(queue),
            (Some(_), None) => Target::Itself,
        }
    }

    fn is_quorum(&self) -> bool {
        self.text("x-queue-type").as_deref() == Some("quorum")
    }
}

impl Assessment {
    /// Of a queue whose arguments nobody tells.
    pub(super) fn of_unknown(queue: &str) -> Self {
        let finding = Finding::new(
            Warning,
            subject(queue),
            "the broker does not tell this queue's arguments; whether rejected messages are kept \
             is unknown",
            "set RABBITMQ_MANAGEMENT_URL, or give the user the permission to configure the queue",
        );
        Self {
            route: DeadLetterRoute::Unknown,
            noted: vec![Noted {
                finding,
                at_start: true,
                shown: "whether rejected messages are kept is unknown",
            }],
            target: None,
            default_limit: false,
            unsuitable_type: None,
            consumer_timeout: None,
            management_failed: None,
        }
    }

    /// Of a queue whose examination was given up.
    pub(in crate::broker) fn unfinished(queue: &str, waited: Duration) -> Self {
        let finding = Finding::new(
            Warning,
            subject(queue),
            format!(
                "the broker did not answer all questions about this queue within {waited:?}; \
                 whether rejected messages are kept is unknown"
            ),
            "look at the broker's load and at its log; `vote-aggregator check --connect` asks again",
        );
        let shown = "whether rejected messages are kept is unknown";
        let noted = vec![Noted { finding, at_start: true, shown }];
        Self { noted, ..Self::of_unknown(queue) }
    }
}

fn subject(queue: &str) -> String {
    format!("queue {queue:?}")
}

/// What is to be said of the queue that votes are taken from.
pub(super) fn assess(queue: &str, known: &Known, target: Target) -> Assessment {
    if let Some(kind) = known.unsuitable_type() {
        return Assessment {
            noted: vec![unsuitable(queue, &kind)],
            unsuitable_type: Some(kind),
            ..Assessment::of_unknown(queue)
        };
    }
    let (route, finding) = route(queue, known, &target);
    let shown = match route {
        DeadLetterRoute::No => "rejected messages are lost: no dead-letter route",
        _ => "whether rejected messages are kept is unknown",
    };
    let mut noted: Vec<Noted> =
        finding.into_iter().map(|finding| Noted { finding, at_start: true, shown }).collect();
    noted.extend(what_drops(queue, "votes", known));
    noted.extend(delivery_limit(queue, known));
    noted.extend(kind(queue, known, &target));
    let consumer_timeout = known.number("x-consumer-timeout").and_then(|ms| u64::try_from(ms).ok());
    Assessment {
        route,
        noted,
        target: Some(target),
        unsuitable_type: None,
        default_limit: known.is_quorum() && known.number("x-delivery-limit").is_none(),
        consumer_timeout: consumer_timeout.map(Duration::from_millis),
        management_failed: None,
    }
}

/// What is to be said of the dead-letter queue. Its dead letters need no route and are given back
/// by nobody.
pub(super) fn assess_dead_letters(queue: &str, known: &Known) -> Vec<Noted> {
    match known.unsuitable_type() {
        Some(kind) => vec![unsuitable(queue, &kind)],
        None => what_drops(queue, "dead letters", known),
    }
}

fn unsuitable(queue: &str, kind: &str) -> Noted {
    let meaning = "acks and rejects of a queue of this type remove and dead-letter nothing: votes \
                   that arrive while no instance runs are never counted, and others are counted \
                   again";
    let remedy = "name a quorum queue in RABBITMQ_QUEUE (or RABBITMQ_DEAD_LETTER_QUEUE); the \
                  service creates one that does not exist";
    let finding = Finding::new(Error, subject(queue), meaning, remedy)
        .with_value(format!("x-queue-type={kind}"));
    Noted { finding, at_start: true, shown: "a queue of a type that votes cannot be taken from" }
}

fn route(queue: &str, known: &Known, target: &Target) -> (DeadLetterRoute, Option<Finding>) {
    use DeadLetterRoute::{No, Unknown, Yes};
    let (route, severity, meaning, remedy) = match target {
        Target::Queue(_) => return (Yes, None),
        Target::Exchange(name) => (
            Unknown,
            Warning,
            format!(
                "rejected messages go to the exchange {name:?}; whether a queue is bound to it \
                 can't be seen, and if none is they vanish"
            ),
            "look at its bindings: rabbitmqctl list_bindings",
        ),
        Target::Unbound(name) => (
            No,
            Error,
            format!(
                "rejected messages go to the exchange {name:?}, to which nothing is bound: \
                     they vanish"
            ),
            "bind the dead-letter queue to it",
        ),
        Target::Itself => (
            No,
            Error,
            "rejected messages go to the default exchange under the key they came with: back into \
             this queue, or nowhere"
                .to_owned(),
            "set x-dead-letter-routing-key",
        ),
        Target::Missing(what) => (
            No,
            Error,
            format!("rejected messages are routed to {what}, which does not exist: they vanish"),
            "create it, durable, before another message is rejected (the service creates \
             RABBITMQ_DEAD_LETTER_QUEUE when it starts), or name another by a policy",
        ),
        Target::Nowhere if known.policies => (
            No,
            Error,
            "the queue has no dead-letter exchange: a rejected message vanishes".to_owned(),
            SET_ROUTE,
        ),
        Target::Nowhere => (
            Unknown,
            Warning,
            "the queue was declared without a dead-letter exchange: unless a policy sets one \
             (RABBITMQ_MANAGEMENT_URL lets us see it), a rejected message vanishes"
                .to_owned(),
            SET_ROUTE,
        ),
    };
    (route, Some(Finding::new(severity, subject(queue), meaning, remedy)))
}

/// What takes messages out of a queue that nobody has dealt with.
fn what_drops(queue: &str, what: &str, known: &Known) -> Vec<Noted> {
    let mut noted = Vec::new();
    let mut note = |shown: &'static str, value: Option<String>, meaning: String, remedy: &str| {
        let finding = Finding { value, ..Finding::new(Error, subject(queue), meaning, remedy) };
        noted.push(Noted { finding, at_start: true, shown });
    };
    if let Some(ttl) = known.number("x-message-ttl") {
        let value = format!("x-message-ttl={ttl}");
        note(
            "x-message-ttl: old messages are dropped",
            Some(value),
            format!("{what} older than {ttl} ms are dropped"),
            REMAKE,
        );
    }
    if let Some(expires) = known.number("x-expires") {
        note(
            "x-expires: an unused queue is deleted",
            Some(format!("x-expires={expires}")),
            format!("unused for {expires} ms, the queue is deleted"),
            REMAKE,
        );
    }
    let overflow = known.text("x-overflow").unwrap_or_else(|| "drop-head".to_owned());
    for name in ["x-max-length", "x-max-length-bytes"] {
        if let Some(length) = known.number(name)
            && overflow == "drop-head"
        {
            note(
                "x-max-length: a full queue drops its oldest messages",
                Some(format!("{name}={length} with drop-head")),
                format!("a full queue drops its oldest {what}"),
                "let it refuse publishes instead: x-overflow=reject-publish, by a policy",
            );
        }
    }
    let remake = recreate!("it");
    if !known.flags.durable {
        let meaning = "the queue is not durable: a restart of the broker empties it";
        note("the queue is not durable", None, meaning.to_owned(), remake);
    }
    if known.flags.auto_delete {
        let meaning = "the queue is auto-delete: it goes with its last consumer";
        note("the queue is auto-delete", None, meaning.to_owned(), remake);
    }
    if known.flags.exclusive {
        let meaning = "the queue is exclusive: it goes with the connection that declared it";
        note("the queue is exclusive", None, meaning.to_owned(), remake);
    }
    noted
}

fn delivery_limit(queue: &str, known: &Known) -> Option<Noted> {
    let limit = known.number("x-delivery-limit").filter(|limit| *limit <= LOW_DELIVERY_LIMIT)?;
    let (severity, meaning) = match limit {
        i64::MIN..=-1 => (
            Error,
            "without a limit from RabbitMQ 4 on; 3.x drops a vote at the first time that it is \
             given back"
                .to_owned(),
        ),
        0 => (Error, "a vote that is given back once, in an outage, is dropped".to_owned()),
        _ => (Warning, format!("votes given back {limit} times in an outage are dropped")),
    };
    let remedy = "set delivery-limit to 1000 by a policy; where an argument of the queue sets it, \
                  the queue has to be made anew";
    let finding = Finding::new(severity, subject(queue), meaning, remedy)
        .with_value(format!("x-delivery-limit={limit}"));
    Some(Noted { finding, at_start: true, shown: "x-delivery-limit: votes given back are dropped" })
}

/// What a crash of the broker can cost beside: for `check`.
fn kind(queue: &str, known: &Known, target: &Target) -> Option<Noted> {
    let (value, meaning, remedy) = if known.is_quorum() {
        let strategy = known.text("x-dead-letter-strategy");
        let safe = strategy.as_deref() == Some("at-least-once")
            && known.text("x-overflow").as_deref() == Some("reject-publish");
        // Without a route there is nothing to be careful with.
        if safe || !matches!(target, Target::Queue(_) | Target::Exchange(_)) {
            return None;
        }
        (
            "dead-lettering at most once",
            "a message that is rejected at the moment a broker crashes can be lost on its way to \
             the dead letters",
            "set dead-letter-strategy=at-least-once and overflow=reject-publish by a policy",
        )
    } else {
        let kind = known.text("x-queue-type");
        if kind.as_deref().is_some_and(|kind| kind != "classic") {
            return None;
        }
        (
            "x-queue-type=classic",
            "a classic queue is on one node only: while that is down no vote comes, and with its \
             disk its votes are gone. A message that is rejected when the broker is killed can be \
             lost on its way to the dead letters (2 of 2,370 in eight kills)",
            recreate!("a quorum queue"),
        )
    };
    let finding = Finding::new(Warning, subject(queue), meaning, remedy).with_value(value);
    Some(Noted { finding, at_start: false, shown: "a crash of the broker can cost votes" })
}

#[cfg(test)]
mod tests;
