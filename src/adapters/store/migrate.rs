//! The schema's versions: embedded, compared by SELECT, applied only when one is missing.

mod apply;
mod foreign;
mod read;

use std::time::Duration;

use sqlx::migrate::{Migration, Migrator};

pub(super) use self::apply::{NotApplied, apply_next, close_schema, open_schema, rehearse_pending};
pub(super) use self::foreign::list;
pub use self::foreign::{ForeignObject, Surroundings};
pub(super) use self::read::{Examined, examine};

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

/// The newest migration of this release.
pub(super) fn newest() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default()
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
    let checksum: String = migration.checksum.iter().map(|byte| format!("{byte:02x}")).collect();
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

    fn applied(versions: &[i64]) -> Vec<(i64, Vec<u8>)> {
        let checksum = |version: i64| {
            let known = MIGRATIONS.iter().find(|known| known.version == version);
            known.map(|known| known.checksum.to_vec()).unwrap_or_default()
        };
        versions.iter().map(|version| (*version, checksum(*version))).collect()
    }

    #[test]
    fn later_migrations_are_accepted_unless_one_requires_a_newer_release() {
        let all: Vec<i64> = (1..=newest()).collect();
        let (next, after) = (newest() + 1, newest() + 2);
        let with = |more: &[i64]| applied(&[all.as_slice(), more].concat());
        assert_eq!(compare(&applied(&[]), None), SchemaState::Pending(all.clone()));
        assert_eq!(compare(&with(&[]), None), SchemaState::Current);
        assert_eq!(compare(&with(&[next, after]), None), SchemaState::Newer(vec![next, after]));
        // A requirement that this release fulfils.
        let fulfilled = Some((next, newest()));
        assert_eq!(compare(&with(&[next]), fulfilled), SchemaState::Newer(vec![next]));
        assert_eq!(
            compare(&with(&[next, after]), Some((next, after))),
            SchemaState::Incompatible { migration: next, requires: after }
        );
    }

    #[test]
    fn gaps_and_other_contents_are_not_accepted() {
        let later = newest() + 1;
        let mut gap: Vec<i64> = (2..=newest()).collect();
        assert_eq!(compare(&applied(&gap), None), SchemaState::Pending(vec![1]));
        gap.push(later);
        assert_eq!(compare(&applied(&gap), None), SchemaState::Unknown(later));
        assert_eq!(compare(&applied(&[0, 1]), None), SchemaState::Unknown(0));
        assert_eq!(compare(&[(1, b"x".to_vec())], None), SchemaState::Differs(1));
    }
}
