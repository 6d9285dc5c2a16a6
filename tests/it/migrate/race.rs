//! What happens between two statements of a migration or a start.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use futures::FutureExt;
use sqlx::AssertSqlSafe;

use crate::support::repository::migrations;
use crate::support::{Ended, Interceptor, Pass, Servers, Stage, assert_lacks, contains};

/// Views under the names of our tables, whose function reports the role that it runs as.
const SWAP: &str = "
    CREATE VIEW _sqlx_migrations AS
        SELECT 1::bigint AS version, ''::bytea AS checksum, ran() AS success;
    CREATE VIEW schema_compatibility AS
        SELECT 1::bigint AS migration, 1::bigint AS requires WHERE ran()";

/// Up to where a migration creates tables itself, and its rehearsal.
const LAST: &str = "CREATE TABLE IF NOT EXISTS _sqlx_migrations";

/// An empty schema in which `role` may create.
fn reset(role: &str) -> String {
    format!(
        "DROP SCHEMA public CASCADE; CREATE SCHEMA public; \
         GRANT USAGE, CREATE ON SCHEMA public TO {role}; SET ROLE {role}; \
         CREATE FUNCTION ran() RETURNS boolean LANGUAGE plpgsql AS \
         'BEGIN RAISE insufficient_privilege USING MESSAGE = ''it ran as '' || current_user; END'; \
         RESET ROLE"
    )
}

/// Runs the command; before the server has the `nth` part that it sends, `role` creates the views.
/// Returns its output, and whether the command sent as many parts before [`LAST`].
async fn swapped(stage: &Stage<'_>, role: &str, arguments: &[&str], nth: usize) -> (Ended, bool) {
    let (parts, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let reached = Arc::new(AtomicBool::new(false));
    let (sql, note) = (stage.sql.clone(), Arc::clone(&reached));
    let swap = format!(
        "{SWAP}; ALTER VIEW _sqlx_migrations OWNER TO {role}; \
         ALTER VIEW schema_compatibility OWNER TO {role}"
    );
    let interceptor = Interceptor::start(stage, "POSTGRES", move |part| {
        over.fetch_or(contains(&part, LAST), Relaxed);
        let now = parts.fetch_add(1, Relaxed) == nth && !over.load(Relaxed);
        note.fetch_or(now, Relaxed);
        let (sql, swap) = (sql.clone(), swap.clone());
        async move {
            if now {
                // Refused where a table has that name already.
                sqlx::raw_sql(AssertSqlSafe(swap)).execute(&sql).await.ok();
            }
            Pass::Forward
        }
        .boxed()
    })
    .await;
    let port = [("POSTGRES_PORT", interceptor.port.as_str())];
    (stage.run_with(arguments, &port).await, reached.load(Relaxed))
}

/// A role with CREATE puts views in the place of tables, between any two statements.
#[tokio::test]
async fn views_that_appear_between_two_statements_are_not_read() {
    for (name, arguments) in
        [("swapmigrate", &["migrate"] as &[&str]), ("swapcheck", &["check", "--connect"])]
    {
        let stage = Stage::new(Servers::shared(), name).await;
        let role = stage.role("stranger", "").await;
        let mut nth = 0;
        loop {
            stage.execute(&reset(&role)).await;
            let (ended, reached) = swapped(&stage, &role, arguments, nth).await;
            assert_lacks(&(ended.stdout + &ended.stderr), &["it ran as"]);
            if !reached {
                break;
            }
            nth += 1;
        }
        assert!(nth > 5, "{name} sends {nth} parts");
    }
}

/// A connection that is lost without a notice, before each step that is not a migration's own SQL.
#[tokio::test]
async fn a_connection_that_no_longer_answers_does_not_hold_up_a_migration() {
    let steps = [
        "quote_ident(nspname)",
        "REVOKE CREATE ON SCHEMA",
        "pg_advisory_xact_lock",
        "SELECT version, checksum",
        "INSERT INTO _sqlx_migrations",
    ];
    let migrations = steps.into_iter().enumerate().map(async |(number, step)| {
        let stage = Stage::new(Servers::shared(), &format!("halfopen{number}")).await;
        stage.execute("GRANT CREATE ON SCHEMA public TO PUBLIC").await;
        let interceptor = Interceptor::once(&stage, "POSTGRES", step, Pass::HalfOpen).await;
        let port = ("POSTGRES_PORT", interceptor.port.as_str());
        let settings = [port, ("POSTGRES_STATEMENT_TIMEOUT_SECONDS", "1")];
        // The server ends the lost session, as TCP keepalives would.
        let (migrated, _) = futures::join!(stage.run_with(&["migrate"], &settings), async {
            tokio::time::sleep(std::time::Duration::from_secs(9)).await;
            stage.terminate("state = 'idle in transaction'").await
        });
        migrated.assert(0, &["no answer from PostgreSQL within 7s"]);
        let applied = stage.number("SELECT count(*) FROM _sqlx_migrations").await;
        assert_eq!(applied, migrations().len() as i64, "{step}");
    });
    futures::future::join_all(migrations).await;
}
