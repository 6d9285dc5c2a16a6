//! The end of reading: acks have to be applied, and what is kept has to be ready again.

use std::time::Duration;

use futures::StreamExt;
use lapin::options::{BasicCancelOptions, BasicGetOptions, BasicNackOptions};
use tokio::time::{Instant, sleep};

use super::{DeadLetterQueue, RequeueReport, answered};
use crate::model::ports::BrokerError;

/// `basic.get`s after the last ack: one for the acks that the channel passed on, one for those it
/// held back, and one to spare.
const BARRIERS: usize = 3;
/// Between two reads of the queue's depth, and how long the depth may stay the same.
const POLL: Duration = Duration::from_millis(100);
const MAX_STANDSTILL: Duration = Duration::from_secs(5);

impl DeadLetterQueue {
    /// Requeues what is unacked, and closes. On return acked messages are gone, and the others are
    /// ready again, unless [`RequeueReport::complete`] is false.
    ///
    /// # Errors
    /// [`BrokerError`] when the broker did not confirm. Unacked messages are requeued all the same; acks
    /// may or may not have been applied.
    pub async fn finish(mut self) -> Result<RequeueReport, BrokerError> {
        let cancel = async {
            for consumer in self.deliveries.iter() {
                self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
            }
            Ok(())
        };
        answered("cancel", cancel).await?;
        // What was delivered and not read counts as a delivery, too.
        while let Some(delivery) = self.deliveries.next().await {
            let message = self.hold(delivery)?;
            self.keep(message).await?;
        }
        self.apply_acks().await?;
        let complete = self.requeue().await?;
        let close = async {
            self.channel.close(200, "OK".into()).await?;
            self.connection.close(200, "OK".into()).await
        };
        answered("close", close).await?;
        if let Some(copies) = self.copies {
            copies.close().await;
        }
        Ok(RequeueReport { copied: self.copied, complete })
    }

    /// Waits until the queue has applied all acks. A channel holds acks for a quorum queue back while
    /// 32 others are in flight (RabbitMQ 3.10), and a close discards them: of 199 acks right before a
    /// close all were lost (measured). The reply to a `basic.get` comes after the acks that were
    /// passed on, and lets the channel pass on the next ones. What it gets is requeued as well.
    async fn apply_acks(&mut self) -> Result<(), BrokerError> {
        self.ack_copied().await?;
        while std::mem::take(&mut self.acks_pending) {
            for _ in 0..BARRIERS {
                let queue = self.config.dead_letter_queue.as_str().into();
                let get = self.channel.basic_get(queue, BasicGetOptions::default());
                if let Some(got) = answered("get", get).await? {
                    let message = self.hold(Ok(got.delivery))?;
                    self.keep(message).await?;
                }
            }
            self.ack_copied().await?;
        }
        Ok(())
    }

    /// Requeues everything unacked and waits until it is ready: a queue may need seconds for tens of
    /// thousands, and the next command would read a part of them. `false` when the depth stands
    /// still below that, because another consumer takes messages, say.
    async fn requeue(&self) -> Result<bool, BrokerError> {
        if self.held.is_empty() {
            return Ok(true);
        }
        let whole = self.ready().await? + self.held.len() as u64;
        // Not only by the close: from RabbitMQ 4.3 on a nack does not count as a delivery.
        let everything = BasicNackOptions { multiple: true, requeue: true };
        answered("nack", self.channel.basic_nack(0, everything)).await?;
        let (mut most, mut grew) = (0, Instant::now());
        loop {
            let ready = self.ready().await?;
            if ready >= whole {
                return Ok(true);
            }
            if ready > most {
                (most, grew) = (ready, Instant::now());
            }
            if grew.elapsed() >= MAX_STANDSTILL {
                return Ok(false);
            }
            sleep(POLL).await;
        }
    }
}
