//! What the facts about the database mean for counting.

mod blockers;
mod migrations;
mod server;

use std::time::Duration;

use crate::adapters::store::{
    Clocks, DatabaseFacts, ForeignObject, Rehearsal, Risk, SchemaState, StartError, Surroundings,
    describe, look,
};
use crate::operator::check::{Finding, Report, Severity};
use crate::platform::config::{Config, keys};
use crate::platform::telemetry::Standbys;

use Severity::{Error, Info, Warning};

/// Clocks further apart than this make latencies and time stamps hard to believe.
const CLOCK_TOLERANCE: time::Duration = time::Duration::seconds(5);

/// Checks the database that `config` names, as [`look`] does; `limit` bounds the rehearsal of pending
/// migrations.
pub async fn database(config: &Config, limit: Duration) -> Report {
    let facts = look(config, limit).await;
    let mut report = Report::default();
    report.looked_at(format!("PostgreSQL, {}", describe(&config.postgres)));
    if facts.blockers.is_some() {
        report.looked_at("sessions that hold locks on the tables");
    }
    if facts.surroundings.is_some() {
        report.looked_at("the schema");
    }
    let rehearsed = match (&facts.schema, &facts.rehearsal) {
        (Some(SchemaState::Pending(versions)), Some(Rehearsal::Done(Ok(())))) => {
            report.looked_at(format!("migrations {versions:?}, applied and rolled back"));
            true
        }
        (Some(SchemaState::Pending(_)), _) => false,
        (_, rehearsal) => matches!(rehearsal, Some(Rehearsal::Done(_))),
    };
    if rehearsed {
        report.looked_at("a batch, counted and rolled back");
    }
    report.findings.extend(findings(config, facts));
    report
}

fn findings(config: &Config, facts: DatabaseFacts) -> Vec<Finding> {
    let DatabaseFacts { server, risks, standbys, clocks, blockers, surroundings, .. } = facts;
    let mut found = Vec::new();
    if let Some(server) = &server {
        found.extend(server::findings(config, server));
    }
    found.extend(risks.iter().map(|risk| lossy(config, risk)));
    if let Some(standbys) = standbys {
        found.extend(standby(config, standbys));
        found.extend(blockers::findings(config, standbys, &blockers.unwrap_or_default()));
    }
    found.extend(clocks.and_then(clock));
    if let Some(surroundings) = &surroundings {
        let foreign = |object| foreign(config, surroundings, object);
        found.extend(surroundings.foreign.iter().map(foreign));
    }
    if let Some(misfits) = &facts.misfits {
        let zones = misfits.zones().into_iter();
        found.extend(
            zones.map(|(meaning, remedy)| Finding::new(Warning, subject(config), meaning, remedy)),
        );
    }
    if let (Some(server), Some(state), Some(rehearsal)) = (&server, &facts.schema, &facts.rehearsal)
    {
        match state {
            SchemaState::Current => {}
            SchemaState::Newer(versions) => found.push(newer(config, versions)),
            _ => {
                found.push(migrations::finding(config, server, state, rehearsal));
                if let (Rehearsal::Skipped(_), Some(misfits)) = (rehearsal, &facts.misfits) {
                    found.extend(migrations::misfits(config, misfits));
                }
            }
        }
    }
    if let Some(Rehearsal::Done(Err(error))) = facts.rehearsal {
        found.push(refusal(config, error));
    }
    found.extend(facts.refused.map(|error| refusal(config, error)));
    found
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

fn lossy(config: &Config, Risk { risk, remedy }: &Risk) -> Finding {
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
        subject(config),
        format!(
            "a crash of PostgreSQL may lose votes that were committed and acked; {consequence}"
        ),
        remedy,
    )
    .with_value(risk)
}

/// Whether a failover loses acknowledged votes.
fn standby(config: &Config, standbys: Standbys) -> Option<Finding> {
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
            subject(config),
            "synchronous_standby_names is empty while a standby is connected: a failover to it loses \
             acknowledged votes",
            remedy,
        )
        .with_value(format!("standbys connected: {}", standbys.connected))
    })
}

/// An object of another role, which a migration refuses to touch.
fn foreign(config: &Config, looked: &Surroundings, object: &ForeignObject) -> Finding {
    let enforced = config.postgres.migrate_on_start && looked.may_create && object.ownership;
    let (severity, meaning) = if enforced || object.unreadable {
        (Error, "it can run code of its owner's as this role: the service would not start")
    } else {
        (Warning, "it can run code of its owner's as this role: a migration refuses it")
    };
    Finding::new(
        severity,
        subject(config),
        meaning,
        "find out who made it and why; then drop it, or give it to the owner of the tables (ALTER \
         ... OWNER TO)",
    )
    .with_value(object.to_string())
}

/// Later migrations that this release can run on.
fn newer(config: &Config, versions: &[i64]) -> Finding {
    Finding::new(
        Info,
        subject(config),
        "a later release was here; none of its migrations requires it, so this release runs on them",
        "nothing",
    )
    .with_value(format!("later migrations {versions:?}"))
}

fn subject(config: &Config) -> String {
    format!("database {:?}", config.postgres.database)
}

/// How far this machine's clock is from the server's, assuming equal times for the way there and back. A
/// difference that the round trip explains is none.
fn clock(clocks: Clocks) -> Option<Finding> {
    let Clocks { here, server, round_trip } = clocks;
    let half = time::Duration::try_from(round_trip / 2).unwrap_or(time::Duration::ZERO);
    let ahead = server - (here + half);
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
