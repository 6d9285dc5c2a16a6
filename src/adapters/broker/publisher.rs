//! Mandatory, persistent, confirmed publishing.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Confirmation, Connection, PublisherConfirm};
use tracing::Instrument;

use super::connect::{amqp_code, describe};
use super::headers::{self, PERSISTENT};
use super::long_string;
use crate::model::ports::{BrokerError, OpenError};
use crate::platform::config::RabbitMq as Config;
use crate::platform::telemetry::spans;

/// A channel in confirm mode, on a connection of its own.
pub struct Publisher {
    pub(super) connection: Connection,
    channel: lapin::Channel,
    /// For messages.
    place: Arc<str>,
    /// Whether opening it created the queue.
    pub made_queue: bool,
}

impl Publisher {
    pub(super) async fn on(connection: Connection, config: &Config) -> lapin::Result<Self> {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { connection, channel, place: describe(config).into(), made_queue: false })
    }

    /// Whether it is connected to the one address of `config`.
    pub(super) fn is_connected_to(&self, config: &Config) -> bool {
        let is_connected =
            self.connection.status().connected() && self.channel.status().connected();
        is_connected && *self.place == describe(config)
    }

    /// Sends one message to `queue` through the default exchange, with these headers. Only the
    /// [`Confirm`] shows whether the broker has taken responsibility.
    ///
    /// # Errors
    /// [`BrokerError`] when it could not be sent.
    pub async fn publish(
        &self,
        queue: &str,
        body: &[u8],
        headers: &[(&str, &str)],
    ) -> Result<Confirm, BrokerError> {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), long_string(value));
        }
        self.publish_as("", queue, body, json(table)).await
    }

    /// Sends one vote to an exchange (to a queue through the default exchange, which has no name), with
    /// the time it is published at and, where traces are collected, a trace of its own.
    ///
    /// # Errors
    /// [`BrokerError`] when it could not be sent.
    pub async fn publish_vote(
        &self,
        exchange: &str,
        routing_key: &str,
        body: &[u8],
    ) -> Result<Confirm, BrokerError> {
        let mut table = FieldTable::default();
        headers::stamp(&mut table);
        let destination = if exchange.is_empty() { routing_key } else { exchange };
        let span = spans::send(destination, body.len());
        headers::join(&mut table, &spans::context(&span));
        self.publish_as(exchange, routing_key, body, json(table)).instrument(span).await
    }

    pub(super) async fn publish_as(
        &self,
        exchange: &str,
        routing_key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<Confirm, BrokerError> {
        let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let (exchange, key) = (exchange.into(), routing_key.into());
        let sent = self.channel.basic_publish(exchange, key, mandatory, body, properties).await;
        let confirm = sent.map_err(|error| BrokerError::disconnected("publish", error))?;
        Ok(Confirm { confirm, place: Arc::clone(&self.place) })
    }

    /// Closes channel and connection.
    ///
    /// # Errors
    /// [`BrokerError`] without an answer; what was confirmed before is safe all the same.
    pub async fn close(self) -> Result<(), BrokerError> {
        let closed = self.connection.close(200, "OK".into()).await;
        closed.map_err(|error| BrokerError::disconnected("close", error))
    }
}

fn json(headers: FieldTable) -> BasicProperties {
    BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_headers(headers)
}

/// Resolves when the broker has confirmed, refused or returned one message.
pub struct Confirm {
    confirm: PublisherConfirm,
    place: Arc<str>,
}

impl Future for Confirm {
    type Output = Result<(), BrokerError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        const ACTION: &str = "publish not confirmed";
        Poll::Ready(Err(match ready!(Pin::new(&mut self.confirm).poll(cx)) {
            Ok(Confirmation::Ack(None)) => return Poll::Ready(Ok(())),
            // lapin may report a returned message for another, a refused one included.
            Ok(Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_))) => BrokerError::Returned,
            Ok(Confirmation::Nack(None)) => {
                BrokerError::Refused("the queue is full, or has no leader")
            }
            Ok(Confirmation::NotRequested) => {
                BrokerError::disconnected(ACTION, "the channel is not in confirm mode")
            }
            Err(error) => match refused(&error, &self.place) {
                Some(refused) => refused.into(),
                None => BrokerError::disconnected(ACTION, error),
            },
        }))
    }
}

/// What the broker closes the channel for at every try.
fn refused(error: &lapin::Error, place: &str) -> Option<OpenError> {
    match amqp_code(error)? {
        403 => Some(OpenError::Credentials(format!(
            "{error}; {place}. The user has no write permission on the default exchange, which \
             RabbitMQ calls amq.default: let the second pattern of `rabbitmqctl set_permissions` \
             match that name"
        ))),
        404 => Some(OpenError::Configuration(format!(
            "{error}; {place}. Create the exchange and bind the queues to it, or name another"
        ))),
        406 => Some(OpenError::Configuration(format!(
            "{error}; {place}. Is the message larger than the broker's max_message_size?"
        ))),
        _ => None,
    }
}
