//! Removing letters, each written down before, where that is wanted.

use super::removed::Removed;
use super::scan::{Ended, Selection, Tally, Verdict};
use super::why::examine;
use crate::broker::DeadLetterQueue;
use crate::ports::{DeliveryTag, Lost};

/// Letters that are on disk together before the first of them is acked.
const BATCH: usize = 200;

/// Why a purge ended early; what was not removed is still there.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error("cannot write {path}: {source}")]
    Save { path: String, source: std::io::Error },
}

/// Removes what is selected, telling `progress` now and then. Give the queue its
/// [`finish`](DeadLetterQueue::finish) afterwards, whatever came of it: only then the acks are
/// certain.
pub async fn purge(
    letters: &mut DeadLetterQueue,
    selection: &Selection<'_>,
    mut file: Option<&mut Removed>,
    mut progress: impl FnMut(&Tally),
) -> (Tally, Result<(), PurgeError>) {
    let mut tally = Tally::of(letters);
    let mut batch = Vec::with_capacity(BATCH);
    let ended = async {
        loop {
            let taken = tally.taken + batch.len() as u64;
            if selection.max.is_some_and(|max| taken >= max) {
                tally.ended = Ended::Enough;
                break;
            }
            let Some(letter) = letters.next().await? else {
                tally.ended = if letters.is_full() { Ended::Full } else { Ended::AtTheEnd };
                break;
            };
            let examined = examine(&letter, selection.max_message_bytes);
            let verdict = selection.judge(&letter, &examined);
            tally.found(&examined, verdict);
            tally.read = letters.read();
            if verdict != Verdict::Taken {
                letters.keep(&letter).await?;
                continue;
            }
            if let Some(file) = &mut file {
                file.write(&letter, &examined).await?;
            }
            batch.push(letter.tag);
            if batch.len() >= BATCH {
                remove(letters, &mut batch, file.as_deref_mut(), &mut tally).await?;
                progress(&tally);
            }
        }
        remove(letters, &mut batch, file.as_deref_mut(), &mut tally).await
    };
    let ended = ended.await;
    (tally, ended)
}

async fn remove(
    letters: &mut DeadLetterQueue,
    batch: &mut Vec<DeliveryTag>,
    file: Option<&mut Removed>,
    tally: &mut Tally,
) -> Result<(), PurgeError> {
    if let Some(file) = file {
        file.sync().await?;
    }
    for tag in batch.drain(..) {
        letters.remove(tag).await?;
        tally.taken += 1;
    }
    Ok(())
}
