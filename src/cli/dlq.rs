//! `dlq`: showing what is in the dead-letter queue, replaying, purging.

mod act;
mod list;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand};
use indicatif::{HumanCount, ProgressBar};
use vote_aggregator::adapters::broker::{DeadLetterMessage, DeadLetterQueue, DeliveryLimit};
use vote_aggregator::model::ports::{BrokerError, OpenError};
use vote_aggregator::operator::dlq::{
    self, Ended, Examined, Filter, PurgeError, Selection, Tally, TrialError,
};
use vote_aggregator::operator::publish::progress::{self, Length};
use vote_aggregator::platform::config::Config;

use super::exit::{self, Exit, Outcome};
use super::output::note;

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
    List(list::List),
    /// Show everything about single messages: why, what to do, headers, body without the citizen
    Show(list::Show),
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
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    hold: usize,
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
    Trial(#[from] TrialError),
    #[error("{0}. What was not removed is still in the dead-letter queue")]
    Purge(#[from] PurgeError),
    #[error(transparent)]
    Exit(#[from] Exit),
}

pub(super) async fn dlq(config: &Config, arguments: Arguments) -> Outcome {
    let ended = match arguments.command {
        Command::List(arguments) => list::list(config, &arguments).await,
        Command::Show(arguments) => list::show(config, &arguments).await,
        Command::Replay(arguments) => act::replay(config, &arguments).await,
        Command::Purge(arguments) => act::purge(config, &arguments).await,
    };
    let failed = match ended {
        Ok(code) => return Ok(code),
        Err(failed) => failed,
    };
    let code = match &failed {
        Failed::Exit(exit) => return Err(*exit),
        Failed::Open(error) | Failed::Trial(TrialError::Open(error)) => exit::of_rabbitmq(error),
        Failed::Purge(PurgeError::Archive(_)) => exit::INTERNAL,
        Failed::Lost(_) | Failed::Trial(_) | Failed::Purge(_) => exit::FINDINGS,
    };
    tracing::error!(queue = config.rabbitmq.dead_letter_queue, "{failed}");
    Err(Exit(code))
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

/// Requeues what is left, and notes why not everything was read and what became of the rest.
async fn finish(queue: DeadLetterQueue, bar: &ProgressBar, tally: &Tally) -> Result<(), Failed> {
    let requeued = queue.finish().await;
    bar.finish_and_clear();
    let why = match tally.ended {
        Ended::Full => {
            "stopped early, since no more are held on the broker at the same time (--hold, or 128 MiB)"
        }
        Ended::Enough => "stopped at --max",
        Ended::AtTheEnd => "another consumer holds or took the others",
    };
    if tally.read < tally.depth || tally.ended == Ended::Full {
        let (read, depth) = (HumanCount(tally.read), HumanCount(tally.depth));
        note(format_args!("read {read} of {depth} messages: {why}"));
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
