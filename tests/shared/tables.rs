//! The tables, read as votes and as counts of laws.

use std::collections::BTreeMap;

use sqlx::PgExecutor;
use time::OffsetDateTime;
use vote_aggregator::model::vote::{Choice, Vote};

pub const AUDIT: &str =
    "SELECT vote_hash, citizen_id, law_id, choice, \"timestamp\" FROM vote_audit";
pub const ATTEMPTS: &str =
    "SELECT vote_hash, citizen_id, law_id, choice, attempt_timestamp FROM duplicate_attempts";
pub const RESULTS: &str = "SELECT law_id, oui_count, non_count FROM vote_results";
/// What vote_results should be.
pub const RECOUNT: &str = "SELECT law_id, count(*) FILTER (WHERE choice = 'oui'), \
                           count(*) FILTER (WHERE choice = 'non') FROM vote_audit GROUP BY law_id";

/// `law_id` → `[oui, non]`.
pub type Totals = BTreeMap<String, [i64; 2]>;

/// The rows of [`AUDIT`] or [`ATTEMPTS`].
pub async fn votes(sql: impl PgExecutor<'_>, query: &'static str) -> sqlx::Result<Vec<Vote>> {
    let rows = sqlx::query_as(query).fetch_all(sql).await?.into_iter();
    let vote = |(vote_hash, citizen_id, law_id, choice, timestamp): Row| Vote {
        vote_hash: vote_hash.into(),
        citizen_id: citizen_id.into(),
        law_id: law_id.into(),
        choice: Choice::ALL.into_iter().find(|it| it.as_str() == choice).expect("a choice"),
        timestamp,
    };
    Ok(rows.map(vote).collect())
}

type Row = (String, String, String, String, OffsetDateTime);

/// The rows of [`RESULTS`] or [`RECOUNT`].
pub async fn totals(sql: impl PgExecutor<'_>, query: &'static str) -> sqlx::Result<Totals> {
    let rows: Vec<(String, i64, i64)> = sqlx::query_as(query).fetch_all(sql).await?;
    Ok(rows.into_iter().map(|(law, oui, non)| (law, [oui, non])).collect())
}
