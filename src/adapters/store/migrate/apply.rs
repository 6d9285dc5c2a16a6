//! Applies migrations: each in one transaction, under a lock that a transaction pooler keeps.

use std::time::Duration;

use sqlx::migrate::Migration;
use sqlx::postgres::PgConnection;
use sqlx::{Error, Executor, Row};
use tokio::time::Instant;

use super::foreign::ForeignObject;
use super::read::{Examined, examine_in_transaction};
use super::{MIGRATIONS, SchemaState, insert_version};
use crate::adapters::store::misfits::explained;
use crate::adapters::store::sessions::holders;
use crate::adapters::store::within;
use crate::model::ports::{Class, Fault};

/// Begins a migration's transaction. The lock timeout is below the one of a counting session, so
/// that a migration that waits behind a long query never makes a batch fail; it counts for the
/// advisory lock as well. Not READ WRITE: a standby would answer 0A000 and not 25006, which is waited
/// for.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '2s'";

/// Lets one migration through at a time. Bound to the transaction: a transaction pooler may run the
/// next transaction on another server connection, where a session lock would not be held.
const LOCK: &str = "SELECT pg_catalog.pg_advisory_xact_lock(8462109873254410594)";

/// Why a migration was not applied. Nothing of it is committed, except after an unknown outcome of
/// COMMIT, which the next attempt finds.
#[derive(Debug)]
pub(in crate::adapters::store) enum NotApplied {
    /// The server refused a statement, or a lock was not granted in time.
    Fault(Fault),
    /// Objects under our names that this role must not touch.
    Foreign(Vec<ForeignObject>),
    /// What the schema is, now that no other instance changes it.
    Misfit(SchemaState),
}

impl From<Error> for NotApplied {
    fn from(error: Error) -> Self {
        // Two instances created the same table, one of them a release that takes another lock.
        let created_twice = error.as_database_error().is_some_and(|error| {
            error.code().as_deref() == Some("23505")
                && error
                    .constraint()
                    .is_some_and(|name| name.starts_with("pg_") || name == "_sqlx_migrations_pkey")
        });
        let fault = Fault::from(error);
        let class = if created_twice { Class::Retry } else { fault.class };
        Self::Fault(Fault { class, ..fault })
    }
}

impl From<Fault> for NotApplied {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

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
    const OPEN: &str = "
        SELECT pg_catalog.quote_ident(nspname) AS schema,
               pg_catalog.pg_has_role(nspowner, 'USAGE') AS owner
        FROM pg_catalog.pg_namespace
        WHERE nspname = pg_catalog.current_schema()
          AND EXISTS (SELECT FROM pg_catalog.aclexplode(nspacl) AS acl
                      WHERE acl.grantee = '0'::pg_catalog.oid AND acl.privilege_type = 'CREATE')";
    let row = sqlx::raw_sql(OPEN).fetch_optional(connection).await?;
    row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).transpose()
}

/// Takes the right to create in the schema from PUBLIC, if PUBLIC has it and this role may. Other
/// roles could otherwise make objects under the names of a migration between check and use.
/// `deadline` bounds each step: a connection that is lost without a notice never answers.
pub(in crate::adapters::store) async fn close_schema(
    connection: &mut PgConnection,
    deadline: Duration,
) -> Result<(), NotApplied> {
    let open = async { Ok::<_, NotApplied>(open_schema(connection).await?) };
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
pub(in crate::adapters::store) async fn apply_next(
    connection: &mut PgConnection,
    deadline: Duration,
) -> Result<Option<i64>, NotApplied> {
    attempt(connection, deadline, async |connection: &mut PgConnection, step: &mut Step| {
        let Some(&next) = within(deadline, begin(&mut *connection, step)).await?.first() else {
            return Ok(None);
        };
        let insert = run(connection, next, step).await?;
        let ending = async {
            connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(insert))).await?;
            connection.execute("COMMIT").await?;
            Ok::<_, NotApplied>(())
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
    limit: Duration,
    deadline: Duration,
    then: impl AsyncFnOnce(&mut PgConnection) -> R,
) -> Result<Option<R>, NotApplied> {
    let work = async |connection: &mut PgConnection, step: &mut Step| {
        let pending = begin(&mut *connection, step).await?;
        if pending.is_empty() {
            return Ok(None);
        }
        // A migration that only adds tables leaves those that are counted into alone.
        if pending.iter().any(|migration| migration.sql.as_str().contains("ALTER TABLE")) {
            lock_tables(connection, limit).await?;
        }
        limit_statements(connection, limit).await?;
        for migration in pending {
            let insert = run(connection, migration, step).await?;
            connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(insert))).await?;
        }
        let done = then(connection).await;
        connection.execute("ROLLBACK").await?;
        Ok(Some(done))
    };
    attempt(connection, deadline, work).await
}

/// Bounds each statement of this transaction, and each wait for a lock.
async fn limit_statements(connection: &mut PgConnection, limit: Duration) -> Result<(), Error> {
    let limit = limit.as_millis();
    let limits = format!("SET LOCAL lock_timeout = {limit}; SET LOCAL statement_timeout = {limit}");
    connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(limits))).await?;
    Ok(())
}

/// Locks the tables before a migration takes them one by one. A writer that takes them in another order
/// waits for less than the server's `deadlock_timeout`, so that neither side is cancelled with 40P01.
async fn lock_tables(connection: &mut PgConnection, limit: Duration) -> Result<(), Error> {
    const TABLES: &str = "
        SELECT pg_catalog.string_agg(oid::pg_catalog.regclass::pg_catalog.text, ', ')
        FROM pg_catalog.pg_class
        WHERE relkind IN ('r', 'p')
          AND oid IN (pg_catalog.to_regclass('vote_audit'), pg_catalog.to_regclass('vote_results'),
                      pg_catalog.to_regclass('duplicate_attempts'))";
    let limit = format!(
        "SELECT pg_catalog.set_config('lock_timeout', \
                least({}, setting::pg_catalog.int8 / 2)::pg_catalog.text, true) \
         FROM pg_catalog.pg_settings WHERE name = 'deadlock_timeout'",
        limit.as_millis()
    );
    connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(limit))).await?;
    let tables: Option<String> =
        sqlx::raw_sql(TABLES).fetch_one(&mut *connection).await?.try_get(0)?;
    if let Some(tables) = tables {
        let lock = format!("LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE");
        connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(lock))).await?;
    }
    Ok(())
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
    step: &mut Step,
) -> Result<Vec<&'static Migration>, NotApplied> {
    lock(connection, step).await?;
    // Under the lock: what another instance applied meanwhile is seen here.
    let Examined { surroundings, state } = examine_in_transaction(connection, true).await?;
    let state = match state {
        Some(state) if surroundings.foreign.is_empty() => state,
        _ => return Err(NotApplied::Foreign(surroundings.foreign)),
    };
    let versions = match state {
        SchemaState::Pending(versions) => versions,
        SchemaState::Current | SchemaState::Newer(_) => Vec::new(),
        other => return Err(NotApplied::Misfit(other)),
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
    work: impl AsyncFnOnce(&mut PgConnection, &mut Step) -> Result<R, NotApplied>,
) -> Result<R, NotApplied> {
    let mut step = Step::Turn;
    let error = match work(connection, &mut step).await {
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
        let fault = if rolled_back { with_causes(connection, fault, step).await } else { fault };
        Err(NotApplied::Fault(match step {
            Step::Migration(Migration { version, description, .. }) => {
                let message = format!("migration {version} ({description}): {}", fault.message);
                Fault { message, ..fault }
            }
            _ => fault,
        }))
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
    const VIEWS: &str = "
        WITH RECURSIVE uses (oid) AS (
            SELECT class.oid
            FROM pg_catalog.pg_class AS class
            WHERE class.oid IN (pg_catalog.to_regclass('vote_results'),
                                pg_catalog.to_regclass('vote_audit'),
                                pg_catalog.to_regclass('duplicate_attempts'))
            UNION
            SELECT ev_class
            FROM uses
            JOIN pg_catalog.pg_depend ON refobjid = uses.oid AND deptype = 'n'
                AND classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
            JOIN pg_catalog.pg_rewrite AS rule ON rule.oid = objid
        ),
        view (name, ours) AS (
            SELECT oid::pg_catalog.regclass::pg_catalog.text,
                   relname IN ('vote_statistics', 'citizens_with_multiple_votes')
            FROM uses JOIN pg_catalog.pg_class AS class USING (oid)
            WHERE relkind IN ('v', 'm')
        )
        SELECT coalesce(pg_catalog.string_agg(name, ', ' ORDER BY name) FILTER (WHERE ours), 'none'),
               coalesce(pg_catalog.string_agg(name, ', ' ORDER BY name) FILTER (WHERE NOT ours), 'none')
        FROM view";
    let row = sqlx::raw_sql(VIEWS).fetch_one(connection).await?;
    Ok([row.try_get(0)?, row.try_get(1)?])
}
