//! What the user may not do, found before the day on which it is needed.

use lapin::Connection;

use super::{place, refused};
use crate::broker::connect::{self, amqp_code};
use crate::broker::permissions::{self, Publishing};
use crate::broker::refusal;
use crate::broker::topology::{self, Standing};
use crate::check::{Finding, Report, Severity};
use crate::config::{Config, keys};

use Severity::{Error, Warning};

/// Tries what the service needs sooner or later, and reports what the user may not do.
pub(super) async fn check(
    config: &Config,
    connection: &Connection,
    report: &mut Report,
) -> Result<(), lapin::Error> {
    let rabbitmq = &config.rabbitmq;
    let (queue, dead_letters) = (&rabbitmq.queue, &rabbitmq.dead_letter_queue);
    report.looked_at("permissions on both queues and on the default exchange".to_owned());
    let mut lacks = |severity, permission: String, meaning: &str| {
        let remedy = refusal::grant(rabbitmq);
        let finding = Finding::of_setting(severity, config, &keys::RABBITMQ_USER, meaning, remedy);
        report.findings.push(finding.with_value(format!("no {permission}")));
    };
    for (name, exchange) in [(queue, Some("")), (dead_letters, None)] {
        match topology::standing(connection, name).await? {
            Standing::There { .. } if !permissions::may_read(connection, name).await? => {
                let permission = format!("read permission on the queue {name:?}");
                if name == queue {
                    lacks(Error, permission, "the service can't consume: it ends with 77");
                } else {
                    lacks(
                        Warning,
                        permission,
                        "`dlq` commands of this user can't read dead letters",
                    );
                }
            }
            Standing::Missing
                if !permissions::may_configure(connection, name, exchange).await? =>
            {
                let permission = format!("permission to create the queue {name:?}");
                lacks(Error, permission, "it does not exist, and the service ends with 77");
            }
            _ => {}
        }
    }
    // On a connection of its own: see there.
    let publishing = match connect::open(rabbitmq, "check, publishing").await {
        Ok(publishing) => publishing,
        Err(error) => {
            report.findings.push(refused(config, &error));
            return Ok(());
        }
    };
    match permissions::write(&publishing).await {
        Ok(Publishing::Allowed) => {}
        Ok(Publishing::Unanswered) => {
            report.findings.push(Finding::new(
                Warning,
                place(rabbitmq),
                "the broker takes no publishes now: dead letters would have to wait",
                "look for a memory or disk alarm: rabbitmq-diagnostics alarms",
            ));
            // It does not take the end of that connection either.
            return Ok(());
        }
        Err(error) if amqp_code(&error) == Some(403) => lacks(
            Error,
            "write permission on the default exchange (amq.default)".to_owned(),
            "votes that PostgreSQL refuses can't be dead-lettered: the service ends with 77, and \
             `publish` and `dlq replay` can't publish",
        ),
        Err(error) => return Err(error),
    }
    publishing.close(200, "OK".into()).await
}
