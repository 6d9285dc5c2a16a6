//! `dlq replay` and `dlq purge`: a reading without changes, the question, then the work on the messages
//! that the question was about.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use indicatif::{HumanCount, ProgressBar};
use vote_aggregator::adapters::broker::{DeadLetterQueue, RabbitMq, Republisher};
use vote_aggregator::operator::dlq::{
    self, Ended, Examined, Fingerprint, Outcome, PurgeArchive, PurgeError, Reader, Selection,
    Tally, Target, TrialResults, TrialTimeouts, fingerprint,
};
use vote_aggregator::platform::config::Config;
use vote_aggregator::platform::terminal::printable;

use super::super::exit::{self, Exit};
use super::super::output;
use super::{Failed, Filters, finish, limit, open, read};

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator dlq replay --sqlstate 23514 --dry-run
  vote-aggregator dlq replay --reason refused --law law-001
  vote-aggregator dlq replay --reason delivery_limit --rate 100 --yes

Fix the cause first. Each message is published to the votes queue, and leaves the dead-letter queue
once the broker has confirmed it there; if the command is killed half-way, a message is in one of
the two or in both. Replaying a vote that is counted changes nothing. Only what was in the
dead-letter queue at the beginning is replayed, so that what comes back is not replayed again; a
header, x-replays, counts.

Where several match, one of each reason (of refused votes: of each SQLSTATE and law) is replayed
first. The others follow once an instance has consumed it and it did not come back; if it comes
back, or is not settled within --trial-seconds, they stay dead letters and the exit code is 1. Many
votes that are refused at once would open the breaker and stop good votes. --no-trial skips this.")]
pub(super) struct Replay {
    #[command(flatten)]
    filters: Filters,
    /// Messages to replay at most; 0 for all that match
    #[arg(long, value_name = "N", default_value_t = 0)]
    max: u64,
    /// Skip messages that were replayed this often before: they come back each time
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    max_replays: u32,
    /// Messages a second; as fast as the broker confirms when not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Also malformed messages: the service will reject them again
    #[arg(long)]
    force: bool,
    /// Seconds to wait for the outcome of the one that is replayed first
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    trial_seconds: u32,
    /// Replay everything at once, without trying one first
    #[arg(long, conflicts_with = "trial_seconds")]
    no_trial: bool,
    /// Say what would be replayed, and replay nothing
    #[arg(long)]
    dry_run: bool,
    /// Replay without asking
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator dlq purge --reason malformed --dry-run
  vote-aggregator dlq purge --reason malformed --save removed.ndjson
  vote-aggregator dlq purge --hash 4f2a... --save removed.ndjson --yes

--save writes each message with its body, headers and reason to a new file, one JSON object a line,
which is on disk before the message leaves the queue. It says who voted what: only its owner can
read it. To count from it what was valid after all:
  jq -r '.body // empty' removed.ndjson | vote-aggregator publish --file -")]
pub(super) struct Purge {
    #[command(flatten)]
    filters: Filters,
    /// Messages to remove at most; 0 for all that match
    #[arg(long, value_name = "N", default_value_t = 0)]
    max: u64,
    /// Write what is removed to this file first; it must not exist
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Say what would be removed, and remove nothing
    #[arg(long, conflicts_with = "save")]
    dry_run: bool,
    /// Remove without asking
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
}

pub(super) async fn replay(config: &Config, arguments: &Replay) -> Result<u8, Failed> {
    let Replay { filters, max, max_replays, rate, force, trial_seconds, no_trial, dry_run, yes } =
        arguments;
    let votes = &config.rabbitmq.queue;
    let filter = filters.filter();
    let mut selection = Selection {
        max_replays: Some(*max_replays),
        malformed: *force,
        max: limit(*max),
        ..Selection::of(config, &filter)
    };
    let work =
        Work { config, filters, command: "replay", done: "put back", max_replays: *max_replays };
    let question =
        |tally: &Tally| format!("Put {} messages back into {votes}?", HumanCount(tally.taken));
    let agreed = work.preview(&selection, *dry_run, *yes, question).await?;
    selection.agreed = agreed.as_ref();

    let rabbitmq = RabbitMq::new(config.rabbitmq.clone());
    let mut republisher = Republisher::new(rabbitmq.publisher().await?);
    let mut tried = TrialResults::default();
    if !no_trial {
        let timeouts = TrialTimeouts::new(config, Duration::from_secs((*trial_seconds).into()));
        let report = |cause: &String, outcome: Option<Outcome>| {
            output::note(trial_note(cause, outcome, votes, *trial_seconds));
        };
        tried = dlq::trial(config, &mut republisher, &selection, filters.hold, timeouts, report)
            .await?;
        selection.trial = Some(&tried);
    }
    selection.max = selection.max.map(|max| max.saturating_sub(tried.sent()));
    let (mut queue, bar) = open(config, filters.hold, "replaying").await?;
    let mut reader = Reader::new(&mut queue, &selection, &bar);
    let target = Target { queue: votes, rate: *rate };
    let ended = dlq::replay(&mut reader, &mut republisher, target).await;
    let mut tally = reader.tally;
    tally.matched += tried.sent();
    tally.taken += tried.sent() - tried.came_back();
    tally.held_back += tried.came_back();
    republisher.close().await;
    work.conclude(queue, &bar, &tally, ended).await
}

fn trial_note(cause: &str, outcome: Option<Outcome>, queue: &str, seconds: u32) -> String {
    let cause = printable(cause);
    match outcome {
        None => format!(
            "{cause}: replayed one into {queue}, waiting up to {seconds} s for its outcome (--no-trial \
             skips this)"
        ),
        Some(Outcome::StayedAway) => {
            format!("{cause}: it was consumed and did not come back: the others follow")
        }
        Some(Outcome::CameBack) => format!(
            "{cause}: it came back, so its cause is not fixed: the others stay dead letters. First \
             fix the cause that `dlq show` names"
        ),
        Some(Outcome::Unsettled) => format!(
            "{cause}: no outcome within {seconds} s, so the others stay dead letters. Is an \
             instance consuming from {queue}, and is its backlog short? Run the command again \
             then, or with a longer --trial-seconds"
        ),
    }
}

pub(super) async fn purge(config: &Config, arguments: &Purge) -> Result<u8, Failed> {
    let Purge { filters, max, save, dry_run, yes } = arguments;
    let filter = filters.filter();
    let mut selection = Selection { max: limit(*max), ..Selection::of(config, &filter) };
    let work = Work { config, filters, command: "purge", done: "removed", max_replays: 0 };
    // Before the question; a file that appears after it is refused when the archive is created.
    if let Some(path) = save.as_ref().filter(|path| path.exists()) {
        let problem = format!("--save {}: there is such a file; name a new one", path.display());
        return Err(output::usage(problem).into());
    }
    let question = |tally: &Tally| {
        let valid = match tally.valid {
            0 => String::new(),
            valid => format!(", {} of them valid votes", HumanCount(valid)),
        };
        let kept = if save.is_some() { "" } else { " and keep no copy" };
        format!("Remove {} messages{valid}{kept}?", HumanCount(tally.taken))
    };
    let agreed = work.preview(&selection, *dry_run, *yes, question).await?;
    selection.agreed = agreed.as_ref();

    let mut archive = match save {
        Some(path) => Some(PurgeArchive::create(path).await.map_err(PurgeError::from)?),
        None => None,
    };
    let (mut queue, bar) = open(config, filters.hold, "purging").await?;
    let mut reader = Reader::new(&mut queue, &selection, &bar);
    let ended = dlq::purge(&mut reader, archive.as_mut()).await;
    let tally = reader.tally;
    work.conclude(queue, &bar, &tally, ended).await
}

/// What a replay and a purge have in common.
struct Work<'a> {
    config: &'a Config,
    filters: &'a Filters,
    command: &'static str,
    /// What happens to a message.
    done: &'static str,
    max_replays: u32,
}

impl Work<'_> {
    /// Reads without changes, shows what would be done, and asks. Returns the messages that the operator
    /// agreed to; `None` if all that are selected.
    async fn preview(
        &self,
        selection: &Selection<'_>,
        dry_run: bool,
        yes: bool,
        question: impl Fn(&Tally) -> String,
    ) -> Result<Option<BTreeSet<Fingerprint>>, Failed> {
        if yes {
            return Ok(None);
        }
        if !dry_run {
            output::need_terminal(&format!(
                "{} asks before it does anything, and standard input is not a terminal: add --yes, \
                 or --dry-run",
                self.command
            ))?;
        }
        let mut seen = BTreeSet::new();
        let each = |message: &_, examined: Examined| {
            seen.insert(fingerprint(message, examined.replays));
        };
        let tally = read(self.config, self.filters.hold, selection, each).await?;
        let reasons = tally.reasons.iter();
        let reasons =
            reasons.map(|(label, count)| [printable(label), HumanCount(*count).to_string()]);
        let mut preview = self.outcome(&tally, &format!("would be {}", self.done));
        if !tally.reasons.is_empty() {
            let reasons = output::table(["reason", "messages"], reasons, [1]);
            preview = format!("{reasons}\n\n{preview}");
        }
        if dry_run {
            output::print(preview)?;
            return Err(Exit(0).into());
        }
        output::note(preview.trim_end());
        if tally.taken == 0 {
            return Err(Exit(if tally.matched == 0 { 0 } else { exit::FINDINGS }).into());
        }
        output::ask(&question(&tally))?;
        Ok(Some(seen))
    }

    /// Requeues the rest and reports. Returns 0 if everything that matches is done.
    async fn conclude(
        &self,
        queue: DeadLetterQueue,
        bar: &ProgressBar,
        tally: &Tally,
        ended: Result<(), impl Into<Failed>>,
    ) -> Result<u8, Failed> {
        let finished = finish(queue, bar, tally).await;
        let reported = output::report(&self.outcome(tally, self.done));
        ended.map_err(Into::into)?;
        finished?;
        reported?;
        let complete = tally.taken == tally.matched && tally.ended != Ended::Full;
        Ok(if complete { 0 } else { exit::FINDINGS })
    }

    fn outcome(&self, tally: &Tally, done: &str) -> String {
        let too_often = format!("skipped: replayed {} times or more", self.max_replays);
        let left = [
            ("skipped: malformed, would be dead-lettered again", tally.malformed),
            (&too_often, tally.too_often),
            ("skipped: another one with its cause came back, or was not settled", tally.held_back),
            ("not done: not confirmed by the broker", tally.failed),
        ];
        let left = left.into_iter().filter(|(_, count)| *count > 0);
        let rows = [(done, tally.taken)].into_iter().chain(left);
        let rows = rows.map(|(what, count)| [what.to_owned(), HumanCount(count).to_string()]);
        format!("{}\n", output::table(["of the messages that match", "messages"], rows, [1]))
    }
}
