//! Sessions that block counting: they hold locks on the tables for longer than a moment.

use crate::adapters::store::{Session, pids};
use crate::operator::check::{Finding, Severity};
use crate::platform::config::Config;
use crate::platform::telemetry::Standbys;

use Severity::{Error, Warning};

/// What it means for counting that a session holds its locks.
pub(super) fn finding(config: &Config, standbys: Standbys, session: &Session) -> Finding {
    let subject = match session.pid {
        Some(pid) => format!("session {pid}"),
        None => "prepared transaction".to_owned(),
    };
    let (severity, meaning) = if session.blocks.is_empty() {
        (Warning, "counting waits as soon as a vote needs what it has locked".to_owned())
    } else {
        (Error, format!("these sessions wait for it: {}", pids(&session.blocks)))
    };
    Finding::new(severity, subject, meaning, remedy(config, standbys, session))
        .with_value(session.to_string())
}

/// No session is to be ended that may wait for a standby: its COMMIT would count as done without one.
fn remedy(config: &Config, standbys: Standbys, session: &Session) -> String {
    let Some(pid) = session.pid else {
        return match &session.gid {
            Some(gid) => format!(
                "if nothing is going to finish it: ROLLBACK PREPARED '{}', as its owner or a superuser",
                gid.replace('\'', "''")
            ),
            None => "SELECT * FROM pg_prepared_xacts; finish it, or ROLLBACK PREPARED".to_owned(),
        };
    };
    if session.wait_event.as_deref() == Some("SyncRep") {
        return "do not end it: its commit waits for a synchronous standby. Bring the standby back; \
                docs/runbook.md, VotesWaitWithoutCommit"
            .to_owned();
    }
    let role = if session.superuser { "a superuser" } else { "a role in pg_signal_backend" };
    let end = format!("as {role}: SELECT pg_terminate_backend({pid})");
    // What waits for a lock does not wait in SyncRep.
    if !session.waits_for.is_empty() {
        return format!(
            "it waits itself for {}: end that one first; otherwise have its user end it, or {end}",
            pids(&session.waits_for)
        );
    }
    if session.hidden {
        let look = format!(
            "its client, state and age are hidden from {:?}: check again as a role in pg_monitor \
             (GRANT pg_monitor TO ...)",
            config.postgres.user
        );
        // It may wait in SyncRep.
        return match standbys.named {
            true => format!("{look} before it is ended"),
            false => format!("{look}; have its user end its transaction, or {end}"),
        };
    }
    if session.is_ours() {
        return format!(
            "a session of this service: it ends by itself within seconds, unless its client is \
             gone; otherwise stop that instance, or {end}"
        );
    }
    format!("have its user end its transaction, or {end}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::store::session;
    use crate::operator::check::tests::config;

    const NO_STANDBY: Standbys = Standbys { connected: 0, named: false, waited_for: false };

    #[test]
    fn a_session_that_waits_for_a_standby_is_never_to_be_ended() {
        let named = Standbys { named: true, waited_for: true, ..NO_STANDBY };
        let plain = session(7, "3/1");
        let waiting = Session { wait_event: Some("SyncRep".to_owned()), ..plain.clone() };
        let ours = Session { application: Some("vote-aggregator".to_owned()), ..waiting.clone() };
        let hidden = Session { hidden: true, ..plain.clone() };
        let behind = Session { waits_for: vec![5, 0], ..hidden.clone() };
        let superuser = Session { superuser: true, ..plain.clone() };
        let end = "SELECT pg_terminate_backend(7)";
        for (session, standbys, is_ended, advice) in [
            (&waiting, NO_STANDBY, false, "do not end it"),
            (&ours, NO_STANDBY, false, "do not end it"),
            (&plain, NO_STANDBY, true, "pg_signal_backend"),
            (&superuser, NO_STANDBY, true, "as a superuser"),
            (&behind, NO_STANDBY, true, "pid 5, a prepared transaction: end that one first"),
            (&hidden, NO_STANDBY, true, "pg_monitor"),
            (&hidden, named, false, "pg_monitor"),
        ] {
            let found = remedy(&config(""), standbys, session);
            assert!(found.contains(advice) && found.contains(end) == is_ended, "{found}");
        }
    }

    #[test]
    fn a_prepared_transaction_is_rolled_back_by_its_identifier() {
        let prepared = Session { pid: None, gid: Some("it's".to_owned()), ..session(0, "3/7") };
        assert!(remedy(&config(""), NO_STANDBY, &prepared).contains("ROLLBACK PREPARED 'it''s'"));
    }
}
