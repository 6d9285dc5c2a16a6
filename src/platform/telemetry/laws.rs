//! Totals per law behind the gauges, and which laws have series of their own.
//!
//! With [`ShownTotals::Sums`] all of them are one series, `law_id="all", choice="all"`: the number of votes,
//! which says nothing about the result.
//!
//! Series stay bounded whatever law ids arrive: the first `max` laws get their own, all others
//! are one, `law_id="other"`. A law that is really called `other` shares that one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use opentelemetry::KeyValue;

use crate::model::ports::LawCount;
use crate::model::vote::Choice;
use crate::platform::config::ShownTotals;

/// Label of all laws without a series of their own.
pub(super) const OTHER: &str = "other";

/// Both labels of the sum of everything.
const ALL: &str = "all";

/// `{law_id, choice}` of one series.
pub(super) type Labels = [KeyValue; 2];

#[derive(Debug)]
pub(super) struct Laws {
    max: usize,
    /// The one series that stands for all others, if they are not to be shown.
    sum: Option<Labels>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    named: BTreeMap<String, Series>,
    other: Series,
    /// Whether any law had to go without a series of its own.
    overflown: bool,
    /// Counts commits: shows which series a commit touched since a refresh began.
    clock: u64,
}

#[derive(Debug)]
struct Series {
    /// Of oui and of non; shared with a scrape that is being rendered.
    labels: Arc<[Labels; 2]>,
    totals: [i64; 2],
    touched: u64,
}

impl Series {
    fn new(law_id: &str) -> Self {
        let labels = Choice::ALL.map(|choice| labels(law_id, choice.as_str()));
        Self { labels: Arc::new(labels), totals: [0; 2], touched: 0 }
    }
}

fn labels(law_id: &str, choice: &'static str) -> Labels {
    [KeyValue::new("law_id", law_id.to_owned()), KeyValue::new("choice", choice)]
}

fn max(a: [i64; 2], b: [i64; 2]) -> [i64; 2] {
    [a[0].max(b[0]), a[1].max(b[1])]
}

/// When a re-read of the database began.
#[derive(Clone, Copy, Debug)]
pub struct RefreshMark(u64);

impl Laws {
    pub(super) fn new(max: usize, totals: ShownTotals) -> Self {
        let state =
            State { named: BTreeMap::new(), other: Series::new(OTHER), overflown: false, clock: 0 };
        let sum = (totals == ShownTotals::Sums).then(|| labels(ALL, ALL));
        Self { max, sum, state: Mutex::new(state) }
    }

    /// Takes in a commit. `counter` gets the labels of a series and the votes added to it.
    pub(super) fn committed(&self, laws: &[LawCount], mut counter: impl FnMut(&Labels, u64)) {
        let mut state = self.state();
        state.clock += 1;
        let clock = state.clock;
        for LawCount { law_id, added, totals } in laws {
            let series = match state.named(law_id, self.max) {
                Some(series) => {
                    // Batches commit out of order, and totals only grow.
                    series.totals = max(series.totals, *totals);
                    series.touched = clock;
                    series
                }
                None => &mut state.other,
            };
            for (labels, added) in series.labels.iter().zip(*added) {
                counter(self.sum.as_ref().unwrap_or(labels), added);
            }
        }
    }

    /// To be called before the database is read for [`Laws::refreshed`].
    pub(super) fn refresh_begins(&self) -> RefreshMark {
        RefreshMark(self.state().clock)
    }

    /// The laws that have series of their own.
    pub(super) fn named(&self) -> Vec<String> {
        self.state().named.keys().cloned().collect()
    }

    /// Takes in totals as the database has them: authoritative, other instances' votes too. What
    /// is not among `laws` is summed up in `rest`. `fresh` gets the labels of every new series.
    pub(super) fn refreshed(
        &self,
        mark: RefreshMark,
        laws: Vec<(String, [i64; 2])>,
        rest: [i64; 2],
        mut fresh: impl FnMut(&Labels),
    ) {
        let mut state = self.state();
        let mut other = rest;
        for (law_id, totals) in laws {
            let known = state.named.contains_key(&law_id);
            match state.named(&law_id, self.max) {
                Some(series) => {
                    // A commit since then may have gone further than what was read.
                    let overtaken = series.touched > mark.0;
                    series.totals = if overtaken { max(series.totals, totals) } else { totals };
                    if !known {
                        let labels = series.labels.iter();
                        labels.for_each(|labels| fresh(self.sum.as_ref().unwrap_or(labels)));
                    }
                }
                // A batch took the last place for another law meanwhile.
                None => other = [other[0] + totals[0], other[1] + totals[1]],
            }
        }
        // Not raised by commits, which may or may not be in what was read.
        state.other.totals = other;
        state.overflown |= other != [0, 0];
    }

    /// Every series with its total. `gauge` runs outside the lock: a commit, on another thread,
    /// waits for a copy of the totals at most, not for a scrape.
    pub(super) fn for_each(&self, mut gauge: impl FnMut(&Labels, i64)) {
        let copy: Vec<_> = {
            let state = self.state();
            let other = state.overflown.then_some(&state.other);
            let series = state.named.values().chain(other);
            series.map(|series| (Arc::clone(&series.labels), series.totals)).collect()
        };
        if let (Some(labels), false) = (&self.sum, copy.is_empty()) {
            let totals = copy.iter().flat_map(|(_, totals)| totals);
            return gauge(labels, totals.fold(0, |sum, total| sum.saturating_add(*total)));
        }
        for (labels, totals) in copy {
            labels.iter().zip(totals).for_each(|(labels, total)| gauge(labels, total));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The law's own series; `None` for a law that is counted among the others.
    fn named(&mut self, law_id: &str, max: usize) -> Option<&mut Series> {
        let known = self.named.contains_key(law_id);
        if law_id == OTHER || (!known && self.named.len() >= max) {
            self.overflown = true;
            return None;
        }
        Some(self.named.entry(law_id.to_owned()).or_insert_with(|| Series::new(law_id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn law(law_id: &str, added: [u64; 2], totals: [i64; 2]) -> LawCount {
        LawCount { law_id: law_id.to_owned(), added, totals }
    }

    fn shown(laws: &Laws) -> BTreeMap<String, [i64; 2]> {
        let mut shown = BTreeMap::<_, [i64; 2]>::new();
        laws.for_each(|[law_id, choice], total| {
            let at = usize::from(choice.value.as_str() == "non");
            shown.entry(law_id.value.as_str().into_owned()).or_default()[at] = total;
        });
        shown
    }

    #[test]
    fn out_of_order_commits_keep_the_highest_total() {
        let laws = Laws::new(10, ShownTotals::Full);
        laws.committed(&[law("a", [5, 0], [12, 3])], |_, _| {});
        laws.committed(&[law("a", [7, 3], [7, 3])], |_, _| {});
        assert_eq!(shown(&laws)["a"], [12, 3]);
    }

    #[test]
    fn a_refresh_is_authoritative_but_not_older_than_a_commit() {
        let laws = Laws::new(10, ShownTotals::Full);
        laws.committed(&[law("a", [9, 0], [9, 0]), law("b", [1, 1], [1, 1])], |_, _| {});
        let mark = laws.refresh_begins();
        laws.committed(&[law("a", [1, 0], [10, 0])], |_, _| {});
        // Read before that commit; meanwhile b was corrected downwards.
        let mut fresh = 0;
        let read = [("a", [9, 0]), ("b", [1, 0]), ("c", [4, 4])];
        let read = read.map(|(id, totals)| (id.to_owned(), totals)).to_vec();
        laws.refreshed(mark, read, [0, 0], |_| fresh += 1);
        assert_eq!(
            shown(&laws),
            BTreeMap::from([
                ("a".to_owned(), [10, 0]),
                ("b".to_owned(), [1, 0]),
                ("c".to_owned(), [4, 4]),
            ])
        );
        assert_eq!(fresh, 2, "only c is new: oui and non");
    }

    #[test]
    fn laws_past_the_bound_and_a_law_called_other_are_one_series() {
        let laws = Laws::new(2, ShownTotals::Full);
        let mut added = BTreeMap::new();
        for (id, n) in [("a", 1), ("other", 10), ("b", 2), ("c", 20), ("d", 40), ("c", 1)] {
            laws.committed(&[law(id, [n, 0], [n as i64, 0])], |labels, votes| {
                *added.entry(labels[0].value.as_str().into_owned()).or_insert(0) += votes;
            });
        }
        let expected = [("a", 1), ("b", 2), ("other", 71)];
        assert_eq!(added, expected.map(|(id, n)| (id.to_owned(), n)).into());
        // The gauge of the rest is what the database says, no sooner and no later.
        assert_eq!(shown(&laws)["other"], [0, 0]);
        let mark = laws.refresh_begins();
        laws.refreshed(
            mark,
            vec![("a".to_owned(), [3, 0]), ("e".to_owned(), [7, 0])],
            [64, 5],
            |_| {},
        );
        assert_eq!(shown(&laws)["other"], [71, 5]);
        assert_eq!(shown(&laws)["a"], [3, 0]);
    }
    #[test]
    fn sums_are_one_series_with_everything_in_it() {
        let laws = Laws::new(1, ShownTotals::Sums);
        let mut added = Vec::new();
        laws.for_each(|_, _| panic!("nothing is counted yet"));
        let batch = [law("a", [5, 2], [12, 3]), law("b", [1, 0], [1, 0])];
        laws.committed(&batch, |[law_id, choice], votes| {
            added.push((law_id.value.to_string(), choice.value.to_string(), votes));
        });
        assert!(added.iter().all(|(law_id, choice, _)| law_id == "all" && choice == "all"));
        assert_eq!(added.iter().map(|(_, _, votes)| votes).sum::<u64>(), 8);
        let mark = laws.refresh_begins();
        let fresh = |labels: &Labels| assert_eq!(labels[1].value.as_str(), "all");
        laws.refreshed(mark, vec![("a".to_owned(), [12, 3])], [1, 0], fresh);
        let mut shown = Vec::new();
        laws.for_each(|labels, total| shown.push((labels.clone(), total)));
        assert_eq!(shown, [(labels("all", "all"), 16)]);
    }
}
