//! What a queue's arguments mean for votes: one list of findings, for the warnings at start and for
//! `vote-aggregator check`.

use super::{Finding, Severity};
use crate::adapters::broker::{DeadLetterTarget, QueueArguments, QueueFacts, ServerVersion};
use crate::platform::config::keys;
use crate::platform::telemetry::DeadLetterRoute;

use Severity::{Error, Warning};

/// A limit up to this, RabbitMQ 4's own default, can drop good votes in a long outage.
const LOW_DELIVERY_LIMIT: u32 = 20;
/// A vote that may come back so many times more is about to be dropped.
const LAST_RETURNS: u32 = 5;
const RAISE_LIMIT: &str = "set delivery-limit to 1000 by a policy (it applies at once); where an argument \
                           of the queue sets the limit, the queue has to be created again";

/// A queue's arguments and its type never change.
const RECREATE: &str = "stop the publishers (without a queue the broker confirms votes and drops \
                        them), drain the queue, delete it and let the service create it, a quorum queue";

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
    /// For readiness, which shows no names of queues and exchanges.
    pub summary: &'static str,
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

/// How often a vote that is held now may come back, where the broker is about to drop it.
pub fn last_returns(facts: &QueueFacts) -> Option<u32> {
    facts.returns_left().filter(|left| *left <= LAST_RETURNS)
}

/// Returns the findings about the queue of votes.
pub fn of_queue(queue: &str, facts: &QueueFacts) -> Vec<QueueFinding> {
    let mut findings = Findings { queue, found: Vec::new() };
    findings.what_drops("votes", &facts.arguments);
    if facts.arguments.unsuitable_type().is_none() {
        findings.no_route(facts);
        findings.delivery_limit(facts);
        findings.last_returns(facts);
        findings.lost_in_a_crash(facts);
        findings.unknown(facts);
    }
    findings.found
}

/// Returns the findings about the dead-letter queue, which needs neither a route nor a delivery limit.
pub fn of_dead_letter_queue(queue: &str, facts: &QueueFacts) -> Vec<QueueFinding> {
    let mut findings = Findings { queue, found: Vec::new() };
    findings.what_drops("dead letters", &facts.arguments);
    findings.found
}

/// What the limit means that RabbitMQ 4 gives a quorum queue without one.
fn default_limit(limit: u32, facts: &QueueFacts) -> String {
    let counted = if facts.server >= Some(ServerVersion::CONSUMER_TIMEOUTS) {
        "each connection that is lost while a vote is held counts; an outage of PostgreSQL does not"
    } else {
        "each outage of PostgreSQL and each connection that is lost while a vote is held counts"
    };
    let unless = if facts.arguments.policies { "" } else { ", unless a policy sets another" };
    format!(
        "RabbitMQ 4's default holds: a vote that comes back more than {limit} times is \
         dropped{unless}; {counted}"
    )
}

struct Findings<'a> {
    queue: &'a str,
    found: Vec<QueueFinding>,
}

impl Findings<'_> {
    fn add(
        &mut self,
        severity: Severity,
        summary: &'static str,
        value: Option<String>,
        meaning: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let finding = Finding::new(severity, subject(self.queue), meaning, remedy);
        let finding = Finding { value, ..finding };
        self.found.push(QueueFinding { finding, at_start: true, summary });
    }

    /// What takes messages out of the queue that nothing has settled.
    fn what_drops(&mut self, what: &str, arguments: &QueueArguments) {
        if let Some(kind) = arguments.unsuitable_type() {
            let summary = "a queue of a type that votes cannot be consumed from";
            let meaning = "acks of a queue of this type do not remove messages and rejects do not \
                           dead-letter them: votes that arrive while no instance runs are never \
                           counted, and others are counted again";
            let remedy = "name a quorum queue in RABBITMQ_QUEUE (or RABBITMQ_DEAD_LETTER_QUEUE); the \
                          service creates one that does not exist";
            return self.add(Error, summary, Some(format!("x-queue-type={kind}")), meaning, remedy);
        }
        let change = format!("if a policy sets it, change the policy; if not, {RECREATE}");
        if let Some(ttl) = arguments.number("x-message-ttl") {
            let summary = "x-message-ttl: old messages are dropped";
            let meaning = format!("{what} older than {ttl} ms are dropped");
            self.add(Error, summary, Some(format!("x-message-ttl={ttl}")), meaning, &change);
        }
        if let Some(expires) = arguments.number("x-expires") {
            let summary = "x-expires: an unused queue is deleted";
            let meaning = format!("unused for {expires} ms, the queue is deleted");
            self.add(Error, summary, Some(format!("x-expires={expires}")), meaning, &change);
        }
        let overflow = arguments.text("x-overflow");
        let drops_oldest = overflow == Some("drop-head") || arguments.is_unset("x-overflow");
        for name in ["x-max-length", "x-max-length-bytes"] {
            if let Some(length) = arguments.number(name).filter(|_| drops_oldest) {
                let summary = "x-max-length: a full queue drops its oldest messages";
                let value = Some(format!("{name}={length} with drop-head"));
                let meaning = format!("a full queue drops its oldest {what}");
                let remedy =
                    "let it refuse publishes instead: x-overflow=reject-publish, by a policy";
                self.add(Error, summary, value, meaning, remedy);
            }
        }
        for (loses, summary, when) in [
            (!arguments.durable, "the queue is not durable", "a restart of the broker empties it"),
            (
                arguments.auto_delete,
                "the queue is auto-delete",
                "it is deleted with its last consumer",
            ),
        ] {
            if loses {
                self.add(Error, summary, None, format!("{summary}: {when}"), RECREATE);
            }
        }
    }

    fn no_route(&mut self, facts: &QueueFacts) {
        const CREATE: &str = "create it, durable, before another message is rejected (the service \
                              creates RABBITMQ_DEAD_LETTER_QUEUE when it starts), or name another by \
                              a policy";
        let lost = |place: &str, name: &str, why: &str| {
            format!("rejected messages go to the {place} {name:?}, {why}: they are lost")
        };
        let (meaning, remedy) = match &facts.target {
            None | Some(DeadLetterTarget::Queue(_)) => return,
            Some(DeadLetterTarget::Exchange(name)) => {
                let meaning = format!(
                    "rejected messages go to the exchange {name:?}; whether a queue is bound to it \
                     is not visible; if none is, they are lost"
                );
                (meaning, "look at its bindings: rabbitmqctl list_bindings")
            }
            Some(DeadLetterTarget::UnboundExchange(name)) => {
                let meaning = lost("exchange", name, "to which nothing is bound");
                (meaning, "bind the dead-letter queue to it")
            }
            Some(DeadLetterTarget::SameQueue) => {
                let meaning = "rejected messages go to the default exchange under the key they came \
                               with: back into this queue, or nowhere";
                (meaning.to_owned(), "set x-dead-letter-routing-key")
            }
            Some(DeadLetterTarget::MissingQueue(name)) => {
                (lost("queue", name, "which does not exist"), CREATE)
            }
            Some(DeadLetterTarget::MissingExchange(name)) => {
                (lost("exchange", name, "which does not exist"), CREATE)
            }
            Some(DeadLetterTarget::Nowhere) if facts.arguments.policies => {
                let meaning = "the queue has no dead-letter exchange: a rejected message is lost";
                (meaning.to_owned(), SET_ROUTE)
            }
            Some(DeadLetterTarget::Nowhere) => {
                let meaning = "the queue was declared without a dead-letter exchange: unless a \
                               policy sets one (RABBITMQ_MANAGEMENT_URL makes it visible), a \
                               rejected message is lost";
                (meaning.to_owned(), SET_ROUTE)
            }
        };
        let (severity, summary) = match route(facts) {
            DeadLetterRoute::No => (Error, "rejected messages are lost: no dead-letter route"),
            _ => (Warning, ROUTE_UNKNOWN),
        };
        self.add(severity, summary, None, meaning, remedy);
    }

    fn delivery_limit(&mut self, facts: &QueueFacts) {
        const ARGUMENT: &str = "x-delivery-limit";
        let set = facts.arguments.number(ARGUMENT);
        let (severity, meaning) = match (set, facts.delivery_limit()) {
            (Some(..0), _) => (
                Error,
                "without a limit from RabbitMQ 4 on; 3.x drops a vote at its first requeue"
                    .to_owned(),
            ),
            (Some(0), _) => {
                (Error, "a vote that is requeued once, in an outage, is dropped".to_owned())
            }
            (Some(_), Some(limit @ ..=LOW_DELIVERY_LIMIT)) => {
                (Warning, format!("votes that come back more than {limit} times are dropped"))
            }
            (None, Some(limit)) if facts.arguments.is_unset(ARGUMENT) => {
                (Warning, default_limit(limit, facts))
            }
            _ => return,
        };
        let value = set.map_or(format!("no {ARGUMENT}"), |limit| format!("{ARGUMENT}={limit}"));
        let summary = "x-delivery-limit: votes that come back often are dropped";
        self.add(severity, summary, Some(value), meaning, RAISE_LIMIT);
    }

    fn last_returns(&mut self, facts: &QueueFacts) {
        let Some(left) = last_returns(facts) else { return };
        let (returned, limit) = (facts.returned, facts.returned + left);
        let value = Some(format!("{returned} of {limit}"));
        let meaning = format!(
            "a vote that is held now has come back {returned} times; after {limit} times the broker drops \
             it, or dead-letters it where the queue has a dead-letter route"
        );
        let summary = "x-delivery-limit: votes are about to be dropped";
        self.add(Error, summary, value, meaning, RAISE_LIMIT);
    }

    /// What a crash of the broker can cost besides; not reported at start.
    fn lost_in_a_crash(&mut self, facts: &QueueFacts) {
        let QueueFacts { arguments, target, .. } = facts;
        let kind = arguments.text("x-queue-type");
        let has_route =
            matches!(target, Some(DeadLetterTarget::Queue(_) | DeadLetterTarget::Exchange(_)));
        let at_least_once = arguments.text("x-dead-letter-strategy") == Some("at-least-once")
            && arguments.text("x-overflow") == Some("reject-publish");
        let (value, meaning, remedy) = if kind == Some("classic")
            || arguments.is_unset("x-queue-type")
        {
            let meaning = "a classic queue is on one node only: while that is down no vote is \
                           delivered, and if its disk is lost so are the votes. A message that is \
                           rejected when the broker is killed can be lost on its way to the dead \
                           letters (2 of 2,370 in eight kills)";
            ("x-queue-type=classic", meaning, RECREATE)
        } else if arguments.complete && arguments.is_quorum() && has_route && !at_least_once {
            let meaning = "a message that is rejected at the moment a broker crashes can be lost on \
                           its way to the dead letters";
            let remedy =
                "set dead-letter-strategy=at-least-once and overflow=reject-publish by a policy";
            ("dead-lettering at most once", meaning, remedy)
        } else {
            return;
        };
        let finding = Finding::new(Warning, subject(self.queue), meaning, remedy).with_value(value);
        let summary = "a crash of the broker can cost votes";
        self.found.push(QueueFinding { finding, at_start: false, summary });
    }

    /// The arguments that could not be learned.
    fn unknown(&mut self, facts: &QueueFacts) {
        let (summary, unknown) = match facts.target {
            _ if facts.arguments.complete => return,
            None => {
                (ROUTE_UNKNOWN, "whether it keeps rejected messages, and whether it drops others,")
            }
            Some(_) => {
                ("not all arguments of the queue are known", "whether one of them drops votes")
            }
        };
        let meaning =
            format!("the broker does not show all arguments of this queue; {unknown} is unknown");
        let remedy = format!(
            "set {}; `vote-aggregator check --connect` asks for more, if the user may configure the \
             queue",
            keys::RABBITMQ_MANAGEMENT_URL.variable
        );
        self.add(Warning, summary, None, meaning, remedy);
    }
}

#[cfg(test)]
mod tests;
