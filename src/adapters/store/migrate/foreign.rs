//! Finds objects under our names that another role made, before any statement touches them.

use std::fmt;

use sqlx::postgres::PgConnection;
use sqlx::{Error, Executor, Row};

const FOREIGN: &str = include_str!("foreign.sql");

/// Every relation that the migrations make, and its kind. A test compares it with the catalogue.
const OURS: [(&str, &str); 20] = [
    ("_sqlx_migrations", "table"),
    ("vote_results", "table"),
    ("vote_audit", "table"),
    ("duplicate_attempts", "table"),
    ("result_corrections", "table"),
    ("schema_compatibility", "table"),
    ("reconciliation", "table"),
    ("lost_votes", "table"),
    ("vote_statistics", "view"),
    ("citizens_with_multiple_votes", "view"),
    ("result_corrections_id_seq", "sequence"),
    ("_sqlx_migrations_pkey", "index"),
    ("vote_results_pkey", "index"),
    ("vote_audit_pkey", "index"),
    ("duplicate_attempts_key", "index"),
    ("result_corrections_pkey", "index"),
    ("schema_compatibility_pkey", "index"),
    ("reconciliation_pkey", "index"),
    ("lost_votes_pkey", "index"),
    // Made by the predecessor where it made the audit.
    ("vote_audit_vote_hash_key", "index"),
];

/// An object that the migrating role must not touch, and why.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct ForeignObject {
    /// Kind and name.
    pub object: String,
    pub problem: String,
    /// Another role owns it, or it is of another kind: refused also when no migration is pending.
    pub ownership: bool,
    /// Reading it may run code of its owner's.
    pub unreadable: bool,
}

impl fmt::Display for ForeignObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.object, self.problem)
    }
}

/// What the catalogue says of the schema in which tables are created.
#[derive(Debug)]
pub struct Surroundings {
    /// The schema; `None` when no schema of the search path exists.
    pub schema: Option<String>,
    /// This role may create tables in it.
    pub may_create: bool,
    /// Who owns vote_audit, if it exists.
    pub tables_owner: Option<String>,
    pub foreign: Vec<ForeignObject>,
}

impl Surroundings {
    /// Objects that keep this role from going on: those that are unsafe to read, and with
    /// `may_migrate` those of other roles where this role creates tables.
    pub(in crate::adapters::store) fn refused(&self, may_migrate: bool) -> Vec<&ForeignObject> {
        if self.foreign.iter().any(|object| object.unreadable) {
            return self.foreign.iter().collect();
        }
        let enforced = may_migrate && self.may_create;
        self.foreign.iter().filter(|object| enforced && object.ownership).collect()
    }
}

/// Looks in the transaction that is open, so that a pooler cannot change the connection in between.
pub(super) async fn look(connection: &mut PgConnection) -> Result<Surroundings, Error> {
    let place = sqlx::raw_sql(
        "SELECT pg_catalog.current_schema() AS schema, \
         pg_catalog.array_to_json(pg_catalog.current_schemas(true))::pg_catalog.text AS path, \
         coalesce(pg_catalog.has_schema_privilege(pg_catalog.current_schema()::pg_catalog.text, \
                  'CREATE'), false) AS may_create, \
         (SELECT pg_catalog.pg_get_userbyid(relowner)::pg_catalog.text FROM pg_catalog.pg_class \
          WHERE oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('vote_audit')::pg_catalog.oid) \
             AS tables_owner",
    )
    .fetch_one(&mut *connection)
    .await?;
    let (schema, may_create) = (place.try_get::<Option<String>, _>(0)?, place.try_get(2)?);
    let tables_owner = place.try_get(3)?;
    let path: Vec<String> =
        serde_json::from_str(place.try_get(1)?).map_err(|error| Error::Decode(Box::new(error)))?;
    let Some(name) = &schema else {
        return Ok(Surroundings { schema, may_create, tables_owner, foreign: Vec::new() });
    };
    // The savepoint brings back the search path.
    connection.execute("SAVEPOINT look; SET LOCAL search_path = pg_catalog, pg_temp").await?;
    let (names, kinds): (Vec<&str>, Vec<&str>) = OURS.into_iter().unzip();
    let foreign = sqlx::query_as(FOREIGN)
        .bind(path)
        .bind(name)
        .bind(names)
        .bind(kinds)
        .persistent(false)
        .fetch_all(&mut *connection)
        .await?;
    connection.execute("ROLLBACK TO SAVEPOINT look").await?;
    Ok(Surroundings { schema, may_create, tables_owner, foreign })
}

/// The objects as one text.
pub(in crate::adapters::store) fn list<'a>(
    objects: impl IntoIterator<Item = &'a ForeignObject>,
) -> String {
    objects.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
