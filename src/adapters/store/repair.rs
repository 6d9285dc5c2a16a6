//! `recount`: compares the totals with the audit for an operator, and corrects them.

use std::collections::BTreeMap;

use sqlx::postgres::PgConnection;
use sqlx::{Connection, Error, Executor};

use super::connection::Address;
use super::error::{StartError, failed};
use super::recount::{Comparison, DEADLINE, LawCounts, STATEMENT_TIMEOUT};
use super::start::{Patience, retry};
use super::within;
use crate::model::ports::Fault;
use crate::platform::config::Config;

const PART: &str = include_str!("recount_part.sql");
const CORRECT: &str = include_str!("correct.sql");

/// Pages of vote_audit that one statement reads: some ten thousand votes, some milliseconds.
const PAGES: i64 = 256;
/// Behind every row that a table can have.
const END: &str = "(4294967295,0)";

/// How far a recount has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Pages of vote_audit read, and all that it had at the beginning.
    pub pages: u64,
    pub all_pages: u64,
    /// Votes found on them.
    pub votes: u64,
}

/// Recounts the audit and compares it with the totals, all in one snapshot, part by part with
/// `progress` after each. Waits for the database as long as `patience` lasts. SELECT on both tables is
/// enough, and so is a standby.
///
/// # Errors
/// [`StartError`]: what is not retried, and what was retried for too long.
pub async fn recount(
    config: &Config,
    patience: Patience,
    progress: impl Fn(Progress),
) -> Result<Comparison, StartError> {
    retry(config, patience, async || {
        let mut connection = open(config).await?;
        let compared = async {
            // Before the snapshot: a table that is rewritten in between would look empty to it.
            run(
                &mut connection,
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
                 LOCK TABLE vote_audit, vote_results IN ACCESS SHARE MODE",
            )
            .await?;
            compare(&mut connection, &progress).await
        };
        let compared = compared.await.map_err(|fault| failed(config, fault, "recounting"))?;
        connection.close().await.ok();
        Ok(compared)
    })
    .await
}

/// What [`correct`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Correction {
    /// The totals as they were before.
    pub before: Comparison,
    /// The answer to COMMIT did not come, and result_corrections shows that it took effect.
    pub found_done: bool,
}

/// Recounts the audit and writes its counts into the totals where they differ, with a row in
/// result_corrections for each law, in one transaction. When the outcome of its COMMIT is unknown, the
/// next attempt looks for those rows.
///
/// It is right while votes are being counted: every count changes vote_results, so the lock waits
/// for those that are under way and holds up all others until it is done; what they run into is
/// `lock_timeout`, after which they try again. The lock comes before the snapshot, so that this
/// sees all that was counted before it.
///
/// # Errors
/// [`StartError`]: what is not retried, and what was retried for too long.
pub async fn correct(
    config: &Config,
    patience: Patience,
    reason: Option<&str>,
    progress: impl Fn(Progress),
) -> Result<Correction, StartError> {
    // The rows of an attempt whose outcome is unknown, and the totals before it.
    let mut unknown: Option<(Vec<i64>, Comparison)> = None;
    retry(config, patience, async || {
        let mut connection = open(config).await?;
        let corrected = async {
            // A missing table or grant shows before counting waits for the lock.
            write(&mut connection, &[], reason).await?;
            run(
                &mut connection,
                "BEGIN ISOLATION LEVEL REPEATABLE READ; \
                 LOCK TABLE vote_results IN SHARE ROW EXCLUSIVE MODE",
            )
            .await?;
            // Behind the lock: that attempt's transaction has ended, one way or the other.
            if let Some((rows, before)) = &unknown
                && recorded(&mut connection, rows).await?
            {
                return Ok(Correction { before: before.clone(), found_done: true });
            }
            let before = compare(&mut connection, &progress).await?;
            let rows = write(&mut connection, &before.differing, reason).await?;
            unknown = (!rows.is_empty()).then(|| (rows, before.clone()));
            run(&mut connection, "COMMIT").await?;
            Ok(Correction { before, found_done: false })
        };
        let correction = corrected.await.map_err(|fault| failed(config, fault, "recounting"))?;
        connection.close().await.ok();
        Ok(correction)
    })
    .await
}

/// Whether all of these rows are in result_corrections.
async fn recorded(connection: &mut PgConnection, rows: &[i64]) -> Result<bool, Fault> {
    let count = "SELECT count(*) FROM result_corrections WHERE id = ANY ($1)";
    let count = sqlx::query_scalar::<_, i64>(count).bind(rows);
    Ok(answered(count.fetch_one(connection)).await? == rows.len() as i64)
}

/// A connection for one transaction, which ends with it however that ends.
async fn open(config: &Config) -> Result<PgConnection, StartError> {
    let address = Address::limited(&config.postgres, STATEMENT_TIMEOUT);
    address.named("vote-aggregator recount").connect().await
}

/// Compares in the transaction that is open, whose snapshot all statements share.
pub(super) async fn compare(
    connection: &mut PgConnection,
    progress: &impl Fn(Progress),
) -> Result<Comparison, Fault> {
    let mut audit = recount_audit(connection, progress).await?;
    let totals = sqlx::query_as(
        "SELECT law_id, coalesce(oui_count, 0)::bigint, coalesce(non_count, 0)::bigint \
         FROM vote_results",
    );
    let totals: Vec<(String, i64, i64)> = answered(totals.fetch_all(connection)).await?;
    let mut results: BTreeMap<_, _> =
        totals.into_iter().map(|(law_id, oui, non)| (law_id, [oui, non])).collect();
    results.keys().for_each(|law_id| _ = audit.entry(law_id.clone()).or_default());

    let mut comparison = Comparison::default();
    for (law_id, audit) in audit {
        let results = results.remove(&law_id).unwrap_or_default();
        comparison.add(LawCounts { law_id, audit, results }, usize::MAX);
    }
    Ok(comparison)
}

/// Counts vote_audit by pages: each row that the snapshot sees is on exactly one of them.
async fn recount_audit(
    connection: &mut PgConnection,
    progress: &impl Fn(Progress),
) -> Result<BTreeMap<String, [i64; 2]>, Fault> {
    let size = sqlx::query_scalar::<_, i64>(
        "SELECT pg_relation_size('vote_audit') / current_setting('block_size')::bigint",
    );
    let pages = answered(size.fetch_one(&mut *connection)).await?;
    let mut audit: BTreeMap<String, [i64; 2]> = BTreeMap::new();
    let mut votes: u64 = 0;
    let mut first = 0;
    loop {
        let next = first + PAGES;
        // The last part goes to the end, so that the result does not depend on the number of pages.
        let end = if next < pages { format!("({next},0)") } else { END.to_owned() };
        let part = sqlx::query_as(PART).bind(format!("({first},0)")).bind(&end);
        let laws: Vec<(String, i64, i64)> = answered(part.fetch_all(&mut *connection)).await?;
        for (law_id, oui, non) in laws {
            votes += oui.unsigned_abs() + non.unsigned_abs();
            let counts = audit.entry(law_id).or_default();
            *counts = [counts[0] + oui, counts[1] + non];
        }
        let all_pages = pages.unsigned_abs();
        progress(Progress { pages: next.min(pages).unsigned_abs(), all_pages, votes });
        if end == END {
            return Ok(audit);
        }
        first = next;
    }
}

/// Sets the totals of these laws to their audit's counts, and records it. Gives the ids of the rows
/// in result_corrections.
async fn write(
    connection: &mut PgConnection,
    laws: &[LawCounts],
    reason: Option<&str>,
) -> Result<Vec<i64>, Fault> {
    let column = |count: fn(&LawCounts) -> i64| laws.iter().map(count).collect::<Vec<i64>>();
    let correct = sqlx::query_scalar(CORRECT)
        .bind(laws.iter().map(|law| law.law_id.as_str()).collect::<Vec<_>>())
        .bind(column(|law| law.results[0]))
        .bind(column(|law| law.results[1]))
        .bind(column(|law| law.audit[0]))
        .bind(column(|law| law.audit[1]))
        .bind(reason);
    answered(correct.fetch_all(connection)).await
}

pub(super) async fn run(
    connection: &mut PgConnection,
    commands: &'static str,
) -> Result<(), Fault> {
    answered(connection.execute(sqlx::raw_sql(commands))).await.map(drop)
}

/// Bounds the wait on a connection that is lost without a notice.
pub(super) async fn answered<R>(work: impl Future<Output = Result<R, Error>>) -> Result<R, Fault> {
    within(DEADLINE, async { Ok(work.await?) }).await
}
