//! How fast votes come in: readings of the last minute, and what they differ by.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::Reading;

/// The longer of the two spans that rates are shown for.
const MINUTE: Duration = Duration::from_secs(60);

/// The last reading, and the counts of those before it.
#[derive(Debug, Default)]
pub struct Trend {
    last: Option<Reading>,
    /// Oldest first, the last reading among them.
    counts: VecDeque<Counts>,
}

#[derive(Debug)]
struct Counts {
    at: Instant,
    all: i64,
    laws: BTreeMap<String, i64>,
}

/// From an earlier reading to the last one.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    from: &'a Counts,
    to: &'a Counts,
}

impl Trend {
    /// Takes in what was read at `at`.
    pub fn push(&mut self, at: Instant, reading: Reading) {
        let laws = reading.laws.iter().map(|law| (law.law_id.clone(), law.total()));
        self.counts.push_back(Counts { at, all: reading.sum().total(), laws: laws.collect() });
        // One that is a minute old or older stays: the minute begins there.
        while self.counts.get(1).is_some_and(|next| at.duration_since(next.at) >= MINUTE) {
            self.counts.pop_front();
        }
        self.last = Some(reading);
    }

    pub const fn last(&self) -> Option<&Reading> {
        self.last.as_ref()
    }

    /// When the last reading was taken in.
    pub fn at(&self) -> Option<Instant> {
        self.counts.back().map(|last| last.at)
    }

    /// Since the reading before the last one.
    pub fn since_last(&self) -> Option<Span<'_>> {
        let before = self.counts.len().checked_sub(2)?;
        Some(Span { from: self.counts.get(before)?, to: self.counts.back()? })
    }

    /// Over a minute: less while there is less, more when there was no reading for longer.
    pub fn minute(&self) -> Option<Span<'_>> {
        let span = Span { from: self.counts.front()?, to: self.counts.back()? };
        (self.counts.len() > 1).then_some(span)
    }
}

impl Span<'_> {
    /// From reading to reading.
    pub fn length(&self) -> Duration {
        self.to.at.duration_since(self.from.at)
    }

    /// Votes a second on one law. A law that was not there had none; less than 0 is a correction.
    pub fn of(&self, law_id: &str) -> f64 {
        let count = |counts: &Counts| counts.laws.get(law_id).copied().unwrap_or_default();
        self.rate(count(self.from), count(self.to))
    }

    /// Votes a second on all laws.
    pub fn all(&self) -> f64 {
        self.rate(self.from.all, self.to.all)
    }

    fn rate(&self, from: i64, to: i64) -> f64 {
        let seconds = self.length().as_secs_f64();
        if seconds > 0.0 { (i128::from(to) - i128::from(from)) as f64 / seconds } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::super::tests::law;
    use super::*;

    #[test]
    fn rates_are_since_the_last_reading_and_over_a_minute() {
        let began = Instant::now();
        let mut trend = Trend::default();
        let push = |trend: &mut Trend, seconds, laws: &[(&str, i64)]| {
            let laws = laws.iter().map(|(id, oui)| law(id, *oui, 0)).collect();
            let reading = Reading { laws, at: OffsetDateTime::UNIX_EPOCH };
            trend.push(began + Duration::from_secs(seconds), reading);
        };
        assert!(trend.since_last().is_none() && trend.minute().is_none() && trend.at().is_none());
        push(&mut trend, 0, &[("a", 100)]);
        assert!(trend.since_last().is_none() && trend.minute().is_none(), "one is no span");

        push(&mut trend, 2, &[("a", 110), ("new", 6)]);
        let span = trend.since_last().expect("two readings");
        assert_eq!((span.of("a"), span.of("new"), span.of("nowhere")), (5.0, 3.0, 0.0));
        assert_eq!((span.all(), span.length()), (8.0, Duration::from_secs(2)));

        push(&mut trend, 59, &[("a", 110), ("new", 6)]);
        push(&mut trend, 60, &[("a", 160), ("new", 6)]);
        assert_eq!(trend.since_last().expect("readings").of("a"), 50.0);
        let minute = trend.minute().expect("readings");
        assert_eq!((minute.of("a"), minute.length()), (1.0, MINUTE));

        // The first one is no longer needed: the second is a minute old.
        push(&mut trend, 62, &[("a", 170), ("new", 0)]);
        let minute = trend.minute().expect("readings");
        assert_eq!((minute.of("a"), minute.of("new"), minute.length()), (1.0, -0.1, MINUTE));

        // An outage: what is known is from before it.
        push(&mut trend, 662, &[("a", 770), ("new", 0)]);
        let minute = trend.minute().expect("readings");
        assert_eq!((minute.of("a"), minute.length()), (1.0, Duration::from_secs(600)));
        assert_eq!(trend.at(), Some(began + Duration::from_secs(662)));
        assert_eq!(trend.last().expect("a reading").laws.len(), 2);
    }
}
