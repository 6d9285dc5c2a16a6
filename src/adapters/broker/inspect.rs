//! The facts about the broker for `vote-aggregator check`. Creates and changes nothing, and needs no
//! more permissions than the service.

use std::time::Duration;

use lapin::{Connection, Error};

use super::connect::{self, Opened, amqp_code};
use super::permissions;
use super::topology::{self, QueueFacts, QueueStatus};
use super::{ServerVersion, arguments, management};
use crate::model::ports::OpenError;
use crate::platform::config::RabbitMq as Config;

/// What [`inspect`] found; `None` for what it did not reach.
#[derive(Debug, Default)]
pub struct BrokerFacts {
    /// Which RabbitMQ it is, if it is one.
    pub server: Option<ServerVersion>,
    /// Why the management API does not answer, when it was asked.
    pub management_error: Option<String>,
    pub queue: Option<InspectedQueue>,
    pub dead_letter_queue: Option<InspectedQueue>,
    pub publishing: Option<Publishing>,
}

/// One queue, and whether the user may do with it what the service needs: read it, or create it when it
/// is missing.
#[derive(Debug)]
pub struct InspectedQueue {
    pub state: QueueState,
    pub permitted: bool,
}

/// Whether a queue is there.
#[derive(Debug)]
pub enum QueueState {
    Exists(QueueStatus, QueueFacts),
    Missing,
    /// Another connection has declared it exclusive.
    Exclusive,
}

/// Whether dead letters could be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publishing {
    Allowed,
    /// The user has no permission to.
    Refused,
    /// The broker takes no publishes now.
    Blocked,
}

/// Looks at the broker, its queues and the user's permissions; adds to `facts` as it goes.
///
/// # Errors
/// [`OpenError`] with what was refused.
pub async fn inspect(config: &Config, facts: &mut BrokerFacts) -> Result<(), OpenError> {
    let Opened { connection, version: server, .. } = connect::open(config, "check").await?;
    facts.server = server;
    if let Some(url) = &config.management_url {
        facts.management_error = management::answers(url).await.err();
    }
    let refused = |error: Error| connect::refused(config, &error);
    let examining = topology::examine(&connection, server, config, arguments::FOR_A_COMMAND);
    let looking = inspect_queue(&connection, &config.queue, Some(""), examining, &mut facts.queue);
    looking.await.map_err(refused)?;
    let examining = topology::examine_dead_letters(&connection, config);
    let (queue, inspected) = (&config.dead_letter_queue, &mut facts.dead_letter_queue);
    inspect_queue(&connection, queue, None, examining, inspected).await.map_err(refused)?;
    close(&connection).await;

    // On a connection of its own: see `permissions::write`.
    let Opened { connection, .. } = connect::open(config, "check, publishing").await?;
    let publishing = match permissions::write(&connection).await {
        Ok(true) => Publishing::Allowed,
        Ok(false) => Publishing::Blocked,
        Err(error) if amqp_code(&error) == Some(403) => Publishing::Refused,
        Err(error) => return Err(refused(error)),
    };
    facts.publishing = Some(publishing);
    // A blocked connection does not take its own end either.
    if publishing != Publishing::Blocked {
        close(&connection).await;
    }
    Ok(())
}

/// Whether the one address of `config` leads to a broker that accepts us, and to the queue; `None`: it
/// does not exist.
///
/// # Errors
/// [`OpenError`] with what was refused, or not answered within `limit`.
pub async fn reach(config: &Config, limit: Duration) -> Result<Option<QueueStatus>, OpenError> {
    let reaching = async {
        let Opened { connection, .. } = connect::open(config, "check").await?;
        let status = topology::status(&connection, &config.queue).await;
        let status = status.map_err(|error| connect::refused(config, &error))?;
        close(&connection).await;
        Ok(status)
    };
    connect::within(config, limit, "answer", reaching).await
}

async fn inspect_queue(
    connection: &Connection,
    queue: &str,
    dead_letter_exchange: Option<&str>,
    examining: impl Future<Output = QueueFacts>,
    inspected: &mut Option<InspectedQueue>,
) -> Result<(), Error> {
    let state = match topology::status(connection, queue).await {
        Ok(Some(status)) => QueueState::Exists(status, examining.await),
        Ok(None) => QueueState::Missing,
        Err(error) if amqp_code(&error) == Some(405) => QueueState::Exclusive,
        Err(error) => return Err(error),
    };
    let InspectedQueue { state, permitted } =
        inspected.insert(InspectedQueue { state, permitted: true });
    *permitted = match state {
        QueueState::Exists(..) => permissions::may_read(connection, queue).await?,
        QueueState::Missing => {
            permissions::may_configure(connection, queue, dead_letter_exchange).await?
        }
        QueueState::Exclusive => true,
    };
    Ok(())
}

async fn close(connection: &Connection) {
    if let Err(error) = connection.close(200, "OK".into()).await {
        tracing::debug!("the connection did not close cleanly: {error}");
    }
}
