//! Getting the database ready: reachable, durable, the right schema, the grants to count.

mod patience;
mod schema;

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::connection::{Address, options, with_session_limits};
use super::durability::{Risk, listed, risks, standbys, warn_of_standbys};
use super::error::{StartError, describe};
use super::misfits::Misfits;
use super::transaction::{Rehearsed, rehearse};
use super::{PgStore, within};
use crate::config::Config;
use crate::ports::{Class, Fault};
use crate::retry::{Backoff, Jitter};
use crate::telemetry::Health;

pub use self::patience::Patience;
use self::schema::{Caller, migrated};
pub use self::schema::{Migrated, migrate};
pub(super) use self::schema::{not_applied, unfit};

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
            within::<_, StartError>(deadline, checking).await?;
        refuse_lossy(config, &risks)?;
        if config.postgres.require_standby && !standbys.named {
            let place = describe(&config.postgres);
            return Err(StartError::NoStandby { place });
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
    attempt: impl AsyncFn() -> Result<R, StartError>,
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
        let fault = match attempted.map_err(|error| error.classified(config)) {
            Ok(done) => return Ok(Some(done)),
            Err(StartError::Unavailable(fault)) => fault,
            Err(error) => return Err(error),
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

fn refuse_lossy(config: &Config, risks: &[Risk]) -> Result<(), StartError> {
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
    Err(StartError::Lossy { settings, remedy, place })
}

/// Whether a batch can be counted: tables that are not as the statements need them are fatal.
pub(super) fn fits(config: &Config, rehearsed: Result<Rehearsed, Fault>) -> Result<(), StartError> {
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
                return Err(fault.into());
            }
            fault
        }
    };
    let reason = format!("counting a vote fails: {fault}; compare it with init_db.sql");
    Err(StartError::schema(config, reason))
}
