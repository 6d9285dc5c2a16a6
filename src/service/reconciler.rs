//! Compares the totals with the audit at an interval: counting never makes them differ, so any
//! difference is reported.
//!
//! All instances share one comparison per interval; the one that made it logs what differs.

use std::time::Duration;

use tokio::time::Instant;

use crate::adapters::store::{Comparison, LawCounts, PAUSES, PgStore, Reconciled, Shared};
use crate::model::ports::Fault;
use crate::platform::config::ShownTotals;
use crate::platform::retry::Jitter;
use crate::platform::telemetry::{Instruments, seconds};

/// Laws that a log line names.
const NAMED: usize = 10;
/// The shortest pause after a connection was lost or refused, which costs hardly any time.
const AFTER_A_LOSS: Duration = Duration::from_secs(1);
/// Longest pause before looking for the result of another instance, which is comparing.
const RECHECK_AFTER: Duration = Duration::from_secs(10);

/// The task that compares; dropped at any point, it leaves nothing behind.
pub(super) struct Reconciler {
    pub(super) store: PgStore,
    pub(super) instruments: Instruments,
    pub(super) jitter: Jitter,
    pub(super) interval: Duration,
    /// What the log may show of the laws that differ.
    pub(super) shown: ShownTotals,
    /// Whether the last comparison found a difference.
    pub(super) differed: bool,
    /// Whether it was logged that this instance compares for itself.
    pub(super) alone: bool,
}

impl Reconciler {
    pub(super) async fn run(mut self) {
        self.instruments.comparison_interval(self.interval);
        loop {
            let began = Instant::now();
            let reconciled = self.store.reconcile(self.interval, NAMED).await;
            let wait = self.reconciled(reconciled, began.elapsed());
            tokio::time::sleep(self.jitter.stretch(wait)).await;
        }
    }

    /// Shows and logs the outcome. Returns the time until the next comparison.
    fn reconciled(&mut self, outcome: Result<Reconciled, Fault>, elapsed: Duration) -> Duration {
        match outcome {
            Ok(Reconciled::Compared(comparison)) => self.compared(&comparison, elapsed),
            Ok(Reconciled::Alone(comparison)) => {
                if !std::mem::replace(&mut self.alone, true) {
                    tracing::warn!(
                        "the table reconciliation cannot be used: this instance compares the totals \
                         with the audit for itself. Run migrate, then roles.sql"
                    );
                }
                self.compared(&comparison, elapsed)
            }
            Ok(Reconciled::Recent(last)) => {
                self.show(&last);
                last.interval(self.interval).saturating_sub(last.age)
            }
            Ok(Reconciled::Busy(last)) => {
                last.iter().for_each(|last| self.show(last));
                self.interval.min(RECHECK_AFTER)
            }
            // Counting goes on; when it fails, too, it logs that itself.
            Err(fault) => {
                tracing::warn!(
                    sqlstate = fault.sqlstate,
                    elapsed = seconds(elapsed),
                    "the totals could not be compared with the audit: {fault}"
                );
                pause(self.interval, elapsed, Some(&fault))
            }
        }
    }

    /// Shows and logs what this instance compared. Returns the time until the next comparison.
    fn compared(&mut self, comparison: &Comparison, elapsed: Duration) -> Duration {
        let Comparison { laws, votes, drift_laws, drift_votes, differing } = comparison;
        let pause = pause(self.interval, elapsed, None);
        self.instruments.compared(*drift_votes, *drift_laws, Duration::ZERO);
        self.instruments.comparison_interval(pause);
        let elapsed = seconds(elapsed);
        if !comparison.agrees() {
            let name = |law: &LawCounts| match self.shown {
                ShownTotals::Full => law.to_string(),
                ShownTotals::Sums => format!("{:?}", law.law_id),
            };
            let mut named: Vec<String> = differing.iter().map(name).collect();
            let others = drift_laws - differing.len() as u64;
            if others > 0 {
                named.push(format!("and {others} more"));
            }
            tracing::error!(
                votes = drift_votes,
                law_count = drift_laws,
                elapsed,
                "vote_results differs from vote_audit by {drift_votes} votes in {drift_laws} laws: {}",
                named.join("; ")
            );
        } else if self.differed {
            tracing::info!(
                votes,
                law_count = laws,
                elapsed,
                "vote_results agrees with vote_audit again: {votes} votes in {laws} laws"
            );
        } else {
            tracing::debug!(
                votes,
                law_count = laws,
                elapsed,
                "vote_results agrees with vote_audit"
            );
        }
        self.differed = !comparison.agrees();
        pause
    }

    /// Shows what another instance compared, or this one earlier.
    fn show(&mut self, last: &Shared) {
        self.instruments.compared(last.drift_votes, last.drift_laws, last.age);
        self.instruments.comparison_interval(last.interval(self.interval));
        self.differed = last.drift_laws > 0;
    }
}

fn pause(interval: Duration, took: Duration, failed: Option<&Fault>) -> Duration {
    match failed {
        // The server did nothing in that time, or stopped soon after it had lost the connection: a link
        // that hangs for minutes is no reason to pause for hours.
        Some(Fault { sqlstate: None, .. }) => interval.max(AFTER_A_LOSS),
        _ => interval.max(took.saturating_mul(PAUSES)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ports::Class;

    #[test]
    fn comparing_takes_at_most_a_twentieth_of_the_time() {
        let interval = Duration::from_secs(600);
        let second = Duration::from_secs(1);
        assert_eq!(pause(interval, second, None), interval);
        assert_eq!(pause(interval, 30 * second, None), interval);
        assert_eq!(pause(interval, 31 * second, None), 620 * second);
        assert_eq!(pause(interval, Duration::MAX, None), Duration::MAX);
    }

    #[test]
    fn a_server_that_gave_up_had_the_work_and_one_that_was_lost_had_not() {
        let fault = |sqlstate: Option<&str>| Fault {
            class: Class::Reconnect,
            sqlstate: sqlstate.map(str::to_owned),
            message: String::new(),
        };
        let (interval, minute) = (Duration::from_millis(1), Duration::from_secs(60));
        assert_eq!(pause(interval, minute, Some(&fault(Some("57014")))), 20 * minute);
        assert_eq!(pause(interval, minute, Some(&fault(None))), AFTER_A_LOSS);
        assert_eq!(pause(minute, Duration::ZERO, Some(&fault(None))), minute);
    }
}
