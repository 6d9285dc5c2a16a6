//! The schema's versions: embedded, compared by SELECT, applied only when one is missing.

mod apply;
mod foreign;
mod read;

use std::time::Duration;

use sqlx::migrate::{Migration, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Error, Executor};

pub(super) use self::apply::{apply_next, close_schema, open_schema, rehearse_pending};
pub use self::foreign::{ForeignObject, Surroundings};
pub(super) use self::read::{Examined, examine};
use crate::model::hex;

/// The migrations and their checksums. They are not run by sqlx: its lock belongs to a session,
/// which a transaction pooler does not keep, and it waits without a limit.
static MIGRATIONS: Migrator = sqlx::migrate!();

/// The table of versions, as sqlx makes it, so that releases that use sqlx's migrator read it.
const VERSIONS_TABLE: &str = "CREATE TABLE IF NOT EXISTS _sqlx_migrations (
    version bigint PRIMARY KEY,
    description text NOT NULL,
    installed_on timestamptz NOT NULL DEFAULT now(),
    success boolean NOT NULL,
    checksum bytea NOT NULL,
    execution_time bigint NOT NULL
);
";

/// How the database's schema relates to the one that this release knows.
#[derive(Debug, PartialEq, Eq)]
pub enum SchemaState {
    /// All migrations of this release are applied, and no others.
    Current,
    /// All are applied, and these later ones, which this release can run on.
    Newer(Vec<i64>),
    /// These are not applied; in order.
    Pending(Vec<i64>),
    /// A later `migration` needs a release that knows the migration `requires`.
    Incompatible { migration: i64, requires: i64 },
    /// A version is applied that is neither one of this release's nor later than all of them, or
    /// that is later while one of this release's is missing.
    Unknown(i64),
    /// An applied version differs from ours under the same number.
    Differs(i64),
}

impl SchemaState {
    /// Why a schema does not fit that is not migrated, and what to do.
    pub fn unfit(&self) -> (String, &'static str) {
        match self {
            Self::Current | Self::Newer(_) => ("it is up to date".to_owned(), "nothing"),
            Self::Pending(versions) => (
                format!("migrations {versions:?} are not applied and MIGRATE_ON_START is off"),
                "run `vote-aggregator migrate` as the owner of the tables",
            ),
            Self::Incompatible { migration, requires } => (
                format!(
                    "the database is at migration {migration}, which needs a release that knows \
                     migration {requires}; this release knows migrations up to {}",
                    newest()
                ),
                "run such a release; to stay with this one, restore the database from before that \
                 migration",
            ),
            Self::Unknown(version) => (
                format!(
                    "migration {version} is applied, which this release does not have, and not all \
                     migrations of this release are applied"
                ),
                "check POSTGRES_DB, and compare the table _sqlx_migrations with init_db.sql",
            ),
            Self::Differs(version) => (
                format!("migration {version} was applied with other content than this release has"),
                "compare the schema with init_db.sql",
            ),
        }
    }
}

/// The newest migration of this release.
pub(super) fn newest() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// Runs commands without parameters.
async fn execute(connection: &mut PgConnection, commands: String) -> Result<(), Error> {
    connection.execute(sqlx::raw_sql(AssertSqlSafe(commands))).await?;
    Ok(())
}

/// `applied` with their checksums, in order; `needs` is the migration with the highest requirement,
/// and the requirement.
fn compare(applied: &[(i64, Vec<u8>)], needs: Option<(i64, i64)>) -> SchemaState {
    let mut pending: Vec<i64> = MIGRATIONS.iter().map(|known| known.version).collect();
    let (newest, mut newer) = (newest(), Vec::new());
    for (version, checksum) in applied {
        match MIGRATIONS.iter().find(|known| known.version == *version) {
            None if *version > newest => newer.push(*version),
            None => return SchemaState::Unknown(*version),
            Some(known) if *known.checksum != **checksum => return SchemaState::Differs(*version),
            Some(_) => pending.retain(|known| known != version),
        }
    }
    match (needs, newer.first()) {
        (Some((migration, requires)), _) if requires > newest => {
            SchemaState::Incompatible { migration, requires }
        }
        (_, Some(later)) if !pending.is_empty() => SchemaState::Unknown(*later),
        (_, Some(_)) => SchemaState::Newer(newer),
        _ if pending.is_empty() => SchemaState::Current,
        _ => SchemaState::Pending(pending),
    }
}

/// The statement that records an applied migration.
fn insert_version(migration: &Migration, took: Duration) -> String {
    let checksum = hex::encode(&migration.checksum);
    format!(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)\n\
         VALUES ({}, '{}', true, '\\x{checksum}', {})",
        migration.version,
        migration.description,
        took.as_nanos(),
    )
}

/// The whole schema as one script for `psql -f`, versions noted, so that a service that finds it
/// has nothing left to apply. `init_db.sql` is this.
pub fn init_script() -> String {
    let mut script = format!(
        "-- The schema of vote-aggregator in one script: psql -d election_votes -f init_db.sql\n\
         -- Generated from migrations/ by `vote-aggregator migrate --print`; do not edit.\n\
         \\set ON_ERROR_STOP on\n\
         BEGIN;\n\n\
         {VERSIONS_TABLE}"
    );
    for migration in MIGRATIONS.iter() {
        script += &format!(
            "\n-- {version:04} {description}\n\n{sql}\n\
             {insert}\n\
             ON CONFLICT (version) DO NOTHING;\n",
            version = migration.version,
            description = migration.description,
            sql = migration.sql.as_str().trim_end(),
            insert = insert_version(migration, Duration::ZERO),
        );
    }
    script + "\nCOMMIT;\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(versions: impl IntoIterator<Item = i64>, needs: Option<(i64, i64)>) -> SchemaState {
        let checksum = |version: i64| {
            let known = MIGRATIONS.iter().find(|known| known.version == version);
            known.map(|known| known.checksum.to_vec()).unwrap_or_default()
        };
        let applied = versions.into_iter().map(|version| (version, checksum(version)));
        compare(&applied.collect::<Vec<_>>(), needs)
    }

    /// All migrations of this release from the one at `first` on, and `later` ones.
    fn from(first: usize, later: &[i64]) -> Vec<i64> {
        let known = MIGRATIONS.iter().map(|known| known.version).skip(first);
        known.chain(later.iter().copied()).collect()
    }

    #[test]
    fn later_migrations_are_accepted_unless_one_requires_a_newer_release() {
        let (next, after) = (newest() + 1, newest() + 2);
        assert_eq!(state([], None), SchemaState::Pending(from(0, &[])));
        assert_eq!(state(from(0, &[]), None), SchemaState::Current);
        let newer = vec![next, after];
        assert_eq!(state(from(0, &newer), None), SchemaState::Newer(newer.clone()));
        // A requirement that this release fulfils.
        let needs = Some((next, newest()));
        assert_eq!(state(from(0, &[next]), needs), SchemaState::Newer(vec![next]));
        let incompatible = SchemaState::Incompatible { migration: next, requires: after };
        assert_eq!(state(from(0, &newer), Some((next, after))), incompatible);
    }

    #[test]
    fn gaps_and_other_contents_are_not_accepted() {
        let next = newest() + 1;
        assert_eq!(state(from(1, &[]), None), SchemaState::Pending(vec![1]));
        assert_eq!(state(from(1, &[next]), None), SchemaState::Unknown(next));
        assert_eq!(state([0, 1], None), SchemaState::Unknown(0));
        assert_eq!(compare(&[(1, b"x".to_vec())], None), SchemaState::Differs(1));
    }
}
