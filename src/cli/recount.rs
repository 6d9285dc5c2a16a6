//! `recount`.

use std::time::Duration;

use clap::Args;
use comfy_table::Table;
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::time::Instant;
use vote_aggregator::adapters::store::{
    self, Comparison, Correction, LawCounts, Patience, Progress,
};
use vote_aggregator::platform::config::Config;

use super::embargo::Embargo;
use super::exit::{self, Outcome};
use super::{RETRY_FOR, output, seconds};

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
    #[command(flatten)]
    embargo: Embargo,
    /// Seconds to retry while PostgreSQL is unavailable; 0: do not retry
    #[arg(long, value_name = "SECONDS", default_value = RETRY_FOR, value_parser = seconds())]
    retry_for: Duration,
}

pub(super) async fn recount(config: &Config, arguments: &Arguments) -> Outcome {
    let Arguments { repair, yes, reason, json, embargo, retry_for } = arguments;
    if *repair && !yes {
        output::need_terminal(
            "--repair asks before it writes, and standard input is not a terminal: add --yes",
        )?;
    }
    let failed = exit::without_postgres("recount");
    let patience = Patience::new(*retry_for);
    embargo.guard(config, patience).await?;
    let began = Instant::now();
    let bar = bar("recounting");
    let found = store::recount(config, patience, |at| show(&bar, at)).await.map_err(&failed)?;
    bar.finish_and_clear();
    if found.agrees() || !repair {
        let text = if *json { format!("{}\n", object(&found, false)) } else { text(&found) };
        return output::answer(text, if found.agrees() { 0 } else { exit::FINDINGS });
    }
    if !yes {
        output::note(text(&found).trim_end());
        let took = HumanDuration(began.elapsed().max(Duration::from_secs(1)));
        output::ask(&format!(
            "Write the audit's counts into vote_results? Counting will wait for about {took}."
        ))?;
    }
    let bar = self::bar("correcting");
    let progress = |at| show(&bar, at);
    let corrected = store::correct(config, patience, reason.as_deref(), progress).await;
    let Correction { before, found_done } = corrected.map_err(&failed)?;
    bar.finish_and_clear();
    let mut object = object(&before, !before.agrees());
    object["commit_unanswered"] = found_done.into();
    let text = if *json { format!("{object}\n") } else { correction(&before, found_done) };
    output::report(&text)?;
    Ok(0)
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

fn correction(before: &Comparison, found_done: bool) -> String {
    if before.agrees() {
        // Another repair was faster.
        return "results and audit agree by now; see result_corrections\n".to_owned();
    }
    let (drift, differ) = (HumanCount(before.drift_votes), HumanCount(before.drift_laws));
    let recorded = if found_done {
        "PostgreSQL did not answer the COMMIT, and result_corrections shows that it took effect"
    } else {
        "recorded in result_corrections"
    };
    let table = table(&before.differing);
    format!("{table}\n\ncorrected: {drift} votes in {differ} laws, {recorded}\n")
}

fn table(differing: &[LawCounts]) -> Table {
    let header = "law, audit oui, audit non, results oui, results non, oui too many, non too many"
        .split(", ");
    let rows = differing.iter().map(|LawCounts { law_id, audit, results }| {
        let too_many = |choice: usize| i128::from(results[choice]) - i128::from(audit[choice]);
        // A law_id that was written by hand may hold control characters.
        let mut cells = vec![law_id.escape_debug().to_string()];
        cells.extend(audit.iter().chain(results).map(i64::to_string));
        cells.extend([0, 1].map(|choice| format!("{:+}", too_many(choice))));
        cells
    });
    output::table(header, rows, 1..7)
}

fn object(found: &Comparison, corrected: bool) -> Value {
    let counts = |[oui, non]: [i64; 2]| json!({"oui": oui, "non": non});
    let law = |LawCounts { law_id, audit, results }: &LawCounts| json!({"law_id": law_id, "audit": counts(*audit), "results": counts(*results)});
    json!({
        "agree": found.agrees(),
        "laws": found.laws,
        "votes": found.votes,
        "drift_laws": found.drift_laws,
        "drift_votes": found.drift_votes,
        "differing": found.differing.iter().map(law).collect::<Vec<_>>(),
        "corrected": corrected,
    })
}

/// Pages, since their number is known before they are read.
pub(super) fn bar(doing: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(0).with_prefix(doing);
    let style =
        ProgressStyle::with_template("{prefix} {bar:30} {percent} %, {msg} votes ({eta} left)");
    bar.with_style(style.expect("a valid template"))
}

pub(super) fn show(bar: &ProgressBar, Progress { pages, all_pages, votes }: Progress) {
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
