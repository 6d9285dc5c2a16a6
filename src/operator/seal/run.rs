//! Rounds, one after the other.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::lag::Lag;
use super::log::Log;
use super::monitor::{Monitor, Stopped};
use super::round::{Round, RoundError, round};
use crate::adapters::store::{Holder, SealReader, StartError};
use crate::platform::service_manager;
use crate::platform::telemetry::SealProgress;

/// Votes that wait for so many intervals are worth a warning, and that again whenever as many have passed.
const WARN_AFTER: u32 = 12;

/// When, and how much at a time.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two rounds, unless there is more to seal.
    pub interval: Duration,
    /// Votes of a round, at least: one that has a single vote shows when it was cast.
    pub min_rows: u64,
    /// Votes a second, at most.
    pub rows_per_second: Option<u32>,
}

impl Pace {
    /// How long to wait behind a round of so many votes, if as many or more are there already.
    fn delay(&self, votes: u64, more: bool) -> Duration {
        let paced = self.rows_per_second.map_or(Duration::ZERO, |rate| {
            Duration::from_secs_f64(votes as f64 / f64::from(rate.max(1)))
        });
        paced.max(if more { Duration::ZERO } else { self.interval })
    }
}

/// Seals until an error that lasts. Dropped at any time, it leaves a directory that the next start goes on with.
///
/// # Errors
/// [`RoundError`]: what the directory refuses, and what PostgreSQL refuses before the first round.
pub async fn run(
    log: &mut Log,
    reader: &mut SealReader<'_>,
    pace: Pace,
    monitor: &Monitor,
) -> Result<Infallible, RoundError> {
    let (mut lag, mut sealed_before, mut warned) = (Lag::default(), false, Instant::now());
    let warn_after = WARN_AFTER * pace.interval;
    loop {
        let before = log.state().tip.votes;
        let (stopped, delay) = match round(log, reader, pace.min_rows).await {
            Ok(round) => {
                sealed_before = true;
                let votes = log.state().tip.votes - before;
                lag.seen(&round, pace.min_rows);
                report(log, &round, &lag, monitor);
                let waits = lag.waiting().is_some_and(|since| since.elapsed() >= warn_after);
                if waits && warned.elapsed() >= warn_after {
                    warned = Instant::now();
                    warn_of_lag(&round, &lag);
                }
                let more =
                    votes > 0 && round.left >= pace.min_rows && round.covered < round.horizon;
                (None, pace.delay(votes, more))
            }
            Err(error) => (Some(stopped(error, sealed_before)?), pace.interval),
        };
        let problem = stopped.as_ref().map(|(_, problem)| problem.clone());
        if monitor.ended(stopped) {
            // Waiting for a server that is down is no failed start.
            service_manager::started(problem.as_deref().unwrap_or("sealing"));
            match problem {
                Some(problem) => tracing::error!("nothing is sealed: {problem}"),
                None => tracing::info!(entries = log.state().tip.size, "sealing"),
            }
        }
        sleep(delay).await;
    }
}

/// Seals what was counted before it began, as far as that is decided and enough for a round. Returns the last round, and
/// what was wrong.
///
/// # Errors
/// [`RoundError`]
pub async fn once(
    log: &mut Log,
    reader: &mut SealReader<'_>,
    min_rows: u64,
) -> Result<(Round, Vec<String>), RoundError> {
    let (mut findings, mut end) = (Vec::new(), None);
    loop {
        let before = log.state().horizon;
        let mut round = round(log, reader, min_rows).await?;
        findings.append(&mut round.findings);
        // What is counted meanwhile is another call's.
        let all = round.covered >= *end.get_or_insert(round.next);
        if all || round.sealed.is_none() && log.state().horizon == before {
            return Ok((round, findings));
        }
    }
}

/// Why nothing is sealed for now; an error if that lasts.
fn stopped(error: RoundError, sealed_before: bool) -> Result<(Stopped, String), RoundError> {
    let reason = match &error {
        RoundError::Seal(_) => return Err(error),
        RoundError::Store(StartError::Unavailable(_)) => Stopped::Database,
        // Later an operator may be fixing it.
        RoundError::Store(_) if sealed_before => Stopped::Database,
        RoundError::Store(_) => return Err(error),
        RoundError::Locked => Stopped::Lock,
        RoundError::Lineage(_) => Stopped::Lineage,
    };
    Ok((reason, error.to_string()))
}

fn report(log: &Log, round: &Round, lag: &Lag, monitor: &Monitor) {
    let tip = log.state().tip;
    let progress = SealProgress {
        entries: tip.size,
        votes: tip.votes,
        unsealed: round.left,
        drift: round.drift,
    };
    monitor.metrics.read(progress, lag.waiting(), lag.held());
    if round.sealed.is_some() {
        monitor.metrics.signed();
        tracing::debug!(entries = tip.size, votes = tip.votes, "signed a checkpoint");
    }
    monitor.metrics.found(round.findings.len());
    for finding in &round.findings {
        tracing::error!("sealed as it is: {finding}");
    }
}

fn warn_of_lag(round: &Round, lag: &Lag) {
    let unsealed = round.left;
    let Some(Holder { pid, gid, role, application, age }) = &round.held_by else {
        tracing::warn!(unsealed, "votes wait to be sealed: the sealer is slower than counting");
        return;
    };
    // As long as it was seen, where its age is hidden from our role.
    let seen = lag.held().map_or(0.0, |since| since.elapsed().as_secs_f64());
    let seconds = age.unwrap_or_default().max(seen).round();
    tracing::warn!(
        unsealed,
        pid,
        gid,
        role,
        application,
        seconds,
        "votes wait to be sealed for a transaction that is in progress, in whichever database of the server; see the \
         runbook, \"SealLag\""
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_is_sealed_at_once_or_as_fast_as_is_allowed() {
        let seconds = Duration::from_secs;
        let pace = Pace { interval: seconds(5), min_rows: 1_000, rows_per_second: None };
        let paced = Pace { rows_per_second: Some(10_000), ..pace };
        for (pace, votes, more, delay) in [
            (pace, 0, false, 5),
            (pace, 200_000, true, 0),
            (pace, 200_000, false, 5),
            (paced, 0, false, 5),
            (paced, 10_000, false, 5),
            (paced, 200_000, true, 20),
        ] {
            assert_eq!(pace.delay(votes, more), seconds(delay), "{pace:?} {votes} {more}");
        }
    }
}
