//! Reading the whole queue, and selecting messages.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use indicatif::ProgressBar;

use super::filter::Filter;
use super::reason::{Examined, examine};
use super::trial::TrialResults;
use crate::adapters::broker::{DeadLetterMessage, DeadLetterQueue};
use crate::model::cell::Cell;
use crate::model::ports::{BrokerError, DeliveryTag};
use crate::platform::config::Config;

/// Distinct reasons that are counted apart; a publisher can make up any number.
const MAX_REASONS: usize = 200;

/// Identifies a message by its body and how often it was replayed.
pub type Fingerprint = u64;

/// Which messages are selected.
#[derive(Clone, Debug)]
pub struct Selection<'a> {
    pub filter: &'a Filter,
    /// Messages that were replayed this often are skipped; `None`: however often.
    pub max_replays: Option<u32>,
    /// Also what the decoder rejects.
    pub malformed: bool,
    /// The decoder's limit, in bytes.
    pub max_message_bytes: usize,
    /// The cell that the queue belongs to, if there are cells.
    pub cell: Option<Cell>,
    /// At most so many; `None`: all.
    pub max: Option<u64>,
    /// Only what the operator agreed to; `None`: everything.
    pub agreed: Option<&'a BTreeSet<Fingerprint>>,
    /// Only causes whose trial succeeded; `None`: all causes.
    pub trial: Option<&'a TrialResults>,
}

impl<'a> Selection<'a> {
    /// Selects whatever `filter` matches.
    pub fn of(config: &Config, filter: &'a Filter) -> Self {
        Self {
            filter,
            max_replays: None,
            malformed: true,
            max_message_bytes: config.batch.max_message_bytes,
            cell: config.rabbitmq.cell,
            max: None,
            agreed: None,
            trial: None,
        }
    }

    /// Counts a message, and returns whether it is selected.
    fn selects(&self, message: &DeadLetterMessage, examined: &Examined, tally: &mut Tally) -> bool {
        let mark = fingerprint(message, examined.replays);
        let agreed = self.agreed.is_none_or(|agreed| agreed.contains(&mark));
        let on_trial = self.trial.is_some_and(|trial| trial.contains(mark));
        if on_trial || !agreed || !self.filter.matches(examined) {
            return false;
        }
        tally.count(examined);
        let skipped = if self.max_replays.is_some_and(|most| examined.replays >= most) {
            &mut tally.too_often
        } else if !self.malformed && !examined.reason.is_valid() {
            &mut tally.malformed
        } else if self.trial.is_some_and(|trial| !trial.allows(examined)) {
            &mut tally.held_back
        } else {
            return true;
        };
        *skipped += 1;
        false
    }
}

/// Returns the fingerprint of a message that was replayed so often.
pub fn fingerprint(message: &DeadLetterMessage, replays: u32) -> Fingerprint {
    let mut hasher = DefaultHasher::new();
    (&message.body, replays).hash(&mut hasher);
    hasher.finish()
}

/// Why reading ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ended {
    /// After the last message that was there at the beginning.
    #[default]
    AtTheEnd,
    /// No more messages may stay unacked.
    Full,
    /// As many as were asked for.
    Enough,
}

/// Counts of the messages found, and of their outcomes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages in the queue at the beginning.
    pub depth: u64,
    pub read: u64,
    /// Messages that match; the sum of the five below.
    pub matched: u64,
    /// Replayed, removed or shown.
    pub taken: u64,
    /// Skipped, because the decoder rejects them.
    pub malformed: u64,
    /// Skipped, because they were replayed too often.
    pub too_often: u64,
    /// Skipped, because the trial of their cause did not succeed.
    pub held_back: u64,
    /// Still dead letters, because the broker did not confirm them.
    pub failed: u64,
    /// Valid votes among those that match.
    pub valid: u64,
    /// Those that match, by [`DeadLetterReason::label`](super::DeadLetterReason::label).
    pub reasons: BTreeMap<String, u64>,
    pub ended: Ended,
}

impl Tally {
    fn count(&mut self, examined: &Examined) {
        self.matched += 1;
        self.valid += u64::from(examined.reason.is_valid());
        let mut label = examined.reason.label();
        if self.reasons.len() >= MAX_REASONS && !self.reasons.contains_key(&label) {
            "other".clone_into(&mut label);
        }
        *self.reasons.entry(label).or_default() += 1;
    }
}

/// Reads the queue, leaves what is not selected, and counts.
pub struct Reader<'a> {
    queue: &'a mut DeadLetterQueue,
    selection: &'a Selection<'a>,
    bar: &'a ProgressBar,
    selected: u64,
    pub tally: Tally,
}

impl<'a> Reader<'a> {
    pub fn new(
        queue: &'a mut DeadLetterQueue,
        selection: &'a Selection<'a>,
        bar: &'a ProgressBar,
    ) -> Self {
        let tally = Tally { depth: queue.depth(), ..Tally::default() };
        Self { queue, selection, bar, selected: 0, tally }
    }

    /// Returns the next selected message, to be acked or left; `None` at the end.
    pub(super) async fn next(
        &mut self,
    ) -> Result<Option<(DeadLetterMessage, Examined)>, BrokerError> {
        loop {
            if self.selection.max.is_some_and(|max| self.selected >= max) {
                self.tally.ended = Ended::Enough;
                return Ok(None);
            }
            let next = self.queue.next().await?;
            self.tally.read = self.queue.read();
            self.bar.set_position(self.tally.read);
            let Some(message) = next else {
                let full = self.queue.is_full();
                self.tally.ended = if full { Ended::Full } else { Ended::AtTheEnd };
                return Ok(None);
            };
            let Selection { max_message_bytes, cell, .. } = *self.selection;
            let examined = examine(&message, max_message_bytes, cell);
            if self.selection.selects(&message, &examined, &mut self.tally) {
                self.selected += 1;
                return Ok(Some((message, examined)));
            }
            self.queue.keep(message).await?;
        }
    }

    pub(super) async fn ack(&mut self, tag: DeliveryTag) -> Result<(), BrokerError> {
        self.queue.ack(tag).await?;
        self.tally.taken += 1;
        Ok(())
    }

    pub(super) async fn keep(&mut self, message: DeadLetterMessage) -> Result<(), BrokerError> {
        self.queue.keep(message).await
    }
}

/// Reads to the end, passes each selected message to `each`, and leaves all of them in the queue.
///
/// # Errors
/// [`BrokerError`] when the connection is lost: everything is still queued.
pub async fn scan(
    queue: &mut DeadLetterQueue,
    selection: &Selection<'_>,
    bar: &ProgressBar,
    mut each: impl FnMut(&DeadLetterMessage, Examined),
) -> Result<Tally, BrokerError> {
    let mut reader = Reader::new(queue, selection, bar);
    while let Some((message, examined)) = reader.next().await? {
        each(&message, examined);
        reader.tally.taken += 1;
        reader.keep(message).await?;
    }
    Ok(reader.tally)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    const VOTE: &str = r#"{"vote_hash":"h-1","citizen_id":"c","law_id":"law-1","choice":"oui","timestamp":"2025-11-14T12:00:00Z"}"#;

    fn message(body: &str, replays: u32) -> DeadLetterMessage {
        DeadLetterMessage::new(body, BTreeMap::from([("x-replays".to_owned(), json!(replays))]))
    }

    #[test]
    fn what_would_come_straight_back_is_skipped() {
        let all = Filter::default();
        let other = Filter { laws: vec!["law-2".to_owned()], ..Filter::default() };
        let broken = VOTE.replace("oui", "maybe");
        let agreed = BTreeSet::from([fingerprint(&message(VOTE, 0), 0)]);
        let selection = Selection {
            filter: &all,
            max_replays: Some(3),
            malformed: false,
            max_message_bytes: 16_384,
            cell: None,
            max: None,
            agreed: None,
            trial: None,
        };
        let forced = Selection { malformed: true, ..selection.clone() };
        let unguarded = Selection { max_replays: None, malformed: true, ..selection.clone() };
        let elsewhere = Selection { filter: &other, ..selection.clone() };
        let asked = Selection { agreed: Some(&agreed), ..selection.clone() };
        // The last three: whether it matches, is malformed, was replayed too often.
        for (selection, body, replays, is_selected, counts) in [
            (&selection, VOTE, 0, true, [1, 0, 0]),
            (&selection, VOTE, 2, true, [1, 0, 0]),
            (&selection, VOTE, 3, false, [1, 0, 1]),
            (&selection, VOTE, u32::MAX, false, [1, 0, 1]),
            (&selection, &broken, 0, false, [1, 1, 0]),
            (&forced, &broken, 0, true, [1, 0, 0]),
            (&forced, &broken, 3, false, [1, 0, 1]),
            (&unguarded, &broken, 9, true, [1, 0, 0]),
            (&elsewhere, VOTE, 0, false, [0, 0, 0]),
            (&asked, VOTE, 0, true, [1, 0, 0]),
            // Came back meanwhile, or was not there when the operator agreed.
            (&asked, VOTE, 1, false, [0, 0, 0]),
            (&asked, &broken, 0, false, [0, 0, 0]),
        ] {
            let (message, mut tally) = (message(body, replays), Tally::default());
            let selected =
                selection.selects(&message, &examine(&message, 16_384, None), &mut tally);
            assert_eq!(selected, is_selected, "{body} {replays}");
            assert_eq!(
                [tally.matched, tally.malformed, tally.too_often],
                counts,
                "{body} {replays}"
            );
        }
    }

    #[test]
    fn made_up_reasons_do_not_grow_the_tally_without_bound() {
        let mut tally = Tally::default();
        for number in 0..1_000 {
            let death = json!([{"reason": format!("made up {number}")}]);
            let message =
                DeadLetterMessage::new(VOTE, BTreeMap::from([("x-death".to_owned(), death)]));
            tally.count(&examine(&message, 16_384, None));
        }
        assert_eq!((tally.matched, tally.valid), (1_000, 1_000));
        assert_eq!(tally.reasons.values().sum::<u64>(), 1_000);
        assert_eq!(tally.reasons.len(), MAX_REASONS + 1);
    }
}
