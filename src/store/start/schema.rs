//! Brings the schema to this release, or says why it does not fit.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use sqlx::postgres::PgConnection;
use tokio_util::sync::CancellationToken;

use super::{Attempt, Patience, StartError, gone, not_connected, wait};
use crate::config::Config;
use crate::ports::{Class, Fault};
use crate::retry::Jitter;
use crate::store::connection::{Address, describe, options};
use crate::store::migrate::{
    Examined, NotApplied, SchemaState, Surroundings, apply_next, close_schema, examine, list,
    newest,
};
use crate::store::sqlstate::fatal_at_start;
use crate::store::transaction::fault;
use crate::store::within;
use crate::telemetry::Health;

/// What `migrate` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migrated {
    /// Migrations that were applied.
    pub applied: usize,
    /// Later migrations that are in the database and that this release does not know.
    pub newer: Vec<i64>,
}

/// Waits for the database and applies pending migrations, as long as `patience` lasts. `None` when
/// `stop` came first.
///
/// # Errors
/// [`StartError`]: what is not retried, and what was retried for too long.
pub async fn migrate(
    config: &Config,
    jitter: &Jitter,
    health: &Health,
    patience: Patience,
    stop: &CancellationToken,
) -> Result<Option<Migrated>, StartError> {
    let applied = AtomicUsize::new(0);
    let attempt = async || migrated(config, true, &applied).await;
    let newer = wait(config, jitter, health, Some(patience), stop, attempt).await?;
    Ok(newer.map(|newer| Migrated { applied: applied.into_inner(), newer }))
}

/// Brings the schema to this release, or says why not; counts in `applied`. Gives later migrations,
/// which this release does not know. On a connection without session limits, since a migration of
/// a large table takes its time; queries have a deadline.
pub(super) async fn migrated(
    config: &Config,
    may_migrate: bool,
    applied: &AtomicUsize,
) -> Result<Vec<i64>, Attempt> {
    let deadline = config.postgres.transaction_deadline();
    let asking = async {
        let address = Address::new(&config.postgres, options(&config.postgres));
        let mut connection = address.connect().await?;
        let examined = examine(&mut connection, may_migrate).await;
        Ok((connection, examined.map_err(|error| fault(&error))?))
    };
    let (mut connection, Examined { surroundings, state }) =
        within(deadline, asking).await.map_err(|not| not_connected(config, not))?;
    // Not read where that could run another role's code.
    let Some(state) = state else {
        return Err(foreign(config, list(surroundings.refused(may_migrate))));
    };
    match state {
        SchemaState::Current => Ok(Vec::new()),
        SchemaState::Newer(versions) => Ok(versions),
        SchemaState::Pending(versions) if may_migrate => {
            tracing::info!(?versions, "applying migrations");
            let done = apply(&mut connection, &surroundings, deadline, applied).await;
            done.map_err(|not| not_applied(config, &versions, not))?;
            Ok(Vec::new())
        }
        other => Err(misfit(config, &other)),
    }
}

/// Applies what is pending, one migration a transaction. `deadline` is for everything but the
/// migrations' own statements.
async fn apply(
    connection: &mut PgConnection,
    looked: &Surroundings,
    deadline: Duration,
    applied: &AtomicUsize,
) -> Result<(), NotApplied> {
    if !looked.may_create {
        let schema = looked.schema.as_deref().unwrap_or("(none)");
        return Err(NotApplied::Fault(Fault {
            class: Class::Pause,
            sqlstate: Some("42501".to_owned()),
            message: format!("this role may not create tables in schema {schema}"),
        }));
    }
    if !looked.foreign.is_empty() {
        return Err(NotApplied::Foreign(looked.foreign.clone()));
    }
    close_schema(connection, deadline).await?;
    while let Some(version) = apply_next(connection, deadline).await? {
        tracing::info!(version, "migration applied");
        applied.fetch_add(1, Relaxed);
    }
    Ok(())
}

fn foreign(config: &Config, objects: String) -> Attempt {
    Attempt::Fatal(StartError::Foreign { objects, place: describe(&config.postgres) })
}

fn misfit(config: &Config, state: &SchemaState) -> Attempt {
    let (reason, remedy) = unfit(state);
    let (reason, place) = (format!("{reason}; {remedy}"), describe(&config.postgres));
    Attempt::Fatal(StartError::Schema { reason, place })
}

/// Why a schema does not fit that is not migrated, and what to do.
pub(in crate::store) fn unfit(state: &SchemaState) -> (String, &'static str) {
    match state {
        SchemaState::Current | SchemaState::Newer(_) => ("it is up to date".to_owned(), "nothing"),
        SchemaState::Pending(versions) => (
            format!("migrations {versions:?} are not applied and MIGRATE_ON_START is off"),
            "run `vote-aggregator migrate` as the owner of the tables",
        ),
        SchemaState::Incompatible { migration, requires } => (
            format!(
                "the database is at migration {migration}, which needs a release that knows \
                 migration {requires}; this release knows migrations up to {}",
                newest()
            ),
            "run such a release; to stay with this one, restore the database from before that \
             migration",
        ),
        SchemaState::Unknown(version) => (
            format!(
                "migration {version} is applied, which is not one of this release's, and it does \
                 not follow on all of them"
            ),
            "check POSTGRES_DB, and compare the table _sqlx_migrations with init_db.sql",
        ),
        SchemaState::Differs(version) => (
            format!("migration {version} was applied with other content than this release has"),
            "compare the schema with init_db.sql",
        ),
    }
}

fn not_applied(config: &Config, versions: &[i64], not: NotApplied) -> Attempt {
    let fault = match not {
        NotApplied::Fault(fault) => fault,
        NotApplied::Foreign(objects) => return foreign(config, list(&objects)),
        NotApplied::Misfit(state) => return misfit(config, &state),
    };
    match fault.class {
        Class::Retry | Class::Reconnect | Class::UnknownOutcome => Attempt::Wait(fault),
        // A role with what it takes to count alone, after an upgrade.
        _ if fault.sqlstate.as_deref() == Some("42501") => {
            Attempt::Fatal(StartError::Credentials {
                fault,
                place: describe(&config.postgres),
                advice: format!(
                    "Migrations {versions:?} are not applied: run `vote-aggregator migrate` as the \
                     owner of the tables, then roles.sql"
                ),
            })
        }
        _ if fault.sqlstate.as_deref().is_some_and(fatal_at_start) => gone(config, fault),
        _ => Attempt::Fatal(StartError::Schema {
            reason: format!("a migration failed: {fault}"),
            place: describe(&config.postgres),
        }),
    }
}
