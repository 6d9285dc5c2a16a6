//! Keeps the pipeline on a session: opens one, runs the chain on it, and decides from how it ended
//! what comes next.
//!
//! ```text
//!            ┌──────────── session lost: back off ────────────┐
//!            ▼                                                │
//! open ─ consume (flowing) ── paused: requeue once ──► breaker open ─ probe write, 1 → 30 s
//!            ▲                                                │ takes writes
//!            └─ a batch committed, ─ consume (half-open) ◄────┘
//!               or the queue is empty     │
//!                                        │ fails again: longest delay
//!                                        └────────► breaker open
//! ```
//!
//! Generic over broker and store, like the pipeline.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::counting::pipeline::{
    self, Acknowledged, Failure, IsolationBudget, Limits, Mode, Tools,
};
use crate::model::ports::{Broker, BrokerError, Fault, OpenError, Session, Store};
use crate::platform::retry::{Backoff, Jitter};
use crate::platform::telemetry::{
    BreakerState, Health, Instruments, Reason, SessionState, seconds,
};

/// First delay before another session is opened, and before a store that failed is probed.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
/// Longest such delay.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Longest delay after a probe write that failed: it requeues no votes, and after a failover the new primary takes
/// writes within seconds, behind another address or behind the same one.
const LONGEST_PROBE_WAIT: Duration = Duration::from_secs(5);

/// Shown by health while the breaker is open.
const COMMITS_NO_VOTES: &str = "PostgreSQL does not commit votes";

/// What the supervisor works with, for as long as the process lives.
pub struct Supervisor<'a, B, T> {
    pub broker: &'a B,
    pub store: &'a T,
    pub limits: &'a Limits,
    /// Unsettled deliveries at most, when all is well.
    pub prefetch: u16,
    pub jitter: &'a Jitter,
    pub instruments: &'a Instruments,
    pub health: &'a Health,
    pub acknowledged: &'a Acknowledged,
}

/// The sessions so far.
struct Sessions {
    backoff: Backoff,
    /// One was opened.
    opened: bool,
    /// One was opened and lost, and none was opened since.
    lost: bool,
}

impl<B: Broker, T: Store> Supervisor<'_, B, T> {
    /// Counts votes until `stop`.
    ///
    /// # Errors
    /// [`OpenError`] when the broker refuses the very first session and a retry would not help.
    pub async fn run(&self, stop: &CancellationToken) -> Result<(), OpenError> {
        let budget = IsolationBudget::default();
        let mut probing = Backoff::new(SHORTEST_WAIT, LONGEST_WAIT);
        let backoff = Backoff::new(SHORTEST_WAIT, LONGEST_WAIT);
        let mut sessions = Sessions { backoff, opened: false, lost: false };
        // Since when the breaker is open: nothing is consumed until a probe write succeeds; then one
        // batch at a time, until one commits or the queue proves empty. Not ready since then.
        let mut open_since: Option<Instant> = None;

        while !stop.is_cancelled() {
            let mode = match open_since {
                None => Mode::Flowing,
                Some(since) => {
                    if !self.wait_for_store(since, &mut probing, stop).await {
                        break;
                    }
                    Mode::HalfOpen
                }
            };
            self.instruments.session(SessionState::Connecting);
            let Some(mut session) = self.open(mode, &mut sessions, stop).await? else { break };
            let opened = Instant::now();
            let ended = self.consume(&mut session, mode, &budget, stop).await;
            // On an empty queue there is nothing to ack: a session that lasted counts as success, too.
            if ended.acked || opened.elapsed() > LONGEST_WAIT {
                sessions.backoff.reset();
            }
            if let Some(since) = open_since.take_if(|_| ended.committed || ended.empty) {
                let elapsed = seconds(since.elapsed());
                let empty = ended.empty;
                tracing::info!(elapsed, empty, "PostgreSQL commits votes again");
                self.health.breaker_closed("counting");
                self.instruments.breaker(BreakerState::Closed);
                probing.reset();
            }
            match ended.failure {
                None => {
                    if let Err(lost) = session.close().await {
                        tracing::warn!("the session did not close cleanly: {lost}");
                    }
                }
                Some(Failure::Lost(lost)) => {
                    self.broker_failed(&lost, &mut sessions);
                    if matches!(lost, BrokerError::ConsumerTimeout(_)) {
                        self.instruments.consumer_timed_out();
                    }
                    self.instruments.session(SessionState::Connecting);
                    tracing::warn!(
                        ended.held,
                        "session with RabbitMQ lost, opening a new one: {lost}"
                    );
                    drop(session);
                    self.pause(sessions.backoff.next_delay(), stop).await;
                }
                Some(Failure::Paused(fault)) => {
                    self.trip(&fault, mode, &mut probing);
                    open_since.get_or_insert_with(Instant::now);
                    self.requeue(session, ended.held).await;
                }
                Some(Failure::DeadLetterFailed(lost)) => {
                    let phrase = "no dead letter can be published";
                    let reason = Reason::new(phrase, format!("{phrase}: {lost}"));
                    self.broker_failed(reason, &mut sessions);
                    tracing::error!(
                        "a vote that the database refuses cannot be dead-lettered, and must not be \
                         lost: {lost}; all unacked deliveries are requeued, to be retried later"
                    );
                    // Each try requeues everything held once more, so tries are rare.
                    probing.jump_to_cap();
                    open_since.get_or_insert_with(Instant::now);
                    self.requeue(session, ended.held).await;
                }
            }
        }
        self.health.rabbitmq_failed("stopping");
        self.instruments.session(SessionState::Stopped);
        Ok(())
    }

    /// Opens a session, however long it takes. `None` when `stop` came first.
    async fn open(
        &self,
        mode: Mode,
        sessions: &mut Sessions,
        stop: &CancellationToken,
    ) -> Result<Option<B::Session>, OpenError> {
        let began = Instant::now();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let opening = self.broker.open(self.prefetch(mode));
            let Some(opened) = stop.run_until_cancelled(opening).await else { return Ok(None) };
            match opened {
                Ok(session) => {
                    sessions.opened = true;
                    if std::mem::take(&mut sessions.lost) {
                        self.instruments.broker_reconnected();
                    }
                    self.health.rabbitmq_consuming();
                    self.instruments.session(SessionState::Consuming);
                    let elapsed = seconds(began.elapsed());
                    let prefetch = self.prefetch(mode);
                    let address = session.address();
                    tracing::info!(prefetch, ?mode, attempt, elapsed, address, "consuming");
                    return Ok(Some(session));
                }
                Err(error) if error.is_fatal_at_start() && !sessions.opened => return Err(error),
                Err(error) => {
                    self.broker_failed(&error, sessions);
                    let elapsed = seconds(began.elapsed());
                    tracing::warn!(attempt, elapsed, "no session with RabbitMQ: {error}");
                    self.pause(sessions.backoff.next_delay(), stop).await;
                }
            }
        }
    }

    fn broker_failed(&self, reason: impl Into<Reason>, sessions: &mut Sessions) {
        sessions.lost = sessions.opened;
        self.instruments.broker_fault();
        self.health.rabbitmq_failed(reason);
    }

    /// Requeues, once, all unacked deliveries; nothing is consumed until the store takes votes.
    async fn requeue(&self, session: B::Session, held: usize) {
        self.instruments.breaker(BreakerState::Open);
        self.instruments.session(SessionState::Waiting);
        self.instruments.requeued(held);
        session.requeue().await;
    }

    async fn consume(
        &self,
        session: &mut B::Session,
        mode: Mode,
        budget: &IsolationBudget,
        stop: &CancellationToken,
    ) -> pipeline::Ended {
        let one_batch = Limits { in_flight: 1, ..self.limits.clone() };
        let tools = Tools {
            store: self.store,
            dead_letters: self.broker,
            limits: if mode == Mode::HalfOpen { &one_batch } else { self.limits },
            budget,
            jitter: self.jitter,
            instruments: self.instruments,
            health: self.health,
            acknowledged: self.acknowledged,
        };
        pipeline::run(session, &tools, mode, stop).await
    }

    /// Half-open, no more than one batch is held, so that no more is requeued if it fails.
    fn prefetch(&self, mode: Mode) -> u16 {
        match mode {
            Mode::Flowing => self.prefetch,
            Mode::HalfOpen => u16::try_from(self.limits.batch_size).unwrap_or(self.prefetch),
        }
    }

    fn trip(&self, fault: &Fault, mode: Mode, probing: &mut Backoff) {
        tracing::error!(
            class = fault.class.as_str(),
            sqlstate = fault.sqlstate,
            "{COMMITS_NO_VOTES}: {fault}; all unacked deliveries are requeued, consuming stops until a \
             write succeeds"
        );
        self.health.breaker_open(Reason::of_fault(COMMITS_NO_VOTES, fault));
        self.health.rabbitmq_failed("not consuming while PostgreSQL does not commit votes");
        if mode == Mode::HalfOpen {
            // The probe does not meet this fault, for example a trigger on one law: no quick loops.
            probing.jump_to_cap();
        }
    }

    /// Waits until a probe write succeeds; `false` when `stop` came first.
    async fn wait_for_store(
        &self,
        since: Instant,
        probing: &mut Backoff,
        stop: &CancellationToken,
    ) -> bool {
        let mut attempt = 0;
        let mut delay = probing.next_delay();
        loop {
            attempt += 1;
            self.pause(delay, stop).await;
            delay = probing.next_delay().min(LONGEST_PROBE_WAIT);
            let Some(probed) = stop.run_until_cancelled(self.store.probe()).await else {
                return false;
            };
            match probed {
                Ok(()) => {
                    self.health.breaker_open(
                        "half-open: a probe write succeeded, no batch has been committed since",
                    );
                    self.instruments.breaker(BreakerState::HalfOpen);
                    return true;
                }
                Err(fault) => {
                    self.instruments.database_fault(fault.class);
                    self.health.breaker_open(Reason::of_fault(COMMITS_NO_VOTES, &fault));
                    tracing::warn!(
                        attempt,
                        sqlstate = fault.sqlstate,
                        elapsed = seconds(since.elapsed()),
                        "probe write failed: {fault}"
                    );
                }
            }
        }
    }

    async fn pause(&self, delay: Duration, stop: &CancellationToken) {
        stop.run_until_cancelled(tokio::time::sleep(self.jitter.stretch(delay))).await;
    }
}

#[cfg(test)]
mod tests;
