//! Reads which migrations are applied, from tables that nobody can exchange meanwhile.

use std::collections::BTreeMap;

use sqlx::postgres::PgConnection;
use sqlx::{Error, Executor, FromRow, Row};

use super::foreign::{Surroundings, look};
use super::{SchemaState, compare, newest};

/// The tables of versions and requirements as the search path finds them now: name, qualified name,
/// and whether this transaction holds a lock on it. Views are left out. Operators are qualified: this
/// runs with the session's search path, before anything is known of the schemas in it.
const TABLES: &str = "
    SELECT class.relname::pg_catalog.text,
           pg_catalog.format('%I.%I', namespace.nspname, class.relname),
           EXISTS (
               SELECT FROM pg_catalog.pg_locks AS lock
               WHERE lock.locktype OPERATOR(pg_catalog.=) 'relation'::pg_catalog.text
                 AND lock.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()
                 AND lock.relation OPERATOR(pg_catalog.=) class.oid
                 AND lock.mode OPERATOR(pg_catalog.=) 'AccessShareLock'::pg_catalog.text
                 AND lock.granted)
    FROM (VALUES (pg_catalog.to_regclass('_sqlx_migrations')),
                 (pg_catalog.to_regclass('schema_compatibility'))) AS ours (relation)
    JOIN pg_catalog.pg_class AS class
      ON class.oid OPERATOR(pg_catalog.=) ours.relation::pg_catalog.oid
    JOIN pg_catalog.pg_namespace AS namespace
      ON namespace.oid OPERATOR(pg_catalog.=) class.relnamespace
    WHERE class.relkind OPERATOR(pg_catalog.=) 'r'::pg_catalog.\"char\"
       OR class.relkind OPERATOR(pg_catalog.=) 'p'::pg_catalog.\"char\"";

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
    let surroundings = look(connection).await?;
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
        let lock = format!("LOCK TABLE {name} IN ACCESS SHARE MODE");
        let refused = connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(lock))).await;
        if let Err(error @ Error::Database(_)) = refused {
            connection.execute("ROLLBACK TO SAVEPOINT locking").await?;
            locked.insert(relation, Err(error));
        } else {
            refused?;
        }
    }
    // What appeared since is not locked, and counts as absent.
    for (relation, name, is_locked) in tables(connection).await? {
        if is_locked {
            locked.insert(relation, Ok(name));
        }
    }
    Ok(locked)
}

/// The rows of [`TABLES`].
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
        let versions = sqlx::raw_sql(sqlx::AssertSqlSafe(versions));
        for row in versions.fetch_all(&mut *connection).await? {
            applied.push((row.try_get(0)?, row.try_get(1)?));
        }
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
        let marks =
            format!("SELECT migration, requires FROM {table} ORDER BY requires DESC LIMIT 1");
        let marks = sqlx::raw_sql(sqlx::AssertSqlSafe(marks));
        if let Some(row) = marks.fetch_optional(connection).await? {
            needs = Some((row.try_get(0)?, row.try_get(1)?));
        }
    }
    Ok(compare(&applied, needs))
}
