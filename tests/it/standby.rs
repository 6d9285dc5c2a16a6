//! A PostgreSQL with a synchronous standby that goes away, and a failover to it.

use crate::support::{Servers, Stage, eventually, votes};

/// A pair of servers of which the primary waits for its standby at each COMMIT.
async fn replicated(name: &str) -> Servers {
    let servers = Servers::private(name);
    servers.script(&["standby", "up"]);
    // On the primary alone: once it is promoted, the standby has nothing to wait for.
    servers.script(&[
        "psql",
        "--",
        "-qc",
        "ALTER SYSTEM SET synchronous_standby_names = 'standby'",
        "-c",
        "SELECT pg_reload_conf()",
    ]);
    servers
}

/// Backends whose COMMIT waits for the standby.
const WAITING: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";

async fn until_a_commit_waits(stage: &Stage<'_>, what: &str) {
    eventually(what, async || stage.number(WAITING).await > 0).await;
}

/// Semantics, section 10: the interrupted COMMIT is visible without its standby. The rerun finds
/// replays only, and must not be acknowledged before the standby has them as well.
#[tokio::test]
async fn a_rerun_is_not_acknowledged_before_the_standby_has_its_votes() {
    let servers = replicated("standby").await;
    let stage = Stage::migrated(&servers, "standby").await;
    let all = votes(0, 580);
    stage.publish_votes(&all[..500]).await;
    let service = stage.start(&[]).await;
    stage.until_counted(500).await;
    stage.assert_drained().await;

    servers.script(&["standby", "stop"]);
    stage.publish_votes(&all[500..]).await;
    until_a_commit_waits(&stage, "the COMMIT waits for the standby").await;
    sqlx::raw_sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'",
    )
    .execute(&stage.sql)
    .await
    .expect("terminated");
    stage.until_counted(580).await;
    until_a_commit_waits(&stage, "the rerun waits, after its backend was terminated").await;
    servers.script(&["restart", "postgres"]);
    until_a_commit_waits(&stage, "the rerun waits, after a restart of the primary").await;

    // The primary is lost, and with it the 80 votes that only it had.
    servers.script(&["standby", "promote"]);
    stage.until_counted(580).await;
    service.until_ready().await;
    service.stop().await;
    stage.assert_counted_exactly(&all).await;
    stage.assert_drained().await;
}
