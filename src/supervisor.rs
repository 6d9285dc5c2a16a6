//! Keeps the pipeline on a session: opens one, runs the chain on it, and decides from how it ended
//! what comes next.
//!
//! ```text
//!            ┌──────────── session lost: back off ────────────┐
//!            ▼                                                │
//! open ─ consume (flowing) ── paused: give back once ──► breaker open ─ probe write, 1 → 30 s
//!            ▲                                                │ takes writes
//!            └─ a batch committed, ─ consume (trial) ◄────────┘
//!               or the queue is empty     │
//!                                        │ fails again: wait the longest
//!                                        └────────► breaker open
//! ```
//!
//! Generic over broker and store, like the pipeline.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::pipeline::{self, Acknowledged, Failure, IsolationBudget, Limits, Mode, Tools};
use crate::ports::{Broker, Fault, OpenError, Session, Store};
use crate::retry::{Backoff, Jitter};
use crate::telemetry::{BreakerState, Health, Instruments, Reason, SessionState, seconds};

/// First delay before a session is opened anew, and before a store that failed is probed.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
/// Longest such delay.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What is shown while the breaker is open.
const TAKES_NO_VOTES: &str = "PostgreSQL takes no votes";

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

/// The store's breaker.
enum Breaker {
    Closed,
    /// Nothing is consumed until a probe write succeeds; then one batch at a time, until one commits or
    /// the queue proves empty. Not ready since then.
    Open(Instant),
}

impl Breaker {
    /// Open, since when it first was.
    fn opened(self) -> Self {
        match self {
            Self::Closed => Self::Open(Instant::now()),
            Self::Open(since) => Self::Open(since),
        }
    }
}

impl<B: Broker, T: Store> Supervisor<'_, B, T> {
    /// Counts votes until `stop`.
    ///
    /// # Errors
    /// [`OpenError`] when the broker refuses the very first session for a reason that waiting
    /// does not mend.
    pub async fn run(&self, stop: &CancellationToken) -> Result<(), OpenError> {
        let budget = IsolationBudget::default();
        let mut breaker = Breaker::Closed;
        let mut probing = Backoff::new(SHORTEST_WAIT, LONGEST_WAIT);
        let mut reopening = Backoff::new(SHORTEST_WAIT, LONGEST_WAIT);
        let mut ever_opened = false;

        while !stop.is_cancelled() {
            let mode = match breaker {
                Breaker::Closed => Mode::Flowing,
                Breaker::Open(since) => {
                    if !self.wait_for_store(since, &mut probing, stop).await {
                        break;
                    }
                    Mode::Trial
                }
            };
            self.instruments.session(SessionState::Connecting);
            let Some(mut session) = self.open(mode, &mut reopening, &mut ever_opened, stop).await?
            else {
                break;
            };
            let opened = Instant::now();
            let ended = self.consume(&mut session, mode, &budget, stop).await;
            // An empty queue gives nothing to ack: a session that lasted was of use, too.
            if ended.acked || opened.elapsed() > LONGEST_WAIT {
                reopening.reset();
            }
            if let Breaker::Open(since) = breaker
                && (ended.committed || ended.empty)
            {
                let elapsed = seconds(since.elapsed());
                let empty = ended.empty;
                tracing::info!(elapsed, empty, "PostgreSQL takes votes again");
                self.health.breaker_closed("counting");
                self.instruments.breaker(BreakerState::Closed);
                probing.reset();
                breaker = Breaker::Closed;
            }
            match ended.failure {
                None => {
                    if let Err(lost) = session.close().await {
                        tracing::warn!("the session did not close cleanly: {lost}");
                    }
                }
                Some(Failure::Lost(lost)) => {
                    self.instruments.broker_fault();
                    self.instruments.session(SessionState::Connecting);
                    self.health.rabbitmq_failed(&lost);
                    tracing::warn!("session with RabbitMQ lost, opening a new one: {lost}");
                    drop(session);
                    self.pause(reopening.next_delay(), stop).await;
                }
                Some(Failure::Paused(fault)) => {
                    self.trip(&fault, mode, &mut probing);
                    breaker = breaker.opened();
                    self.give_back(session, ended.held).await;
                }
                Some(Failure::Undeliverable(lost)) => {
                    self.instruments.broker_fault();
                    let phrase = "no dead letter can be published";
                    self.health.rabbitmq_failed(Reason::new(phrase, format!("{phrase}: {lost}")));
                    tracing::error!(
                        "a vote that the database refuses can't be dead-lettered, and may not be \
                         lost: {lost}; what is held goes back to the queue, trying again later"
                    );
                    // Each try gives everything held back once more: one batch, seldom.
                    probing.jump_to_cap();
                    breaker = breaker.opened();
                    self.give_back(session, ended.held).await;
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
        reopening: &mut Backoff,
        ever_opened: &mut bool,
        stop: &CancellationToken,
    ) -> Result<Option<B::Session>, OpenError> {
        let began = Instant::now();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let opened = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(None),
                opened = self.broker.open(self.prefetch(mode)) => opened,
            };
            match opened {
                Ok(session) => {
                    *ever_opened = true;
                    self.health.rabbitmq_consuming();
                    self.instruments.session(SessionState::Consuming);
                    let elapsed = seconds(began.elapsed());
                    let prefetch = self.prefetch(mode);
                    tracing::info!(prefetch, ?mode, attempt, elapsed, "consuming");
                    return Ok(Some(session));
                }
                Err(error) if error.is_fatal_at_start() && !*ever_opened => return Err(error),
                Err(error) => {
                    self.instruments.broker_fault();
                    self.health.rabbitmq_failed(&error);
                    let elapsed = seconds(began.elapsed());
                    tracing::warn!(attempt, elapsed, "no session with RabbitMQ: {error}");
                    self.pause(reopening.next_delay(), stop).await;
                }
            }
        }
    }

    /// Gives back, once, all that is held; nothing is taken until the store takes votes.
    async fn give_back(&self, session: B::Session, held: usize) {
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
            limits: if mode == Mode::Trial { &one_batch } else { self.limits },
            budget,
            jitter: self.jitter,
            instruments: self.instruments,
            acknowledged: self.acknowledged,
        };
        pipeline::run(session, &tools, mode, stop).await
    }

    /// In a trial no more is held than one batch, so that no more is given back if it fails.
    fn prefetch(&self, mode: Mode) -> u16 {
        match mode {
            Mode::Flowing => self.prefetch,
            Mode::Trial => u16::try_from(self.limits.batch_size).unwrap_or(self.prefetch),
        }
    }

    fn trip(&self, fault: &Fault, mode: Mode, probing: &mut Backoff) {
        tracing::error!(
            class = fault.class.as_str(),
            sqlstate = fault.sqlstate,
            "{TAKES_NO_VOTES}: {fault}; what is held goes back to the queue, consuming stops until a \
             write succeeds"
        );
        self.health.breaker_open(Reason::of_fault(TAKES_NO_VOTES, fault));
        self.health.rabbitmq_failed("not consuming while PostgreSQL takes no votes");
        if mode == Mode::Trial {
            // The probe does not meet this fault, a trigger on one law say: no quick loops.
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
        loop {
            attempt += 1;
            self.pause(probing.next_delay(), stop).await;
            let probed = tokio::select! {
                biased;
                () = stop.cancelled() => return false,
                probed = self.store.probe() => probed,
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
                    self.health.breaker_open(Reason::of_fault(TAKES_NO_VOTES, &fault));
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
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = tokio::time::sleep(self.jitter.stretch(delay)) => {}
        }
    }
}

#[cfg(test)]
mod tests;
