//! The end of a reading: what is removed has to be gone, and what is kept has to be back.

use std::time::Duration;

use futures::StreamExt;
use lapin::options::{BasicCancelOptions, BasicGetOptions, BasicNackOptions};
use tokio::time::{Instant, timeout};

use super::super::session::lost;
use super::{ANSWER_TIMEOUT, DeadLetterQueue, GivenBack, answered, depth};
use crate::ports::Lost;

/// Questions behind the last ack: one for the acks that were passed on, one for those that had to
/// wait, and one to spare.
const BARRIERS: usize = 3;
/// Between two questions how much is back, and how long nothing more may come back.
const POLL: Duration = Duration::from_millis(100);
const STANDSTILL: Duration = Duration::from_secs(5);

impl DeadLetterQueue {
    /// Gives back what is held and closes. On return what was removed is gone, and what was kept is
    /// there to be read again, unless [`GivenBack::arrived`] says that it is still on its way.
    ///
    /// # Errors
    /// [`Lost`] when the broker did not confirm. What is not acked goes back all the same; acks may
    /// or may not have arrived.
    pub async fn finish(mut self) -> Result<GivenBack, Lost> {
        let cancelling = async {
            for consumer in &self.consumers {
                self.channel.basic_cancel(consumer.clone(), BasicCancelOptions::default()).await?;
            }
            Ok(())
        };
        answered("cancel", cancelling).await?;
        // What was delivered and not read counts as delivered, too.
        while let Some(delivery) = self.deliveries.next().await {
            let delivery = delivery.map_err(|error| lost("consume", &error))?;
            let letter = self.hold(delivery);
            self.keep(&letter).await?;
        }
        self.settle_removals().await?;
        let whole = self.ready().await? + self.held.len() as u64;
        // A nack and not the close alone: from RabbitMQ 4.3 on it does not count as a delivery.
        let giving_back = async {
            if !self.held.is_empty() {
                let everything = BasicNackOptions { multiple: true, requeue: true };
                self.channel.basic_nack(0, everything).await?;
            }
            self.channel.close(200, "OK".into()).await
        };
        answered("close", giving_back).await?;
        self.given_back.arrived = self.held.is_empty() || self.until_ready(whole).await?;
        answered("close", self.connection.close(200, "OK".into())).await?;
        if let Some(copier) = self.copier {
            answered_by(copier.close()).await?;
        }
        Ok(self.given_back)
    }

    /// Waits until the queue has got all acks. A channel keeps acks for a quorum queue to itself while
    /// many others are under way (32 on RabbitMQ 3.10), and a close forgets them: of 199 acks right
    /// before a close all were lost (measured). A `basic.get` is answered behind the acks that were
    /// passed on, and their answers have the channel pass on the next: what it gets goes back with
    /// the others.
    async fn settle_removals(&mut self) -> Result<(), Lost> {
        while !self.copies.is_empty() {
            self.copied().await?;
        }
        while std::mem::take(&mut self.removed) {
            for _ in 0..BARRIERS {
                let queue = self.config.dead_letter_queue.as_str().into();
                let get = self.channel.basic_get(queue, BasicGetOptions::default());
                if let Some(got) = answered("get", get).await? {
                    let letter = self.hold(got.delivery);
                    self.keep(&letter).await?;
                }
            }
            while !self.copies.is_empty() {
                self.copied().await?;
            }
        }
        Ok(())
    }

    /// Waits until `whole` messages are ready. A queue may take a while to take back tens of
    /// thousands, and who looks meanwhile sees a part of them.
    async fn until_ready(&self, whole: u64) -> Result<bool, Lost> {
        let channel = answered("channel", self.connection.create_channel()).await?;
        let (mut most, mut grew) = (0, Instant::now());
        let arrived = loop {
            let ready = answered("passive declare", depth(&channel, &self.config)).await?;
            if ready >= whole {
                break true;
            }
            if ready > most {
                (most, grew) = (ready, Instant::now());
            }
            if grew.elapsed() >= STANDSTILL {
                // Or somebody else takes them.
                break false;
            }
            tokio::time::sleep(POLL).await;
        };
        // Dropped, it would close itself in the middle of the connection's close.
        answered("close", channel.close(200, "OK".into())).await?;
        Ok(arrived)
    }
}

async fn answered_by(closing: impl Future<Output = Result<(), Lost>>) -> Result<(), Lost> {
    match timeout(ANSWER_TIMEOUT, closing).await {
        Ok(closed) => closed,
        // Everything on it is confirmed.
        Err(_) => Ok(()),
    }
}
