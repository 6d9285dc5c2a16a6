//! Which side works, since when, and why not.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use time::OffsetDateTime;
use tokio::sync::watch;

use super::reason::Reason;

const ACKNOWLEDGED_VOTES_PRESENT: &str = "none is missing";

/// State of one side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub ok: bool,
    /// When `ok` last changed.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Why it is as it is; serialized without what is not for everybody.
    pub reason: Reason,
}

impl Check {
    fn starting() -> Self {
        let reason = Reason::from("not connected yet");
        Self { ok: false, since: OffsetDateTime::now_utc(), reason }
    }

    fn set(&mut self, ok: bool, reason: Reason) {
        if self.ok != ok {
            self.since = OffsetDateTime::now_utc();
        }
        self.ok = ok;
        self.reason = reason;
    }

    /// What keeps this side from working.
    fn amiss(&self, side: &str) -> Option<String> {
        (!self.ok).then(|| format!("{side}: {}", self.reason.private()))
    }
}

/// Whether a message that we reject is kept by the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeadLetterRoute {
    Yes,
    No,
    /// The broker does not tell: no permission to ask, or a policy we can't see.
    Unknown,
}

impl DeadLetterRoute {
    pub const ALL: [Self; 3] = [Self::Yes, Self::No, Self::Unknown];

    /// The value of the metric label and of the readiness detail.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Unknown => "unknown",
        }
    }
}

/// All that readiness is made of.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `ready` or `unavailable`.
    pub status: &'static str,
    pub checks: Checks,
}

/// Both sides.
#[derive(Clone, Debug, Serialize)]
pub struct Checks {
    pub rabbitmq: RabbitMqCheck,
    pub postgres: Check,
    /// Whether what was acknowledged is still in the audit.
    pub acknowledged_votes: Check,
}

/// The broker's side, with what an operator has to know of its queue.
#[derive(Clone, Debug, Serialize)]
pub struct RabbitMqCheck {
    #[serde(flatten)]
    pub check: Check,
    /// Told but no reason to be unready: votes are counted without one, too.
    pub dead_letter_route: DeadLetterRoute,
    /// Phrases, as a [`Reason`] is shown.
    pub warnings: Vec<&'static str>,
}

/// Shared state of both sides; whoever sees a change notes it here.
#[derive(Debug)]
pub struct Health {
    state: Mutex<State>,
    /// Told of every note, whether it changed something or not.
    noted: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    rabbitmq: Check,
    postgres: Check,
    acknowledged_votes: Check,
    /// Both sides worked at the same time once.
    started: bool,
    /// A side was found not to work once.
    failed: bool,
    /// Set while the breaker is open: a database that answers a read may still take no votes.
    breaker: Option<Reason>,
    route: DeadLetterRoute,
    warnings: Vec<&'static str>,
}

impl State {
    fn set_rabbitmq(&mut self, ok: bool, reason: Reason) {
        self.rabbitmq.set(ok, reason);
        self.failed |= !ok;
        self.note_start();
    }

    fn set_postgres(&mut self, ok: bool, reason: Reason) {
        self.postgres.set(ok, reason);
        self.failed |= !ok;
        self.note_start();
    }

    fn note_start(&mut self) {
        self.started |= self.rabbitmq.ok && self.postgres.ok;
    }
}

impl Default for Health {
    fn default() -> Self {
        let state = State {
            rabbitmq: Check::starting(),
            postgres: Check::starting(),
            acknowledged_votes: Check {
                ok: true,
                since: OffsetDateTime::now_utc(),
                reason: ACKNOWLEDGED_VOTES_PRESENT.into(),
            },
            started: false,
            failed: false,
            breaker: None,
            route: DeadLetterRoute::Unknown,
            warnings: Vec::new(),
        };
        Self { state: Mutex::new(state), noted: watch::Sender::new(()) }
    }
}

impl Health {
    pub fn rabbitmq_consuming(&self) {
        self.note(|state| state.set_rabbitmq(true, "consuming".into()));
    }

    pub fn rabbitmq_failed(&self, reason: impl Into<Reason>) {
        self.note(|state| state.set_rabbitmq(false, reason.into()));
    }

    /// The database answered.
    pub fn postgres_answers(&self) {
        self.note(|state| match state.breaker.clone() {
            Some(reason) => state.set_postgres(false, reason),
            None => state.set_postgres(true, "answering".into()),
        });
    }

    pub fn postgres_failed(&self, reason: impl Into<Reason>) {
        self.note(|state| state.set_postgres(false, reason.into()));
    }

    /// Votes are not taken until [`Health::breaker_closed`].
    pub fn breaker_open(&self, reason: impl Into<Reason>) {
        let reason = reason.into();
        self.note(|state| {
            state.breaker = Some(reason.clone());
            state.set_postgres(false, reason);
        });
    }

    /// The database takes writes again; `reason` says how far that is proven.
    pub fn breaker_closed(&self, reason: impl Into<Reason>) {
        self.note(|state| {
            state.breaker = None;
            state.set_postgres(true, reason.into());
        });
    }

    /// Every acknowledged vote that was looked up is in the audit.
    pub fn acknowledged_votes_present(&self) {
        self.note(|state| state.acknowledged_votes.set(true, ACKNOWLEDGED_VOTES_PRESENT.into()));
    }

    /// Acknowledged votes are missing from the audit; `alarms` names what an operator may accept.
    pub fn acknowledged_votes_lost(&self, alarms: &str) {
        const LOST: &str = "some are missing from the audit; the log names the alarm";
        let reason = Reason::new(LOST, format!("some are missing from vote_audit, alarm {alarms}"));
        self.note(|state| state.acknowledged_votes.set(false, reason));
    }

    /// What was found out about the queue; the log has the details of each warning.
    pub fn queue_examined(&self, route: DeadLetterRoute, warnings: Vec<&'static str>) {
        let mut state = self.state();
        state.route = route;
        state.warnings = warnings;
    }

    pub fn dead_letter_route(&self) -> DeadLetterRoute {
        self.state().route
    }

    /// Whether it was ready to count votes once.
    pub fn has_started(&self) -> bool {
        self.state().started
    }

    /// How it goes, in one line for people, worst news first. `None` while that is open: nothing
    /// failed yet, and the first connections are being opened.
    pub fn summary(&self) -> Option<String> {
        let state = self.state();
        if !(state.started || state.failed) {
            return None;
        }
        let amiss = [state.postgres.amiss("PostgreSQL"), state.rabbitmq.amiss("RabbitMQ")];
        let amiss: Vec<String> = amiss.into_iter().flatten().collect();
        let lost = state.acknowledged_votes.amiss("acknowledged votes");
        Some(match (&amiss[..], lost) {
            ([], None) => "counting votes".to_owned(),
            ([], Some(lost)) => format!("counting votes; {lost}"),
            (amiss, _) => format!("not counting votes; {}", amiss.join("; ")),
        })
    }

    /// Hears of everything that is noted from now on.
    pub fn notes(&self) -> watch::Receiver<()> {
        self.noted.subscribe()
    }

    pub fn report(&self) -> Report {
        let state = self.state();
        let ready = state.rabbitmq.ok && state.postgres.ok && state.acknowledged_votes.ok;
        Report {
            status: if ready { "ready" } else { "unavailable" },
            checks: Checks {
                rabbitmq: RabbitMqCheck {
                    check: state.rabbitmq.clone(),
                    dead_letter_route: state.route,
                    warnings: state.warnings.clone(),
                },
                postgres: state.postgres.clone(),
                acknowledged_votes: state.acknowledged_votes.clone(),
            },
        }
    }

    fn note(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.noted.send_replace(());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Report {
    pub fn is_ready(&self) -> bool {
        let Checks { rabbitmq, postgres, acknowledged_votes } = &self.checks;
        rabbitmq.check.ok && postgres.ok && acknowledged_votes.ok
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_when_both_sides_are() {
        let health = Health::default();
        assert!(!health.report().is_ready());
        health.rabbitmq_consuming();
        assert!(!health.report().is_ready() && !health.has_started());
        health.postgres_answers();
        assert!(health.report().is_ready());
        assert_eq!(health.report().status, "ready");
        assert!(health.has_started());
        health.rabbitmq_failed("connection refused");
        let report = health.report();
        assert_eq!((report.is_ready(), report.status), (false, "unavailable"));
        assert!(health.has_started(), "a start is not taken back");
    }

    #[test]
    fn lost_acknowledged_votes_make_unready_until_they_are_there_again() {
        let health = Health::default();
        health.rabbitmq_consuming();
        health.postgres_answers();
        health.acknowledged_votes_lost("0a1b2c3d");
        assert!(!health.report().is_ready());
        let summary = health.summary().unwrap_or_default();
        assert!(summary.starts_with("counting votes; acknowledged votes: some"), "{summary}");
        health.acknowledged_votes_present();
        assert!(health.report().is_ready());
    }

    #[test]
    fn an_answering_database_does_not_hide_an_open_breaker() {
        let health = Health::default();
        health.rabbitmq_consuming();
        health.postgres_answers();
        health.breaker_open("disk full");
        health.postgres_answers();
        assert_eq!(health.report().checks.postgres.reason, "disk full".into());
        assert!(!health.report().is_ready());
        health.breaker_closed("taking votes");
        assert!(health.report().is_ready());
    }

    #[test]
    fn there_is_no_summary_until_it_counts_or_something_failed() {
        let health = Health::default();
        assert_eq!(health.summary(), None);
        health.postgres_answers();
        assert_eq!(health.summary(), None, "the broker is being connected to");
        health.rabbitmq_consuming();
        assert_eq!(health.summary().as_deref(), Some("counting votes"));
        health.breaker_open("disk full");
        health.rabbitmq_failed("not consuming");
        let both = "not counting votes; PostgreSQL: disk full; RabbitMQ: not consuming";
        assert_eq!(health.summary().as_deref(), Some(both));

        let health = Health::default();
        health.postgres_failed("connection refused");
        let waiting =
            "not counting votes; PostgreSQL: connection refused; RabbitMQ: not connected yet";
        assert_eq!(health.summary().as_deref(), Some(waiting));
    }

    #[test]
    fn whoever_listens_hears_of_a_note() {
        let health = Health::default();
        let notes = health.notes();
        assert!(!notes.has_changed().expect("the sender lives"));
        health.rabbitmq_consuming();
        assert!(notes.has_changed().expect("the sender lives"));
    }

    #[test]
    fn since_moves_only_when_the_state_does() {
        let health = Health::default();
        health.postgres_failed("one");
        let since = health.report().checks.postgres.since;
        health.postgres_failed("two");
        let check = health.report().checks.postgres;
        assert_eq!((check.since, check.reason), (since, "two".into()));
    }

    #[test]
    fn the_json_has_the_documented_shape() {
        let health = Health::default();
        health.queue_examined(DeadLetterRoute::No, vec!["rejected messages vanish"]);
        let json = serde_json::to_value(health.report()).expect("serializable");
        assert_eq!(json["status"], "unavailable");
        for side in ["rabbitmq", "postgres"] {
            assert_eq!(json["checks"][side]["ok"], false);
            assert!(json["checks"][side]["since"].as_str().is_some_and(|s| s.ends_with('Z')));
            assert_eq!(json["checks"][side]["reason"], "not connected yet");
        }
        assert_eq!(json["checks"]["rabbitmq"]["dead_letter_route"], "no");
    }
}
