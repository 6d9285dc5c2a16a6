//! One session: a connection, a channel, a consumer, until the first error.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicNackOptions, BasicRejectOptions};
use lapin::{Connection, Consumer};
use tokio::time::timeout;

use super::{headers, screen};
use crate::model::ports::{Channel, Delivery, DeliveryTag, Lost, Session, TraceContext};
use crate::platform::telemetry::traces_on;

/// Longest wait for the broker's reply to a close; a frozen broker never sends one.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest wait for a frame without a reply to leave; the heartbeat may be set to hours.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// A session on RabbitMQ.
pub struct RabbitSession {
    connection: Connection,
    channel: RabbitChannel,
    consumer: Option<Consumer>,
}

/// The channel of one session. It is never reopened, so a tag can't reach another channel.
pub struct RabbitChannel {
    channel: lapin::Channel,
    consumer_tag: String,
    /// We asked the consumer to end; an end that nobody asked for is a loss.
    cancelled: Arc<AtomicBool>,
}

/// The deliveries of one session; ends with [`Lost`] unless the consumer was cancelled by us.
pub struct Deliveries {
    consumer: Option<Consumer>,
    cancelled: Arc<AtomicBool>,
}

impl RabbitSession {
    pub(super) fn new(connection: Connection, channel: lapin::Channel, consumer: Consumer) -> Self {
        let channel = RabbitChannel {
            channel,
            consumer_tag: consumer.tag().to_string(),
            cancelled: Arc::default(),
        };
        Self { connection, channel, consumer: Some(consumer) }
    }

    async fn close_all(&self) -> Result<(), Lost> {
        let closing = async {
            self.channel.channel.close(200, "OK".into()).await?;
            self.connection.close(200, "OK".into()).await
        };
        match timeout(CLOSE_TIMEOUT, closing).await {
            Ok(closed) => closed.map_err(|error| lost("close", &error)),
            Err(_) => Err(Lost(format!("no answer to a close within {CLOSE_TIMEOUT:?}"))),
        }
    }
}

impl Session for RabbitSession {
    type Channel = RabbitChannel;
    type Deliveries = Deliveries;

    fn split(&mut self) -> (&RabbitChannel, Deliveries) {
        let cancelled = Arc::clone(&self.channel.cancelled);
        (&self.channel, Deliveries { consumer: self.consumer.take(), cancelled })
    }

    /// `basic.nack` and not `basic.reject`: from RabbitMQ 4.3 on a nack does not count towards a
    /// quorum queue's delivery limit.
    async fn requeue(self) {
        let giving_back = async {
            self.channel.cancel().await?;
            let everything = BasicNackOptions { multiple: true, requeue: true };
            let nacked = self.channel.channel.basic_nack(0, everything).await;
            nacked.map_err(|error| lost("requeue", &error))
        };
        // Closing gives back whatever the nack did not, so a failure here loses nothing.
        let given_back = match timeout(CLOSE_TIMEOUT, giving_back).await {
            Ok(given_back) => given_back,
            Err(_) => Err(Lost("no answer from the broker".to_owned())),
        };
        if let Err(lost) = given_back.and(self.close_all().await) {
            tracing::debug!("while giving back: {lost}");
        }
    }

    async fn close(self) -> Result<(), Lost> {
        self.close_all().await
    }
}

impl Channel for RabbitChannel {
    async fn ack_up_to(&self, tag: DeliveryTag) -> Result<(), Lost> {
        let multiple = BasicAckOptions { multiple: true };
        sent("ack", self.channel.basic_ack(tag, multiple)).await
    }

    async fn reject(&self, tag: DeliveryTag) -> Result<(), Lost> {
        let dead_letter = BasicRejectOptions { requeue: false };
        sent("reject", self.channel.basic_reject(tag, dead_letter)).await
    }

    async fn cancel(&self) -> Result<(), Lost> {
        if self.cancelled.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let tag = self.consumer_tag.as_str().into();
        let cancelled = self.channel.basic_cancel(tag, BasicCancelOptions::default()).await;
        cancelled.map_err(|error| lost("cancel", &error))
    }
}

impl Stream for Deliveries {
    type Item = Result<Delivery, Lost>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(consumer) = self.consumer.as_mut() else { return Poll::Ready(None) };
        let next = match Pin::new(consumer).poll_next(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(next) => next,
        };
        let end = match next {
            Some(Ok(delivery)) => {
                let delivery = Delivery {
                    tag: delivery.delivery_tag,
                    published_at: headers::published_at(&delivery.properties),
                    trace: if traces_on() {
                        headers::trace(&delivery.properties)
                    } else {
                        TraceContext::default()
                    },
                    replays: headers::replays(&delivery.properties),
                    valid_properties: !screen::is_invalid(&delivery.properties),
                    redelivered: delivery.redelivered,
                    body: delivery.data,
                };
                return Poll::Ready(Some(Ok(delivery)));
            }
            Some(Err(error)) => Some(lost("consume", &error)),
            None if self.cancelled.load(Ordering::Relaxed) => None,
            None => Some(Lost(
                "the broker ended the consumer: the queue was deleted, moved, or lost its leader"
                    .to_owned(),
            )),
        };
        self.consumer = None;
        Poll::Ready(end.map(Err))
    }
}

/// Waits until a frame has left, which takes a socket that takes bytes.
pub(super) async fn sent(
    what: &str,
    sending: impl Future<Output = lapin::Result<()>>,
) -> Result<(), Lost> {
    match timeout(SEND_TIMEOUT, sending).await {
        Ok(sent) => sent.map_err(|error| lost(what, &error)),
        Err(_) => Err(Lost(format!("{what}: the connection took no bytes for {SEND_TIMEOUT:?}"))),
    }
}

pub(super) fn lost(what: &str, error: &lapin::Error) -> Lost {
    Lost(format!("{what}: {error}"))
}
