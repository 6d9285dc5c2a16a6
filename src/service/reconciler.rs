//! Compares the totals with the audit again and again: counting cannot make a difference, so any
//! difference has to be reported.
//!
//! All instances share one comparison an interval; the one that made it logs what differs.

use std::time::Duration;

use tokio::time::Instant;

use crate::adapters::store::{Comparison, PAUSES, PgStore, Reconciled, Shared};
use crate::model::ports::Fault;
use crate::platform::retry::Jitter;
use crate::platform::telemetry::{Instruments, seconds};

/// Laws that a log line names.
const TOLD: usize = 10;
/// The shortest pause after a connection was lost or refused, which costs hardly any time.
const AFTER_A_LOSS: Duration = Duration::from_secs(1);
/// Longest pause before the result of another instance, which compares now, is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// The task that compares; dropped at any point, it leaves nothing behind.
pub(super) struct Reconciler {
    pub(super) store: PgStore,
    pub(super) instruments: Instruments,
    pub(super) jitter: Jitter,
    pub(super) interval: Duration,
}

impl Reconciler {
    pub(super) async fn run(self) {
        self.instruments.comparison_interval(self.interval);
        let mut differed = false;
        let mut alone = false;
        loop {
            let began = Instant::now();
            let reconciled = self.store.reconcile(self.interval, TOLD).await;
            let elapsed = began.elapsed();
            let wait = match reconciled {
                Ok(Reconciled::Compared(comparison)) => {
                    self.compared(&comparison, &mut differed, elapsed)
                }
                Ok(Reconciled::Alone(comparison)) => {
                    if !std::mem::replace(&mut alone, true) {
                        tracing::warn!(
                            "the table reconciliation cannot be used: this instance compares the \
                             totals with the audit for itself. Run migrate, then roles.sql"
                        );
                    }
                    self.compared(&comparison, &mut differed, elapsed)
                }
                Ok(Reconciled::Recent(last)) => {
                    self.show(&last, &mut differed);
                    last.interval(self.interval).saturating_sub(last.age)
                }
                Ok(Reconciled::Busy(last)) => {
                    if let Some(last) = last {
                        self.show(&last, &mut differed);
                    }
                    self.interval.min(LOOK_AGAIN)
                }
                // Counting goes on; when it can't either, it says so itself.
                Err(fault) => {
                    tracing::warn!(
                        sqlstate = fault.sqlstate,
                        elapsed = seconds(elapsed),
                        "the totals could not be compared with the audit: {fault}"
                    );
                    pause(self.interval, elapsed, Some(&fault))
                }
            };
            tokio::time::sleep(self.jitter.stretch(wait)).await;
        }
    }

    /// Shows and logs what this instance compared; the time until the next comparison.
    fn compared(&self, it: &Comparison, differed: &mut bool, elapsed: Duration) -> Duration {
        let pause = pause(self.interval, elapsed, None);
        self.instruments.compared(it.drift_votes, it.drift_laws, Duration::ZERO);
        self.instruments.comparison_interval(pause);
        tell(it, *differed, elapsed);
        *differed = !it.agrees();
        pause
    }

    /// Shows what another instance compared, or this one earlier.
    fn show(&self, last: &Shared, differed: &mut bool) {
        self.instruments.compared(last.drift_votes, last.drift_laws, last.age);
        self.instruments.comparison_interval(last.interval(self.interval));
        *differed = last.drift_laws > 0;
    }
}

fn pause(interval: Duration, took: Duration, failed: Option<&Fault>) -> Duration {
    match failed {
        // The server did nothing in that time, or stopped soon after it had lost us: a link that
        // hangs for minutes is no reason to pause for hours.
        Some(Fault { sqlstate: None, .. }) => interval.max(AFTER_A_LOSS),
        _ => interval.max(took.saturating_mul(PAUSES)),
    }
}

fn tell(comparison: &Comparison, differed: bool, elapsed: Duration) {
    let Comparison { laws, votes, drift_laws, drift_votes, differing } = comparison;
    let elapsed = seconds(elapsed);
    if !comparison.agrees() {
        let mut laws: Vec<String> = differing.iter().map(ToString::to_string).collect();
        let others = drift_laws - differing.len() as u64;
        if others > 0 {
            laws.push(format!("and {others} more"));
        }
        let laws = laws.join("; ");
        tracing::error!(
            votes = drift_votes,
            law_count = drift_laws,
            elapsed,
            "vote_results differs from vote_audit by {drift_votes} votes in {drift_laws} laws: {laws}"
        );
    } else if differed {
        tracing::info!(
            votes,
            law_count = laws,
            elapsed,
            "vote_results agrees with vote_audit again: {votes} votes in {laws} laws"
        );
    } else {
        tracing::debug!(votes, law_count = laws, elapsed, "vote_results agrees with vote_audit");
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
