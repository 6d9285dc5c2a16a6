//! The schema's versions: embedded, compared by SELECT, applied only when one is missing.

use std::fmt::Write;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{Error, Row};

pub(super) static MIGRATIONS: Migrator = sqlx::migrate!();

/// How the database's schema stands to the one this binary knows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SchemaState {
    Current,
    /// Versions that are not applied, in order.
    Pending(Vec<i64>),
    /// A version that this binary does not know: a newer one was here.
    Unknown(i64),
    /// An applied version differs from ours under the same number.
    Differs(i64),
}

/// Compares versions with SELECT alone, so that a role without CREATE can start the service.
pub(super) async fn state(connection: &mut PgConnection) -> Result<SchemaState, Error> {
    let applied = match sqlx::query(
        "SELECT version, checksum FROM _sqlx_migrations WHERE success ORDER BY 1",
    )
    .fetch_all(connection)
    .await
    {
        Ok(rows) => rows,
        // undefined_table: nothing was ever applied
        Err(Error::Database(e)) if e.code().as_deref() == Some("42P01") => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut pending: Vec<i64> = MIGRATIONS.iter().map(|known| known.version).collect();
    for row in applied {
        let (version, checksum): (i64, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
        match MIGRATIONS.iter().find(|known| known.version == version) {
            None => return Ok(SchemaState::Unknown(version)),
            Some(known) if *known.checksum != *checksum => {
                return Ok(SchemaState::Differs(version));
            }
            Some(_) => pending.retain(|known| *known != version),
        }
    }
    Ok(if pending.is_empty() { SchemaState::Current } else { SchemaState::Pending(pending) })
}

/// Applies what is missing. Safe for several instances at once: an advisory lock lets one through.
pub(super) async fn apply(connection: &mut PgConnection) -> Result<(), MigrateError> {
    MIGRATIONS.run_direct(None, connection, false).await
}

/// The whole schema as one script for `psql -f`, versions noted, so that a service that finds it
/// has nothing left to apply. `init_db.sql` is this.
pub fn init_script() -> String {
    let mut script = String::from(
        "-- The schema of vote-aggregator in one script: psql -d election_votes -f init_db.sql\n\
         -- Generated from migrations/ by `vote-aggregator migrate --print`; do not edit.\n\
         \\set ON_ERROR_STOP on\n\
         BEGIN;\n\n\
         CREATE TABLE IF NOT EXISTS _sqlx_migrations (\n    \
             version bigint PRIMARY KEY,\n    \
             description text NOT NULL,\n    \
             installed_on timestamptz NOT NULL DEFAULT now(),\n    \
             success boolean NOT NULL,\n    \
             checksum bytea NOT NULL,\n    \
             execution_time bigint NOT NULL\n);\n",
    );
    for migration in MIGRATIONS.iter() {
        let checksum: String = migration.checksum.iter().fold(String::new(), |mut hex, byte| {
            // Writing to a String cannot fail.
            let _infallible = write!(hex, "{byte:02x}");
            hex
        });
        script += &format!(
            "\n-- {version:04} {description}\n\n{sql}\n\
             INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)\n\
             VALUES ({version}, '{description}', true, '\\x{checksum}', 0)\n\
             ON CONFLICT (version) DO NOTHING;\n",
            version = migration.version,
            description = migration.description,
            sql = migration.sql.as_str().trim_end(),
        );
    }
    script + "\nCOMMIT;\n"
}
