//! What the facts about the database mean for counting.

mod blockers;
mod migrations;
mod server;

use std::time::Duration;

use crate::adapters::store::{
    Clocks, DatabaseFacts, ForeignObject, Misfits, PublicationStatus, Rehearsal, Risk, SchemaState,
    StartError, Surroundings, describe, inspect,
};
use crate::model::publication::rfc3339;
use crate::operator::check::{Finding, Report, Severity, addresses};
use crate::platform::config::{Config, ShownTotals, keys};
use crate::platform::telemetry::Standbys;

use Severity::{Error, Warning};

/// Clocks further apart than this make latencies and time stamps hard to believe.
const CLOCK_TOLERANCE: time::Duration = time::Duration::seconds(5);

/// Checks the database that `config` names, as [`inspect`] does; `limit` bounds the rehearsal of pending
/// migrations.
pub async fn database(config: &Config, limit: Duration) -> Report {
    let (facts, others) = tokio::join!(inspect(config, limit), addresses::postgres(config));
    let mut checked = vec![format!("PostgreSQL, {}", describe(&config.postgres))];
    if facts.blockers.is_some() {
        checked.push("sessions that hold locks on the tables".to_owned());
    }
    if facts.surroundings.is_some() {
        checked.push("the schema".to_owned());
    }
    let rehearsed = match (&facts.schema, &facts.rehearsal) {
        (Some(SchemaState::Pending(versions)), Some(Rehearsal::Done(Ok(())))) => {
            checked.push(format!("migrations {versions:?}, applied and rolled back"));
            true
        }
        (Some(SchemaState::Pending(_)), _) => false,
        (_, rehearsal) => matches!(rehearsal, Some(Rehearsal::Done(_))),
    };
    if rehearsed {
        checked.push("a batch, counted and rolled back".to_owned());
    }
    let mut report = Report { checked, findings: findings(config, facts) };
    report.absorb(others);
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
        let blockers = blockers.unwrap_or_default();
        found.extend(blockers.iter().map(|session| blockers::finding(config, standbys, session)));
    }
    found.extend(clocks.and_then(clock));
    found.extend(
        facts
            .publication_status
            .as_ref()
            .and_then(|publication_status| metrics_exposure(config, publication_status)),
    );
    if let Some(surroundings) = &surroundings {
        let foreign = |object| foreign(config, surroundings, object);
        found.extend(surroundings.foreign.iter().map(foreign));
    }
    if let Some((meaning, remedy)) = facts.misfits.as_ref().and_then(Misfits::zones) {
        found.push(Finding::new(Warning, subject(config), meaning, remedy));
    }
    if let (Some(server), Some(state), Some(rehearsal)) = (&server, &facts.schema, &facts.rehearsal)
    {
        found.extend(migrations::finding(config, server, state, rehearsal));
        if let (Rehearsal::Skipped(_), Some(misfits)) = (rehearsal, &facts.misfits) {
            found.extend(migrations::misfits(config, misfits));
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
            let remedy = match fault.sqlstate.as_deref() {
                None => {
                    "start the server, or check POSTGRES_HOST, POSTGRES_PORT and the network; the \
                     service would wait for it"
                }
                // The server answers, or something in front of it does.
                Some("25006" | "08P01" | "26000" | "42P05") => {
                    "what the error says; the service would wait, unready"
                }
                Some("55P03") => {
                    "do what the findings about sessions say (docs/runbook.md, \"Who blocks \
                     counting\"); the service would wait"
                }
                Some(_) => {
                    "see what blocks it: the server's log, pg_stat_activity, pg_locks; the service \
                     would wait"
                }
            };
            let meaning = format!("PostgreSQL does not answer as it should: {fault}");
            (&keys::POSTGRES_HOST, meaning, remedy.to_owned())
        }
        StartError::Credentials { fault, place, advice } => {
            let meaning = format!("PostgreSQL refuses the login or a permission: {fault}; {place}");
            (&keys::POSTGRES_USER, meaning, advice)
        }
        error => {
            let (key, remedy) = match &error {
                StartError::Certificate(_) | StartError::Tls(_) => {
                    (&keys::POSTGRES_SSLMODE, "fix the settings or the certificate that it names")
                }
                StartError::Settings(_) => (&keys::POSTGRES_PASSWORD, "change what it names"),
                StartError::NoDatabase { .. } => {
                    (&keys::POSTGRES_DB, "create it (createdb), or set POSTGRES_DB")
                }
                StartError::Schema { .. } => {
                    (&keys::POSTGRES_DB, "have the owner of the tables fix them")
                }
                StartError::OtherCell { .. } => (&keys::CELL, "do what it names"),
                _ => (&keys::POSTGRES_DB, "see the server's log"),
            };
            (key, error.to_string(), format!("{remedy}; the service would not start"))
        }
    };
    Finding::of_setting(Error, config, key, meaning, remedy)
}

fn lossy(config: &Config, Risk { risk, remedy }: &Risk) -> Finding {
    let (severity, consequence) = match config.postgres.allow_lossy {
        true => (Warning, "accepted by POSTGRES_ALLOW_LOSSY"),
        false => (Error, "the service would not start"),
    };
    let meaning = format!(
        "a crash of PostgreSQL may lose votes that were committed and acked; {consequence}"
    );
    let remedy = match risk.split_once('=') {
        Some((name, _)) => format!(
            "{remedy}; SELECT source, sourcefile FROM pg_settings WHERE name = '{name}' says where \
             it is set, and pg_db_role_setting whether for this role or database alone"
        ),
        None => remedy.clone(),
    };
    Finding::new(severity, subject(config), meaning, remedy).with_value(risk)
}

/// Whether a failover loses acknowledged votes.
fn standby(config: &Config, standbys: Standbys) -> Option<Finding> {
    let remedy =
        "set synchronous_standby_names on the server, so that a commit waits for a standby";
    if standbys.named {
        return None;
    }
    if config.postgres.require_standby {
        let key = &keys::POSTGRES_REQUIRE_STANDBY;
        let meaning = "synchronous_standby_names is empty: the service would not start";
        return Some(Finding::of_setting(Error, config, key, meaning, remedy));
    }
    (standbys.connected > 0).then(|| {
        let meaning = "synchronous_standby_names is empty while a standby is connected: a failover to \
                       it loses acknowledged votes";
        Finding::new(Warning, subject(config), meaning, remedy)
            .with_value(format!("standbys connected: {}", standbys.connected))
    })
}

/// An object of another role, which a migration refuses to touch.
fn foreign(config: &Config, surroundings: &Surroundings, object: &ForeignObject) -> Finding {
    let enforced = config.postgres.migrate_on_start && surroundings.may_create && object.ownership;
    let (severity, consequence) = match enforced || object.unreadable {
        true => (Error, "the service would not start"),
        false => (Warning, "a migration refuses it"),
    };
    let meaning = format!("it can run code of its owner's as this role: {consequence}");
    let remedy = "find out who made it and why; then drop it, or give it to the owner of the tables \
                  (ALTER ... OWNER TO)";
    Finding::new(severity, subject(config), meaning, remedy).with_value(object.to_string())
}

fn subject(config: &Config) -> String {
    format!("database {:?}", config.postgres.database)
}

/// A warning if the port of the metrics shows results that are not public.
fn metrics_exposure(config: &Config, publication_status: &PublicationStatus) -> Option<Finding> {
    let monitoring = &config.monitoring;
    let PublicationStatus::As(published) = publication_status else { return None };
    if published.is_public()
        || monitoring.totals == ShownTotals::Sums
        || monitoring.host.is_loopback()
    {
        return None;
    }
    let until = match published.state {
        None => format!("until {}", rfc3339(published.not_before)),
        Some(_) => "for now".to_owned(),
    };
    let meaning = format!(
        "results may not be public {until}, and http://{}:{}/metrics shows each law's oui and non without \
         authentication",
        monitoring.host, monitoring.port
    );
    let remedy = "set METRICS_TOTALS=sums on every instance before votes are counted, or \
                  PROMETHEUS_HOST=127.0.0.1; what Prometheus has scraped stays there";
    Some(Finding::of_setting(Warning, config, &keys::METRICS_TOTALS, meaning, remedy))
}

/// How far this machine's clock is from the server's, assuming equal times for the way there and back. A
/// difference that the round trip explains is not reported.
fn clock(clocks: Clocks) -> Option<Finding> {
    let Clocks { here, server, round_trip } = clocks;
    let half = time::Duration::try_from(round_trip / 2).unwrap_or(time::Duration::ZERO);
    let ahead = server - (here + half);
    if ahead.abs() - half <= CLOCK_TOLERANCE {
        return None;
    }
    let direction = if ahead.is_negative() { "behind" } else { "ahead of" };
    let seconds = ahead.abs().as_seconds_f64();
    let meaning = "times in the audit, in logs and in metrics can't be compared; latencies from \
                   publication to commit are wrong, and certificates may look expired";
    let remedy = "have both machines set their clocks by the same NTP servers (timedatectl, chronyc \
                  tracking)";
    let finding = Finding::new(Warning, "clock", meaning, remedy);
    Some(finding.with_value(format!("PostgreSQL is {seconds:.1} s {direction} this machine")))
}

#[cfg(test)]
mod tests;
