//! What the sealer reads: how far transactions are decided, which of them counted votes, and their rows; all in one
//! snapshot, and without writing anything.
//!
//! Ids of transactions are 64 bits wide (xid8) here; `xmin` has the lower 32 of them.

mod copy;
mod pages;

use std::collections::BTreeSet;
use std::ops::Range;

use futures::TryStreamExt;
use sha2::{Digest, Sha256};
use sqlx::FromRow;
use sqlx::postgres::PgConnection;
use tokio::time::timeout;

use self::copy::Decoder;
use self::pages::{PageRange, merged, of};
use super::connection::Address;
use super::error::{StartError, failed};
use super::recount::{DEADLINE, STATEMENT_TIMEOUT};
use super::writer::takes_no_writes;
use super::{no_answer, within};
use crate::model::ports::Class;
use crate::model::tlog::entry::Correction;
use crate::model::tlog::row::Row;
use crate::platform::config::Config;

const FACTS: &str = include_str!("seal/facts.sql");
const BATCHES: &str = include_str!("seal/batches.sql");
const UNSEALED: &str = include_str!("seal/unsealed.sql");
const CORRECTIONS: &str = include_str!("seal/corrections.sql");
const HOLDER: &str = include_str!("seal/holder.sql");
const LOCK: &str = "SELECT pg_try_advisory_lock($1)";
/// A bigint times two fits; what was written by hand may not.
const TOTAL: &str = "SELECT least(coalesce(sum(oui_count::numeric + non_count), 0), 9223372036854775807)::bigint \
                     FROM vote_results";
/// Batches that are read at a time.
const MAX_BATCHES: i64 = 10_000;

/// The server and its transactions, as one snapshot has them.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct SealFacts {
    pub system_identifier: i64,
    pub timeline: i64,
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

/// A snapshot to read in.
pub struct SealSnapshot<'c> {
    config: &'c Config,
    connection: PgConnection,
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

impl SealSnapshot<'_> {
    /// The sum of all totals.
    ///
    /// # Errors
    /// [`StartError`], as for all that follows.
    pub async fn total(&mut self) -> Result<i64, StartError> {
        let config = self.config;
        let read = sqlx::query_scalar(TOTAL).fetch_one(&mut self.connection).await;
        read.map_err(|error| reading(config, error, "the totals"))
    }

    /// What is committed from the transaction `from` on.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn unsealed(&mut self, from: u64, horizon: u64) -> Result<Unsealed, StartError> {
        let (config, query) = (self.config, sqlx::query_as(UNSEALED));
        let query = query.bind(from.to_string()).bind(horizon.to_string());
        let read = query.fetch_one(&mut self.connection).await;
        read.map_err(|error| reading(config, error, "count_batch"))
    }

    /// The transactions in the range that counted votes, in order: all of them, or only so many that they have `rows`.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn batches(
        &mut self,
        xids: Range<u64>,
        rows: Option<u64>,
    ) -> Result<Vec<CountBatch>, StartError> {
        let config = self.config;
        let limit = rows.map_or(i64::MAX, |_| MAX_BATCHES);
        let query = sqlx::query_as(BATCHES).bind(xids.start.to_string());
        let query = query.bind(xids.end.to_string()).bind(limit);
        let (mut batches, mut read) = (Vec::new(), 0);
        let mut found = query.fetch(&mut self.connection);
        loop {
            let batch = found.try_next().await;
            let batch = batch.map_err(|error| reading(config, error, "count_batch"))?;
            let Some(batch): Option<CountBatch> = batch else { return Ok(batches) };
            // All of it is read, so that the connection can be used again.
            if rows.is_none_or(|rows| read < rows) {
                read += batch.rows();
                batches.push(batch);
            }
        }
    }

    /// The rows of these transactions, from the pages that they named.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn rows(
        &mut self,
        batches: &[CountBatch],
        mut each: impl FnMut(AuditRow),
    ) -> Result<(), StartError> {
        for PageRange { first, last, xids } in merged(batches) {
            // The greatest line pointer there can be is far below.
            let place = format!("ctid BETWEEN '({first},0)' AND '({last},65535)'");
            self.copy(&format!("{place} AND {}", of(&xids)), &mut each).await?;
        }
        Ok(())
    }

    /// The rows of these transactions, wherever they are: reads the whole audit.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn sweep(
        &mut self,
        xmins: &BTreeSet<u32>,
        mut each: impl FnMut(AuditRow),
    ) -> Result<(), StartError> {
        self.copy(&of(xmins), &mut each).await
    }

    /// All rows of the audit.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn all(&mut self, mut each: impl FnMut(AuditRow)) -> Result<(), StartError> {
        self.copy("true", &mut each).await
    }

    /// All corrections in the order of their ids, with the lower half of their transactions' ids.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn corrections(&mut self) -> Result<Vec<(u32, Correction)>, StartError> {
        type Found = (i64, i64, String, String, i64, i64, i64, i64, Option<String>);
        let config = self.config;
        let read = sqlx::query_as(CORRECTIONS).fetch_all(&mut self.connection).await;
        let read: Vec<Found> =
            read.map_err(|error| reading(config, error, "result_corrections"))?;
        let correction = |(
            xmin,
            id,
            at,
            law_id,
            oui_before,
            non_before,
            oui_after,
            non_after,
            reason,
        ): Found| {
            let correction =
                Correction { id, at, law_id, oui_before, non_before, oui_after, non_after, reason };
            (xmin as u32, correction)
        };
        Ok(read.into_iter().map(correction).collect())
    }

    /// Who holds up the horizon: the transaction with this id, if it is still in progress.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn holder(&mut self, horizon: u64) -> Result<Option<Holder>, StartError> {
        let config = self.config;
        let query = sqlx::query_as(HOLDER).bind((horizon as u32).to_string());
        let read = query.fetch_optional(&mut self.connection).await;
        read.map_err(|error| reading(config, error, "the oldest transaction"))
    }

    async fn copy(
        &mut self,
        condition: &str,
        each: &mut impl FnMut(AuditRow),
    ) -> Result<(), StartError> {
        let config = self.config;
        let statement = format!(
            "COPY (SELECT xmin, vote_hash::text, citizen_id::text, law_id::text, choice::text, \
             \"timestamp\"::timestamptz, recorded_at::timestamptz FROM vote_audit WHERE {condition}) \
             TO STDOUT (FORMAT binary)"
        );
        let copying = async {
            let mut decoder = Decoder::default();
            let mut chunks = self.connection.copy_out_raw(&statement).await?;
            while let Some(chunk) = chunks.try_next().await? {
                decoder.read(&chunk, each)?;
            }
            decoder.finish()
        };
        let copied = timeout(DEADLINE, copying).await;
        let copied = copied.map_err(|_| no_answer(Class::Reconnect, DEADLINE))?;
        copied.map_err(|error| reading(config, error, "vote_audit"))
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
    }

    #[test]
    fn each_log_has_a_lock_of_its_own() {
        assert_ne!(lock_key("votes.example/1"), lock_key("votes.example/2"));
    }
}
