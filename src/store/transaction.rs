//! The transactions themselves, and what their errors mean.

use sqlx::postgres::{PgConnection, PgPool, PgRow};
use sqlx::{Error, Executor, Row};
use time::OffsetDateTime;

use super::columns::Distinct;
use super::connection::Lease;
use super::sqlstate::classify;
use crate::pipeline::ports::{Class, Counted, Fault, LawCount};
use crate::vote::{Choice, Vote};

const COUNT: &str = include_str!("count.sql");
const CLASSIFY: &str = include_str!("classify.sql");

/// Counts a batch in one READ COMMITTED transaction.
pub(super) async fn count(pool: &PgPool, votes: &[Vote]) -> Result<Counted, Fault> {
    let batch = Distinct::of(votes);
    let mut connection = Lease::from(pool).await?;
    match begin_and_count(&mut connection, &batch).await {
        Ok(counted) => {
            // An error with no SQLSTATE from here on leaves the outcome open.
            run(&mut connection, "COMMIT").await.map_err(unknown_outcome)?;
            connection.release();
            Ok(counted)
        }
        Err(fault) => {
            // A server that answered is worth keeping: bisecting would open many connections.
            if fault.sqlstate.is_some()
                && fault.class != Class::Reconnect
                && run(&mut connection, "ROLLBACK").await.is_ok()
            {
                connection.release();
            }
            Err(fault)
        }
    }
}

/// Counts two made-up votes of one hash as a batch would, and rolls back: tables, columns, keys,
/// grants and a writable disk are all there when it succeeds.
pub(super) async fn rehearse(connection: &mut PgConnection) -> Result<(), Fault> {
    let vote = |citizen_id: &str| Vote {
        vote_hash: format!("probe-{}", fastrand::u128(..)),
        citizen_id: citizen_id.to_owned(),
        law_id: "probe".to_owned(),
        choice: Choice::Oui,
        timestamp: OffsetDateTime::UNIX_EPOCH,
    };
    let first = vote("first");
    let second = Vote { vote_hash: first.vote_hash.clone(), ..vote("second") };
    let counted = begin_and_count(connection, &Distinct::of(&[first, second])).await;
    let undone = run(connection, "ROLLBACK").await;
    match counted {
        // A trigger or a foreign key that takes real laws only: the database does write.
        Err(fault) if fault.class == Class::Isolate => undone,
        Err(fault) => Err(fault),
        Ok(_) => undone,
    }
}

async fn begin_and_count(
    connection: &mut PgConnection,
    batch: &Distinct<'_>,
) -> Result<Counted, Fault> {
    run(connection, "BEGIN ISOLATION LEVEL READ COMMITTED").await?;

    let firsts = batch.firsts();
    let hashes = firsts.len() as u64;
    let rows = firsts.bind(COUNT).fetch_all(&mut *connection).await.map_err(|e| fault(&e))?;
    let laws = rows.iter().map(law_count).collect::<Result<_, _>>().map_err(|e| fault(&e))?;
    let mut counted = Counted { laws, replays: 0, attempts: 0 };

    // Fast path: every hash was new and came with one content only. Whatever else there is, is a
    // repeat within the batch.
    if counted.added() < hashes || (batch.len() as u64) > hashes {
        counted.attempts = classify_known(connection, batch).await?;
    }
    counted.replays = batch.deliveries - counted.added() - counted.attempts;
    Ok(counted)
}

/// Compares the batch with what is stored; records what differs. Gives the differing deliveries.
async fn classify_known(connection: &mut PgConnection, batch: &Distinct<'_>) -> Result<u64, Fault> {
    let row = batch.all().bind(CLASSIFY).fetch_one(connection).await.map_err(|e| fault(&e))?;
    let read = |row: &PgRow| -> Result<(i64, Vec<i64>), Error> {
        Ok((row.try_get("found")?, row.try_get("differing")?))
    };
    let (found, differing) = read(&row).map_err(|e| fault(&e))?;
    if usize::try_from(found) != Ok(batch.len()) {
        // Its row vanished between the two statements: nothing of this batch may be assumed.
        return Err(Fault {
            class: Class::Retry,
            sqlstate: None,
            message: format!(
                "{found} of {} votes found in vote_audit after counting them; \
                 is something deleting its rows?",
                batch.len()
            ),
        });
    }
    Ok(differing.into_iter().map(|position| batch.deliveries_at(position)).sum())
}

fn law_count(row: &PgRow) -> Result<LawCount, Error> {
    Ok(LawCount {
        law_id: row.try_get("law_id")?,
        added: [unsigned(row, "oui")?, unsigned(row, "non")?],
        totals: [unsigned(row, "oui_count")?, unsigned(row, "non_count")?],
    })
}

/// Totals of all laws, most votes first.
pub(super) async fn totals(pool: &PgPool) -> Result<Vec<(String, [u64; 2])>, Fault> {
    let mut connection = Lease::from(pool).await?;
    let rows = sqlx::query(
        "SELECT law_id, oui_count, non_count FROM vote_results \
         ORDER BY oui_count + non_count DESC, law_id",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(|e| fault(&e))?;
    let totals = rows
        .iter()
        .map(|row| {
            let counts = [unsigned(row, "oui_count")?, unsigned(row, "non_count")?];
            Ok((row.try_get("law_id")?, counts))
        })
        .collect::<Result<_, Error>>()
        .map_err(|e| fault(&e))?;
    connection.release();
    Ok(totals)
}

fn unsigned(row: &PgRow, column: &str) -> Result<u64, Error> {
    let value: i64 = row.try_get(column)?;
    u64::try_from(value).map_err(|negative| Error::ColumnDecode {
        index: column.to_owned(),
        source: Box::new(negative),
    })
}

async fn run(connection: &mut PgConnection, command: &'static str) -> Result<(), Fault> {
    connection.execute(sqlx::raw_sql(command)).await.map(drop).map_err(|e| fault(&e))
}

fn unknown_outcome(fault: Fault) -> Fault {
    match fault.sqlstate {
        Some(_) => fault,
        None => Fault { class: Class::UnknownOutcome, ..fault },
    }
}

/// Tells what a failure calls for, in words that hold nothing of a vote.
pub(super) fn fault(error: &Error) -> Fault {
    match error {
        Error::Database(database) => {
            let sqlstate = database.code().unwrap_or_default().into_owned();
            let class = classify(&sqlstate, database.constraint());
            // The server quotes the refused value, and in the detail the whole row.
            let message = if class == Class::Isolate {
                let place = [database.table(), database.constraint()].map(|s| s.unwrap_or("-"));
                format!("value refused by table {}, constraint {}", place[0], place[1])
            } else {
                database.message().to_owned()
            };
            Fault { class, sqlstate: Some(sqlstate), message }
        }
        Error::ColumnDecode { .. }
        | Error::ColumnNotFound(_)
        | Error::Decode(_)
        | Error::Encode(_) => {
            Fault { class: Class::Bug, sqlstate: None, message: error.to_string() }
        }
        // Sockets, TLS, protocol, a pool that timed out: the connection is at fault.
        _ => Fault { class: Class::Reconnect, sqlstate: None, message: error.to_string() },
    }
}
