//! Deadlocks in PostgreSQL's log: sorted batches must cause none. The seeded mutant
//! `lock-hashes-in-another-order` shows that the log has them.

use crate::Result;
use crate::servers::Servers;

/// Deadlocks in the log so far.
pub async fn logged(servers: &Servers) -> Result<usize> {
    let log = servers.script(&["log", "postgres"]).await?;
    Ok(log.lines().filter(|line| line.contains("ERROR:  deadlock detected")).count())
}
