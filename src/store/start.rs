//! Getting the database ready: reachable, durable, the right schema, the grants to count.

mod patience;
mod schema;

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::connection::{Address, Blame, NotConnected, describe, options, with_session_limits};
use super::durability::{Risk, listed, risks, standbys, warn_of_standbys};
use super::misfits::Misfits;
use super::sqlstate::fatal_at_start;
use super::transaction::{Rehearsed, rehearse};
use super::{PgStore, within};
use crate::config::{Config, Postgres};
use crate::ports::{Class, Fault};
use crate::retry::{Backoff, Jitter};
use crate::telemetry::Health;
use crate::tls::TlsFailureKind;

pub use self::patience::Patience;
use self::schema::{Caller, migrated};
pub use self::schema::{Migrated, migrate};
pub(super) use self::schema::{not_applied, unfit};

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
    /// The driver can't use the settings.
    #[error("no connection to PostgreSQL can be made with these settings: {0}")]
    Settings(Fault),
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
    /// A server that is away, or read-only, for longer than a command may wait.
    #[error("gave up after {} s (--retry-for), waiting for PostgreSQL: {fault}; {place}", away.as_secs())]
    Away { away: Duration, fault: Fault, place: String },
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
        let newer = migrated(config, Caller::Start, &AtomicUsize::new(0)).await?;
        let checking = async {
            let mut connection = address.connect().await?;
            let risks = risks(&mut connection).await?;
            let standbys = standbys(&mut connection).await?;
            let misfits = Misfits::of(&mut connection).await?;
            Ok((risks, standbys, misfits, rehearse(&mut connection).await))
        };
        let (risks, standbys, misfits, rehearsed) =
            within(deadline, checking).await.map_err(|not| not_connected(config, not))?;
        refuse_lossy(config, &risks)?;
        if config.postgres.require_standby && !standbys.named {
            let place = describe(&config.postgres);
            return Err(Attempt::Fatal(StartError::NoStandby { place }));
        }
        fits(config, rehearsed)?;
        Ok((newer, standbys, misfits))
    };
    let ready = wait(config, jitter, health, None, stop, ready).await?;
    let Some((newer, standbys, misfits)) = ready else {
        return Ok(None);
    };
    if !newer.is_empty() {
        tracing::info!(?newer, "the database has later migrations, which this release can run on");
    }
    warn_of_standbys(config, standbys);
    if let Some((meaning, remedy)) = misfits.zones() {
        tracing::warn!("{meaning}; {remedy}");
    }
    Ok(Some(PgStore::new(&config.postgres, limited)))
}

/// Tries until it succeeds, and no longer than `patience` lasts, if there is an end to it.
pub(super) async fn wait<R>(
    config: &Config,
    jitter: &Jitter,
    health: &Health,
    patience: Option<Patience>,
    stop: &CancellationToken,
    attempt: impl AsyncFn() -> Result<R, Attempt>,
) -> Result<Option<R>, StartError> {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    let mut waiting = patience.map(|patience| patience.of(config));
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
        let mut delay = jitter.stretch(backoff.next_delay());
        let mut limit = String::new();
        if let Some(waiting) = &mut waiting {
            let left = waiting.left(&fault)?;
            delay = delay.min(left);
            limit = format!(", for {:.0} s more at most", left.as_secs_f64());
        }
        tracing::warn!(sqlstate = fault.sqlstate, "waiting for PostgreSQL{limit}: {fault}");
        health.postgres_failed(&fault);
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

/// A failure to get as far as a question.
pub(super) fn not_connected(config: &Config, not: NotConnected) -> Attempt {
    match not.blame {
        Some(Blame::Settings) => Attempt::Fatal(StartError::Settings(not.fault)),
        Some(Blame::Tls(TlsFailureKind::ClientCertificate)) => {
            Attempt::Fatal(StartError::Certificate(not.fault))
        }
        // A certificate can be renewed while the service waits.
        Some(Blame::Tls(TlsFailureKind::OutOfDate)) => Attempt::Wait(not.fault),
        Some(Blame::Tls(TlsFailureKind::Untrusted)) => Attempt::Fatal(StartError::Tls(not.fault)),
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
        (_, Some("42P05")) => Attempt::Wait(fault),
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
                // 42P05: a pooler's, and not the tables'.
                Some("42501" | "42P05") => false,
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
