//! A RabbitMQ that was killed, until its queue answers.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::servers::Servers;
use crate::{PATIENCE, Result};

/// Restarts RabbitMQ for as long as its queue answers by 541 (internal error); returns how often.
///
/// RabbitMQ 3.10.8, killed within seconds of a start, sometimes comes back with a quorum queue that
/// has no leader and gets none: applying its log again, the leader looks for messages that are gone
/// (`lists:zipwith` in `rabbit_fifo`), and takes the supervisor of dead-lettering with it. No client
/// can repair that; an operator would restart the broker.
///
/// # Errors
/// When that does not help.
pub async fn revive(servers: &Servers, queue: &str) -> Result<u64> {
    let deadline = Instant::now() + 4 * PATIENCE;
    let (mut restarts, mut failures) = (0, 0);
    loop {
        match servers.ready(queue).await {
            Ok(_) => return Ok(restarts),
            Err(error) if Instant::now() > deadline => return Err(error),
            // One may come from a queue that is still electing its leader.
            Err(error) if error.to_string().contains("INTERNAL") => failures += 1,
            Err(_) => {}
        }
        if failures == 2 {
            servers.script(&["restart", "rabbitmq"]).await?;
            (restarts, failures) = (restarts + 1, 0);
        }
        sleep(Duration::from_secs(1)).await;
    }
}
