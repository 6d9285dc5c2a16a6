//! `results`.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use comfy_table::Table;
use vote_aggregator::adapters::store::{self, Patience};
use vote_aggregator::model::results::{
    self, LawResult, Order, Reading, grouped, moment, printable,
};
use vote_aggregator::platform::config::Config;
use vote_aggregator::platform::terminal;

use super::{RETRY_FOR, exit, output, watch};

/// Law ids that a note names.
const NAMED: usize = 5;

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator results                       the laws, the one with most votes first
  vote-aggregator results --watch               the same, live, with votes a second
  vote-aggregator results --law law-001 --law law-002
  vote-aggregator results --top 10 --json       for programs
  vote-aggregator results --csv > results.csv   for spreadsheets

Reading needs SELECT on vote_results and nothing more (roles.sql: vote_results_reader), and works on
a standby. Times are in UTC. In the table, shares have one decimal and come to 100.0; what is not
exactly nothing or all is expected as <0.1 or >99.9. JSON and CSV have them unrounded. In CSV a law whose
name a spreadsheet could take for a formula has an apostrophe in front; control characters are
written as escapes there and in the table.

A spreadsheet that opens a CSV file by itself changes law ids such as 0012 and 1E5, which are named on
standard error then. Import it, and make the column law_id text: in Excel by Data, From Text/CSV,
Transform Data; in LibreOffice in the dialog that opens.")]
pub(super) struct Arguments {
    /// Only this law; may be given several times
    #[arg(long, value_name = "ID")]
    law: Vec<String>,
    /// What comes first: the law with most votes, the names in order, or the last one voted on
    #[arg(long, value_enum, default_value_t)]
    sort: Sort,
    /// Only the first so many laws; sums are of all of them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    top: Option<u32>,
    /// Print one JSON object
    #[arg(long, conflicts_with_all = ["csv", "watch"])]
    json: bool,
    /// Print comma-separated values, a law a line, without sums
    #[arg(long, conflicts_with = "watch")]
    csv: bool,
    /// Draw the table on the terminal again and again, until q or Ctrl-C
    #[arg(long)]
    watch: bool,
    /// Seconds between two readings
    #[arg(long, value_name = "SECONDS", requires = "watch", default_value = "2", value_parser = interval)]
    interval: Duration,
    /// Seconds to try for while PostgreSQL is away; 0: not at all
    #[arg(long, value_name = "SECONDS", default_value_t = RETRY_FOR, conflicts_with = "watch")]
    retry_for: u32,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Sort {
    Law,
    #[default]
    Votes,
    Updated,
}

impl Arguments {
    /// Whether the terminal is ours: nobody else may write to it then.
    pub(super) fn draws(&self) -> bool {
        self.watch && terminal::draws(&io::stdout()) && io::stderr().is_terminal()
    }

    fn order(&self) -> Order {
        match self.sort {
            Sort::Law => Order::Law,
            Sort::Votes => Order::Votes,
            Sort::Updated => Order::Updated,
        }
    }

    fn top(&self) -> usize {
        self.top.and_then(|top| usize::try_from(top).ok()).unwrap_or(usize::MAX)
    }
}

pub(super) async fn results(config: &Config, arguments: &Arguments) -> ExitCode {
    if arguments.watch {
        return watched(config, arguments).await;
    }
    // Nobody stops it but a signal, which ends the process.
    let patience = Patience::new(Duration::from_secs(arguments.retry_for.into()));
    let mut reading = match store::results(config, &arguments.law, patience).await {
        Ok(reading) => reading,
        Err(error) => {
            tracing::error!("cannot read the results: {error}");
            return ExitCode::from(exit::of_postgres(&error));
        }
    };
    reading.sort(arguments.order());
    let (law, top) = (&arguments.law, arguments.top());
    let changed = reading.laws.iter().take(top).map(|law| law.law_id.as_str());
    let changed: Vec<&str> = changed.filter(|id| results::looks_like_a_value(id)).collect();
    if arguments.csv && !changed.is_empty() {
        let more = if changed.len() > NAMED { ", ..." } else { "" };
        output::note(format_args!(
            "a spreadsheet that opens this by itself changes law ids ({}{more}): import it, with law_id \
             as text",
            changed[..changed.len().min(NAMED)].join(", ")
        ));
    }
    let text = match (arguments.json, arguments.csv) {
        (true, _) => results::json(&reading, top, law),
        (_, true) => results::csv(&reading, top),
        _ => text(&reading, top, law),
    };
    output::answer(text, 0)
}

async fn watched(config: &Config, arguments: &Arguments) -> ExitCode {
    if !terminal::draws(&io::stdout()) {
        output::note(
            "--watch draws on a terminal, and standard output is none, or one that draws nothing \
             (TERM is dumb or not set). Elsewhere, use --json in a loop:\n  \
             while vote-aggregator results --json; do sleep 2; done",
        );
        return ExitCode::from(exit::USAGE);
    }
    let view = watch::View::new(arguments.order(), arguments.top(), arguments.law.clone());
    match watch::watch(config, view, arguments.interval).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(watch::Error::Start(error)) => {
            output::note(format_args!("cannot read the results: {error}"));
            ExitCode::from(exit::of_postgres(&error))
        }
        Err(watch::Error::Terminal(error)) => {
            output::note(format_args!("cannot draw on this terminal: {error}"));
            ExitCode::from(exit::INTERNAL)
        }
    }
}

fn text(reading: &Reading, top: usize, asked: &[String]) -> String {
    let (laws, read) = (reading.laws.len(), moment(Some(reading.at)));
    let missing = missing(&reading.not_counted(asked));
    if laws == 0 {
        return format!("{missing}no votes are counted yet (read at {read})\n");
    }
    let shown = match laws {
        1 => "1 law".to_owned(),
        _ if top < laws => format!("the first {top} of {} laws", grouped(count(laws))),
        _ => format!("{} laws", grouped(count(laws))),
    };
    format!("{}\n\n{missing}{shown}, read at {read}\n", table(reading, top))
}

fn count(laws: usize) -> i64 {
    i64::try_from(laws).unwrap_or(i64::MAX)
}

fn missing(laws: &[&str]) -> String {
    let line = |law: &&str| format!("no votes are counted yet for {}\n", printable(law));
    laws.iter().map(line).collect()
}

fn table(reading: &Reading, top: usize) -> Table {
    let laws = reading.laws.iter().take(top).map(|law| row(&printable(&law.law_id), law));
    let rows = laws.chain([row("all", &reading.sum())]);
    let header = ["law", "oui", "non", "total", "oui %", "non %", "last update"];
    output::table(header, rows, 1..7)
}

fn row(name: &str, law: &LawResult) -> [String; 7] {
    let [oui, non] = results::percentages(law.oui, law.non);
    [
        name.to_owned(),
        grouped(law.oui),
        grouped(law.non),
        grouped(law.total()),
        oui,
        non,
        moment(law.updated_at),
    ]
}

fn interval(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if (0.2..=3_600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("seconds from 0.2 to 3600, e.g. 2".to_owned()),
    }
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

    #[test]
    fn without_a_vote_it_says_so() {
        let reading = Reading { laws: vec![], at: datetime!(2026-11-25 21:15:04 UTC) };
        let expected = "no votes are counted yet (read at 2026-11-25 21:15:04Z)\n";
        assert_eq!(text(&reading, 10, &[]), expected);
    }

    #[test]
    fn an_interval_is_seconds_within_reason() {
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        for text in ["0", "-1", "NaN", "inf", "1e9", "2s", ""] {
            assert!(interval(text).is_err(), "{text}");
        }
    }
}
