//! Rate limit for log lines: the first of a kind in a minute are written, the others are counted and
//! summed up in one line when the minute is over.
//!
//! Bounded by the kinds that the code names: a kind holds no text of a message.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Lines of a kind that are written in each period.
const WRITTEN: u64 = 10;
/// How long lines of a kind are counted together, from the first of them on.
const PERIOD: Duration = Duration::from_secs(60);
/// How often periods are checked for their end.
const TICK: Duration = Duration::from_secs(1);

/// Message and reason of a line.
type Kind = (&'static str, &'static str);

/// The lines of each kind in its current period.
#[derive(Debug, Default)]
pub struct LogRateLimiter {
    periods: Mutex<BTreeMap<Kind, Period>>,
}

#[derive(Debug)]
struct Period {
    began: Instant,
    lines: u64,
}

/// Lines of one kind that were not written.
#[derive(Debug, PartialEq, Eq)]
pub struct Suppressed {
    pub message: &'static str,
    pub reason: &'static str,
    pub lines: u64,
    /// Since the first line of the period.
    pub elapsed: Duration,
}

impl fmt::Display for Suppressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { message, reason, lines, elapsed } = self;
        write!(f, "{message} ({reason}): {lines} more in {} s, not logged", elapsed.as_secs())
    }
}

impl LogRateLimiter {
    /// Whether this line is among the first of its kind in the period, and to be written.
    pub fn admit(&self, message: &'static str, reason: &'static str) -> bool {
        let first = Period { began: Instant::now(), lines: 0 };
        let mut periods = self.periods();
        let period = periods.entry((message, reason)).or_insert(first);
        period.lines += 1;
        period.lines <= WRITTEN
    }

    /// Calls `report` for each kind with suppressed lines when its period is over; never ends.
    pub async fn run(&self, report: impl Fn(&Suppressed)) {
        loop {
            tokio::time::sleep(TICK).await;
            self.close(PERIOD).iter().for_each(&report);
        }
    }

    /// Ends all periods and returns what was suppressed, for the end of the process.
    pub fn flush(&self) -> Vec<Suppressed> {
        self.close(Duration::ZERO)
    }

    /// Ends the periods that began `age` ago or earlier.
    fn close(&self, age: Duration) -> Vec<Suppressed> {
        let mut over = Vec::new();
        self.periods().retain(|(message, reason), Period { began, lines }| {
            let elapsed = began.elapsed();
            if elapsed >= age && *lines > WRITTEN {
                over.push(Suppressed { message, reason, lines: *lines - WRITTEN, elapsed });
            }
            elapsed < age
        });
        over
    }

    fn periods(&self) -> MutexGuard<'_, BTreeMap<Kind, Period>> {
        self.periods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines admitted out of `count`.
    fn storm(limiter: &LogRateLimiter, reason: &'static str, count: u64) -> u64 {
        (0..count).map(|_| u64::from(limiter.admit("rejected", reason))).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_lines_of_each_kind_are_written_and_the_others_reported_after_the_period() {
        let limiter = LogRateLimiter::default();
        let reported = Mutex::new(Vec::new());
        let report = |suppressed: &Suppressed| {
            let Suppressed { reason, lines, .. } = *suppressed;
            reported.lock().expect("no panic while held").push((reason, lines));
        };
        let storms = async {
            assert_eq!(storm(&limiter, "not_json", 1_000_000), WRITTEN);
            assert_eq!(storm(&limiter, "too_large", WRITTEN), WRITTEN);
            assert_eq!(storm(&limiter, "not_utf8", WRITTEN + 1), WRITTEN);
            tokio::time::sleep(PERIOD / 2).await;
            assert_eq!(storm(&limiter, "not_json", 5), 0, "still the same period");
            tokio::time::sleep(PERIOD / 2 + 2 * TICK).await;
            // No further message came.
            let expected = [("not_json", 1_000_005 - WRITTEN), ("not_utf8", 1)];
            assert_eq!(reported.lock().expect("no panic while held").split_off(0), expected);
            assert_eq!(storm(&limiter, "not_json", 20), WRITTEN, "a new period");
            tokio::time::sleep(PERIOD * 3).await;
            assert_eq!(*reported.lock().expect("no panic while held"), [("not_json", 10)], "once");
            assert!(limiter.periods().is_empty());
        };
        tokio::select! {
            () = limiter.run(report) => {}
            () = storms => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_returns_what_is_not_reported_yet() {
        let limiter = LogRateLimiter::default();
        storm(&limiter, "not_json", 25);
        tokio::time::sleep(Duration::from_secs(7)).await;
        let lines: Vec<String> = limiter.flush().iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["rejected (not_json): 15 more in 7 s, not logged"]);
        assert_eq!(limiter.flush(), []);
    }
}
