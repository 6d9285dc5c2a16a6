//! Looks acknowledged votes up in the audit: a failover or a restore may have lost their commits
//! (semantics, section 10).

use sqlx::Connection;
use sqlx::postgres::PgConnection;

use super::PgStore;
use crate::model::ports::Fault;

const LOOK_UP: &str = include_str!("acknowledged.sql");
const ALARMS: &str = include_str!("alarms.sql");
const RECORD: &str = include_str!("record_lost.sql");
/// Two instances that notice the same loss record it under one alarm. The number is arbitrary.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7218320945710285)";
/// The timeline that a primary writes to: each promotion and each recovery to a point in time begins a
/// new one.
const TIMELINE: &str =
    "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int8";

/// What became of acknowledged votes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LookUp {
    /// Hashes that are not in the audit.
    pub missing: Vec<String>,
    /// Alarms about votes that are recorded as lost and still missing. `None` where the table
    /// `lost_votes` is missing or this role may not use it.
    pub alarms: Option<Vec<String>>,
    /// PostgreSQL's timeline; 0 where the server has none.
    pub timeline: i64,
}

/// Votes that are to be recorded as lost.
#[derive(Clone, Debug)]
pub struct LostVotes {
    pub hashes: Vec<String>,
    /// Name of the alarm, unless there is one already.
    pub alarm: String,
    /// Names of alarms that were accepted.
    pub accepted: Vec<String>,
    /// Timeline on which they were last found, and the present one.
    pub timelines: [i64; 2],
}

impl PgStore {
    /// Looks `hashes` up in the audit, and asks for alarms that are not `accepted`. `None` on a standby,
    /// whose audit may lag behind.
    ///
    /// # Errors
    /// [`Fault`] when the database does not answer.
    pub async fn look_up(
        &self,
        hashes: Vec<String>,
        accepted: Vec<String>,
    ) -> Result<Option<LookUp>, Fault> {
        self.read(async move |connection: &mut PgConnection| {
            // Not kept prepared: a plan made while the tables were empty would read all of them.
            let found = sqlx::query_as(LOOK_UP).persistent(false).bind(hashes);
            let Some((missing, recordable)) = found.fetch_optional(&mut *connection).await? else {
                return Ok(None);
            };
            let mut alarms = None;
            if recordable {
                let names = sqlx::query_scalar(ALARMS).persistent(false).bind(accepted);
                alarms = Some(names.fetch_all(&mut *connection).await?);
            }
            // Databases related to PostgreSQL may refuse this; the alarm does not need it.
            let timeline = sqlx::query_scalar(TIMELINE).fetch_one(connection).await;
            Ok(Some(LookUp { missing, alarms, timeline: timeline.unwrap_or_default() }))
        })
        .await
    }

    /// Records votes as lost.
    ///
    /// # Errors
    /// [`Fault`] when the database does not take them.
    pub async fn record_lost(&self, lost: LostVotes) -> Result<(), Fault> {
        self.read(async move |connection: &mut PgConnection| {
            let mut transaction = connection.begin().await?;
            sqlx::query(LOCK).execute(&mut *transaction).await?;
            let [before, after] = lost.timelines;
            sqlx::query(RECORD)
                .persistent(false)
                .bind(lost.hashes)
                .bind(lost.alarm)
                .bind(lost.accepted)
                .bind(before)
                .bind(after)
                .execute(&mut *transaction)
                .await?;
            Ok(transaction.commit().await?)
        })
        .await
    }
}
