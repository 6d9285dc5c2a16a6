//! Reading the whole queue, and judging each letter.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::filter::Filter;
use super::trial::Tried;
use super::why::{Examined, examine};
use crate::broker::{DeadLetterQueue, Letter};
use crate::ports::Lost;

/// Distinct reasons that are told apart; a publisher can make up any number.
const REASONS_AT_MOST: usize = 200;

/// Stands for a letter that somebody has seen.
pub type Fingerprint = u64;

/// Which letters are to be taken.
#[derive(Clone, Debug)]
pub struct Selection<'a> {
    pub filter: &'a Filter,
    /// Letters that were put back so often are left; `None`: however often.
    pub max_replays: Option<u32>,
    /// Also what the decoder refuses.
    pub malformed: bool,
    /// The decoder's limit, in bytes.
    pub max_message_bytes: usize,
    /// At most so many; `None`: all.
    pub max: Option<u64>,
    /// Only what somebody has agreed to; `None`: everything.
    pub agreed: Option<&'a BTreeSet<Fingerprint>>,
    /// Only causes of which one letter was put back and stayed away; `None`: all causes.
    pub tried: Option<&'a Tried>,
}

/// What becomes of one letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not meant.
    Other,
    /// Meant, and left: it would come straight back.
    Malformed,
    /// Meant, and left: it came back too often.
    TooOften,
    /// Meant, and left: the one of its cause that was tried did not stay away, or none was tried.
    HeldBack,
    Taken,
}

impl Selection<'_> {
    pub fn judge(&self, letter: &Letter, examined: &Examined) -> Verdict {
        let agreed = self.agreed.is_none_or(|agreed| agreed.contains(&fingerprint(letter)));
        let on_trial = self.tried.is_some_and(|tried| tried.has(letter, examined));
        if on_trial || !agreed || !self.filter.matches(examined) {
            Verdict::Other
        } else if self.max_replays.is_some_and(|most| examined.replays >= most) {
            Verdict::TooOften
        } else if !self.malformed && !examined.why.is_valid() {
            Verdict::Malformed
        } else if self.tried.is_some_and(|tried| !tried.allows(examined)) {
            Verdict::HeldBack
        } else {
            Verdict::Taken
        }
    }
}

/// Of its body and of how often it was put back.
pub fn fingerprint(letter: &Letter) -> Fingerprint {
    let mut hasher = DefaultHasher::new();
    letter.body.hash(&mut hasher);
    letter.headers.get("x-replays").map(ToString::to_string).hash(&mut hasher);
    hasher.finish()
}

/// Of its body and of a number of replays, whichever type that header has.
pub(super) fn body_fingerprint(letter: &Letter, replays: u32) -> Fingerprint {
    let mut hasher = DefaultHasher::new();
    (&letter.body, replays).hash(&mut hasher);
    hasher.finish()
}

/// Why reading ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ended {
    /// Behind the last message that was there at the beginning.
    #[default]
    AtTheEnd,
    /// No more may be held on the broker at the same time.
    Full,
    /// As many as were asked for.
    Enough,
}

/// What was found, and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages in the queue at the beginning.
    pub depth: u64,
    pub read: u64,
    /// Those meant; the sum of the five below.
    pub matched: u64,
    /// To be put back or removed; in the end those that were.
    pub taken: u64,
    /// Left, because the decoder refuses them.
    pub malformed: u64,
    /// Left, because they were put back too often.
    pub too_often: u64,
    /// Left, because the one of their cause that was tried did not stay away.
    pub held_back: u64,
    /// Left, because the broker did not confirm them.
    pub failed: u64,
    /// Valid votes among those meant.
    pub valid: u64,
    /// Those meant, by [`Why::label`](super::Why::label).
    pub reasons: BTreeMap<String, u64>,
    pub ended: Ended,
}

impl Tally {
    pub(super) fn of(queue: &DeadLetterQueue) -> Self {
        Self { depth: queue.depth(), ..Self::default() }
    }

    pub(super) fn found(&mut self, examined: &Examined, verdict: Verdict) {
        match verdict {
            Verdict::Other => return,
            Verdict::Malformed => self.malformed += 1,
            Verdict::TooOften => self.too_often += 1,
            Verdict::HeldBack => self.held_back += 1,
            // Counted by who takes it, once it is done.
            Verdict::Taken => {}
        }
        self.matched += 1;
        self.valid += u64::from(examined.why.is_valid());
        let mut label = examined.why.label();
        if self.reasons.len() >= REASONS_AT_MOST && !self.reasons.contains_key(&label) {
            "other".clone_into(&mut label);
        }
        *self.reasons.entry(label).or_default() += 1;
    }
}

/// Reads to the end, shows each letter to `each`, and takes none. Give the queue its
/// [`finish`](DeadLetterQueue::finish) afterwards.
///
/// # Errors
/// [`Lost`] when the broker is gone: everything is still in the queue.
pub async fn scan(
    queue: &mut DeadLetterQueue,
    selection: &Selection<'_>,
    mut each: impl FnMut(&Letter, Examined, Verdict),
) -> Result<Tally, Lost> {
    let mut tally = Tally::of(queue);
    loop {
        if selection.max.is_some_and(|max| tally.taken >= max) {
            tally.ended = Ended::Enough;
            break;
        }
        let Some(letter) = queue.next().await? else {
            tally.ended = if queue.is_full() { Ended::Full } else { Ended::AtTheEnd };
            break;
        };
        let examined = examine(&letter, selection.max_message_bytes);
        let verdict = selection.judge(&letter, &examined);
        tally.found(&examined, verdict);
        tally.taken += u64::from(verdict == Verdict::Taken);
        tally.read = queue.read();
        each(&letter, examined, verdict);
        queue.keep(&letter).await?;
    }
    tally.read = queue.read();
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    const VOTE: &str = r#"{"vote_hash":"h-1","citizen_id":"c","law_id":"law-1","choice":"oui","timestamp":"2025-11-14T12:00:00Z"}"#;

    fn letter(body: &str, replays: u32) -> Letter {
        Letter::new(body, BTreeMap::from([("x-replays".to_owned(), json!(replays))]))
    }

    #[test]
    fn what_would_come_straight_back_is_left() {
        let all = Filter::default();
        let other = Filter { laws: vec!["law-2".to_owned()], ..Filter::default() };
        let broken = VOTE.replace("oui", "maybe");
        let agreed = BTreeSet::from([fingerprint(&letter(VOTE, 0))]);
        let selection = Selection {
            filter: &all,
            max_replays: Some(3),
            malformed: false,
            max_message_bytes: 16_384,
            max: None,
            agreed: None,
            tried: None,
        };
        let forced = Selection { malformed: true, ..selection.clone() };
        let unguarded = Selection { max_replays: None, malformed: true, ..selection.clone() };
        let elsewhere = Selection { filter: &other, ..selection.clone() };
        let asked = Selection { agreed: Some(&agreed), ..selection.clone() };
        for (selection, body, replays, verdict) in [
            (&selection, VOTE, 0, Verdict::Taken),
            (&selection, VOTE, 2, Verdict::Taken),
            (&selection, VOTE, 3, Verdict::TooOften),
            (&selection, VOTE, u32::MAX, Verdict::TooOften),
            (&selection, &broken, 0, Verdict::Malformed),
            (&forced, &broken, 0, Verdict::Taken),
            (&forced, &broken, 3, Verdict::TooOften),
            (&unguarded, &broken, 9, Verdict::Taken),
            (&elsewhere, VOTE, 0, Verdict::Other),
            (&asked, VOTE, 0, Verdict::Taken),
            // Came back meanwhile, or was not there when somebody agreed.
            (&asked, VOTE, 1, Verdict::Other),
            (&asked, &broken, 0, Verdict::Other),
        ] {
            let letter = letter(body, replays);
            let examined = examine(&letter, 16_384);
            assert_eq!(selection.judge(&letter, &examined), verdict, "{body} {replays}");
        }
    }

    #[test]
    fn made_up_reasons_do_not_grow_the_tally_without_end() {
        let mut tally = Tally::default();
        for number in 0..1_000 {
            let death = json!([{"reason": format!("made up {number}")}]);
            let letter = Letter::new(VOTE, BTreeMap::from([("x-death".to_owned(), death)]));
            tally.found(&examine(&letter, 16_384), Verdict::Taken);
        }
        assert_eq!((tally.matched, tally.valid), (1_000, 1_000));
        assert_eq!(tally.reasons.values().sum::<u64>(), 1_000);
        assert_eq!(tally.reasons.len(), REASONS_AT_MOST + 1);
    }
}
