//! Reads what is published, again and again, and puts the files where they belong.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::{MissedTickBehavior, interval, timeout};
use vote_aggregator::adapters::store::{Snapshots, StartError};
use vote_aggregator::model::publication::Published;
use vote_aggregator::operator::board::{Board, Folder, Monitor, Public, Site, Stale, files};
use vote_aggregator::platform::config::Config;

use crate::cli::exit::{self, Outcome};

/// How long one reading may take: withheld results are shown for no longer than this and --every.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// A board at work.
pub(super) struct Show {
    pub site: Site,
    pub board: Board,
    pub target: Target,
    pub monitor: Monitor,
    pub every: Duration,
}

/// Where the files go.
pub(super) enum Target {
    Folder(Folder),
    Port(Public),
}

impl Show {
    /// Goes on until an error that lasts, before anything was shown. Between two awaits it writes, so that
    /// a stop leaves whole files.
    pub async fn run(mut self, config: &Config) -> Outcome {
        let mut snapshots = Snapshots::new(config);
        let mut ticks = interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut logged, mut failing) = (None, false);
        loop {
            ticks.tick().await;
            let began = OffsetDateTime::now_utc();
            let failure = match timeout(READ_TIMEOUT, snapshots.read()).await {
                Ok(Ok(snapshot)) => {
                    let ended = OffsetDateTime::now_utc();
                    self.monitor.read(&snapshot, began, ended);
                    self.board.read(snapshot, ended);
                    None
                }
                Ok(Err(error @ StartError::Unavailable(_))) => Some(error.to_string()),
                // Later an operator may be fixing it.
                Ok(Err(error)) if self.board.shown().is_some() => Some(error.to_string()),
                Ok(Err(error)) => {
                    return Err(exit::without_postgres("read what is published")(error));
                }
                Err(_) => Some(format!("no answer from PostgreSQL within {READ_TIMEOUT:?}")),
            };
            let now = OffsetDateTime::now_utc();
            if let Some(failure) = &failure {
                self.board.failed(began, now);
                self.monitor.read_failed(failure);
                if !failing {
                    tracing::warn!("what is published cannot be read: {failure}");
                }
            }
            failing = failure.is_some();
            let summary = self.summary();
            if let Some(summary) = summary.filter(|it| logged != Some(*it)) {
                summary.log();
                logged = Some(summary);
            }
            self.publish(now);
            self.monitor.shown(&self.board);
        }
    }

    fn publish(&mut self, now: OffsetDateTime) {
        let files = files(&self.board, &self.site, now);
        if files.is_empty() {
            return;
        }
        let published = self.board.shown().and_then(|shown| shown.published.as_ref());
        let written = match &mut self.target {
            Target::Folder(folder) => {
                folder.write(&files, published.is_some_and(Published::is_public))
            }
            Target::Port(public) => {
                public.show(files, published.map(|it| it.not_before));
                Ok(())
            }
        };
        let failure = written.err().map(|error| error.to_string());
        if let Some(failure) = self.monitor.written(failure) {
            tracing::error!(
                "a file cannot be written: {failure}; the one from before stays, or is removed if nothing is public"
            );
        }
    }

    fn summary(&self) -> Option<Summary> {
        let published = self.board.shown()?.published.as_ref();
        Some(Summary {
            publication: published.map(|it| it.id),
            state: published.map_or("nothing was ever published", Published::state_name),
            stale: self.board.stale(),
            unlisted: self.site.unlisted(&self.board),
        })
    }
}

/// What is worth a log line when it changes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Summary {
    publication: Option<i64>,
    state: &'static str,
    stale: Option<Stale>,
    unlisted: usize,
}

impl Summary {
    fn log(self) {
        let Self { publication, state, stale, unlisted } = self;
        let stale: Option<&str> = stale.map(Into::into);
        tracing::info!(publication, stale, "shown: {state}");
        if unlisted > 0 {
            tracing::warn!(
                unlisted,
                "laws with votes that --laws does not list: they are not shown by name. Add them, or correct \
                 their ids"
            );
        }
    }
}
