//! Publishing votes to the queue, each confirmed by the broker: sample votes to try the service, or
//! the lines of a file to count them on the same path as all others.

mod batch;
mod check;
mod checkpoint;
mod format;
mod lines;
pub mod progress;
mod route;
mod run;
mod sample;

use std::io::{Cursor, SeekFrom};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::time::{Interval, interval};

pub use self::check::{Check, Rejected, check};
pub use self::checkpoint::{Checkpoint, CheckpointError};
pub use self::format::Unsuitable;
use self::lines::{Input, Line, Lines};
pub use self::lines::{LONGEST_LINE, Position};
use self::progress::Length;
pub use self::route::Route;
pub use self::run::publish;
pub use self::sample::{Expected, Samples, Shape};
use crate::model::ports::{BrokerError, OpenError};

/// The source of the messages.
pub enum Source {
    /// Sample votes.
    Samples(Box<Samples>),
    /// Lines of JSON, published as they are; blank lines are skipped.
    Lines {
        lines: Box<Lines>,
        /// For messages.
        name: String,
        /// In bytes, of a regular file.
        size: Option<u64>,
    },
}

impl Source {
    /// Opens a file at `position`, or standard input for `-`. Of this, and of a pipe, waits for the first
    /// line.
    ///
    /// # Errors
    /// [`PublishError::Read`] when the file can't be opened, [`PublishError::Unsuitable`] when it begins
    /// as a file in another format does.
    pub async fn lines(path: &Path, position: Position) -> Result<Self, PublishError> {
        let is_stdin = path.as_os_str() == "-";
        let name = if is_stdin { "standard input".to_owned() } else { path.display().to_string() };
        let unreadable = |source| PublishError::Read { path: name.clone(), source };
        let (mut input, size): (Input, _) = if is_stdin {
            (Box::new(tokio::io::stdin()), None)
        } else {
            let mut file = File::open(path).await.map_err(unreadable)?;
            let metadata = file.metadata().await.map_err(unreadable)?;
            if position.bytes > 0 {
                file.seek(SeekFrom::Start(position.bytes)).await.map_err(unreadable)?;
            }
            (Box::new(file), metadata.is_file().then_some(metadata.len()))
        };
        let head = format::head(&mut input).await.map_err(unreadable)?;
        // Later lines were checked with the first one.
        if position.bytes == 0 {
            format::check(&head, if is_stdin { "-" } else { &name })?;
        }
        let input = Box::new(Cursor::new(head).chain(input));
        Ok(Self::Lines { lines: Box::new(Lines::new(input, position)), name, size })
    }

    fn length(&self) -> Length {
        match self {
            Self::Samples(samples) => Length::Messages(samples.shape.count as u64),
            Self::Lines { lines, size: Some(all), .. } => {
                Length::Bytes { from: lines.position().bytes, all: *all }
            }
            Self::Lines { size: None, .. } => Length::Unknown,
        }
    }

    /// Returns how far it is read; a sample counts as a line.
    fn position(&self) -> Position {
        match self {
            Self::Samples(samples) => samples.at,
            Self::Lines { lines, .. } => lines.position(),
        }
    }

    /// Returns the next message, which ends at [`Source::position`].
    async fn next(&mut self) -> Result<Option<Vec<u8>>, PublishError> {
        let (lines, name) = match self {
            Self::Samples(samples) => return Ok(samples.next()),
            Self::Lines { lines, name, .. } => (lines, name),
        };
        match lines.next().await {
            Ok(Some(Line::Body(body))) => Ok(Some(body)),
            Ok(Some(Line::TooLong { number })) => {
                Err(PublishError::TooLong { path: name.clone(), number })
            }
            Ok(None) => Ok(None),
            Err(source) => Err(PublishError::Read { path: name.clone(), source }),
        }
    }
}

/// How it is published.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Messages a second; `None`: as fast as confirms come.
    pub rate: Option<u32>,
    /// How long to retry while the broker is away, since the last confirm.
    pub retry_for: Duration,
}

/// Returns an interval of so many ticks a second. The first is due at once, and ticks that were missed
/// follow without a pause.
pub(crate) fn ticks(per_second: u32) -> Interval {
    interval((Duration::from_secs(1) / per_second.max(1)).max(Duration::from_nanos(1)))
}

/// The outcome of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether the end was reached and all of it confirmed.
    pub complete: bool,
    /// Messages that the broker has confirmed: they will be counted or dead-lettered.
    pub confirmed: u64,
    /// Lines, blank lines and bytes of this run, up to which everything is confirmed; a sample vote is
    /// one line.
    pub lines: u64,
    pub blank: u64,
    pub bytes: u64,
    pub seconds: f64,
    /// Where an earlier run ended.
    pub resumed_from: Option<Position>,
    /// The result of counting the sample votes; absent for a file.
    pub expected: Option<Expected>,
}

impl Report {
    /// Confirmed messages per second.
    pub fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.confirmed as f64 / self.seconds } else { 0.0 }
    }
}

/// Publishing ended before everything was confirmed.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("cannot read {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("line {number} of {path} is longer than {LONGEST_LINE} bytes; a vote is one line")]
    TooLong { path: String, number: u64 },
    /// A connection at the start (later it is tried again), or a message at any time.
    #[error("{0}")]
    Refused(OpenError),
    /// A message was returned, or the queue was not there after a lost connection.
    #[error(
        "the queue was deleted meanwhile: the votes in it are lost, although the broker confirmed \
         them"
    )]
    QueueGone,
    /// A message that an exchange returned.
    #[error("the exchange {0:?} has no queue for a message: bind the queues of all cells to it")]
    Unroutable(String),
    #[error(transparent)]
    Unsuitable(#[from] Unsuitable),
    /// Never returned by [`publish`], which opens another connection.
    #[error(transparent)]
    Lost(BrokerError),
    #[error(
        "RabbitMQ has been unavailable for {} s, longer than --retry-for: {reason}",
        away.as_secs()
    )]
    GaveUp { away: Duration, reason: String },
    #[error("stopped by a signal")]
    Stopped,
    #[error("{0}")]
    Checkpoint(#[from] CheckpointError),
}

impl From<BrokerError> for PublishError {
    fn from(error: BrokerError) -> Self {
        match error {
            BrokerError::Returned => Self::QueueGone,
            BrokerError::Open(error) => Self::Refused(error),
            lost => Self::Lost(lost),
        }
    }
}
