//! A trial before a replay. Dead letters whose cause still exists would be dead-lettered again, and
//! many at once open the breaker, which stops valid votes. So one message of each cause is replayed
//! first, and the others of that cause follow only if it does not come back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::time::{Instant, sleep};

use super::filter::Filter;
use super::reason::{DeadLetterReason, Examined};
use super::scan::{Fingerprint, Reader, Selection, fingerprint, scan};
use crate::adapters::broker::{DeadLetterQueue, QueueWatch, Republisher};
use crate::model::ports::{BrokerError, OpenError};
use crate::platform::config::{Config, Postgres};

/// Messages on trial at the same time: more than 3 refused votes in a batch, or 20 in a minute, may
/// count as a systemic database fault.
const MAX_AT_ONCE: usize = 3;
/// Causes that are tried in one replay.
const MAX_CAUSES: u64 = 30;
/// Between two reads of the queue's depth.
const POLL: Duration = Duration::from_millis(250);
/// For bisecting, and for publishing a dead letter.
const MARGIN: Duration = Duration::from_secs(2);

/// What a message was dead-lettered for: one SQLSTATE may stand for a constraint per law.
pub type Cause = String;

/// The outcome for the one message of a cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Consumed, and not a dead letter again.
    StayedAway,
    /// A dead letter again.
    CameBack,
    /// Unknown after the time limit: not consumed, or an instance stopped consuming meanwhile.
    Unsettled,
}

/// The one message of each cause that was replayed.
#[derive(Clone, Debug, Default)]
pub struct TrialResults(BTreeMap<Cause, Tried>);

#[derive(Clone, Copy, Debug)]
struct Tried {
    /// Of the message as it comes back.
    mark: Fingerprint,
    /// `None` where nothing else was selected, so that its outcome decides nothing.
    outcome: Option<Outcome>,
}

impl TrialResults {
    /// Returns how many messages were replayed.
    pub fn sent(&self) -> u64 {
        self.0.len() as u64
    }

    /// Returns how many of them are dead letters again.
    pub fn came_back(&self) -> u64 {
        self.0.values().filter(|tried| tried.outcome == Some(Outcome::CameBack)).count() as u64
    }

    /// Whether this message was itself on trial.
    pub(super) fn contains(&self, mark: Fingerprint) -> bool {
        self.0.values().any(|tried| tried.mark == mark)
    }

    /// Whether messages with the same cause may follow.
    pub(super) fn allows(&self, examined: &Examined) -> bool {
        let tried = self.0.get(&cause(examined));
        tried.is_some_and(|tried| tried.outcome == Some(Outcome::StayedAway))
    }
}

/// How long a trial may take.
#[derive(Clone, Copy, Debug)]
pub struct TrialTimeouts {
    /// Until the messages on trial are consumed and settled.
    longest: Duration,
    /// From when they are consumed until they are settled.
    settlement: Duration,
}

impl TrialTimeouts {
    /// Derived from the settings that the instances have, too.
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
    Lost(#[from] BrokerError),
}

/// Returns the cause of a message.
fn cause(examined: &Examined) -> Cause {
    let label = examined.reason.label();
    match (&examined.reason, &examined.law_id) {
        (DeadLetterReason::Refused { .. }, Some(law)) => format!("{label} on {law}"),
        _ => label,
    }
}

/// Replays one message of each cause that is selected, a few at a time, and waits for the outcomes;
/// `report` is called for each cause before and after. Sends no more once a wait timed out. There is no
/// outcome where nothing else is selected. While it waits, it holds no dead letter.
///
/// # Errors
/// [`TrialError`]: what was replayed by then is confirmed in the queue.
pub async fn trial(
    config: &Config,
    republisher: &mut Republisher,
    selection: &Selection<'_>,
    max_held: usize,
    timeouts: TrialTimeouts,
    mut report: impl FnMut(&Cause, Option<Outcome>),
) -> Result<TrialResults, TrialError> {
    let mut results = TrialResults::default();
    let mut settled = true;
    while settled {
        let is_first = results.0.is_empty();
        let (causes, is_everything) =
            send(config, republisher, selection, max_held, &mut results).await?;
        if causes.is_empty() {
            break;
        }
        if is_first && is_everything {
            return Ok(results);
        }
        causes.iter().for_each(|cause| report(cause, None));
        settled = until_settled(config, timeouts).await?;
    }
    if results.0.is_empty() {
        return Ok(results);
    }

    let (bar, everything) = (ProgressBar::hidden(), Filter::default());
    let all = Selection::of(config, &everything);
    let mut queue = DeadLetterQueue::open(&config.rabbitmq, max_held).await?;
    let mut dead = BTreeSet::new();
    let tally = scan(&mut queue, &all, &bar, |message, examined| {
        dead.insert(fingerprint(message, examined.replays));
    });
    let tally = tally.await?;
    queue.finish().await?;
    for (cause, tried) in &mut results.0 {
        let outcome = match dead.contains(&tried.mark) {
            true => Outcome::CameBack,
            // What came back is at the end of the queue.
            false if settled && tally.read >= tally.depth => Outcome::StayedAway,
            false => Outcome::Unsettled,
        };
        report(cause, Some(outcome));
        tried.outcome = Some(outcome);
    }
    Ok(results)
}

/// Reads the dead letters, replays one message each of the first causes that were not `tried`, and adds
/// them. Returns these causes, and whether nothing else is selected.
async fn send(
    config: &Config,
    republisher: &mut Republisher,
    selection: &Selection<'_>,
    max_held: usize,
    tried: &mut TrialResults,
) -> Result<(Vec<Cause>, bool), TrialError> {
    let max = selection.max.unwrap_or(u64::MAX);
    // `max` bounds what is sent, not what is read.
    let all = Selection { max: None, ..selection.clone() };
    let bar = ProgressBar::hidden();
    let mut queue = DeadLetterQueue::open(&config.rabbitmq, max_held).await?;
    let mut reader = Reader::new(&mut queue, &all, &bar);
    let (mut causes, mut others) = (Vec::new(), 0);
    while let Some((message, examined)) = reader.next().await? {
        let cause = cause(&examined);
        let is_full = causes.len() >= MAX_AT_ONCE || tried.sent() >= max.min(MAX_CAUSES);
        if is_full || tried.0.contains_key(&cause) {
            others += u64::from(!tried.contains(fingerprint(&message, examined.replays)));
            reader.keep(message).await?;
            continue;
        }
        let replays = examined.replays.saturating_add(1);
        let mark = fingerprint(&message, replays);
        tried.0.insert(cause.clone(), Tried { mark, outcome: None });
        causes.push(cause);
        republisher.replay(&config.rabbitmq.queue, message, replays).await?;
        let confirmed = republisher.confirms().await?;
        for message in confirmed.messages {
            reader.ack(message.tag).await?;
        }
        if let Some(error) = confirmed.error {
            return Err(error.into());
        }
    }
    let all_read = reader.tally.read >= reader.tally.depth;
    queue.finish().await?;
    let is_everything = others.min(max.saturating_sub(tried.sent())) == 0 && all_read;
    Ok((causes, is_everything))
}

/// Waits until everything that is in the queue now is consumed and settled: the queue was seen
/// empty, and since then no instance stopped consuming (a breaker that opens requeues what it
/// holds). `false` when that takes too long.
async fn until_settled(config: &Config, timeouts: TrialTimeouts) -> Result<bool, OpenError> {
    let mut watch = QueueWatch::new(config.rabbitmq.clone());
    let deadline = Instant::now() + timeouts.longest;
    let mut empty_since = None;
    let mut consumers = 0;
    loop {
        let queue = watch.status().await?;
        let now = Instant::now();
        if queue.consumers < consumers {
            empty_since = None;
        }
        consumers = queue.consumers;
        if queue.ready == 0 && consumers > 0 {
            empty_since.get_or_insert(now);
        }
        if empty_since.is_some_and(|since| now.duration_since(since) >= timeouts.settlement) {
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

    use super::super::reason::examine;
    use super::*;
    use crate::adapters::broker::DeadLetterMessage;
    use crate::platform::config::Sources;

    fn examined(law: &str, headers: Value) -> Examined {
        let body = json!({"vote_hash": "h", "citizen_id": "c", "law_id": law, "choice": "oui",
                          "timestamp": "2025-11-14T12:00:00Z"});
        let Value::Object(headers) = headers else { panic!("headers are an object") };
        examine(
            &DeadLetterMessage::new(body.to_string(), headers.into_iter().collect()),
            16_384,
            None,
        )
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
    fn only_causes_whose_message_stayed_away_may_follow() {
        let message = examined("law-1", json!({"x-sqlstate": "23514"}));
        for (outcome, follows) in
            [(Outcome::StayedAway, true), (Outcome::CameBack, false), (Outcome::Unsettled, false)]
        {
            let tried = Tried { mark: 0, outcome: Some(outcome) };
            let results = TrialResults(BTreeMap::from([(cause(&message), tried)]));
            assert_eq!(results.allows(&message), follows, "{outcome:?}");
        }
        assert!(!TrialResults::default().allows(&message), "a cause that was not tried");
    }

    #[test]
    fn settlement_takes_as_long_as_a_batch_with_its_retries() {
        let config = Config::load(&Sources::default()).expect("the defaults are good");
        let timeouts = TrialTimeouts::new(&config, Duration::from_secs(60));
        let expected =
            config.batch.timeout + config.retry.delay * 7 + Postgres::LOCK_TIMEOUT * 4 + MARGIN;
        assert_eq!(timeouts.settlement, expected);
    }
}
