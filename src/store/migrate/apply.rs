//! Applies migrations: each in one transaction, under a lock that a transaction pooler keeps.

use std::time::Duration;

use sqlx::migrate::Migration;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Error, Executor, Row};
use tokio::time::Instant;

use super::foreign::ForeignObject;
use super::read::{Examined, examine_in_transaction};
use super::{MIGRATIONS, SchemaState, insert_version};
use crate::ports::{Class, Fault};
use crate::store::transaction::fault;
use crate::store::within;

/// Begins a migration's transaction. The lock timeout is below the one of a counting session, so
/// that a migration that waits behind a long query never makes a batch fail; it counts for the
/// advisory lock as well. Not READ WRITE: a standby would answer 0A000 and not 25006, which is waited
/// for.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '2s'";

/// Lets one migration through at a time. Bound to the transaction: a transaction pooler may run the
/// next transaction on another server connection, where a session lock would not be held.
const LOCK: &str = "SELECT pg_catalog.pg_advisory_xact_lock(8462109873254410594)";

/// Sessions that hold the advisory lock.
const LOCK_HOLDERS: &str = "
    SELECT DISTINCT pid, usename::text, application_name, client_addr::text, state,
           extract(epoch FROM now() - xact_start)::float8
    FROM pg_catalog.pg_locks JOIN pg_catalog.pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND pid <> pg_catalog.pg_backend_pid()
      AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
      AND objsubid = 1
      AND (classid::bigint << 32) | objid::bigint = 8462109873254410594
    LIMIT 3";

/// Sessions that hold a lock on one of the service's tables, the oldest transaction first.
const TABLE_HOLDERS: &str = "
    SELECT DISTINCT pid, usename::text, application_name, client_addr::text, state,
           extract(epoch FROM now() - xact_start)::float8
    FROM pg_catalog.pg_locks JOIN pg_catalog.pg_stat_activity USING (pid)
    WHERE locktype = 'relation' AND granted AND pid <> pg_catalog.pg_backend_pid()
      AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
      AND relation IN (
          SELECT oid FROM pg_catalog.pg_class
          WHERE relname IN ('_sqlx_migrations', 'vote_results', 'vote_audit',
                            'duplicate_attempts', 'result_corrections', 'schema_compatibility',
                            'reconciliation', 'lost_votes', 'vote_statistics',
                            'citizens_with_multiple_votes'))
    ORDER BY 6 DESC NULLS LAST
    LIMIT 3";

/// Why a migration was not applied. Nothing of it is committed, except after an unknown outcome of
/// COMMIT, which the next attempt finds.
#[derive(Debug)]
pub(in crate::store) enum NotApplied {
    /// The server refused a statement, or a lock was not granted in time.
    Fault(Fault),
    /// Objects under our names that this role must not touch.
    Foreign(Vec<ForeignObject>),
    /// What the schema is, now that no other instance changes it.
    Misfit(SchemaState),
}

impl From<Error> for NotApplied {
    fn from(error: Error) -> Self {
        Self::Fault(fault(&error))
    }
}

impl From<Fault> for NotApplied {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// What a statement waits for.
#[derive(Clone, Copy)]
enum Waiting {
    ForTurn,
    ForTables,
}

/// Takes the right to create in the schema from PUBLIC, if PUBLIC has it and this role may. Other
/// roles could otherwise make objects under the names of a migration between check and use.
/// `deadline` bounds each step: a connection that is lost without a notice never answers.
pub(in crate::store) async fn close_schema(
    connection: &mut PgConnection,
    deadline: Duration,
) -> Result<(), NotApplied> {
    const OPEN: &str = "
        SELECT pg_catalog.quote_ident(nspname) AS schema,
               pg_catalog.pg_has_role(nspowner, 'USAGE') AS owner
        FROM pg_catalog.pg_namespace
        WHERE nspname = pg_catalog.current_schema()
          AND EXISTS (SELECT FROM pg_catalog.aclexplode(nspacl) AS acl
                      WHERE acl.grantee = '0'::pg_catalog.oid AND acl.privilege_type = 'CREATE')";
    let asking =
        async { Ok::<_, NotApplied>(sqlx::raw_sql(OPEN).fetch_optional(&mut *connection).await?) };
    let Some(row) = within(deadline, asking).await? else {
        return Ok(());
    };
    let (schema, owner): (String, bool) = (row.try_get(0)?, row.try_get(1)?);
    if !owner {
        tracing::warn!(
            schema,
            "every role may create objects in this schema; as its owner, run \
             REVOKE CREATE ON SCHEMA ... FROM PUBLIC"
        );
        return Ok(());
    }
    let revoked = async |connection: &mut PgConnection, waiting: &mut Waiting| {
        let revoking = async {
            lock(connection, waiting).await?;
            let revoke = format!("REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC; COMMIT");
            connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(revoke))).await?;
            Ok(())
        };
        within(deadline, revoking).await
    };
    attempt(connection, deadline, revoked).await?;
    tracing::info!(schema, "revoked CREATE on the schema from PUBLIC");
    Ok(())
}

/// Applies the first pending migration in one transaction. Gives its version; `None` when none is
/// pending any more. `deadline` bounds each step but the migration's own statements, which take as
/// long as the tables are large.
pub(in crate::store) async fn apply_next(
    connection: &mut PgConnection,
    deadline: Duration,
) -> Result<Option<i64>, NotApplied> {
    attempt(connection, deadline, async |connection: &mut PgConnection, waiting: &mut Waiting| {
        let beginning = begin_next(&mut *connection, waiting);
        let Some(migration) = within(deadline, beginning).await? else {
            return Ok(None);
        };
        let began = Instant::now();
        connection.execute(sqlx::raw_sql(migration.sql.clone())).await?;
        let insert = insert_version(migration, began.elapsed());
        let ending = async {
            connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(insert))).await?;
            connection.execute("COMMIT").await?;
            Ok::<_, NotApplied>(())
        };
        within(deadline, ending).await?;
        Ok(Some(migration.version))
    })
    .await
}

/// Begins the transaction of the first pending migration. When none is pending, it is over.
async fn begin_next(
    connection: &mut PgConnection,
    waiting: &mut Waiting,
) -> Result<Option<&'static Migration>, NotApplied> {
    lock(connection, waiting).await?;
    // Under the lock: what another instance applied meanwhile is seen here.
    let Examined { surroundings, state } = examine_in_transaction(connection, true).await?;
    let state = match state {
        Some(state) if surroundings.foreign.is_empty() => state,
        _ => return Err(NotApplied::Foreign(surroundings.foreign)),
    };
    let next = match state {
        SchemaState::Pending(versions) => versions.first().copied(),
        SchemaState::Current | SchemaState::Newer(_) => None,
        other => return Err(NotApplied::Misfit(other)),
    };
    let found = MIGRATIONS.iter().find(|migration| Some(migration.version) == next);
    connection.execute(if found.is_some() { super::VERSIONS_TABLE } else { "COMMIT" }).await?;
    Ok(found)
}

async fn lock(connection: &mut PgConnection, waiting: &mut Waiting) -> Result<(), Error> {
    connection.execute(BEGIN).await?;
    *waiting = Waiting::ForTurn;
    connection.execute(LOCK).await?;
    *waiting = Waiting::ForTables;
    Ok(())
}

/// Runs `work` in its transaction. On an error it rolls back, and names who holds the lock that was
/// waited for.
async fn attempt<R>(
    connection: &mut PgConnection,
    deadline: Duration,
    work: impl AsyncFnOnce(&mut PgConnection, &mut Waiting) -> Result<R, NotApplied>,
) -> Result<R, NotApplied> {
    let mut waiting = Waiting::ForTurn;
    let error = match work(connection, &mut waiting).await {
        Ok(done) => return Ok(done),
        Err(error) => error,
    };
    if matches!(&error, NotApplied::Fault(fault) if fault.sqlstate.is_none()) {
        // No answer: the connection is closed by its owner, and that rolls back, too.
        return Err(error);
    }
    let ending = async {
        let rolled_back = connection.execute("ROLLBACK").await.is_ok();
        let NotApplied::Fault(fault) = error else { return Err(error) };
        Err(NotApplied::Fault(match fault.sqlstate.as_deref() {
            Some("55P03") if rolled_back => name_holders(connection, fault, waiting).await,
            // Two instances created the same table, one of them a release that takes another lock.
            Some("23505") => Fault { class: Class::Retry, ..fault },
            _ => fault,
        }))
    };
    within(deadline, ending).await
}

async fn name_holders(connection: &mut PgConnection, fault: Fault, waiting: Waiting) -> Fault {
    let (query, what) = match waiting {
        Waiting::ForTurn => (LOCK_HOLDERS, "the lock of migrations"),
        Waiting::ForTables => (TABLE_HOLDERS, "the tables that a migration changes"),
    };
    let holders = match sqlx::raw_sql(query).fetch_all(connection).await {
        Ok(rows) => rows.iter().map(holder).collect::<Result<Vec<_>, _>>(),
        Err(error) => Err(error),
    };
    let holders = match holders {
        Ok(holders) if holders.is_empty() => "released meanwhile".to_owned(),
        Ok(holders) => format!("held by {}", holders.join("; ")),
        Err(error) => format!("the holder is not known ({error})"),
    };
    Fault { message: format!("{} on {what}: {holders}", fault.message), ..fault }
}

/// One session, as far as this role may see it.
fn holder(row: &PgRow) -> Result<String, Error> {
    let text = |column: usize| row.try_get::<Option<String>, _>(column);
    let pid: i32 = row.try_get(0)?;
    let mut holder = format!("pid {pid}");
    for (name, value) in
        [("user", text(1)?), ("application", text(2)?), ("client", text(3)?), ("state", text(4)?)]
    {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            // Quoted: a client chooses its own application name.
            holder += &format!(", {name} {value:?}");
        }
    }
    if let Some(age) = row.try_get::<Option<f64>, _>(5)? {
        let age = Duration::try_from_secs_f64(age).unwrap_or_default();
        holder += &format!(", transaction open for {} s", age.as_secs());
    }
    Ok(holder)
}
