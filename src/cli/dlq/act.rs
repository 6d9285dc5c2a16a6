//! `dlq replay` and `dlq purge`: first a look without touching, then the question, then the deed on
//! what the question was about.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use indicatif::HumanCount;
use vote_aggregator::broker::{DeadLetterQueue, Publisher, RabbitMq};
use vote_aggregator::config::Config;
use vote_aggregator::dlq::{
    self, Ended, Fingerprint, Outcome, Patience, Removed, Selection, Tally, Tried, Verdict,
    fingerprint,
};
use vote_aggregator::terminal::printable;

use super::super::{agreed, output};
use super::{Failed, Meant, bar, everything, limit, needs_yes, open, tell_copies, tell_end};

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator dlq replay --sqlstate 23514 --dry-run
  vote-aggregator dlq replay --reason refused --law law-001
  vote-aggregator dlq replay --reason delivery_limit --rate 100 --yes

Mend the cause first. Each message is published to the votes queue, and leaves the dead-letter queue
once the broker has confirmed it there; ended half-way, by whatever, a message is in one of the two
or in both. Replaying a vote that is counted changes nothing. Only what was in the dead-letter queue
at the beginning is taken, so that what comes back is not taken again; x-replays, a header, counts.

Where several match, one of each reason (of refused votes: of each SQLSTATE and law) is put back
first. The others follow once an instance has taken that one and it did not come back; if it comes
back, or is not settled within --trial-seconds, they stay dead letters and the exit code is 1. Many
votes that are refused at once would open the breaker and stop good votes. --no-trial skips this.")]
pub(super) struct Replay {
    #[command(flatten)]
    meant: Meant,
    /// Messages to put back at most; 0 for all that match
    #[arg(long, value_name = "N", default_value_t = 0)]
    max: u64,
    /// Leave messages that were put back this often before: they come back each time
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    max_replays: u32,
    /// Messages a second; as fast as the broker confirms when not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Also what is malformed by our own rules: the service will reject it again
    #[arg(long)]
    force: bool,
    /// Seconds to wait for what becomes of the one that is put back first
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    trial_seconds: u32,
    /// Put everything back at once, without trying one first
    #[arg(long, conflicts_with = "trial_seconds")]
    no_trial: bool,
    /// Say what would be put back, and put back nothing
    #[arg(long)]
    dry_run: bool,
    /// Put back without asking
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
which is on disk before the message leaves the queue. It holds who voted what: only its owner can
read it. To count from it what was valid after all:
  jq -r '.body // empty' removed.ndjson | vote-aggregator publish --file -")]
pub(super) struct Purge {
    #[command(flatten)]
    meant: Meant,
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

pub(super) async fn replay(config: &Config, arguments: &Replay) -> Result<bool, Failed> {
    let Replay { meant, max, max_replays, rate, force, trial_seconds, no_trial, dry_run, yes } =
        arguments;
    let votes = &config.rabbitmq.queue;
    let filter = meant.filter();
    let selection = Selection {
        max_replays: Some(*max_replays),
        malformed: *force,
        ..everything(config, &filter, limit(*max))
    };
    let deed = Deed { taken: "put back", max_replays: *max_replays };
    let look = Look { config, selection: &selection, hold: meant.hold };
    if *dry_run {
        return look.dry_run(&deed).await;
    }
    needs_yes(*yes, "replay")?;
    let question =
        |tally: &Tally| format!("Put {} messages back into {votes}?", HumanCount(tally.taken));
    let seen = match look.and_ask(*yes, &deed, question).await? {
        Answer::Go(seen) => seen,
        Answer::End(all) => return Ok(all),
    };
    let selection = Selection { agreed: seen.as_ref(), ..selection.clone() };

    let rabbitmq = RabbitMq::new(config.rabbitmq.clone());
    let publisher = rabbitmq.publisher().await?;
    let mut plan = dlq::Replay { selection, queue: votes, rate: *rate };
    let tried = match no_trial {
        true => None,
        false => Some(trial(config, &publisher, &plan, meant.hold, *trial_seconds).await?),
    };
    plan.selection.tried = tried.as_ref();
    let sent = tried.as_ref().map_or(0, |tried| tried.stayed_away + tried.came_back);
    plan.selection.max = plan.selection.max.map(|max| max.saturating_sub(sent));
    let mut queue = open(config, meant.hold).await?;
    let bar = bar("replaying", queue.depth());
    let progress = |tally: &Tally| bar.set_position(tally.read);
    let (mut tally, ended) = dlq::replay(&mut queue, &publisher, &plan, progress).await;
    if let Some(tried) = &tried {
        tally.matched += sent;
        tally.taken += tried.stayed_away;
        tally.held_back += tried.came_back;
    }
    let finished = finish(queue).await;
    bar.finish_and_clear();
    if let Err(lost) = publisher.close().await {
        // Every message is confirmed by now, or still in the dead-letter queue.
        tracing::debug!("{lost}");
    }
    tell_end(&tally);
    let told = output::report(&deed.done(&tally));
    ended?;
    finished?;
    told?;
    Ok(tally.taken == tally.matched && tally.ended != Ended::Full)
}

/// Puts back one letter of each cause, and says what became of it.
async fn trial(
    config: &Config,
    publisher: &Publisher,
    plan: &dlq::Replay<'_>,
    hold: u32,
    seconds: u32,
) -> Result<Tried, Failed> {
    let longest = Duration::from_secs(seconds.into());
    let patience = Patience::new(config, longest);
    let hold = usize::try_from(hold).unwrap_or(usize::MAX);
    let queue = plan.queue;
    let told = |cause: &String, outcome: Option<Outcome>| {
        let cause = printable(cause);
        output::note(format_args!(
            "{cause}: {}",
            match outcome {
                None => format!(
                    "put one back into {queue}, waiting up to {seconds} s for what becomes of it \
                     (--no-trial skips this)"
                ),
                Some(Outcome::StayedAway) =>
                    "it was taken and stayed away: the others follow".into(),
                Some(Outcome::CameBack) =>
                    "it came back, so its cause is still there: the others are left. Fix the cause \
                     that `dlq show` names first"
                        .into(),
                Some(Outcome::Unsettled) => format!(
                    "not known within {seconds} s, so the others are left. Is an instance consuming \
                     from {queue}, and is its backlog short? Run the command again then, or with a \
                     longer --trial-seconds"
                ),
            }
        ));
    };
    let tried = dlq::trial(&config.rabbitmq, publisher, plan, hold, patience, told).await?;
    Ok(tried)
}

pub(super) async fn purge(config: &Config, arguments: &Purge) -> Result<bool, Failed> {
    let Purge { meant, max, save, dry_run, yes } = arguments;
    let filter = meant.filter();
    let selection = everything(config, &filter, limit(*max));
    let deed = Deed { taken: "removed", max_replays: 0 };
    let look = Look { config, selection: &selection, hold: meant.hold };
    if *dry_run {
        return look.dry_run(&deed).await;
    }
    needs_yes(*yes, "purge")?;
    // Before the question; what comes in between is refused when the file is made.
    if let Some(path) = save.as_ref().filter(|path| path.exists()) {
        let told = format!("--save {}: there is such a file; name a new one", path.display());
        return Err(Failed::Usage(told));
    }
    let question = |tally: &Tally| {
        let valid = match tally.valid {
            0 => String::new(),
            valid => format!(", {} of them valid votes", HumanCount(valid)),
        };
        let kept = if save.is_some() { "" } else { " and keep no copy" };
        format!("Remove {} messages{valid}{kept}?", HumanCount(tally.taken))
    };
    let seen = match look.and_ask(*yes, &deed, question).await? {
        Answer::Go(seen) => seen,
        Answer::End(all) => return Ok(all),
    };
    let selection = Selection { agreed: seen.as_ref(), ..selection.clone() };

    let mut file = match save {
        Some(path) => Some(Removed::create(path).await?),
        None => None,
    };
    let mut queue = open(config, meant.hold).await?;
    let bar = bar("purging", queue.depth());
    let progress = |tally: &Tally| bar.set_position(tally.read);
    let (tally, ended) = dlq::purge(&mut queue, &selection, file.as_mut(), progress).await;
    let finished = finish(queue).await;
    bar.finish_and_clear();
    tell_end(&tally);
    let told = output::report(&deed.done(&tally));
    ended?;
    finished?;
    told?;
    Ok(tally.taken == tally.matched && tally.ended != Ended::Full)
}

async fn finish(queue: DeadLetterQueue) -> Result<(), Failed> {
    tell_copies(queue.finish().await?);
    Ok(())
}

enum Answer {
    /// On with these letters; `None`: nobody was asked, so with all.
    Go(Option<BTreeSet<Fingerprint>>),
    /// A no, or nothing to ask about; whether nothing matched at all.
    End(bool),
}

/// The look before the question.
struct Look<'a> {
    config: &'a Config,
    selection: &'a Selection<'a>,
    hold: u32,
}

impl Look<'_> {
    async fn through(&self) -> Result<(Tally, BTreeSet<Fingerprint>), Failed> {
        let mut queue = open(self.config, self.hold).await?;
        let bar = bar("looking", queue.depth());
        let mut seen = BTreeSet::new();
        let tally = dlq::scan(&mut queue, self.selection, |letter, _, verdict| {
            bar.set_position(letter.tag);
            if verdict == Verdict::Taken {
                seen.insert(fingerprint(letter));
            }
        });
        let tally = tally.await?;
        finish(queue).await?;
        bar.finish_and_clear();
        Ok((tally, seen))
    }

    async fn dry_run(&self, deed: &Deed) -> Result<bool, Failed> {
        let (tally, _) = self.through().await?;
        tell_end(&tally);
        output::print(deed.would(&tally))?;
        Ok(true)
    }

    async fn and_ask(
        &self,
        yes: bool,
        deed: &Deed,
        question: impl Fn(&Tally) -> String,
    ) -> Result<Answer, Failed> {
        if yes {
            return Ok(Answer::Go(None));
        }
        let (tally, seen) = self.through().await?;
        tell_end(&tally);
        output::note(deed.would(&tally).trim_end());
        if tally.taken == 0 {
            return Ok(Answer::End(tally.matched == 0));
        }
        if agreed(&question(&tally)) {
            return Ok(Answer::Go(Some(seen)));
        }
        output::note("nothing is changed");
        Ok(Answer::End(false))
    }
}

/// Words for what is done.
struct Deed {
    taken: &'static str,
    max_replays: u32,
}

impl Deed {
    fn would(&self, tally: &Tally) -> String {
        let rows = tally
            .reasons
            .iter()
            .map(|(label, count)| [printable(label), HumanCount(*count).to_string()]);
        let reasons = match tally.reasons.is_empty() {
            true => String::new(),
            false => format!("{}\n\n", output::table(["reason", "messages"], rows, [1])),
        };
        format!("{reasons}{}", self.outcome(tally, &format!("would be {}", self.taken)))
    }

    fn done(&self, tally: &Tally) -> String {
        self.outcome(tally, self.taken)
    }

    fn outcome(&self, tally: &Tally, taken: &str) -> String {
        let rows = [
            (taken.to_owned(), tally.taken),
            ("left: malformed, would come straight back".to_owned(), tally.malformed),
            (format!("left: put back {} times or more", self.max_replays), tally.too_often),
            ("left: one of its cause came back, or was not settled".to_owned(), tally.held_back),
            ("left: not confirmed by the broker".to_owned(), tally.failed),
        ];
        let told = rows.into_iter().enumerate().filter(|(index, (_, n))| *index == 0 || *n > 0);
        let rows = told.map(|(_, (what, count))| [what, HumanCount(count).to_string()]);
        format!("{}\n", output::table(["of the messages that match", "messages"], rows, [1]))
    }
}
