//! One run: read, publish, confirm, and again after a lost connection.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use indicatif::{HumanCount, ProgressBar};
use tokio::time::{Instant, MissedTickBehavior, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::lines::Position;
use super::progress::{Length, bar};
use super::rate::Rate;
use super::window::{Number, Window};
use super::{Checkpoint, Pace, PublishError, Report, Source};
use crate::broker::{NotPublished, Publisher, RabbitMq};
use crate::ports::{Lost, OpenError};
use crate::retry::{Backoff, Jitter};

/// How often the checkpoint is written, and after how many confirms at the latest.
const SAVE_EVERY: Duration = Duration::from_secs(1);
const SAVE_AFTER: u64 = 10_000;
/// How long a stop waits for confirms that are on their way.
const DRAIN: Duration = Duration::from_secs(2);
/// From the first byte to a channel in confirm mode.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// A broker that confirms nothing for so long is told of.
const SILENCE: Duration = Duration::from_secs(30);
/// Between two tries to connect.
const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(15);

pub struct Run<'a> {
    rabbitmq: &'a RabbitMq,
    queue: &'a str,
    source: Source,
    rate: Option<Rate>,
    retry_for: Duration,
    checkpoint: Option<&'a Checkpoint>,
    stop: &'a CancellationToken,
    bar: ProgressBar,
    bytes_shown: bool,

    began: Instant,
    from: Position,
    /// Behind what was read last.
    read: Position,
    /// Nothing more is read: the end, or what ended it early.
    ended: Option<Result<(), PublishError>>,
    window: Window,
    /// Of this connection's messages.
    confirms: FuturesUnordered<BoxFuture<'static, (Number, Result<(), NotPublished>)>>,
    confirmed: u64,
    heard_at: Instant,

    connected: bool,
    away_since: Option<Instant>,
    backoff: Backoff,
    jitter: Jitter,
    saved_at: Instant,
    saved_confirmed: u64,
}

/// Why one connection's work is over.
enum Over {
    Lost(Lost),
    /// Another connection would not help.
    Ended(PublishError),
}

impl From<Lost> for Over {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}

impl From<NotPublished> for Over {
    fn from(not: NotPublished) -> Self {
        match not {
            NotPublished::Lost(lost) => Self::Lost(lost),
            NotPublished::Returned => Self::Ended(PublishError::QueueGone),
            NotPublished::Refused(error) => Self::Ended(PublishError::Refused(error)),
        }
    }
}

impl<'a> Run<'a> {
    pub fn new(
        rabbitmq: &'a RabbitMq,
        queue: &'a str,
        source: Source,
        pace: Pace,
        checkpoint: Option<&'a Checkpoint>,
        stop: &'a CancellationToken,
    ) -> Self {
        let (began, from) = (Instant::now(), source.position());
        let length = source.length();
        Self {
            rabbitmq,
            queue,
            rate: pace.rate.map(Rate::new),
            retry_for: pace.retry_for,
            checkpoint,
            stop,
            bar: bar("publishing", length),
            bytes_shown: !matches!(length, Length::Messages(_)),
            source,
            began,
            from,
            read: from,
            ended: None,
            window: Window::from(from),
            confirms: FuturesUnordered::new(),
            confirmed: 0,
            heard_at: began,
            connected: false,
            away_since: None,
            backoff: Backoff::new(FIRST_DELAY, LONGEST_DELAY),
            jitter: Jitter::from_entropy(),
            saved_at: began,
            saved_confirmed: 0,
        }
    }

    /// To its end, and what became of it.
    pub async fn publish(mut self) -> (Report, Result<(), PublishError>) {
        let published = self.connections().await;
        self.bar.finish_and_clear();
        let published = match (published, self.save()) {
            (Ok(()), saved) => saved,
            (Err(error), Ok(())) => Err(error),
            (Err(error), Err(unsaved)) => {
                tracing::error!("{unsaved}");
                Err(error)
            }
        };
        let (from, reached) = (self.from, self.window.reached());
        let complete = published.is_ok();
        let report = Report {
            complete,
            confirmed: self.confirmed,
            lines: reached.lines - from.lines,
            blank: reached.blank - from.blank,
            bytes: reached.bytes - from.bytes,
            seconds: self.began.elapsed().as_secs_f64(),
            resumed_from: (from.bytes > 0).then_some(from),
            expected: match self.source {
                Source::Samples(samples) if complete => Some(samples.into_expected()),
                _ => None,
            },
        };
        (report, published)
    }

    /// One connection after the other, until everything is confirmed.
    async fn connections(&mut self) -> Result<(), PublishError> {
        loop {
            let publisher = self.connect().await?;
            match self.work(&publisher).await {
                Ok(()) => {
                    if let Err(lost) = publisher.close().await {
                        // Every message is confirmed by now.
                        tracing::debug!("{lost}");
                    }
                    let ended = self.ended.take().unwrap_or(Ok(()));
                    if ended.is_ok() {
                        self.window.end_at(self.source_end());
                    }
                    return ended;
                }
                Err(Over::Ended(error)) => {
                    self.drain().await;
                    return Err(error);
                }
                Err(Over::Lost(lost)) => {
                    // Why the broker closed the channel is told to what was under way.
                    if let Some(error) = self.drain().await {
                        return Err(error);
                    }
                    // What is dropped here may be confirmed all the same; it is published again. Of what
                    // is confirmed none was returned, or that would have ended it.
                    self.confirms.clear();
                    let certain = self.window.none_was_returned();
                    self.count(certain);
                    self.back_off(lost.to_string()).await?;
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<Publisher, PublishError> {
        loop {
            let opened = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(PublishError::Stopped),
                opened = timeout(OPEN_TIMEOUT, self.rabbitmq.publisher()) => opened,
            };
            let error = match opened {
                Ok(Ok(publisher)) => {
                    if publisher.made_queue() && self.connected {
                        return Err(PublishError::QueueGone);
                    }
                    if publisher.made_queue() && self.from.bytes > 0 {
                        tracing::warn!(
                            queue = self.queue,
                            "there was no queue: what an earlier run published is counted only if it \
                             was taken from the queue before that was deleted"
                        );
                    }
                    self.connected = true;
                    self.heard_at = Instant::now();
                    return Ok(publisher);
                }
                Ok(Err(error)) => error,
                Err(_) => OpenError::Unavailable(format!("no channel within {OPEN_TIMEOUT:?}")),
            };
            if error.is_fatal_at_start() && !self.connected {
                return Err(PublishError::Refused(error));
            }
            self.back_off(error.to_string()).await?;
        }
    }

    /// Publishes and takes confirms on one connection.
    async fn work(&mut self, publisher: &Publisher) -> Result<(), Over> {
        if self.window.is_empty() {
            self.away_since = None;
        }
        for number in self.window.unconfirmed() {
            self.send(publisher, number).await?;
        }
        let mut ticks = tokio::time::interval(SAVE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.ended.is_some() && self.window.is_empty() {
                return Ok(());
            }
            let reads = self.ended.is_none() && self.window.has_room();
            let (source, rate, read) = (&mut self.source, &mut self.rate, self.read);
            let next = async {
                if let Some(rate) = rate {
                    rate.due().await;
                }
                source.next(read).await
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Over::Ended(PublishError::Stopped)),
                _ = ticks.tick() => self.look(),
                Some((number, confirm)) = self.confirms.next(), if !self.confirms.is_empty() => {
                    confirm?;
                    self.confirm(number);
                }
                next = next, if reads => match next {
                    Ok(Some((body, end))) => {
                        self.read = end;
                        if let Some(rate) = &mut self.rate {
                            rate.sent();
                        }
                        let number = self.window.push(body, end);
                        self.send(publisher, number).await?;
                    }
                    Ok(None) => self.ended = Some(Ok(())),
                    Err(error) => self.ended = Some(Err(error)),
                },
            }
        }
    }

    /// Sends one message; its confirm comes later.
    async fn send(&mut self, publisher: &Publisher, number: Number) -> Result<(), Over> {
        let Some(body) = self.window.body(number) else {
            return Ok(());
        };
        let mut sending = Box::pin(publisher.publish_vote(self.queue, body));
        let sent = loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Over::Ended(PublishError::Stopped)),
                sent = timeout(SILENCE, &mut sending) => match sent {
                    Ok(sent) => break sent?,
                    Err(_) => silence(&self.bar),
                },
            }
        };
        self.confirms.push(Box::pin(async move { (number, sent.await) }));
        Ok(())
    }

    fn confirm(&mut self, number: Number) {
        self.heard_at = Instant::now();
        self.away_since = None;
        self.backoff.reset();
        let certain = self.window.confirm(number);
        self.count(certain);
    }

    /// So many more messages are certain to be in the queue.
    fn count(&mut self, certain: u64) {
        self.confirmed += certain;
        if self.bytes_shown {
            self.bar.set_position(self.window.reached().bytes);
        } else {
            self.bar.inc(certain);
        }
        if self.confirmed - self.saved_confirmed >= SAVE_AFTER {
            self.save_or_warn();
        }
    }

    /// Once a second.
    fn look(&mut self) {
        if self.bytes_shown {
            let seconds = self.began.elapsed().as_secs_f64().max(1.0);
            let rate = HumanCount((self.confirmed as f64 / seconds) as u64);
            self.bar.set_message(format!("{} votes, {rate}/s", HumanCount(self.confirmed)));
        }
        if !self.window.is_empty() && self.heard_at.elapsed() >= SILENCE {
            silence(&self.bar);
            self.heard_at = Instant::now();
        }
        if self.saved_at.elapsed() >= SAVE_EVERY {
            self.save_or_warn();
        }
    }

    /// What is on its way is most likely there already: to know of it saves publishing it again. Gives
    /// what the broker said of it that ends everything, if anything.
    async fn drain(&mut self) -> Option<PublishError> {
        let (deadline, mut ended) = (Instant::now() + DRAIN, None);
        while let Ok(Some((number, confirm))) = timeout_at(deadline, self.confirms.next()).await {
            match confirm.map_err(Over::from) {
                Ok(()) => self.confirm(number),
                Err(Over::Ended(error)) => ended = Some(error),
                Err(Over::Lost(_)) => {}
            }
        }
        ended
    }

    /// Waits before the next try, or gives up.
    async fn back_off(&mut self, reason: String) -> Result<(), PublishError> {
        let away = self.away_since.get_or_insert_with(Instant::now).elapsed();
        self.save_or_warn();
        let Some(left) = self.retry_for.checked_sub(away).filter(|left| !left.is_zero()) else {
            return Err(PublishError::GaveUp { away, reason });
        };
        let delay = self.jitter.stretch(self.backoff.next_delay()).min(left);
        self.bar.suspend(|| {
            tracing::warn!(
                unconfirmed = self.window.unconfirmed().len(),
                "waiting for RabbitMQ, for {} s more at most: {reason}",
                left.as_secs()
            );
        });
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(PublishError::Stopped),
            () = tokio::time::sleep(delay) => Ok(()),
        }
    }

    fn source_end(&self) -> Position {
        match &self.source {
            Source::Samples(_) => self.read,
            Source::Lines { lines, .. } => lines.position(),
        }
    }

    fn save_or_warn(&mut self) {
        // The one before is still there; and the last one has to succeed.
        if let Err(error) = self.save() {
            self.bar.suspend(|| tracing::warn!("{error}"));
        }
    }

    fn save(&mut self) -> Result<(), PublishError> {
        (self.saved_at, self.saved_confirmed) = (Instant::now(), self.confirmed);
        if let Some(checkpoint) = self.checkpoint {
            // On the one thread there is: it waits for the disk, and confirms can wait for it.
            checkpoint.save(self.window.reached())?;
        }
        Ok(())
    }
}

fn silence(bar: &ProgressBar) {
    bar.suspend(|| {
        tracing::warn!(
            "RabbitMQ confirms nothing for {SILENCE:?}; is it blocked by a memory or disk alarm, or \
             the queue without a majority?"
        );
    });
}
