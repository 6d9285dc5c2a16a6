//! Publishing votes to the queue, each confirmed by the broker: made-up ones to try the service
//! out, or the lines of a file to count them through the same path as all others.

mod check;
mod checkpoint;
pub mod files;
mod format;
mod lines;
pub mod progress;
pub(crate) mod rate;
mod run;
mod sample;
mod window;

use std::io::Cursor;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::sync::CancellationToken;

pub use self::check::{Check, Rejected, check};
pub use self::checkpoint::{Checkpoint, CheckpointError};
pub use self::format::Unsuitable;
use self::lines::{Input, Line, Lines};
pub use self::lines::{LONGEST_LINE, Position};
use self::progress::Length;
use self::run::Run;
pub use self::sample::{Expected, Samples, Shape};
use crate::broker::RabbitMq;
use crate::ports::OpenError;

/// What is published.
pub enum Source {
    /// Made-up votes.
    Samples(Box<Samples>),
    /// Lines of JSON, published as they are; blank lines are passed over.
    Lines {
        lines: Box<Lines>,
        /// For messages.
        name: String,
        /// Bytes, of a file that is one.
        size: Option<u64>,
    },
}

impl Source {
    /// The lines of a file from `position` on, or of standard input for `-`: of this, and of a pipe,
    /// once the first one is there.
    ///
    /// # Errors
    /// [`PublishError::Read`] when the file can't be opened, [`PublishError::Unsuitable`] when it begins
    /// as a file in another format does.
    pub async fn lines(path: &Path, position: Position) -> Result<Self, PublishError> {
        let stdin = path.as_os_str() == "-";
        let name = if stdin { "standard input".to_owned() } else { path.display().to_string() };
        let opened = async {
            let (mut input, size): (Input, _) = match stdin {
                true => (Box::new(tokio::io::stdin()), None),
                false => {
                    let mut file = File::open(path).await?;
                    let metadata = file.metadata().await?;
                    if position.bytes > 0 {
                        file.seek(std::io::SeekFrom::Start(position.bytes)).await?;
                    }
                    (Box::new(file), metadata.is_file().then_some(metadata.len()))
                }
            };
            let head = format::head(&mut input).await?;
            Ok((head, input, size))
        };
        let (head, input, size) = match opened.await {
            Ok(opened) => opened,
            Err(source) => return Err(PublishError::Read { path: name, source }),
        };
        // What is behind the first lines was looked at with them.
        if position.bytes == 0 {
            format::check(&head, if stdin { "-" } else { &name })?;
        }
        let input = Box::new(Cursor::new(head).chain(input));
        Ok(Self::Lines { lines: Box::new(Lines::new(input, position)), name, size })
    }

    fn length(&self) -> Length {
        match self {
            Self::Samples(samples) => Length::Messages(samples.len() as u64),
            Self::Lines { lines, size: Some(all), .. } => {
                Length::Bytes { from: lines.position().bytes, all: *all }
            }
            Self::Lines { size: None, .. } => Length::Unknown,
        }
    }

    fn position(&self) -> Position {
        match self {
            Self::Samples(_) => Position::default(),
            Self::Lines { lines, .. } => lines.position(),
        }
    }

    /// The next message and where it ends; for made-up ones, `before` and one more line.
    async fn next(
        &mut self,
        before: Position,
    ) -> Result<Option<(Vec<u8>, Position)>, PublishError> {
        match self {
            Self::Samples(samples) => Ok(samples.next().map(|body| {
                let bytes = before.bytes + body.len() as u64;
                (body, Position { bytes, lines: before.lines + 1, blank: 0 })
            })),
            Self::Lines { lines, name, .. } => match lines.next().await {
                Ok(None) => Ok(None),
                Ok(Some(Line::Body { body, end })) => Ok(Some((body, end))),
                Ok(Some(Line::TooLong { number })) => {
                    Err(PublishError::TooLong { path: name.clone(), number })
                }
                Err(source) => Err(PublishError::Read { path: name.clone(), source }),
            },
        }
    }
}

/// How it is published.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Messages a second; `None`: as fast as confirms come.
    pub rate: Option<u32>,
    /// How long a broker that is away is tried for, since the last confirm.
    pub retry_for: Duration,
}

/// What became of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether the end was reached and all of it confirmed.
    pub complete: bool,
    /// Messages that the broker has confirmed: they will be counted or dead-lettered.
    pub confirmed: u64,
    /// Lines, blank lines and bytes of this run, up to which everything is confirmed; of made-up
    /// votes a message is a line.
    pub lines: u64,
    pub blank: u64,
    pub bytes: u64,
    pub seconds: f64,
    /// Where an earlier run had come to.
    pub resumed_from: Option<Position>,
    /// What a count of the made-up votes must come to; absent for a file.
    pub expected: Option<Expected>,
}

impl Report {
    /// Confirmed messages per second.
    pub fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.confirmed as f64 / self.seconds } else { 0.0 }
    }
}

/// Publishing came to an end before everything was confirmed.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("cannot read {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error(
        "line {number} of {path} goes on for more than {LONGEST_LINE} bytes; a vote is one line"
    )]
    TooLong { path: String, number: u64 },
    /// A connection, at the start only, since later on it is tried again; or a message, at any time.
    #[error("{0}")]
    Refused(OpenError),
    /// A message was returned, or the queue was not there after a lost connection.
    #[error(
        "the queue was deleted meanwhile: what it held then is lost, although the broker confirmed it"
    )]
    QueueGone,
    #[error(transparent)]
    Unsuitable(#[from] Unsuitable),
    #[error("RabbitMQ is away for {} s, longer than --retry-for: {reason}", away.as_secs())]
    GaveUp { away: Duration, reason: String },
    #[error("stopped by a signal")]
    Stopped,
    #[error("{0}")]
    Checkpoint(#[from] CheckpointError),
}

/// Publishes all of `source` to `queue`, with a progress bar on a terminal. When the connection is
/// lost it opens another one and publishes again what was not confirmed, which counts nothing
/// twice. A message that is returned, since its queue is gone, ends it. `checkpoint` is kept up to date, at least once a second and at the end, however it ends;
/// `stop` ends it once what is under way is confirmed, or is not for two seconds.
pub async fn publish(
    rabbitmq: &RabbitMq,
    queue: &str,
    source: Source,
    pace: Pace,
    checkpoint: Option<&Checkpoint>,
    stop: &CancellationToken,
) -> (Report, Result<(), PublishError>) {
    Run::new(rabbitmq, queue, source, pace, checkpoint, stop).publish().await
}
