//! What `vote-aggregator check --connect` says of the broker.

use std::time::Duration;

use tokio::time::timeout;

use super::queue::{QueueFinding, of_dead_letter_queue, of_queue, subject};
use super::{Finding, Report, Severity};
use crate::adapters::broker::{
    self, BrokerFacts, DeadLetterTarget, Publishing, QueueArguments, QueueLook, QueueState,
    QueueStatus,
};
use crate::model::ports::OpenError;
use crate::platform::config::{Config, RabbitMq, keys};

use Severity::{Error, Info, Warning};

/// For everything together, beyond the connection's own time-out. A broker that answers needs a
/// fraction of a second; examining costs some forty round trips.
const LOOK_TIMEOUT: Duration = Duration::from_secs(20);
/// What RabbitMQ gives to a consumer of a quorum queue that sets no limit: large, to its makers.
const LARGE_PREFETCH: u16 = 2000;

/// Finds out about the broker that `config` names: whether it takes us, and what its queues do
/// with votes. Never waits for one that is down. The user needs no more than the service does.
pub async fn broker(config: &Config) -> Report {
    let mut facts = BrokerFacts::default();
    let failed = match timeout(LOOK_TIMEOUT, broker::look(&config.rabbitmq, &mut facts)).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(refused(config, &error)),
        Err(_) => Some(Finding::new(
            Error,
            place(&config.rabbitmq),
            format!("RabbitMQ took a connection, and did not answer all within {LOOK_TIMEOUT:?}"),
            "look at its log and at rabbitmqctl status; a node that pauses, or queues without a \
             majority of their nodes, answer nothing",
        )),
    };
    let mut report = report(config, &facts);
    report.findings.extend(failed);
    report
}

fn report(config: &Config, facts: &BrokerFacts) -> Report {
    let RabbitMq { queue, dead_letter_queue, .. } = &config.rabbitmq;
    let mut report = Report::default();
    report.looked_at(broker::describe(&config.rabbitmq));
    let Report { checked, findings } = &mut report;
    let version = facts.version.as_ref();
    findings.extend(version.map(|version| of_version(&config.rabbitmq, version)));
    let mut route = None;
    if let Some(QueueLook { state, permitted }) = &facts.queue {
        checked.push(subject(queue));
        if let QueueState::Exists(_, facts) = state {
            route = facts.target.as_ref();
        }
        let version = version.and_then(|version| version.as_deref().ok());
        findings.extend(of_state(config, state, version));
        if !permitted {
            let meaning = "the service can't consume: it ends with 77";
            findings.push(not_permitted(config, Error, queue, state, meaning));
        }
        findings.extend(elsewhere(&config.rabbitmq, route));
    }
    if let Some(QueueLook { state, permitted }) = &facts.dead_letter_queue {
        checked.push(subject(dead_letter_queue));
        let is_reported = matches!(route, Some(DeadLetterTarget::MissingQueue(_)));
        findings.extend(of_dead_letters(dead_letter_queue, state, is_reported));
        if !permitted {
            let meaning = "`dlq` commands of this user can't read dead letters";
            findings.push(not_permitted(config, Warning, dead_letter_queue, state, meaning));
        }
        findings.extend(prefetch(config));
    }
    if let Some(publishing) = facts.publishing {
        checked.push("permissions on both queues and on the default exchange".to_owned());
        findings.extend(of_publishing(config, publishing));
    }
    report
}

fn place(rabbitmq: &RabbitMq) -> String {
    format!("RabbitMQ on {}:{}", rabbitmq.host, rabbitmq.port)
}

/// What the error says of its own is what to do first; the rest comes from the broker's side.
fn refused(config: &Config, error: &OpenError) -> Finding {
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
        OpenError::Occupied { .. } => (
            &keys::RABBITMQ_HOST,
            "end what holds it, or raise the limit; the service waits for it",
        ),
        OpenError::Unavailable(_) => (
            &keys::RABBITMQ_HOST,
            "start the broker, or check RABBITMQ_HOST, RABBITMQ_PORT and what lies between; the \
             service would wait for it",
        ),
    };
    Finding::of_setting(Error, config, key, error.to_string(), remedy)
}

fn of_version(rabbitmq: &RabbitMq, version: &Result<String, String>) -> Finding {
    let (severity, meaning, remedy) = match version {
        Err(error) => {
            return Finding::new(
                Warning,
                keys::RABBITMQ_MANAGEMENT_URL.path,
                format!("the management API does not answer: {error}; policies can't be seen"),
                "check RABBITMQ_MANAGEMENT_URL, that the plugin rabbitmq_management is enabled, and \
                 that the user has the tag monitoring or management",
            );
        }
        Ok(version) if is_at_least(version, (3, 10)) => {
            (Info, "new enough for everything that the service asks of it", "nothing")
        }
        Ok(_) => (
            Warning,
            "quorum queues dead-letter at least once from RabbitMQ 3.10 on: before, a message that \
             is rejected can be lost on its way to the dead letters",
            "upgrade RabbitMQ",
        ),
    };
    let value = format!("RabbitMQ {}", version.as_deref().unwrap_or_default());
    Finding::new(severity, place(rabbitmq), meaning, remedy).with_value(value)
}

/// Whether it is that version or a newer one; a version in another form is new.
fn is_at_least(version: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) >= wanted,
        _ => true,
    }
}

fn of_state(config: &Config, state: &QueueState, version: Option<&str>) -> Vec<Finding> {
    let RabbitMq { queue, dead_letter_queue, .. } = &config.rabbitmq;
    let (status, facts) = match state {
        QueueState::Exclusive => return vec![exclusive(queue)],
        QueueState::Missing => {
            let meaning = format!(
                "it does not exist: the service creates it at its start, a quorum queue that \
                 dead-letters to {dead_letter_queue:?}. Nothing was created now"
            );
            return vec![missing(queue, &meaning)];
        }
        QueueState::Exists(status, facts) => (*status, facts),
    };
    let mut findings = vec![depth(queue, status)];
    findings.extend(of_queue(queue, facts).into_iter().map(|QueueFinding { finding, .. }| finding));
    if facts.arguments.unsuitable_type().is_none() {
        findings.extend(default_delivery_limit(queue, &facts.arguments, version));
        findings.extend(consumer_timeout(config, &facts.arguments));
    }
    findings
}

/// `is_reported`: whether it is an error already that the queue's own route leads nowhere.
fn of_dead_letters(queue: &str, state: &QueueState, is_reported: bool) -> Vec<Finding> {
    let (QueueStatus { ready, .. }, facts) = match state {
        QueueState::Exclusive => return vec![exclusive(queue)],
        QueueState::Missing if is_reported => return Vec::new(),
        QueueState::Missing => {
            let meaning = "it does not exist: the service creates it, a quorum queue, when it \
                           starts. Nothing was created now";
            return vec![missing(queue, meaning)];
        }
        QueueState::Exists(status, facts) => (status, facts),
    };
    let (meaning, remedy) = match ready {
        0 => ("nothing was refused, or all of it has been dealt with", "nothing"),
        _ => (
            "invalid messages, and votes that the database refused: none of them is counted",
            "look at them: docs/runbook.md",
        ),
    };
    let mut findings =
        vec![Finding::new(Info, subject(queue), meaning, remedy).with_value(messages(*ready))];
    let found = of_dead_letter_queue(queue, facts);
    findings.extend(found.into_iter().map(|QueueFinding { finding, .. }| finding));
    findings
}

fn missing(queue: &str, meaning: &str) -> Finding {
    let remedy = "nothing, if the user may configure it (rabbitmqctl list_permissions); if it should \
                  be there, check RABBITMQ_VHOST and RABBITMQ_QUEUE";
    Finding::new(Info, subject(queue), meaning, remedy).with_value("not there")
}

fn exclusive(queue: &str) -> Finding {
    Finding::new(
        Error,
        subject(queue),
        "another connection has declared it exclusive: the service can't use it, and it goes with \
         that connection",
        "find out which one (rabbitmqctl list_queues name owner_pid) and have it declare the queue \
         durable and not exclusive",
    )
    .with_value("exclusive")
}

fn messages(ready: u32) -> String {
    format!("{ready} {} ready", if ready == 1 { "message" } else { "messages" })
}

fn depth(queue: &str, QueueStatus { ready, consumers }: QueueStatus) -> Finding {
    let taken = match consumers {
        0 => "no consumer takes from it now".to_owned(),
        1 => "one consumer takes from it".to_owned(),
        n => format!("{n} consumers take from it"),
    };
    let remedy = match consumers {
        0 => "nothing: what is there is counted once the service runs",
        _ => "nothing, if every consumer is an instance of this service",
    };
    Finding::new(Info, subject(queue), taken, remedy).with_value(messages(ready))
}

/// RabbitMQ's own limit: none at all before RabbitMQ 4, low from then on.
fn default_delivery_limit(
    queue: &str,
    arguments: &QueueArguments,
    version: Option<&str>,
) -> Option<Finding> {
    if !arguments.is_quorum() || !arguments.is_unset("x-delivery-limit") {
        return None;
    }
    let (severity, meaning) = match version {
        Some(version) if !is_at_least(version, (4, 0)) => return None,
        Some(_) => (Warning, "RabbitMQ's own limit holds, 20 from version 4 on"),
        None => (Info, "RabbitMQ's own limit holds: none before version 4, 20 from then on"),
    };
    let finding = Finding::new(
        severity,
        subject(queue),
        format!("{meaning}; with 20, votes requeued 20 times in an outage are dropped"),
        "set delivery-limit to 1000 by a policy",
    );
    Some(finding.with_value("no x-delivery-limit"))
}

/// A consumer timeout of the queue's own that is shorter than the one configured. The broker's own one
/// is in its configuration and nowhere else.
fn consumer_timeout(config: &Config, arguments: &QueueArguments) -> Option<Finding> {
    let key = &keys::RABBITMQ_CONSUMER_TIMEOUT_SECONDS;
    let own = arguments.number("x-consumer-timeout").and_then(|ms| u64::try_from(ms).ok());
    let Some(own) = own.map(Duration::from_millis) else {
        return Some(Finding::of_setting(
            Info,
            config,
            key,
            "taken for the broker's consumer_timeout, which neither AMQP nor the management API tells",
            "compare it with rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).', in \
             milliseconds",
        ));
    };
    let configured = config.rabbitmq.consumer_timeout;
    if own >= configured {
        return None;
    }
    let longest = config.batch_deadline() + config.postgres.transaction_deadline();
    let (severity, risk) = if longest < own {
        (Warning, "still longer")
    } else {
        (Error, "shorter: RabbitMQ may take the deliveries back in the midst of a retry")
    };
    let finding = Finding::new(
        severity,
        subject(&config.rabbitmq.queue),
        format!(
            "{} has {} s; the longest time a batch can be held is {} s, and the queue's timeout is \
             {risk}",
            key.path,
            configured.as_secs_f64(),
            longest.as_secs()
        ),
        format!("set {}={}", key.variable, own.as_secs_f64()),
    );
    Some(finding.with_value(format!("x-consumer-timeout={}", own.as_millis())))
}

/// Dead letters that go to two places.
fn elsewhere(rabbitmq: &RabbitMq, route: Option<&DeadLetterTarget>) -> Option<Finding> {
    let RabbitMq { queue, dead_letter_queue, .. } = rabbitmq;
    let Some(DeadLetterTarget::Queue(target)) = route else { return None };
    (target != dead_letter_queue).then(|| {
        let meaning = format!(
            "invalid messages go to the queue {target:?}, votes that the database refuses to \
             {dead_letter_queue:?}"
        );
        let remedy =
            format!("watch both, or set {}={target}", keys::RABBITMQ_DEAD_LETTER_QUEUE.variable);
        Finding::new(Info, subject(queue), meaning, remedy)
            .with_value(format!("x-dead-letter-routing-key={target}"))
    })
}

fn prefetch(config: &Config) -> Option<Finding> {
    (config.rabbitmq.prefetch > LARGE_PREFETCH).then(|| {
        Finding::of_setting(
            Info,
            config,
            &keys::RABBITMQ_PREFETCH_COUNT,
            format!(
                "RabbitMQ grants it; to a consumer of a quorum queue that asks for no limit it \
                 gives {LARGE_PREFETCH}, so it is a large one: what is handed out stays in the \
                 broker's memory"
            ),
            "nothing, unless the broker is short of memory or other instances go idle",
        )
    })
}

fn of_publishing(config: &Config, publishing: Publishing) -> Option<Finding> {
    match publishing {
        Publishing::Allowed => None,
        Publishing::Refused => Some(lacks(
            config,
            Error,
            "write permission on the default exchange (amq.default)",
            "votes that PostgreSQL refuses can't be dead-lettered: the service ends with 77, and \
             `publish` and `dlq replay` can't publish",
        )),
        Publishing::Blocked => Some(Finding::new(
            Warning,
            place(&config.rabbitmq),
            "the broker takes no publishes now: dead letters would have to wait",
            "look for a memory or disk alarm: rabbitmq-diagnostics alarms",
        )),
    }
}

/// What the user may not do with a queue; `meaning` is that of a queue which can't be read.
fn not_permitted(
    config: &Config,
    severity: Severity,
    queue: &str,
    state: &QueueState,
    meaning: &str,
) -> Finding {
    if let QueueState::Exists(..) = state {
        let permission = format!("read permission on the queue {queue:?}");
        return lacks(config, severity, &permission, meaning);
    }
    let permission = format!("permission to create the queue {queue:?}");
    lacks(config, Error, &permission, "it does not exist, and the service ends with 77")
}

/// What the user may not do, found before the day on which it is needed.
fn lacks(config: &Config, severity: Severity, permission: &str, meaning: &str) -> Finding {
    let remedy = broker::grant(&config.rabbitmq);
    Finding::of_setting(severity, config, &keys::RABBITMQ_USER, meaning, remedy)
        .with_value(format!("no {permission}"))
}

#[cfg(test)]
mod tests;
