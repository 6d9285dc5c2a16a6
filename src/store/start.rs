//! Getting the database ready: reachable, durable, the right schema, the grants to count.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use sqlx::postgres::PgConnection;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connection::{Address, NotConnected, describe, options, with_session_limits};
use super::durability::{Risk, listed, risks, standbys, warn_of_standbys};
use super::migrate::{
    NotApplied, SchemaState, Surroundings, apply_next, close_schema, list, look, newest, state,
};
use super::sqlstate::fatal_at_start;
use super::transaction::{Rehearsed, fault, rehearse};
use super::{PgStore, within};
use crate::config::{Config, Postgres};
use crate::ports::{Class, Fault};
use crate::retry::{Backoff, Jitter};
use crate::telemetry::Health;
use crate::tls::Verdict;

/// What waiting does not mend.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("PostgreSQL refuses us: {fault}; {place}. {advice}")]
    Credentials { fault: Fault, place: String, advice: String },
    /// The server does not take our certificate, or asks for one.
    #[error("PostgreSQL refuses us: {0}")]
    Certificate(Fault),
    /// We refuse the server, or there is no TLS to be had.
    #[error("no encrypted connection to PostgreSQL: {0}")]
    Tls(Fault),
    #[error("PostgreSQL has no such database: {fault}; {place}. Create it, or set POSTGRES_DB")]
    NoDatabase { fault: Fault, place: String },
    #[error("the schema does not fit: {reason}; {place}")]
    Schema { reason: String, place: String },
    /// The migrating role would touch what another role made.
    #[error(
        "objects of another role are in the way: {objects}; {place}. Drop them, or change their \
         owner if you know who made them (ALTER ... OWNER TO), or run as the role that owns all of \
         them; a trigger, rule or policy of your own you can create again after the migration"
    )]
    Foreign { objects: String, place: String },
    /// A lock was not granted in the time that a command may wait.
    #[error(
        "a migration waits for a lock: {fault}; {place}. Have its holder end, and run it again"
    )]
    Locked { fault: Fault, place: String },
    #[error(
        "PostgreSQL could lose committed votes: {settings}; {place}. {remedy}; or accept the loss \
         with POSTGRES_ALLOW_LOSSY=true"
    )]
    Lossy { settings: String, remedy: String, place: String },
    #[error(
        "POSTGRES_REQUIRE_STANDBY is set, and synchronous_standby_names is empty: a failover would \
         lose acknowledged votes; {place}. Set synchronous_standby_names, or \
         POSTGRES_REQUIRE_STANDBY=false"
    )]
    NoStandby { place: String },
    /// Not at a start, but in what a command does once it is connected.
    #[error("PostgreSQL can't do it: {fault}; {place}")]
    Failed { fault: Fault, place: String },
}

/// Why a try was in vain.
pub enum Attempt {
    /// Waiting does not mend it.
    Fatal(StartError),
    /// It may be over by itself: the database is down, or coming up.
    Wait(Fault),
}

impl From<Fault> for Attempt {
    fn from(fault: Fault) -> Self {
        Self::Wait(fault)
    }
}

/// Waits for the database and prepares it: applies migrations when `migrate_on_start` says so,
/// refuses settings that lose commits, rehearses a batch. `None` when `stop` came first.
///
/// # Errors
/// [`StartError`]: what waiting does not mend.
pub async fn prepare(
    config: &Config,
    jitter: &Jitter,
    health: &Health,
    stop: &CancellationToken,
) -> Result<Option<PgStore>, StartError> {
    let limited = with_session_limits(options(&config.postgres), config.postgres.statement_timeout);
    let address = Address::new(&config.postgres, limited.clone());
    let deadline = config.postgres.transaction_deadline();
    let ready = async || {
        let newer =
            migrated(config, config.postgres.migrate_on_start, &AtomicUsize::new(0)).await?;
        let checking = async {
            let mut connection = address.connect().await?;
            let risks = risks(&mut connection).await?;
            let standbys = standbys(&mut connection).await?;
            Ok((risks, standbys, rehearse(&mut connection).await))
        };
        let (risks, standbys, rehearsed) =
            within(deadline, checking).await.map_err(|not| not_connected(config, not))?;
        refuse_lossy(config, &risks)?;
        if config.postgres.require_standby && !standbys.named {
            let place = describe(&config.postgres);
            return Err(Attempt::Fatal(StartError::NoStandby { place }));
        }
        fits(config, rehearsed)?;
        Ok((newer, standbys))
    };
    let Some((newer, standbys)) = wait(jitter, health, stop, ready).await? else {
        return Ok(None);
    };
    if !newer.is_empty() {
        tracing::info!(?newer, "the database has later migrations, which this release can run on");
    }
    warn_of_standbys(config, standbys);
    Ok(Some(PgStore::new(&config.postgres, limited)))
}

/// What `migrate` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migrated {
    /// Migrations that were applied.
    pub applied: usize,
    /// Later migrations that are in the database and that this release does not know.
    pub newer: Vec<i64>,
}

/// Waits for the database and applies pending migrations. Locks that others hold are waited for
/// until `patience` is over. `None` when `stop` came first.
///
/// # Errors
/// [`StartError`]: what is not retried, and [`StartError::Locked`] after `patience`.
pub async fn migrate(
    config: &Config,
    jitter: &Jitter,
    health: &Health,
    patience: Duration,
    stop: &CancellationToken,
) -> Result<Option<Migrated>, StartError> {
    let (began, applied) = (Instant::now(), AtomicUsize::new(0));
    let attempt = async || match migrated(config, true, &applied).await {
        Err(Attempt::Wait(fault))
            if fault.sqlstate.as_deref() == Some("55P03") && began.elapsed() >= patience =>
        {
            let place = describe(&config.postgres);
            Err(Attempt::Fatal(StartError::Locked { fault, place }))
        }
        other => other,
    };
    let newer = wait(jitter, health, stop, attempt).await?;
    Ok(newer.map(|newer| Migrated { applied: applied.into_inner(), newer }))
}

pub(super) async fn wait<R>(
    jitter: &Jitter,
    health: &Health,
    stop: &CancellationToken,
    attempt: impl AsyncFn() -> Result<R, Attempt>,
) -> Result<Option<R>, StartError> {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    loop {
        // Dropped half-way, an attempt closes its connection; none of it is pooled.
        let attempted = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(None),
            attempted = attempt() => attempted,
        };
        let fault = match attempted {
            Ok(done) => return Ok(Some(done)),
            Err(Attempt::Fatal(error)) => return Err(error),
            Err(Attempt::Wait(fault)) => fault,
        };
        let delay = jitter.stretch(backoff.next_delay());
        tracing::warn!(sqlstate = fault.sqlstate, "waiting for PostgreSQL: {fault}");
        health.postgres_failed(&fault.to_string());
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(delay) => {}
        }
    }
}

fn refuse_lossy(config: &Config, risks: &[Risk]) -> Result<(), Attempt> {
    if risks.is_empty() {
        return Ok(());
    }
    let (settings, remedy) = listed(risks);
    if config.postgres.allow_lossy {
        tracing::warn!(
            settings,
            "POSTGRES_ALLOW_LOSSY: a crash of PostgreSQL may lose counted votes"
        );
        return Ok(());
    }
    let place = describe(&config.postgres);
    Err(Attempt::Fatal(StartError::Lossy { settings, remedy, place }))
}

/// Brings the schema to this release, or says why not; counts in `applied`. Gives later migrations,
/// which this release does not know. On a connection without session limits, since a migration of
/// a large table takes its time; queries have a deadline.
async fn migrated(
    config: &Config,
    may_migrate: bool,
    applied: &AtomicUsize,
) -> Result<Vec<i64>, Attempt> {
    let deadline = config.postgres.transaction_deadline();
    let asking = async {
        let address = Address::new(&config.postgres, options(&config.postgres));
        let mut connection = address.connect().await?;
        let looked = look(&mut connection).await.map_err(|error| fault(&error))?;
        // Not read where that could run another role's code.
        let found = if looked.foreign.iter().any(|object| object.unreadable) {
            None
        } else {
            Some(state(&mut connection).await.map_err(|error| fault(&error))?)
        };
        Ok((connection, looked, found))
    };
    let (mut connection, looked, found) =
        within(deadline, asking).await.map_err(|not| not_connected(config, not))?;
    let Some(found) = found else {
        return Err(foreign(config, list(&looked.foreign)));
    };
    let owned_by_others = list(looked.foreign.iter().filter(|object| object.ownership));
    if may_migrate && looked.may_create && !owned_by_others.is_empty() {
        return Err(foreign(config, owned_by_others));
    }
    match found {
        SchemaState::Current => Ok(Vec::new()),
        SchemaState::Newer(versions) => Ok(versions),
        SchemaState::Pending(versions) if may_migrate => {
            tracing::info!(?versions, "applying migrations");
            let done = apply(&mut connection, &looked, applied).await;
            done.map_err(|not| not_applied(config, &versions, not))?;
            Ok(Vec::new())
        }
        other => Err(misfit(config, &other)),
    }
}

/// Applies what is pending, one migration a transaction.
async fn apply(
    connection: &mut PgConnection,
    looked: &Surroundings,
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
    close_schema(connection).await?;
    while let Some(version) = apply_next(connection).await? {
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
pub(super) fn unfit(state: &SchemaState) -> (String, &'static str) {
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

/// A failure to get as far as a question.
pub(super) fn not_connected(config: &Config, not: NotConnected) -> Attempt {
    match not.verdict {
        Some(Verdict::Mismatch) => Attempt::Fatal(StartError::Tls(not.fault)),
        Some(Verdict::Refused) => Attempt::Fatal(StartError::Certificate(not.fault)),
        // A server whose certificate is renewed is one that comes back.
        Some(Verdict::OutOfDate) => Attempt::Wait(not.fault),
        None => gone(config, not.fault),
    }
}

pub(super) fn gone(config: &Config, fault: Fault) -> Attempt {
    let place = describe(&config.postgres);
    match fault.sqlstate.as_deref() {
        Some("3D000") => Attempt::Fatal(StartError::NoDatabase { fault, place }),
        Some(code) if fatal_at_start(code) => {
            let advice = advice(&config.postgres, code);
            Attempt::Fatal(StartError::Credentials { fault, place, advice })
        }
        _ => Attempt::Wait(fault),
    }
}

/// What a command that is connected ran into while `doing` its work.
pub(super) fn failed(config: &Config, fault: Fault, doing: &str) -> Attempt {
    let place = describe(&config.postgres);
    match (fault.class, fault.sqlstate.as_deref()) {
        // Nothing is committed, or all of it, which the next try sees.
        (Class::Retry | Class::Reconnect | Class::UnknownOutcome, _) => Attempt::Wait(fault),
        (_, Some(code)) if fatal_at_start(code) => gone(config, fault),
        (_, Some(code)) if code.starts_with("42") => Attempt::Fatal(StartError::Schema {
            reason: format!(
                "{doing} fails: {fault}; run `vote-aggregator migrate` as the owner of the \
                 tables, or compare them with init_db.sql"
            ),
            place,
        }),
        _ => Attempt::Fatal(StartError::Failed { fault, place }),
    }
}

/// What to do about a refusal. 28000 is the server's answer to a role that may not log in, to a
/// connection that pg_hba.conf does not take, in clear say, and to a missing certificate.
fn advice(config: &Postgres, sqlstate: &str) -> String {
    match sqlstate {
        "42501" => "Check POSTGRES_USER and the role's grants (roles.sql)".to_owned(),
        "28000" => format!(
            "Check POSTGRES_USER (or DATABASE_URL) and what the server's pg_hba.conf asks of this \
             connection: POSTGRES_SSLMODE is {}, POSTGRES_SSLCERT is {}",
            config.ssl.mode,
            config
                .ssl
                .cert
                .as_ref()
                .map_or("not set".to_owned(), |path| path.display().to_string()),
        ),
        _ => "Check POSTGRES_USER and POSTGRES_PASSWORD (or DATABASE_URL)".to_owned(),
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

/// Whether a batch can be counted: tables that are not as the statements need them are fatal.
pub(super) fn fits(config: &Config, rehearsed: Result<Rehearsed, Fault>) -> Result<(), Attempt> {
    let fault = match rehearsed {
        Ok(Rehearsed::Counted) => return Ok(()),
        // A column too short, or one that we do not know and that must not be NULL: good votes
        // would be dead-lettered. Whatever else refuses made-up votes may take real ones.
        Ok(Rehearsed::Refused(fault)) => match fault.sqlstate.as_deref() {
            Some(code) if code.starts_with("22") || code == "23502" => fault,
            _ => return Ok(()),
        },
        Err(fault) => {
            let misfit = match fault.sqlstate.as_deref() {
                Some("42501") => false,
                Some(code) => code.starts_with("42"),
                // A column of a type that the statement's rows can't be read from.
                None => fault.class == Class::Bug,
            };
            if !misfit {
                return Err(gone(config, fault));
            }
            fault
        }
    };
    Err(Attempt::Fatal(StartError::Schema {
        reason: format!("counting a vote fails: {fault}; compare it with init_db.sql"),
        place: describe(&config.postgres),
    }))
}
