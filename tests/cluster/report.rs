//! The tables for people and the JSON for everything else.

use indicatif::HumanCount;
use serde::Serialize;

use crate::census::Census;
use crate::faults::Outcome;
use crate::invariants::{self, Evidence, Verdict};
use crate::ledger::{Counts, Ledger};
use crate::lock;
use crate::phase::Phase;
use crate::plan::{self, Bound};
use crate::printed::{seconds, table};

/// A whole run.
#[derive(Serialize)]
pub struct Report {
    pub seed: u64,
    pub seconds: f64,
    pub binary: String,
    pub messages: Counts,
    pub votes_counted: usize,
    pub attempts_recorded: usize,
    pub dead_letters: usize,
    pub drained_after: Option<f64>,
    pub outcomes: Vec<Outcome>,
    /// One for each failover of PostgreSQL.
    pub censuses: Vec<Census>,
    pub verdicts: Vec<Verdict>,
    pub passed: usize,
    pub failed: usize,
}

impl Report {
    pub fn new(
        phase: &Phase,
        seconds: f64,
        ledger: &Ledger,
        evidence: &Evidence,
        outcomes: Vec<Outcome>,
        censuses: Vec<Census>,
    ) -> Self {
        let mut verdicts = invariants::judge(ledger, evidence);
        verdicts.extend([
            acknowledged(&censuses),
            waited(&lock(&phase.unconfirmed)),
            in_time(&outcomes),
        ]);
        let passed = verdicts.iter().filter(|verdict| verdict.held).count();
        Self {
            seed: phase.setup.seed,
            seconds,
            binary: phase.setup.binary.display().to_string(),
            messages: ledger.counts,
            votes_counted: evidence.audit.len(),
            attempts_recorded: evidence.attempts.len(),
            dead_letters: evidence.dead_letters.len(),
            drained_after: evidence.drained_after,
            outcomes,
            censuses,
            failed: verdicts.len() - passed,
            passed,
            verdicts,
        }
    }

    /// What was published and counted.
    pub fn votes(&self) -> String {
        let Counts { attempted, confirmed, indeterminate, .. } = self.messages;
        let counted = [self.votes_counted, self.attempts_recorded, self.dead_letters];
        let [counted, attempts, dead] = counted.map(|count| count as u64);
        let counts = [attempted, confirmed, indeterminate, counted, attempts, dead];
        let header = "seconds|faults|failovers|published|confirmed|indeterminate|counted|attempts|\
                      dead letters|drained in s";
        let faults = [self.outcomes.len(), self.censuses.len()].map(|count| count.to_string());
        let mut row = vec![format!("{:.0}", self.seconds)];
        row.extend(faults);
        row.extend(counts.map(|count| HumanCount(count).to_string()));
        row.push(seconds(self.drained_after));
        table(header, [row].into_iter()).to_string()
    }

    /// How long counting took to come back after each kind of fault.
    pub fn faults(&self) -> String {
        let rows = plan::ALL.iter().filter_map(|kind| {
            let outcomes = self.outcomes.iter().filter(|one| one.fault == kind.name);
            let (paired, alone): (Vec<_>, Vec<_>) = outcomes.partition(|one| one.paired);
            let times = |outcomes: &[&Outcome]| {
                let mut times =
                    Vec::from_iter(outcomes.iter().filter_map(|one| one.recovered_after));
                times.sort_by(f64::total_cmp);
                times
            };
            let (bound, from) = match kind.bound {
                Bound::Begun(bound) => (bound, "beginning"),
                Bound::Healed(bound) => (bound, "end"),
            };
            let recovered = times(&alone);
            let count = alone.len() + paired.len();
            (count > 0).then(|| {
                vec![
                    kind.name.to_owned(),
                    count.to_string(),
                    from.to_owned(),
                    seconds(recovered.get(recovered.len() / 2).copied()),
                    seconds(recovered.last().copied()),
                    format!("{bound:.0}"),
                    seconds(times(&paired).last().copied()),
                ]
            })
        });
        format!(
            "{}\nSeconds until every instance has committed again: from the fault's beginning, of those that \
             it leaves a way to the servers, or from its end.",
            table("fault|times|from its|median s|worst s|bound s|worst s, with another", rows)
        )
    }

    /// Every check; one that failed begins with `FAILED`. Then what RabbitMQ did that none of them is about.
    pub fn verdicts(&self) -> String {
        let line = |verdict: &Verdict| {
            let word = if verdict.held { "holds" } else { "FAILED" };
            format!("{word} {}: {}", verdict.name, verdict.detail)
        };
        let stale = self.censuses.iter().filter_map(|census| {
            let consumers = census.stale_consumers.as_ref()?.trim();
            Some(format!(
                "RabbitMQ kept a consumer without a connection, after {}: {consumers}; it was gone once the \
                 queue had another leader",
                census.after
            ))
        });
        self.verdicts.iter().map(line).chain(stale).collect::<Vec<_>>().join("\n")
    }
}

fn acknowledged(censuses: &[Census]) -> Verdict {
    let broken = censuses.iter().filter(|census| !census.lost.is_empty() || census.differing > 0);
    let broken = broken.map(|census| {
        let Census { after, lost, differing, .. } = census;
        format!(
            "; after {after}: {} lost ({}), {differing} laws differ",
            lost.len(),
            lost.join(" ")
        )
    });
    let broken = broken.collect::<String>();
    let compared: usize = censuses.iter().map(|census| census.confirmed).sum();
    Verdict {
        name: "I11 acknowledged ⊆ audit at every failover",
        held: broken.is_empty(),
        detail: format!("{} failovers, {compared} votes compared{broken}", censuses.len()),
    }
}

fn waited(unconfirmed: &[String]) -> Verdict {
    Verdict {
        name: "nothing is committed while no standby can confirm it",
        held: unconfirmed.is_empty(),
        detail: format!("{unconfirmed:?}"),
    }
}

fn in_time(outcomes: &[Outcome]) -> Verdict {
    let is_late = |outcome: &&Outcome| match outcome.recovered_after {
        Some(seconds) => !outcome.paired && seconds > outcome.bound,
        None => true,
    };
    let late = outcomes.iter().filter(is_late).map(|outcome| {
        let Outcome { fault, began, recovered_after, bound, .. } = outcome;
        format!("; {fault} at {began:.0} s: {} s, bound {bound:.0} s", seconds(*recovered_after))
    });
    let late = late.collect::<String>();
    Verdict {
        name: "counting comes back within the bound of each fault",
        held: late.is_empty() && !outcomes.is_empty(),
        detail: format!("{} faults{late}", outcomes.len()),
    }
}
