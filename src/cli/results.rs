//! `results`.

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use comfy_table::Table;
use indicatif::HumanCount;
use vote_aggregator::adapters::store::{self, Patience};
use vote_aggregator::model::publication::State;
use vote_aggregator::model::results::{
    self, LawResult, Order, Reading, grouped, moment, percentages, printable,
};
use vote_aggregator::platform::config::Config;

use super::embargo::Embargo;
use super::exit::{self, Outcome};
use super::{RETRY_FOR, output, seconds};

/// Law ids that a note names.
const NAMED: usize = 5;

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator results                       the laws, the one with most votes first
  watch vote-aggregator results                 the same, again and again on a terminal
  vote-aggregator results --law law-001 --law law-002
  vote-aggregator results --top 10 --json       for programs
  vote-aggregator results --csv > results.csv   for spreadsheets

Reading needs SELECT on vote_results and published_state (roles.sql: vote_results_reader), and works on
a standby. While the results are not public (vote-aggregator publication), standard error says so, and
--under-embargo is needed to write them to a file or a pipe. It shows the live counts, also behind a
final publication.

Times are in UTC. In the table, shares have one decimal and come to 100.0; what is not exactly nothing
or all is expected as <0.1 or >99.9. JSON and CSV have them unrounded. In CSV a law whose name a
spreadsheet could take for a formula has an apostrophe in front; control characters are written as
escapes there and in the table.

A spreadsheet that opens a CSV file by itself changes law ids such as 0012 and 1E5, which are named on
standard error then. Import it, and make the column law_id text: in Excel by Data, From Text/CSV,
Transform Data; in LibreOffice in the dialog that opens.")]
pub(super) struct Arguments {
    /// Only this law; may be given several times
    #[arg(long, value_name = "ID")]
    law: Vec<String>,
    /// What comes first: the law with most votes, the names in order, or the last one voted on
    #[arg(long, default_value = "votes", value_parser = order())]
    sort: Order,
    /// Only the first so many laws; sums are of all of them
    #[arg(long, value_name = "N")]
    top: Option<NonZeroUsize>,
    /// Print one JSON object
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print comma-separated values, a law a line, without sums
    #[arg(long)]
    csv: bool,
    #[command(flatten)]
    embargo: Embargo,
    /// Seconds to retry while PostgreSQL is unavailable; 0: do not retry
    #[arg(long, value_name = "SECONDS", default_value = RETRY_FOR, value_parser = seconds())]
    retry_for: Duration,
}

pub(super) async fn results(config: &Config, arguments: &Arguments) -> Outcome {
    let Arguments { law, sort, json, csv, embargo, retry_for, .. } = arguments;
    let top = arguments.top.map_or(usize::MAX, NonZeroUsize::get);
    let patience = Patience::new(*retry_for);
    let published = embargo.guard(config, patience).await?;
    if published.as_ref().is_some_and(|published| published.state == Some(State::Final)) {
        output::note("these are the live counts; the published copy is in published_results");
    }
    let read = store::results(config, law, patience).await;
    let mut reading = read.map_err(exit::without_postgres("read the results"))?;
    reading.sort(*sort);
    let shown = reading.laws.iter().take(top).map(|law| law.law_id.as_str());
    let changed: Vec<&str> = shown.filter(|id| results::looks_like_a_value(id)).collect();
    if *csv && !changed.is_empty() {
        let more = if changed.len() > NAMED { ", ..." } else { "" };
        output::note(format_args!(
            "a spreadsheet that opens this by itself changes law ids ({}{more}): import it, with law_id \
             as text",
            changed[..changed.len().min(NAMED)].join(", ")
        ));
    }
    let text = match (json, csv) {
        (true, _) => results::json(&reading, top, law, published.as_ref()),
        (_, true) => results::csv(&reading, top),
        _ => text(&reading, top, law),
    };
    output::answer(text, 0)
}

fn text(reading: &Reading, top: usize, asked: &[String]) -> String {
    let read = moment(Some(reading.at));
    let missing = reading.not_counted(asked).into_iter();
    let missing: String =
        missing.map(|law| format!("no votes are counted yet for {}\n", printable(law))).collect();
    let shown = match reading.laws.len() {
        0 => return format!("{missing}no votes are counted yet (read at {read})\n"),
        all if top < all => format!("the first {top} of {}", laws(all)),
        all => laws(all),
    };
    format!("{}\n\n{missing}{shown}, read at {read}\n", table(reading, top))
}

fn table(reading: &Reading, top: usize) -> Table {
    let sum = LawResult { law_id: "all".to_owned(), ..reading.sum() };
    let rows = reading.laws.iter().take(top).chain([&sum]).map(|law| {
        let mut cells = counts(law);
        cells.push(moment(law.updated_at));
        cells
    });
    output::table(["law", "oui", "non", "total", "oui %", "non %", "last update"], rows, 1..7)
}

/// A law's name, counts and shares, as cells of a table.
fn counts(law: &LawResult) -> Vec<String> {
    let mut cells = vec![printable(&law.law_id)];
    cells.extend([law.oui, law.non, law.total()].map(grouped));
    cells.extend(percentages(law.oui, law.non));
    cells
}

fn laws(count: usize) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} law{plural}", HumanCount(count as u64))
}

/// Parses the value of --sort.
fn order() -> impl TypedValueParser<Value = Order> {
    PossibleValuesParser::new(["law", "votes", "updated"]).map(|name| match name.as_str() {
        "law" => Order::Law,
        "updated" => Order::Updated,
        _ => Order::Votes,
    })
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn law(law_id: &str, oui: i64, non: i64) -> LawResult {
        LawResult { law_id: law_id.to_owned(), oui, non, updated_at: None }
    }

    fn rows(text: &str) -> Vec<Vec<&str>> {
        text.lines().map(|line| line.split_whitespace().collect()).collect()
    }

    #[test]
    fn the_table_shows_the_first_laws_and_the_sums_of_all() {
        let laws = vec![law("law-1", 1_234, 1), law("a\x1b[2J", 1, 2), law("empty", 0, 0)];
        let reading = Reading { laws, at: datetime!(2026-11-25 21:15:04 UTC) };
        let text = text(&reading, 2, &["law-9".to_owned()]);
        let rows = rows(&text);
        assert_eq!(rows[2], ["law-1", "1,234", "1", "1,235", "99.9", "0.1", "-"]);
        assert_eq!(rows[3], ["a\\u{1b}[2J", "1", "2", "3", "33.3", "66.7", "-"]);
        assert_eq!(rows[4], ["all", "1,235", "3", "1,238", "99.8", "0.2", "-"]);
        let end = "no votes are counted yet for law-9\n\
                   the first 2 of 3 laws, read at 2026-11-25 21:15:04Z\n";
        assert!(text.ends_with(end), "{text}");
    }
}
