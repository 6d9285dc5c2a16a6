//! What the sealer reads: how far transactions are decided, which of them counted votes, and their rows; all in one
//! snapshot, and without writing anything.
//!
//! Ids of transactions are 64 bits wide (xid8) here; `xmin` has the lower 32 of them.

mod copy;
mod pages;
mod snapshot;

use sha2::{Digest, Sha256};
use sqlx::FromRow;
use sqlx::postgres::PgConnection;

pub use self::snapshot::SealSnapshot;
use super::connection::Address;
use super::error::{StartError, failed};
use super::recount::STATEMENT_TIMEOUT;
use super::within;
use super::writer::takes_no_writes;
use crate::model::tlog::row::Row;
use crate::platform::config::Config;

const FACTS: &str = include_str!("seal/facts.sql");
const LOCK: &str = "SELECT pg_try_advisory_lock($1)";
/// The server and its transactions, as one snapshot has them.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct SealFacts {
    pub system_identifier: i64,
    pub timeline: i64,
    /// Object ids of the tables.
    pub vote_audit: i64,
    pub count_batch: i64,
    /// All transactions below it are committed or rolled back for good (pg_snapshot_xmin).
    horizon: i64,
    /// No transaction from it on is visible (pg_snapshot_xmax).
    next: i64,
    is_standby: bool,
}

/// A row of count_batch: a transaction that counted votes.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct CountBatch {
    xid: i64,
    /// Pages of the audit between which its rows lie, unless they were moved.
    first_page: i64,
    last_page: i64,
    row_count: i32,
}

/// Votes that are committed and not sealed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromRow)]
pub struct Unsealed {
    pub votes: i64,
    /// Those whose transactions are below the horizon.
    pub decided: i64,
}

/// The oldest transaction in progress, which the horizon waits for. Never its query.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub struct Holder {
    /// `None` for a prepared transaction.
    pub pid: Option<i32>,
    /// The identifier of a prepared transaction.
    pub gid: Option<String>,
    pub role: Option<String>,
    pub application: Option<String>,
    /// In seconds; `None` where it is hidden from our role.
    pub age: Option<f64>,
}

/// A row of the audit as the sealer gets it: with the lower half of its transaction's id, and `None` where it is not a
/// vote that this service counts.
pub type AuditRow = (u32, Option<Row>);

impl SealFacts {
    pub fn horizon(&self) -> u64 {
        self.horizon.unsigned_abs()
    }

    pub fn next(&self) -> u64 {
        self.next.unsigned_abs()
    }

    /// The id of the transaction below the horizon that has this lower half.
    pub fn below(&self, xmin: u32) -> u64 {
        let distance = (self.horizon() as u32).wrapping_sub(xmin).wrapping_sub(1);
        self.horizon().saturating_sub(1).saturating_sub(distance.into())
    }

    /// Whether a visible row with this `xmin` was written by a transaction from `to` on.
    pub fn is_after(&self, xmin: u32, to: u64) -> bool {
        u64::from(xmin.wrapping_sub(to as u32)) < self.next().saturating_sub(to)
    }
}

impl CountBatch {
    pub fn xid(&self) -> u64 {
        self.xid.unsigned_abs()
    }

    /// As `xmin` of its rows has it.
    pub fn xmin(&self) -> u32 {
        self.xid as u32
    }

    pub fn rows(&self) -> u64 {
        self.row_count.unsigned_abs().into()
    }
}

/// Reads for sealing, again and again on one connection, of the server that takes writes.
pub struct SealReader<'c> {
    config: &'c Config,
    address: Address,
    /// The key of the lock that one sealer a log holds; `None`: without.
    lock: Option<i64>,
    connection: Option<PgConnection>,
}

impl<'c> SealReader<'c> {
    /// Connects on first use, and then holds the lock on `origin`, if one is given, as long as it is connected.
    pub fn new(config: &'c Config, origin: Option<&str>) -> Self {
        let address = Address::limited(&config.postgres, STATEMENT_TIMEOUT);
        let address = address.named("vote-aggregator seal").read_only();
        Self { config, address, lock: origin.map(lock_key), connection: None }
    }

    /// Begins a snapshot; `None` while another sealer of this log is connected.
    ///
    /// # Errors
    /// [`StartError`]: only [`StartError::Unavailable`] is worth a retry. Also on a standby, which may be cut off.
    pub async fn begin(&mut self) -> Result<Option<(SealSnapshot<'c>, SealFacts)>, StartError> {
        let config = self.config;
        // Taken out, so that a read that fails or is dropped leaves no connection half used.
        let kept = self.connection.take();
        let beginning = async {
            let mut connection = match kept {
                Some(connection) => connection,
                None => {
                    let mut connection = self.address.connect().await?;
                    if let Some(key) = self.lock {
                        let lock = sqlx::query_scalar(LOCK).bind(key);
                        let locked: Result<bool, _> = lock.fetch_one(&mut connection).await;
                        if !locked.map_err(|error| reading(config, error, "the sealer's lock"))? {
                            return Ok(None);
                        }
                    }
                    connection
                }
            };
            let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
            let facts = async {
                sqlx::raw_sql(begin).execute(&mut connection).await?;
                sqlx::query_as(FACTS).fetch_one(&mut connection).await
            };
            let facts: SealFacts =
                facts.await.map_err(|error| reading(config, error, "the horizon"))?;
            if facts.is_standby {
                return Err(takes_no_writes("a standby, which may be cut off"));
            }
            Ok(Some((SealSnapshot { config, connection }, facts)))
        };
        let begun: Result<_, StartError> =
            within(config.postgres.transaction_deadline(), beginning).await;
        begun.map_err(|error| error.classified(config))
    }

    /// Ends a snapshot, and keeps its connection for the next one.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn end(&mut self, snapshot: SealSnapshot<'c>) -> Result<(), StartError> {
        let SealSnapshot { config, mut connection } = snapshot;
        within(config.postgres.transaction_deadline(), async {
            let ended = sqlx::raw_sql("COMMIT").execute(&mut connection).await;
            ended.map_err(|error| reading(config, error, "what is sealed"))
        })
        .await?;
        self.connection = Some(connection);
        Ok(())
    }
}

/// One lock for each log, which no other program is likely to take.
fn lock_key(origin: &str) -> i64 {
    let digest = Sha256::new().chain_update("vote-aggregator/seal\n").chain_update(origin);
    let mut key = [0; 8];
    key.copy_from_slice(&digest.finalize()[..8]);
    i64::from_be_bytes(key)
}

fn reading(config: &Config, error: sqlx::Error, what: &str) -> StartError {
    failed(config, error.into(), &format!("reading {what}")).classified(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_after_the_horizon_across_the_wrap_of_32_bits() {
        let facts = |next: u64| SealFacts {
            system_identifier: 1,
            timeline: 1,
            vote_audit: 16_384,
            count_batch: 16_385,
            horizon: 0,
            next: next as i64,
            is_standby: false,
        };
        let wrap = 1_u64 << 32;
        let around = facts(wrap + 10);
        for (xmin, to, after) in [
            (u32::MAX, wrap - 1, true),
            (u32::MAX, wrap, false),
            (3, wrap - 1, true),
            (9, wrap, true),
            (3, wrap + 5, false),
            (5, wrap + 5, true),
            (700, wrap, false),
        ] {
            assert_eq!(around.is_after(xmin, to), after, "{xmin} {to}");
        }
        assert!(!facts(100).is_after(99, 100));
        let below = |horizon: u64, xmin| {
            SealFacts { horizon: horizon as i64, ..facts(horizon) }.below(xmin)
        };
        assert_eq!(
            [below(wrap + 5, 4), below(wrap + 5, 5), below(wrap + 5, u32::MAX)],
            [wrap + 4, 5, wrap - 1]
        );
    }

    #[test]
    fn each_log_has_a_lock_of_its_own() {
        assert_ne!(lock_key("votes.example/1"), lock_key("votes.example/2"));
    }
}
