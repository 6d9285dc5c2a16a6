//! One run: read, publish, confirm, and again after a lost connection.

use std::pin::pin;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar};
use tokio::time::{Instant, Interval, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::batch::Batch;
use super::lines::Position;
use super::progress::bar;
use super::{Checkpoint, Pace, PublishError, Report, Route, Source, ticks};
use crate::adapters::broker::{Confirm, Publisher, RabbitMq};
use crate::model::ports::BrokerError;
use crate::platform::retry::{Backoff, Jitter};

/// After this time a batch is confirmed, so that the checkpoint moves on at a low rate, too.
const MAX_AGE: Duration = Duration::from_secs(2);
/// Between two writes of the checkpoint.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// How long confirms that are on their way are waited for after a stop or an error.
const DRAIN: Duration = Duration::from_secs(2);
/// From the first byte to a channel in confirm mode, for each queue.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// Without an answer from the broker for so long, a warning is logged.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two tries to connect.
const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(15);

struct Run<'a> {
    rabbitmq: &'a RabbitMq,
    route: &'a Route,
    source: Source,
    rate: Option<Interval>,
    retry_for: Duration,
    checkpoint: Option<&'a Checkpoint>,
    stop: &'a CancellationToken,
    bar: ProgressBar,

    began: Instant,
    from: Position,
    batch: Batch,
    /// Set when nothing more is read: at the end, or on an error.
    ended: Option<Result<(), PublishError>>,

    connected: bool,
    away_since: Option<Instant>,
    backoff: Backoff,
    jitter: Jitter,
    saved_at: Instant,
}

/// Publishes all of `source` to `route`, with a progress bar on a terminal. When the connection is
/// lost it opens another one and publishes again what was not confirmed, which counts nothing
/// twice. A message that is returned, because its queue is gone, ends it. `checkpoint` is written every
/// second or two and at the end, however it ends; `stop` ends it once everything in flight is
/// confirmed, or after two seconds.
pub async fn publish(
    rabbitmq: &RabbitMq,
    route: &Route,
    source: Source,
    pace: Pace,
    checkpoint: Option<&Checkpoint>,
    stop: &CancellationToken,
) -> (Report, Result<(), PublishError>) {
    let (began, from) = (Instant::now(), source.position());
    let mut run = Run {
        rabbitmq,
        route,
        rate: pace.rate.map(ticks),
        retry_for: pace.retry_for,
        checkpoint,
        stop,
        bar: bar("publishing", source.length()),
        source,
        began,
        from,
        batch: Batch::new(from),
        ended: None,
        connected: false,
        away_since: None,
        backoff: Backoff::new(FIRST_DELAY, LONGEST_DELAY),
        jitter: Jitter::from_entropy(),
        saved_at: began,
    };
    let published = run.connections().await;
    run.bar.finish_and_clear();
    let published = match (published, run.save()) {
        (Ok(()), saved) => saved,
        (Err(error), saved) => {
            if let Err(unsaved) = saved {
                tracing::error!("{unsaved}");
            }
            Err(error)
        }
    };
    let complete = published.is_ok();
    let reached = run.batch.reached;
    let report = Report {
        complete,
        confirmed: run.confirmed(),
        lines: reached.lines - from.lines,
        blank: reached.blank - from.blank,
        bytes: reached.bytes - from.bytes,
        seconds: began.elapsed().as_secs_f64(),
        resumed_from: (from.bytes > 0).then_some(from),
        expected: match run.source {
            Source::Samples(samples) if complete => Some(samples.into_expected()),
            _ => None,
        },
    };
    (report, published)
}

impl Run<'_> {
    /// Opens one connection after the other, until everything is confirmed.
    async fn connections(&mut self) -> Result<(), PublishError> {
        loop {
            let ended = match self.connect().await {
                Ok(publisher) => self.work(publisher).await,
                Err(error) => Err(error),
            };
            match ended {
                Err(PublishError::Lost(lost)) => self.back_off(lost.to_string()).await?,
                ended => return ended,
            }
        }
    }

    async fn connect(&mut self) -> Result<Publisher, PublishError> {
        let queues = self.route.queues(self.rabbitmq.config());
        let limit = OPEN_TIMEOUT * u32::try_from(queues.len().max(1)).unwrap_or(u32::MAX);
        let opened = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(PublishError::Stopped),
            opened = timeout(limit, self.rabbitmq.publisher_to(&queues)) => opened,
        };
        let publisher = match opened {
            Ok(Ok(publisher)) => publisher,
            Ok(Err(error)) if error.is_fatal_at_start() && !self.connected => {
                return Err(PublishError::Refused(error));
            }
            Ok(Err(error)) => return Err(PublishError::Lost(error.into())),
            Err(_) => {
                let late = format!("no channel within {limit:?}");
                return Err(PublishError::Lost(BrokerError::Timeout(late)));
            }
        };
        if publisher.made_queue && self.connected {
            return Err(PublishError::QueueGone);
        }
        if publisher.made_queue && self.from.bytes > 0 {
            tracing::warn!(
                queue = %self.route,
                "the queue did not exist: votes of an earlier run are counted only if they were \
                 consumed before it was deleted"
            );
        }
        self.connected = true;
        Ok(publisher)
    }

    /// Publishes batch after batch on one connection, to the end of the source.
    async fn work(&mut self, publisher: Publisher) -> Result<(), PublishError> {
        if self.batch.messages.is_empty() {
            self.away_since = None;
        }
        while self.ended.is_none() || !self.batch.messages.is_empty() {
            let mut confirms = Vec::new();
            let sent = self.send_batch(&publisher, &mut confirms).await;
            let confirmed = self.confirm_batch(confirms, sent.err()).await;
            self.bar.set_position(match self.source {
                Source::Samples(_) => self.batch.reached.lines,
                Source::Lines { .. } => self.batch.reached.bytes,
            });
            let seconds = self.began.elapsed().as_secs_f64().max(1.0);
            let rate = HumanCount((self.confirmed() as f64 / seconds) as u64);
            self.bar.set_message(format!("{} votes, {rate}/s", HumanCount(self.confirmed())));
            confirmed?;
            if self.saved_at.elapsed() >= SAVE_EVERY {
                self.save_or_warn();
            }
        }
        if let Err(lost) = publisher.close().await {
            // Every message is confirmed by now.
            tracing::debug!("{lost}");
        }
        self.ended.take().unwrap_or(Ok(()))
    }

    /// Sends what an earlier connection left unconfirmed, and fills the batch from the source.
    async fn send_batch(
        &mut self,
        publisher: &Publisher,
        confirms: &mut Vec<(usize, Confirm)>,
    ) -> Result<(), PublishError> {
        for index in 0..self.batch.messages.len() {
            if !self.batch.messages[index].confirmed {
                confirms.push((index, self.send(publisher, index).await?));
            }
        }
        let mut deadline = Instant::now() + MAX_AGE;
        while self.ended.is_none() && !self.batch.is_full() {
            let (source, rate) = (&mut self.source, &mut self.rate);
            let next = async {
                if let Some(rate) = rate {
                    rate.tick().await;
                }
                source.next().await
            };
            let next = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(PublishError::Stopped),
                () = sleep_until(deadline), if !confirms.is_empty() => return Ok(()),
                next = next => next,
            };
            match next {
                Ok(Some(body)) => {
                    if confirms.is_empty() {
                        deadline = Instant::now() + MAX_AGE;
                    }
                    let index = self.batch.messages.len();
                    self.batch.push(body, self.source.position());
                    confirms.push((index, self.send(publisher, index).await?));
                }
                Ok(None) => self.ended = Some(Ok(())),
                Err(error) => self.ended = Some(Err(error)),
            }
        }
        Ok(())
    }

    async fn send(&self, publisher: &Publisher, index: usize) -> Result<Confirm, PublishError> {
        let body = &self.batch.messages[index].body;
        let (exchange, routing_key) = self.route.of(body);
        Ok(self.answered(publisher.publish_vote(exchange, &routing_key, body)).await??)
    }

    /// Waits for the confirms; after a stop or an error only as long as they may be on their way.
    async fn confirm_batch(
        &mut self,
        confirms: Vec<(usize, Confirm)>,
        mut failed: Option<PublishError>,
    ) -> Result<(), PublishError> {
        let (mut deadline, mut certain) = (Instant::now() + DRAIN, true);
        for (index, mut confirm) in confirms {
            let mut outcome = None;
            if failed.is_none() {
                match self.answered(&mut confirm).await {
                    Ok(answer) => outcome = Some(answer),
                    Err(stopped) => (failed, deadline) = (Some(stopped), Instant::now() + DRAIN),
                }
            }
            if outcome.is_none() {
                outcome = timeout_at(deadline, &mut confirm).await.ok();
            }
            match outcome.map(|outcome| outcome.map_err(|error| self.route.error(error))) {
                Some(Ok(())) => {
                    self.batch.messages[index].confirmed = true;
                    self.away_since = None;
                    self.backoff.reset();
                }
                Some(Err(error)) => {
                    let lost = matches!(error, PublishError::Lost(_));
                    certain &= lost;
                    // The confirms in flight say why the broker closed the channel.
                    if failed.is_none() || (!lost && matches!(failed, Some(PublishError::Lost(_))))
                    {
                        (failed, deadline) = (Some(error), Instant::now() + DRAIN);
                    }
                }
                None => certain = false,
            }
        }
        // After a lost connection nothing is in flight, and a return would have ended everything.
        if certain || matches!(failed, Some(PublishError::Lost(_))) {
            self.batch.take_confirmed();
        }
        if self.batch.messages.is_empty() && matches!(self.ended, Some(Ok(()))) {
            // After blank lines, if they are the last.
            self.batch.reached = self.source.position();
        }
        failed.map_or(Ok(()), Err)
    }

    /// Waits for the broker's answer, with a warning when it takes long.
    async fn answered<T>(&self, answer: impl Future<Output = T>) -> Result<T, PublishError> {
        let mut answer = pin!(answer);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(PublishError::Stopped),
                answer = timeout(CONFIRM_TIMEOUT, &mut answer) => match answer {
                    Ok(answer) => return Ok(answer),
                    Err(_) => self.bar.suspend(|| {
                        tracing::warn!(
                            "RabbitMQ has confirmed nothing for {CONFIRM_TIMEOUT:?}; is it blocked by a \
                             memory or disk alarm, or has the queue lost its majority?"
                        );
                    }),
                },
            }
        }
    }

    /// Messages that are certain to be in the queue.
    fn confirmed(&self) -> u64 {
        self.batch.reached.messages() - self.from.messages()
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
                unconfirmed = self.batch.unconfirmed(),
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

    fn save_or_warn(&mut self) {
        // The previous one is still there, and the last one has to succeed.
        if let Err(error) = self.save() {
            self.bar.suspend(|| tracing::warn!("{error}"));
        }
    }

    fn save(&mut self) -> Result<(), PublishError> {
        self.saved_at = Instant::now();
        if let Some(checkpoint) = self.checkpoint {
            // Blocks the only thread until it is on the disk: confirms can wait.
            checkpoint.save(self.batch.reached)?;
        }
        Ok(())
    }
}
