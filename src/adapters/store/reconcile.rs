//! One comparison of totals and audit an interval and database, shared by all instances through the
//! table `reconciliation`.
//!
//! Everything happens in one transaction, the lock included: a transaction pooler may give the next
//! transaction to another server connection, where a session's lock or setting would be missing.

use std::time::Duration;

use sqlx::postgres::types::PgInterval;
use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::query::Query;
use sqlx::{Connection, Error, Postgres};

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

const PRIVILEGES: &str = "SELECT coalesce(bool_and(has_table_privilege(\
                            to_regclass('reconciliation'), privilege)), false) \
                          FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS privilege";

/// `ahead`: by more than two reads of a clock can differ. After the database's clock was set back, or
/// after a restore on a server whose clock is behind.
const LAST: &str = "SELECT extract(epoch FROM clock_timestamp() \
                        - least(compared_at, clock_timestamp()))::float8 AS age, \
                      compared_at > clock_timestamp() + interval '5 seconds' AS ahead, \
                      extract(epoch FROM duration)::float8 AS duration, \
                      laws, votes, drift_laws, drift_votes \
                    FROM reconciliation";

const SHARE: &str = "INSERT INTO reconciliation \
                       (compared_at, duration, laws, votes, drift_laws, drift_votes) \
                     VALUES (clock_timestamp(), $1, $2, $3, $4, $5) \
                     ON CONFLICT (id) DO UPDATE SET \
                       compared_at = excluded.compared_at, duration = excluded.duration, \
                       laws = excluded.laws, votes = excluded.votes, \
                       drift_laws = excluded.drift_laws, drift_votes = excluded.drift_votes";

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
        let address = self.address.session("vote-aggregator reconciler", []);
        within(DEADLINE, async {
            let mut connection = address.connect().await?;
            let mut transaction = connection.begin().await?;
            for (setting, value) in [
                ("statement_timeout", STATEMENT_TIMEOUT.as_millis().to_string()),
                // Counting has the other cores.
                ("max_parallel_workers_per_gather", "0".to_owned()),
                // A statement of minutes does not outlive this client; servers before 14 lack it.
                ("client_connection_check_interval", CLIENT_CHECK.as_millis().to_string()),
            ] {
                let set =
                    query("SELECT set_config(name, $2, true) FROM pg_settings WHERE name = $1");
                set.bind(setting).bind(value).execute(&mut *transaction).await?;
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

/// A query that leaves no prepared statement on a server connection, which a pooler may give to
/// another client next.
fn query(sql: &'static str) -> Query<'static, Postgres, PgArguments> {
    sqlx::query(sql).persistent(false)
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
    match last {
        last if !locked => Ok(Reconciled::Busy(last.map(shared))),
        // A time in the future says nothing about when that comparison was.
        Some(last) if !last.1 && shared(last).is_recent(interval) => {
            Ok(Reconciled::Recent(shared(last)))
        }
        _ => {
            let began = tokio::time::Instant::now();
            let comparison = compare(connection, keep).await?;
            share(connection, &comparison, began.elapsed()).await?;
            Ok(Reconciled::Compared(comparison))
        }
    }
}

async fn share(
    connection: &mut PgConnection,
    comparison: &Comparison,
    took: Duration,
) -> Result<(), Error> {
    let Comparison { laws, votes, drift_laws, drift_votes, .. } = comparison;
    let microseconds = i64::try_from(took.as_micros()).unwrap_or(i64::MAX);
    let mut share = query(SHARE).bind(PgInterval { months: 0, days: 0, microseconds });
    for number in [laws, votes, drift_laws, drift_votes] {
        share = share.bind(i64::try_from(*number).unwrap_or(i64::MAX));
    }
    share.execute(connection).await?;
    Ok(())
}

/// A row of [`LAST`].
type Last = (f64, bool, f64, i64, i64, i64, i64);

fn shared((age, _, duration, laws, votes, drift_laws, drift_votes): Last) -> Shared {
    let seconds = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default();
    let number = |number| u64::try_from(number).unwrap_or(0);
    Shared {
        age: seconds(age),
        duration: seconds(duration),
        laws: number(laws),
        votes: number(votes),
        drift_laws: number(drift_laws),
        drift_votes: number(drift_votes),
    }
}
