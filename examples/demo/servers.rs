//! What RabbitMQ and PostgreSQL have, asked of them directly and not of the service.

use std::collections::BTreeMap;
use std::env::var;
use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection as _};
use tokio::time::{Instant, sleep};

use crate::Result;

pub const QUEUE: &str = "votes.aggregation";
const DEAD_LETTER_QUEUE: &str = "votes.aggregation.dlq";
/// Dead-lettering goes on behind a rejection, in the broker's own time.
const DEAD_LETTERING_TIMEOUT: Duration = Duration::from_secs(10);

/// `law_id` → `[oui, non]`.
pub type Laws = BTreeMap<String, [u64; 2]>;

/// The demo's own servers.
pub struct Servers {
    pub amqp: String,
    pub postgres: String,
}

/// What the tables hold.
pub struct Tables {
    pub results: Laws,
    /// Recomputed from the single votes of the audit.
    pub audit: Laws,
    /// Rows of `duplicate_attempts`.
    pub attempts: u64,
}

impl Servers {
    /// From the variables that `script/services env` prints.
    pub fn from_environment() -> Result<Self> {
        let get =
            |name: String| var(&name).map_err(|_| format!("{name} is not set; run script/demo"));
        let authority = |server: &str| {
            let part = |name: &str| get(format!("{server}_{name}"));
            let (user, password) = (part("USER")?, part("PASSWORD")?);
            Ok::<_, String>(format!("{user}:{password}@{}:{}", part("HOST")?, part("PORT")?))
        };
        Ok(Self {
            amqp: format!("amqp://{}/%2f", authority("RABBITMQ")?),
            postgres: format!(
                "postgres://{}/{}",
                authority("POSTGRES")?,
                get("POSTGRES_DB".to_owned())?
            ),
        })
    }

    /// Messages in the dead-letter queue, once they are as many as `expected`, or the time is up.
    pub async fn dead_letters(&self, expected: u64) -> Result<u64> {
        let began = Instant::now();
        loop {
            let found = self.ready(DEAD_LETTER_QUEUE).await?;
            if found == expected || began.elapsed() > DEAD_LETTERING_TIMEOUT {
                return Ok(found);
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Messages in a queue that no consumer has.
    pub async fn ready(&self, queue: &str) -> Result<u64> {
        let connection = Connection::connect(&self.amqp, ConnectionProperties::default()).await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let channel = connection.create_channel().await?;
        let declared = channel.queue_declare(queue.into(), passive, FieldTable::default()).await?;
        let ready = declared.message_count();
        connection.close(200, "OK".into()).await?;
        Ok(ready.into())
    }

    /// All three tables in one snapshot, so that they are comparable while votes still come.
    pub async fn tables(&self) -> Result<Tables> {
        let options: PgConnectOptions = self.postgres.parse()?;
        let mut connection: PgConnection = options.connect().await?;
        sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .execute(&mut connection)
            .await?;
        let results = sqlx::query_as("SELECT law_id, oui_count, non_count FROM vote_results")
            .fetch_all(&mut connection)
            .await?;
        let audit = sqlx::query_as(
            "SELECT law_id, count(*) FILTER (WHERE choice = 'oui'),
                    count(*) FILTER (WHERE choice = 'non')
             FROM vote_audit GROUP BY law_id",
        )
        .fetch_all(&mut connection)
        .await?;
        let attempts: i64 = sqlx::query_scalar("SELECT count(*) FROM duplicate_attempts")
            .fetch_one(&mut connection)
            .await?;
        connection.close().await?;
        Ok(Tables { results: laws(results)?, audit: laws(audit)?, attempts: attempts.try_into()? })
    }
}

fn laws(rows: Vec<(String, i64, i64)>) -> Result<Laws> {
    rows.into_iter().map(|(law, oui, non)| Ok((law, [oui.try_into()?, non.try_into()?]))).collect()
}
