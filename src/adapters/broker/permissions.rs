//! Probes for permissions that are needed only when something fails. A probe changes nothing: the
//! broker refuses the request either way, with 406 when the permission is there. A refusal closes the
//! channel, so each probe has its own.

use std::time::Duration;

use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Confirmation, Connection, Error};
use tokio::time::timeout;

use super::connect::amqp_code;
use super::long_string;

/// A connection that a memory or disk alarm blocks takes no publish at all.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(3);

/// Publishes to the default exchange under a name that no queue has, so that the broker returns the
/// message and keeps nothing. Never on the connection that consumes: a broker with an alarm stops
/// reading from a connection that publishes, acks included. Returns false when the connection is
/// blocked: do not use it again then.
///
/// # Errors
/// AMQP 403 without write permission on `amq.default`.
pub(super) async fn write(connection: &Connection) -> Result<bool, Error> {
    if connection.status().blocked() {
        return Ok(false);
    }
    let channel = connection.create_channel().await?;
    let publishing = async {
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let nowhere = format!("vote-aggregator.permission.{:032x}", fastrand::u128(..));
        let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = BasicProperties::default();
        let sent = channel.basic_publish("".into(), nowhere.into(), mandatory, b"", properties);
        let _returned: Confirmation = sent.await?.await?;
        channel.close(200, "OK".into()).await?;
        Ok(true)
    };
    timeout(PUBLISH_TIMEOUT, publishing).await.unwrap_or(Ok(false))
}

/// Whether the user may consume from a queue that exists. The argument is of a type that the broker
/// refuses, so that no message is delivered.
pub(super) async fn may_read(connection: &Connection, queue: &str) -> Result<bool, Error> {
    let channel = connection.create_channel().await?;
    // In case a broker accepts that argument.
    channel.basic_qos(1, BasicQosOptions { global: false }).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-priority".into(), long_string("none"));
    let options = BasicConsumeOptions::default();
    let consumed = channel.basic_consume(queue.into(), "".into(), options, arguments).await;
    refused_for_its_content(consumed.map(drop))
}

/// Whether the user may declare a queue, with this dead-letter exchange if any; creates nothing,
/// since the broker refuses the type of an argument.
pub(super) async fn may_configure(
    connection: &Connection,
    queue: &str,
    dead_letter_exchange: Option<&str>,
) -> Result<bool, Error> {
    let channel = connection.create_channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-expires".into(), long_string("never"));
    if let Some(exchange) = dead_letter_exchange {
        arguments.insert("x-dead-letter-exchange".into(), long_string(exchange));
    }
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(queue.into(), durable, arguments).await;
    refused_for_its_content(declared.map(drop))
}

fn refused_for_its_content(answer: Result<(), Error>) -> Result<bool, Error> {
    match answer {
        Ok(()) => Ok(true),
        Err(error) => match amqp_code(&error) {
            Some(406) => Ok(true),
            Some(403) => Ok(false),
            _ => Err(error),
        },
    }
}
