//! `dlq`: looking into the dead-letter queue, putting back, removing.

mod act;
mod look;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use vote_aggregator::broker::{DeadLetterQueue, DeliveryLimit, GivenBack};
use vote_aggregator::config::Config;
use vote_aggregator::dlq::{self, Ended, Filter, PurgeError, Selection, Tally, TrialError};
use vote_aggregator::ports::{Lost, OpenError};

use super::exit;
use super::output::{self, note};

const TICK: Duration = Duration::from_millis(100);

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator dlq list                               what is there, and why
  vote-aggregator dlq show --hash 4f2a...                everything about one message
  vote-aggregator dlq replay --sqlstate 23514 --dry-run  what would be put back
  vote-aggregator dlq replay --sqlstate 23514            put it back, after asking
  vote-aggregator dlq purge --reason malformed --save removed.ndjson

Nothing leaves the dead-letter queue before it is confirmed elsewhere (replay), or on disk (purge
--save). What is only looked at goes back when the command ends, however it ends. A quorum queue
then has it behind what came in meanwhile, and counts one delivery more; a message that would be
dropped for that is put back as a fresh copy instead, and the command says so.")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show what is in the dead-letter queue, and how much of it for which reason
    List(look::List),
    /// Show everything about single messages: why, what to do, headers, body without the citizen
    Show(look::Show),
    /// Put messages back into the votes queue: exit code 0 when all that match were confirmed
    Replay(act::Replay),
    /// Remove messages for good
    Purge(act::Purge),
}

/// Which messages are meant.
#[derive(Args, Clone)]
struct Meant {
    /// Only with this reason, e.g. malformed, missing_field, refused, delivery_limit; repeatable
    #[arg(long, value_name = "REASON", value_parser = dlq::reason)]
    reason: Vec<String>,
    /// Only refused by PostgreSQL with this SQLSTATE, or with this class (23); repeatable
    #[arg(long, value_name = "CODE", value_parser = dlq::sqlstate)]
    sqlstate: Vec<String>,
    /// Only votes on this law; repeatable
    #[arg(long, value_name = "LAW_ID")]
    law: Vec<String>,
    /// Only the vote with this hash; repeatable
    #[arg(long, value_name = "VOTE_HASH")]
    hash: Vec<String>,
    /// Messages held on the broker at the same time, at most; beyond that the command stops early
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    hold: u32,
}

impl Meant {
    fn filter(&self) -> Filter {
        Filter {
            reasons: self.reason.clone(),
            sqlstates: self.sqlstate.clone(),
            laws: self.law.clone(),
            hashes: self.hash.clone(),
        }
    }
}

/// `0` stands for no limit.
fn limit(max: u64) -> Option<u64> {
    (max > 0).then_some(max)
}

/// Whatever `filter` means.
fn everything<'f>(config: &Config, filter: &'f Filter, max: Option<u64>) -> Selection<'f> {
    Selection {
        filter,
        max_replays: None,
        malformed: true,
        max_message_bytes: config.batch.max_message_bytes,
        max,
        agreed: None,
        tried: None,
    }
}

/// Why a command did not come to its end.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("{0}. Nothing is lost: what was not acknowledged is in the dead-letter queue")]
    Lost(#[from] Lost),
    #[error(
        "{0}. Nothing is lost: what was put back is confirmed, the rest is in the dead-letter queue"
    )]
    Trial(Lost),
    #[error("{0}. What was not removed is still in the dead-letter queue")]
    Purge(#[from] PurgeError),
    #[error("{0}")]
    Usage(String),
    #[error("the answer could not be written")]
    NotWritten,
}

impl From<output::NotWritten> for Failed {
    fn from(_: output::NotWritten) -> Self {
        Self::NotWritten
    }
}

impl From<TrialError> for Failed {
    fn from(error: TrialError) -> Self {
        match error {
            TrialError::Open(error) => Self::Open(error),
            TrialError::Lost(lost) => Self::Trial(lost),
        }
    }
}

pub(super) async fn dlq(config: &Config, arguments: Arguments) -> ExitCode {
    let done = match arguments.command {
        Command::List(arguments) => look::list(config, &arguments).await,
        Command::Show(arguments) => look::show(config, &arguments).await,
        Command::Replay(arguments) => act::replay(config, &arguments).await,
        Command::Purge(arguments) => act::purge(config, &arguments).await,
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(exit::FINDINGS),
        Err(failed) => {
            match &failed {
                Failed::Usage(told) => note(told),
                // Told where it happened.
                Failed::NotWritten => {}
                _ => tracing::error!(queue = config.rabbitmq.dead_letter_queue, "{failed}"),
            }
            ExitCode::from(match failed {
                Failed::Usage(_) => exit::USAGE,
                Failed::Open(error) => exit::of_rabbitmq(&error),
                Failed::Lost(_) | Failed::Trial(_) | Failed::Purge(PurgeError::Lost(_)) => {
                    exit::FINDINGS
                }
                Failed::NotWritten | Failed::Purge(PurgeError::Save { .. }) => exit::INTERNAL,
            })
        }
    }
}

async fn open(config: &Config, hold: u32) -> Result<DeadLetterQueue, OpenError> {
    let hold = usize::try_from(hold).unwrap_or(usize::MAX);
    let queue = DeadLetterQueue::open(&config.rabbitmq, hold).await?;
    if let DeliveryLimit::Set(limit) = queue.limit() {
        tracing::warn!(
            queue = config.rabbitmq.dead_letter_queue,
            "x-delivery-limit={limit}: the broker drops a message that is given back more often, as \
             each look does; those that come near it are put back as copies"
        );
    }
    Ok(queue)
}

/// Says what a person should know of how it was given back.
fn tell_copies(given_back: GivenBack) {
    if !given_back.arrived {
        note("the queue has not got back everything yet: look again in a moment");
    }
    if given_back.copied > 0 {
        note(format_args!(
            "{} messages had been given back so often that the broker could have dropped them: they \
             were put back as fresh copies, at the end of the queue",
            HumanCount(given_back.copied)
        ));
    }
}

/// Says that not everything was read, and why.
fn tell_end(tally: &Tally) {
    let (read, depth) = (HumanCount(tally.read), HumanCount(tally.depth));
    match tally.ended {
        Ended::Full => note(format_args!(
            "stopped early: read {read} of {depth} messages, since no more are held on the broker at \
             the same time (--hold, or 128 MiB)"
        )),
        Ended::Enough if tally.read < tally.depth => {
            note(format_args!("stopped at --max: read {read} of {depth} messages"));
        }
        Ended::AtTheEnd if tally.read < tally.depth => note(format_args!(
            "read {read} of the {depth} messages that were there: another consumer holds or took the \
             others"
        )),
        _ => {}
    }
}

fn needs_yes(yes: bool, what: &str) -> Result<(), Failed> {
    if yes || io::stdin().is_terminal() {
        return Ok(());
    }
    Err(Failed::Usage(format!(
        "{what} asks before it does anything, and standard input is no terminal: add --yes, or \
         --dry-run"
    )))
}

fn bar(doing: &'static str, length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length).with_prefix(doing);
    bar.enable_steady_tick(TICK);
    let template = "{prefix} {bar:30} {human_pos}/{human_len} ({eta} left)";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
