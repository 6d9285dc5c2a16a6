//! What `vote-aggregator check --connect` says of the broker.

use std::time::Duration;

use tokio::time::timeout;

use super::queue::{of_dead_letter_queue, of_queue, subject};
use super::{Finding, Report, Severity, addresses};
use crate::adapters::broker::{
    self, BrokerFacts, DeadLetterTarget, InspectedQueue, Publishing, QueueFacts, QueueState,
    QueueStatus, ServerVersion,
};
use crate::model::ports::OpenError;
use crate::platform::config::{Config, RabbitMq, keys};

use Severity::{Error, Info, Warning};

/// For everything together. A broker that answers needs a fraction of a second; examining costs some
/// forty round trips.
pub(super) const INSPECT_TIMEOUT: Duration = Duration::from_secs(20);
/// What RabbitMQ gives to a consumer of a quorum queue that sets no limit: large, to its makers.
const LARGE_PREFETCH: u16 = 2000;

/// Checks the broker that `config` names: whether it accepts us, at each address, and what its queues do
/// with votes. Never waits for one that is down. The user needs no more permissions than the service does.
pub async fn broker(config: &Config) -> Report {
    let others = addresses::rabbitmq(config).await;
    let rabbitmq = config.rabbitmq.at(config.rabbitmq.host.in_use());
    let mut facts = BrokerFacts::default();
    let inspected = timeout(INSPECT_TIMEOUT, broker::inspect(&rabbitmq, &mut facts)).await;
    let mut report = report(config, &facts);
    report.absorb(others);
    report.findings.extend(match inspected {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(refused(config, &error)),
        Err(_) => {
            let meaning = format!(
                "RabbitMQ accepted the connection, but did not answer every request within \
                 {INSPECT_TIMEOUT:?}"
            );
            let remedy = "look at its log and at rabbitmqctl status; a node that pauses, or queues \
                          without a majority of their nodes, answer nothing";
            Some(Finding::new(Error, place(&config.rabbitmq), meaning, remedy))
        }
    });
    report
}

fn report(config: &Config, facts: &BrokerFacts) -> Report {
    let RabbitMq { queue, dead_letter_queue, prefetch, .. } = &config.rabbitmq;
    let mut report = Report::default();
    let Report { checked, findings } = &mut report;
    checked.push(broker::describe(&config.rabbitmq));
    findings.extend(facts.server.map(|version| of_version(&config.rabbitmq, version)));
    findings.extend(facts.management_error.as_deref().map(no_management));
    let mut route_is_missing = false;
    if let Some(inspected) = &facts.queue {
        checked.push(subject(queue));
        let unreadable = (Error, "the service can't consume: it ends with 77");
        findings.extend(of_either(config, queue, inspected, unreadable));
        if let QueueState::Exists(status, facts) = &inspected.state {
            route_is_missing = matches!(facts.target, Some(DeadLetterTarget::MissingQueue(_)));
            findings.extend(of_votes(config, *status, facts));
        }
    }
    if let Some(inspected) = &facts.dead_letter_queue {
        checked.push(subject(dead_letter_queue));
        let unreadable = (Warning, "`dlq` commands of this user can't read dead letters");
        let mut found = of_either(config, dead_letter_queue, inspected, unreadable);
        // That its route leads nowhere is an error already.
        found.retain(|finding| finding.severity != Info || !route_is_missing);
        findings.extend(found);
        if let QueueState::Exists(status, facts) = &inspected.state {
            findings.push(dead_letters(dead_letter_queue, status.ready));
            let found = of_dead_letter_queue(dead_letter_queue, facts).into_iter();
            findings.extend(found.map(|found| found.finding));
        }
        if *prefetch > LARGE_PREFETCH {
            let meaning = format!(
                "RabbitMQ grants it; to a consumer of a quorum queue that asks for no limit it \
                 gives {LARGE_PREFETCH}, so it is a large one: delivered messages stay in the \
                 broker's memory"
            );
            let remedy = "nothing, unless the broker is short of memory or other instances go idle";
            let key = &keys::RABBITMQ_PREFETCH_COUNT;
            findings.push(Finding::of_setting(Info, config, key, meaning, remedy));
        }
    }
    if let Some(publishing) = facts.publishing {
        checked.push("permissions on both queues and on the default exchange".to_owned());
        findings.extend(of_publishing(config, publishing));
    }
    report
}

pub(super) fn place(rabbitmq: &RabbitMq) -> String {
    format!("RabbitMQ on {}", rabbitmq.address())
}

/// The error says what to do on our side; the remedy, what to do on the broker's.
pub(super) fn refused(config: &Config, error: &OpenError) -> Finding {
    let (key, remedy) = match error {
        OpenError::Credentials(_) => (
            &keys::RABBITMQ_USER,
            "see what the broker says: its log, rabbitmqctl authenticate_user, \
             rabbitmqctl list_permissions",
        ),
        OpenError::Configuration(_) => (
            &keys::RABBITMQ_HOST,
            "correct the settings that it names, or the broker: rabbitmqctl list_vhosts, \
             rabbitmq-diagnostics listeners",
        ),
        OpenError::Occupied { .. } => {
            (&keys::RABBITMQ_HOST, "free it, or raise the limit; the service waits for it")
        }
        OpenError::Unavailable(_) => (
            &keys::RABBITMQ_HOST,
            "start the broker, or check RABBITMQ_HOST, RABBITMQ_PORT and the network; the service \
             would wait for it",
        ),
    };
    Finding::of_setting(Error, config, key, error.to_string(), remedy)
}

fn of_version(rabbitmq: &RabbitMq, version: ServerVersion) -> Finding {
    let finding = if version >= ServerVersion::AT_LEAST_ONCE {
        let meaning = "new enough for everything that the service asks of it";
        Finding::new(Info, place(rabbitmq), meaning, "nothing")
    } else {
        let meaning = "quorum queues dead-letter at least once from RabbitMQ 3.10 on: before, a \
                       message that is rejected can be lost on its way to the dead letters";
        Finding::new(Warning, place(rabbitmq), meaning, "upgrade RabbitMQ")
    };
    finding.with_value(format!("RabbitMQ {version}"))
}

fn no_management(error: &str) -> Finding {
    let meaning = format!("the management API does not answer: {error}; policies can't be seen");
    let remedy = format!(
        "check {}, that the plugin rabbitmq_management is enabled, and that the user has the tag \
         monitoring or management",
        keys::RABBITMQ_MANAGEMENT_URL.variable
    );
    Finding::new(Warning, keys::RABBITMQ_MANAGEMENT_URL.path, meaning, remedy)
}

/// Whether one of the two queues is there, and whether the user may use it; `unreadable` is what it
/// means when the user may not read it.
fn of_either(
    config: &Config,
    queue: &str,
    inspected: &InspectedQueue,
    unreadable: (Severity, &str),
) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut lack =
        (Error, "permission to create", "it does not exist, and the service ends with 77");
    match inspected.state {
        QueueState::Exists(..) => lack = (unreadable.0, "read permission on", unreadable.1),
        QueueState::Missing => {
            let meaning = "it does not exist: the service creates it, a quorum queue, when it starts. \
                           Nothing was created now";
            let remedy = "nothing, if the user may configure it (rabbitmqctl list_permissions); if it \
                          should be there, check RABBITMQ_VHOST and RABBITMQ_QUEUE";
            found.push(Finding::new(Info, subject(queue), meaning, remedy).with_value("not there"));
        }
        QueueState::Exclusive => {
            let meaning = "another connection has declared it exclusive: the service cannot use \
                           it, and it is deleted with that connection";
            let remedy = "find out which one (rabbitmqctl list_queues name owner_pid) and have it \
                          declare the queue durable and not exclusive";
            found
                .push(Finding::new(Error, subject(queue), meaning, remedy).with_value("exclusive"));
        }
    }
    if !inspected.permitted {
        let (severity, permission, meaning) = lack;
        found.push(lacks(config, severity, &format!("{permission} the queue {queue:?}"), meaning));
    }
    found
}

/// A permission that the user lacks, found before it is needed.
fn lacks(config: &Config, severity: Severity, permission: &str, meaning: &str) -> Finding {
    let remedy = broker::grant(&config.rabbitmq);
    Finding::of_setting(severity, config, &keys::RABBITMQ_USER, meaning, remedy)
        .with_value(format!("no {permission}"))
}

fn messages(ready: u32) -> String {
    format!("{ready} {} ready", if ready == 1 { "message" } else { "messages" })
}

/// The queue of votes, where it exists.
fn of_votes(
    config: &Config,
    QueueStatus { ready, consumers }: QueueStatus,
    facts: &QueueFacts,
) -> Vec<Finding> {
    let RabbitMq { queue, dead_letter_queue, .. } = &config.rabbitmq;
    let (meaning, remedy) = match consumers {
        0 => (
            "it has no consumer".to_owned(),
            "nothing: what is there is counted once the service runs",
        ),
        _ => (
            format!("consumers: {consumers}"),
            "nothing, if every consumer is an instance of this service",
        ),
    };
    let depth = Finding::new(Info, subject(queue), meaning, remedy);
    let mut found = vec![depth.with_value(messages(ready))];
    found.extend(of_queue(queue, facts).into_iter().map(|found| found.finding));
    if let Some(DeadLetterTarget::Queue(target)) = &facts.target
        && target != dead_letter_queue
    {
        let meaning = format!(
            "invalid messages go to the queue {target:?}, votes that the database refuses to \
             {dead_letter_queue:?}"
        );
        let remedy =
            format!("watch both, or set {}={target}", keys::RABBITMQ_DEAD_LETTER_QUEUE.variable);
        let finding = Finding::new(Info, subject(queue), meaning, remedy);
        found.push(finding.with_value(format!("x-dead-letter-routing-key={target}")));
    }
    let arguments = &facts.arguments;
    if arguments.unsuitable_type().is_some() {
        return found;
    }
    found.extend(consumer_timeout(config, facts));
    found
}

fn dead_letters(queue: &str, ready: u32) -> Finding {
    let (meaning, remedy) = match ready {
        0 => ("nothing was refused, or all of it has been dealt with", "nothing"),
        _ => (
            "invalid messages, and votes that the database refused: none of them is counted",
            "look at them: docs/runbook.md",
        ),
    };
    Finding::new(Info, subject(queue), meaning, remedy).with_value(messages(ready))
}

/// A consumer timeout of the queue's own that is shorter than the one configured. The broker's own one
/// is in its configuration and nowhere else.
fn consumer_timeout(config: &Config, facts: &QueueFacts) -> Option<Finding> {
    let key = &keys::RABBITMQ_CONSUMER_TIMEOUT_SECONDS;
    let arguments = &facts.arguments;
    if facts.server >= Some(ServerVersion::CONSUMER_TIMEOUTS) {
        // The service sets it for its consumer, which wins over the queue and the broker.
        return None;
    }
    let own = arguments.number("x-consumer-timeout").and_then(|ms| u64::try_from(ms).ok());
    let Some(own) = own.map(Duration::from_millis) else {
        let meaning = "assumed to be the broker's consumer_timeout, which neither AMQP nor the \
                       management API shows";
        let remedy = "compare it with rabbitmqctl eval 'application:get_env(rabbit, \
                      consumer_timeout).', in milliseconds";
        return Some(Finding::of_setting(Info, config, key, meaning, remedy));
    };
    let configured = config.rabbitmq.consumer_timeout;
    if own >= configured {
        return None;
    }
    let longest = config.batch_deadline() + config.postgres.transaction_deadline();
    let (severity, risk) = if longest < own {
        (Warning, "still longer")
    } else {
        (Error, "shorter: RabbitMQ may requeue the deliveries during a retry")
    };
    let meaning = format!(
        "{} has {} s; the longest time a batch can be held is {} s, and the queue's timeout is {risk}",
        key.path,
        configured.as_secs_f64(),
        longest.as_secs()
    );
    let remedy = format!("set {}={}", key.variable, own.as_secs_f64());
    let finding = Finding::new(severity, subject(&config.rabbitmq.queue), meaning, remedy);
    Some(finding.with_value(format!("x-consumer-timeout={}", own.as_millis())))
}

fn of_publishing(config: &Config, publishing: Publishing) -> Option<Finding> {
    match publishing {
        Publishing::Allowed => None,
        Publishing::Refused => {
            let permission = "write permission on the default exchange (amq.default)";
            let meaning = "votes that PostgreSQL refuses can't be dead-lettered: the service ends \
                           with 77, and `publish` and `dlq replay` can't publish";
            Some(lacks(config, Error, permission, meaning))
        }
        Publishing::Blocked => {
            let meaning = "the broker accepts no publishes now: dead letters would have to wait";
            let remedy = "look for a memory or disk alarm: rabbitmq-diagnostics alarms";
            Some(Finding::new(Warning, place(&config.rabbitmq), meaning, remedy))
        }
    }
}

#[cfg(test)]
mod tests;
