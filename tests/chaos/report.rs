//! The table for people and the JSON for everything else.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use indicatif::HumanCount;
use serde::Serialize;

use crate::faults::Outcome;
use crate::invariants::Verdict;
use crate::ledger::Counts;

/// A whole run.
#[derive(Serialize)]
pub struct Report {
    pub seed: u64,
    pub instances: usize,
    pub binary: String,
    /// How out of disk was brought about.
    pub disk_full: String,
    pub faults: Vec<Row>,
    pub phases: Vec<Phase>,
    pub passed: usize,
    pub failed: usize,
}

/// One queue type.
#[derive(Serialize)]
pub struct Phase {
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

/// One kind of fault.
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

impl Report {
    pub fn new(
        seed: u64,
        instances: usize,
        binary: String,
        disk_full: String,
        phases: Vec<Phase>,
    ) -> Self {
        let held = phases.iter().flat_map(|phase| &phase.verdicts).filter(|v| v.held).count();
        let all: usize = phases.iter().map(|phase| phase.verdicts.len()).sum();
        let faults = rows(&phases);
        Self {
            seed,
            instances,
            binary,
            disk_full,
            faults,
            phases,
            passed: held,
            failed: all - held,
        }
    }

    /// One line a queue type, when there is nothing to look into.
    pub fn line_each(&self) -> String {
        let line = |phase: &Phase| {
            format!(
                "{}: {} faults in {:.0} s, {} messages published, {} votes counted, {} attempts, \
                 {} dead letters, drained in {} s: {} invariants hold",
                phase.queue,
                phase.outcomes.len(),
                phase.seconds,
                HumanCount(phase.messages.attempted),
                number(phase.votes_counted),
                number(phase.attempts_recorded),
                number(phase.dead_letters),
                seconds(phase.drained_after),
                phase.verdicts.iter().filter(|verdict| verdict.held).count(),
            )
        };
        self.phases.iter().map(line).collect::<Vec<_>>().join("\n") + &self.revivals()
    }

    /// What was done for the broker's own fault, when it was.
    fn revivals(&self) -> String {
        match self.phases.iter().map(|phase| phase.broker_revivals).sum::<u64>() {
            0 => String::new(),
            times => format!(
                "\nRabbitMQ came back from a kill without its queue and was restarted: {times} x"
            ),
        }
    }

    /// One line a broken invariant.
    pub fn failures(&self) -> String {
        let mut failures = String::new();
        for phase in &self.phases {
            for Verdict { name, detail, .. } in phase.verdicts.iter().filter(|v| !v.held) {
                failures += &format!("FAILED {}: {name}: {detail}\n", phase.queue);
            }
        }
        failures
    }

    /// The three tables.
    pub fn text(&self) -> String {
        let mut faults =
            table(&["fault", "times", "median s", "worst s", "worst s, overlapped"], &[1, 2, 3, 4]);
        for row in &self.faults {
            faults.add_row(vec![
                row.fault.to_owned(),
                row.count.to_string(),
                seconds(row.median),
                seconds(row.worst),
                seconds(row.worst_overlapped),
            ]);
        }
        let total: usize = self.faults.iter().map(|row| row.count).sum();
        let outcomes = || self.phases.iter().flat_map(|phase| &phase.outcomes);
        let (median, worst) = spread(outcomes().filter(|o| !o.overlapped));
        let (_, overlapped) = spread(outcomes().filter(|o| o.overlapped));
        faults.add_row(vec![
            "all".to_owned(),
            total.to_string(),
            seconds(median),
            seconds(worst),
            seconds(overlapped),
        ]);

        let mut votes = table(
            &[
                "queue",
                "seconds",
                "faults",
                "published",
                "confirmed",
                "indeterminate",
                "counted",
                "attempts",
                "dead letters",
                "drained in s",
            ],
            &[1, 2, 3, 4, 5, 6, 7, 8, 9],
        );
        for phase in &self.phases {
            votes.add_row(vec![
                phase.queue.to_owned(),
                format!("{:.0}", phase.seconds),
                phase.outcomes.len().to_string(),
                HumanCount(phase.messages.attempted).to_string(),
                HumanCount(phase.messages.confirmed).to_string(),
                HumanCount(phase.messages.indeterminate).to_string(),
                number(phase.votes_counted),
                number(phase.attempts_recorded),
                number(phase.dead_letters),
                seconds(phase.drained_after),
            ]);
        }

        let mut verdicts = table(&["queue", "invariant", "", "detail"], &[]);
        for phase in &self.phases {
            for Verdict { name, held, detail } in &phase.verdicts {
                let word = if *held { "holds" } else { "BROKEN" };
                verdicts.add_row(vec![phase.queue, name, word, detail]);
            }
        }
        let (disk, revivals) = (&self.disk_full, self.revivals());
        format!(
            "\n{faults}\nSeconds from a fault's end to the next commit of every instance that it \
             struck.\nDisk full: {disk}{revivals}\n\n{votes}\n\n{verdicts}\n"
        )
    }
}

fn rows(phases: &[Phase]) -> Vec<Row> {
    let mut kinds: BTreeMap<_, Vec<&Outcome>> = BTreeMap::new();
    for outcome in phases.iter().flat_map(|phase| &phase.outcomes) {
        kinds.entry((outcome.kind, outcome.fault)).or_default().push(outcome);
    }
    let row = |((_, fault), outcomes): ((_, &'static str), Vec<&Outcome>)| {
        let (median, worst) = spread(outcomes.iter().copied().filter(|o| !o.overlapped));
        let (_, worst_overlapped) = spread(outcomes.iter().copied().filter(|o| o.overlapped));
        Row { fault, count: outcomes.len(), median, worst, worst_overlapped }
    };
    kinds.into_iter().map(row).collect()
}

fn spread<'o>(outcomes: impl Iterator<Item = &'o Outcome>) -> (Option<f64>, Option<f64>) {
    let mut times: Vec<f64> = outcomes.filter_map(|outcome| outcome.recovered_after).collect();
    times.sort_by(f64::total_cmp);
    (times.get(times.len() / 2).copied(), times.last().copied())
}

fn seconds(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.1}"))
}

fn number(count: usize) -> String {
    HumanCount(count as u64).to_string()
}

fn table(header: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header(header.to_vec());
    for index in right {
        if let Some(column) = table.column_mut(*index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
