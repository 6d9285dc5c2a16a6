//! Migrations beside everything else: long queries, locks of others, a transaction pooler.

mod foreign;
mod race;

use futures::future::join_all;

use crate::support::repository::migrations;
use crate::support::{BINARY, Pooler, Servers, Stage, ended, votes};

const MIGRATIONS: &str = "SELECT count(*) FROM _sqlx_migrations";

/// Makes the first migration pending again; it alters vote_audit, which has everything already.
async fn pending(stage: &Stage<'_>) {
    stage.execute("DELETE FROM _sqlx_migrations WHERE version = 1").await;
}

/// An auditor's query holds ACCESS SHARE on the table that a migration alters.
#[tokio::test]
async fn counting_goes_on_while_a_migration_waits_behind_a_long_query() {
    let (stage, service) = Stage::started("longquery", &[]).await;
    pending(&stage).await;
    let audit = "SET LOCAL application_name = 'an auditor'; \
                 SELECT count(*) FROM vote_audit; SELECT count(*) FROM vote_results";
    let auditor = stage.hold(audit).await;

    let migrate = tokio::spawn(ended(stage.command(BINARY, &["migrate", "--wait", "50"])));
    stage.until_sessions("wait_event_type = 'Lock' AND query LIKE '-- Totals per law%'", 1).await;
    let all = votes(0, 3_000);
    for part in all.chunks(1_000) {
        stage.publish_votes(part).await;
    }
    stage.until_counted(all.len()).await;
    assert!(!migrate.is_finished(), "the query still runs");
    assert_eq!(stage.number(MIGRATIONS).await, migrations().len() as i64 - 1);

    drop(auditor);
    // It names the session that it waited for.
    migrate.await.expect("no panic").assert(0, &["migrations applied: 1\n", "an auditor"]);
    assert_eq!(stage.number(MIGRATIONS).await, migrations().len() as i64);
    let log = stage.finish([service], &all).await;
    assert!(!log.contains("55P03") && !log.contains("consuming stops"), "{log}");
}

#[tokio::test]
async fn a_lock_of_another_session_is_named_and_not_waited_for_without_a_limit() {
    let stage = Stage::migrated(Servers::shared(), "stranger").await;
    pending(&stage).await;
    // Migrations run under this lock, one at a time.
    let lock = "SET LOCAL application_name = 'another session'; \
                SELECT pg_advisory_xact_lock(8462109873254410594)";
    let mut other = stage.hold(lock).await;
    let pid = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *other).await;
    let pid = format!("pid {}", pid.map(|pid: i32| pid).expect("its process id"));
    let texts = [&pid, "another session", "user", "client", "55P03"];
    stage.run("migrate", &["--wait", "1"]).await.assert(75, &texts);

    // The service waits for as long as it takes, unready.
    let service = stage.spawn(&[]).await;
    service.until_logged("another session").await;
    assert_eq!(service.get("/readyz").await.status, 503);
    drop(other);
    service.until_ready().await;
    service.stop().await;
    assert_eq!(stage.number(MIGRATIONS).await, migrations().len() as i64);
}

#[tokio::test]
async fn four_migrations_at_once_through_a_transaction_pooler_are_one() {
    let stage = Stage::new(Servers::shared(), "pooled").await;
    let pooler = Pooler::with(&stage, None, "").await;
    let port = [("POSTGRES_PORT", pooler.port.as_str())];
    let migrate = || stage.run_with(&["migrate"], &port);
    for migrated in join_all((0..4).map(|_| migrate())).await {
        migrated.assert(0, &[]);
    }
    assert_eq!(stage.number(MIGRATIONS).await, migrations().len() as i64);
    migrate().await.assert(0, &["the schema is up to date\n"]);
    stage.assert_no_advisory_lock().await;
}
