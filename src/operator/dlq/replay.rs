//! Publishing votes to their queue again, after a [trial](super::trial()): confirmed there, and only
//! then acked here. A kill in between leaves a vote in both queues; the audit prevents counting it
//! twice.

use super::scan::Reader;
use crate::adapters::broker::Republisher;
use crate::model::ports::BrokerError;
use crate::operator::publish::ticks;

/// A queue that refuses so many in a row is full, and refuses the others, too.
const MAX_REFUSED: usize = 10;

/// Where to, and how fast.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub queue: &'a str,
    /// Messages a second; `None`: as fast as confirms arrive.
    pub rate: Option<u32>,
}

/// Replays what the reader selects. Acks are certain only after the queue's
/// [`finish`](crate::adapters::broker::DeadLetterQueue::finish), whatever is returned here.
///
/// # Errors
/// [`BrokerError`] when it ended early or a message was refused: what is not acked is still queued.
pub async fn replay(
    reader: &mut Reader<'_>,
    republisher: &mut Republisher,
    target: Target<'_>,
) -> Result<(), BrokerError> {
    let mut rate = target.rate.map(ticks);
    let (mut refused, mut error) = (0, None);
    loop {
        let next = reader.next().await?;
        let at_the_end = next.is_none();
        if let Some((message, examined)) = next {
            if let Some(rate) = &mut rate {
                rate.tick().await;
            }
            let replays = examined.replays.saturating_add(1);
            republisher.replay(target.queue, message, replays).await?;
        }
        // At a fixed rate each is acked before the next one is due.
        if at_the_end || rate.is_some() || republisher.is_full() {
            let confirmed = republisher.confirms().await?;
            if !confirmed.messages.is_empty() {
                refused = 0;
            }
            refused += confirmed.refused.len();
            for message in confirmed.messages {
                reader.ack(message.tag).await?;
            }
            for message in confirmed.refused {
                reader.tally.failed += 1;
                reader.keep(message).await?;
            }
            error = confirmed.error.or(error);
        }
        if at_the_end || refused >= MAX_REFUSED {
            return error.map_or(Ok(()), Err);
        }
    }
}
