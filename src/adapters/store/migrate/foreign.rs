//! Finds objects under our names that another role made, before any statement touches them.

use std::fmt;

use sqlx::postgres::PgConnection;
use sqlx::{Error, Executor, FromRow};

const FOREIGN: &str = include_str!("foreign.sql");

const PLACE: &str = include_str!("place.sql");

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
pub(super) async fn inspect(connection: &mut PgConnection) -> Result<Surroundings, Error> {
    let place = sqlx::raw_sql(PLACE).fetch_one(&mut *connection).await?;
    let (schema, path, may_create, tables_owner): (Option<String>, String, _, _) =
        FromRow::from_row(&place)?;
    let path: Vec<String> =
        serde_json::from_str(&path).map_err(|error| Error::Decode(Box::new(error)))?;
    let mut foreign = Vec::new();
    if let Some(schema) = &schema {
        // The savepoint brings back the search path.
        connection
            .execute("SAVEPOINT inspect; SET LOCAL search_path = pg_catalog, pg_temp")
            .await?;
        let objects = sqlx::query_as(FOREIGN).persistent(false).bind(path).bind(schema);
        foreign = objects.fetch_all(&mut *connection).await?;
        connection.execute("ROLLBACK TO SAVEPOINT inspect").await?;
    }
    Ok(Surroundings { schema, may_create, tables_owner, foreign })
}
