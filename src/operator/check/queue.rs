//! What a queue's arguments mean for votes: one list of findings, for the warnings at start and for
//! `vote-aggregator check`.

use super::{Finding, Severity};
use crate::adapters::broker::{DeadLetterTarget, QueueArguments, QueueFacts};
use crate::platform::config::keys;
use crate::platform::telemetry::DeadLetterRoute;

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
const RECREATE: &str = concat!("if a policy sets it, change the policy; if not, ", recreate!("it"));

/// A policy does not create the queue that it leads to.
const SET_ROUTE: &str = "see that the dead-letter queue exists (the service creates it when it \
                         starts), then set a policy: docs/runbook.md#votedeadletterroutemissing";

const ROUTE_UNKNOWN: &str = "whether rejected messages are kept is unknown";

/// A finding about a queue, and where it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueFinding {
    pub finding: Finding,
    /// Also at start. What only makes a loss in a crash less likely is for `check` alone.
    pub at_start: bool,
    /// What readiness shows: names of queues and exchanges are for the log.
    pub summary: &'static str,
}

impl QueueFinding {
    fn new(
        severity: Severity,
        queue: &str,
        summary: &'static str,
        meaning: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let finding = Finding::new(severity, subject(queue), meaning, remedy);
        Self { finding, at_start: true, summary }
    }

    fn with_value(mut self, value: impl Into<String>) -> Self {
        self.finding.value = Some(value.into());
        self
    }
}

pub(super) fn subject(queue: &str) -> String {
    format!("queue {queue:?}")
}

/// Returns whether the broker keeps rejected messages.
pub fn route(facts: &QueueFacts) -> DeadLetterRoute {
    match &facts.target {
        Some(DeadLetterTarget::Queue(_)) => DeadLetterRoute::Yes,
        Some(DeadLetterTarget::Nowhere) if !facts.arguments.policies => DeadLetterRoute::Unknown,
        None | Some(DeadLetterTarget::Exchange(_)) => DeadLetterRoute::Unknown,
        Some(_) => DeadLetterRoute::No,
    }
}

/// Returns what is to be said of the queue that votes are taken from.
pub fn of_queue(queue: &str, facts: &QueueFacts) -> Vec<QueueFinding> {
    let arguments = &facts.arguments;
    if let Some(kind) = arguments.unsuitable_type() {
        return vec![unsuitable(queue, kind)];
    }
    let mut findings: Vec<QueueFinding> = no_route(queue, facts).into_iter().collect();
    findings.extend(what_drops(queue, "votes", arguments));
    findings.extend(delivery_limit(queue, arguments));
    findings.extend(lost_in_a_crash(queue, facts));
    findings.extend(unknown(queue, facts));
    findings
}

/// Returns what is to be said of the dead-letter queue, which needs neither a route nor a delivery limit.
pub fn of_dead_letter_queue(queue: &str, facts: &QueueFacts) -> Vec<QueueFinding> {
    match facts.arguments.unsuitable_type() {
        Some(kind) => vec![unsuitable(queue, kind)],
        None => what_drops(queue, "dead letters", &facts.arguments),
    }
}

fn unsuitable(queue: &str, kind: &str) -> QueueFinding {
    let meaning = "acks and rejects of a queue of this type remove and dead-letter nothing: votes \
                   that arrive while no instance runs are never counted, and others are counted \
                   again";
    let remedy = "name a quorum queue in RABBITMQ_QUEUE (or RABBITMQ_DEAD_LETTER_QUEUE); the \
                  service creates one that does not exist";
    let summary = "a queue of a type that votes cannot be taken from";
    QueueFinding::new(Error, queue, summary, meaning, remedy)
        .with_value(format!("x-queue-type={kind}"))
}

/// The arguments that were not learnt.
fn unknown(queue: &str, facts: &QueueFacts) -> Option<QueueFinding> {
    let (summary, meaning) = match facts.target {
        _ if facts.arguments.complete => return None,
        None => (
            ROUTE_UNKNOWN,
            "the broker does not tell all arguments of this queue; whether rejected messages are \
             kept, and whether others are dropped, is unknown",
        ),
        Some(_) => (
            "not all arguments of the queue are known",
            "the broker does not tell all arguments of this queue; whether another one drops votes \
             is unknown",
        ),
    };
    let remedy = format!(
        "set {}; `vote-aggregator check --connect` asks for more, if the user may configure the queue",
        keys::RABBITMQ_MANAGEMENT_URL.variable
    );
    Some(QueueFinding::new(Warning, queue, summary, meaning, remedy))
}

fn no_route(queue: &str, facts: &QueueFacts) -> Option<QueueFinding> {
    const CREATE: &str = "create it, durable, before another message is rejected (the service creates \
                          RABBITMQ_DEAD_LETTER_QUEUE when it starts), or name another by a policy";
    let does_not_exist = |kind: &str, name: &str| {
        format!("rejected messages go to the {kind} {name:?}, which does not exist: they vanish")
    };
    let (meaning, remedy) = match facts.target.as_ref()? {
        DeadLetterTarget::Queue(_) => return None,
        DeadLetterTarget::Exchange(name) => (
            format!(
                "rejected messages go to the exchange {name:?}; whether a queue is bound to it \
                 can't be seen, and if none is they vanish"
            ),
            "look at its bindings: rabbitmqctl list_bindings",
        ),
        DeadLetterTarget::UnboundExchange(name) => (
            format!(
                "rejected messages go to the exchange {name:?}, to which nothing is bound: they \
                 vanish"
            ),
            "bind the dead-letter queue to it",
        ),
        DeadLetterTarget::SameQueue => (
            "rejected messages go to the default exchange under the key they came with: back into \
             this queue, or nowhere"
                .to_owned(),
            "set x-dead-letter-routing-key",
        ),
        DeadLetterTarget::MissingQueue(name) => (does_not_exist("queue", name), CREATE),
        DeadLetterTarget::MissingExchange(name) => (does_not_exist("exchange", name), CREATE),
        DeadLetterTarget::Nowhere if facts.arguments.policies => (
            "the queue has no dead-letter exchange: a rejected message vanishes".to_owned(),
            SET_ROUTE,
        ),
        DeadLetterTarget::Nowhere => (
            "the queue was declared without a dead-letter exchange: unless a policy sets one \
             (RABBITMQ_MANAGEMENT_URL lets us see it), a rejected message vanishes"
                .to_owned(),
            SET_ROUTE,
        ),
    };
    let (severity, summary) = match route(facts) {
        DeadLetterRoute::No => (Error, "rejected messages are lost: no dead-letter route"),
        _ => (Warning, ROUTE_UNKNOWN),
    };
    Some(QueueFinding::new(severity, queue, summary, meaning, remedy))
}

/// What takes messages out of a queue that are not dealt with.
fn what_drops(queue: &str, what: &str, arguments: &QueueArguments) -> Vec<QueueFinding> {
    let mut findings = Vec::new();
    let mut add = |summary, value: Option<String>, meaning: String, remedy: &str| {
        let mut finding = QueueFinding::new(Error, queue, summary, meaning, remedy);
        finding.finding.value = value;
        findings.push(finding);
    };
    if let Some(ttl) = arguments.number("x-message-ttl") {
        add(
            "x-message-ttl: old messages are dropped",
            Some(format!("x-message-ttl={ttl}")),
            format!("{what} older than {ttl} ms are dropped"),
            RECREATE,
        );
    }
    if let Some(expires) = arguments.number("x-expires") {
        add(
            "x-expires: an unused queue is deleted",
            Some(format!("x-expires={expires}")),
            format!("unused for {expires} ms, the queue is deleted"),
            RECREATE,
        );
    }
    let overflow = arguments.text("x-overflow");
    let drops_oldest = overflow == Some("drop-head") || arguments.is_unset("x-overflow");
    for name in ["x-max-length", "x-max-length-bytes"] {
        if let Some(length) = arguments.number(name).filter(|_| drops_oldest) {
            add(
                "x-max-length: a full queue drops its oldest messages",
                Some(format!("{name}={length} with drop-head")),
                format!("a full queue drops its oldest {what}"),
                "let it refuse publishes instead: x-overflow=reject-publish, by a policy",
            );
        }
    }
    for (loses, summary, when) in [
        (!arguments.durable, "the queue is not durable", "a restart of the broker empties it"),
        (arguments.auto_delete, "the queue is auto-delete", "it goes with its last consumer"),
    ] {
        if loses {
            add(summary, None, format!("{summary}: {when}"), recreate!("it"));
        }
    }
    findings
}

fn delivery_limit(queue: &str, arguments: &QueueArguments) -> Option<QueueFinding> {
    let limit =
        arguments.number("x-delivery-limit").filter(|limit| *limit <= LOW_DELIVERY_LIMIT)?;
    let (severity, meaning) = match limit {
        i64::MIN..=-1 => (
            Error,
            "without a limit from RabbitMQ 4 on; 3.x drops a vote at its first requeue".to_owned(),
        ),
        0 => (Error, "a vote that is requeued once, in an outage, is dropped".to_owned()),
        _ => (Warning, format!("votes requeued {limit} times in an outage are dropped")),
    };
    let remedy = "set delivery-limit to 1000 by a policy; where an argument of the queue sets it, \
                  the queue has to be created again";
    let summary = "x-delivery-limit: requeued votes are dropped";
    let finding = QueueFinding::new(severity, queue, summary, meaning, remedy);
    Some(finding.with_value(format!("x-delivery-limit={limit}")))
}

/// What a crash of the broker can cost besides.
fn lost_in_a_crash(queue: &str, facts: &QueueFacts) -> Option<QueueFinding> {
    let arguments = &facts.arguments;
    let is_classic = arguments.is_unset("x-queue-type")
        || arguments.text("x-queue-type").is_some_and(|kind| kind == "classic");
    let has_route =
        matches!(facts.target, Some(DeadLetterTarget::Queue(_) | DeadLetterTarget::Exchange(_)));
    let at_least_once = arguments.text("x-dead-letter-strategy") == Some("at-least-once")
        && arguments.text("x-overflow") == Some("reject-publish");
    let (value, meaning, remedy) = if is_classic {
        (
            "x-queue-type=classic",
            "a classic queue is on one node only: while that is down no vote comes, and with its \
             disk its votes are gone. A message that is rejected when the broker is killed can be \
             lost on its way to the dead letters (2 of 2,370 in eight kills)",
            recreate!("a quorum queue"),
        )
    } else if arguments.complete && arguments.is_quorum() && has_route && !at_least_once {
        (
            "dead-lettering at most once",
            "a message that is rejected at the moment a broker crashes can be lost on its way to \
             the dead letters",
            "set dead-letter-strategy=at-least-once and overflow=reject-publish by a policy",
        )
    } else {
        return None;
    };
    let summary = "a crash of the broker can cost votes";
    let finding = QueueFinding::new(Warning, queue, summary, meaning, remedy).with_value(value);
    Some(QueueFinding { at_start: false, ..finding })
}

#[cfg(test)]
mod tests;
