//! The transactions themselves, and what their errors mean.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use compact_str::CompactString;
use sqlx::postgres::{PgConnection, PgPool, PgRow};
use sqlx::{Error, Executor, Row};
use time::OffsetDateTime;

use super::Totals;
use super::columns::DedupedBatch;
use super::connection::Lease;
use super::misfits::{batch_triggers, explained};
use crate::model::ports::{Class, Counted, Fault, Insert, LawCount, Votes};
use crate::model::vote::{Choice, MAX_CITIZEN_ID, MAX_LAW_ID, Vote};

const COUNT: &str = include_str!("count.sql");
const CLASSIFY: &str = include_str!("classify.sql");
const TOTALS: &str = include_str!("totals.sql");
/// SQLSTATE of a row whose key is there already.
const UNIQUE_VIOLATION: &str = "23505";
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

const UNLESS_KNOWN: &str = "ON CONFLICT (vote_hash) DO NOTHING";
static COUNT_PLAINLY: LazyLock<String> = LazyLock::new(|| COUNT.replacen(UNLESS_KNOWN, "", 1));

/// Counts a batch in one READ COMMITTED transaction, or, plainly, in one statement.
pub(super) async fn count(pool: &PgPool, votes: &Votes) -> Result<Counted, Fault> {
    let batch = DedupedBatch::of(votes);
    let mut lease = Lease::from(pool).await?;
    let counting = if votes.insert() == Insert::Plain && !batch.has_attempts() {
        count_plainly(lease.connection(), &batch).await
    } else {
        count_in_transaction(lease.connection(), &batch).await
    };
    match counting {
        Ok(mut counted) => {
            lease.release();
            // A trigger that adds rows of its own must not turn this into a huge number.
            let others = counted.added() + counted.attempts;
            counted.replays = batch.deliveries.saturating_sub(others);
            Ok(counted)
        }
        Err(fault) if fault.class == Class::KnownHash => {
            lease.release();
            Err(fault)
        }
        Err(fault) => {
            // Kept where the batch is tried again at once, since bisecting would open many. Otherwise
            // replaced: a prepared statement, for example, may no longer fit the tables.
            if !matches!(fault.class, Class::Isolate | Class::Split | Class::Retry)
                || fault.sqlstate.is_none()
                || run(lease.connection(), "ROLLBACK").await.is_err()
            {
                return Err(fault);
            }
            let by_trigger = match fault.class {
                Class::Isolate => batch_triggers(lease.connection()).await?,
                _ => None,
            };
            lease.release();
            Err(by_trigger.unwrap_or(fault))
        }
    }
}

/// What came of a rehearsal that the server answered.
#[derive(Debug)]
pub(super) enum Rehearsed {
    /// A batch would be counted.
    Counted,
    /// The made-up votes were refused for what is in them.
    Refused(Fault),
}

/// Counts two made-up votes of one hash, each field as long as it may be, the way a batch is
/// counted, and rolls back. Succeeds when the database takes writes: tables, columns, keys, grants and a
/// writable disk are all there, and `count_batch` has no triggers.
pub(super) async fn rehearse(connection: &mut PgConnection) -> Result<Rehearsed, Fault> {
    run(connection, BEGIN).await?;
    let rehearsed = rehearse_in_transaction(connection).await;
    let undone = run(connection, "ROLLBACK").await;
    rehearsed.and_then(|rehearsed| undone.map(|()| rehearsed))
}

/// As [`rehearse`], in the transaction that is open, and takes back only what it did itself.
pub(super) async fn rehearse_in_transaction(
    connection: &mut PgConnection,
) -> Result<Rehearsed, Fault> {
    let first = Vote {
        vote_hash: format!("probe-{:x<58}", fastrand::u128(..)).into(),
        citizen_id: format!("{:c<MAX_CITIZEN_ID$}", "probe-first").into(),
        law_id: format!("{:l<MAX_LAW_ID$}", "probe").into(),
        choice: Choice::Oui,
        timestamp: OffsetDateTime::UNIX_EPOCH,
    };
    let citizen_id = format!("{:c<MAX_CITIZEN_ID$}", "probe-second").into();
    let second = Vote { citizen_id, ..first.clone() };
    if let Some(fault) = batch_triggers(connection).await? {
        return Err(fault);
    }
    run(connection, "SAVEPOINT rehearsal").await?;
    let counted = count_batch(connection, &DedupedBatch::of(&[first, second])).await;
    let undone = run(connection, "ROLLBACK TO SAVEPOINT rehearsal").await;
    match (counted, undone) {
        (Ok(_), undone) => undone.map(|()| Rehearsed::Counted),
        (Err(fault), Ok(())) => match explained(connection, fault).await {
            fault if fault.class == Class::Isolate => Ok(Rehearsed::Refused(fault)),
            fault => Err(fault),
        },
        (Err(fault), Err(_)) => Err(fault),
    }
}

async fn count_in_transaction(
    connection: &mut PgConnection,
    batch: &DedupedBatch<'_>,
) -> Result<Counted, Fault> {
    run(connection, BEGIN).await?;
    let counted = count_batch(connection, batch).await?;
    commit(connection).await?;
    Ok(counted)
}

/// From here on an error with no SQLSTATE, and a cancel, leave the outcome open.
async fn commit(connection: &mut PgConnection) -> Result<(), Fault> {
    run(connection, "COMMIT").await.map_err(unknown_outcome)
}

/// Counts a batch in one statement that commits by itself: all of the batch is new, or nothing is
/// counted. sqlx returns the rows after `ReadyForQuery`, so after the commit.
async fn count_plainly(
    connection: &mut PgConnection,
    batch: &DedupedBatch<'_>,
) -> Result<Counted, Fault> {
    let inserted = insert_firsts(connection, batch, &COUNT_PLAINLY).await;
    let (mut counted, complete) = inserted.map_err(|fault| match fault {
        fault if fault.sqlstate.is_none() => Fault { class: Class::UnknownOutcome, ..fault },
        // If it is another key, the statement with ON CONFLICT fails on it again.
        fault if fault.sqlstate.as_deref() == Some(UNIQUE_VIOLATION) => {
            Fault { class: Class::KnownHash, ..fault }
        }
        fault => fault,
    })?;
    if !complete {
        // A trigger suppressed rows: nothing may be acked before the batch is found in the audit.
        run(connection, BEGIN).await?;
        classify_known(connection, batch, &mut counted).await?;
        commit(connection).await?;
    }
    Ok(counted)
}

/// In the transaction that is open.
async fn count_batch(
    connection: &mut PgConnection,
    batch: &DedupedBatch<'_>,
) -> Result<Counted, Fault> {
    let (mut counted, complete) = insert_firsts(connection, batch, COUNT).await?;
    // Where every hash was new and came with one content only, whatever else there is, is a repeat
    // within the batch.
    if !complete || batch.has_attempts() {
        classify_known(connection, batch, &mut counted).await?;
    }
    Ok(counted)
}

/// Inserts the first vote of each hash. Returns what was added, and whether that is all of them.
async fn insert_firsts(
    connection: &mut PgConnection,
    batch: &DedupedBatch<'_>,
    sql: &'static str,
) -> Result<(Counted, bool), Fault> {
    let firsts = batch.firsts();
    let (hashes, marker) = (firsts.len() as u64, firsts.first_hash());
    let rows = firsts.bind(sql).fetch_all(connection).await?;
    let counted = Counted { laws: law_counts(&rows)?, marker, ..Counted::default() };
    let complete = counted.added() >= hashes;
    Ok((counted, complete))
}

/// Compares the batch with what is stored and records what differs; `counted` gets the attempts and the
/// marker.
async fn classify_known(
    connection: &mut PgConnection,
    batch: &DedupedBatch<'_>,
    counted: &mut Counted,
) -> Result<(), Fault> {
    // Planned anew each time. A plan that was kept from the time when the tables were empty reads all of
    // vote_audit: 3.2 s at five million rows, by auto_explain, until the next ANALYZE. All columns that
    // come out have types that sqlx knows: to ask for one, it would replace the unnamed statement.
    let classify = batch.all().bind(CLASSIFY).persistent(false);
    let row = classify.fetch_one(connection).await?;
    let found: i64 = row.try_get("found")?;
    let differing: Vec<i64> = row.try_get("differing")?;
    let marker: Option<String> = row.try_get("marker")?;
    if usize::try_from(found) != Ok(batch.len()) {
        // Its row vanished between the two statements: nothing of this batch may be assumed.
        let message = format!(
            "{found} of {} votes found in vote_audit after counting them; is something deleting its \
             rows?",
            batch.len()
        );
        return Err(Fault::new(Class::Retry, message));
    }
    counted.attempts = differing.into_iter().map(|position| batch.deliveries_at(position)).sum();
    counted.marker = marker.map(CompactString::from);
    Ok(())
}

/// Puts together what was added to each law and its totals; in law order.
fn law_counts(rows: &[PgRow]) -> Result<Vec<LawCount>, Error> {
    let mut laws: BTreeMap<&str, [Option<[i64; 2]>; 2]> = BTreeMap::new();
    for row in rows {
        let is_total: bool = row.try_get("is_total")?;
        let counts = [row.try_get("oui")?, row.try_get("non")?];
        laws.entry(row.try_get("law_id")?).or_default()[usize::from(is_total)] = Some(counts);
    }
    // A law whose row a trigger kept as it was has no totals.
    Ok(laws
        .into_iter()
        .filter_map(|(law_id, [added, totals])| {
            let added = added?.map(i64::unsigned_abs);
            Some(LawCount { law_id: law_id.to_owned(), added, totals: totals? })
        })
        .collect())
}

/// See [`super::PgStore::totals`].
pub(super) async fn totals(
    connection: &mut PgConnection,
    named: &[String],
    max: usize,
) -> Result<Totals, Fault> {
    let rows: Vec<(Option<String>, i64, i64)> = sqlx::query_as(TOTALS)
        .bind(named)
        .bind(i64::try_from(max).unwrap_or(i64::MAX))
        .fetch_all(connection)
        .await?;
    let mut totals = Totals::default();
    for (law_id, oui, non) in rows {
        match law_id {
            Some(law_id) => totals.laws.push((law_id, [oui, non])),
            None => totals.rest = [oui, non],
        }
    }
    Ok(totals)
}

async fn run(connection: &mut PgConnection, command: &'static str) -> Result<(), Fault> {
    connection.execute(sqlx::raw_sql(command)).await?;
    Ok(())
}

fn unknown_outcome(fault: Fault) -> Fault {
    match (&fault.sqlstate, fault.class) {
        (None, _) | (_, Class::Split) => Fault { class: Class::UnknownOutcome, ..fault },
        _ => fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_statement_leaves_out_nothing_but_the_clause_for_known_votes() {
        assert_eq!(COUNT.matches(UNLESS_KNOWN).count(), 1);
        assert_eq!(COUNT_PLAINLY.len(), COUNT.len() - UNLESS_KNOWN.len());
    }
}
