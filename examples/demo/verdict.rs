//! Whether counts, audit and publisher agree.

use std::collections::BTreeSet;
use std::time::Duration;

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use serde::Deserialize;

use crate::human;
use crate::servers::{Laws, Tables};
use crate::service::Metrics;

/// Differences named in the last line; the tables show all.
const NAMED: usize = 3;

/// A line below the header and no others.
const STYLE: TableStyle =
    TableStyle::new().header_separator(LineStyle::none().fill('-').junction('-'));

/// What `publish --report` writes.
#[derive(Deserialize)]
pub struct Report {
    /// Messages that the broker has.
    pub confirmed: u64,
    pub expected: Expected,
}

/// What counting them must come to.
#[derive(Deserialize)]
pub struct Expected {
    pub laws: Laws,
    pub replays: u64,
    pub attempts: u64,
    pub malformed: u64,
}

/// What is there after counting.
pub struct Evidence {
    pub tables: Tables,
    pub dead_letters: u64,
    /// Messages still in the queue.
    pub left: u64,
    pub metrics: Metrics,
    pub elapsed: Duration,
}

pub struct Verdict {
    pub agrees: bool,
    pub tables: String,
    pub line: String,
}

impl Evidence {
    /// `in_order`: votes were counted in the order in which they were published. If not, the first
    /// to arrive of a vote and the attempts under its vote_hash counts, so that the sample fixes
    /// the totals of laws and of duplicates, and not their parts.
    pub fn compare(&self, report: &Report, in_order: bool) -> Verdict {
        let expected = &report.expected;
        let mut differences = Vec::new();
        let laws = self.laws(expected, in_order, &mut differences);

        let total = |name| self.metrics.total(name);
        let (replays, attempts) =
            (total("votes_replayed_total"), total("duplicate_attempts_total"));
        let mut checks = vec![
            ("duplicate attempts: rows", self.tables.attempts, expected.attempts),
            ("malformed: rejected", total("votes_rejected_total"), expected.malformed),
            ("malformed: in the dead-letter queue", self.dead_letters, expected.malformed),
            ("refused by the database", total("votes_isolated_total"), 0),
            ("left in the queue", self.left, 0),
        ];
        if in_order {
            checks.insert(0, ("duplicate attempts", attempts, expected.attempts));
            checks.insert(0, ("replays", replays, expected.replays));
        } else {
            let both = expected.replays + expected.attempts;
            checks.insert(0, ("replays + duplicate attempts", replays + attempts, both));
        }
        let mut table = table(&["apart from the counts", "found", "published", "agree"]);
        for (what, found, published) in checks {
            if found != published {
                differences.push(format!(
                    "{what}: {}, published {}",
                    human(found),
                    human(published)
                ));
            }
            table.add_row([what, &human(found), &human(published), yes(found == published)]);
        }

        let counted = self.tables.results.values().flatten().sum();
        Verdict {
            agrees: differences.is_empty(),
            tables: format!("{laws}\n\n{}\n\n{table}\n\n {}\n", self.reasons(), self.rate()),
            line: line(counted, &differences),
        }
    }

    fn laws(&self, expected: &Expected, in_order: bool, differences: &mut Vec<String>) -> Table {
        let header = ["law", "oui", "non", "total", "oui %", "audit", "published", "agree"];
        let mut table = table(&header);
        let sources = [&self.tables.results, &self.tables.audit, &expected.laws];
        let mut totals = [[0; 2]; 3];
        let ids: BTreeSet<_> = sources.iter().flat_map(|laws| laws.keys()).collect();
        for id in ids {
            let counts = sources.map(|laws| laws.get(id).copied().unwrap_or_default());
            for (total, count) in totals.iter_mut().zip(counts) {
                *total = [total[0] + count[0], total[1] + count[1]];
            }
            let agree = agree(counts, in_order);
            if !agree {
                let [counted, audit, published] =
                    counts.map(|[oui, non]| format!("{} oui + {} non", human(oui), human(non)));
                differences
                    .push(format!("{id}: counted {counted}, audit {audit}, published {published}"));
            }
            table.add_row(law_row(id, counts, agree));
        }
        let agree = agree(totals, in_order);
        table.add_row(law_row("all laws", totals, agree));
        table
    }

    fn reasons(&self) -> Table {
        let mut table = table(&["rejected because", "messages"]);
        let rejected = self.metrics.by_label("votes_rejected_total");
        for (reason, count) in rejected.iter().filter(|(_, count)| **count > 0) {
            table.add_row([reason, &human(*count)]);
        }
        table.add_row(["all reasons", &human(rejected.values().sum())]);
        table
    }

    fn rate(&self) -> String {
        let (votes, seconds) = (self.metrics.votes(), self.elapsed.as_secs_f64());
        let rate = if seconds > 0.0 { votes as f64 / seconds } else { 0.0 };
        format!(
            "Rate: {} votes/s ({} valid votes settled in {seconds:.1} s)",
            human(rate as u64),
            human(votes)
        )
    }
}

fn agree([counted, audit, published]: [[u64; 2]; 3], in_order: bool) -> bool {
    let sum = |[oui, non]: [u64; 2]| oui + non;
    counted == audit && sum(counted) == sum(published) && (counted == published || !in_order)
}

fn law_row(name: &str, [[oui, non], audit, published]: [[u64; 2]; 3], agree: bool) -> [String; 8] {
    let total = oui + non;
    let share = if total > 0 { 100.0 * oui as f64 / total as f64 } else { 0.0 };
    let [audit, published] = [audit, published].map(|[oui, non]| human(oui + non));
    let counts = [oui, non, total].map(human);
    let [oui, non, total] = counts;
    let agree = yes(agree).to_owned();
    [name.to_owned(), oui, non, total, format!("{share:.1}"), audit, published, agree]
}

fn line(counted: u64, differences: &[String]) -> String {
    if differences.is_empty() {
        let counted = human(counted);
        return format!(
            "AGREE: {counted} votes counted once each; counts, audit and publisher agree"
        );
    }
    let message = &differences[..differences.len().min(NAMED)];
    let more = match differences.len() - message.len() {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    format!("DISAGREE: {}{more}", message.join("; "))
}

const fn yes(agree: bool) -> &'static str {
    if agree { "yes" } else { "NO" }
}

/// The first column is text, the others are numbers.
fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laws(oui: u64, non: u64) -> Laws {
        Laws::from([("law-001".to_owned(), [oui, non]), ("law-002".to_owned(), [1, 1])])
    }

    /// The verdict on evidence that agrees with the publisher's report, but for what `change` does.
    fn verdict(in_order: bool, change: impl FnOnce(&mut Evidence)) -> Verdict {
        let metrics = Metrics::parse(
            "# HELP votes_rejected_total Malformed messages\n\
             batch_size_processed_total 17\n\
             batch_processing_duration_seconds 0.004\n\
             votes_rejected_total{reason=\"bad_choice\"} 1\n\
             votes_rejected_total{reason=\"not_json\"} 0\n\
             votes_replayed_total 2\n\
             duplicate_attempts_total 3\n",
        );
        assert_eq!((metrics.votes(), metrics.settled()), (17, 18));
        let mut evidence = Evidence {
            tables: Tables { results: laws(6, 4), audit: laws(6, 4), attempts: 3 },
            dead_letters: 1,
            left: 0,
            metrics,
            elapsed: Duration::from_secs(2),
        };
        change(&mut evidence);
        let expected = Expected { laws: laws(6, 4), replays: 2, attempts: 3, malformed: 1 };
        evidence.compare(&Report { confirmed: 18, expected }, in_order)
    }

    fn count(evidence: &mut Evidence, results: Laws, audit: Laws) {
        (evidence.tables.results, evidence.tables.audit) = (results, audit);
    }

    #[test]
    fn equal_sides_agree() {
        let verdict = verdict(true, |_| {});
        assert!(verdict.agrees && verdict.line.starts_with("AGREE: 12 votes "), "{}", verdict.line);
    }

    #[test]
    fn any_one_difference_disagrees() {
        let changes: [fn(&mut Evidence); 8] = [
            |evidence| count(evidence, laws(5, 4), laws(6, 4)),
            |evidence| count(evidence, laws(6, 4), laws(6, 5)),
            |evidence| count(evidence, laws(6, 4), Laws::new()),
            // The same total.
            |evidence| count(evidence, laws(5, 5), laws(5, 5)),
            |evidence| evidence.tables.attempts = 2,
            |evidence| evidence.dead_letters = 0,
            |evidence| evidence.left = 1,
            |evidence| evidence.metrics = Metrics::parse("votes_replayed_total 3"),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let verdict = verdict(true, change);
            assert!(!verdict.agrees && verdict.line.starts_with("DISAGREE: "), "number {number}");
        }
    }

    #[test]
    fn out_of_order_only_the_sums_are_fixed() {
        let agrees = |results: Laws, audit: Laws| {
            verdict(false, |evidence| count(evidence, results, audit)).agrees
        };
        assert!(agrees(laws(5, 5), laws(5, 5)));
        assert!(!agrees(laws(5, 4), laws(5, 4)), "a vote is missing");
        assert!(!agrees(laws(5, 5), laws(6, 4)), "counts and audit differ");
    }
}
