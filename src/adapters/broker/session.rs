//! One session: a connection, a channel, a consumer, until the first error.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt};
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicNackOptions, BasicRejectOptions};
use lapin::{Connection, Consumer};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::{Returns, headers, reach, refusal, screen};
use crate::model::ports::{BrokerError, Channel, Delivery, DeliveryTag, Session, TraceContext};
use crate::platform::config::RabbitMq as Config;
use crate::platform::telemetry::traces_on;

/// Longest wait for the broker's reply to a close; a frozen broker never sends one.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest wait until a frame without a reply is sent; the heartbeat may be set to hours.
pub(super) const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// A session on RabbitMQ.
pub struct RabbitSession {
    connection: Arc<Connection>,
    channel: RabbitChannel,
    consumer: Option<Consumer>,
    /// The consumer time-out that the broker was asked to apply.
    consumer_timeout: Option<Duration>,
    /// With its address alone.
    config: Config,
    closed: bool,
}

/// The channel of one session. It is never reopened, so a tag can't reach another channel.
pub struct RabbitChannel {
    channel: lapin::Channel,
    consumer_tag: lapin::types::ShortString,
    /// The service cancelled the consumer; any other end is an error.
    cancelled: Arc<AtomicBool>,
    returns: Arc<Returns>,
}

impl RabbitSession {
    pub(super) fn new(
        config: Config,
        connection: Connection,
        (channel, consumer): (lapin::Channel, Consumer),
        consumer_timeout: Option<Duration>,
        returns: Returns,
    ) -> Self {
        let (consumer_tag, cancelled) = (consumer.tag(), Arc::default());
        let returns = Arc::new(returns);
        let channel = RabbitChannel { channel, consumer_tag, cancelled, returns };
        let (connection, consumer) = (Arc::new(connection), Some(consumer));
        Self { connection, channel, consumer, consumer_timeout, config, closed: false }
    }
}

/// One that was lost: the next session is opened at the next address.
impl Drop for RabbitSession {
    fn drop(&mut self) {
        if !self.closed {
            self.config.host.leave();
        }
    }
}

impl Session for RabbitSession {
    type Channel = RabbitChannel;
    type Deliveries = Deliveries;

    fn split(&mut self) -> (&RabbitChannel, Deliveries) {
        let RabbitChannel { cancelled, returns, .. } = &self.channel;
        let delivered = Arc::<AtomicBool>::default();
        let (connection, config) = (Arc::clone(&self.connection), self.config.clone());
        let deliveries = Deliveries {
            // A task of its own: deliveries are not polled while all batches are in flight.
            out_of_reach: AbortOnDropHandle::new(tokio::spawn(reach::lost(
                connection,
                config,
                Arc::clone(&delivered),
            ))),
            delivered,
            consumer: self.consumer.take(),
            timeout: self.consumer_timeout,
            cancelled: Arc::clone(cancelled),
            returns: Arc::clone(returns),
        };
        (&self.channel, deliveries)
    }

    fn address(&self) -> Option<String> {
        Some(self.config.address().to_string())
    }

    /// `basic.nack` and not `basic.reject`: from RabbitMQ 4.3 on a nack does not count towards a
    /// quorum queue's delivery limit.
    async fn requeue(self) {
        let nack = async {
            self.channel.cancel_consumer().await?;
            let everything = BasicNackOptions { multiple: true, requeue: true };
            self.channel.channel.basic_nack(0, everything).await
        };
        // The close requeues whatever the nack did not, so a failure here loses nothing.
        let nacked = within(CLOSE_TIMEOUT, "requeue", nack).await;
        if let Err(error) = nacked.and(self.close().await) {
            tracing::debug!("{error}");
        }
    }

    async fn close(mut self) -> Result<(), BrokerError> {
        self.closed = true;
        let closing = async {
            self.channel.channel.close(200, "OK".into()).await?;
            self.connection.close(200, "OK".into()).await
        };
        within(CLOSE_TIMEOUT, "close", closing).await
    }
}

/// What a consumer is sent, until its first error.
pub struct Deliveries {
    consumer: Option<Consumer>,
    timeout: Option<Duration>,
    cancelled: Arc<AtomicBool>,
    returns: Arc<Returns>,
    /// Set by each delivery.
    delivered: Arc<AtomicBool>,
    /// Resolves when the queue is out of reach on a connection that stays open.
    out_of_reach: AbortOnDropHandle<BrokerError>,
}

impl Stream for Deliveries {
    type Item = Result<Delivery, BrokerError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(consumer) = &mut self.consumer else { return Poll::Ready(None) };
        let error = match consumer.poll_next_unpin(cx) {
            Poll::Ready(Some(Ok(message))) => {
                self.delivered.store(true, Ordering::Relaxed);
                self.returns.delivered(&message);
                return Poll::Ready(Some(Ok(delivery(message))));
            }
            Poll::Ready(Some(Err(error))) if refusal::is_consumer_timeout(&error) => {
                Some(BrokerError::ConsumerTimeout(error.to_string()))
            }
            Poll::Ready(Some(Err(error))) => Some(BrokerError::disconnected("consume", error)),
            Poll::Ready(None) if self.cancelled.load(Ordering::Relaxed) => None,
            Poll::Ready(None) => Some(BrokerError::ConsumerEnded { timeout: self.timeout }),
            // A queue without consumers is as it should be then.
            Poll::Pending if self.cancelled.load(Ordering::Relaxed) => return Poll::Pending,
            Poll::Pending => Some(match ready!(self.out_of_reach.poll_unpin(cx)) {
                Ok(error) => error,
                Err(panicked) => BrokerError::disconnected("watch the queue", panicked),
            }),
        };
        self.consumer = None;
        Poll::Ready(error.map(Err))
    }
}

fn delivery(message: lapin::message::Delivery) -> Delivery {
    let properties = &message.properties;
    Delivery {
        tag: message.delivery_tag,
        published_at: headers::published_at(properties),
        trace: if traces_on() { headers::trace(properties) } else { TraceContext::default() },
        replays: headers::replays(properties),
        valid_properties: !screen::is_invalid(properties),
        redelivered: message.redelivered,
        body: message.data,
    }
}

impl RabbitChannel {
    async fn cancel_consumer(&self) -> lapin::Result<()> {
        if self.cancelled.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        self.channel.basic_cancel(self.consumer_tag.clone(), BasicCancelOptions::default()).await
    }
}

impl Channel for RabbitChannel {
    async fn ack_up_to(&self, tag: DeliveryTag) -> Result<(), BrokerError> {
        let multiple = BasicAckOptions { multiple: true };
        within(SEND_TIMEOUT, "ack", self.channel.basic_ack(tag, multiple)).await?;
        self.returns.settled(tag);
        Ok(())
    }

    async fn reject(&self, tag: DeliveryTag) -> Result<(), BrokerError> {
        let dead_letter = BasicRejectOptions { requeue: false };
        within(SEND_TIMEOUT, "reject", self.channel.basic_reject(tag, dead_letter)).await?;
        self.returns.settled(tag);
        Ok(())
    }

    async fn cancel(&self) -> Result<(), BrokerError> {
        let cancelled = self.cancel_consumer().await;
        cancelled.map_err(|error| BrokerError::disconnected("cancel", error))
    }
}

/// Bounds an AMQP operation: a frozen broker neither answers nor takes bytes.
pub(super) async fn within<T>(
    limit: Duration,
    action: &'static str,
    operation: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    match timeout(limit, operation).await {
        Ok(done) => done.map_err(|error| BrokerError::disconnected(action, error)),
        Err(_) => Err(BrokerError::Timeout(format!(
            "{action}: no answer from the broker, or no bytes taken, within {limit:?}"
        ))),
    }
}
