//! A round: what is sealed of what the database has, in one snapshot of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::SealError;
use super::log::{Log, Opened};
use super::state::{Intent, Lineage, Tip};
use crate::adapters::store::{Holder, SealFacts, SealReader, SealSnapshot, StartError, Unsealed};
use crate::model::tlog::entry::{Correction, Entry, VoteEntry};
use crate::model::tlog::row::{Row, Secret};
use crate::model::tlog::segment::{Leaf, Segment, leaf};

/// Rows that a round seals, unless one transaction has more: some 150 bytes of memory each.
const MAX_ROWS: u64 = 200_000;

/// Ids below the oldest transaction in progress that a crash of the server could assign again, at most: those of
/// transactions whose WAL was not written yet.
const REUSED: u64 = 1_000_000;

/// What a round found, and what it did.
#[derive(Debug)]
pub struct Round {
    /// Votes that are committed and were not sealed before it.
    pub unsealed: Unsealed,
    /// Those that are not sealed behind it.
    pub left: u64,
    /// All votes of transactions below are sealed.
    pub covered: u64,
    /// All transactions that are visible to it have smaller ids.
    pub next: u64,
    /// All transactions below are decided.
    pub horizon: u64,
    /// Votes that the totals have more than the log and count_batch; negative: fewer.
    pub drift: i64,
    /// Who keeps votes undecided that are committed.
    pub held_by: Option<Holder>,
    /// The log's end, where entries were added.
    pub sealed: Option<Tip>,
    /// What is wrong with the rows that were sealed; without anything that shows who voted what.
    pub findings: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    #[error(transparent)]
    Store(#[from] StartError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("another sealer of this log is connected to the database, with a directory of its own")]
    Locked,
    /// The database is not the one that was sealed, or an earlier state of it.
    #[error("sealing stopped: {0}. See the runbook, \"Sealing\"")]
    Lineage(String),
}

/// What a new log begins with: the server, its horizon, and the rows below it.
///
/// # Errors
/// [`RoundError`]
pub async fn begin(reader: &mut SealReader<'_>) -> Result<Opened, RoundError> {
    let (mut snapshot, facts) = reader.begin().await?.ok_or(RoundError::Locked)?;
    let (horizon, mut rows, mut counted) = (facts.horizon(), 0, 0);
    let mut last = snapshot.last_batch(horizon).await?;
    let all = snapshot.all(|(xmin, _)| {
        counted += 1;
        if !facts.is_after(xmin, horizon) {
            rows += 1;
            last = last.max(Some(facts.below(xmin)));
        }
    });
    all.await?;
    reader.end(snapshot).await?;
    let behind = last.map_or(0, |last| last + 1);
    let horizon = behind.max(horizon.saturating_sub(REUSED));
    Ok(Opened { lineage: lineage(&facts), horizon, rows, counted })
}

/// Seals what is decided, if that is `min_rows` votes or more; first what an interrupted round was about to seal.
///
/// # Errors
/// [`RoundError`]; after [`RoundError::Seal`] the log has to be opened again.
pub async fn round(
    log: &mut Log,
    reader: &mut SealReader<'_>,
    min_rows: u64,
) -> Result<Round, RoundError> {
    let (mut snapshot, facts) = reader.begin().await?.ok_or(RoundError::Locked)?;
    compare(log, &facts)?;
    let (from, horizon) = (log.state().horizon, facts.horizon());
    let unsealed = snapshot.unsealed(from, horizon).await?;
    let drift = drift(log, unsealed, snapshot.total().await?);
    let undecided = unsealed.votes > unsealed.decided;
    let held_by = if undecided { snapshot.holder(horizon).await? } else { None };
    let mut round = Round {
        unsealed,
        left: unsealed.votes.unsigned_abs(),
        covered: from,
        next: facts.next(),
        horizon,
        drift,
        held_by,
        sealed: None,
        findings: Vec::new(),
    };
    let corrections = snapshot.corrections().await?;
    let corrected = behind_corrections(&corrections, from..horizon);
    let decided = unsealed.decided.unsigned_abs();
    let intent = match (&log.state().intent, corrected) {
        (Some(intent), _) => intent.clone(),
        // Without votes in between: fewer than `min_rows` wait.
        (None, Some(behind)) if decided == 0 => log.intend(behind, None)?,
        (None, _) if decided < min_rows.max(1) => {
            reader.end(snapshot).await?;
            return Ok(round);
        }
        (None, corrected) => {
            let batches = snapshot.batches(from..horizon, Some(MAX_ROWS)).await?;
            let read: u64 = batches.iter().map(|batch| batch.rows()).sum();
            // Not up to the horizon: after a crash of the server, ids of transactions that left nothing on its disk are
            // assigned again, and those may count votes. This one's COMMIT is on the disk.
            let last = batches.last().map_or(from, |batch| batch.xid() + 1);
            let all = read == decided;
            log.intend(corrected.filter(|_| all).map_or(last, |behind| behind.max(last)), None)?
        }
    };
    let mut segment = Segment::default();
    let mut gathered = Gathered::new(log.secret());
    match intent.sweep {
        None => gathered.batches(&mut snapshot, from..intent.to).await?,
        Some(rows) => gathered.below(&mut snapshot, &facts, intent.to, rows).await?,
    }
    let Gathered { leaves, mut findings, .. } = gathered;
    segment.add_votes(leaves.into_values().flatten());
    for (xmin, correction) in corrections {
        let id = correction.id;
        if is_covered(&intent, from, xmin, &facts)
            && let Err(error) = segment.add(&Entry::Correction(correction))
        {
            findings.push(format!("the row {id} of result_corrections cannot be sealed: {error}"));
        }
    }
    let left = snapshot.unsealed(intent.to, horizon).await?;
    // Its answer shows that the session is there, and with it the lock against another sealer.
    reader.end(snapshot).await?;
    let ordered = segment.ordered();
    if ordered.repeated > 0 {
        findings.push(format!(
            "{} rows are in vote_audit twice, and were sealed once",
            ordered.repeated
        ));
    }
    let (before, sealed) = (log.state().tip, log.seal(&ordered)?);
    round.sealed = (sealed != before).then_some(sealed);
    round.left = left.votes.unsigned_abs();
    round.covered = if left.decided == 0 { horizon } else { intent.to };
    round.findings = findings;
    Ok(round)
}

/// Behind the last correction of a transaction in the range.
fn behind_corrections(corrections: &[(u32, Correction)], xids: Range<u64>) -> Option<u64> {
    let distances = corrections.iter().map(|(xmin, _)| xmin.wrapping_sub(xids.start as u32));
    let last = distances.map(u64::from).filter(|it| *it < xids.end - xids.start).max()?;
    Some(xids.start + last + 1)
}

fn lineage(facts: &SealFacts) -> Lineage {
    let timeline = u32::try_from(facts.timeline).unwrap_or_default();
    let system_identifier = facts.system_identifier.to_string();
    let SealFacts { vote_audit, count_batch, .. } = *facts;
    Lineage { system_identifier, timeline, vote_audit, count_batch }
}

/// Whether this is the database that was sealed, and no earlier state of it.
fn compare(log: &Log, facts: &SealFacts) -> Result<(), RoundError> {
    let state = log.state();
    let (found, sealed) = (lineage(facts), &state.lineage);
    let stop = |what: String| Err(RoundError::Lineage(what));
    if found.system_identifier != sealed.system_identifier {
        return stop(format!(
            "the database's system identifier is {}, and the log is of {}: it was restored from a dump, or is another one",
            found.system_identifier, sealed.system_identifier
        ));
    }
    if found.timeline != sealed.timeline {
        return stop(format!(
            "the database is on timeline {}, and was sealed on {}: a standby was promoted, or it was restored to a point in \
             time",
            found.timeline, sealed.timeline
        ));
    }
    if found != *sealed {
        return stop(
            "the tables vote_audit and count_batch are not those that were sealed: POSTGRES_DB names another database of \
             the server, or a dump was restored"
                .to_owned(),
        );
    }
    let decided = state.intent.as_ref().map_or(state.horizon, |intent| intent.to);
    if facts.horizon() < decided {
        return stop(format!(
            "the oldest transaction in progress is {}, and all below {decided} were over: the database was restored from a \
             copy of its files",
            facts.horizon()
        ));
    }
    Ok(())
}

/// What the totals have more than what is sealed or will be.
fn drift(log: &Log, unsealed: Unsealed, total: i64) -> i64 {
    let state = log.state();
    let swept = state.intent.as_ref().and_then(|intent| intent.sweep).unwrap_or_default();
    let votes = state.tip.votes.saturating_add(swept).saturating_add_signed(unsealed.votes);
    total.saturating_sub_unsigned(votes)
}

/// Whether a correction is of a transaction that the round covers.
fn is_covered(intent: &Intent, from: u64, xmin: u32, facts: &SealFacts) -> bool {
    match intent.sweep {
        Some(_) => !facts.is_after(xmin, intent.to),
        None => u64::from(xmin.wrapping_sub(from as u32)) < intent.to - from,
    }
}

/// Leaves by the transactions of their rows.
struct Gathered<'l> {
    secret: &'l Secret,
    leaves: BTreeMap<u32, Vec<Leaf>>,
    /// Rows that are no votes of this service, by transaction.
    unfit: BTreeMap<u32, u64>,
    findings: Vec<String>,
}

impl<'l> Gathered<'l> {
    const fn new(secret: &'l Secret) -> Self {
        Self { secret, leaves: BTreeMap::new(), unfit: BTreeMap::new(), findings: Vec::new() }
    }

    fn add(&mut self, (xmin, row): (u32, Option<Row>)) {
        let leaf = row.and_then(|row| {
            let vote = VoteEntry::of(&row, &self.secret.nonce(&row.vote_hash)).ok()?;
            leaf(&Entry::Vote(vote)).ok()
        });
        match leaf {
            Some(leaf) => self.leaves.entry(xmin).or_default().push(leaf),
            None => *self.unfit.entry(xmin).or_default() += 1,
        }
    }

    fn found(&self, xmin: u32) -> u64 {
        let leaves = self.leaves.get(&xmin).map_or(0, Vec::len) as u64;
        leaves + self.unfit.get(&xmin).copied().unwrap_or_default()
    }

    /// The rows of the transactions that counted votes. Those whose rows are not where they were are looked for in the
    /// whole audit; that some are missing, or too many, does not keep the others from being sealed.
    async fn batches(
        &mut self,
        snapshot: &mut SealSnapshot<'_>,
        xids: Range<u64>,
    ) -> Result<(), StartError> {
        let batches = snapshot.batches(xids, None).await?;
        snapshot.rows(&batches, |row| self.add(row)).await?;
        // Rows of one id twice: that of a restored dump was assigned again.
        let mut expected: BTreeMap<u32, u64> = BTreeMap::new();
        for batch in &batches {
            *expected.entry(batch.xmin()).or_default() += batch.rows();
        }
        let moved: BTreeSet<u32> = expected
            .iter()
            .filter(|(xmin, rows)| self.found(**xmin) != **rows)
            .map(|(xmin, _)| *xmin)
            .collect();
        if !moved.is_empty() {
            self.leaves.retain(|xmin, _| !moved.contains(xmin));
            self.unfit.retain(|xmin, _| !moved.contains(xmin));
            tracing::info!(
                transactions = moved.len(),
                "rows are not where they were written, after VACUUM FULL for example: reading the whole audit"
            );
            snapshot.sweep(&moved, |row| self.add(row)).await?;
        }
        for (xmin, rows) in expected {
            let found = self.found(xmin);
            if found != rows {
                self.findings.push(format!(
                    "the transaction {xmin} counted {rows} votes, and {found} rows of it are in vote_audit"
                ));
            }
        }
        self.report_unfit();
        Ok(())
    }

    /// All rows of transactions below `to`.
    async fn below(
        &mut self,
        snapshot: &mut SealSnapshot<'_>,
        facts: &SealFacts,
        to: u64,
        rows: u64,
    ) -> Result<(), StartError> {
        let mut found = 0;
        let all = snapshot.all(|(xmin, row)| {
            if !facts.is_after(xmin, to) {
                found += 1;
                self.add((xmin, row));
            }
        });
        all.await?;
        if found != rows {
            self.findings.push(format!(
                "the log was opened with {rows} rows in vote_audit, and {found} of them are there now"
            ));
        }
        self.report_unfit();
        Ok(())
    }

    fn report_unfit(&mut self) {
        for (xmin, rows) in &self.unfit {
            self.findings.push(format!(
                "{rows} rows with xmin {xmin} cannot be sealed: a column is NULL, or the choice is neither oui nor non"
            ));
        }
    }
}
