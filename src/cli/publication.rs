//! `publication`: what the public may see of the results.

use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use strum::VariantArray;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use vote_aggregator::adapters::store::{self, Comparison, History, Patience, PublishedCorrection};
use vote_aggregator::model::publication::{
    Change, NO_REASON, Publication, Published, Refusal, State, rfc3339,
};
use vote_aggregator::model::results::{moment, printable};
use vote_aggregator::platform::config::Config;

use super::exit::{self, Exit, Outcome};
use super::recount;
use super::{RETRY_FOR, output, seconds};

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator publication withhold          hides all published counts immediately
  vote-aggregator publication show              what the public sees, and from when on
  vote-aggregator publication history           who changed that, when and why
  vote-aggregator publication set counting --not-before 2026-11-29T20:00:00+01:00 --reason decree
  vote-aggregator publication set provisional --reason \"all polling stations are counted\"
  vote-aggregator publication set final --reason \"decision 2026-15 of 14 December\"

Before --not-before the public sees nothing, whatever the state; without any publication nothing either.
States follow one another in the order withheld, counting, provisional, final. provisional may go back
to counting and final to provisional, and everything to withheld. `final` recounts the audit, and
publishes a copy that no later vote changes. Every change stays on record.

roles.sql: vote_publisher, and for `final` vote_auditor as well. In one of several cells the command
refuses, since each has a part of the results.")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Seconds to retry while PostgreSQL is unavailable; 0: do not retry
    #[arg(long, global = true, value_name = "SECONDS", default_value = RETRY_FOR, value_parser = seconds())]
    retry_for: Duration,
}

#[derive(Subcommand)]
enum Command {
    /// Show the last publication, and what the public sees of it
    Show(Format),
    /// List all publications, and the corrections that the public sees
    History(Format),
    /// Change what the public sees: exit code 0, or 1 where the change is not allowed
    Set(Set),
    /// Withhold all results, in any state, without a prompt
    Withhold {
        /// Why, for the record and for the page
        #[arg(value_name = "REASON", default_value = NO_REASON, value_parser = reason)]
        reason: String,
    },
}

#[derive(Args)]
struct Format {
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Set {
    #[arg(value_parser = state())]
    state: State,
    /// When results may be public, with the offset from UTC; as before where it is left out
    #[arg(long, value_name = "TIME", value_parser = moment_in_time)]
    not_before: Option<OffsetDateTime>,
    /// The same time once more, if it is earlier than the one that holds
    #[arg(long, value_name = "TIME", value_parser = moment_in_time, requires = "not_before")]
    earlier: Option<OffsetDateTime>,
    /// Why, for the record and for the page: the act, the decision
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,
    /// This database is a rehearsal's; only in its first publication, and for good
    #[arg(long)]
    test: bool,
    /// Publish without asking
    #[arg(long)]
    yes: bool,
}

pub(super) async fn publication(config: &Config, arguments: Arguments) -> Outcome {
    let Arguments { command, retry_for } = arguments;
    let patience = Patience::new(retry_for);
    match command {
        Command::Show(Format { json }) => {
            let history = history(config, patience).await?;
            output::answer(if json { shown_object(&history) } else { shown(&history) }, 0)
        }
        Command::History(Format { json }) => {
            let history = history(config, patience).await?;
            output::answer(if json { history_object(&history) } else { listed(&history) }, 0)
        }
        Command::Set(set) => {
            let database = &config.postgres.database;
            let Set { state, not_before, earlier, reason, test, yes } = set;
            if !yes && State::PUBLIC.contains(&state) {
                output::need_terminal(
                    "set asks before it publishes, and standard input is not a terminal: add --yes",
                )?;
                let time = match not_before {
                    Some(time) => Some(time),
                    None => {
                        let last = history(config, patience).await?.publications.pop();
                        last.map(|last| last.not_before)
                    }
                };
                // Without a time it is refused below.
                if let Some(time) = time {
                    let when = when(time, OffsetDateTime::now_utc());
                    output::ask(&format!("Publish {state} results of {database:?} {when}?"))?;
                }
            }
            let change = Change { state, not_before, earlier, reason, test };
            publish(config, patience, &change).await
        }
        Command::Withhold { reason } => {
            let (state, not_before, earlier, test) = (State::Withheld, None, None, false);
            let change = Change { state, not_before, earlier, reason, test };
            publish(config, patience, &change).await
        }
    }
}

/// When results are public that may be so from `not_before` on.
fn when(not_before: OffsetDateTime, now: OffsetDateTime) -> String {
    let time = moment(Some(not_before));
    if not_before <= now { format!("now (the embargo ended {time})") } else { format!("at {time}") }
}

async fn history(config: &Config, patience: Patience) -> Result<History, Exit> {
    let read = store::history(config, patience).await;
    read.map_err(exit::without_postgres("read what is published"))
}

async fn publish(config: &Config, patience: Patience, change: &Change) -> Outcome {
    let bar = recount::bar("recounting");
    let made = store::publish(config, patience, change, |at| recount::show(&bar, at)).await;
    bar.finish_and_clear();
    let refused = |why: String, code| Err(exit::cannot("publish", why, code));
    match made.map_err(exit::without_postgres("publish"))? {
        store::Outcome::Done(publication) => {
            output::report(&done(&publication))?;
            Ok(0)
        }
        // There is nothing to be taken off.
        store::Outcome::Refused(Refusal::NoTime) if change.state == State::Withheld => {
            output::answer("nothing was ever published: there is nothing to withhold\n", 0)
        }
        store::Outcome::Refused(refusal @ Refusal::NoTime) => {
            refused(refusal.to_string(), exit::USAGE)
        }
        store::Outcome::Refused(refusal) => refused(refusal.to_string(), exit::FINDINGS),
        store::Outcome::Conflict => {
            let why = "another publication was made meanwhile; look at it (publication history), and \
                       repeat the command if it is still right";
            refused(why.to_owned(), exit::FINDINGS)
        }
        store::Outcome::Differ(Comparison { drift_votes, drift_laws, .. }) => {
            let why = format!(
                "results and audit differ by {drift_votes} votes in {drift_laws} laws: see \
                 vote-aggregator recount, and docs/runbook.md, \"A recount differs\""
            );
            refused(why, exit::FINDINGS)
        }
        store::Outcome::Empty => refused("no law has a result".to_owned(), exit::FINDINGS),
        store::Outcome::Cell => {
            let why = "this database is one of several cells, and has a part of the results only";
            refused(why.to_owned(), exit::FINDINGS)
        }
    }
}

fn done(publication: &Publication) -> String {
    let Publication { id, state, not_before, test, sha256, .. } = publication;
    let test = if *test { ", a test" } else { "" };
    let mut text = match state {
        State::Withheld => format!(
            "publication {id}: withheld{test}. The published views now contain no counts; for pages \
             and caches see docs/runbook.md, \"Pulling the plug\"\n"
        ),
        state => {
            let time = moment(Some(*not_before));
            format!("publication {id}: {state}{test}, public from {time} on\n")
        }
    };
    if let Some(sha256) = sha256 {
        text += &format!("SHA-256 of the results: {sha256}\n");
    }
    text
}

fn shown(history: &History) -> String {
    let (Some(last), Some(published)) = (history.publications.last(), &history.published) else {
        return "nothing was ever published: the public sees nothing\n".to_owned();
    };
    let Publication { id, set_at, set_by, state, not_before, reason, test, sha256, .. } = last;
    let sees = match published.state {
        None => "nothing before that time",
        Some(State::Withheld) => "no number",
        Some(State::Counting) => "the counts so far, as incomplete and unofficial",
        Some(State::Provisional) => "the counts, as unofficial",
        Some(State::Final) => "the copy that was frozen then",
    };
    let mut text = format!(
        "publication {id}: {state}{}\nset:            {} by {}\nreason:         {}\n\
         not before:     {}\nthe public sees {sees}\n",
        if *test { ", a test" } else { "" },
        moment(Some(*set_at)),
        printable(set_by),
        printable(reason),
        moment(Some(*not_before)),
    );
    if let Some(sha256) = sha256 {
        text += &format!("SHA-256:        {sha256}\n");
    }
    text
}

fn listed(history: &History) -> String {
    let header = ["id", "set", "by", "state", "not before", "reason"];
    let rows = history.publications.iter().map(|publication| {
        let Publication { id, set_at, set_by, state, not_before, reason, test, .. } = publication;
        let test = if *test { " (test)" } else { "" };
        let state = format!("{state}{test}");
        let [set_at, not_before] = [set_at, not_before].map(|time| moment(Some(*time)));
        [id.to_string(), set_at, printable(set_by), state, not_before, printable(reason)]
    });
    let mut text = format!("{}\n", output::table(header, rows, 0..1));
    if !history.corrections.is_empty() {
        let header =
            "corrected, law, oui before, non before, oui after, non after, reason".split(", ");
        let rows = history.corrections.iter().map(|correction| {
            let counts = [
                correction.oui_before,
                correction.non_before,
                correction.oui_after,
                correction.non_after,
            ];
            let mut cells =
                vec![moment(Some(correction.corrected_at)), printable(&correction.law_id)];
            cells.extend(counts.map(|count| count.to_string()));
            cells.push(correction.reason.as_deref().map(printable).unwrap_or_default());
            cells
        });
        text += &format!("\n{}\n", output::table(header, rows, 2..6));
    }
    text
}

fn shown_object(history: &History) -> String {
    let object = json!({
        "publication": history.publications.last().map(object),
        "public": history.published.as_ref().map(Published::json),
    });
    format!("{object}\n")
}

fn history_object(history: &History) -> String {
    let object = json!({
        "publications": history.publications.iter().map(object).collect::<Vec<_>>(),
        "corrections": history.corrections.iter().map(PublishedCorrection::json).collect::<Vec<_>>(),
    });
    format!("{object}\n")
}

fn object(publication: &Publication) -> Value {
    let Publication { id, set_at, set_by, state, not_before, reason, test, sha256, .. } =
        publication;
    json!({
        "id": id,
        "set_at": rfc3339(*set_at),
        "set_by": set_by,
        "state": state.to_string(),
        "not_before": rfc3339(*not_before),
        "reason": reason,
        "test": test,
        "results_sha256": sha256,
    })
}

fn state() -> impl TypedValueParser<Value = State> {
    let names = State::VARIANTS.iter().map(<&'static str>::from);
    PossibleValuesParser::new(names).map(|name| name.parse().expect("one of the names of a state"))
}

fn moment_in_time(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text.trim(), &Rfc3339).map_err(|_| {
        "a date, a time and the offset from UTC, e.g. 2026-11-29T20:00:00+01:00".to_owned()
    })
}

fn reason(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("a reason that others can check, e.g. the act or the decision".to_owned()),
        reason => Ok(reason.to_owned()),
    }
}
