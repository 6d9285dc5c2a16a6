//! One comparison of totals and audit an interval and database, shared by all instances through the
//! table `reconciliation`.
//!
//! Everything happens in one transaction, the lock included: a transaction pooler may give the next
//! transaction to another server connection, where a session's lock or setting would be missing. No
//! statement stays prepared, since the pooler may give the server connection to another client next.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::postgres::types::PgInterval;
use sqlx::{Connection, Error};
use tokio::time::Instant;

use super::recount::{Comparison, DEADLINE, STATEMENT_TIMEOUT, compare};
use super::{PgStore, within};
use crate::model::ports::Fault;

/// The key of the advisory lock on comparing, drawn at random so that no other program uses it.
const LOCK: i64 = 0x3B1F_9A6C_D2E4_7058;

/// How soon the server may find out that its client is gone.
const CLIENT_CHECK: Duration = Duration::from_secs(2);

/// A comparison is at least this many times as old as it took before the next one: on a table of
/// any size, comparing takes at most a twentieth of one connection's time.
pub const PAUSES: u32 = 20;

const LAST: &str = include_str!("last_comparison.sql");
const SHARE: &str = include_str!("share_comparison.sql");
const PRIVILEGES: &str = "SELECT coalesce(bool_and(has_table_privilege(\
                            to_regclass('reconciliation'), privilege)), false) \
                          FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS privilege";

/// The last comparison, as the table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// By the database's clock; zero when it is in the future.
    pub age: Duration,
    /// How long it took.
    pub duration: Duration,
    pub laws: u64,
    pub votes: u64,
    pub drift_laws: u64,
    pub drift_votes: u64,
}

impl Shared {
    /// The time from this comparison to the next.
    pub fn interval(&self, interval: Duration) -> Duration {
        interval.max(self.duration.saturating_mul(PAUSES))
    }

    fn is_recent(&self, interval: Duration) -> bool {
        self.age < self.interval(interval)
    }
}

/// What came of asking for a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reconciled {
    /// This instance compared; the others see it.
    Compared(Comparison),
    /// The last comparison is recent enough.
    Recent(Shared),
    /// Another session compares now; this is the comparison before, if there was one.
    Busy(Option<Shared>),
    /// The table is missing, or the role may not use it: this instance compared for itself.
    Alone(Comparison),
}

impl PgStore {
    /// Compares the totals of all laws with the audit, unless the last comparison by any instance is
    /// younger than `interval` or another instance compares now. Keeps at most `keep` of the laws that
    /// differ.
    ///
    /// # Errors
    /// [`Fault`] when the database does not answer, or not within ten minutes.
    pub async fn reconcile(&self, interval: Duration, keep: usize) -> Result<Reconciled, Fault> {
        self.comparing(async |connection: &mut PgConnection| {
            reconcile(connection, interval, keep).await
        })
        .await
    }

    /// Compares the totals of all laws with the audit and keeps at most `keep` of those that differ.
    ///
    /// # Errors
    /// As [`PgStore::reconcile`].
    pub async fn compare(&self, keep: usize) -> Result<Comparison, Fault> {
        self.comparing(async |connection: &mut PgConnection| compare(connection, keep).await).await
    }

    /// Does `work` in one transaction on a connection of its own, which takes one core at most; dropped
    /// half-way, it is closed.
    async fn comparing<R>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<R, Error>,
    ) -> Result<R, Fault> {
        let address = self.address.named("vote-aggregator reconciler");
        within(DEADLINE, async {
            let mut connection = address.connect().await?;
            let mut transaction = connection.begin().await?;
            for (setting, value) in [
                ("statement_timeout", STATEMENT_TIMEOUT.as_millis()),
                // Counting has the other cores.
                ("max_parallel_workers_per_gather", 0),
                // A statement of minutes does not outlive this client; servers before 14 lack it.
                ("client_connection_check_interval", CLIENT_CHECK.as_millis()),
            ] {
                let set = "SELECT set_config(name, $2, true) FROM pg_settings WHERE name = $1";
                let set = sqlx::query(set).persistent(false).bind(setting).bind(value.to_string());
                set.execute(&mut *transaction).await?;
            }
            let done = work(&mut transaction).await?;
            transaction.commit().await?;
            // The answer is here, whether or not the server hears of the end.
            connection.close().await.ok();
            Ok::<_, Fault>(done)
        })
        .await
    }
}

/// In the transaction that is open.
async fn reconcile(
    connection: &mut PgConnection,
    interval: Duration,
    keep: usize,
) -> Result<Reconciled, Error> {
    let usable = sqlx::query_scalar(PRIVILEGES).persistent(false);
    if !usable.fetch_one(&mut *connection).await? {
        return compare(connection, keep).await.map(Reconciled::Alone);
    }
    let lock = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)").persistent(false);
    let locked: bool = lock.bind(LOCK).fetch_one(&mut *connection).await?;
    // After the lock: a comparison that ended before it is seen.
    let last = sqlx::query_as(LAST).persistent(false).fetch_optional(&mut *connection).await?;
    let last = last.map(shared);
    match last {
        _ if !locked => return Ok(Reconciled::Busy(last.map(|(last, _)| last))),
        // A time in the future does not say when that comparison was.
        Some((last, false)) if last.is_recent(interval) => return Ok(Reconciled::Recent(last)),
        _ => {}
    }
    let began = Instant::now();
    let comparison = compare(&mut *connection, keep).await?;
    let Comparison { laws, votes, drift_laws, drift_votes, .. } = comparison;
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let microseconds = i64::try_from(began.elapsed().as_micros()).unwrap_or(i64::MAX);
    sqlx::query(SHARE)
        .persistent(false)
        .bind(PgInterval { months: 0, days: 0, microseconds })
        .bind(signed(laws))
        .bind(signed(votes))
        .bind(signed(drift_laws))
        .bind(signed(drift_votes))
        .execute(connection)
        .await?;
    Ok(Reconciled::Compared(comparison))
}

/// A row of last_comparison.sql.
type Last = (f64, bool, f64, i64, i64, i64, i64);

/// Returns also whether it is in the future.
fn shared((age, ahead, duration, laws, votes, drift_laws, drift_votes): Last) -> (Shared, bool) {
    let seconds = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default();
    let [laws, votes, drift_laws, drift_votes] =
        [laws, votes, drift_laws, drift_votes].map(|number| u64::try_from(number).unwrap_or(0));
    let (age, duration) = (seconds(age), seconds(duration));
    (Shared { age, duration, laws, votes, drift_laws, drift_votes }, ahead)
}
