//! The results for people and programs: vote_results as it is.

use sqlx::Error;
use sqlx::postgres::PgConnection;
use time::OffsetDateTime;

use super::connection::Address;
use super::error::{StartError, failed};
use super::start::{Patience, retry};
use super::within;
use crate::model::results::{LawResult, Reading};
use crate::platform::config::Config;

const RESULTS: &str = include_str!("results.sql");

/// One snapshot of vote_results, in no order: of the laws named, or of all when none is. Waits for the
/// database as long as `patience` lasts. SELECT on that table is all it needs; a standby will do.
///
/// # Errors
/// [`StartError`]: what is not retried, and what was retried for too long.
pub async fn results(
    config: &Config,
    laws: &[String],
    patience: Patience,
) -> Result<Reading, StartError> {
    let address = Address::limited(&config.postgres, config.postgres.statement_timeout);
    let address = address.named("vote-aggregator results").read_only();
    let laws = (!laws.is_empty()).then_some(laws);
    retry(config, patience, async || {
        within(config.postgres.transaction_deadline(), async {
            let mut connection = address.connect().await?;
            let reading = read(&mut connection, laws).await;
            reading.map_err(|error| failed(config, error.into(), "reading the results"))
        })
        .await
    })
    .await
}

/// A row of results.sql.
type Row = (OffsetDateTime, Option<String>, i64, i64, Option<OffsetDateTime>);

async fn read(connection: &mut PgConnection, laws: Option<&[String]>) -> Result<Reading, Error> {
    let rows: Vec<Row> = sqlx::query_as(RESULTS).bind(laws).fetch_all(connection).await?;
    let at = rows.first().ok_or(Error::RowNotFound)?.0;
    let laws = rows.into_iter().filter_map(|(_, law_id, oui, non, updated_at)| {
        Some(LawResult { law_id: law_id?, oui, non, updated_at })
    });
    Ok(Reading { laws: laws.collect(), at })
}
