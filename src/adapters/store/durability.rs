//! What PostgreSQL does with a commit: settings and tables that can lose it, and standbys.

use sqlx::postgres::PgConnection;

use super::{COUNTED_TABLES, PgStore};
use crate::model::ports::Fault;
use crate::platform::telemetry::Standbys;

const RISKS: &str = include_str!("durability.sql");
const STANDBYS: &str = include_str!("standbys.sql");

/// A setting or a table that can lose committed votes.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Risk {
    /// As in `fsync=off`, or `unlogged table vote_audit`.
    pub risk: String,
    pub remedy: String,
}

/// Reads what could lose a commit. With `synchronous_commit=off`, 10–25 acknowledged commits were
/// lost each time PostgreSQL was killed; an unlogged table was empty afterwards (measured on 15.18).
pub(super) async fn risks(connection: &mut PgConnection) -> Result<Vec<Risk>, Fault> {
    Ok(sqlx::query_as(RISKS).bind(COUNTED_TABLES).fetch_all(connection).await?)
}

/// Reads how many standbys are connected and whether a commit waits for one.
pub(super) async fn standbys(connection: &mut PgConnection) -> Result<Standbys, Fault> {
    let (named, waits, connected): (bool, bool, i64) =
        sqlx::query_as(STANDBYS).fetch_one(connection).await?;
    Ok(Standbys { connected: connected.unsigned_abs(), named, waited_for: named && waits })
}

impl PgStore {
    /// How many standbys are connected and whether a commit waits for one.
    ///
    /// # Errors
    /// [`Fault`] when the database does not answer.
    pub async fn standbys(&self) -> Result<Standbys, Fault> {
        self.read(standbys).await
    }
}
