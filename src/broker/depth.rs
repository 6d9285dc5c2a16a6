//! How many messages wait in the queues, asked on a connection of its own: a question that the
//! broker answers by closing the channel must not meet the one that consumes.

use std::time::Duration;

use lapin::Connection;
use lapin::types::FieldTable;
use tokio::time::Instant;

use super::connect;
use super::topology::{self, Standing};
use crate::config::RabbitMq as Config;
use crate::ports::OpenError;
use crate::retry::Backoff;
use crate::telemetry::QueueDepths;

/// AMQP's reply codes for a queue that can't be seen: no permission, no such queue, somebody's own.
const UNSEEN: [u16; 3] = [403, 404, 405];

/// Before a queue that was not seen is asked for again: soon at first, since a service that starts
/// may be about to create it; seldom in the end, since each such question is an error in the
/// broker's log.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Looks at the depths of the queue and of its dead-letter queue.
pub struct QueueWatch {
    config: Config,
    connection: Option<Connection>,
    /// The queue and the dead-letter queue.
    sights: [Sight; 2],
}

/// Whether a queue is worth a question.
struct Sight {
    pauses: Backoff,
    unseen_until: Option<Instant>,
    /// Whether it was there at the last look.
    seen: bool,
}

impl Sight {
    fn new() -> Self {
        Self { pauses: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE), unseen_until: None, seen: false }
    }

    fn is_due(&self) -> bool {
        self.unseen_until.is_none_or(|until| Instant::now() >= until)
    }

    fn looked(&mut self, seen: bool) {
        if seen {
            *self = Self { seen: true, ..Self::new() };
        } else {
            self.seen = false;
            self.unseen_until = Some(Instant::now() + self.pauses.next_delay());
        }
    }
}

impl QueueWatch {
    /// Connects on first use.
    pub fn new(config: Config) -> Self {
        Self { config, connection: None, sights: [Sight::new(), Sight::new()] }
    }

    /// The depths as they are now.
    ///
    /// # Errors
    /// [`OpenError`] when the broker does not tell; the next look connects anew.
    pub async fn look(&mut self) -> Result<QueueDepths, OpenError> {
        let connection = self.connected().await?;
        let queues = [&self.config.queue, &self.config.dead_letter_queue];
        let mut depths = [None; 2];
        for ((queue, depth), sight) in queues.into_iter().zip(&mut depths).zip(&mut self.sights) {
            if sight.is_due() {
                *depth = depth_of(&self.config, &connection, queue).await?;
                if depth.is_none() && sight.seen && *queue == self.config.dead_letter_queue {
                    restore(&self.config, &connection).await;
                }
                sight.looked(depth.is_some());
            }
        }
        self.connection = Some(connection);
        let [queue, dead_letters] = depths;
        Ok(QueueDepths { queue, dead_letters })
    }

    /// Looks at the queue alone, whenever it is called; all zero where there is none.
    ///
    /// # Errors
    /// As [`QueueWatch::look`].
    pub async fn standing(&mut self) -> Result<QueueStanding, OpenError> {
        let connection = self.connected().await?;
        let standing = topology::standing(&connection, &self.config.queue).await;
        let standing = standing.map_err(|error| connect::refused(&self.config, &error))?;
        self.connection = Some(connection);
        Ok(match standing {
            Standing::There { ready, consumers } => QueueStanding { ready, consumers },
            Standing::Missing | Standing::Exclusive => QueueStanding::default(),
        })
    }

    /// The connection, taken out: a look that fails or is dropped leaves no doubtful one behind.
    async fn connected(&mut self) -> Result<Connection, OpenError> {
        match self.connection.take() {
            Some(connection) if connection.status().connected() => Ok(connection),
            _ => connect::open(&self.config, "queue depths").await,
        }
    }
}

/// How the queues are found at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStanding {
    /// Messages ready in the queue.
    pub ready: u32,
    pub consumers: u32,
}

/// Creates the dead-letter queue anew when it was deleted: a queue's route that leads to it goes on,
/// and what is rejected until then vanishes.
async fn restore(config: &Config, connection: &Connection) {
    let queue = &config.dead_letter_queue;
    match topology::ensure_dead_letter_queue(connection, config).await {
        Ok(()) => tracing::error!(
            queue,
            "the dead-letter queue was deleted and has been created anew: dead letters that were in it, \
             and messages rejected meanwhile, are lost"
        ),
        Err(error) => {
            tracing::error!(
                queue,
                "the dead-letter queue can't be seen and can't be created anew: {error}; rejected \
                 messages may be lost"
            );
        }
    }
}

/// `None` for a queue that does not exist or is not ours to see.
async fn depth_of(
    config: &Config,
    connection: &Connection,
    queue: &str,
) -> Result<Option<u32>, OpenError> {
    let refused = |error: &lapin::Error| connect::refused(config, error);
    // One channel a question: a refusal closes it.
    let channel = connection.create_channel().await.map_err(|e| refused(&e))?;
    match channel.queue_declare(queue.into(), topology::PASSIVE, FieldTable::default()).await {
        Ok(declared) => {
            channel.close(200, "OK".into()).await.map_err(|e| refused(&e))?;
            Ok(Some(declared.message_count()))
        }
        Err(error) if connect::amqp_code(&error).is_some_and(|code| UNSEEN.contains(&code)) => {
            Ok(None)
        }
        Err(error) => Err(refused(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_is_not_there_is_asked_for_ever_more_seldom() {
        let mut sight = Sight::new();
        let mut questions = 0;
        for _ in 0..360 {
            if sight.is_due() {
                questions += 1;
                sight.looked(false);
            }
            tokio::time::advance(Duration::from_secs(10)).await;
        }
        assert!((12..=20).contains(&questions), "{questions} questions in an hour");
        sight.looked(true);
        assert!(sight.is_due(), "one that is seen is asked for each time");
        sight.looked(false);
        tokio::time::advance(FIRST_PAUSE).await;
        assert!(sight.is_due(), "and soon again when it goes");
    }
}
