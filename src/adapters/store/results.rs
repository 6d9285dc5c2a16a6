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

/// Reads vote_results, again and again on one connection, which is read only. SELECT on that table
/// is all it needs; a standby will do.
pub struct Results<'c> {
    config: &'c Config,
    address: Address,
    /// `None`: all.
    laws: Option<&'c [String]>,
    connection: Option<PgConnection>,
}

impl<'c> Results<'c> {
    /// Of the laws named, or of all when none is. Connects on first use.
    pub fn new(config: &'c Config, laws: &'c [String]) -> Self {
        let limited = Address::limited(&config.postgres, config.postgres.statement_timeout);
        let address = limited.named("vote-aggregator results").read_only();
        Self { config, address, laws: (!laws.is_empty()).then_some(laws), connection: None }
    }

    /// One snapshot, in no order.
    ///
    /// # Errors
    /// [`StartError`]: only [`StartError::Unavailable`] is worth a retry.
    pub async fn read(&mut self) -> Result<Reading, StartError> {
        let kept = self.connection.is_some();
        let read = match self.read_once().await {
            // It may have died long ago.
            Err(StartError::Unavailable(_)) if kept => self.read_once().await,
            read => read,
        };
        read.map_err(|error| error.classified(self.config))
    }

    async fn read_once(&mut self) -> Result<Reading, StartError> {
        let config = self.config;
        // Taken out, so that a read that fails or is dropped leaves no connection half used.
        let kept = self.connection.take();
        let reading = async {
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.address.connect().await?,
            };
            let reading = read(&mut connection, self.laws).await;
            let reading =
                reading.map_err(|error| failed(config, error.into(), "reading the results"))?;
            self.connection = Some(connection);
            Ok(reading)
        };
        within(config.postgres.transaction_deadline(), reading).await
    }
}

/// Reads the results once, and waits for the database as long as `patience` lasts.
///
/// # Errors
/// [`StartError`]: what is not retried, and what was retried for too long.
pub async fn results(
    config: &Config,
    laws: &[String],
    patience: Patience,
) -> Result<Reading, StartError> {
    let attempt = async || Results::new(config, laws).read().await;
    retry(config, patience, attempt).await
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
