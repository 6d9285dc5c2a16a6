//! Applies migrations: each in one transaction, under a lock that a transaction pooler keeps.

use std::time::Duration;

use sqlx::migrate::Migration;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Error, Executor, FromRow, Row};
use tokio::time::Instant;

use super::read::{Examined, examine_in_transaction};
use super::{MIGRATIONS, SchemaState, execute, insert_version};
use crate::adapters::store::error::StartError;
use crate::adapters::store::misfits::explained;
use crate::adapters::store::sessions::holders;
use crate::adapters::store::{COUNTED_TABLES, within};
use crate::model::ports::Fault;
use crate::platform::config::Config;

/// Begins a migration's transaction. The lock timeout is below the one of a counting session, so
/// that a migration that waits behind a long query never makes a batch fail; it counts for the
/// advisory lock as well. Not READ WRITE: a standby would answer 0A000 and not 25006, which is waited
/// for.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '2s'";

/// Lets one migration through at a time. Bound to the transaction: a transaction pooler may run the
/// next transaction on another server connection, where a session lock would not be held.
const LOCK: &str = "SELECT pg_catalog.pg_advisory_xact_lock(8462109873254410594)";

const OPEN: &str = include_str!("open.sql");
const VIEWS: &str = include_str!("views.sql");

/// What a statement waits for, or what it is part of.
#[derive(Clone, Copy)]
enum Step {
    Turn,
    Tables,
    Migration(&'static Migration),
}

/// The schema, quoted, if PUBLIC may create objects in it, and whether this role owns it.
pub(in crate::adapters::store) async fn open_schema(
    connection: &mut PgConnection,
) -> Result<Option<(String, bool)>, Error> {
    let row = sqlx::raw_sql(OPEN).fetch_optional(connection).await?;
    row.as_ref().map(FromRow::from_row).transpose()
}

/// Takes the right to create in the schema from PUBLIC, if PUBLIC has it and this role may. Other
/// roles could otherwise make objects under the names of a migration between check and use.
/// `deadline` bounds each step: a connection that is lost without a notice never answers.
pub(in crate::adapters::store) async fn close_schema(
    connection: &mut PgConnection,
    deadline: Duration,
) -> Result<(), StartError> {
    let open = async { Ok::<_, StartError>(open_schema(connection).await?) };
    let Some((schema, owner)) = within(deadline, open).await? else {
        return Ok(());
    };
    if !owner {
        tracing::warn!(
            schema,
            "every role may create objects in this schema; as its owner, run \
             REVOKE CREATE ON SCHEMA ... FROM PUBLIC"
        );
        return Ok(());
    }
    let revoked = async |connection: &mut PgConnection, step: &mut Step| {
        let revoking = async {
            lock(connection, step).await?;
            let revoke = format!("REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC; COMMIT");
            Ok(execute(connection, revoke).await?)
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
pub(in crate::adapters::store) async fn apply_next(
    connection: &mut PgConnection,
    config: &Config,
    deadline: Duration,
) -> Result<Option<i64>, StartError> {
    attempt(connection, deadline, async |connection: &mut PgConnection, step: &mut Step| {
        let pending = within(deadline, begin(&mut *connection, config, step)).await?;
        let Some(&next) = pending.first() else {
            return Ok(None);
        };
        let insert = run(connection, next, step).await?;
        let ending = async {
            execute(connection, insert).await?;
            connection.execute("COMMIT").await?;
            Ok::<_, StartError>(())
        };
        within(deadline, ending).await?;
        Ok(Some(next.version))
    })
    .await
}

/// Applies all pending migrations in one transaction, does `then` in it, and rolls it back. No lock is
/// waited for, and no statement runs, for longer than `limit`, which bounds how long counting waits
/// for the tables. `None` when no migration is pending.
pub(in crate::adapters::store) async fn rehearse_pending<R>(
    connection: &mut PgConnection,
    config: &Config,
    limit: Duration,
    deadline: Duration,
    then: impl AsyncFnOnce(&mut PgConnection) -> R,
) -> Result<Option<R>, StartError> {
    let work = async |connection: &mut PgConnection, step: &mut Step| {
        let pending = begin(&mut *connection, config, step).await?;
        if pending.is_empty() {
            return Ok(None);
        }
        // A migration that only adds tables leaves those that are counted into alone.
        if pending.iter().any(|migration| migration.sql.as_str().contains("ALTER TABLE")) {
            lock_tables(connection, limit).await?;
        }
        let limit = limit.as_millis();
        let limits =
            format!("SET LOCAL lock_timeout = {limit}; SET LOCAL statement_timeout = {limit}");
        execute(connection, limits).await?;
        for migration in pending {
            let insert = run(connection, migration, step).await?;
            execute(connection, insert).await?;
        }
        let done = then(connection).await;
        connection.execute("ROLLBACK").await?;
        Ok(Some(done))
    };
    attempt(connection, deadline, work).await
}

/// Locks the tables before a migration takes them one by one. A writer that takes them in another order
/// waits for less than the server's `deadlock_timeout`, so that neither side is cancelled with 40P01.
async fn lock_tables(connection: &mut PgConnection, limit: Duration) -> Result<(), Error> {
    let limit = format!(
        "SELECT pg_catalog.set_config('lock_timeout', \
                least({}, setting::pg_catalog.int8 / 2)::pg_catalog.text, true) \
         FROM pg_catalog.pg_settings WHERE name = 'deadlock_timeout'",
        limit.as_millis()
    );
    execute(connection, limit).await?;
    let tables = with_counted_tables(
        "SELECT pg_catalog.string_agg(oid::pg_catalog.regclass::pg_catalog.text, ', ') \
         FROM pg_catalog.pg_class WHERE relkind IN ('r', 'p') AND oid IN {oids}",
    );
    let tables: Option<String> =
        sqlx::raw_sql(tables).fetch_one(&mut *connection).await?.try_get(0)?;
    if let Some(tables) = tables {
        execute(connection, format!("LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")).await?;
    }
    Ok(())
}

/// Without parameters, since a pooler may not keep a prepared statement until it is run.
fn with_counted_tables(sql: &str) -> AssertSqlSafe<String> {
    let oids = COUNTED_TABLES.map(|table| format!("pg_catalog.to_regclass('{table}')"));
    AssertSqlSafe(sql.replace("{oids}", &format!("({})", oids.join(", "))))
}

/// Runs a migration's statements. Gives the statement that records it.
async fn run(
    connection: &mut PgConnection,
    migration: &'static Migration,
    step: &mut Step,
) -> Result<String, Error> {
    *step = Step::Migration(migration);
    let began = Instant::now();
    connection.execute(sqlx::raw_sql(migration.sql.clone())).await?;
    Ok(insert_version(migration, began.elapsed()))
}

/// Begins a transaction for the migrations that it gives, in order: those that are pending. When none
/// is, the transaction is over.
async fn begin(
    connection: &mut PgConnection,
    config: &Config,
    step: &mut Step,
) -> Result<Vec<&'static Migration>, StartError> {
    lock(connection, step).await?;
    // Under the lock: what another instance applied meanwhile is seen here.
    let Examined { surroundings, state } = examine_in_transaction(connection, true).await?;
    let state = match state {
        Some(state) if surroundings.foreign.is_empty() => state,
        _ => return Err(StartError::foreign(config, &surroundings.foreign)),
    };
    let versions = match state {
        SchemaState::Pending(versions) => versions,
        SchemaState::Current | SchemaState::Newer(_) => Vec::new(),
        other => return Err(StartError::misfit(config, &other)),
    };
    let pending = MIGRATIONS.iter().filter(|known| versions.contains(&known.version));
    connection.execute(if versions.is_empty() { "COMMIT" } else { super::VERSIONS_TABLE }).await?;
    Ok(pending.collect())
}

async fn lock(connection: &mut PgConnection, step: &mut Step) -> Result<(), Error> {
    connection.execute(BEGIN).await?;
    *step = Step::Turn;
    connection.execute(LOCK).await?;
    *step = Step::Tables;
    Ok(())
}

/// Runs `work` in its transaction. On an error it rolls back, and says which migration it was and what
/// the catalogue knows of the cause.
async fn attempt<R>(
    connection: &mut PgConnection,
    deadline: Duration,
    work: impl AsyncFnOnce(&mut PgConnection, &mut Step) -> Result<R, StartError>,
) -> Result<R, StartError> {
    let mut step = Step::Turn;
    let error = match work(connection, &mut step).await {
        Ok(done) => return Ok(done),
        Err(error) => error,
    };
    if matches!(&error, StartError::Unavailable(fault) if fault.sqlstate.is_none()) {
        // No answer: the connection is closed by its owner, and that rolls back, too.
        return Err(error);
    }
    let ending = async {
        let rolled_back = connection.execute("ROLLBACK").await.is_ok();
        let StartError::Unavailable(mut fault) = error else { return Err(error) };
        if rolled_back {
            fault = with_causes(connection, fault, step).await;
        }
        if let Step::Migration(Migration { version, description, .. }) = step {
            fault.message = format!("migration {version} ({description}): {}", fault.message);
        }
        Err(fault.into())
    };
    within(deadline, ending).await
}

/// The fault with what the catalogue says of its cause.
async fn with_causes(connection: &mut PgConnection, fault: Fault, step: Step) -> Fault {
    let causes = match fault.sqlstate.as_deref() {
        Some("55P03") => {
            let turn = matches!(step, Step::Turn);
            let what =
                if turn { "the lock of migrations" } else { "the tables that a migration changes" };
            match holders(connection, turn).await {
                Ok(holders) if holders.is_empty() => format!(" on {what}: released meanwhile"),
                Ok(holders) => format!(" on {what}: held by {}", holders.join("; ")),
                Err(error) => format!(" on {what}: the holder is not known ({error})"),
            }
        }
        Some(code @ ("0A000" | "2BP01" | "42P16")) => match views(connection).await {
            // The server names no view where one of ours has other columns.
            Ok([ours, _]) if code == "42P16" => format!("; one of the views {ours}"),
            Ok([_, others]) => format!("; views on the tables: {others}"),
            Err(_) => return fault,
        },
        _ => return explained(connection, fault).await,
    };
    Fault { message: fault.message + &causes, ..fault }
}

/// Views on the service's tables, and views on those: ones under our names, and others.
async fn views(connection: &mut PgConnection) -> Result<[String; 2], Error> {
    let row = sqlx::raw_sql(with_counted_tables(VIEWS)).fetch_one(connection).await?;
    let (ours, others) = FromRow::from_row(&row)?;
    Ok([ours, others])
}
