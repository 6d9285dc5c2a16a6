//! Brings the schema to this release, or says why it does not fit.

use sqlx::postgres::PgConnection;

use super::{Patience, retry};
use crate::adapters::store::cell::mark;
use crate::adapters::store::connection::{Address, options};
use crate::adapters::store::error::{StartError, describe};
use crate::adapters::store::migrate::{
    Examined, SchemaState, Surroundings, apply_next, close_schema, examine,
};
use crate::adapters::store::sqlstate::fatal_at_start;
use crate::adapters::store::within;
use crate::model::cell::Cell;
use crate::model::ports::{Class, Fault};
use crate::platform::config::Config;

/// Who applies migrations: what is missing for it has another remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::adapters::store) enum Caller {
    /// The command, run by an operator.
    Migrate,
    /// A start of the service, where MIGRATE_ON_START says so.
    Start,
}

/// What `migrate` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migrated {
    /// Migrations that were applied.
    pub applied: usize,
    /// Later migrations that are in the database and that this release does not know.
    pub newer: Vec<i64>,
}

/// Waits for the database and applies pending migrations, as long as `patience` lasts; then marks it as
/// `cell`, if there is one.
///
/// # Errors
/// [`StartError`]: what is not retried, and what was retried for too long.
pub async fn migrate(
    config: &Config,
    patience: Patience,
    cell: Option<Cell>,
) -> Result<Migrated, StartError> {
    let mut applied = 0;
    let attempt = async || {
        let newer = migrated(config, Caller::Migrate, &mut applied).await?;
        if let Some(cell) = cell {
            mark(config, cell).await?;
        }
        Ok(newer)
    };
    let newer = retry(config, patience, attempt).await?;
    Ok(Migrated { applied, newer })
}

/// Brings the schema to this release, or says why not; counts in `applied`. Gives later migrations,
/// which this release does not know. On a connection without session limits, since a migration of
/// a large table takes its time; queries have a deadline.
pub(super) async fn migrated(
    config: &Config,
    caller: Caller,
    applied: &mut usize,
) -> Result<Vec<i64>, StartError> {
    let may_migrate = caller == Caller::Migrate || config.postgres.migrate_on_start;
    let asking = async {
        let address = Address::new(&config.postgres, options(&config.postgres));
        let mut connection = address.connect().await?;
        let examined = examine(&mut connection, may_migrate).await?;
        Ok::<_, StartError>((connection, examined))
    };
    let (mut connection, Examined { surroundings, state }) =
        within(config.postgres.transaction_deadline(), asking).await?;
    match state {
        // Not read where that could run another role's code.
        None => Err(StartError::foreign(config, surroundings.refused(may_migrate))),
        Some(SchemaState::Current) => Ok(Vec::new()),
        Some(SchemaState::Newer(versions)) => Ok(versions),
        Some(SchemaState::Pending(versions)) if may_migrate => {
            tracing::info!(?versions, "applying migrations");
            if !surroundings.may_create {
                return Err(may_not_create(config, &surroundings, &versions, caller));
            }
            let done = apply(&mut connection, config, &surroundings, applied).await;
            done.map_err(|error| not_applied(config, &versions, error))?;
            Ok(Vec::new())
        }
        Some(other) => Err(StartError::misfit(config, &other)),
    }
}

/// Applies what is pending, one migration a transaction. `deadline` is for everything but the
/// migrations' own statements.
async fn apply(
    connection: &mut PgConnection,
    config: &Config,
    surroundings: &Surroundings,
    applied: &mut usize,
) -> Result<(), StartError> {
    if !surroundings.foreign.is_empty() {
        return Err(StartError::foreign(config, &surroundings.foreign));
    }
    let deadline = config.postgres.transaction_deadline();
    close_schema(connection, deadline).await?;
    while let Some(version) = apply_next(connection, config, deadline).await? {
        tracing::info!(version, "migration applied");
        *applied += 1;
    }
    Ok(())
}

/// This role creates nothing in the schema, and migrations are pending.
fn may_not_create(
    config: &Config,
    surroundings: &Surroundings,
    versions: &[i64],
    caller: Caller,
) -> StartError {
    let role = &config.postgres.user;
    let message = match &surroundings.schema {
        None => "no schema of this role's search_path exists".to_owned(),
        Some(schema) => format!("this role may not create tables in schema {schema}"),
    };
    let advice = match (&surroundings.schema, &surroundings.tables_owner) {
        (None, _) => "Create the schema, or set the role's search_path".to_owned(),
        // A role with what it takes to count alone, after an upgrade.
        (_, owner) if caller == Caller::Start => format!(
            "Run `vote-aggregator migrate` as {}, then roles.sql",
            owner.as_ref().map_or_else(
                || "the role that will own the tables".to_owned(),
                |owner| format!("the owner of the tables, {owner:?}")
            )
        ),
        (_, Some(owner)) if owner != role => {
            format!("The tables belong to {owner:?}: run this command as that role (POSTGRES_USER)")
        }
        (Some(schema), _) => format!(
            "As the owner of the schema, or of the database: GRANT CREATE ON SCHEMA {schema} TO \
             \"{role}\""
        ),
    };
    let fault = Fault { class: Class::Pause, sqlstate: Some("42501".to_owned()), message };
    let advice = format!("Migrations {versions:?} are not applied. {advice}");
    StartError::Credentials { fault, place: describe(&config.postgres), advice }
}

/// The error of a start or command for a migration that failed; `versions` were pending. Nothing of it is
/// committed, except after an unknown outcome of COMMIT, which the next try finds.
pub(in crate::adapters::store) fn not_applied(
    config: &Config,
    versions: &[i64],
    error: StartError,
) -> StartError {
    let StartError::Unavailable(fault) = error else { return error };
    let code = fault.sqlstate.as_deref().unwrap_or_default();
    match fault.class {
        Class::Retry | Class::Reconnect | Class::UnknownOutcome => fault.into(),
        _ if code == "42501" => {
            let advice = format!(
                "Migrations {versions:?} are not applied. Run `vote-aggregator migrate` as the role \
                 that owns the tables and may create in their schema, or have that role grant what \
                 the message names"
            );
            StartError::Credentials { fault, place: describe(&config.postgres), advice }
        }
        _ if fatal_at_start(code) => fault.into(),
        _ => {
            let reason = format!("a migration failed: {fault}. {}", remedy(code));
            StartError::schema(config, reason)
        }
    }
}

/// What to do about a migration's error.
fn remedy(sqlstate: &str) -> &'static str {
    match sqlstate {
        "0A000" | "2BP01" | "42P16" => {
            "Views stand in the way: keep their definitions (pg_get_viewdef) and grants, DROP VIEW, \
             run `vote-aggregator migrate`, and create them again; docs/runbook.md, \"A view is in a \
             migration's way\""
        }
        "23505" => {
            "Rows repeat each other where each may exist once: find them (GROUP BY the columns of \
             that index HAVING count(*) > 1), keep a copy, and delete the repetitions"
        }
        "57014" => "It took longer than statement_timeout: raise that for this role",
        code if code.starts_with("42") => {
            "A table of this name is not as the service's own: compare it with init_db.sql and alter \
             it; or, if it is another program's, rename it (ALTER TABLE ... RENAME TO ...) or set \
             POSTGRES_DB to another database"
        }
        _ => "Nothing of it was applied; see the server's log",
    }
}
