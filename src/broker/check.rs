//! The broker's side of `vote-aggregator check`: looks, and neither creates nor changes anything.

mod rights;

use std::time::Duration;

use lapin::Connection;
use tokio::time::timeout;

use super::topology::{self, Assessment, Noted, Standing, Target};
use super::{connect, management};
use crate::check::{Finding, Report, Severity};
use crate::config::{Config, RabbitMq, keys};
use crate::ports::OpenError;

use Severity::{Error, Info, Warning};

/// For everything together, beyond the connection's own time-out. A broker that answers needs a
/// fraction of a second; examining costs some forty round trips.
const LOOK_TIMEOUT: Duration = Duration::from_secs(20);
/// What RabbitMQ gives to a consumer of a quorum queue that sets no limit: large, to its makers.
const LARGE_PREFETCH: u16 = 2000;

/// Finds out about the broker that `config` names: whether it takes us, and what its queues do
/// with votes. Never waits for one that is down. The user needs no more than the service does.
pub async fn check(config: &Config) -> Report {
    let mut report = Report::default();
    if timeout(LOOK_TIMEOUT, look(config, &mut report)).await.is_err() {
        let finding = Finding::new(
            Error,
            place(&config.rabbitmq),
            format!("RabbitMQ took a connection, and did not answer all within {LOOK_TIMEOUT:?}"),
            "look at its log and at rabbitmqctl status; a node that pauses, or queues without a \
             majority of their nodes, answer nothing",
        );
        report.findings.push(finding);
    }
    report
}

async fn look(config: &Config, report: &mut Report) {
    let rabbitmq = &config.rabbitmq;
    report.looked_at(connect::describe(rabbitmq));
    let connection = match connect::open(rabbitmq, "check").await {
        Ok(connection) => connection,
        Err(error) => return report.findings.push(refused(config, &error)),
    };
    let version = version(rabbitmq, report).await;
    if let Err(error) = queues(config, &connection, version.as_deref(), report).await {
        let error = connect::refused(rabbitmq, &error);
        report.findings.push(refused(config, &error));
    }
    if let Err(error) = connection.close(200, "OK".into()).await {
        tracing::debug!("the connection did not close cleanly: {error}");
    }
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
            "mend the settings that it names, or the broker: rabbitmqctl list_vhosts, \
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

/// Told by the management API alone.
async fn version(rabbitmq: &RabbitMq, report: &mut Report) -> Option<String> {
    let url = rabbitmq.management_url.as_ref()?;
    let told = management::version(url).await;
    report.findings.push(match &told {
        Ok(version) => {
            let (severity, meaning, remedy) = if is_at_least(version, (3, 10)) {
                (Info, "new enough for everything that the service asks of it", "nothing")
            } else {
                (
                    Warning,
                    "quorum queues dead-letter at least once from RabbitMQ 3.10 on: before, a \
                     message that is rejected can be lost on its way to the dead letters",
                    "upgrade RabbitMQ",
                )
            };
            Finding::new(severity, place(rabbitmq), meaning, remedy)
                .with_value(format!("RabbitMQ {version}"))
        }
        Err(error) => Finding::new(
            Warning,
            keys::RABBITMQ_MANAGEMENT_URL.path,
            format!("the management API does not answer: {error}; policies can't be seen"),
            "check RABBITMQ_MANAGEMENT_URL, that the plugin rabbitmq_management is enabled, and \
             that the user has the tag monitoring or management",
        ),
    });
    told.ok()
}

/// Whether it is that version or a newer one; a version in another form is new.
fn is_at_least(version: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) >= wanted,
        _ => true,
    }
}

async fn queues(
    config: &Config,
    connection: &Connection,
    version: Option<&str>,
    report: &mut Report,
) -> Result<(), lapin::Error> {
    let rabbitmq = &config.rabbitmq;
    let (queue, dead_letters) = (&rabbitmq.queue, &rabbitmq.dead_letter_queue);
    report.looked_at(format!("queue {queue:?}"));
    let mut route = None;
    match topology::standing(connection, queue).await? {
        Standing::Missing => report.findings.push(missing(
            queue,
            format!(
                "it does not exist: the service creates it at its start, a quorum queue that \
                 dead-letters to {dead_letters:?}. Nothing was created now"
            ),
        )),
        Standing::Exclusive => report.findings.push(exclusive(queue)),
        Standing::There { ready, consumers } => {
            report.findings.push(depth(queue, ready, consumers));
            let Assessment { noted, target, default_limit, consumer_timeout, .. } =
                topology::examine(connection, rabbitmq).await;
            report.findings.extend(noted.into_iter().map(|Noted { finding, .. }| finding));
            if default_limit {
                report.findings.extend(default_delivery_limit(queue, version));
            }
            report.findings.extend(match consumer_timeout {
                Some(own) => shorter(config, own),
                None => Some(untold_timeout(config)),
            });
            route = target;
        }
    }
    report.findings.extend(elsewhere(rabbitmq, route.as_ref()));

    report.looked_at(format!("queue {dead_letters:?}"));
    match topology::standing(connection, dead_letters).await? {
        // An error already, where the queue's own route leads there.
        Standing::Missing if matches!(route, Some(Target::Missing(_))) => {}
        Standing::Missing => report.findings.push(missing(
            dead_letters,
            "it does not exist: the service creates it, a quorum queue, when it starts. Nothing was \
             created now"
                .to_owned(),
        )),
        Standing::Exclusive => report.findings.push(exclusive(dead_letters)),
        Standing::There { ready, .. } => {
            report.findings.push(dead_letter_depth(dead_letters, ready));
            let noted = topology::examine_dead_letters(connection, rabbitmq).await;
            report.findings.extend(noted.into_iter().map(|Noted { finding, .. }| finding));
        }
    }
    report.findings.extend(prefetch(config));
    rights::check(config, connection, report).await
}

fn subject(queue: &str) -> String {
    format!("queue {queue:?}")
}

fn missing(queue: &str, meaning: String) -> Finding {
    let remedy = "nothing, if the user may configure it (rabbitmqctl list_permissions); if \
                  it should be there, check RABBITMQ_VHOST and RABBITMQ_QUEUE";
    Finding::new(Info, subject(queue), meaning, remedy).with_value("not there")
}

fn exclusive(queue: &str) -> Finding {
    Finding::new(
        Error,
        subject(queue),
        "another connection has it to itself: the service can't use it, and it goes with that \
         connection",
        "find out who declares it (rabbitmqctl list_queues name owner_pid) and have it made \
         durable and not exclusive",
    )
    .with_value("exclusive")
}

fn messages(ready: u32) -> String {
    format!("{ready} {} ready", if ready == 1 { "message" } else { "messages" })
}

fn depth(queue: &str, ready: u32, consumers: u32) -> Finding {
    let taken = match consumers {
        0 => "nobody takes from it now".to_owned(),
        1 => "one consumer takes from it".to_owned(),
        n => format!("{n} consumers take from it"),
    };
    let remedy = match consumers {
        0 => "nothing: what is there is counted once the service runs",
        _ => "nothing, if these consumers are instances of this service",
    };
    Finding::new(Info, subject(queue), taken, remedy).with_value(messages(ready))
}

fn dead_letter_depth(queue: &str, ready: u32) -> Finding {
    let (meaning, remedy) = match ready {
        0 => ("nothing was refused, or somebody has dealt with it", "nothing"),
        _ => (
            "messages that were no votes, and votes that the database refused: none of them is \
             counted",
            "look at them: docs/runbook.md",
        ),
    };
    Finding::new(Info, subject(queue), meaning, remedy).with_value(messages(ready))
}

/// None at all before RabbitMQ 4, low from then on.
fn default_delivery_limit(queue: &str, version: Option<&str>) -> Option<Finding> {
    let (severity, meaning) = match version {
        Some(version) if !is_at_least(version, (4, 0)) => return None,
        Some(_) => (Warning, "RabbitMQ's own limit holds, 20 from version 4 on"),
        None => (Info, "RabbitMQ's own limit holds: none before version 4, 20 from then on"),
    };
    let finding = Finding::new(
        severity,
        subject(queue),
        format!("{meaning}; with 20, votes given back 20 times in an outage are dropped"),
        "set delivery-limit to 1000 by a policy",
    );
    Some(finding.with_value("no x-delivery-limit"))
}

/// A consumer timeout of the queue's own that is shorter than the one configured.
fn shorter(config: &Config, own: Duration) -> Option<Finding> {
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
            keys::RABBITMQ_CONSUMER_TIMEOUT_SECONDS.path,
            configured.as_secs_f64(),
            longest.as_secs()
        ),
        format!("set RABBITMQ_CONSUMER_TIMEOUT_SECONDS={}", own.as_secs_f64()),
    );
    Some(finding.with_value(format!("x-consumer-timeout={}", own.as_millis())))
}

/// The broker's own one is in its configuration and nowhere else.
fn untold_timeout(config: &Config) -> Finding {
    Finding::of_setting(
        Info,
        config,
        &keys::RABBITMQ_CONSUMER_TIMEOUT_SECONDS,
        "taken for the broker's consumer_timeout, which neither AMQP nor the management API tells",
        "compare it with rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).', in \
         milliseconds",
    )
}

/// Dead letters that go to two places.
fn elsewhere(rabbitmq: &RabbitMq, route: Option<&Target>) -> Option<Finding> {
    let Some(Target::Queue(target)) = route else { return None };
    (*target != rabbitmq.dead_letter_queue).then(|| {
        Finding::new(
            Info,
            subject(&rabbitmq.queue),
            format!(
                "what is no vote goes to the queue {target:?}, votes that the database refuses to \
                 {:?}",
                rabbitmq.dead_letter_queue
            ),
            format!("watch both, or set RABBITMQ_DEAD_LETTER_QUEUE={target}"),
        )
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

#[cfg(test)]
mod tests;
