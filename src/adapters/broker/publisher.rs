//! Publishing that can be trusted: mandatory, persistent, confirmed.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Confirmation, Connection, PublisherConfirm};
use tracing::Instrument;

use super::connect::{amqp_code, describe};
use super::permissions;
use super::{headers, long_string};
use crate::model::ports::{Lost, OpenError};
use crate::platform::config::RabbitMq as Config;
use crate::platform::telemetry::spans;

/// AMQP's delivery mode for messages that survive a restart of the broker.
const PERSISTENT: u8 = 2;

/// Why a message is not in its queue, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotPublished {
    /// The connection or the channel is gone, or the queue is full.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// There is no such queue. lapin can mix up which message of those under way it was.
    #[error("publish not confirmed: the broker returned it: no such queue")]
    Returned,
    /// The broker refuses it, and will refuse it again.
    #[error(transparent)]
    Refused(OpenError),
}

impl From<NotPublished> for Lost {
    fn from(not: NotPublished) -> Self {
        match not {
            NotPublished::Lost(lost) => lost,
            other => Self(other.to_string()),
        }
    }
}

/// A channel in confirm mode, on a connection of its own.
pub struct Publisher {
    // Its drop would close the channel.
    connection: Connection,
    channel: lapin::Channel,
    /// For messages.
    place: Arc<str>,
    made_queue: bool,
}

impl Publisher {
    pub(super) async fn on(connection: Connection, config: &Config) -> lapin::Result<Self> {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { connection, channel, place: describe(config).into(), made_queue: false })
    }

    /// Whether there was no queue when it was opened, and one was made.
    pub const fn made_queue(&self) -> bool {
        self.made_queue
    }

    pub(super) fn with_made_queue(self, made_queue: bool) -> Self {
        Self { made_queue, ..self }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connection.status().connected() && self.channel.status().connected()
    }

    /// Whether the broker takes nothing from this connection now, because of an alarm.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Tries whether this user may publish to the default exchange, as every publish here does; false
    /// without an answer.
    pub(super) async fn probe(&self) -> lapin::Result<bool> {
        permissions::write(&self.connection).await
    }

    /// Sends one message to `queue` through the default exchange, with these headers. The
    /// [`Confirm`] tells whether the broker has taken responsibility; nothing is certain before.
    ///
    /// # Errors
    /// [`Lost`] when it could not be sent.
    pub async fn publish(
        &self,
        queue: &str,
        body: &[u8],
        headers: &[(&str, &str)],
    ) -> Result<Confirm, Lost> {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), long_string(value));
        }
        self.send(queue, body, table).await
    }

    /// Sends one vote to `queue` as [`Publisher::publish`] does, with the time it is published at
    /// and, where traces are collected, a trace of its own.
    ///
    /// # Errors
    /// [`Lost`] when it could not be sent.
    pub async fn publish_vote(&self, queue: &str, body: &[u8]) -> Result<Confirm, Lost> {
        let mut table = FieldTable::default();
        headers::stamp(&mut table);
        let span = spans::send(queue, body.len());
        headers::join(&mut table, &spans::context(&span));
        self.send(queue, body, table).instrument(span).await
    }

    async fn send(&self, queue: &str, body: &[u8], table: FieldTable) -> Result<Confirm, Lost> {
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type("application/json".into())
            .with_headers(table);
        self.publish_as(queue, body, properties).await
    }

    pub(super) async fn publish_as(
        &self,
        queue: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<Confirm, Lost> {
        let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        self.channel
            .basic_publish("".into(), queue.into(), mandatory, body, properties)
            .await
            .map(|confirm| Confirm { confirm, place: Arc::clone(&self.place) })
            .map_err(|error| Lost(format!("publish: {error}")))
    }

    /// Closes channel and connection.
    ///
    /// # Errors
    /// [`Lost`] when the broker did not confirm; what was confirmed before is safe all the same.
    pub async fn close(self) -> Result<(), Lost> {
        let closed = self.connection.close(200, "OK".into()).await;
        closed.map_err(|error| Lost(format!("close: {error}")))
    }
}

/// Resolves when the broker has confirmed, refused or returned one message.
pub struct Confirm {
    confirm: PublisherConfirm,
    place: Arc<str>,
}

impl Future for Confirm {
    type Output = Result<(), NotPublished>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Poll::Ready(confirmation) = Pin::new(&mut self.confirm).poll(cx) else {
            return Poll::Pending;
        };
        let reason = match confirmation {
            Ok(Confirmation::Ack(None)) => return Poll::Ready(Ok(())),
            // A returned message may be told to the confirm of another, a refused one included.
            Ok(Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_))) => {
                return Poll::Ready(Err(NotPublished::Returned));
            }
            Ok(Confirmation::Nack(None)) => {
                "the broker refused it: the queue is full, or has no leader".to_owned()
            }
            Ok(Confirmation::NotRequested) => "the channel is not in confirm mode".to_owned(),
            Err(error) => match refused(&error, &self.place) {
                Some(refused) => return Poll::Ready(Err(NotPublished::Refused(refused))),
                None => error.to_string(),
            },
        };
        Poll::Ready(Err(Lost(format!("publish not confirmed: {reason}")).into()))
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
        406 => Some(OpenError::Configuration(format!(
            "{error}; {place}. Is the message larger than the broker's max_message_size?"
        ))),
        _ => None,
    }
}
