//! How many messages wait in the queues. On a connection of its own: the broker closes the channel of a
//! declare that it refuses, and the channel that consumes must stay open.

use std::time::Duration;

use lapin::Connection;
use tokio::time::Instant;

use super::connect::{self, amqp_code};
use super::topology::{self, QueueStatus};
use crate::model::ports::OpenError;
use crate::platform::config::RabbitMq as Config;
use crate::platform::retry::Backoff;
use crate::platform::telemetry::QueueDepths;

/// AMQP's reply codes for a queue that can't be seen: no permission, its node is down, another
/// connection's own.
const UNSEEN: [u16; 3] = [403, 404, 405];

/// Pause before a queue that was not seen is looked for again: short at first, since a service that
/// starts may be about to create it; long in the end, since each such declare is an error in the
/// broker's log.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Looks at the depths of the queue and of its dead-letter queue.
pub struct QueueWatch {
    config: Config,
    /// With the configuration of its address.
    connection: Option<(Connection, Config)>,
    /// The queue and the dead-letter queue.
    polls: [PollState; 2],
}

/// When to look for a queue.
struct PollState {
    pauses: Backoff,
    not_before: Instant,
    /// Whether it was there the last time.
    seen: bool,
}

impl PollState {
    fn new() -> Self {
        let pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        Self { pauses, not_before: Instant::now(), seen: false }
    }

    fn is_due(&self) -> bool {
        Instant::now() >= self.not_before
    }

    fn polled(&mut self, seen: bool) {
        self.seen = seen;
        if seen {
            self.pauses.reset();
        } else {
            self.not_before = Instant::now() + self.pauses.next_delay();
        }
    }
}

impl QueueWatch {
    /// Connects on first use.
    pub fn new(config: Config) -> Self {
        Self { config, connection: None, polls: [PollState::new(), PollState::new()] }
    }

    /// The depths as they are now.
    ///
    /// # Errors
    /// [`OpenError`] when the broker does not answer; the next look connects anew.
    pub async fn poll(&mut self) -> Result<QueueDepths, OpenError> {
        let (connection, config) = self.connected().await?;
        let queues = [&config.queue, &config.dead_letter_queue];
        let mut depths = [None; 2];
        for ((queue, depth), poll) in queues.into_iter().zip(&mut depths).zip(&mut self.polls) {
            if !poll.is_due() {
                continue;
            }
            *depth = match topology::status(&connection, queue).await {
                Ok(status) => status.map(|status| status.ready),
                Err(error) if amqp_code(&error).is_some_and(|code| UNSEEN.contains(&code)) => None,
                Err(error) => return Err(connect::refused(&config, &error)),
            };
            if depth.is_none() && poll.seen && *queue == config.dead_letter_queue {
                restore(&config, &connection).await;
            }
            poll.polled(depth.is_some());
        }
        self.connection = Some((connection, config));
        let [queue, dead_letters] = depths;
        Ok(QueueDepths { queue, dead_letters })
    }

    /// Looks at the queue alone, whenever it is called; all zero where there is none.
    ///
    /// # Errors
    /// As [`QueueWatch::poll`].
    pub async fn status(&mut self) -> Result<QueueStatus, OpenError> {
        let (connection, config) = self.connected().await?;
        let status = match topology::status(&connection, &config.queue).await {
            Ok(status) => status.unwrap_or_default(),
            Err(error) if amqp_code(&error) == Some(405) => QueueStatus::default(),
            Err(error) => return Err(connect::refused(&config, &error)),
        };
        self.connection = Some((connection, config));
        Ok(status)
    }

    /// The connection, taken out: a look that fails or is dropped leaves no doubtful one behind.
    async fn connected(&mut self) -> Result<(Connection, Config), OpenError> {
        match self.connection.take() {
            Some(kept) if kept.0.status().connected() => Ok(kept),
            _ => {
                let opened = connect::open(&self.config, "queue depths").await?;
                Ok((opened.connection, opened.config))
            }
        }
    }
}

/// Creates a deleted dead-letter queue anew: the queue's route still leads to it, and rejected messages
/// are dropped until it is there.
async fn restore(config: &Config, connection: &Connection) {
    let queue = &config.dead_letter_queue;
    match topology::ensure_dead_letter_queue(connection, config).await {
        Ok(()) => tracing::error!(
            queue,
            "the dead-letter queue was deleted and has been recreated: its dead letters, and \
             messages rejected meanwhile, are lost"
        ),
        Err(error) => {
            tracing::error!(
                queue,
                "the dead-letter queue is not accessible and cannot be recreated: {error}; rejected \
                 messages may be lost"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_missing_queue_is_looked_for_less_and_less_often() {
        let mut poll = PollState::new();
        let mut polls = 0;
        for _ in 0..360 {
            if poll.is_due() {
                polls += 1;
                poll.polled(false);
            }
            tokio::time::advance(Duration::from_secs(10)).await;
        }
        assert!((12..=20).contains(&polls), "{polls} polls in an hour");
        tokio::time::advance(LONGEST_PAUSE).await;
        poll.polled(true);
        assert!(poll.is_due(), "one that is seen is polled each time");
        poll.polled(false);
        tokio::time::advance(FIRST_PAUSE).await;
        assert!(poll.is_due(), "and soon again when it goes");
    }
}
