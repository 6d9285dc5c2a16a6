//! Migrations that are not applied: rehearsed on the tables, with a batch counted, and rolled back.

use std::time::Duration;

use sqlx::postgres::PgConnection;

use super::server::Server;
use super::{database, refusal};
use crate::check::{Finding, Report, Severity};
use crate::config::Config;
use crate::store::error::StartError;
use crate::store::migrate::{NotApplied, SchemaState, Surroundings, open_schema, rehearse_pending};
use crate::store::misfits::Misfits;
use crate::store::start::{fits, not_applied, unfit};
use crate::store::transaction::rehearse_in_transaction;

use Severity::{Error, Info, Warning};

/// Whether a rehearsal took place.
pub(super) enum Rehearsal {
    /// With a finding where something failed.
    Tried(Option<Finding>),
    /// Why not, and what to do to have it.
    NotTried(Severity, String),
}

/// Rehearses `versions` where this role may apply them. `limit` bounds each wait for a lock and each
/// statement, and thereby how long a service that counts on these tables waits.
pub(super) async fn rehearse(
    connection: &mut PgConnection,
    config: &Config,
    (server, looked): (&Server, &Surroundings),
    versions: &[i64],
    limit: Duration,
    report: &mut Report,
) -> Result<Rehearsal, StartError> {
    let not_tried = |reason: &str| Ok(Rehearsal::NotTried(Info, reason.to_owned()));
    if server.read_only {
        return not_tried("the server takes no writes");
    }
    if !server.may_migrate() {
        return not_tried("run check --connect as the owner of the tables, too");
    }
    if limit.is_zero() {
        return not_tried("--rehearse 0");
    }
    if !looked.foreign.is_empty() {
        return not_tried("objects of another role are in the way");
    }
    // Objects of others could take the place of ours between a look and a statement.
    if let Some((schema, _)) = open_schema(connection).await? {
        let reason = format!(
            "every role may create objects in schema {schema}; migrate takes that right from \
             PUBLIC: do it now (REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC) and check again"
        );
        return Ok(Rehearsal::NotTried(Warning, reason));
    }
    let deadline = config.postgres.transaction_deadline() + limit;
    let count = async |connection: &mut PgConnection| rehearse_in_transaction(connection).await;
    match rehearse_pending(connection, limit, deadline, count).await {
        Ok(None) => not_tried("another instance has just applied them: check again"),
        Ok(Some(rehearsed)) => {
            report.looked_at(format!("migrations {versions:?}, applied and rolled back"));
            report.looked_at("a batch, counted and rolled back");
            let refused = fits(config, rehearsed).err();
            Ok(Rehearsal::Tried(refused.map(|error| refusal(config, error))))
        }
        Err(NotApplied::Fault(fault))
            if matches!(fault.sqlstate.as_deref(), Some("55P03" | "57014")) =>
        {
            Ok(Rehearsal::NotTried(
                Warning,
                format!(
                    "the tables were not free, or a statement took longer than {} s, for which \
                     counting would have to wait: {fault}; check again when less is going on, or \
                     allow more with --rehearse SECONDS",
                    limit.as_secs_f64()
                ),
            ))
        }
        Err(not) => Ok(Rehearsal::Tried(Some(refusal(config, not_applied(config, versions, not))))),
    }
}

/// What the catalogue alone shows, where nothing could be tried.
pub(super) fn misfits(config: &Config, misfits: &Misfits) -> impl Iterator<Item = Finding> {
    misfits.unusable.iter().map(|misfit| {
        Finding::new(
            Error,
            database(config),
            "counting would fail, and no migration changes that: the service would not start",
            "alter the table, or rename it if it is another program's; compare it with init_db.sql",
        )
        .with_value(misfit)
    })
}

/// Anything but a schema that is up to date.
pub(super) fn finding(
    config: &Config,
    server: &Server,
    state: &SchemaState,
    rehearsal: &Rehearsal,
) -> Finding {
    let (severity, rehearsed) = match rehearsal {
        Rehearsal::Tried(None) => {
            (Info, "rehearsed on these tables, with a batch counted, and rolled back".to_owned())
        }
        Rehearsal::Tried(Some(_)) => (Info, "rehearsed, and it failed".to_owned()),
        Rehearsal::NotTried(severity, reason) => {
            (*severity, format!("neither they nor counting were tried: {reason}"))
        }
    };
    if let SchemaState::Pending(versions) = state
        && config.postgres.migrate_on_start
    {
        let value = format!("migrations {versions:?} are not applied");
        let finding = if server.may_migrate() {
            Finding::new(
                severity,
                database(config),
                format!("the service applies them at its start (MIGRATE_ON_START); {rehearsed}"),
                "nothing; or run vote-aggregator migrate now, and check again",
            )
        } else {
            Finding::new(
                Error,
                database(config),
                format!(
                    "the user {:?} may not create tables in this schema, or is not the owner of \
                     those that are there: the service would not start; {rehearsed}",
                    config.postgres.user
                ),
                "run vote-aggregator migrate as the owner of the tables, then roles.sql",
            )
        };
        return finding.with_value(value);
    }
    let (reason, remedy) = unfit(state);
    let meaning = format!("{reason}: the service would not start; {rehearsed}");
    Finding::new(Error, database(config), meaning, remedy).with_value("the schema does not fit")
}
