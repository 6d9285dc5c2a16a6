//! `board`: what is published, as files for a web server.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::{RangedU64ValueParser, TypedValueParser};
use time::OffsetDateTime;
use tokio::time::{MissedTickBehavior, interval, timeout};
use vote_aggregator::adapters::store::{Snapshots, StartError};
use vote_aggregator::operator::board::{Board, Folder, files};
use vote_aggregator::platform::config::Config;

use super::exit::{self, Outcome};
use super::signals::Signals;

/// How long one reading may take: withheld results are shown for no longer than this and --every.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator board --out /var/www/board    for the web server that serves this folder

It writes results.json and results.csv, and shows what `vote-aggregator publication` publishes, and
nothing before its time: log in as a role of the group vote_board, which can read nothing else, on the
server that takes writes. Each file is replaced as a whole, and only where it changes.

While PostgreSQL is away the last files stay; after 15 s they say that they are stale. A board that is
stopped, or starts while PostgreSQL is away, cannot mark them: compare checked_at with the time. After
a start the first reading is shown whatever --min-new-votes says. SIGINT or SIGTERM stops it.")]
pub(super) struct Arguments {
    /// The folder that a web server serves; nothing else may write into it
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seconds between two readings, 2 to 5
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = every())]
    every: Duration,
    /// While votes are counted, a law's numbers change by so many votes at least
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    min_new_votes: u64,
}

pub(super) async fn board(config: &Config, arguments: &Arguments) -> Outcome {
    let Arguments { out, every, min_new_votes } = arguments;
    let mut signals = Signals::listen()
        .map_err(|error| exit::cannot("listen for signals", error, exit::INTERNAL))?;
    let folder = Folder::open(out).map_err(|error| exit::cannot("write", error, exit::CONFIG))?;
    tokio::select! {
        ended = show(config, folder, Board::new(*min_new_votes), *every) => ended,
        _ = signals.next() => Ok(0),
    }
}

/// Reads and writes until an error that lasts, before anything was shown. Between two awaits it writes,
/// so that a stop leaves whole files.
async fn show(config: &Config, mut folder: Folder, mut board: Board, every: Duration) -> Outcome {
    let mut snapshots = Snapshots::new(config);
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut said, mut failing, mut full) = (None, false, false);
    loop {
        ticks.tick().await;
        let began = OffsetDateTime::now_utc();
        let failure = match timeout(READ_TIMEOUT, snapshots.read()).await {
            Ok(Ok(snapshot)) => {
                board.read(snapshot, OffsetDateTime::now_utc());
                None
            }
            Ok(Err(error @ StartError::Unavailable(_))) => Some(error.to_string()),
            // Later an operator may be fixing it.
            Ok(Err(error)) if board.shown().is_some() => Some(error.to_string()),
            Ok(Err(error)) => return Err(exit::without_postgres("read what is published")(error)),
            Err(_) => Some(format!("no answer from PostgreSQL within {READ_TIMEOUT:?}")),
        };
        let now = OffsetDateTime::now_utc();
        if let Some(failure) = &failure {
            board.failed(began, now);
            if !failing {
                tracing::warn!("what is published cannot be read: {failure}");
            }
        }
        failing = failure.is_some();
        let shown = board.shown().map(|shown| {
            let published = shown.published.as_ref();
            (published.map(|it| (it.id, it.state)), board.stale())
        });
        if shown != said {
            said = shown;
            let published = board.shown().and_then(|shown| shown.published.as_ref());
            let state = published.map_or("nothing was ever published", |it| it.state_name());
            let stale: Option<&str> = board.stale().map(Into::into);
            tracing::info!(publication = published.map(|it| it.id), stale, "shown: {state}");
        }
        if let Some(files) = files(&board, now) {
            let written = folder.write(&files);
            if let (Err(error), false) = (&written, full) {
                tracing::error!("the files from before stay: {error}");
            }
            full = written.is_err();
        }
    }
}

fn every() -> impl TypedValueParser<Value = Duration> {
    RangedU64ValueParser::<u64>::new().range(2..=5).map(Duration::from_secs)
}
