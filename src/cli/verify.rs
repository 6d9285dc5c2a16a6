//! `verify`: a log of counted votes, by its files alone.

use std::path::PathBuf;

use base64::prelude::{BASE64_STANDARD, Engine};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use vote_aggregator::model::results::printable;
use vote_aggregator::model::tlog::policy::Signed;
use vote_aggregator::operator::verify::{self, Findings, VerifyError};

use super::exit::{self, Exit, Outcome};
use super::output;

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator verify log public/ --policy policy.txt --since checkpoint-of-9-pm
  vote-aggregator verify sums public/ --policy policy.txt --totals results.json
  vote-aggregator verify rows auditor/ --policy policy.txt --rows auditor/rows.ndjson
  vote-aggregator verify proof mine.tlog-proof --policy policy.txt

It reads the given files alone: no network, no database, no configuration. A policy file
(c2sp.org/tlog-policy) names the key of the log, and the witnesses that have to have signed. Exit code 1:
what was verified is not right, and standard output says why.")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Recompute a log from its leaves: signatures, roots, tiles, and the order of its entries
    Log(LogArguments),
    /// Add up the votes of an opened log, and compare them with the results
    Sums(SumsArguments),
    /// Compare exported rows of the audit with an opened log, in both directions
    Rows(RowsArguments),
    /// Verify that one vote is in a log
    Proof(ProofArguments),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator verify log public/ --policy policy.txt
  vote-aggregator verify log public/ --policy policy.txt --since mine --since of-the-minutes

Without --since nothing shows that this is the log which others saw: its owner could have signed another
one. Keep a checkpoint, or have witnesses in the policy.")]
struct LogArguments {
    /// Folder of the log: checkpoint, checkpoints/ and tile/
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    common: Common,
    /// A checkpoint that was kept elsewhere: the log has to begin with what it had then
    #[arg(long, value_name = "FILE")]
    since: Vec<PathBuf>,
}

#[derive(Args)]
#[command(after_help = "\
Example:
  vote-aggregator verify sums public/ --policy policy.txt --totals results.json")]
struct SumsArguments {
    /// Folder of the log, with tile/entries/
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    common: Common,
    /// Results as `results --json` and `board` write them
    #[arg(long, value_name = "FILE")]
    totals: PathBuf,
}

#[derive(Args)]
#[command(after_help = "\
Example:
  vote-aggregator verify rows auditor/ --policy policy.txt --rows rows.ndjson --register register.txt

The rows show who voted what. No message shows a citizen_id.")]
struct RowsArguments {
    /// Folder of the log, with tile/entries/
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    common: Common,
    /// The exported rows, one JSON object a line, in the order of their entries
    #[arg(long, value_name = "FILE")]
    rows: PathBuf,
    /// Citizen ids that may vote, one a line
    #[arg(long, value_name = "FILE")]
    register: Option<PathBuf>,
}

#[derive(Args)]
#[command(after_help = "\
Example:
  vote-aggregator verify proof mine.tlog-proof --policy policy.txt")]
struct ProofArguments {
    /// The proof (c2sp.org/tlog-proof)
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Common {
    /// Whose signatures a checkpoint has to have
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// What was verified, as text and as JSON.
struct Answer {
    lines: Vec<String>,
    object: Value,
}

pub(super) fn verify(arguments: &Arguments) -> Outcome {
    match &arguments.command {
        Command::Log(arguments) => log(arguments),
        Command::Sums(arguments) => sums(arguments),
        Command::Rows(arguments) => rows(arguments),
        Command::Proof(arguments) => proof(arguments),
    }
}

fn log(LogArguments { dir, common, since }: &LogArguments) -> Outcome {
    let policy = verify::policy(&common.policy).map_err(unusable)?;
    let log = verify::log(dir, &policy, since).map_err(unusable)?;
    let mut lines = checkpoint_lines(log.newest.as_ref());
    lines.push(format!("compared: {} checkpoints of the log, {} others", log.kept, log.since));
    if log.since == 0 {
        lines.push("no checkpoint from elsewhere is given (--since): another log of the same owner would pass".into());
    }
    if !log.opened {
        lines.push("the entries are not published yet: their order is not verified".into());
    }
    let object = json!({
        "checkpoint": checkpoint_object(log.newest.as_ref()),
        "checkpoints": log.kept,
        "since": log.since,
        "opened": log.opened,
    });
    answer(common, Answer { lines, object }, &log.findings)
}

fn sums(SumsArguments { dir, common, totals }: &SumsArguments) -> Outcome {
    let policy = verify::policy(&common.policy).map_err(unusable)?;
    let sums = verify::sums(dir, &policy, totals).map_err(unusable)?;
    let mut lines = Vec::new();
    if let Some(laws) = &sums.laws {
        let rows = laws
            .iter()
            .map(|(law, counts)| [printable(law), counts.oui.to_string(), counts.non.to_string()]);
        lines.push(output::table(["law", "oui", "non"], rows, 1..3).to_string());
        if !sums.closed {
            lines.push("the log is not closed: further votes may follow".into());
        }
    }
    let object = json!({"laws": sums.laws, "closed": sums.closed});
    answer(common, Answer { lines, object }, &sums.findings)
}

fn rows(RowsArguments { dir, common, rows, register }: &RowsArguments) -> Outcome {
    let policy = verify::policy(&common.policy).map_err(unusable)?;
    let rows = verify::rows(dir, &policy, rows, register.as_deref()).map_err(unusable)?;
    let lines = vec![format!(
        "rows as they were sealed: {}; without a citizen_id: {}; between two witnessed times: {}",
        rows.rows, rows.erased, rows.timed
    )];
    let object = json!({"rows": rows.rows, "erased": rows.erased, "timed": rows.timed});
    answer(common, Answer { lines, object }, &rows.findings)
}

fn proof(ProofArguments { file, common }: &ProofArguments) -> Outcome {
    let policy = verify::policy(&common.policy).map_err(unusable)?;
    let proven = verify::proof(file, &policy).map_err(unusable)?;
    let mut lines = vec![format!("entry {}", proven.index)];
    lines.extend(checkpoint_lines(proven.checkpoint.as_ref()));
    let opened = proven.opened.as_ref().map(|vote| {
        let [vote_hash, law] = [&vote.vote_hash, &vote.law_id].map(|text| printable(text));
        lines.push(format!("the vote {vote_hash}: {} on {law}", vote.choice));
        json!({"vote_hash": vote.vote_hash, "law_id": vote.law_id, "choice": vote.choice})
    });
    let object = json!({
        "index": proven.index,
        "checkpoint": checkpoint_object(proven.checkpoint.as_ref()),
        "opened": opened,
    });
    answer(common, Answer { lines, object }, &proven.findings)
}

fn checkpoint_lines(signed: Option<&Signed>) -> Vec<String> {
    let Some(Signed { checkpoint, witnessed, .. }) = signed else { return Vec::new() };
    let root = BASE64_STANDARD.encode(checkpoint.root);
    let names: Vec<String> = witnessed.keys().map(|name| printable(name)).collect();
    let witnesses = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let origin = printable(&checkpoint.origin);
    vec![
        format!("log {origin}: {} entries, root {root}", checkpoint.size),
        format!("witnesses: {witnesses}"),
    ]
}

fn checkpoint_object(signed: Option<&Signed>) -> Value {
    let Some(Signed { checkpoint, witnessed, quorum }) = signed else { return Value::Null };
    json!({
        "origin": checkpoint.origin,
        "size": checkpoint.size,
        "root": BASE64_STANDARD.encode(checkpoint.root),
        "witnessed": witnessed,
        "quorum": quorum,
    })
}

fn answer(common: &Common, answer: Answer, findings: &Findings) -> Outcome {
    let Answer { mut lines, mut object } = answer;
    let (total, described) = (findings.total(), findings.described());
    let text = if common.json {
        object["findings"] = described.into();
        object["findings_total"] = total.into();
        format!("{object}\n")
    } else {
        lines.extend(described.iter().map(|finding| format!("wrong: {}", printable(finding))));
        if total > described.len() as u64 {
            lines.push(format!("{} more are wrong", total - described.len() as u64));
        }
        lines.push(if total == 0 {
            "verified".to_owned()
        } else {
            format!("not verified: {total} findings")
        });
        format!("{}\n", lines.join("\n"))
    };
    output::answer(text, if total == 0 { 0 } else { exit::FINDINGS })
}

fn unusable(error: VerifyError) -> Exit {
    output::usage(error)
}
