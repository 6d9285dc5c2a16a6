//! The database's side of `vote-aggregator check`: looks, and leaves nothing behind.

mod blockers;
mod migrations;
mod server;

use std::time::Duration;

use sqlx::Connection;
use sqlx::postgres::PgConnection;
use time::OffsetDateTime;
use tokio::time::Instant;

use self::blockers::blockers;
use self::migrations::{Rehearsal, finding, misfits, rehearse};
use self::server::{Server, findings};
use super::connection::{Address, options, with_session_limits};
use super::durability::{Risk, risks, standbys};
use super::error::{StartError, describe};
use super::migrate::{Examined, ForeignObject, SchemaState, Surroundings, examine};
use super::misfits::Misfits;
use super::start::fits;
use super::{transaction, within};
use crate::check::{Finding, Report, Severity};
use crate::config::{Config, keys};
use crate::ports::Fault;
use crate::telemetry::Standbys;

use Severity::{Error, Info, Warning};

/// Clocks further apart than this make latencies and time stamps hard to believe.
const CLOCK_TOLERANCE: time::Duration = time::Duration::seconds(5);

/// Finds out about the database that `config` names: whether it takes us, keeps what it confirms,
/// has the schema, and lets this role count. Never waits for one that is down. A batch is counted
/// as at start, and rolled back, and so are pending migrations before it: no statement of theirs runs,
/// or waits for a lock, for longer than `limit`, and with zero they are not tried.
pub async fn check(config: &Config, limit: Duration) -> Report {
    let mut report = Report::default();
    report.looked_at(format!("PostgreSQL, {}", describe(&config.postgres)));
    let deadline = config.postgres.transaction_deadline() + 4 * limit;
    let looked = within(deadline, look(config, limit, &mut report)).await;
    report.findings.extend(looked.err().map(|error| refusal(config, error)));
    report
}

async fn look(config: &Config, limit: Duration, report: &mut Report) -> Result<(), StartError> {
    let limited = with_session_limits(options(&config.postgres), config.postgres.statement_timeout);
    let address = Address::new(&config.postgres, limited).session("vote-aggregator check", []);
    let mut connection = address.connect().await?;

    let server = Server::ask(&mut connection).await?;
    report.findings.extend(findings(config, &server));
    let risks = risks(&mut connection).await?;
    report.findings.extend(risks.iter().map(|risk| lossy_finding(config, risk)));
    let standbys = standbys(&mut connection).await?;
    report.findings.extend(standby_finding(config, standbys));
    report.findings.extend(clock(&mut connection).await?);

    report.looked_at("sessions that hold locks on the tables");
    report.findings.extend(blockers(&mut connection, config, standbys).await?);

    report.looked_at("the schema");
    let examined = examine(&mut connection, config.postgres.migrate_on_start).await;
    let Examined { surroundings, state } = examined?;
    let foreign = |object| foreign_finding(config, &surroundings, object);
    report.findings.extend(surroundings.foreign.iter().map(foreign));
    // Reading the schema could run another role's code.
    let Some(state) = state else {
        connection.close().await.ok();
        return Ok(());
    };
    if let SchemaState::Newer(versions) = &state {
        report.findings.push(newer_finding(config, versions));
    }
    let found = Misfits::of(&mut connection).await?;
    report.findings.extend(
        found
            .zones()
            .map(|(meaning, remedy)| Finding::new(Warning, database(config), meaning, remedy)),
    );
    if matches!(state, SchemaState::Current | SchemaState::Newer(_)) {
        // A server that takes no writes has been told of.
        if !server.read_only {
            report.looked_at("a batch, counted and rolled back");
            let rehearsed = transaction::rehearse(&mut connection).await;
            fits(config, rehearsed)?;
        }
    } else {
        let rehearsal = match &state {
            SchemaState::Pending(versions) => {
                let looked = (&server, &surroundings);
                rehearse(&mut connection, config, looked, versions, limit, report).await?
            }
            _ => Rehearsal::NotTried(Info, "the schema has to fit first".to_owned()),
        };
        report.findings.push(finding(config, &server, &state, &rehearsal));
        match rehearsal {
            Rehearsal::Tried(failed) => report.findings.extend(failed),
            Rehearsal::NotTried(..) => report.findings.extend(misfits(config, &found)),
        }
    }
    connection.close().await.ok();
    Ok(())
}

/// What a start would end with, or wait for.
fn refusal(config: &Config, error: StartError) -> Finding {
    let (key, meaning, remedy) = match error.classified(config) {
        StartError::Unavailable(fault) => {
            // With a code it is there, and something on it, or in front of it, is in the way.
            let remedy = match fault.sqlstate.as_deref() {
                Some("25006" | "08P01" | "26000" | "42P05") => {
                    "what the error says; the service would wait, unready"
                }
                Some("55P03") => {
                    "do what the findings about sessions say (docs/runbook.md, \"Who blocks \
                     counting\"); the service would wait"
                }
                Some(_) => {
                    "see what holds it up: the server's log, pg_stat_activity, pg_locks; the \
                     service would wait"
                }
                None => {
                    "start the server, or check POSTGRES_HOST, POSTGRES_PORT and what lies \
                     between; the service would wait for it"
                }
            };
            let meaning = format!("PostgreSQL does not answer as it should: {fault}");
            (&keys::POSTGRES_HOST, meaning, remedy.to_owned())
        }
        StartError::Credentials { fault, place, advice } => (
            &keys::POSTGRES_USER,
            format!("PostgreSQL refuses the login or a permission: {fault}; {place}"),
            advice,
        ),
        StartError::NoDatabase { fault, place } => (
            &keys::POSTGRES_DB,
            format!("PostgreSQL has no such database: {fault}; {place}"),
            "create it (createdb), or set POSTGRES_DB".to_owned(),
        ),
        error @ (StartError::Certificate(_) | StartError::Tls(_)) => (
            &keys::POSTGRES_SSLMODE,
            error.to_string(),
            "fix the settings or the certificate that it names; the service would not start"
                .to_owned(),
        ),
        error @ StartError::Settings(_) => (
            &keys::POSTGRES_PASSWORD,
            error.to_string(),
            "change what it names; the service would not start".to_owned(),
        ),
        StartError::Schema { reason, place } => (
            &keys::POSTGRES_DB,
            format!("the schema does not fit: {reason}; {place}"),
            "have the owner of the tables fix them; the service would not start".to_owned(),
        ),
        error => (&keys::POSTGRES_DB, error.to_string(), "see the server's log".to_owned()),
    };
    Finding::of_setting(Error, config, key, meaning, remedy)
}

fn lossy_finding(config: &Config, Risk { risk, remedy }: &Risk) -> Finding {
    let (severity, consequence) = if config.postgres.allow_lossy {
        (Warning, "accepted by POSTGRES_ALLOW_LOSSY")
    } else {
        (Error, "the service would not start")
    };
    let remedy = match risk.split_once('=') {
        Some((name, _)) => format!(
            "{remedy}; SELECT source, sourcefile FROM pg_settings WHERE name = '{name}' says where \
             it is set, and pg_db_role_setting whether for this role or database alone"
        ),
        None => remedy.clone(),
    };
    Finding::new(
        severity,
        database(config),
        format!(
            "a crash of PostgreSQL may lose votes that were committed and acked; {consequence}"
        ),
        remedy,
    )
    .with_value(risk)
}

/// Whether a failover loses acknowledged votes.
fn standby_finding(config: &Config, standbys: Standbys) -> Option<Finding> {
    let remedy =
        "set synchronous_standby_names on the server, so that a commit waits for a standby";
    if config.postgres.require_standby && !standbys.named {
        return Some(Finding::of_setting(
            Error,
            config,
            &keys::POSTGRES_REQUIRE_STANDBY,
            "synchronous_standby_names is empty: the service would not start",
            remedy,
        ));
    }
    (standbys.connected > 0 && !standbys.named).then(|| {
        Finding::new(
            Warning,
            database(config),
            "synchronous_standby_names is empty while a standby is connected: a failover to it loses \
             acknowledged votes",
            remedy,
        )
        .with_value(format!("standbys connected: {}", standbys.connected))
    })
}

/// An object of another role, which a migration refuses to touch.
fn foreign_finding(config: &Config, looked: &Surroundings, object: &ForeignObject) -> Finding {
    let enforced = config.postgres.migrate_on_start && looked.may_create && object.ownership;
    let (severity, meaning) = if enforced || object.unreadable {
        (Error, "it can run code of its owner's as this role: the service would not start")
    } else {
        (Warning, "it can run code of its owner's as this role: a migration refuses it")
    };
    Finding::new(
        severity,
        database(config),
        meaning,
        "find out who made it and why; then drop it, or give it to the owner of the tables (ALTER \
         ... OWNER TO)",
    )
    .with_value(object.to_string())
}

/// Later migrations that this release can run on.
fn newer_finding(config: &Config, versions: &[i64]) -> Finding {
    Finding::new(
        Info,
        database(config),
        "a later release was here; none of its migrations requires it, so this release runs on them",
        "nothing",
    )
    .with_value(format!("later migrations {versions:?}"))
}

fn database(config: &Config) -> String {
    format!("database {:?}", config.postgres.database)
}

/// How far this machine's clock is from the server's, taking the way there and back for equally
/// long. A difference that the round trip could explain is none.
async fn clock(connection: &mut PgConnection) -> Result<Option<Finding>, Fault> {
    let ask = async |connection: &mut PgConnection| {
        let asked = sqlx::query_scalar::<_, OffsetDateTime>("SELECT clock_timestamp()");
        asked.fetch_one(connection).await
    };
    // Prepares the statement, so that the next one is a single round trip.
    ask(connection).await?;
    let (here, began) = (OffsetDateTime::now_utc(), Instant::now());
    let there = ask(connection).await?;
    Ok(clocks(here, there, began.elapsed()))
}

fn clocks(
    here: OffsetDateTime,
    there: OffsetDateTime,
    round_trip: std::time::Duration,
) -> Option<Finding> {
    let half = time::Duration::try_from(round_trip / 2).unwrap_or(time::Duration::ZERO);
    let ahead = there - (here + half);
    (ahead.abs() - half > CLOCK_TOLERANCE).then(|| {
        let direction = if ahead.is_negative() { "behind" } else { "ahead of" };
        Finding::new(
            Warning,
            "clock",
            "times in the audit, in logs and in metrics can't be compared; latencies from \
             publication to commit are wrong, and certificates may look expired",
            "have both machines set their clocks by the same NTP servers (timedatectl, chronyc \
             tracking)",
        )
        .with_value(format!(
            "PostgreSQL is {:.1} s {direction} this machine",
            ahead.abs().as_seconds_f64()
        ))
    })
}

#[cfg(test)]
mod tests;
