//! `dlq`: showing what is in the dead-letter queue, replaying, purging.

mod act;
mod look;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use indicatif::{HumanCount, ProgressBar};
use vote_aggregator::adapters::broker::{DeadLetterMessage, DeadLetterQueue, DeliveryLimit};
use vote_aggregator::model::ports::{BrokerError, OpenError};
use vote_aggregator::operator::dlq::{
    self, Ended, Examined, Filter, PurgeError, Selection, Tally, TrialError,
};
use vote_aggregator::operator::publish::progress::{self, Length};
use vote_aggregator::platform::config::Config;

use super::exit;
use super::output::{self, note};

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator dlq list                               what is there, and why
  vote-aggregator dlq show --hash 4f2a...                everything about one message
  vote-aggregator dlq replay --sqlstate 23514 --dry-run  what would be put back
  vote-aggregator dlq replay --sqlstate 23514            put it back, after asking
  vote-aggregator dlq purge --reason malformed --save removed.ndjson

Nothing leaves the dead-letter queue before it is confirmed elsewhere (replay), or on disk (purge
--save). Messages that are only read are requeued when the command ends, however it ends. A quorum
queue then has them behind newer ones, and counts one delivery more; a message that would be dropped
for that is replaced by a copy, and the command says so.")]
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

/// Which messages the command is about.
#[derive(Args, Clone)]
struct Filters {
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

impl Filters {
    fn filter(&self) -> Filter {
        Filter {
            reasons: self.reason.clone(),
            sqlstates: self.sqlstate.clone(),
            laws: self.law.clone(),
            hashes: self.hash.clone(),
        }
    }

    fn max_held(&self) -> usize {
        usize::try_from(self.hold).unwrap_or(usize::MAX)
    }
}

/// `0` stands for no limit.
fn limit(max: u64) -> Option<u64> {
    (max > 0).then_some(max)
}

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("{0}. Nothing is lost: what was not acknowledged is in the dead-letter queue")]
    Lost(#[from] BrokerError),
    #[error(
        "{0}. Nothing is lost: what was replayed is confirmed, the rest is in the dead-letter queue"
    )]
    Trial(BrokerError),
    #[error("{0}. What was not removed is still in the dead-letter queue")]
    Purge(#[from] PurgeError),
    #[error("{0}")]
    Usage(String),
    #[error("the answer could not be written")]
    NotWritten,
}

impl Failed {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => exit::USAGE,
            Self::Open(error) => exit::of_rabbitmq(error),
            Self::Lost(_) | Self::Trial(_) | Self::Purge(PurgeError::Lost(_)) => exit::FINDINGS,
            Self::NotWritten | Self::Purge(PurgeError::Archive(_)) => exit::INTERNAL,
        }
    }
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
    let complete = match arguments.command {
        Command::List(arguments) => look::list(config, &arguments).await,
        Command::Show(arguments) => look::show(config, &arguments).await,
        Command::Replay(arguments) => act::replay(config, &arguments).await,
        Command::Purge(arguments) => act::purge(config, &arguments).await,
    };
    match &complete {
        Ok(_) => {}
        Err(Failed::Usage(problem)) => note(problem),
        // Reported where it happened.
        Err(Failed::NotWritten) => {}
        Err(failed) => {
            tracing::error!(queue = config.rabbitmq.dead_letter_queue, "{failed}");
        }
    }
    ExitCode::from(match complete {
        Ok(true) => 0,
        Ok(false) => exit::FINDINGS,
        Err(failed) => failed.exit_code(),
    })
}

/// Opens the queue, with a bar over its messages.
async fn open(
    config: &Config,
    max_held: usize,
    doing: &'static str,
) -> Result<(DeadLetterQueue, ProgressBar), OpenError> {
    let queue = DeadLetterQueue::open(&config.rabbitmq, max_held).await?;
    if let DeliveryLimit::Set(limit) = queue.limit() {
        tracing::warn!(
            queue = config.rabbitmq.dead_letter_queue,
            "x-delivery-limit={limit}: the broker drops a message that is requeued more often, and \
             each command that reads it requeues it; those close to the limit are replaced by copies"
        );
    }
    let bar = progress::bar(doing, Length::Messages(queue.depth()));
    Ok((queue, bar))
}

/// Reads the queue, and passes each selected message to `each`.
async fn read(
    config: &Config,
    max_held: usize,
    selection: &Selection<'_>,
    each: impl FnMut(&DeadLetterMessage, Examined),
) -> Result<Tally, Failed> {
    let (mut queue, bar) = open(config, max_held, "reading").await?;
    let tally = dlq::scan(&mut queue, selection, &bar, each).await?;
    finish(queue, &bar, &tally).await?;
    Ok(tally)
}

/// Requeues what is left, and says what a person should know about it.
async fn finish(queue: DeadLetterQueue, bar: &ProgressBar, tally: &Tally) -> Result<(), Failed> {
    let requeued = queue.finish().await;
    bar.finish_and_clear();
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
    let requeued = requeued?;
    if !requeued.complete {
        note("not everything is back in the queue yet: look again in a moment");
    }
    if requeued.copied > 0 {
        note(format_args!(
            "{} messages had been requeued so often that the broker could have dropped them: they \
             were replaced by copies, at the end of the queue",
            HumanCount(requeued.copied)
        ));
    }
    Ok(())
}
