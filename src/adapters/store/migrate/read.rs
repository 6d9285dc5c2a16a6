//! Reads which migrations are applied, from tables that are locked against replacement.

use std::collections::BTreeMap;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Error, Executor, FromRow};

use super::foreign::{Surroundings, inspect};
use super::{SchemaState, compare, execute, newest};

const TABLES: &str = include_str!("tables.sql");

/// The schema, and what surrounds it.
#[derive(Debug)]
pub(in crate::adapters::store) struct Examined {
    pub(in crate::adapters::store) surroundings: Surroundings,
    /// `None` where [`Surroundings::refused`] gives objects: nothing was read.
    pub(in crate::adapters::store) state: Option<SchemaState>,
}

/// Examines in a transaction of its own, which it rolls back. `may_migrate` is for
/// [`Surroundings::refused`].
pub(in crate::adapters::store) async fn examine(
    connection: &mut PgConnection,
    may_migrate: bool,
) -> Result<Examined, Error> {
    connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY").await?;
    let examined = examine_in_transaction(connection, may_migrate).await?;
    connection.execute("ROLLBACK").await?;
    Ok(examined)
}

/// Examines in the transaction that is open: locks the tables first, so that what is read is what
/// was looked at. Reading a view in place of a table would run its owner's functions as this role.
pub(super) async fn examine_in_transaction(
    connection: &mut PgConnection,
    may_migrate: bool,
) -> Result<Examined, Error> {
    let locked = lock(connection).await?;
    let surroundings = inspect(connection).await?;
    if !surroundings.refused(may_migrate).is_empty() {
        return Ok(Examined { surroundings, state: None });
    }
    let state = Some(state(connection, locked).await?);
    Ok(Examined { surroundings, state })
}

/// Tables on which this transaction holds a lock: the qualified name by the relation's, or the
/// server's refusal.
type Locked = BTreeMap<String, Result<String, Error>>;

/// Locks the tables that exist: none of them is dropped, renamed, altered or given a policy or a rule
/// until the transaction ends. ACCESS SHARE takes no more than SELECT, also on a standby. A view that
/// takes a table's place before the lock is locked without being run.
async fn lock(connection: &mut PgConnection) -> Result<Locked, Error> {
    let mut locked = Locked::new();
    for (relation, name, _) in tables(connection).await? {
        connection.execute("SAVEPOINT locking").await?;
        match execute(connection, format!("LOCK TABLE {name} IN ACCESS SHARE MODE")).await {
            Err(error @ Error::Database(_)) => {
                connection.execute("ROLLBACK TO SAVEPOINT locking").await?;
                locked.insert(relation, Err(error));
            }
            done => done?,
        }
    }
    // What appeared since is not locked, and counts as absent.
    let now = tables(connection).await?.into_iter().filter(|(_, _, is_locked)| *is_locked);
    locked.extend(now.map(|(relation, name, _)| (relation, Ok(name))));
    Ok(locked)
}

/// The rows of tables.sql.
async fn tables(connection: &mut PgConnection) -> Result<Vec<(String, String, bool)>, Error> {
    let rows = sqlx::raw_sql(TABLES).fetch_all(connection).await?;
    rows.iter().map(FromRow::from_row).collect()
}

/// Compares versions with SELECT alone, so that a role without CREATE can start the service. Sends
/// simple queries, which any pooler passes on, and fails in no transaction for a missing table.
async fn state(connection: &mut PgConnection, mut locked: Locked) -> Result<SchemaState, Error> {
    let mut applied: Vec<(i64, Vec<u8>)> = Vec::new();
    if let Some(table) = locked.remove("_sqlx_migrations").transpose()? {
        let versions = format!("SELECT version, checksum FROM {table} WHERE success ORDER BY 1");
        let rows = sqlx::raw_sql(AssertSqlSafe(versions)).fetch_all(&mut *connection).await?;
        applied = rows.iter().map(FromRow::from_row).collect::<Result<_, _>>()?;
    }
    let compatibility = match locked.remove("schema_compatibility").transpose() {
        Ok(table) => table,
        // Only a later migration can need a newer release.
        Err(_) if applied.iter().all(|(version, _)| *version <= newest()) => None,
        Err(refused) => return Err(refused),
    };
    let mut needs = None;
    // Older schemas have no such table, and no migration that needs a newer release.
    if let Some(table) = compatibility {
        let highest =
            format!("SELECT migration, requires FROM {table} ORDER BY requires DESC LIMIT 1");
        let row = sqlx::raw_sql(AssertSqlSafe(highest)).fetch_optional(connection).await?;
        needs = row.as_ref().map(FromRow::from_row).transpose()?;
    }
    Ok(compare(&applied, needs))
}
