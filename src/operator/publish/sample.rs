//! Sample votes, repeatable by seed, and the result that counting them must have.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;
use time::format_description::well_known::Rfc3339;
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

use super::lines::Position;
use crate::model::vote::Choice;

/// The first sample vote is cast then, each further one a millisecond later: with the clock's
/// time, a seed would not repeat its votes.
const FIRST_CAST: OffsetDateTime = datetime!(2025-11-14 12:00 UTC);
/// A duplicate repeats one of this many votes before it.
const MEMORY: usize = 10_000;

/// How many votes of which kinds.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Messages in all, duplicates and malformed ones among them.
    pub count: usize,
    /// Laws voted on, `law-001` upwards.
    pub laws: u32,
    /// Share of duplicates, 0 to 1: half of them replays, half attempts with another content.
    pub duplicates: f64,
    /// Share of malformed messages, 0 to 1.
    pub malformed: f64,
    pub seed: u64,
}

impl Shape {
    /// Valid votes, all of them different.
    pub const fn distinct(count: usize, laws: u32, seed: u64) -> Self {
        Self { count, laws, duplicates: 0.0, malformed: 0.0, seed }
    }
}

/// The result of counting the votes in the order they were published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Expected {
    /// `law_id` → `[oui, non]`.
    pub laws: BTreeMap<String, [u64; 2]>,
    /// Messages that repeat a vote in every field.
    pub replays: u64,
    /// Messages under a vote_hash already used, with other content; each different.
    pub attempts: u64,
    pub malformed: u64,
}

impl Expected {
    /// Distinct valid votes.
    pub fn counted(&self) -> u64 {
        self.laws.values().flatten().sum()
    }
}

/// An iterator over message bodies.
#[derive(Debug)]
pub struct Samples {
    pub(super) shape: Shape,
    rng: fastrand::Rng,
    /// The end of the last message that was made, each one line.
    pub(super) at: Position,
    recent: Vec<Sample>,
    expected: Expected,
}

#[derive(Clone, Debug)]
struct Sample {
    number: u64,
    vote_hash: String,
    law: u32,
    choice: Choice,
}

impl Samples {
    pub fn new(shape: Shape) -> Self {
        let rng = fastrand::Rng::with_seed(shape.seed);
        let (recent, expected) = (Vec::new(), Expected::default());
        Self { shape, rng, at: Position::default(), recent, expected }
    }

    /// Returns the result that counting the votes made so far must have.
    pub fn into_expected(self) -> Expected {
        self.expected
    }

    fn fresh(&mut self) -> String {
        // Skewed, as laws are: the lower the number, the more votes.
        let law = 1 + (f64::from(self.shape.laws) * self.rng.f64() * self.rng.f64()) as u32;
        let sample = Sample {
            number: self.at.lines,
            vote_hash: format!("{:032x}{:032x}", self.rng.u128(..), self.rng.u128(..)),
            law,
            choice: if self.rng.f64() < 0.55 { Choice::Oui } else { Choice::Non },
        };
        let counts = self.expected.laws.entry(law_id(law)).or_default();
        counts[usize::from(sample.choice == Choice::Non)] += 1;
        let body = sample.body(0);
        if self.recent.len() < MEMORY {
            self.recent.push(sample);
        } else {
            let forgotten = self.rng.usize(..MEMORY);
            self.recent[forgotten] = sample;
        }
        body
    }

    fn duplicate(&mut self) -> String {
        let earlier = self.recent[self.rng.usize(..self.recent.len())].clone();
        if self.rng.bool() {
            self.expected.replays += 1;
            return earlier.body(0);
        }
        self.expected.attempts += 1;
        let choice = match earlier.choice {
            Choice::Oui => Choice::Non,
            Choice::Non => Choice::Oui,
        };
        // Cast later by as many microseconds as messages were made: every attempt differs.
        Sample { choice, ..earlier }.body(self.at.lines)
    }

    fn malformed(&mut self) -> String {
        self.expected.malformed += 1;
        let good = Sample {
            number: self.at.lines,
            vote_hash: format!("malformed-{}", self.at.lines),
            law: 1,
            choice: Choice::Oui,
        };
        let body = good.body(0);
        match self.rng.u8(..6) {
            0 => body.replace("\"choice\":\"oui\"", "\"choice\":\"peut-être\""),
            1 => body.replace("law-001", "law 001"),
            2 => body.replace("\"citizen_id\"", "\"citizen\""),
            3 => body.replace("2025-11-14T", "14/11/2025 "),
            4 => body.replace("\"law_id\":\"law-001\"", "\"law_id\":1"),
            _ => body[..body.len() / 2].to_owned(),
        }
    }
}

impl Iterator for Samples {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if self.at.lines == self.shape.count as u64 {
            return None;
        }
        self.at.lines += 1;
        let (malformed, duplicates) = (self.shape.malformed, self.shape.duplicates);
        let draw = self.rng.f64();
        let body = if draw < malformed {
            self.malformed()
        } else if draw < malformed + duplicates && !self.recent.is_empty() {
            self.duplicate()
        } else {
            self.fresh()
        };
        self.at.bytes += body.len() as u64;
        Some(body.into_bytes())
    }
}

impl Sample {
    fn body(&self, later_by_microseconds: u64) -> String {
        let cast = FIRST_CAST
            + Duration::milliseconds(i64::try_from(self.number).unwrap_or_default())
            + Duration::microseconds(i64::try_from(later_by_microseconds).unwrap_or_default());
        json!({
            "vote_hash": self.vote_hash,
            "citizen_id": format!("citizen-{:07}", self.number),
            "law_id": law_id(self.law),
            "choice": self.choice.as_str(),
            "timestamp": cast.format(&Rfc3339).unwrap_or_default(),
        })
        .to_string()
    }
}

fn law_id(law: u32) -> String {
    format!("law-{law:03}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::vote::{self, Vote};

    fn shape(count: usize) -> Shape {
        Shape { count, laws: 7, duplicates: 0.1, malformed: 0.05, seed: 42 }
    }

    #[test]
    fn a_seed_repeats_its_messages() {
        let (one, two) = (Samples::new(shape(500)), Samples::new(shape(500)));
        assert!(one.eq(two));
        let other = Samples::new(Shape { seed: 43, ..shape(500) });
        assert!(Samples::new(shape(500)).ne(other));
    }

    /// Counted the plain way, the messages come to what is expected of them.
    #[test]
    fn expectations_hold_against_a_plain_count() {
        let mut samples = Samples::new(shape(20_000));
        let mut counted: BTreeMap<String, Vote> = BTreeMap::new();
        let mut plain = Expected::default();
        let mut attempts = std::collections::BTreeSet::new();
        for body in samples.by_ref() {
            let Ok(vote) = vote::decode(&body, 16_384) else {
                plain.malformed += 1;
                continue;
            };
            match counted.get(vote.vote_hash.as_str()) {
                Some(first) if *first == vote => plain.replays += 1,
                Some(_) => {
                    plain.attempts += 1;
                    assert!(attempts.insert(vote), "every attempt differs");
                }
                None => {
                    let counts = plain.laws.entry(vote.law_id.to_string()).or_default();
                    counts[usize::from(vote.choice == Choice::Non)] += 1;
                    counted.insert(vote.vote_hash.to_string(), vote);
                }
            }
        }
        assert_eq!(samples.into_expected(), plain);
        assert!(plain.malformed > 800 && plain.replays > 800 && plain.attempts > 800);
        assert_eq!(plain.laws.len(), 7);
    }
}
