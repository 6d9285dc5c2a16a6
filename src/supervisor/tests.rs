//! When sessions are opened, on a virtual clock, with a broker that has no votes.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::{Arc, Mutex};

use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use tokio::time::Instant;

use super::*;
use crate::pipeline::RetryPolicy;
use crate::ports::{Channel, Counted, DeadLetter, DeadLetters, Delivery, DeliveryTag, Lost, Votes};
use crate::telemetry::Metrics;

/// Gives sessions that are lost after some time, or refuses them, and then gives one that stays.
struct Idle {
    script: Mutex<VecDeque<Result<Duration, OpenError>>>,
    opened: Mutex<Vec<Instant>>,
}

struct IdleSession(Option<Duration>);

struct Nothing;

impl Channel for Nothing {
    async fn ack_up_to(&self, _: DeliveryTag) -> Result<(), Lost> {
        Ok(())
    }

    async fn reject(&self, _: DeliveryTag) -> Result<(), Lost> {
        Ok(())
    }

    async fn cancel(&self) -> Result<(), Lost> {
        Ok(())
    }
}

impl Session for IdleSession {
    type Channel = Nothing;
    type Deliveries = BoxStream<'static, Result<Delivery, Lost>>;

    fn split(&mut self) -> (&Nothing, Self::Deliveries) {
        let deliveries = match self.0 {
            None => pending().into_stream().boxed(),
            Some(life) => stream::once(async move {
                tokio::time::sleep(life).await;
                Err(Lost("over".to_owned()))
            })
            .boxed(),
        };
        (&Nothing, deliveries)
    }

    async fn requeue(self) {}

    async fn close(self) -> Result<(), Lost> {
        Ok(())
    }
}

impl Broker for Idle {
    type Session = IdleSession;

    async fn open(&self, _prefetch: u16) -> Result<IdleSession, OpenError> {
        self.opened.lock().expect("no panic while held").push(Instant::now());
        let next = self.script.lock().expect("no panic while held").pop_front();
        next.transpose().map(IdleSession)
    }
}

impl DeadLetters for Idle {
    async fn publish(&self, _: &DeadLetter) -> Result<(), Lost> {
        Ok(())
    }
}

impl Store for Nothing {
    async fn count(&self, _: Votes) -> Result<Counted, Fault> {
        Ok(Counted::default())
    }

    async fn probe(&self) -> Result<(), Fault> {
        Ok(())
    }
}

/// Runs a supervisor through `script` until `long_enough` has passed: how it ended, and when it
/// opened sessions, or tried to.
async fn supervise(
    script: impl IntoIterator<Item = Result<Duration, OpenError>>,
    long_enough: Duration,
) -> (Result<(), OpenError>, Vec<Instant>) {
    let broker =
        Idle { script: Mutex::new(script.into_iter().collect()), opened: Mutex::default() };
    let limits = Limits {
        batch_size: 10,
        batch_timeout: Duration::from_secs(1),
        in_flight: 1,
        max_message_bytes: 1_024,
        retry: RetryPolicy { max_attempts: 3, delay: Duration::from_secs(1) },
    };
    let health = Arc::new(Health::default());
    let metrics = Metrics::new(1, Arc::clone(&health)).expect("metrics");
    let supervisor = Supervisor {
        broker: &broker,
        store: &Nothing,
        limits: &limits,
        prefetch: 10,
        jitter: &Jitter::seeded(1),
        instruments: &metrics.instruments,
        health: &health,
    };
    let stop = CancellationToken::new();
    let stopping = async {
        tokio::time::sleep(long_enough).await;
        stop.cancel();
    };
    let (ended, ()) = futures::join!(supervisor.run(&stop), stopping);
    (ended, broker.opened.into_inner().expect("no panic while held"))
}

/// Whole seconds from the loss of each session to the opening of the next.
async fn waits(lives: &[u64]) -> Vec<u64> {
    let lives: Vec<Duration> = lives.iter().copied().map(Duration::from_secs).collect();
    let long_enough = lives.iter().sum::<Duration>() + LONGEST_WAIT * 2 * lives.len() as u32;
    let (ended, opened) = supervise(lives.iter().copied().map(Ok), long_enough).await;
    ended.expect("never refused");
    let lost = opened.iter().zip(&lives).map(|(opened, life)| *opened + *life);
    lost.zip(&opened[1..]).map(|(lost, next)| (*next - lost).as_secs()).collect()
}

/// The nominal delay and up to a quarter on top.
fn assert_delays(waits: &[u64], nominal: &[u64]) {
    assert_eq!(waits.len(), nominal.len(), "{waits:?}");
    for (wait, nominal) in waits.iter().zip(nominal) {
        assert!((*nominal..=nominal * 5 / 4).contains(wait), "{waits:?}, not {nominal}");
    }
}

#[tokio::test(start_paused = true)]
async fn sessions_that_end_at_once_are_opened_ever_further_apart() {
    assert_delays(&waits(&[0, 0, 0, 0, 0, 0, 0]).await, &[1, 2, 4, 8, 16, 30, 30]);
}

/// A queue may be empty for hours: a session without an ack was of use all the same.
#[tokio::test(start_paused = true)]
async fn a_session_that_lasted_starts_the_backoff_over() {
    assert_delays(&waits(&[0, 0, 0, 3_600, 0]).await, &[1, 2, 4, 1, 2]);
}

/// Semantics of a start: what waiting does not mend ends it, and later on somebody may be mending
/// the same.
#[tokio::test(start_paused = true)]
async fn a_refusal_is_fatal_before_the_first_session_and_waited_for_after_it() {
    let minutes = Duration::from_secs(600);
    let refused = "refused".to_owned();
    for fatal in
        [OpenError::Credentials(refused.clone()), OpenError::Configuration(refused.clone())]
    {
        let (ended, opened) = supervise([Err(fatal.clone())], minutes).await;
        assert_eq!((ended, opened.len()), (Err(fatal.clone()), 1));
        let later = [Ok(Duration::ZERO), Err(fatal.clone()), Err(fatal)];
        let (ended, opened) = supervise(later, minutes).await;
        assert_eq!((ended, opened.len()), (Ok(()), 4));
    }
    let (ended, opened) = supervise([Err(OpenError::Unavailable(refused))], minutes).await;
    assert_eq!((ended, opened.len()), (Ok(()), 2));
}
