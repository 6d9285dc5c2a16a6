//! The results for people and programs: vote_results as it is, and nothing else.

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Error, Row};

use super::connection::{Address, options, with_session_limits};
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
        let limited =
            with_session_limits(options(&config.postgres), config.postgres.statement_timeout);
        let address = Address::new(&config.postgres, limited).session(
            "vote-aggregator results",
            [("default_transaction_read_only", "on".to_owned())],
        );
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
        // An answer that does not come leaves no doubtful connection behind.
        let kept = self.connection.take();
        let reading = async {
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.address.connect().await?,
            };
            let reading = read(&mut connection, self.laws).await;
            let reading =
                reading.map_err(|error| failed(config, error.into(), "reading the results"))?;
            Ok::<_, StartError>((connection, reading))
        };
        let (connection, reading) = within(config.postgres.transaction_deadline(), reading).await?;
        self.connection = Some(connection);
        Ok(reading)
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

async fn read(connection: &mut PgConnection, laws: Option<&[String]>) -> Result<Reading, Error> {
    let rows = sqlx::query(RESULTS).bind(laws).fetch_all(connection).await?;
    let first = rows.first().ok_or(Error::RowNotFound)?;
    let at = first.try_get("at")?;
    let laws = rows.iter().filter_map(|row| law(row).transpose());
    Ok(Reading { laws: laws.collect::<Result<_, _>>()?, at })
}

fn law(row: &PgRow) -> Result<Option<LawResult>, Error> {
    let Some(law_id) = row.try_get("law_id")? else {
        return Ok(None);
    };
    Ok(Some(LawResult {
        law_id,
        oui: row.try_get("oui_count")?,
        non: row.try_get("non_count")?,
        updated_at: row.try_get("updated_at")?,
    }))
}
