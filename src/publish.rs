//! Publishing votes to the queue, each confirmed by the broker: made-up ones to try the service
//! out, or the lines of a file to count them through the same path as all others.

mod sample;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use indicatif::{HumanCount, ProgressBar, ProgressState, ProgressStyle};
use serde::Serialize;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::time::Instant;

pub use self::sample::{Expected, Samples, Shape};
use crate::broker::{Confirm, Publisher};
use crate::ports::Lost;

/// Messages on their way to a confirm at a time.
const UNCONFIRMED_AT_MOST: usize = 2_000;
/// A file that cannot be told its number of lines shows a spinner.
const TICK: Duration = Duration::from_millis(100);

/// What is published.
pub enum Source {
    /// Made-up votes.
    Samples(Box<Samples>),
    /// Lines of JSON, published as they are; blank lines are passed over.
    Lines(Box<dyn AsyncRead + Unpin + Send>),
}

impl Source {
    /// The lines of a file, or of standard input for `-`.
    ///
    /// # Errors
    /// [`PublishError::Read`] when the file can't be opened.
    pub async fn lines(path: &PathBuf) -> Result<Self, PublishError> {
        if path.as_os_str() == "-" {
            return Ok(Self::Lines(Box::new(tokio::io::stdin())));
        }
        match File::open(path).await {
            Ok(file) => Ok(Self::Lines(Box::new(file))),
            Err(source) => Err(PublishError::Read { path: path.display().to_string(), source }),
        }
    }
}

/// What became of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Messages that the broker has confirmed: they will be counted or dead-lettered.
    pub confirmed: u64,
    pub seconds: f64,
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
        "{lost}; {confirmed} messages were confirmed before. Publish the same again (the same file, \
         or the same --seed): what was counted is not counted twice"
    )]
    Lost { confirmed: u64, lost: Lost },
}

/// Publishes all of `source` to `queue` at `rate` messages a second (`None`: as fast as confirms
/// come), with a progress bar on a terminal.
///
/// # Errors
/// [`PublishError`], with the number of messages confirmed before it.
pub async fn publish(
    publisher: &Publisher,
    queue: &str,
    source: Source,
    rate: Option<u32>,
) -> Result<Report, PublishError> {
    let mut run = Run {
        publisher,
        queue,
        pace: rate.map(Pace::new),
        unconfirmed: FuturesUnordered::new(),
        confirmed: 0,
        bar: bar(&source),
    };
    let began = Instant::now();
    let expected = match source {
        Source::Samples(mut samples) => {
            for body in samples.by_ref() {
                run.send(&body).await?;
            }
            Some(samples.into_expected())
        }
        Source::Lines(lines) => {
            let mut lines = BufReader::new(lines);
            let mut line = Vec::new();
            loop {
                line.clear();
                // Bytes and not text: whether they are UTF-8 is for the service to judge.
                let read = lines.read_until(b'\n', &mut line).await;
                let read = read.map_err(|source| PublishError::Read {
                    path: "the votes".to_owned(),
                    source,
                })?;
                if read == 0 {
                    break;
                }
                let body = line.trim_ascii();
                if !body.is_empty() {
                    run.send(body).await?;
                }
            }
            None
        }
    };
    while !run.unconfirmed.is_empty() {
        run.confirm_one().await?;
    }
    run.bar.finish_and_clear();
    Ok(Report { confirmed: run.confirmed, seconds: began.elapsed().as_secs_f64(), expected })
}

struct Run<'a> {
    publisher: &'a Publisher,
    queue: &'a str,
    pace: Option<Pace>,
    unconfirmed: FuturesUnordered<Confirm>,
    confirmed: u64,
    bar: ProgressBar,
}

impl Run<'_> {
    async fn send(&mut self, body: &[u8]) -> Result<(), PublishError> {
        if let Some(pace) = &mut self.pace {
            pace.wait().await;
        }
        while self.unconfirmed.len() >= UNCONFIRMED_AT_MOST {
            self.confirm_one().await?;
        }
        let sent = self.publisher.publish_vote(self.queue, body).await;
        self.unconfirmed.push(sent.map_err(|lost| self.lost(lost))?);
        Ok(())
    }

    async fn confirm_one(&mut self) -> Result<(), PublishError> {
        match self.unconfirmed.next().await {
            Some(Ok(())) => {
                self.confirmed += 1;
                self.bar.inc(1);
                Ok(())
            }
            Some(Err(lost)) => Err(self.lost(lost)),
            None => Ok(()),
        }
    }

    fn lost(&self, lost: Lost) -> PublishError {
        PublishError::Lost { confirmed: self.confirmed, lost }
    }
}

/// An even rate: message n is due n ÷ rate seconds after the first.
pub(crate) struct Pace {
    began: Instant,
    each: Duration,
    sent: u32,
}

impl Pace {
    pub(crate) fn new(rate: u32) -> Self {
        let each = Duration::from_secs(1) / rate.max(1);
        Self { began: Instant::now(), each, sent: 0 }
    }

    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep_until(self.began + self.each * self.sent).await;
        self.sent = self.sent.saturating_add(1);
    }
}

fn bar(source: &Source) -> ProgressBar {
    let (bar, template) = match source {
        Source::Samples(samples) => (
            ProgressBar::new(samples.len() as u64),
            "publishing {bar:40} {human_pos}/{human_len} ({rate}, {eta} left)",
        ),
        Source::Lines(_) => {
            (ProgressBar::new_spinner(), "publishing {spinner} {human_pos} ({rate})")
        }
    };
    bar.enable_steady_tick(TICK);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.with_key("rate", rate)),
        Err(_) => bar,
    }
}

/// indicatif's own `per_sec` has decimals, which flicker.
fn rate(state: &ProgressState, out: &mut dyn fmt::Write) {
    // Nobody is left to tell of a bar that cannot be drawn.
    write!(out, "{}/s", HumanCount(state.per_sec() as u64)).ok();
}
