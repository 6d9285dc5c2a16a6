//! What PostgreSQL does with a commit: settings and tables that can lose it, and standbys.

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};

use super::PgStore;
use super::transaction::fault;
use crate::config::Config;
use crate::ports::Fault;
use crate::telemetry::Standbys;

const RISKS: &str = include_str!("durability.sql");

/// Standbys that stream from this server. `synchronous_commit` as this session has it. Of a walsender
/// of another role, a role without pg_read_all_stats sees that it is there and no details; a base
/// backup and logical replication are told apart where that can be seen.
const STANDBYS: &str = "
    SELECT btrim(current_setting('synchronous_standby_names')) <> '' AS named,
           current_setting('synchronous_commit') NOT IN ('off', 'local') AS waits,
           (SELECT count(*) FROM pg_stat_replication AS sender
            WHERE coalesce(sender.state, '') <> 'backup'
              AND NOT EXISTS (SELECT FROM pg_replication_slots AS slot
                              WHERE slot.active_pid = sender.pid AND slot.slot_type = 'logical'))
               AS connected";

/// A setting or a table that can lose committed votes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Risk {
    /// As in `fsync=off`, or `unlogged table vote_audit`.
    pub(super) risk: String,
    pub(super) remedy: String,
}

/// Reads what could lose a commit. With `synchronous_commit=off`, 10–25 acknowledged commits were
/// lost each time PostgreSQL was killed; an unlogged table was empty afterwards (measured on 15.18).
pub(super) async fn risks(connection: &mut PgConnection) -> Result<Vec<Risk>, Fault> {
    let rows = sqlx::query(RISKS).fetch_all(connection).await.map_err(|error| fault(&error))?;
    let read =
        |row: &PgRow| Ok(Risk { risk: row.try_get("risk")?, remedy: row.try_get("remedy")? });
    let risks = rows.iter().map(read).collect::<Result<_, sqlx::Error>>();
    risks.map_err(|error| fault(&error))
}

/// Reads how many standbys are connected and whether a commit waits for one.
pub(super) async fn standbys(connection: &mut PgConnection) -> Result<Standbys, Fault> {
    let row = sqlx::query(STANDBYS).fetch_one(connection).await.map_err(|error| fault(&error))?;
    let read = |row: &PgRow| {
        let connected: i64 = row.try_get("connected")?;
        let (named, waits): (bool, bool) = (row.try_get("named")?, row.try_get("waits")?);
        Ok(Standbys { connected: connected.unsigned_abs(), named, waited_for: named && waits })
    };
    read(&row).map_err(|error: sqlx::Error| fault(&error))
}

/// The risks in one line, and in another what to do.
pub(super) fn listed(risks: &[Risk]) -> (String, String) {
    let join = |text: fn(&Risk) -> &str, separator: &str| {
        risks.iter().map(text).collect::<Vec<_>>().join(separator)
    };
    (join(|risk| &risk.risk, ", "), join(|risk| &risk.remedy, "; "))
}

/// Warns where a standby is connected that no commit waits for.
pub(super) fn warn_of_standbys(config: &Config, standbys: Standbys) {
    if standbys.connected > 0 && !standbys.named {
        tracing::warn!(
            database = config.postgres.database,
            standbys = standbys.connected,
            "synchronous_standby_names is empty: a failover to a standby loses acknowledged votes"
        );
    }
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
