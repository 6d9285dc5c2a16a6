//! Readiness: which side works, since when, and why not.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use serde::Serialize;
use strum::{IntoStaticStr, VariantArray};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::reason::Reason;
use crate::platform::config::Hosts;

const READY: &str = "ready";
const NOT_CONNECTED: &str = "not connected yet";
const ACKNOWLEDGED_VOTES_PRESENT: &str = "none is missing";

/// State of one side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub ok: bool,
    /// When `ok` last changed.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Why; serialized without its private part.
    pub reason: Reason,
    /// Which of several addresses is in use, by its number: no address is shown over HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

impl Check {
    fn new(ok: bool, reason: &'static str) -> Self {
        Self { ok, since: OffsetDateTime::now_utc(), reason: reason.into(), address: None }
    }

    fn set(&mut self, ok: bool, reason: Reason) {
        if self.ok != ok {
            self.since = OffsetDateTime::now_utc();
        }
        self.ok = ok;
        self.reason = reason;
    }

    /// What keeps this side from working.
    fn problem(&self, side: &str) -> Option<String> {
        (!self.ok).then(|| format!("{side}: {}", self.reason.private()))
    }
}

/// Whether the broker keeps a message that we reject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, IntoStaticStr, VariantArray)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum DeadLetterRoute {
    Yes,
    No,
    /// No permission to ask the broker, or a policy that is not visible to us.
    Unknown,
}

/// Readiness, with what it is made of.
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
    /// Does not affect readiness: votes are counted without a route, too.
    pub dead_letter_route: DeadLetterRoute,
    /// Phrases, as a [`Reason`] is shown.
    pub warnings: Vec<&'static str>,
    #[serde(skip)]
    pub delivery_limit_near: bool,
}

impl Checks {
    const fn sides_are_ok(&self) -> bool {
        self.rabbitmq.check.ok && self.postgres.ok
    }
}

/// Shared state of both sides, set where a change is noticed.
#[derive(Debug)]
pub struct Health {
    state: Mutex<State>,
    /// Notified of every update, whether it changed something or not.
    noted: watch::Sender<()>,
    /// Of RabbitMQ and of PostgreSQL.
    hosts: OnceLock<[Hosts; 2]>,
}

#[derive(Debug)]
struct State {
    checks: Checks,
    /// Both sides worked at the same time once.
    started: bool,
    /// RabbitMQ or PostgreSQL failed once.
    failed: bool,
    /// Set while the breaker is open: a database that answers a read may still take no votes.
    breaker: Option<Reason>,
}

impl State {
    fn set(&mut self, side: fn(&mut Checks) -> &mut Check, ok: bool, reason: impl Into<Reason>) {
        side(&mut self.checks).set(ok, reason.into());
        self.failed |= !ok;
        self.started |= self.checks.sides_are_ok();
    }
}

const RABBITMQ: fn(&mut Checks) -> &mut Check = |checks| &mut checks.rabbitmq.check;
const POSTGRES: fn(&mut Checks) -> &mut Check = |checks| &mut checks.postgres;

impl Default for Health {
    fn default() -> Self {
        let checks = Checks {
            rabbitmq: RabbitMqCheck {
                check: Check::new(false, NOT_CONNECTED),
                dead_letter_route: DeadLetterRoute::Unknown,
                warnings: Vec::new(),
                delivery_limit_near: false,
            },
            postgres: Check::new(false, NOT_CONNECTED),
            acknowledged_votes: Check::new(true, ACKNOWLEDGED_VOTES_PRESENT),
        };
        let state = State { checks, started: false, failed: false, breaker: None };
        let (state, noted) = (Mutex::new(state), watch::Sender::new(()));
        Self { state, noted, hosts: OnceLock::new() }
    }
}

impl Health {
    /// Of RabbitMQ and of PostgreSQL, once: which of several addresses is in use is shown from now on.
    pub fn watch_hosts(&self, hosts: [Hosts; 2]) {
        self.hosts.get_or_init(|| hosts);
    }

    /// The number of the address in use, from 1, and the number of addresses: of RabbitMQ and of
    /// PostgreSQL.
    pub fn addresses_in_use(&self) -> [(usize, usize); 2] {
        let number = |hosts: &Hosts| (hosts.in_use() + 1, hosts.count());
        self.hosts.get().map_or([(1, 1); 2], |hosts| hosts.each_ref().map(number))
    }

    pub fn rabbitmq_consuming(&self) {
        self.note(|state| state.set(RABBITMQ, true, "consuming"));
    }

    pub fn rabbitmq_failed(&self, reason: impl Into<Reason>) {
        self.note(|state| state.set(RABBITMQ, false, reason));
    }

    /// The database answered.
    pub fn postgres_answers(&self) {
        self.note(|state| match state.breaker.clone() {
            Some(reason) => state.set(POSTGRES, false, reason),
            None => state.set(POSTGRES, true, "answering"),
        });
    }

    pub fn postgres_failed(&self, reason: impl Into<Reason>) {
        self.note(|state| state.set(POSTGRES, false, reason));
    }

    /// Votes are not taken until [`Health::breaker_closed`].
    pub fn breaker_open(&self, reason: impl Into<Reason>) {
        self.note(|state| {
            let reason = state.breaker.insert(reason.into()).clone();
            state.set(POSTGRES, false, reason);
        });
    }

    /// The database takes writes again; `reason` says how far that is proven.
    pub fn breaker_closed(&self, reason: impl Into<Reason>) {
        self.note(|state| {
            state.breaker = None;
            state.set(POSTGRES, true, reason);
        });
    }

    /// Every acknowledged vote that was looked up is in the audit.
    pub fn acknowledged_votes_present(&self) {
        self.note(|state| {
            state.checks.acknowledged_votes.set(true, ACKNOWLEDGED_VOTES_PRESENT.into());
        });
    }

    /// Acknowledged votes are missing from the audit; `alarms` names what an operator may accept.
    pub fn acknowledged_votes_lost(&self, alarms: &str) {
        const LOST: &str = "some are missing from the audit; the log names the alarm";
        let reason = Reason::new(LOST, format!("some are missing from vote_audit, alarm {alarms}"));
        self.note(|state| state.checks.acknowledged_votes.set(false, reason));
    }

    /// What was found out about the queue; the log has the details of each warning. `delivery_limit_near`:
    /// a vote has come back so often that the queue is about to drop it.
    pub fn queue_examined(
        &self,
        route: DeadLetterRoute,
        warnings: Vec<&'static str>,
        delivery_limit_near: bool,
    ) {
        let rabbitmq = &mut self.state().checks.rabbitmq;
        rabbitmq.dead_letter_route = route;
        rabbitmq.warnings = warnings;
        rabbitmq.delivery_limit_near = delivery_limit_near;
    }

    pub fn delivery_limit_near(&self) -> bool {
        self.state().checks.rabbitmq.delivery_limit_near
    }

    pub fn dead_letter_route(&self) -> DeadLetterRoute {
        self.state().checks.rabbitmq.dead_letter_route
    }

    /// Whether it was ready to count votes once.
    pub fn has_started(&self) -> bool {
        self.state().started
    }

    /// The state in one line for people, worst first. `None` while nothing has failed yet and the first
    /// connections are being opened.
    pub fn summary(&self) -> Option<String> {
        let State { checks, started, failed, .. } = &*self.state();
        if !(*started || *failed) {
            return None;
        }
        let sides =
            [checks.postgres.problem("PostgreSQL"), checks.rabbitmq.check.problem("RabbitMQ")];
        let problems: Vec<String> = sides.into_iter().flatten().collect();
        let lost = checks.acknowledged_votes.problem("acknowledged votes");
        Some(match (&problems[..], lost) {
            ([], None) => "counting votes".to_owned(),
            ([], Some(lost)) => format!("counting votes; {lost}"),
            (problems, _) => format!("not counting votes; {}", problems.join("; ")),
        })
    }

    /// Receives a notification of every update from now on.
    pub fn notes(&self) -> watch::Receiver<()> {
        self.noted.subscribe()
    }

    pub fn report(&self) -> Report {
        let mut checks = self.state().checks.clone();
        let sides = [&mut checks.rabbitmq.check, &mut checks.postgres];
        for (side, (number, count)) in sides.into_iter().zip(self.addresses_in_use()) {
            side.address = (count > 1).then(|| format!("{number} of {count}"));
        }
        let ready = checks.sides_are_ok() && checks.acknowledged_votes.ok;
        Report { status: if ready { READY } else { "unavailable" }, checks }
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
        self.status == READY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> Health {
        let health = Health::default();
        health.rabbitmq_consuming();
        assert!(!health.report().is_ready() && !health.has_started());
        health.postgres_answers();
        assert!(health.report().is_ready() && health.has_started());
        health
    }

    #[test]
    fn ready_only_when_both_sides_are() {
        let health = ready();
        health.rabbitmq_failed("connection refused");
        assert_eq!(health.report().status, "unavailable");
        assert!(health.has_started(), "a start is not taken back");
    }

    #[test]
    fn lost_acknowledged_votes_make_unready_until_they_are_there_again() {
        let health = ready();
        health.acknowledged_votes_lost("0a1b2c3d");
        assert!(!health.report().is_ready());
        let summary = health.summary().unwrap_or_default();
        assert!(summary.starts_with("counting votes; acknowledged votes: some"), "{summary}");
        health.acknowledged_votes_present();
        assert!(health.report().is_ready());
    }

    #[test]
    fn an_answering_database_does_not_hide_an_open_breaker() {
        let health = ready();
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
    fn since_moves_only_when_the_state_does() {
        let health = Health::default();
        health.postgres_failed("one");
        let since = health.report().checks.postgres.since;
        health.postgres_failed("two");
        let check = health.report().checks.postgres;
        assert_eq!((check.since, check.reason), (since, "two".into()));
    }
}
