//! Getting the database ready: reachable, durable, the right schema, the grants to count.

use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgConnection;
use tokio_util::sync::CancellationToken;

use super::connection::{Address, NotConnected, describe, options, with_session_limits};
use super::migrate::{SchemaState, apply, state};
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
    #[error(
        "PostgreSQL could lose committed votes: {settings}; {place}. Set them to on, or accept \
         the loss with POSTGRES_ALLOW_LOSSY=true"
    )]
    Lossy { settings: String, place: String },
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
        migrated(config, config.postgres.migrate_on_start).await?;
        let checking = async {
            let mut connection = address.connect().await?;
            let lossy = lossy_settings(&mut connection).await?;
            Ok((lossy, rehearse(&mut connection).await))
        };
        let (lossy, rehearsed) =
            within(deadline, checking).await.map_err(|not| not_connected(config, not))?;
        refuse_lossy(config, &lossy)?;
        fits(config, rehearsed)
    };
    let ready = wait(jitter, health, stop, ready).await?;
    Ok(ready.map(|()| PgStore::new(&config.postgres, limited)))
}

/// Waits for the database and applies pending migrations. Gives the number of those, `None` when
/// `stop` came first.
///
/// # Errors
/// [`StartError`]: what waiting does not mend.
pub async fn migrate(
    config: &Config,
    jitter: &Jitter,
    health: &Health,
    stop: &CancellationToken,
) -> Result<Option<usize>, StartError> {
    wait(jitter, health, stop, async || migrated(config, true).await).await
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
        health.postgres_failed(&fault);
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(delay) => {}
        }
    }
}

/// Reads what the server does with a COMMIT. With `synchronous_commit=off`, 10–25 acknowledged
/// commits were lost each time PostgreSQL was killed (measured on 15.18).
pub(super) async fn lossy_settings(connection: &mut PgConnection) -> Result<Vec<String>, Fault> {
    let rows = sqlx::query(
        "SELECT name || '=off' AS lossy FROM pg_settings WHERE setting = 'off' \
         AND name IN ('fsync', 'full_page_writes', 'synchronous_commit') ORDER BY name",
    )
    .fetch_all(connection)
    .await
    .map_err(|error| fault(&error))?;
    let lossy = rows.iter().map(|row| row.try_get("lossy")).collect::<Result<_, _>>();
    lossy.map_err(|error| fault(&error))
}

fn refuse_lossy(config: &Config, lossy: &[String]) -> Result<(), Attempt> {
    if lossy.is_empty() {
        return Ok(());
    }
    let settings = lossy.join(", ");
    if config.postgres.allow_lossy {
        tracing::warn!(
            settings,
            "POSTGRES_ALLOW_LOSSY: a crash of PostgreSQL may lose counted votes"
        );
        return Ok(());
    }
    Err(Attempt::Fatal(StartError::Lossy { settings, place: describe(&config.postgres) }))
}

/// Brings the schema to this version, or says why not. On a connection without session limits,
/// since a migration of a large table takes its time; what is only asked has a deadline.
async fn migrated(config: &Config, may_migrate: bool) -> Result<usize, Attempt> {
    let deadline = config.postgres.transaction_deadline();
    let asking = async {
        let address = Address::new(&config.postgres, options(&config.postgres));
        let mut connection = address.connect().await?;
        let found = state(&mut connection).await.map_err(|error| fault(&error))?;
        Ok((connection, found))
    };
    let (mut connection, found) =
        within(deadline, asking).await.map_err(|not| not_connected(config, not))?;
    let misfit =
        |reason| Attempt::Fatal(StartError::Schema { reason, place: describe(&config.postgres) });
    match found {
        SchemaState::Current => Ok(0),
        SchemaState::Pending(versions) if may_migrate => {
            tracing::info!(
                ?versions,
                "applying migrations; waits for another instance that is at it"
            );
            match apply(&mut connection).await {
                Ok(()) => Ok(versions.len()),
                Err(
                    sqlx::migrate::MigrateError::Execute(error)
                    | sqlx::migrate::MigrateError::ExecuteMigration(error, _),
                ) => Err(migration_failed(config, &versions, fault(&error))),
                Err(error) => Err(misfit(error.to_string())),
            }
        }
        other => {
            let (reason, remedy) = unfit(&other);
            Err(misfit(format!("{reason}; {remedy}")))
        }
    }
}

/// Why a schema does not fit that is not to be migrated, and what to do.
pub(super) fn unfit(state: &SchemaState) -> (String, &'static str) {
    match state {
        SchemaState::Current => ("it is up to date".to_owned(), "nothing"),
        SchemaState::Pending(versions) => (
            format!("migrations {versions:?} are not applied and MIGRATE_ON_START is off"),
            "run `vote-aggregator migrate` as the owner of the tables",
        ),
        SchemaState::Unknown(version) => (
            format!(
                "the database is at migration {version}, which this version of the service does \
                 not know"
            ),
            "run the newer version",
        ),
        SchemaState::Differs(version) => (
            format!(
                "migration {version} was applied with other content than this version of the \
                 service has"
            ),
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

fn migration_failed(config: &Config, versions: &[i64], fault: Fault) -> Attempt {
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
