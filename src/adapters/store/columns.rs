//! A batch as the statements take it: deduplicated, sorted by vote_hash, one array a column.
//! Public for benches/pipeline.rs alone.

use std::collections::BTreeMap;

use compact_str::CompactString;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{Postgres, types::time::OffsetDateTime};

use crate::model::vote::Vote;

/// A deduplicated batch: its distinct votes in vote_hash order; among equals of a hash, the first delivery
/// comes first.
pub struct DedupedBatch<'a> {
    votes: Vec<Entry<'a>>,
    /// Deliveries in the batch, repeats included.
    pub(super) deliveries: u64,
}

struct Entry<'a> {
    vote: &'a Vote,
    /// The first delivery of its hash: the one that counts when the hash is new.
    first: bool,
    /// Deliveries with exactly this content.
    deliveries: u64,
}

impl<'a> DedupedBatch<'a> {
    /// Of a batch in order of arrival.
    pub fn of(votes: &'a [Vote]) -> Self {
        let mut sorted: Vec<&Vote> = votes.iter().collect();
        // Stable, so deliveries of one hash keep their order of arrival.
        sorted.sort_by(|a, b| a.vote_hash.cmp(&b.vote_hash));

        let mut distinct: Vec<Entry<'a>> = Vec::with_capacity(sorted.len());
        for same_hash in sorted.chunk_by(|a, b| a.vote_hash == b.vote_hash) {
            let group = distinct.len();
            // By content, since a batch may consist of one hash with a different content each time.
            let mut positions = BTreeMap::new();
            for &vote in same_hash {
                let next = distinct.len();
                let position = match same_hash {
                    [_] => next,
                    _ => *positions.entry(vote).or_insert(next),
                };
                match distinct.get_mut(position) {
                    Some(repeated) => repeated.deliveries += 1,
                    None => distinct.push(Entry { vote, first: next == group, deliveries: 1 }),
                }
            }
        }
        Self { votes: distinct, deliveries: votes.len() as u64 }
    }

    /// Distinct votes, whatever their hash.
    pub(super) fn len(&self) -> usize {
        self.votes.len()
    }

    /// Whether a hash came with more than one content: what differs has to be classified.
    pub(super) fn has_attempts(&self) -> bool {
        self.votes.iter().any(|entry| !entry.first)
    }

    /// Deliveries of the vote at a 1-based position, as SQL counts them.
    pub(super) fn deliveries_at(&self, position: i64) -> u64 {
        let index = usize::try_from(position).ok().and_then(|position| position.checked_sub(1));
        index.and_then(|index| self.votes.get(index)).map_or(0, |entry| entry.deliveries)
    }

    /// One vote a hash: the first delivered.
    pub fn firsts(&self) -> Columns<'a> {
        Columns::of(self.votes.iter().filter(|entry| entry.first).map(|entry| entry.vote))
    }

    /// All distinct votes.
    pub(super) fn all(&self) -> Columns<'a> {
        Columns::of(self.votes.iter().map(|entry| entry.vote))
    }
}

/// The five arrays, in the order of the statements' parameters.
pub struct Columns<'a> {
    vote_hash: Vec<&'a str>,
    citizen_id: Vec<&'a str>,
    law_id: Vec<&'a str>,
    choice: Vec<&'static str>,
    timestamp: Vec<OffsetDateTime>,
}

impl<'a> Columns<'a> {
    fn of(votes: impl Iterator<Item = &'a Vote> + Clone) -> Self {
        Self {
            vote_hash: votes.clone().map(|vote| &*vote.vote_hash).collect(),
            citizen_id: votes.clone().map(|vote| &*vote.citizen_id).collect(),
            law_id: votes.clone().map(|vote| &*vote.law_id).collect(),
            choice: votes.clone().map(|vote| vote.choice.as_str()).collect(),
            timestamp: votes.map(|vote| vote.timestamp).collect(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.vote_hash.len()
    }

    pub(super) fn first_hash(&self) -> Option<CompactString> {
        self.vote_hash.first().map(|hash| (*hash).into())
    }

    /// A prepared statement with the five arrays bound; one statement serves any batch length.
    pub(super) fn bind(self, sql: &'static str) -> Query<'static, Postgres, PgArguments> {
        sqlx::query(sql)
            .bind(self.vote_hash)
            .bind(self.citizen_id)
            .bind(self.law_id)
            .bind(self.choice)
            .bind(self.timestamp)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::model::vote::Choice;

    fn vote(hash: &str, citizen: &str) -> Vote {
        Vote {
            vote_hash: hash.into(),
            citizen_id: citizen.into(),
            law_id: "law-001".into(),
            choice: Choice::Oui,
            timestamp: datetime!(2025-11-14 12:00 UTC),
        }
    }

    #[test]
    fn the_first_delivery_of_a_hash_counts_and_repeats_are_weighed() {
        let votes = ["b second", "a one", "b other", "b second", "b other", "a one"]
            .map(|vote| vote.split_once(' ').expect("hash and citizen"))
            .map(|(hash, citizen)| vote(hash, citizen));
        let distinct = DedupedBatch::of(&votes);
        assert_eq!((distinct.deliveries, distinct.len()), (6, 3));

        let firsts = distinct.firsts();
        assert_eq!(firsts.vote_hash, ["a", "b"]);
        assert_eq!(firsts.citizen_id, ["one", "second"], "arrival order decides, not content");
        assert_eq!(distinct.all().citizen_id, ["one", "second", "other"]);
        assert_eq!([1, 2, 3].map(|at| distinct.deliveries_at(at)), [2, 2, 2]);
        assert_eq!([0, 4].map(|at| distinct.deliveries_at(at)), [0, 0], "no such position");

        // By bytes, like the index.
        let votes = ["b", "B", "a", "~", "!"].map(|hash| vote(hash, "c"));
        assert_eq!(DedupedBatch::of(&votes).firsts().vote_hash, ["!", "B", "a", "b", "~"]);
    }

    /// Quadratic, this takes minutes.
    #[test]
    fn one_hash_with_many_contents_is_deduplicated_in_time() {
        let votes: Vec<Vote> =
            (0..65_535).map(|n| vote("a", &format!("citizen-{}", n % 40_000))).collect();
        let distinct = DedupedBatch::of(&votes);
        assert_eq!((distinct.deliveries, distinct.len()), (65_535, 40_000));
        assert_eq!(distinct.firsts().citizen_id, ["citizen-0"]);
        assert_eq!([1, 40_000].map(|at| distinct.deliveries_at(at)), [2, 1]);
    }
}
