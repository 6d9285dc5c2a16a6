//! `seal`: a tamper-evident log of the votes that are counted.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use clap::builder::{RangedU64ValueParser, TypedValueParser};
use clap::{Args, Subcommand};
use vote_aggregator::adapters::store::SealReader;
use vote_aggregator::operator::seal::{self, Log, Monitor, Pace, RoundError, SealError};
use vote_aggregator::platform::config::Config;
use vote_aggregator::platform::http::{self, Purpose};

use super::exit::{self, Exit, Outcome};
use super::listen::bind;
use super::output;
use super::signals::Signals;

/// A round of a full statement's votes takes seconds; one that takes longer than this hangs.
const STALLED_AFTER: Duration = Duration::from_secs(900);

#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  vote-aggregator seal init --origin votes.example/2026-11-29 --dir /var/lib/seal/log
  vote-aggregator seal --dir /var/lib/seal/log --admin 127.0.0.1:8003
  vote-aggregator seal --dir /var/lib/seal/log --once

It reads the votes that are counted, as a role of the group vote_sealer, appends an entry for each to the
log in DIR, and signs a checkpoint of every round. DIR/public is what a web server may publish at once: it
shows how many votes there are and nothing else. Run it on another host than PostgreSQL, whose superuser
it is a protection against. DIR/key and DIR/secret stay there; DIR is never restored from a backup.

What is not sealed yet is not protected: --min-rows keeps a round from showing a single vote, and waits
for that. SIGINT or SIGTERM stops it at any time; the next start goes on where it was."
)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArguments,
}

#[derive(Subcommand)]
enum Command {
    /// Begin a log: its keys, its secret, and the first checkpoint
    Init(InitArguments),
}

#[derive(Args)]
struct RunArguments {
    /// Directory of the log
    #[arg(long, value_name = "DIR", required = true)]
    dir: Option<PathBuf>,
    /// Seal what is there, and end
    #[arg(long)]
    once: bool,
    /// Seconds between two rounds
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = interval())]
    interval: Duration,
    /// Votes of a round, at least: the time of a smaller one could show how a citizen voted
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    min_rows: u64,
    /// Votes a second, at most, on a host that also counts; without it, as fast as it can
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pace: Option<u32>,
    /// Address of /metrics, /livez and /readyz
    #[arg(long, value_name = "ADDRESS", conflicts_with = "once")]
    admin: Option<SocketAddr>,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator seal init --origin votes.example/2026-11-29 --dir /var/lib/seal/log
  vote-aggregator seal init --origin votes.example/rehearsal --dir /tmp/log --existing-rows

Before the first vote: the opening entry says how many rows were there already, which should be none. Give
the printed key to everybody who is to verify the log, in a policy file (docs/log.md), now and not later.")]
struct InitArguments {
    /// Name of the log and of its key, never used before: a domain of the authority and the election
    #[arg(long, value_name = "NAME")]
    origin: String,
    /// Directory to create; its parent exists
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Votes are counted already: seal them as they are now
    #[arg(long)]
    existing_rows: bool,
}

pub(super) async fn seal(config: &Config, arguments: &Arguments) -> Outcome {
    match &arguments.command {
        Some(Command::Init(arguments)) => init(config, arguments).await,
        None => run(config, &arguments.run).await,
    }
}

async fn init(config: &Config, arguments: &InitArguments) -> Outcome {
    let InitArguments { origin, dir, existing_rows } = arguments;
    let opened = seal::begin(&mut SealReader::new(config, None)).await.map_err(failed)?;
    if opened.counted > 0 && !existing_rows {
        output::note(format_args!(
            "{} votes are counted already, and nothing shows what became of them so far: begin a log before the \
             first vote. To seal them as they are now, add --existing-rows; the opening entry will say how many \
             they were",
            opened.counted
        ));
        return Err(Exit(exit::FINDINGS));
    }
    let vkey = Log::init(dir, origin, &opened).map_err(|error| failed(error.into()))?;
    let dir = dir.display();
    output::report(&format!(
        "log {origin}, in {dir}: 1 entry, {} rows to seal first\n\nlog {vkey}\nquorum none\n\n\
         The two lines above are a policy for `vote-aggregator verify`: give them to all who are to verify.\n\
         {dir}/key and {dir}/secret exist nowhere else. Keep them off the database's host.\n",
        opened.rows
    ))?;
    Ok(0)
}

async fn run(config: &Config, arguments: &RunArguments) -> Outcome {
    let RunArguments { dir, once, interval, min_rows, pace, admin } = arguments;
    let Some(dir) = dir else { unreachable!("clap requires it") };
    let mut signals = Signals::listen()
        .map_err(|error| exit::cannot("listen for signals", error, exit::INTERNAL))?;
    let monitor = Monitor::new(STALLED_AFTER)
        .map_err(|error| exit::cannot("start", error, exit::INTERNAL))?;
    let directory = |error: SealError| failed(error.into());
    let mut log = Log::open(dir).map_err(directory)?;
    log.publish_again().map_err(directory)?;
    let origin = log.state().origin.clone();
    let mut reader = SealReader::new(config, Some(&origin));
    if *once {
        return tokio::select! {
            ended = seal::once(&mut log, &mut reader, *min_rows) => {
                let (round, findings) = ended.map_err(failed)?;
                summary(&log, round.left, round.drift, &findings)
            }
            received = signals.next() => Err(Exit(received.code)),
        };
    }
    let admin = admin.map(|address| {
        const ADMIN: Purpose = Purpose { name: "metrics and health", advice: "Set --admin" };
        bind(address, ADMIN)
    });
    let admin = admin.transpose()?;
    let serving = async {
        match admin {
            Some(listener) => http::serve_router(listener, monitor.router()).await,
            None => std::future::pending().await,
        }
    };
    let pace = Pace { interval: *interval, min_rows: *min_rows, rows_per_second: *pace };
    tokio::select! {
        ended = seal::run(&mut log, &mut reader, pace, &monitor) => match ended {
            Err(error) => Err(failed(error)),
        },
        () = serving => Ok(0),
        _ = signals.next() => Ok(0),
    }
}

/// What `--once` ends with: 1 if the audit is not as it was counted.
fn summary(log: &Log, unsealed: u64, drift: i64, findings: &[String]) -> Outcome {
    let (state, mut lines) = (log.state(), Vec::new());
    let (tip, root) = (state.tip, BASE64_STANDARD.encode(state.tip.root));
    lines.push(format!("log {}: {} entries, root {root}", state.origin, tip.size));
    lines.push(format!("votes sealed: {}; not sealed yet: {unsealed}", tip.votes));
    if drift != 0 {
        lines.push(format!(
            "wrong: the totals have {drift:+} votes against the log and count_batch"
        ));
    }
    lines.extend(findings.iter().map(|finding| format!("wrong: {finding}")));
    let code = if lines.len() == 2 { 0 } else { exit::FINDINGS };
    output::answer(format!("{}\n", lines.join("\n")), code)
}

fn failed(error: RoundError) -> Exit {
    let code = match &error {
        RoundError::Store(error) => exit::of_postgres(error),
        RoundError::Locked | RoundError::Lineage(_) => exit::FINDINGS,
        RoundError::Seal(SealError::Refused(_) | SealError::Busy(_)) => exit::FINDINGS,
        RoundError::Seal(SealError::Unusable { .. }) => exit::CONFIG,
        RoundError::Seal(SealError::Io { .. }) => exit::INTERNAL,
    };
    exit::cannot("seal", error, code)
}

fn interval() -> impl TypedValueParser<Value = Duration> {
    RangedU64ValueParser::<u64>::new().range(1..=3_600).map(Duration::from_secs)
}
