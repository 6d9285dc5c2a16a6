//! Who keeps counting waiting: sessions that hold locks on the tables for longer than a moment.

use crate::adapters::store::{Session, pids};
use crate::operator::check::{Finding, Severity};
use crate::platform::config::Config;
use crate::platform::telemetry::Standbys;

use Severity::{Error, Warning};

/// One finding for each session that keeps counting waiting, or would.
pub(super) fn findings(
    config: &Config,
    standbys: Standbys,
    sessions: &[Session],
) -> impl Iterator<Item = Finding> {
    sessions.iter().map(move |session| finding(config, standbys, session))
}

fn finding(config: &Config, standbys: Standbys, session: &Session) -> Finding {
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

/// Ends nobody who may wait for a standby: its COMMIT would count as done without one.
fn remedy(config: &Config, standbys: Standbys, session: &Session) -> String {
    let Some(pid) = session.pid else {
        return match &session.gid {
            Some(gid) => format!(
                "if nothing is going to finish it: ROLLBACK PREPARED {}, as its owner or a superuser",
                quoted(gid)
            ),
            None => "SELECT * FROM pg_prepared_xacts; finish it, or ROLLBACK PREPARED".to_owned(),
        };
    };
    if session.wait_event.as_deref() == Some("SyncRep") {
        return "do not end it: its commit waits for a synchronous standby. Bring the standby back; \
                docs/runbook.md, VotesWaitWithoutCommit"
            .to_owned();
    }
    let who = if session.superuser { "a superuser" } else { "a role in pg_signal_backend" };
    let end = format!("as {who}: SELECT pg_terminate_backend({pid})");
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
        return if standbys.named {
            format!("{look} before anybody ends it")
        } else {
            format!("{look}; have its user end its transaction, or {end}")
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

/// As SQL writes a text.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::store::session;
    use crate::platform::config::Sources;

    fn config() -> Config {
        Config::load(&Sources::default()).unwrap_or_else(|problems| panic!("{problems}"))
    }

    const NO_STANDBY: Standbys = Standbys { connected: 0, named: false, waited_for: false };

    #[test]
    fn a_session_that_waits_for_a_standby_is_never_to_be_ended() {
        let advise = |session: Session| remedy(&config(), NO_STANDBY, &session);
        let waiting = Session { wait_event: Some("SyncRep".to_owned()), ..session(7, "3/1") };
        let advice = advise(waiting.clone());
        assert!(!advice.contains("terminate") && advice.contains("do not end it"), "{advice}");
        let advice = advise(Session { application: Some("vote-aggregator".to_owned()), ..waiting });
        assert!(!advice.contains("terminate"), "{advice}");

        let advice = advise(session(7, "3/1"));
        assert!(advice.contains("pg_signal_backend: SELECT pg_terminate_backend(7)"), "{advice}");
        let advice = advise(Session { superuser: true, ..session(7, "3/1") });
        assert!(advice.contains("as a superuser"), "{advice}");
        let behind = Session { hidden: true, waits_for: vec![5, 0], ..session(7, "3/1") };
        let advice = advise(behind);
        assert!(advice.contains("pid 5, a prepared transaction: end that one first"), "{advice}");
        let hidden = Session { hidden: true, ..session(7, "3/1") };
        let advice = advise(hidden.clone());
        assert!(advice.contains("pg_monitor") && advice.contains("terminate"), "{advice}");
        let standbys = Standbys { connected: 0, named: true, waited_for: true };
        let advice = remedy(&config(), standbys, &hidden);
        assert!(advice.contains("pg_monitor") && !advice.contains("terminate"), "{advice}");
    }

    #[test]
    fn a_prepared_transaction_is_rolled_back_by_its_identifier() {
        let prepared = Session { pid: None, gid: Some("it's".to_owned()), ..session(0, "3/7") };
        assert!(remedy(&config(), NO_STANDBY, &prepared).contains("ROLLBACK PREPARED 'it''s'"));
    }
}
