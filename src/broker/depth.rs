//! How many messages wait in the queues, asked on a connection of its own: a question that the
//! broker answers by closing the channel must not meet the one that consumes.

use std::time::Duration;

use lapin::Connection;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::time::Instant;

use super::connect;
use crate::config::RabbitMq as Config;
use crate::ports::OpenError;
use crate::telemetry::QueueDepths;

/// AMQP's reply codes for a queue that can't be seen: no permission, no such queue, somebody's own.
const UNSEEN: [u16; 3] = [403, 404, 405];

/// Each such question is an error in the broker's log: not asked again soon.
const UNSEEN_FOR: Duration = Duration::from_secs(300);

/// Looks at the depths of the queue and of its dead-letter queue.
pub struct QueueWatch {
    config: Config,
    connection: Option<Connection>,
    /// When the queue, and the dead-letter queue, could not be seen.
    unseen: [Option<Instant>; 2],
}

impl QueueWatch {
    /// Connects on first use.
    pub const fn new(config: Config) -> Self {
        Self { config, connection: None, unseen: [None; 2] }
    }

    /// The depths as they are now.
    ///
    /// # Errors
    /// [`OpenError`] when the broker does not tell; the next look connects anew.
    pub async fn look(&mut self) -> Result<QueueDepths, OpenError> {
        // Taken out: a look that fails or is dropped leaves no doubtful connection behind.
        let connection = match self.connection.take() {
            Some(connection) if connection.status().connected() => connection,
            _ => connect::open(&self.config, "queue depths").await?,
        };
        let queues = [&self.config.queue, &self.config.dead_letter_queue];
        let mut depths = [None; 2];
        for ((queue, depth), unseen) in queues.into_iter().zip(&mut depths).zip(&mut self.unseen) {
            if unseen.is_some_and(|when| when.elapsed() < UNSEEN_FOR) {
                continue;
            }
            *depth = depth_of(&self.config, &connection, queue).await?;
            *unseen = depth.is_none().then(Instant::now);
        }
        self.connection = Some(connection);
        let [queue, dead_letters] = depths;
        Ok(QueueDepths { queue, dead_letters })
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
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    match channel.queue_declare(queue.into(), passive, FieldTable::default()).await {
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
