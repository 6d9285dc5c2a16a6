//! Removing messages: each is archived first, where an archive is wanted.

use super::archive::{ArchiveError, PurgeArchive};
use super::scan::Reader;
use crate::model::ports::BrokerError;

/// Messages that are on disk together before the first of them is acked.
const BATCH: usize = 200;

/// Why a purge ended early; what was not removed is still queued.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    #[error(transparent)]
    Lost(#[from] BrokerError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// Removes what the reader selects. Acks are certain only after the queue's
/// [`finish`](crate::adapters::broker::DeadLetterQueue::finish), whatever is returned here.
///
/// # Errors
/// [`PurgeError`].
pub async fn purge(
    reader: &mut Reader<'_>,
    mut archive: Option<&mut PurgeArchive>,
) -> Result<(), PurgeError> {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let next = reader.next().await?;
        let at_the_end = next.is_none();
        if let Some((message, examined)) = next {
            if let Some(archive) = &mut archive {
                archive.write(&message, &examined).await?;
            }
            batch.push(message.tag);
        }
        if at_the_end || batch.len() >= BATCH {
            if let Some(archive) = &mut archive {
                archive.sync().await?;
            }
            for tag in batch.drain(..) {
                reader.ack(tag).await?;
            }
        }
        if at_the_end {
            return Ok(());
        }
    }
}
