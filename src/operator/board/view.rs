//! What the files say, before it is written in any format: the laws in order, and those that are not listed.

use std::collections::BTreeMap;

use time::OffsetDateTime;

use super::ballot::{Ballot, Election, ListedLaw, Text};
use super::{Board, Language, Stale};
use crate::adapters::store::{PublishedCorrection, Snapshot};
use crate::model::publication::{Published, State};
use crate::model::results::LawResult;

/// How often the time of the last look is renewed, in seconds: it shows that the board is running.
const CHECKED_EVERY: i64 = 10;

/// Everything that one set of files shows.
pub(super) struct View<'a> {
    pub published: Option<&'a Published>,
    pub election: Option<&'a Election>,
    /// In the order of the ballot; without the officials' file in the order of their names.
    pub laws: Vec<Row<'a>>,
    pub unlisted: Unlisted,
    /// Oldest first. One of a law that is not listed has no law.
    pub corrections: Vec<(Option<&'a str>, &'a PublishedCorrection)>,
    /// The time of the numbers; `None` while they are not public.
    pub as_of: Option<OffsetDateTime>,
    pub checked_at: OffsetDateTime,
    pub stale: Option<(Stale, OffsetDateTime)>,
    pub min_new_votes: u64,
}

/// A law.
pub(super) struct Row<'a> {
    pub law_id: &'a str,
    pub title: Option<&'a Text>,
    pub registered: Option<i64>,
    /// `None` while it is not public, and until there is a vote.
    pub result: Option<&'a LawResult>,
}

/// The laws with votes that the officials' file does not list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unlisted {
    pub laws: usize,
    pub votes: i64,
}

impl Row<'_> {
    pub fn title(&self, language: Language) -> &str {
        self.title.map_or(self.law_id, |title| title.of(language))
    }
}

impl<'a> View<'a> {
    pub fn of(
        snapshot: &'a Snapshot,
        board: &Board,
        ballot: Option<&'a Ballot>,
        now: OffsetDateTime,
    ) -> Self {
        let published = snapshot.published.as_ref();
        let results = snapshot.laws.iter().map(|law| (law.law_id.as_str(), law));
        let mut results: BTreeMap<&str, &LawResult> = results.collect();
        let laws = match ballot {
            Some(ballot) => {
                let row = |law: &'a ListedLaw| Row {
                    law_id: &law.law_id,
                    title: Some(&law.title),
                    registered: law.registered,
                    result: results.remove(law.law_id.as_str()),
                };
                ballot.laws.iter().map(row).collect()
            }
            None => {
                let row = |(law_id, law)| Row {
                    law_id,
                    title: None,
                    registered: None,
                    result: Some(law),
                };
                std::mem::take(&mut results).into_iter().map(row).collect()
            }
        };
        let listed = |law_id: &str| ballot.is_none_or(|ballot| ballot.lists(law_id));
        let corrections = snapshot.corrections.iter();
        let corrections = corrections
            .map(|it| (Some(it.law_id.as_str()).filter(|law_id| listed(law_id)), it))
            .collect();
        let seconds = now.unix_timestamp().div_euclid(CHECKED_EVERY) * CHECKED_EVERY;
        Self {
            published,
            election: ballot.map(|ballot| &ballot.election),
            laws,
            // What is left is not listed.
            unlisted: Unlisted {
                laws: results.len(),
                votes: results.values().fold(0, |sum, law| law.total().saturating_add(sum)),
            },
            corrections,
            as_of: published.filter(|it| it.is_public()).map(|_| snapshot.as_of),
            checked_at: OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(now),
            stale: board.stale,
            min_new_votes: board.min_new_votes,
        }
    }

    /// The same as if nothing were wrong, at the time of the numbers: for a copy that does not change.
    pub fn frozen(mut self, at: OffsetDateTime) -> Self {
        (self.checked_at, self.stale) = (at, None);
        self
    }

    pub fn is_test(&self) -> bool {
        self.published.is_some_and(|published| published.test)
    }

    pub fn state(&self) -> Option<State> {
        self.published.and_then(|published| published.state)
    }

    /// Accepted or rejected; not before it is final, so that none is said to lead.
    pub fn outcome(&self, law: &LawResult) -> Option<Outcome> {
        (self.state() == Some(State::Final)).then(|| match law.oui.cmp(&law.non) {
            std::cmp::Ordering::Greater => Outcome::Accepted,
            std::cmp::Ordering::Less => Outcome::Rejected,
            std::cmp::Ordering::Equal => Outcome::Tie,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub(super) enum Outcome {
    Accepted,
    Rejected,
    Tie,
}
