//! Publishing dead letters again: an original is acked only after its publish is confirmed.

use lapin::BasicProperties;
use tokio::time::timeout;

use super::DeadLetterMessage;
use crate::adapters::broker::{CONFIRM_TIMEOUT, Confirm, Publisher, confirmed};
use crate::model::ports::BrokerError;

/// Unconfirmed messages at a time, and their bodies and headers in bytes.
const MAX_MESSAGES: usize = 200;
const MAX_BYTES: usize = 16 << 20;

/// A publisher with the messages that it has in flight.
pub struct Republisher {
    publisher: Publisher,
    unconfirmed: Vec<(DeadLetterMessage, Confirm)>,
    bytes: usize,
}

/// The outcome of the messages that were in flight together.
#[derive(Default)]
pub struct Confirmed {
    pub messages: Vec<DeadLetterMessage>,
    pub refused: Vec<DeadLetterMessage>,
    /// Why a message was refused.
    pub error: Option<BrokerError>,
}

impl Republisher {
    pub const fn new(publisher: Publisher) -> Self {
        Self { publisher, unconfirmed: Vec::new(), bytes: 0 }
    }

    /// Publishes a message to the queue it came from, for the `replays`th time. Its headers are its
    /// publisher's; those about its dead-lettering are dropped.
    ///
    /// # Errors
    /// [`BrokerError`] when it could not be sent.
    pub async fn replay(
        &mut self,
        queue: &str,
        message: DeadLetterMessage,
        replays: u32,
    ) -> Result<(), BrokerError> {
        let properties = message.replayed(replays);
        self.publish(queue, message, properties).await
    }

    pub(super) async fn publish(
        &mut self,
        queue: &str,
        message: DeadLetterMessage,
        properties: BasicProperties,
    ) -> Result<(), BrokerError> {
        let publish = self.publisher.publish_as("", queue, &message.body, properties);
        let confirm = confirmed(publish).await?;
        self.bytes += message.size();
        self.unconfirmed.push((message, confirm));
        Ok(())
    }

    /// Whether [`Republisher::confirms`] is due.
    pub const fn is_full(&self) -> bool {
        self.unconfirmed.len() >= MAX_MESSAGES || self.bytes >= MAX_BYTES
    }

    /// Waits for the confirms of everything in flight. One returned message makes all of them count
    /// as refused: lapin may report it to any confirm of the same frame.
    ///
    /// # Errors
    /// [`BrokerError`] when a confirm does not arrive: then nothing is to be acked.
    pub async fn confirms(&mut self) -> Result<Confirmed, BrokerError> {
        let (mut all, mut returned) = (Confirmed::default(), false);
        self.bytes = 0;
        for (message, confirm) in std::mem::take(&mut self.unconfirmed) {
            match confirmed(confirm).await {
                Ok(()) => all.messages.push(message),
                Err(error @ BrokerError::Timeout(_)) => return Err(error),
                Err(error) => {
                    returned |= matches!(error, BrokerError::Returned);
                    all.error = Some(error);
                    all.refused.push(message);
                }
            }
        }
        if returned {
            all.refused.append(&mut all.messages);
        }
        Ok(all)
    }

    /// Closes the connection. Without effect on what is confirmed, hence without an error.
    pub async fn close(self) {
        if let Ok(Err(error)) = timeout(CONFIRM_TIMEOUT, self.publisher.close()).await {
            tracing::debug!("{error}");
        }
    }
}
