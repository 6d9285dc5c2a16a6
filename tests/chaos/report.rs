//! The tables for people and the JSON for everything else.

use indicatif::HumanCount;
use serde::Serialize;

use crate::faults::Outcome;
use crate::invariants::Verdict;
use crate::ledger::Counts;
use crate::plan;
use crate::printed::{seconds, table};

/// A whole run.
#[derive(Serialize)]
pub struct Report {
    pub seed: u64,
    pub instances: usize,
    pub binary: String,
    /// How out of disk was brought about.
    pub disk_full: String,
    pub faults: Vec<Row>,
    pub phases: Vec<QueueReport>,
    pub passed: usize,
    pub failed: usize,
}

/// One queue type.
#[derive(Serialize)]
pub struct QueueReport {
    pub queue: &'static str,
    pub seconds: f64,
    pub messages: Counts,
    pub votes_counted: usize,
    pub attempts_recorded: usize,
    pub dead_letters: usize,
    pub drained_after: Option<f64>,
    /// Planned faults that found no transaction to catch; not among the outcomes.
    pub missed: usize,
    /// Restarts of a RabbitMQ that came back from a kill without its queue: see `revival`.
    pub broker_revivals: u64,
    pub outcomes: Vec<Outcome>,
    pub verdicts: Vec<Verdict>,
}

/// One kind of fault, or all of them.
#[derive(Serialize)]
pub struct Row {
    pub fault: &'static str,
    pub count: usize,
    /// Seconds to recover, of those that no other fault overlapped.
    pub median: Option<f64>,
    pub worst: Option<f64>,
    /// Of those that one did.
    pub worst_overlapped: Option<f64>,
}

impl Row {
    fn of<'o>(fault: &'static str, outcomes: impl Iterator<Item = &'o Outcome>) -> Self {
        let (overlapped, alone): (Vec<_>, Vec<_>) = outcomes.partition(|one| one.overlapped);
        let times = |outcomes: &[&Outcome]| {
            let mut times = Vec::from_iter(outcomes.iter().filter_map(|one| one.recovered_after));
            times.sort_by(f64::total_cmp);
            times
        };
        let recovered = times(&alone);
        Self {
            fault,
            count: alone.len() + overlapped.len(),
            median: recovered.get(recovered.len() / 2).copied(),
            worst: recovered.last().copied(),
            worst_overlapped: times(&overlapped).last().copied(),
        }
    }
}

/// By kind, in the order of the plan's table, and all together.
pub fn rows(phases: &[QueueReport]) -> Vec<Row> {
    let outcomes = || phases.iter().flat_map(|phase| &phase.outcomes);
    let kinds = plan::ALL.iter().map(|kind| kind.name);
    let rows = kinds.map(|name| Row::of(name, outcomes().filter(|one| one.fault == name)));
    rows.filter(|row| row.count > 0).chain([Row::of("all", outcomes())]).collect()
}

impl Report {
    /// What was published and counted, a row for each queue type.
    pub fn votes(&self) -> String {
        let header = "queue|seconds|faults|published|confirmed|indeterminate|counted|attempts|\
                      dead letters|drained in s";
        let rows = self.phases.iter().map(|phase| {
            let Counts { attempted, confirmed, indeterminate, .. } = phase.messages;
            let counted = [phase.votes_counted, phase.attempts_recorded, phase.dead_letters];
            let [counted, attempts, dead] = counted.map(|count| count as u64);
            let counts = [attempted, confirmed, indeterminate, counted, attempts, dead];
            let faults = phase.outcomes.len().to_string();
            let mut row = vec![phase.queue.to_owned(), format!("{:.0}", phase.seconds), faults];
            row.extend(counts.map(|count| HumanCount(count).to_string()));
            row.push(seconds(phase.drained_after));
            row
        });
        let mut votes = table(header, rows).to_string();
        let revivals: u64 = self.phases.iter().map(|phase| phase.broker_revivals).sum();
        if revivals > 0 {
            votes += "\nRabbitMQ came back from a kill without its queue and was restarted: ";
            votes += &format!("{revivals} x");
        }
        votes
    }

    /// How long counting took to come back after each kind of fault.
    pub fn faults(&self) -> String {
        let rows = self.faults.iter().map(|row| {
            let times = [row.median, row.worst, row.worst_overlapped].map(seconds);
            [row.fault.to_owned(), row.count.to_string()].into_iter().chain(times).collect()
        });
        format!(
            "{}\nSeconds from a fault's end to the next commit of every instance that it struck.\n\
             Disk full: {}",
            table("fault|times|median s|worst s|worst s, overlapped", rows),
            self.disk_full
        )
    }

    /// Every invariant of each queue type; a broken one begins with `FAILED`.
    pub fn verdicts(&self) -> String {
        let mut lines = String::new();
        for phase in &self.phases {
            for Verdict { name, held, detail } in &phase.verdicts {
                let word = if *held { "holds" } else { "FAILED" };
                lines += &format!("{word} {}: {name}: {detail}\n", phase.queue);
            }
        }
        lines
    }
}
