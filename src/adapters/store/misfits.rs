//! Existing tables that the statements cannot work with.

use sqlx::postgres::PgConnection;
use sqlx::{FromRow, raw_sql};

use crate::model::ports::{Class, Fault};

const MISFITS: &str = include_str!("misfits.sql");
const BATCH_TRIGGERS: &str = include_str!("batch_triggers.sql");

/// What is wrong with columns and keys, by the catalogue. Names only, and no value of any row.
#[derive(Debug, Default)]
pub struct Misfits {
    /// Columns that the statements cannot work with, each with what is wrong.
    pub unusable: Vec<String>,
    /// Columns of type `timestamp without time zone`, which the service writes and reads in UTC.
    pub zoneless: Vec<String>,
    /// The server's `log_timezone`: as a rule the time zone of its machine, which sessions that set
    /// none write such columns in.
    pub zone: String,
}

impl Misfits {
    /// Reads the catalogue; tables that do not exist have no misfits.
    pub(super) async fn of(connection: &mut PgConnection) -> Result<Self, Fault> {
        let mut misfits = Self::default();
        for row in raw_sql(MISFITS).fetch_all(connection).await? {
            let (place, problem, zone): (String, String, Option<String>) = FromRow::from_row(&row)?;
            match zone {
                Some(zone) => {
                    misfits.zone = zone;
                    misfits.zoneless.push(place);
                }
                None => misfits.unusable.push(format!("{place} {problem}")),
            }
        }
        Ok(misfits)
    }

    /// What zoneless columns mean, and what to do; `None` where there are none.
    pub fn zones(&self) -> Option<(String, String)> {
        if self.zoneless.is_empty() {
            return None;
        }
        let meaning = format!(
            "{} without time zone: the service writes and reads UTC there. Times that an earlier \
             service wrote in another zone are shown shifted, and a counted vote that comes again is \
             recorded as an attempt",
            self.zoneless.join(", ")
        );
        let remedy = format!(
            "before this service counts, convert them to timestamptz from the zone in which they were \
             written (log_timezone of the server is {}): docs/runbook.md, \"Times without a time zone\"",
            self.zone
        );
        Some((meaning, remedy))
    }
}

/// Why counting pauses while `count_batch` has triggers that fire on INSERT. The error of one names no table
/// (P0001, say), so that it looks like the refusal of a vote; and a batch, which holds nothing of a vote, must
/// get none dead-lettered.
pub(super) async fn batch_triggers(connection: &mut PgConnection) -> Result<Option<Fault>, Fault> {
    let names: String = sqlx::query_scalar(BATCH_TRIGGERS).fetch_one(connection).await?;
    let message = format!(
        "triggers on table count_batch ({names}) could refuse valid votes: DROP TRIGGER, or ALTER TABLE \
         count_batch DISABLE TRIGGER"
    );
    Ok((!names.is_empty()).then(|| Fault::new(Class::Pause, message)))
}

/// `fault` with the columns that explain it, if tables can be its cause. PostgreSQL names no column where
/// a value is too long (22001) and no table where a key is missing (42P10).
pub(super) async fn explained(connection: &mut PgConnection, fault: Fault) -> Fault {
    let by_tables = |code: &str| {
        code.starts_with("42") && code != "42501" || code.starts_with("22") || code == "23502"
    };
    if !fault.sqlstate.as_deref().is_some_and(by_tables) {
        return fault;
    }
    match Misfits::of(connection).await {
        Ok(misfits) if !misfits.unusable.is_empty() => {
            let message = format!("{}; {}", fault.message, misfits.unusable.join("; "));
            Fault { message, ..fault }
        }
        _ => fault,
    }
}
