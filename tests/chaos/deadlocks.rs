//! Deadlocks, as PostgreSQL's log tells of them: sorted batches promise that there are none.

use sqlx::{Executor, raw_sql};

use crate::servers::Servers;
use crate::{PATIENCE, Result};

/// Deadlocks in the log so far.
pub async fn logged(servers: &Servers) -> Result<usize> {
    let log = servers.script(&["log", "postgres"]).await?;
    Ok(log.lines().filter(|line| line.contains("ERROR:  deadlock detected")).count())
}

/// Brings one about and looks for it: that the log shows none would prove nothing if it never did.
pub async fn self_check(servers: &Servers) -> Result<()> {
    let before = logged(servers).await?;
    let database = servers.get("POSTGRES_DB");
    let (mut one, mut other) = (servers.sql(database).await?, servers.sql(database).await?);
    let first = "SET deadlock_timeout = '10ms'; BEGIN; SELECT pg_advisory_xact_lock(1)";
    one.execute(raw_sql(first)).await?;
    other.execute(raw_sql("BEGIN; SELECT pg_advisory_xact_lock(2)")).await?;
    let crossing = async {
        tokio::join!(
            one.execute(raw_sql("SELECT pg_advisory_xact_lock(2)")),
            other.execute(raw_sql("SELECT pg_advisory_xact_lock(1)")),
        )
    };
    let ends = tokio::time::timeout(PATIENCE, crossing).await?;
    let logged = logged(servers).await? - before;
    if ends.0.is_ok() == ends.1.is_ok() || logged != 1 {
        return Err(format!("a deadlock was brought about, and the log shows {logged}").into());
    }
    Ok(())
}
