//! PostgreSQL: counts batches of votes, each vote exactly once, and tells what a failure calls for.
//!
//! Architecture invariant: nothing here knows the broker. Everything about SQL, SQLSTATE and sqlx
//! stays behind [`PgStore`] and its errors.

mod columns;
mod connection;
mod migrate;
mod sqlstate;
mod start;
mod transaction;

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool};
use tokio::time::timeout;

pub use self::connection::options;
use self::connection::{CONNECT_TIMEOUT, Distrust};
pub use self::migrate::init_script;
pub use self::sqlstate::{classify, fatal_at_start};
pub use self::start::{StartError, migrate, prepare};
use crate::config::Postgres;
use crate::pipeline::ports::{Class, Counted, Fault, Store, Votes};

/// How much longer than the server's own `statement_timeout` we wait for an answer. A connection
/// that is half open never gives one.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);

/// The store: a pool, and one task a transaction.
#[derive(Clone)]
pub struct PgStore {
    pool: PgPool,
    options: PgConnectOptions,
    distrust: Arc<Distrust>,
    /// Longest time one transaction may take, in all.
    deadline: Duration,
}

impl PgStore {
    /// A store on `config`'s database. Connects on first use.
    pub fn new(config: &Postgres, options: PgConnectOptions) -> Self {
        let distrust = Arc::new(Distrust::default());
        Self {
            pool: connection::pool(config, options.clone(), Arc::clone(&distrust)),
            options,
            distrust,
            deadline: config.statement_timeout + ANSWER_MARGIN,
        }
    }

    /// Totals of all laws as `(law_id, [oui, non])`, most votes first.
    ///
    /// # Errors
    /// [`Fault`] when the database does not answer.
    pub async fn totals(&self) -> Result<Vec<(String, [u64; 2])>, Fault> {
        let pool = self.pool.clone();
        self.watched(async move { transaction::totals(&pool).await }).await
    }

    /// Closes the pool; connections in use are waited for.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Runs `work` in a task of its own and waits for it until the deadline. The task, and not the
    /// caller's future, holds the connection: a caller that is dropped (a `select!`, a `timeout`)
    /// must not return a connection with an open transaction to the pool, which sqlx 0.8.6 and
    /// 0.9.0 do (its issues #4385 and #4393). A task that is aborted detaches its connection.
    async fn watched<R: Send + 'static>(
        &self,
        work: impl Future<Output = Result<R, Fault>> + Send + 'static,
    ) -> Result<R, Fault> {
        let mut task = tokio::spawn(work);
        let result = match timeout(self.deadline, &mut task).await {
            Ok(Ok(result)) => result,
            Ok(Err(panicked)) => Err(Fault {
                class: Class::Bug,
                sqlstate: None,
                message: format!("the transaction's task ended early: {panicked}"),
            }),
            Err(_) => {
                task.abort();
                Err(Fault {
                    class: Class::UnknownOutcome,
                    sqlstate: None,
                    message: format!("no answer from PostgreSQL within {:?}", self.deadline),
                })
            }
        };
        if let Err(Fault { class: Class::Reconnect | Class::UnknownOutcome, .. }) = &result {
            // What broke this connection most likely broke its older sisters in the pool.
            self.distrust.all_until_now();
        }
        result
    }
}

impl Store for PgStore {
    async fn count(&self, votes: Votes) -> Result<Counted, Fault> {
        let pool = self.pool.clone();
        self.watched(async move { transaction::count(&pool, &votes).await }).await
    }

    async fn probe(&self) -> Result<(), Fault> {
        // On a connection of its own: the pool reports only that it timed out, not why.
        let options = self.options.clone();
        let probed = self.watched(async move {
            let mut connection = connection::connect(&options).await?;
            transaction::rehearse(&mut connection).await
        });
        match timeout(CONNECT_TIMEOUT + self.deadline, probed).await {
            Ok(result) => result,
            Err(_) => Err(Fault {
                class: Class::Reconnect,
                sqlstate: None,
                message: "no answer to the probe".to_owned(),
            }),
        }
    }
}
