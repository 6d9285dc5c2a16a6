//! What a public page shows: the views of what is published, in one snapshot.

use std::collections::BTreeMap;

use sqlx::postgres::PgConnection;
use sqlx::{Connection, Error};
use time::OffsetDateTime;

use super::connection::Address;
use super::error::{StartError, failed};
use super::publication::{PublishedCorrection, published};
use super::within;
use super::writer::takes_no_writes;
use crate::model::publication::{Published, PublishedChange, State};
use crate::model::results::{LawResult, results_sha256};
use crate::platform::config::Config;

/// This statement takes the snapshot; `now()` would be the transaction's start, when less was committed.
const MOMENT: &str = "SELECT clock_timestamp(), pg_is_in_recovery()";
const RESULTS: &str = include_str!("snapshot_results.sql");
const CORRECTIONS: &str = "SELECT * FROM published_corrections ORDER BY id";
const HISTORY: &str = include_str!("snapshot_history.sql");
const FINALS: &str = "SELECT publication_id, law_id, oui_count, non_count FROM published_finals \
                      WHERE publication_id = ANY($1) ORDER BY law_id";
const SINCE_FINAL: &str = "SELECT votes FROM published_since_final";

/// The frozen copies by publication.
pub type Finals = BTreeMap<i64, Vec<LawResult>>;

/// Everything that is public at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// `None`: nothing was ever published.
    pub published: Option<Published>,
    /// In the order of their names; none while results are not public.
    pub laws: Vec<LawResult>,
    /// Oldest first.
    pub corrections: Vec<PublishedCorrection>,
    /// Oldest first; none before the time.
    pub history: Vec<PublishedChange>,
    /// Those of the history that are public.
    pub finals: Finals,
    /// Votes counted after the frozen copy that is shown; `None` in any other state.
    pub since_final: Option<i64>,
    pub as_of: OffsetDateTime,
}

impl Snapshot {
    /// One that shows no number.
    pub fn without_results(
        published: Option<Published>,
        history: Vec<PublishedChange>,
        as_of: OffsetDateTime,
    ) -> Self {
        let (laws, corrections, finals) = (Vec::new(), Vec::new(), Finals::new());
        Self { published, laws, corrections, history, finals, since_final: None, as_of }
    }
}

/// Reads snapshots, again and again on one connection, of the server that takes writes: a standby that
/// lags or is cut off shows what is withheld by now. The group vote_board is all it needs.
pub struct Snapshots<'c> {
    config: &'c Config,
    address: Address,
    connection: Option<PgConnection>,
    /// Those that were read: they do not change.
    finals: Finals,
}

impl<'c> Snapshots<'c> {
    /// Connects on first use.
    pub fn new(config: &'c Config) -> Self {
        let limited = Address::limited(&config.postgres, config.postgres.statement_timeout);
        let address = limited.named("vote-aggregator board").read_only();
        Self { config, address, connection: None, finals: Finals::new() }
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
            let snapshot = snapshot(&mut connection, &mut self.finals).await;
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

/// `None`: a standby answers. `finals` are those that were read before, and then those that are public.
async fn snapshot(
    connection: &mut PgConnection,
    finals: &mut Finals,
) -> Result<Option<Snapshot>, Error> {
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    let mut transaction = connection.begin_with(begin).await?;
    let moment = sqlx::query_as(MOMENT).fetch_one(&mut *transaction);
    let (as_of, is_standby): (OffsetDateTime, _) = moment.await?;
    if is_standby {
        return Ok(None);
    }
    let published = published(&mut transaction).await?;
    let mut history: Vec<PublishedChange> =
        sqlx::query_as(HISTORY).fetch_all(&mut *transaction).await?;
    history.reverse();
    let is_public = published.as_ref().is_some_and(Published::is_public);
    let mut snapshot = Snapshot::without_results(published, history, as_of);
    // What is withheld must not depend on tables that may be locked, or gone.
    if is_public {
        read_finals(&mut transaction, &snapshot.history, finals).await?;
        snapshot.finals.clone_from(finals);
        snapshot.laws = laws(&mut transaction).await?;
        if let Some(Published { state: Some(State::Final), sha256, .. }) = &snapshot.published {
            verify_copy(&snapshot.laws, sha256.as_deref())?;
        }
        snapshot.corrections = sqlx::query_as(CORRECTIONS).fetch_all(&mut *transaction).await?;
        let since_final = sqlx::query_scalar(SINCE_FINAL).fetch_optional(&mut *transaction);
        snapshot.since_final = since_final.await?;
    }
    transaction.commit().await?;
    Ok(Some(snapshot))
}

/// Makes `finals` the frozen copies of `history`; reads only those that are new.
async fn read_finals(
    connection: &mut PgConnection,
    history: &[PublishedChange],
    finals: &mut Finals,
) -> Result<(), Error> {
    let public = history.iter().filter(|it| it.sha256.is_some());
    let public: BTreeMap<i64, OffsetDateTime> = public.map(|it| (it.id, it.set_at)).collect();
    finals.retain(|id, _| public.contains_key(id));
    let new: Vec<i64> = public.keys().copied().filter(|id| !finals.contains_key(id)).collect();
    if new.is_empty() {
        return Ok(());
    }
    let rows: Vec<(i64, String, i64, i64)> =
        sqlx::query_as(FINALS).bind(&new).fetch_all(connection).await?;
    let mut copies = Finals::new();
    for (id, law_id, oui, non) in rows {
        let updated_at = public.get(&id).copied();
        copies.entry(id).or_default().push(LawResult { law_id, oui, non, updated_at });
    }
    for change in history.iter().filter(|change| new.contains(&change.id)) {
        let copy = copies.get(&change.id).map_or(&[][..], Vec::as_slice);
        verify_copy(copy, change.sha256.as_deref())?;
    }
    finals.append(&mut copies);
    Ok(())
}

/// Whether a frozen copy is the one that was published: a publisher may add rows to any copy.
fn verify_copy(laws: &[LawResult], sha256: Option<&str>) -> Result<(), Error> {
    let found = results_sha256(laws);
    if sha256 == Some(found.as_str()) {
        return Ok(());
    }
    let published = sha256.unwrap_or("none");
    let message = format!(
        "a frozen copy (certified_results) was changed: its SHA-256 is {found}, and {published} was published"
    );
    Err(Error::Decode(message.into()))
}

async fn laws(connection: &mut PgConnection) -> Result<Vec<LawResult>, Error> {
    type Row = (String, i64, i64, Option<OffsetDateTime>);
    let rows: Vec<Row> = sqlx::query_as(RESULTS).fetch_all(connection).await?;
    let law = |(law_id, oui, non, updated_at)| LawResult { law_id, oui, non, updated_at };
    Ok(rows.into_iter().map(law).collect())
}
