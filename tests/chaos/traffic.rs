//! The messages of a run, repeatable by seed.

use serde_json::json;
use time::format_description::well_known::Rfc3339;
use time::macros::datetime;
use time::{Duration, OffsetDateTime, UtcOffset};
use vote_aggregator::model::vote::{Choice, Vote};

use crate::messages::fields;

const FIRST_CAST: OffsetDateTime = datetime!(2025-11-14 12:00 UTC);
/// A duplicate repeats one of this many votes before it.
const MEMORY: usize = 5_000;
/// Of the duplicates, the share that repeats the newest vote: two instances have both in flight at
/// the same time then.
const TWINS: f64 = 0.5;
/// The database refuses votes of such citizens, by a constraint of the run's own.
pub const POISONOUS: &str = "poison";

/// A message and what it is.
#[derive(Clone, Debug)]
pub struct Message {
    pub number: u64,
    pub body: Vec<u8>,
    /// `None`: it belongs on the dead-letter queue.
    pub vote: Option<Vote>,
}

pub struct Traffic {
    rng: fastrand::Rng,
    made: u64,
    recent: Vec<Vote>,
    newest: Option<Vote>,
    poison_every: u64,
}

impl Traffic {
    /// Votes of which one in `poison_every` is refused by the database.
    pub fn new(seed: u64, poison_every: u64) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        Self { rng, made: 0, recent: Vec::new(), newest: None, poison_every }
    }

    pub fn next(&mut self) -> Message {
        self.made += 1;
        let number = self.made;
        if number.is_multiple_of(self.poison_every) {
            let citizen_id = format!("{POISONOUS}-{number}").into();
            let poison = Vote { citizen_id, ..self.fresh() };
            return Message { number, body: self.body(&poison), vote: None };
        }
        if self.rng.f64() < 0.01 {
            return Message { number, body: self.malformed(), vote: None };
        }
        let duplicate = if self.rng.f64() < 0.1 { self.duplicate() } else { None };
        let vote = duplicate.unwrap_or_else(|| {
            let fresh = self.fresh();
            self.newest = Some(fresh.clone());
            self.recent.push(fresh.clone());
            if self.recent.len() > MEMORY {
                self.recent.swap_remove(self.rng.usize(..MEMORY));
            }
            fresh
        });
        Message { number, body: self.body(&vote), vote: Some(vote) }
    }

    fn fresh(&mut self) -> Vote {
        // One law with most of the votes: its row is where all transactions meet.
        let law = if self.rng.f64() < 0.8 { 0 } else { self.rng.u8(1..12) };
        Vote {
            vote_hash: format!("{:032x}{:032x}", self.rng.u128(..), self.made).into(),
            citizen_id: format!("citizen-{}", self.made).into(),
            law_id: format!("law-{law:03}").into(),
            choice: if self.rng.f64() < 0.55 { Choice::Oui } else { Choice::Non },
            timestamp: FIRST_CAST + Duration::microseconds(self.rng.i64(0..1_000_000_000_000)),
        }
    }

    /// Half of them equal in every field, half under the same hash with something else.
    fn duplicate(&mut self) -> Option<Vote> {
        let twin = self.rng.f64() < TWINS;
        let known = if twin { self.newest.as_ref() } else { self.rng.choice(&self.recent) };
        let mut vote = known?.clone();
        match self.rng.u8(..8) {
            0 if vote.choice == Choice::Oui => vote.choice = Choice::Non,
            0 => vote.choice = Choice::Oui,
            1 => vote.citizen_id = format!("thief-{}", self.rng.u8(..4)).into(),
            2 => vote.law_id = "law-099".into(),
            3 => vote.timestamp += Duration::microseconds(1),
            _ => {}
        }
        Some(vote)
    }

    /// The same vote is not always the same bytes: not even in its timestamp, which counts to the
    /// microsecond.
    fn body(&mut self, vote: &Vote) -> Vec<u8> {
        let offset = UtcOffset::from_hms(self.rng.i8(-11..12), 0, 0).unwrap_or(UtcOffset::UTC);
        let cast = vote.timestamp + Duration::nanoseconds(self.rng.i64(-499..500));
        let cast = cast.to_offset(offset).format(&Rfc3339).unwrap_or_default();
        let mut body = fields(vote);
        body["timestamp"] = cast.into();
        if self.rng.bool() {
            body["metadata"] = json!({ "ip": "192.0.2.1", "user_agent": "chaos" });
        }
        body.to_string().into_bytes()
    }

    /// Each different, since the dead-letter queue is compared as a set.
    fn malformed(&mut self) -> Vec<u8> {
        let mut vote = self.fresh();
        vote.law_id = "law-000".into();
        vote.choice = Choice::Oui;
        let body = String::from_utf8_lossy(&self.body(&vote)).into_owned();
        match self.rng.u8(..7) {
            0 => body.replace("\"oui\"", "\"peut-être\""),
            1 => body.replace("law-000", "law 000"),
            2 => body.replace("\"citizen_id\"", "\"citizen\""),
            3 => body.replace("\"law-000\"", "0"),
            4 => body.replace("citizen-", "\\u0000"),
            5 => format!("{body}{body}"),
            _ => return [body.as_bytes(), b"\xff"].concat(),
        }
        .into_bytes()
    }
}
