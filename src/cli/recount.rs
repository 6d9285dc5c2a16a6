//! `recount`.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use comfy_table::Table;
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::time::Instant;
use vote_aggregator::adapters::store::{
    self, Comparison, Correction, LawCounts, Patience, Progress, StartError,
};
use vote_aggregator::platform::config::Config;

use super::{RETRY_FOR, agreed, exit, output};

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator recount                       0 when results and audit agree, 1 when they differ
  vote-aggregator recount --json                the same for programs
  vote-aggregator recount --repair --reason \"restored from the backup of 9 pm\"

Reading needs SELECT on vote_results and vote_audit. --repair is for the owner of the tables; votes
may be counted meanwhile, and wait for as long as the audit takes to read. Each law that it changes
is a row in result_corrections.")]
pub(super) struct Arguments {
    /// Write the audit's counts into vote_results where they differ, after asking
    #[arg(long)]
    repair: bool,
    /// Repair without asking
    #[arg(long, requires = "repair")]
    yes: bool,
    /// Why, for the record in result_corrections
    #[arg(long, value_name = "TEXT", requires = "repair")]
    reason: Option<String>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Seconds to try for while PostgreSQL is away; 0: not at all
    #[arg(long, value_name = "SECONDS", default_value_t = RETRY_FOR)]
    retry_for: u32,
}

pub(super) async fn recount(config: &Config, arguments: Arguments) -> ExitCode {
    if arguments.repair && !arguments.yes && !io::stdin().is_terminal() {
        output::note(
            "--repair asks before it writes, and standard input is no terminal: add --yes",
        );
        return ExitCode::from(exit::USAGE);
    }
    match run(config, &arguments).await {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("cannot recount: {error}");
            ExitCode::from(exit::of_postgres(&error))
        }
    }
}

async fn run(config: &Config, arguments: &Arguments) -> Result<ExitCode, StartError> {
    let Arguments { repair, yes, reason, json, retry_for } = arguments;
    let patience = Patience::new(Duration::from_secs((*retry_for).into()));
    let began = Instant::now();
    let bar = bar("recounting");
    let found = store::recount(config, patience, |at| show(&bar, at)).await?;
    bar.finish_and_clear();
    if found.agrees() || !repair {
        let text = if *json { object(&found, false) } else { text(&found) };
        return Ok(output::answer(text, if found.agrees() { 0 } else { exit::FINDINGS }));
    }
    if !yes {
        output::note(text(&found).trim_end());
        if !confirmed(began.elapsed()) {
            output::note("nothing is changed");
            return Ok(ExitCode::from(exit::FINDINGS));
        }
    }
    let bar = self::bar("correcting");
    let progress = |at| show(&bar, at);
    let corrected = store::correct(config, patience, reason.as_deref(), progress).await?;
    bar.finish_and_clear();
    let text = if *json { corrected_object(&corrected) } else { correction(&corrected) };
    Ok(output::ended(output::report(&text), 0))
}

fn confirmed(took: Duration) -> bool {
    agreed(&format!(
        "Write the audit's counts into vote_results? Counting will wait for about {}.",
        HumanDuration(took.max(Duration::from_secs(1)))
    ))
}

fn text(found: &Comparison) -> String {
    let (laws, votes) = (HumanCount(found.laws), HumanCount(found.votes));
    if found.agrees() {
        return format!("results and audit agree: {votes} votes in {laws} laws\n");
    }
    let (drift, differ) = (HumanCount(found.drift_votes), HumanCount(found.drift_laws));
    format!(
        "{}\n\nresults and audit differ by {drift} votes in {differ} of {laws} laws; \
         {votes} votes are in the audit\n",
        table(&found.differing)
    )
}

fn correction(Correction { before, found_done }: &Correction) -> String {
    let (drift, differ) = (HumanCount(before.drift_votes), HumanCount(before.drift_laws));
    if before.agrees() {
        // Another repair was faster.
        return "results and audit agree by now; see result_corrections\n".to_owned();
    }
    let recorded = if *found_done {
        "PostgreSQL did not answer the COMMIT, and result_corrections shows that it took effect"
    } else {
        "recorded in result_corrections"
    };
    format!(
        "{}\n\ncorrected: {drift} votes in {differ} laws, {recorded}\n",
        table(&before.differing)
    )
}

fn table(differing: &[LawCounts]) -> Table {
    let header = [
        "law",
        "audit oui",
        "audit non",
        "results oui",
        "results non",
        "oui too many",
        "non too many",
    ];
    let rows = differing.iter().map(|LawCounts { law_id, audit, results }| {
        let too_many = |choice: usize| i128::from(results[choice]) - i128::from(audit[choice]);
        [
            // Written by hand, a law's name may hold what a terminal obeys.
            law_id.escape_debug().to_string(),
            audit[0].to_string(),
            audit[1].to_string(),
            results[0].to_string(),
            results[1].to_string(),
            format!("{:+}", too_many(0)),
            format!("{:+}", too_many(1)),
        ]
    });
    output::table(header, rows, 1..7)
}

fn corrected_object(Correction { before, found_done }: &Correction) -> String {
    let mut object = value(before, !before.agrees());
    object["commit_unanswered"] = json!(found_done);
    format!("{object}\n")
}

fn object(found: &Comparison, corrected: bool) -> String {
    format!("{}\n", value(found, corrected))
}

fn value(found: &Comparison, corrected: bool) -> Value {
    let counts = |[oui, non]: [i64; 2]| json!({"oui": oui, "non": non});
    let differing = found.differing.iter().map(|law| {
        json!({
            "law_id": law.law_id,
            "audit": counts(law.audit),
            "results": counts(law.results),
        })
    });
    json!({
        "agree": found.agrees(),
        "laws": found.laws,
        "votes": found.votes,
        "drift_laws": found.drift_laws,
        "drift_votes": found.drift_votes,
        "differing": differing.collect::<Vec<Value>>(),
        "corrected": corrected,
    })
}

/// Pages, since their number is known before they are read.
fn bar(doing: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(0).with_prefix(doing);
    let template = "{prefix} {bar:30} {percent} %, {msg} votes ({eta} left)";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn show(bar: &ProgressBar, Progress { pages, all_pages, votes }: Progress) {
    bar.set_length(all_pages);
    bar.set_position(pages);
    bar.set_message(HumanCount(votes).to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shows_both_counts_and_what_the_results_have_too_many() {
        let law =
            |law_id: &str, audit, results| LawCounts { law_id: law_id.to_owned(), audit, results };
        let table = table(&[law("law-1", [10, 5], [12, 5]), law("a\x1b[2J", [1, 2], [0, 0])]);
        let rows: Vec<Vec<String>> = table
            .to_string()
            .lines()
            .map(|line| line.split_whitespace().map(str::to_owned).collect())
            .collect();
        assert_eq!(rows[2], ["law-1", "10", "5", "12", "5", "+2", "+0"]);
        assert_eq!(rows[3], ["a\\u{1b}[2J", "1", "2", "0", "0", "-1", "-2"]);
    }
}
