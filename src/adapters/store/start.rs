//! Prepares the database: reachable, durable, with the right schema and the grants to count.

mod patience;
mod schema;

use std::time::Duration;

use super::connection::Address;
use super::durability::{Risk, risks, standbys};
use super::error::{StartError, describe};
use super::misfits::Misfits;
use super::transaction::{Rehearsed, rehearse};
use super::{PgStore, cell, within};
use crate::model::ports::{Class, Fault};
use crate::platform::config::Config;
use crate::platform::retry::{Backoff, Jitter};
use crate::platform::telemetry::Health;

pub use self::patience::Patience;
pub(super) use self::schema::not_applied;
use self::schema::{Caller, migrated};
pub use self::schema::{Migrated, migrate};

/// Waits for the database and prepares it: applies migrations when `migrate_on_start` says so,
/// refuses settings that lose commits, rehearses a batch. May be dropped half-way: an attempt's
/// connection is closed with it.
///
/// # Errors
/// [`StartError`]: what is not retried.
pub async fn prepare(
    config: &Config,
    jitter: &Jitter,
    health: &Health,
) -> Result<PgStore, StartError> {
    let address = Address::limited(&config.postgres, config.postgres.statement_timeout);
    let deadline = config.postgres.transaction_deadline();
    let ready = async || {
        let newer = migrated(config, Caller::Start, &mut 0).await?;
        let checking = async {
            let mut connection = address.connect().await?;
            let risks = risks(&mut connection).await?;
            let standbys = standbys(&mut connection).await?;
            let misfits = Misfits::of(&mut connection).await?;
            cell::verify(config, cell::read(&mut connection).await?.as_deref())?;
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
    let (newer, standbys, misfits) = wait(config, jitter, ready, |fault, delay: Duration| {
        tracing::warn!(sqlstate = fault.sqlstate, "waiting for PostgreSQL: {fault}");
        health.postgres_failed(fault);
        Ok(delay)
    })
    .await?;
    if !newer.is_empty() {
        tracing::info!(?newer, "the database has later migrations, which this release can run on");
    }
    if standbys.connected > 0 && !standbys.named {
        tracing::warn!(
            database = config.postgres.database,
            standbys = standbys.connected,
            "synchronous_standby_names is empty: a failover to a standby loses acknowledged votes"
        );
    }
    if config.postgres.host.count() > 1 {
        let address = config.postgres.address().to_string();
        tracing::info!(address, "counting on the server that takes writes");
    }
    if let Some((meaning, remedy)) = misfits.zones() {
        tracing::warn!("{meaning}; {remedy}");
    }
    Ok(PgStore::new(&config.postgres, address.options))
}

/// Tries until it succeeds, as long as `patience` lasts.
pub(super) async fn retry<R>(
    config: &Config,
    patience: Patience,
    attempt: impl AsyncFnMut() -> Result<R, StartError>,
) -> Result<R, StartError> {
    let mut since = None;
    wait(config, &Jitter::from_entropy(), attempt, |fault, delay| {
        let left = patience.left(&mut since, fault, config)?;
        tracing::warn!(
            sqlstate = fault.sqlstate,
            "waiting for PostgreSQL, for {:.0} s more at most: {fault}",
            left.as_secs_f64()
        );
        Ok(delay.min(left))
    })
    .await
}

/// Tries until it succeeds; `failed` is given each fault with the delay before the next try, and returns
/// the delay to wait.
async fn wait<R>(
    config: &Config,
    jitter: &Jitter,
    mut attempt: impl AsyncFnMut() -> Result<R, StartError>,
    mut failed: impl FnMut(&Fault, Duration) -> Result<Duration, StartError>,
) -> Result<R, StartError> {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    loop {
        match attempt().await.map_err(|error| error.classified(config)) {
            Err(StartError::Unavailable(fault)) => {
                let delay = jitter.stretch(backoff.next_delay());
                tokio::time::sleep(failed(&fault, delay)?).await;
            }
            done => return done,
        }
    }
}

fn refuse_lossy(config: &Config, risks: &[Risk]) -> Result<(), StartError> {
    if risks.is_empty() {
        return Ok(());
    }
    let join = |text: fn(&Risk) -> &str, separator: &str| {
        risks.iter().map(text).collect::<Vec<_>>().join(separator)
    };
    let (settings, remedy) = (join(|risk| &risk.risk, ", "), join(|risk| &risk.remedy, "; "));
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
        // A column too short, or an unknown one that must not be NULL: good votes would be
        // dead-lettered. Anything else that refuses made-up votes may take real ones.
        Ok(Rehearsed::Refused(fault)) => match fault.sqlstate.as_deref() {
            Some(code) if code.starts_with("22") || code == "23502" => fault,
            _ => return Ok(()),
        },
        Err(fault) => {
            let misfit = match fault.sqlstate.as_deref() {
                // 42P05: caused by a pooler, not by the tables.
                Some("42501" | "42P05") => false,
                Some(code) => code.starts_with("42"),
                // A column of a type that the statement's rows can't be read from; triggers on count_batch.
                None => matches!(fault.class, Class::Bug | Class::Pause),
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
