//! The public board: what was read of the published views, as the files that the public gets.
//!
//! Architecture invariant: reads nothing but those views, so that what is not published cannot be shown.

mod admin;
mod ballot;
mod files;
mod folder;
mod language;
mod page;
mod public;
mod view;

use std::collections::BTreeMap;
use std::time::Duration;

use time::OffsetDateTime;

pub use self::admin::{Admin, Monitor};
pub use self::ballot::{Ballot, BallotError};
pub use self::files::{File, Kind, Site, files};
pub use self::folder::{Folder, FolderError};
pub use self::language::Language;
pub use self::public::Public;
use crate::adapters::store::Snapshot;
use crate::model::publication::Published;
use crate::model::results::LawResult;

/// How long the database may be away before the numbers are marked as old.
const STALE_AFTER: Duration = Duration::from_secs(15);

/// Why the numbers shown are not the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Stale {
    /// The database cannot be read.
    Database,
    /// A count went down without a correction on record.
    Decrease,
    /// What was read is older than what is shown: another server answered.
    Older,
}

/// What is shown, and what it takes to show more.
#[derive(Debug)]
pub struct Board {
    /// While results are public, a law's counts change by so many votes at least: an update by one vote
    /// would reveal the vote of a citizen who is known to have voted at that moment.
    min_new_votes: u64,
    shown: Option<Snapshot>,
    /// With the time since when.
    stale: Option<(Stale, OffsetDateTime)>,
    /// Since when reading fails.
    failing: Option<OffsetDateTime>,
}

impl Board {
    pub const fn new(min_new_votes: u64) -> Self {
        Self { min_new_votes, shown: None, stale: None, failing: None }
    }

    /// What is shown; `None` before the first reading.
    pub const fn shown(&self) -> Option<&Snapshot> {
        self.shown.as_ref()
    }

    pub fn stale(&self) -> Option<Stale> {
        self.stale.map(|(why, _)| why)
    }

    pub const fn min_new_votes(&self) -> u64 {
        self.min_new_votes
    }

    /// Takes in what was read at `now`, by this machine's clock: the later of the two clocks opens.
    pub fn read(&mut self, mut read: Snapshot, now: OffsetDateTime) {
        self.failing = None;
        mask(&mut read, now);
        let Some(shown) = self.shown.take() else {
            self.stale = None;
            self.shown = Some(read);
            return;
        };
        let order = |snapshot: &Snapshot| snapshot.published.as_ref().map(|published| published.id);
        let state = |snapshot: &Snapshot| {
            snapshot.published.as_ref().map(|published| (published.id, published.state))
        };
        // What is not public is always shown: after a failover or a restore that lost publications, a
        // withhold has a lower id than what is shown.
        let older = is_public(&read) && (order(&read), read.as_of) < (order(&shown), shown.as_of);
        let (shown, stale) = if older {
            (shown, Some(Stale::Older))
        } else if state(&read) != state(&shown) {
            (read, None)
        } else if decreased(&shown, &read) {
            (shown, Some(Stale::Decrease))
        } else {
            (self.advanced(shown, read), None)
        };
        self.shown = Some(shown);
        self.mark(stale, now);
    }

    /// Takes in that a reading that `began` then had failed at `now`.
    pub fn failed(&mut self, began: OffsetDateTime, now: OffsetDateTime) {
        let since = *self.failing.get_or_insert(began);
        if now - since >= STALE_AFTER {
            self.mark(Some(Stale::Database), since);
        }
    }

    /// Keeps the time since when the numbers are stale for the same reason.
    fn mark(&mut self, stale: Option<Stale>, since: OffsetDateTime) {
        if stale != self.stale() {
            self.stale = stale.map(|why| (why, since));
        }
    }

    /// `shown` with those laws of `read` that have enough new votes, or a correction.
    fn advanced(&self, shown: Snapshot, mut read: Snapshot) -> Snapshot {
        let corrected = &read.corrections[shown.corrections.len().min(read.corrections.len())..];
        let before = by_id(&shown.laws);
        let mut changed = !corrected.is_empty();
        let laws = std::mem::take(&mut read.laws).into_iter().filter_map(|law| {
            let old = before.get(law.law_id.as_str()).copied();
            let votes =
                |choice: fn(&LawResult) -> i64| choice(&law).abs_diff(old.map_or(0, choice));
            let new = votes(|law| law.oui).saturating_add(votes(|law| law.non));
            let is_corrected = corrected.iter().any(|it| it.law_id == law.law_id);
            if new > 0 && (new >= self.min_new_votes || is_corrected) {
                changed = true;
                return Some(law);
            }
            old.cloned()
        });
        let laws = laws.collect();
        // The time of the numbers, which is not that of the last look.
        let as_of = if changed { read.as_of } else { shown.as_of };
        Snapshot { laws, as_of, ..read }
    }
}

fn is_public(snapshot: &Snapshot) -> bool {
    snapshot.published.as_ref().is_some_and(Published::is_public)
}

/// Removes what may not be shown at `now`, by this machine's clock. The views have none of it by the
/// server's.
fn mask(read: &mut Snapshot, now: OffsetDateTime) {
    if let Some(published) = &mut read.published
        && now < published.not_before
    {
        *published = Published { state: None, reason: None, sha256: None, ..published.clone() };
        read.history.clear();
    }
    if !is_public(read) {
        read.laws.clear();
        read.corrections.clear();
        read.finals.clear();
        read.history.iter_mut().for_each(|change| change.sha256 = None);
        read.since_final = None;
    }
}

fn by_id(laws: &[LawResult]) -> BTreeMap<&str, &LawResult> {
    laws.iter().map(|law| (law.law_id.as_str(), law)).collect()
}

/// Whether a count is less than what is shown, or than what the last new correction made of it, or its law is
/// gone.
fn decreased(shown: &Snapshot, read: &Snapshot) -> bool {
    let corrected = &read.corrections[shown.corrections.len().min(read.corrections.len())..];
    let now = by_id(&read.laws);
    shown.laws.iter().any(|law| {
        let correction = corrected.iter().rfind(|it| it.law_id == law.law_id);
        let (oui, non) = correction.map_or((law.oui, law.non), |it| (it.oui_after, it.non_after));
        now.get(law.law_id.as_str()).is_none_or(|now| now.oui < oui || now.non < non)
    })
}

#[cfg(test)]
mod tests;
