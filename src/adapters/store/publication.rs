//! What is published: the history of publications, the next one, and what the public may see.

mod since;

use std::ops::ControlFlow::{Break, Continue};
use std::str::FromStr;

use serde_json::{Value, json};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Error, FromRow, Row as _};
use time::OffsetDateTime;

use self::since::Since;
use super::cell;
use super::connection::Address;
use super::error::{StartError, failed};
use super::recount::{Comparison, STATEMENT_TIMEOUT};
use super::repair::{Progress, answered, compare, run};
use super::start::{Patience, retry};
use super::within;
use crate::model::ports::Fault;
use crate::model::publication::{
    Change, Permitted, Publication, Published, PublishedChange, Refusal, State, rfc3339,
};
use crate::platform::config::Config;

const HISTORY: &str = include_str!("publications.sql");
const PUBLISH: &str = include_str!("publish.sql");
const PUBLISH_FINAL: &str = include_str!("publish_final.sql");
const MAY_READ: &str = "SELECT has_table_privilege(to_regclass('published_state'), 'SELECT')";
const WAIT_FOR_STANDBYS: &str = include_str!("wait_for_standbys.sql");
const PUBLISHED: &str = include_str!("published.sql");

/// The keys by which a second change at the same time is refused.
const KEYS: [&str; 2] = ["result_publications_follows_key", "result_publications_first"];

/// A correction of the results that the public may see.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct PublishedCorrection {
    pub corrected_at: OffsetDateTime,
    pub law_id: String,
    pub oui_before: i64,
    pub non_before: i64,
    pub oui_after: i64,
    pub non_after: i64,
    pub reason: Option<String>,
}

impl PublishedCorrection {
    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "at": rfc3339(self.corrected_at),
            "law_id": self.law_id,
            "oui_before": self.oui_before,
            "non_before": self.non_before,
            "oui_after": self.oui_after,
            "non_after": self.non_after,
            "reason": self.reason,
        })
    }
}

/// All publications, and what the public may see of it, as one snapshot has them.
#[derive(Clone, Debug)]
pub struct History {
    /// Oldest first.
    pub publications: Vec<Publication>,
    pub published: Option<Published>,
    pub corrections: Vec<PublishedCorrection>,
}

/// What came of a change.
#[derive(Debug)]
pub enum Outcome {
    Done(Publication),
    Refused(Refusal),
    /// Another change was made meanwhile, so this one may no longer be meant.
    Conflict,
    /// Results and audit differ: nothing is final.
    Differ(Comparison),
    /// No law has a result.
    Empty,
    /// This is one of several cells, whose results are a part of all.
    Cell,
}

/// What is known of a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicationStatus {
    /// Nothing was ever published, and no embargo is set.
    Never,
    /// This role may not read it.
    Unknown,
    As(Published),
}

/// Reads what the public may see of the results.
///
/// # Errors
/// [`StartError`]: what is not retried, and what was retried for too long.
pub async fn publication_status(
    config: &Config,
    patience: Patience,
) -> Result<PublicationStatus, StartError> {
    let address = Address::limited(&config.postgres, config.postgres.statement_timeout);
    let address = address.named("vote-aggregator publication").read_only();
    retry(config, patience, async || {
        within(config.postgres.transaction_deadline(), async {
            let mut connection = address.connect().await?;
            read_publication_status(&mut connection).await.map_err(|fault| reading(config, fault))
        })
        .await
    })
    .await
}

/// As [`publication_status`], on a connection.
pub(super) async fn read_publication_status(
    connection: &mut PgConnection,
) -> Result<PublicationStatus, Fault> {
    // Null where a schema from before publications has no such view.
    let may_read: Option<bool> = sqlx::query_scalar(MAY_READ).fetch_one(&mut *connection).await?;
    Ok(match may_read {
        None => PublicationStatus::Never,
        Some(false) => PublicationStatus::Unknown,
        Some(true) => {
            published(connection).await?.map_or(PublicationStatus::Never, PublicationStatus::As)
        }
    })
}

pub(super) async fn published(connection: &mut PgConnection) -> Result<Option<Published>, Error> {
    sqlx::query_as(PUBLISHED).fetch_optional(connection).await
}

/// Reads the history, for a publisher.
///
/// # Errors
/// [`StartError`]: what is not retried, and what was retried for too long.
pub async fn history(config: &Config, patience: Patience) -> Result<History, StartError> {
    let address = Address::limited(&config.postgres, config.postgres.statement_timeout);
    let address = address.named("vote-aggregator publication").read_only();
    let corrections = "SELECT * FROM published_corrections ORDER BY id";
    retry(config, patience, async || {
        within(config.postgres.transaction_deadline(), async {
            let mut connection = address.connect().await?;
            let history = async {
                let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
                let mut snapshot = connection.begin_with(begin).await?;
                Ok::<_, Error>(History {
                    publications: publications(&mut snapshot, false).await?,
                    published: published(&mut snapshot).await?,
                    corrections: sqlx::query_as(corrections).fetch_all(&mut *snapshot).await?,
                })
            };
            history.await.map_err(|error| reading(config, error.into()))
        })
        .await
    })
    .await
}

/// Makes a change, and nothing if anything stands in its way. Withholding is made behind whatever else
/// is changed at the same time. For `final` the audit is recounted, with `progress` after each part, and
/// the results are copied, all in the snapshot that was recounted.
///
/// # Errors
/// [`StartError`]: what is not retried, and what was retried for too long.
pub async fn publish(
    config: &Config,
    patience: Patience,
    change: &Change,
    progress: impl Fn(Progress),
) -> Result<Outcome, StartError> {
    let is_final = change.state == State::Final;
    let timeout = if is_final { STATEMENT_TIMEOUT } else { config.postgres.statement_timeout };
    let address = Address::limited(&config.postgres, timeout).named("vote-aggregator publication");
    let deadline = config.postgres.transaction_deadline();
    // The last row that the attempt before saw; `None`: this is the first.
    let mut seen = None;
    retry(config, patience, async || {
        let mut connection = address.connect().await?;
        loop {
            let made = async {
                let deciding = decide(&mut connection, config, change, &mut seen);
                let (follows, permitted) = match within::<_, Fault>(deadline, deciding).await? {
                    Ok(decided) => decided,
                    Err(outcome) => return Ok(Break(outcome)),
                };
                let row = Row { change, follows, permitted };
                if is_final {
                    return freeze(&mut connection, &row, &progress).await.map(Break);
                }
                Ok(match within(deadline, row.insert(&mut connection, PUBLISH)).await? {
                    // Decided anew: withholding comes behind every other change, which may also be an
                    // attempt of this one.
                    Outcome::Conflict => Continue(()),
                    outcome => Break(outcome),
                })
            };
            let made = made.await.map_err(|fault| failed(config, fault, "publishing"))?;
            if let Break(outcome) = made {
                connection.close().await.ok();
                return Ok(outcome);
            }
        }
    })
    .await
}

/// The row that this change would follow and what it may be, or its outcome: it is refused, another change
/// was made since the first attempt, or an attempt of unknown outcome has made it.
async fn decide(
    connection: &mut PgConnection,
    config: &Config,
    change: &Change,
    seen: &mut Option<Option<i64>>,
) -> Result<Result<(Option<i64>, Permitted), Outcome>, Fault> {
    // A cell has a part of the results. Where a view sums them there is no audit to recount, and none of these
    // tables, so that nothing is published from there either. To withhold, nothing but the one table is needed.
    if change.state != State::Withheld && cell::read(connection).await?.is_some() {
        return Ok(Err(Outcome::Cell));
    }
    let user = sqlx::query_scalar("SELECT session_user::text").fetch_one(&mut *connection);
    let user: String = user.await?;
    let last = publications(connection, true).await?.pop();
    match (Since::of(change, &user, *seen, last.as_ref()), last) {
        (Since::Made, Some(made)) => {
            // The attempt's COMMIT may still have been waiting for the standbys, as classify.sql explains.
            sqlx::query(WAIT_FOR_STANDBYS).execute(connection).await?;
            Ok(Err(Outcome::Done(made)))
        }
        (Since::Conflict, _) => Ok(Err(Outcome::Conflict)),
        (_, last) => {
            let follows = last.as_ref().map(|last| last.id);
            *seen = Some(follows);
            let permitted = change.after(last.as_ref(), &user, config.publication.four_eyes);
            Ok(permitted.map(|permitted| (follows, permitted)).map_err(Outcome::Refused))
        }
    }
}

/// Recounts, copies and publishes in one snapshot.
async fn freeze(
    connection: &mut PgConnection,
    row: &Row<'_>,
    progress: &impl Fn(Progress),
) -> Result<Outcome, Fault> {
    // The locks before the snapshot: a table that is rewritten in between would look empty to it.
    run(
        connection,
        "BEGIN ISOLATION LEVEL REPEATABLE READ; \
         LOCK TABLE vote_audit, vote_results IN ACCESS SHARE MODE",
    )
    .await?;
    let comparison = compare(connection, progress).await?;
    if !comparison.agrees() {
        return Ok(Outcome::Differ(comparison));
    }
    if comparison.laws == 0 {
        return Ok(Outcome::Empty);
    }
    let outcome = row.insert(connection, PUBLISH_FINAL).await?;
    if matches!(outcome, Outcome::Done(_)) {
        run(connection, "COMMIT").await?;
    }
    Ok(outcome)
}

/// A row to be inserted.
struct Row<'a> {
    change: &'a Change,
    follows: Option<i64>,
    permitted: Permitted,
}

impl Row<'_> {
    async fn insert(
        &self,
        connection: &mut PgConnection,
        statement: &'static str,
    ) -> Result<Outcome, Fault> {
        let Self { change, follows, permitted } = self;
        let insert = sqlx::query_as(statement).bind(follows).bind(change.state.to_string());
        let insert = insert.bind(permitted.not_before).bind(&change.reason).bind(permitted.test);
        answered(async {
            match insert.fetch_one(connection).await {
                Err(Error::Database(error))
                    if error.constraint().is_some_and(|key| KEYS.contains(&key)) =>
                {
                    Ok(Outcome::Conflict)
                }
                made => made.map(Outcome::Done),
            }
        })
        .await
    }
}

/// The last publication or all, oldest first.
async fn publications(
    connection: &mut PgConnection,
    last: bool,
) -> Result<Vec<Publication>, Error> {
    sqlx::query_as(HISTORY).bind(last).fetch_all(connection).await
}

fn reading(config: &Config, fault: Fault) -> StartError {
    failed(config, fault, "reading what is published")
}

impl<'r> FromRow<'r, PgRow> for Publication {
    fn from_row(row: &'r PgRow) -> Result<Self, Error> {
        Ok(Self {
            id: row.try_get("id")?,
            follows: row.try_get("follows")?,
            set_at: row.try_get("set_at")?,
            set_by: row.try_get("set_by")?,
            state: state(row.try_get("state")?)?,
            not_before: row.try_get("not_before")?,
            reason: row.try_get("reason")?,
            test: row.try_get("test")?,
            sha256: row.try_get("sha256")?,
        })
    }
}

impl<'r> FromRow<'r, PgRow> for Published {
    fn from_row(row: &'r PgRow) -> Result<Self, Error> {
        Ok(Self {
            id: row.try_get("id")?,
            state: row.try_get::<Option<&str>, _>("state")?.map(state).transpose()?,
            not_before: row.try_get("not_before")?,
            set_at: row.try_get("set_at")?,
            test: row.try_get("test")?,
            reason: row.try_get("reason")?,
            sha256: row.try_get("sha256")?,
        })
    }
}

impl<'r> FromRow<'r, PgRow> for PublishedChange {
    fn from_row(row: &'r PgRow) -> Result<Self, Error> {
        Ok(Self {
            id: row.try_get("id")?,
            set_at: row.try_get("set_at")?,
            state: state(row.try_get("state")?)?,
            not_before: row.try_get("not_before")?,
            reason: row.try_get("reason")?,
            sha256: row.try_get("sha256")?,
        })
    }
}

/// A state as a table has it.
fn state(name: &str) -> Result<State, Error> {
    State::from_str(name).map_err(|_| Error::Decode(format!("the state {name:?}").into()))
}
