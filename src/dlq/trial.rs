//! A trial before a replay. Dead letters whose cause is still there would come straight back, and
//! many at once open the breaker, which stops good votes. So one letter of each cause is put back
//! first, and the others of it follow only when that one stayed away.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::replay::{CONFIRM_TIMEOUT, Replay, unanswered};
use super::scan::{Fingerprint, Verdict, body_fingerprint};
use super::why::{Examined, Why, examine};
use crate::broker::{DeadLetterQueue, Letter, Publisher, QueueWatch};
use crate::config::{Config, Postgres, RabbitMq};
use crate::ports::{Lost, OpenError};

/// Letters on trial at the same time. So many refused votes never count as a systemic fault of the
/// database (more than 3 of a batch, or 20 a minute).
const AT_ONCE: usize = 3;
/// Causes that are tried in one replay.
const CAUSES_AT_MOST: usize = 30;
/// How often the queue is looked at.
const POLL: Duration = Duration::from_millis(250);
/// For bisecting, and for publishing a dead letter.
const MARGIN: Duration = Duration::from_secs(2);

/// What a letter died of, as far as can be told: one SQLSTATE may stand for a constraint a law.
pub type Cause = String;

/// What became of the one letter of a cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Taken from the queue, and not among the dead letters again.
    StayedAway,
    /// A dead letter again.
    CameBack,
    /// Not known within the time for it: not taken, or an instance stopped consuming meanwhile.
    Unsettled,
}

/// What is known of the causes behind a trial.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    pub outcomes: BTreeMap<Cause, Outcome>,
    /// Letters that were put back and are not known to have come back, and those that are.
    pub stayed_away: u64,
    pub came_back: u64,
    /// Where all that matched was put back in the trial, there was nothing to wait for.
    pub complete: bool,
    marks: BTreeSet<Fingerprint>,
}

impl Tried {
    /// Whether a letter was itself on trial.
    pub(super) fn has(&self, letter: &Letter, examined: &Examined) -> bool {
        self.marks.contains(&body_fingerprint(letter, examined.replays))
    }

    /// Whether letters of its cause may follow.
    pub(super) fn allows(&self, examined: &Examined) -> bool {
        self.outcomes.get(&cause(examined)) == Some(&Outcome::StayedAway)
    }
}

/// How long a trial may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until the letters on trial are taken from the queue and settled.
    pub longest: Duration,
    /// From when they are taken until they are settled.
    settlement: Duration,
}

impl Patience {
    /// By the settings that the instances have, too.
    pub fn new(config: &Config, longest: Duration) -> Self {
        let retries = (0..config.retry.max_attempts.min(16)).map(|n| config.retry.delay * (1 << n));
        let tries =
            Postgres::LOCK_TIMEOUT.saturating_mul(config.retry.max_attempts.saturating_add(1));
        let settlement = config.batch.timeout + retries.sum::<Duration>() + tries + MARGIN;
        Self { longest, settlement: settlement.min(config.batch_deadline()) }
    }
}

/// Why a trial ended early; nothing is lost.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// Returns the cause of a letter.
pub fn cause(examined: &Examined) -> Cause {
    let label = examined.why.label();
    match (&examined.why, &examined.law_id) {
        (Why::Refused { .. }, Some(law)) => format!("{label} on {law}"),
        _ => label,
    }
}

/// Puts back one letter of each cause that is selected, a few at a time, and waits for what becomes
/// of them; `told` hears of each before and after. Ends early when an outcome stays unknown.
///
/// # Errors
/// [`TrialError`]: what was put back by then is confirmed in the queue.
pub async fn trial(
    rabbitmq: &RabbitMq,
    publisher: &Publisher,
    plan: &Replay<'_>,
    hold: usize,
    patience: Patience,
    mut told: impl FnMut(&Cause, Option<Outcome>),
) -> Result<Tried, TrialError> {
    let mut tried = Tried::default();
    let mut watch = QueueWatch::new(rabbitmq.clone());
    let mut wave = Wave::default();
    let mut settled = true;
    loop {
        let Pass { next, left, back, whole } =
            pass(rabbitmq, publisher, plan, hold, &tried, &wave, settled).await?;
        for (cause, mark) in wave.0 {
            // What came back is at the end of the queue.
            let outcome = match (back.contains(&mark), settled && whole) {
                (true, _) => Outcome::CameBack,
                (false, true) => Outcome::StayedAway,
                (false, false) => Outcome::Unsettled,
            };
            told(&cause, Some(outcome));
            tried.stayed_away += u64::from(outcome != Outcome::CameBack);
            tried.came_back += u64::from(outcome == Outcome::CameBack);
            tried.outcomes.insert(cause, outcome);
        }
        if next.0.is_empty() {
            return Ok(tried);
        }
        wave = next;
        tried.marks.extend(wave.0.values());
        if left == 0 && whole {
            tried.stayed_away += wave.0.len() as u64;
            tried.complete = true;
            return Ok(tried);
        }
        wave.0.keys().for_each(|cause| told(cause, None));
        settled = until_settled(&mut watch, patience).await?;
    }
}

/// One letter each of some causes.
#[derive(Default)]
struct Wave(BTreeMap<Cause, Fingerprint>);

/// What came of reading the dead letters once.
struct Pass {
    /// What was put back.
    next: Wave,
    /// How many more are selected.
    left: u64,
    /// Letters on trial that are dead letters again.
    back: BTreeSet<Fingerprint>,
    /// Whether all of them were read, and not only as many as may be held.
    whole: bool,
}

/// Reads all dead letters: puts back those of the next wave, unless it shall not `go_on`, and finds
/// those of the last one that came back.
async fn pass(
    rabbitmq: &RabbitMq,
    publisher: &Publisher,
    plan: &Replay<'_>,
    hold: usize,
    tried: &Tried,
    last: &Wave,
    go_on: bool,
) -> Result<Pass, TrialError> {
    let selection = &plan.selection;
    let (mut next, mut left, mut back) = (Wave::default(), 0_u64, BTreeSet::new());
    let unknown = last.0.len() + tried.outcomes.len();
    let mut letters = DeadLetterQueue::open(rabbitmq, hold).await?;
    while let Some(letter) = letters.next().await? {
        let examined = examine(&letter, selection.max_message_bytes);
        let mark = body_fingerprint(&letter, examined.replays);
        if tried.marks.contains(&mark) {
            back.insert(mark);
        } else if selection.judge(&letter, &examined) == Verdict::Taken {
            let cause = cause(&examined);
            let known = tried.outcomes.contains_key(&cause)
                || last.0.contains_key(&cause)
                || next.0.contains_key(&cause);
            let sent = tried.marks.len() as u64 + next.0.len() as u64;
            let full = !go_on
                || next.0.len() >= AT_ONCE
                || unknown + next.0.len() >= CAUSES_AT_MOST
                || selection.max.is_some_and(|max| sent >= max);
            if !known && !full {
                let replays = examined.replays.saturating_add(1);
                put_back(publisher, plan.queue, &letter, replays).await?;
                letters.remove(letter.tag).await?;
                next.0.insert(cause, body_fingerprint(&letter, replays));
                continue;
            }
            left += 1;
        }
        letters.keep(&letter).await?;
    }
    let whole = !letters.is_full() && letters.read() >= letters.depth();
    letters.finish().await?;
    let sent = tried.marks.len() as u64 + next.0.len() as u64;
    let wanted = selection.max.map_or(u64::MAX, |max| max.saturating_sub(sent));
    Ok(Pass { next, left: left.min(wanted), back, whole })
}

async fn put_back(
    publisher: &Publisher,
    queue: &str,
    letter: &Letter,
    replays: u32,
) -> Result<(), Lost> {
    let publishing = async { Ok(publisher.replay(queue, letter, replays).await?.await?) };
    timeout(CONFIRM_TIMEOUT, publishing).await.unwrap_or_else(|_| Err(unanswered()))
}

/// Waits until what is in the queue now has been taken and is settled: the queue was seen empty, and
/// since then no instance stopped consuming (a breaker that opens gives back what it holds). `false`
/// when that takes too long.
async fn until_settled(watch: &mut QueueWatch, patience: Patience) -> Result<bool, OpenError> {
    let deadline = Instant::now() + patience.longest;
    let mut taken = None;
    let mut consumers = 0;
    loop {
        let seen = watch.status().await?;
        let now = Instant::now();
        if seen.consumers < consumers {
            taken = None;
        }
        consumers = seen.consumers;
        if seen.ready == 0 && consumers > 0 {
            taken.get_or_insert(now);
        }
        if taken.is_some_and(|since| now.duration_since(since) >= patience.settlement) {
            return Ok(true);
        }
        if now >= deadline {
            return Ok(false);
        }
        sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::Sources;

    fn examined(law: &str, headers: Value) -> Examined {
        let body = json!({"vote_hash": "h", "citizen_id": "c", "law_id": law, "choice": "oui",
                          "timestamp": "2025-11-14T12:00:00Z"});
        let Value::Object(headers) = headers else { panic!("headers are an object") };
        examine(&Letter::new(body.to_string(), headers.into_iter().collect()), 16_384)
    }

    #[test]
    fn a_constraint_on_one_law_is_a_cause_of_its_own() {
        let refused = |law| cause(&examined(law, json!({"x-sqlstate": "23514"})));
        assert_eq!(refused("law-1"), "SQLSTATE 23514 on law-1");
        assert_ne!(refused("law-1"), refused("law-2"));
        let died = |law| cause(&examined(law, json!({"x-death": [{"reason": "expired"}]})));
        assert_eq!((died("law-1").as_str(), died("law-1")), ("expired", died("law-2")));
    }

    #[test]
    fn only_causes_whose_letter_stayed_away_may_follow() {
        let letter = examined("law-1", json!({"x-sqlstate": "23514"}));
        for (outcome, follows) in
            [(Outcome::StayedAway, true), (Outcome::CameBack, false), (Outcome::Unsettled, false)]
        {
            let outcomes = BTreeMap::from([(cause(&letter), outcome)]);
            let tried = Tried { outcomes, ..Tried::default() };
            assert_eq!(tried.allows(&letter), follows, "{outcome:?}");
        }
        assert!(!Tried::default().allows(&letter), "a cause that was not tried");
    }

    #[test]
    fn settlement_takes_as_long_as_a_batch_with_its_retries() {
        let config = Config::load(&Sources::default()).expect("the defaults are good");
        let patience = Patience::new(&config, Duration::from_secs(60));
        let expected =
            config.batch.timeout + config.retry.delay * 7 + Postgres::LOCK_TIMEOUT * 4 + MARGIN;
        assert_eq!(patience.settlement, expected);
    }
}
