//! What PostgreSQL does with a commit: settings and tables that can lose it, and standbys.

use sqlx::postgres::PgConnection;

use super::PgStore;
use crate::model::ports::Fault;
use crate::platform::config::Config;
use crate::platform::telemetry::Standbys;

const RISKS: &str = include_str!("durability.sql");

/// Standbys that stream from this server. `synchronous_commit` as this session has it. Of a walsender
/// of another role, a role without pg_read_all_stats sees that it is there and no details; a base
/// backup and logical replication are told apart where that can be seen.
const STANDBYS: &str = "
    SELECT btrim(current_setting('synchronous_standby_names')) <> '',
           current_setting('synchronous_commit') NOT IN ('off', 'local'),
           (SELECT count(*) FROM pg_stat_replication AS sender
            WHERE coalesce(sender.state, '') <> 'backup'
              AND NOT EXISTS (SELECT FROM pg_replication_slots AS slot
                              WHERE slot.active_pid = sender.pid AND slot.slot_type = 'logical'))";

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
    Ok(sqlx::query_as(RISKS).fetch_all(connection).await?)
}

/// Reads how many standbys are connected and whether a commit waits for one.
pub(super) async fn standbys(connection: &mut PgConnection) -> Result<Standbys, Fault> {
    let (named, waits, connected): (bool, bool, i64) =
        sqlx::query_as(STANDBYS).fetch_one(connection).await?;
    Ok(Standbys { connected: connected.unsigned_abs(), named, waited_for: named && waits })
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
