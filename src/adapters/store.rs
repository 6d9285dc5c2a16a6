//! PostgreSQL: counts batches of votes, each vote exactly once, and classifies failures.
//!
//! Architecture invariant: nothing here knows the broker. Everything about SQL, SQLSTATE and sqlx
//! stays behind [`PgStore`] and its errors.

mod acknowledged;
mod cell;
pub mod columns;
mod connection;
mod durability;
mod error;
mod fault;
mod inspect;
mod migrate;
mod misfits;
mod publication;
mod reconcile;
mod recount;
mod repair;
mod results;
mod seal;
mod sessions;
mod snapshot;
mod sqlstate;
mod start;
mod transaction;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool};
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, timeout};

pub use self::acknowledged::{LookUp, LostVotes};
pub use self::connection::options;
use self::connection::{Address, Generation};
pub use self::durability::Risk;
pub use self::error::{StartError, describe};
pub use self::inspect::{Clocks, DatabaseFacts, Rehearsal, Server, Skipped, inspect};
pub use self::migrate::{ForeignObject, SchemaState, Surroundings, init_script};
pub use self::misfits::Misfits;
pub use self::publication::{
    History, Outcome, PublicationStatus, PublishedCorrection, history, publication_status, publish,
};
pub use self::reconcile::{PAUSES, Reconciled, Shared};
pub use self::recount::{Comparison, LawCounts};
pub use self::repair::{Correction, Progress, correct, recount};
pub use self::results::results;
pub use self::seal::{CountBatch, Holder, SealFacts, SealReader, SealSnapshot, Unsealed};
#[cfg(test)]
pub(crate) use self::sessions::tests::session;
pub use self::sessions::{Session, pids};
pub use self::snapshot::{Finals, Snapshot, Snapshots};
pub use self::sqlstate::{classify, fatal_at_start};
pub use self::start::{Migrated, Patience, migrate, prepare};
use self::writer::Search;
pub use self::writer::{Role, roles};
use crate::model::ports::{Class, Counted, Fault, Store, Votes};
use crate::platform::config::Postgres;
use crate::platform::telemetry::PoolUse;

/// The tables that counting writes to.
const COUNTED_TABLES: [&str; 3] = ["vote_audit", "vote_results", "duplicate_attempts"];

/// Longest wait for a connection: to open one, or to get one from the pool.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a connection for reading is kept: after a failover it may lead to the old primary, while the
/// pool counts on the new one.
const READER_AGE: Duration = Duration::from_secs(30);

/// The store: a pool, and one task a transaction.
#[derive(Clone)]
pub struct PgStore {
    pool: PgPool,
    address: Address,
    generation: Arc<Generation>,
    search: Arc<Search>,
    /// Longest time one transaction may take, in all.
    deadline: Duration,
    /// Notified of each connection that the pool opens.
    connected: Arc<Notify>,
    /// For reading totals: reads must neither wait for the batches' connections nor take one.
    reader: Arc<Mutex<Option<(PgConnection, Instant)>>>,
}

impl PgStore {
    /// A store on `config`'s database. Connects on first use.
    pub fn new(config: &Postgres, options: PgConnectOptions) -> Self {
        let (generation, connected) = (Arc::<Generation>::default(), Arc::<Notify>::default());
        let address = Address::new(config, options);
        let pool = connection::pool(
            config,
            address.current_options(),
            Arc::clone(&generation),
            Arc::clone(&connected),
        );
        let (deadline, reader) = (config.transaction_deadline(), Arc::default());
        let search = Arc::default();
        Self { pool, address, generation, search, deadline, connected, reader }
    }

    /// Totals by law: of the laws `named`, then of those with most votes, `max` in all, and the sum of
    /// all the rest under no name; a law called `other` is in the rest.
    ///
    /// # Errors
    /// [`Fault`] when the database does not answer.
    pub async fn totals(&self, named: Vec<String>, max: usize) -> Result<Totals, Fault> {
        self.read(async move |connection: &mut PgConnection| {
            transaction::totals(connection, &named, max).await
        })
        .await
    }

    /// Resolves when the pool has opened a connection since the last time.
    pub async fn reconnected(&self) {
        self.connected.notified().await;
    }

    /// Closes the connection for reading; the next read opens one, which leads to the server that the
    /// pool has reached.
    pub async fn close_reader(&self) {
        *self.reader.lock().await = None;
    }

    /// Closes the pool; connections in use are waited for.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// What the pool's connections do at this moment.
    pub fn pool_use(&self) -> PoolUse {
        let open = self.pool.size();
        let idle = u32::try_from(self.pool.num_idle()).unwrap_or(open).min(open);
        let max = self.pool.options().get_max_connections();
        PoolUse { idle, in_use: open - idle, max }
    }

    async fn read<R: Send + 'static>(
        &self,
        ask: impl AsyncFnOnce(&mut PgConnection) -> Result<R, Fault>,
    ) -> Result<R, Fault> {
        let asking = async {
            let mut kept = self.reader.lock().await;
            // Taken out, so that a read that fails or is dropped leaves no connection half used.
            let (mut connection, opened) = match kept.take() {
                Some((connection, opened)) if opened.elapsed() < READER_AGE => (connection, opened),
                _ => (self.connect().await?, Instant::now()),
            };
            let answer = ask(&mut connection).await?;
            *kept = Some((connection, opened));
            Ok(answer)
        };
        within(self.deadline, asking).await
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
        match timeout(self.deadline, &mut task).await {
            Ok(Ok(result)) => result,
            Ok(Err(panicked)) => {
                let message = format!("the transaction's task ended early: {panicked}");
                Err(Fault::new(Class::Bug, message))
            }
            Err(_) => {
                task.abort();
                Err(no_answer(Class::UnknownOutcome, self.deadline))
            }
        }
    }
}

/// Totals by law; see [`PgStore::totals`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// `(law_id, [oui, non])`.
    pub laws: Vec<(String, [i64; 2])>,
    /// `[oui, non]` of all other laws together.
    pub rest: [i64; 2],
}

fn no_answer(class: Class, deadline: Duration) -> Fault {
    Fault::new(class, format!("no answer from PostgreSQL within {deadline:?}"))
}

/// Bounds work on a connection that is not pooled: dropping it half-way closes it.
async fn within<R, E: From<Fault>>(
    deadline: Duration,
    work: impl Future<Output = Result<R, E>>,
) -> Result<R, E> {
    let late = |_| Err(no_answer(Class::Reconnect, deadline).into());
    timeout(deadline, work).await.unwrap_or_else(late)
}

impl Store for PgStore {
    async fn count(&self, votes: Votes) -> Result<Counted, Fault> {
        let store = self.clone();
        let counting = async move {
            let Self { pool, address, .. } = &store;
            store.find_writer().await?;
            if pool.num_idle() == 0 {
                address.renew_options(pool);
            }
            match transaction::count(pool, &votes).await {
                // The connection that took the place of a dead one: the password changed meanwhile.
                Err(fault) if fault.is_login_refused() && address.renew_options(pool) => {
                    transaction::count(pool, &votes).await
                }
                counted => counted,
            }
        };
        let result = self.watched(counting).await;
        if let Err(fault) = &result
            && !matches!(
                fault.class,
                Class::Isolate | Class::Split | Class::Retry | Class::KnownHash
            )
        {
            // The same cause most likely broke the older connections of the pool.
            self.generation.invalidate();
            if matches!(fault.class, Class::Reconnect | Class::UnknownOutcome) {
                self.lose_writer();
            }
        }
        result
    }

    async fn probe(&self) -> Result<(), Fault> {
        // On a connection of its own: the pool reports only that it timed out, not why.
        within(self.deadline, async {
            let mut connection = self.connect().await?;
            // A trigger or a foreign key that refuses made-up votes may take real ones.
            transaction::rehearse(&mut connection).await.map(drop)
        })
        .await
    }
}
