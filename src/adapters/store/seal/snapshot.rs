//! What is read in one snapshot.

use std::collections::BTreeSet;
use std::ops::Range;

use futures::TryStreamExt;
use sqlx::postgres::PgConnection;

use super::copy::Decoder;
use super::pages::{PageRange, merged, of};
use super::{AuditRow, CountBatch, Holder, Unsealed, reading};
use crate::adapters::store::error::StartError;
use crate::adapters::store::recount::DEADLINE;
use crate::adapters::store::within;
use crate::model::tlog::entry::Correction;
use crate::platform::config::Config;

const BATCHES: &str = include_str!("batches.sql");
const UNSEALED: &str = include_str!("unsealed.sql");
const CORRECTIONS: &str = include_str!("corrections.sql");
const HOLDER: &str = include_str!("holder.sql");
const LAST_BATCH: &str = "SELECT xid::text::bigint FROM count_batch WHERE xid < $1::xid8 AND xmin = xid::xid \
                          ORDER BY count_batch.xid DESC LIMIT 1";
/// A bigint times two fits; what was written by hand may not.
const TOTAL: &str = "SELECT least(coalesce(sum(oui_count::numeric + non_count), 0), 9223372036854775807)::bigint \
                     FROM vote_results";
/// Batches that are read at a time.
const MAX_BATCHES: i64 = 10_000;

/// A snapshot to read in.
pub struct SealSnapshot<'c> {
    pub(super) config: &'c Config,
    pub(super) connection: PgConnection,
}

impl SealSnapshot<'_> {
    /// The sum of all totals.
    ///
    /// # Errors
    /// [`StartError`], as for all that follows.
    pub async fn total(&mut self) -> Result<i64, StartError> {
        let total = sqlx::query_scalar(TOTAL).fetch_one(&mut self.connection);
        answer(self.config, "the totals", total).await
    }

    /// What is committed from the transaction `from` on.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn unsealed(&mut self, from: u64, horizon: u64) -> Result<Unsealed, StartError> {
        let query = sqlx::query_as(UNSEALED).bind(from.to_string()).bind(horizon.to_string());
        answer(self.config, "count_batch", query.fetch_one(&mut self.connection)).await
    }

    /// The last transaction below the horizon that counted votes.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn last_batch(&mut self, horizon: u64) -> Result<Option<u64>, StartError> {
        let query = sqlx::query_scalar(LAST_BATCH).bind(horizon.to_string());
        let last = answer(self.config, "count_batch", query.fetch_optional(&mut self.connection));
        Ok(last.await?.map(i64::unsigned_abs))
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
        let limit = rows.map_or(i64::MAX, |_| MAX_BATCHES);
        let query = sqlx::query_as(BATCHES).bind(xids.start.to_string());
        let query = query.bind(xids.end.to_string()).bind(limit);
        let found = query.fetch_all(&mut self.connection);
        let mut batches: Vec<CountBatch> = answer(self.config, "count_batch", found).await?;
        if let Some(rows) = rows {
            let mut read = 0;
            let few = batches.iter().take_while(|batch| {
                let wanted = read < rows;
                read += batch.rows();
                wanted
            });
            batches.truncate(few.count());
        }
        Ok(batches)
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
        let found = sqlx::query_as(CORRECTIONS).fetch_all(&mut self.connection);
        let found: Vec<Found> = answer(self.config, "result_corrections", found).await?;
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
        Ok(found.into_iter().map(correction).collect())
    }

    /// Who holds up the horizon: the transaction with this id, if it is still in progress.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn holder(&mut self, horizon: u64) -> Result<Option<Holder>, StartError> {
        let query = sqlx::query_as(HOLDER).bind((horizon as u32).to_string());
        let found = query.fetch_optional(&mut self.connection);
        answer(self.config, "the oldest transaction", found).await
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
        answer(config, "vote_audit", copying).await
    }
}

/// Bounds what is asked: a server that is gone without a word never answers.
async fn answer<R>(
    config: &Config,
    what: &str,
    asking: impl Future<Output = Result<R, sqlx::Error>>,
) -> Result<R, StartError> {
    within(DEADLINE, async { asking.await.map_err(|error| reading(config, error, what)) }).await
}
