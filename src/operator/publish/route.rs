//! Where messages are published.

use std::fmt;

use super::PublishError;
use crate::model::cell;
use crate::model::ports::BrokerError;
use crate::model::vote;
use crate::platform::config::RabbitMq;

/// Where messages are published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// The queue of the configuration.
    Queue(String),
    /// The queues of so many cells, by the CRC-32 of `vote_hash`: this name, a dot, and the cell's number.
    Cells { queue: String, cells: u16 },
    /// An exchange, with `vote_hash` as the routing key.
    Exchange(String),
}

impl Route {
    /// Returns the configurations of all its queues, which are created when they do not exist. An exchange and
    /// its bindings are an operator's.
    pub(super) fn queues(&self, config: &RabbitMq) -> Vec<RabbitMq> {
        match self {
            Self::Queue(_) => vec![config.clone()],
            Self::Cells { queue, cells } => {
                let names = (0..*cells).map(|number| format!("{queue}.{number}"));
                let of_cell = |queue: String| {
                    let mut config = config.clone();
                    config.dead_letter_queue = format!("{queue}.dlq");
                    config.queue = queue;
                    config
                };
                names.map(of_cell).collect()
            }
            Self::Exchange(_) => Vec::new(),
        }
    }

    /// Returns the exchange and the routing key of a message. One without a valid hash goes wherever an empty
    /// hash goes: it is dead-lettered everywhere.
    pub(super) fn of(&self, body: &[u8]) -> (&str, String) {
        let hash = || vote::hash_of(body).unwrap_or_default();
        match self {
            Self::Queue(queue) => ("", queue.clone()),
            Self::Cells { queue, cells } => {
                ("", format!("{queue}.{}", cell::of_hash(&hash(), *cells)))
            }
            Self::Exchange(exchange) => (exchange, hash()),
        }
    }

    pub(super) fn error(&self, error: BrokerError) -> PublishError {
        match (self, error) {
            (Self::Exchange(exchange), BrokerError::Returned) => {
                PublishError::Unroutable(exchange.clone())
            }
            (_, error) => error.into(),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(queue) => f.write_str(queue),
            Self::Cells { queue, cells } => write!(f, "{queue}.0 to {queue}.{}", cells - 1),
            Self::Exchange(exchange) => write!(f, "exchange {exchange}"),
        }
    }
}
