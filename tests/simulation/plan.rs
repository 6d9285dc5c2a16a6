//! What happens in one run, all of it drawn from its seed: sizes, messages, faults.
//!
//! Most seeds have only some kinds of fault, so that no kind hides what another would show.

use std::time::Duration;

use fastrand::Rng;
use strum::VariantArray;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::datetime;
use vote_aggregator::counting::pipeline::{Limits, RetryPolicy};
use vote_aggregator::model::cell::{Cell, Router, of_hash};
use vote_aggregator::model::vote::{Choice, Vote};

const FIRST_CAST: OffsetDateTime = datetime!(2025-11-14 12:00 UTC);
/// The citizen whose votes the model store always refuses.
pub const POISON: &str = "poison";
/// Unstorable votes of a run: with more, a batch may rightly be taken for a systemic fault.
const MOST_POISON: usize = 3;

/// One message body and what has to become of it.
pub struct Item {
    pub body: Vec<u8>,
    /// `None`: malformed, or of another cell.
    pub vote: Option<Vote>,
}

/// One message that a publisher wants in the queue.
pub struct Publication {
    pub at: Duration,
    /// Index into [`Plan::items`].
    pub item: usize,
    /// Publishes again until it is confirmed; otherwise tries once.
    pub insists: bool,
}

/// What is wrong with the store for a while.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// The server is down: every call fails at once, open transactions are gone.
    Down,
    /// Every transaction fails with this SQLSTATE.
    Refuses(&'static str),
    /// No call is answered.
    Silent,
    /// Every vote of this law is refused with this SQLSTATE; a probe write is not.
    LawRefused(String, &'static str),
    /// A statement over more votes than this runs into `statement_timeout`.
    SlowAbove(usize),
}

#[derive(Clone, Debug)]
pub struct Outage {
    pub from: Duration,
    pub to: Duration,
    pub trouble: Trouble,
}

/// How one transaction goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// Rolled back with this SQLSTATE.
    Fails(&'static str),
    /// Committed, and the answer lost.
    AnswerLost,
    /// Rolled back, and the client learns only of a lost connection.
    LostBeforeCommit,
    /// The answer lost, the commit later.
    Zombie,
    /// Never answered; committed or not.
    Hangs,
    /// Answered after seconds.
    Slow,
}

/// What the chaos does every now and then.
#[derive(Clone, Copy, Debug, VariantArray)]
pub enum Blow {
    CutConnection,
    CloseChannel,
    CancelConsumer,
    RestartBroker,
    CrashInstance,
    /// At the n-th of its next points, wherever that is.
    CrashAtPoint,
    StopInstance,
    /// The synchronous standby disconnects; the primary may restart meanwhile, and be lost.
    LosePrimary,
}

/// Kinds and rates of faults; a rate is a probability each time.
#[derive(Debug, Default)]
pub struct Faults {
    pub blows: Vec<Blow>,
    /// Mean time between two blows.
    pub between_blows: Duration,
    /// A connection is cut just before or just after a frame took effect.
    pub frame_cut: f64,
    /// A cancel or close is never answered.
    pub no_answer: f64,
    pub open_refused: f64,
    /// A dead letter's confirm does not come, whether it took effect or not.
    pub dead_letter_lost: f64,
    /// A publisher's confirm does not come, whether the message landed or not.
    pub confirm_lost: f64,
    pub transaction: f64,
    pub mishaps: Vec<Mishap>,
    pub outages: Vec<Outage>,
}

pub struct Plan {
    pub seed: u64,
    pub instances: usize,
    pub limits: Limits,
    pub prefetch: u16,
    pub items: Vec<Item>,
    pub publications: Vec<Publication>,
    /// From here on nothing fails any more.
    pub heals_at: Duration,
    /// Longest way of a frame, in milliseconds.
    pub network_ms: u64,
    /// Longest time of one step of a transaction, in milliseconds.
    pub disk_ms: u64,
    pub dead_letter_route: bool,
    /// Requeues that a message survives.
    pub delivery_limit: u32,
    pub consumer_timeout: Option<Duration>,
    /// Whether requeued messages come to the front of the queue or to its end.
    pub requeue_to_front: bool,
    /// Points at which the first, second, … process crashes; for the crash matrix.
    pub crash_points: Vec<u64>,
    /// Whether a transaction survives the crash of its process once its COMMIT was sent.
    pub commit_survives: f64,
    pub faults: Faults,
}

impl Plan {
    /// The run of a seed.
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let batch_size = rng.usize(1..=16);
        let in_flight = rng.usize(1..=4);
        let heals_at = Duration::from_millis(rng.u64(2_000..90_000));
        let count = rng.usize(10..=120);
        let cell = cell(&mut rng);
        let items = items(&mut rng, count, cell);
        let faults = faults(&mut rng, heals_at);
        Self {
            seed,
            instances: rng.usize(1..=4),
            limits: Limits {
                batch_size,
                batch_timeout: Duration::from_millis(rng.u64(20..1_000)),
                batch_deadline: Duration::from_secs(*rng.choice(&[10, 30, 900]).unwrap_or(&900)),
                in_flight,
                max_message_bytes: 1_024,
                cell,
                most_acked: rng.u64(1..=20),
                plain_after: *rng.choice(&[0, 0, 1, 5]).unwrap_or(&0),
                retry: RetryPolicy {
                    max_attempts: rng.u32(0..=3),
                    delay: Duration::from_millis(rng.u64(100..=1_000)),
                },
            },
            prefetch: u16::try_from(batch_size * in_flight + rng.usize(0..batch_size))
                .unwrap_or(u16::MAX),
            publications: publications(&mut rng, &items, heals_at),
            items,
            heals_at,
            network_ms: *rng.choice(&[0, 1, 5, 50]).unwrap_or(&0),
            disk_ms: *rng.choice(&[1, 5, 100]).unwrap_or(&1),
            dead_letter_route: rng.u8(..8) > 0,
            // Far above what any chaos takes in its time, far below what a loop does.
            delivery_limit: 200,
            consumer_timeout: (rng.u8(..4) == 0).then(|| Duration::from_secs(rng.u64(20..120))),
            requeue_to_front: rng.u8(..4) > 0,
            crash_points: Vec::new(),
            commit_survives: 0.5,
            faults,
        }
    }
}

fn faults(rng: &mut Rng, heals_at: Duration) -> Faults {
    const FAILURES: [&str; 13] = [
        "40001", "40P01", "55P03", "08006", "57P01", "53300", "40003", "57014", "53100", "42501",
        "XX001", "22003", "23505",
    ];
    const OTHERS: [Mishap; 5] =
        [Mishap::AnswerLost, Mishap::LostBeforeCommit, Mishap::Zombie, Mishap::Hangs, Mishap::Slow];
    // One seed in twelve has no fault at all: it must not need any to pass.
    if rng.u8(..12) == 0 {
        return Faults::default();
    }
    let rate = |rng: &mut Rng, highest: f64| if rng.bool() { 0.0 } else { highest * rng.f64() };
    let density = rng.f64();
    let mishaps = FAILURES.into_iter().map(Mishap::Fails).chain(OTHERS);
    Faults {
        blows: Blow::VARIANTS.iter().copied().filter(|_| rng.f64() < density).collect(),
        between_blows: Duration::from_millis(rng.u64(300..20_000)),
        frame_cut: rate(rng, 0.05),
        no_answer: rate(rng, 0.4),
        open_refused: rate(rng, 0.6),
        dead_letter_lost: rate(rng, 0.6),
        confirm_lost: rate(rng, 0.4),
        transaction: rate(rng, 0.4),
        mishaps: mishaps.filter(|_| rng.f64() < density).collect(),
        outages: (0..rng.usize(0..=2)).map(|_| outage(rng, heals_at)).collect(),
    }
}

fn outage(rng: &mut Rng, heals_at: Duration) -> Outage {
    const REFUSALS: [&str; 8] =
        ["53100", "53200", "25006", "57P03", "42501", "28P01", "XX000", "40001"];
    let from = heals_at.mul_f64(rng.f64());
    let trouble = match rng.u8(..6) {
        0 => Trouble::Down,
        1 | 2 => Trouble::Refuses(rng.choice(REFUSALS).unwrap_or("53100")),
        3 => Trouble::Silent,
        4 => Trouble::LawRefused(law(rng), rng.choice(["23514", "P0001"]).unwrap_or("23514")),
        _ => Trouble::SlowAbove(rng.usize(1..8)),
    };
    Outage { from, to: from + (heals_at - from).mul_f64(rng.f64()), trouble }
}

fn publications(rng: &mut Rng, items: &[Item], heals_at: Duration) -> Vec<Publication> {
    // Some queues are full before anything runs, some fill slowly.
    let spread = heals_at.mul_f64(rng.f64() * f64::from(rng.u8(..3)) / 2.0);
    let replayed = rng.f64() * 0.3;
    let mut publications = Vec::new();
    for item in 0..items.len() {
        loop {
            let at = spread.mul_f64(rng.f64());
            publications.push(Publication { at, item, insists: rng.u8(..10) > 0 });
            if rng.f64() >= replayed {
                break;
            }
        }
    }
    publications.sort_by_key(|publication| publication.at);
    publications
}

fn law(rng: &mut Rng) -> String {
    format!("law-{}", rng.u8(1..=3))
}

/// In one seed of eight publishers route by hash, and not all of them rightly.
fn cell(rng: &mut Rng) -> Option<Cell> {
    let cell = Cell { number: 0, of: rng.u16(2..=8), router: Router::Publishers };
    (rng.u8(..8) == 0).then_some(cell)
}

fn items(rng: &mut Rng, count: usize, cell: Option<Cell>) -> Vec<Item> {
    let (attempts, malformed) = (rng.f64() * 0.2, rng.f64() * 0.15);
    let mut poison = rng.usize(0..=MOST_POISON);
    let mut items: Vec<Item> = Vec::with_capacity(count);
    for number in 0..count {
        let draw = rng.f64();
        if draw < malformed {
            items.push(malformed_item(rng, number));
            continue;
        }
        let mut vote = Vote {
            vote_hash: format!("hash-{:04x}-{number}", rng.u16(..)).into(),
            citizen_id: format!("citizen-{number}").into(),
            law_id: law(rng).into(),
            choice: if rng.bool() { Choice::Oui } else { Choice::Non },
            timestamp: FIRST_CAST + Duration::from_millis(number as u64),
        };
        if draw < malformed + attempts
            && let Some(earlier) = rng.choice(&items).and_then(|item| item.vote.as_ref())
            && earlier.citizen_id != POISON
        {
            // The same hash with another content, in one field or in several.
            vote = Vote {
                vote_hash: earlier.vote_hash.clone(),
                timestamp: vote.timestamp,
                ..if rng.bool() { earlier.clone() } else { vote }
            };
        } else if poison > 0 && rng.u8(..10) == 0 {
            poison -= 1;
            vote.citizen_id = POISON.into();
        }
        items.push(item(vote));
    }
    for item in &mut items {
        let is_elsewhere = |of: Cell, vote: &Vote| of_hash(&vote.vote_hash, of.of) != of.number;
        item.vote.take_if(|vote| cell.is_some_and(|cell| is_elsewhere(cell, vote)));
    }
    items
}

/// A valid message.
pub fn item(vote: Vote) -> Item {
    let Vote { vote_hash, citizen_id, law_id, choice, timestamp } = &vote;
    // Finer than the database keeps it: the vote is the one that is rounded to the microsecond.
    let timestamp = *timestamp + Duration::from_nanos(400);
    let (choice, timestamp) = (choice.as_str(), timestamp.format(&Rfc3339).unwrap_or_default());
    let body = format!(
        "{{\"vote_hash\":\"{vote_hash}\",\"citizen_id\":\"{citizen_id}\",\"law_id\":\"{law_id}\",\
         \"choice\":\"{choice}\",\"timestamp\":\"{timestamp}\"}}"
    );
    Item { body: body.into_bytes(), vote: Some(vote) }
}

/// A message that no rule lets through; its number keeps it apart from others.
pub fn malformed_item(rng: &mut Rng, number: usize) -> Item {
    let body = match rng.u8(..4) {
        0 => format!("{{\"vote_hash\":\"malformed-{number}\""),
        1 => format!("[{number}]"),
        2 => format!("{{\"vote_hash\":\"malformed-{number}\",\"choice\":\"peut-être\"}}"),
        _ => return Item { body: vec![0xff, 0xfe, number as u8, (number >> 8) as u8], vote: None },
    };
    Item { body: body.into_bytes(), vote: None }
}
