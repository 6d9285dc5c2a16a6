//! What a public page shows: the three views of what is published, in one snapshot.

use sqlx::postgres::PgConnection;
use sqlx::{Connection, Error};
use time::OffsetDateTime;

use super::connection::Address;
use super::error::{StartError, failed};
use super::publication::{PublishedCorrection, published};
use super::within;
use super::writer::takes_no_writes;
use crate::model::publication::Published;
use crate::model::results::LawResult;
use crate::platform::config::Config;

const MOMENT: &str = "SELECT now(), pg_is_in_recovery()";
const RESULTS: &str = include_str!("snapshot_results.sql");
const CORRECTIONS: &str = "SELECT * FROM published_corrections ORDER BY id";

/// Everything that is public at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// `None`: nothing was ever published.
    pub published: Option<Published>,
    /// In the order of their names; none while results are not public.
    pub laws: Vec<LawResult>,
    /// Oldest first.
    pub corrections: Vec<PublishedCorrection>,
    pub as_of: OffsetDateTime,
}

/// Reads snapshots, again and again on one connection, of the server that takes writes: a standby that
/// lags or is cut off shows what is withheld by now. The group vote_board is all it needs.
pub struct Snapshots<'c> {
    config: &'c Config,
    address: Address,
    connection: Option<PgConnection>,
}

impl<'c> Snapshots<'c> {
    /// Connects on first use.
    pub fn new(config: &'c Config) -> Self {
        let limited = Address::limited(&config.postgres, config.postgres.statement_timeout);
        let address = limited.named("vote-aggregator board").read_only();
        Self { config, address, connection: None }
    }

    /// Everything that is public now.
    ///
    /// # Errors
    /// [`StartError`]: only [`StartError::Unavailable`] is worth a retry.
    pub async fn read(&mut self) -> Result<Snapshot, StartError> {
        let config = self.config;
        // Taken out, so that a read that fails or is dropped leaves no connection half used.
        let kept = self.connection.take();
        let reading = async {
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.address.connect().await?,
            };
            let snapshot = snapshot(&mut connection).await;
            let snapshot = snapshot
                .map_err(|error| failed(config, error.into(), "reading what is published"))?;
            let snapshot = snapshot.ok_or_else(|| takes_no_writes("a standby, which may lag"))?;
            self.connection = Some(connection);
            Ok(snapshot)
        };
        let read: Result<_, StartError> =
            within(config.postgres.transaction_deadline(), reading).await;
        read.map_err(|error| error.classified(config))
    }
}

/// `None`: a standby answers.
async fn snapshot(connection: &mut PgConnection) -> Result<Option<Snapshot>, Error> {
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    let mut transaction = connection.begin_with(begin).await?;
    let moment = sqlx::query_as(MOMENT).fetch_one(&mut *transaction);
    let (as_of, is_standby) = moment.await?;
    if is_standby {
        return Ok(None);
    }
    let snapshot = Snapshot {
        published: published(&mut transaction).await?,
        laws: laws(&mut transaction).await?,
        corrections: sqlx::query_as(CORRECTIONS).fetch_all(&mut *transaction).await?,
        as_of,
    };
    transaction.commit().await?;
    Ok(Some(snapshot))
}

async fn laws(connection: &mut PgConnection) -> Result<Vec<LawResult>, Error> {
    type Row = (String, i64, i64, Option<OffsetDateTime>);
    let rows: Vec<Row> = sqlx::query_as(RESULTS).fetch_all(connection).await?;
    let law = |(law_id, oui, non, updated_at)| LawResult { law_id, oui, non, updated_at };
    Ok(rows.into_iter().map(law).collect())
}
