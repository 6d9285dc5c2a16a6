//! Putting votes back into their queue, behind a [trial](super::trial()): published and confirmed there,
//! and only then acked here. A kill in between leaves a vote in both; counting it twice is what the audit
//! prevents.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::timeout;

use super::scan::{Ended, Selection, Tally, Verdict};
use super::why::examine;
use crate::broker::{DeadLetterQueue, Letter, NotPublished, Publisher};
use crate::ports::Lost;
use crate::publish::rate::Rate;

/// Messages on their way to a confirm at a time; each is held with its body.
const UNCONFIRMED_AT_MOST: usize = 200;
/// Bodies and headers on their way at a time, in bytes.
const UNCONFIRMED_BYTES_AT_MOST: usize = 16 << 20;
pub(super) const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// A queue that refuses so many in a row is full, and refuses the others, too.
const REFUSALS_AT_MOST: u64 = 10;

/// What is put back, and how.
#[derive(Debug)]
pub struct Replay<'a> {
    pub selection: Selection<'a>,
    /// The queue that the votes go to.
    pub queue: &'a str,
    /// Messages a second; `None`: as fast as confirms come.
    pub rate: Option<u32>,
}

/// Puts back what is selected, telling `progress` now and then. Give the queue its
/// [`finish`](DeadLetterQueue::finish) afterwards, whatever came of it: only then the acks are
/// certain.
///
/// What became of it so far, and [`Lost`] when it ended early: then what is not acked is still there.
pub async fn replay(
    letters: &mut DeadLetterQueue,
    publisher: &Publisher,
    plan: &Replay<'_>,
    progress: impl FnMut(&Tally),
) -> (Tally, Result<(), Lost>) {
    let mut run = Run {
        tally: Tally::of(letters),
        letters,
        publisher,
        plan,
        confirms: FuturesUnordered::new(),
        unconfirmed_bytes: 0,
        refused_in_a_row: 0,
        refusal: None,
        progress,
    };
    let ended = run.all().await;
    (run.tally, ended)
}

type Confirming =
    std::pin::Pin<Box<dyn Future<Output = (Letter, Result<(), NotPublished>)> + Send>>;

struct Run<'a, P> {
    letters: &'a mut DeadLetterQueue,
    publisher: &'a Publisher,
    plan: &'a Replay<'a>,
    tally: Tally,
    confirms: FuturesUnordered<Confirming>,
    unconfirmed_bytes: usize,
    refused_in_a_row: u64,
    refusal: Option<Lost>,
    progress: P,
}

impl<P: FnMut(&Tally)> Run<'_, P> {
    async fn all(&mut self) -> Result<(), Lost> {
        let Replay { selection, rate, .. } = self.plan;
        let mut pace = (*rate).map(Rate::new);
        let mut sent = 0;
        loop {
            if selection.max.is_some_and(|max| sent >= max) {
                self.tally.ended = Ended::Enough;
                break;
            }
            if self.refused_in_a_row >= REFUSALS_AT_MOST {
                break;
            }
            let Some(letter) = self.letters.next().await? else {
                let full = self.letters.is_full();
                self.tally.ended = if full { Ended::Full } else { Ended::AtTheEnd };
                break;
            };
            let examined = examine(&letter, selection.max_message_bytes);
            let verdict = selection.judge(&letter, &examined);
            self.tally.found(&examined, verdict);
            self.tally.read = self.letters.read();
            if verdict != Verdict::Taken {
                self.letters.keep(&letter).await?;
                continue;
            }
            if let Some(pace) = &mut pace {
                pace.due().await;
                pace.sent();
            }
            self.send(letter, examined.replays.saturating_add(1)).await?;
            sent += 1;
            // At a slow pace each is acked before the next one is due.
            if self.confirms.len() >= UNCONFIRMED_AT_MOST
                || self.unconfirmed_bytes >= UNCONFIRMED_BYTES_AT_MOST
                || pace.is_some()
            {
                self.settle().await?;
            }
        }
        self.settle().await?;
        self.refusal.take().map_or(Ok(()), Err)
    }

    async fn send(&mut self, letter: Letter, replays: u32) -> Result<(), Lost> {
        let publishing = self.publisher.replay(self.plan.queue, &letter, replays);
        let confirm = match timeout(CONFIRM_TIMEOUT, publishing).await {
            Ok(sent) => sent?,
            Err(_) => return Err(unanswered()),
        };
        self.unconfirmed_bytes += letter.size();
        self.confirms.push(Box::pin(async move { (letter, confirm.await) }));
        Ok(())
    }

    /// Waits for the confirms of all that is under way, and only then acks what is confirmed: lapin may
    /// give a returned message to any confirm of the same frame, so a single one leaves all in doubt.
    async fn settle(&mut self) -> Result<(), Lost> {
        let (mut confirmed, mut returned) = (Vec::new(), false);
        while !self.confirms.is_empty() {
            let Ok(outcome) = timeout(CONFIRM_TIMEOUT, self.confirms.next()).await else {
                return Err(unanswered());
            };
            match outcome {
                Some((letter, Ok(()))) => confirmed.push(letter),
                Some((letter, Err(not))) => {
                    returned |= not == NotPublished::Returned;
                    self.refusal = Some(not.into());
                    self.refused(&letter).await?;
                }
                None => {}
            }
        }
        self.unconfirmed_bytes = 0;
        for letter in confirmed {
            if returned {
                self.refused(&letter).await?;
            } else {
                self.letters.remove(letter.tag).await?;
                self.tally.taken += 1;
                self.refused_in_a_row = 0;
            }
            (self.progress)(&self.tally);
        }
        Ok(())
    }

    async fn refused(&mut self, letter: &Letter) -> Result<(), Lost> {
        self.tally.failed += 1;
        self.refused_in_a_row += 1;
        self.letters.keep(letter).await
    }
}

pub(super) fn unanswered() -> Lost {
    Lost(format!(
        "no confirm within {CONFIRM_TIMEOUT:?}; is the broker blocked by a memory or disk alarm?"
    ))
}
