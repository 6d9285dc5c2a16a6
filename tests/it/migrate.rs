//! Migrations beside everything else: long queries, locks of others, a transaction pooler.

mod foreign;
mod race;

use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};

use crate::support::{
    BINARY, Pooler, Servers, Stage, command, ended, eventually, execute, run, votes,
};

/// The advisory lock under which migrations run, one at a time.
const LOCK: &str = "SELECT pg_advisory_lock(8462109873254410594)";

/// Makes the first migration pending again; it alters vote_audit, which has everything already.
async fn pending(stage: &Stage<'_>) {
    execute(stage, "DELETE FROM _sqlx_migrations WHERE version = 1").await;
}

/// A session of its own, with a name.
async fn session(stage: &Stage<'_>, name: &str) -> PgConnection {
    let options = PgConnectOptions::clone(&stage.sql.connect_options()).application_name(name);
    PgConnection::connect_with(&options).await.expect("a connection")
}

/// An auditor's query holds ACCESS SHARE on the table that a migration alters.
#[tokio::test]
async fn counting_goes_on_while_a_migration_waits_behind_a_long_query() {
    let stage = Stage::migrated(Servers::shared(), "longquery").await;
    let service = stage.start(&[]).await;
    pending(&stage).await;
    let mut auditor = session(&stage, "an auditor").await;
    sqlx::raw_sql("BEGIN; SELECT count(*) FROM vote_audit; SELECT count(*) FROM vote_results")
        .execute(&mut auditor)
        .await
        .expect("a query in an open transaction");

    let migrate = command(&stage, BINARY, &["migrate", "--wait", "50"]);
    let migrate = tokio::spawn(ended(migrate));
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                   AND datname = current_database() AND query LIKE '-- Totals per law%'";
    eventually("the migration waits", async || stage.number(waiting).await == 1).await;
    let all = votes(0, 3_000);
    for part in all.chunks(1_000) {
        stage.publish_votes(part).await;
    }
    stage.until_counted(all.len()).await;
    assert!(!migrate.is_finished(), "the query still runs");
    assert_eq!(stage.number("SELECT count(*) FROM _sqlx_migrations").await, 2);

    sqlx::raw_sql("COMMIT").execute(&mut auditor).await.expect("the query has ended");
    let migrated = migrate.await.expect("no panic");
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    assert_eq!(migrated.stdout, "migrations applied: 1\n");
    assert!(migrated.stderr.contains("an auditor"), "names who is waited for: {}", migrated.stderr);
    assert_eq!(stage.number("SELECT count(*) FROM _sqlx_migrations").await, 3);
    let log = service.stop().await;
    assert!(!log.contains("55P03") && !log.contains("consuming stops"), "{log}");
    stage.assert_counted_exactly(&all).await;
}

#[tokio::test]
async fn a_lock_of_another_session_is_named_and_not_waited_for_without_a_limit() {
    let stage = Stage::migrated(Servers::shared(), "stranger").await;
    pending(&stage).await;
    let mut other = session(&stage, "another session").await;
    sqlx::raw_sql(LOCK).execute(&mut other).await.expect("locked");
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(&mut other)
        .await
        .expect("its process id");

    let refused = run(&stage, "migrate", &["--wait", "1"]).await;
    assert_eq!(refused.code, Some(75), "{}", refused.stderr);
    for named in [&format!("pid {pid}"), "another session", "user", "client", "55P03"] {
        assert!(refused.stderr.contains(named), "{named} in {}", refused.stderr);
    }

    // The service waits for as long as it takes, unready.
    let service = stage.spawn(&[]).await;
    service.until_logged("another session").await;
    assert_eq!(service.get("/readyz").await.status, 503);
    sqlx::raw_sql("SELECT pg_advisory_unlock_all()").execute(&mut other).await.expect("unlocked");
    service.until_ready().await;
    service.stop().await;
    assert_eq!(stage.number("SELECT count(*) FROM _sqlx_migrations").await, 3);
}

#[tokio::test]
async fn four_migrations_at_once_through_a_transaction_pooler_are_one() {
    let stage = Stage::new(Servers::shared(), "pooled").await;
    let pooler = Pooler::start(&stage).await;
    let migrate = || {
        let mut command = command(&stage, BINARY, &["migrate"]);
        command.env("POSTGRES_PORT", &pooler.port);
        ended(command)
    };
    for migrated in futures::future::join_all((0..4).map(|_| migrate())).await {
        assert_eq!(migrated.code, Some(0), "{}{}", migrated.stdout, migrated.stderr);
    }
    assert_eq!(stage.number("SELECT count(*) FROM _sqlx_migrations").await, 3);
    let again = migrate().await;
    assert_eq!((again.code, again.stdout.as_str()), (Some(0), "the schema is up to date\n"));
    // No lock stays with a connection of the pool.
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = \
                 (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(stage.number(locks).await, 0);
}
