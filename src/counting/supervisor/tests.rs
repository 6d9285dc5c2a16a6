//! When sessions are opened, and what for, on a virtual clock.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::time::Instant;

use super::*;
use crate::counting::pipeline::RetryPolicy;
use crate::model::ports::{
    BrokerError, Channel, Class, Counted, DeadLetter, DeadLetters, Delivery, DeliveryTag, Votes,
};
use crate::platform::config::ShownTotals;
use crate::platform::telemetry::Metrics;

/// Gives sessions that are lost after some time, or refuses them, and then gives one that stays.
#[derive(Default)]
struct Scripted {
    script: Mutex<VecDeque<Result<Duration, OpenError>>>,
    /// When sessions were opened, and with which prefetch.
    opened: Mutex<Vec<(Instant, u16)>>,
    /// What each of them delivers at once.
    deliveries: Vec<Delivery>,
    /// The first alone delivers anything.
    once: bool,
    /// Why sessions end, if not by a lost connection.
    end: Option<BrokerError>,
}

struct ScriptedSession {
    life: Option<Duration>,
    deliveries: Vec<Delivery>,
    end: BrokerError,
}

struct Nothing;

impl Channel for Nothing {
    async fn ack_up_to(&self, _: DeliveryTag) -> Result<(), BrokerError> {
        Ok(())
    }

    async fn reject(&self, _: DeliveryTag) -> Result<(), BrokerError> {
        Ok(())
    }

    async fn cancel(&self) -> Result<(), BrokerError> {
        Ok(())
    }
}

impl Session for ScriptedSession {
    type Channel = Nothing;
    type Deliveries = BoxStream<'static, Result<Delivery, BrokerError>>;

    fn split(&mut self) -> (&Nothing, Self::Deliveries) {
        let (life, end) = (self.life, self.end.clone());
        let end = stream::once(async move {
            match life {
                Some(life) => tokio::time::sleep(life).await,
                None => pending().await,
            }
            Err(end)
        });
        let deliveries = std::mem::take(&mut self.deliveries);
        (&Nothing, stream::iter(deliveries).map(Ok).chain(end).boxed())
    }

    async fn requeue(self) {}

    async fn close(self) -> Result<(), BrokerError> {
        Ok(())
    }
}

impl Broker for Scripted {
    type Session = ScriptedSession;

    async fn open(&self, prefetch: u16) -> Result<ScriptedSession, OpenError> {
        let mut opened = self.opened.lock().expect("no panic while held");
        opened.push((Instant::now(), prefetch));
        let silent = self.once && opened.len() > 1;
        drop(opened);
        let deliveries = if silent { Vec::new() } else { self.deliveries.clone() };
        let next = self.script.lock().expect("no panic while held").pop_front();
        let life = next.transpose()?;
        let end = self.end.clone();
        let end = end.unwrap_or_else(|| BrokerError::disconnected("consume", "over"));
        Ok(ScriptedSession { life, deliveries, end })
    }
}

impl DeadLetters for Scripted {
    async fn publish(&self, _: &DeadLetter) -> Result<(), BrokerError> {
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

/// Takes a probe write and no batch, as with a trigger that the probe does not meet.
#[derive(Default)]
struct Refusing {
    running: AtomicUsize,
    /// For each batch when it came, and how many were tried at that time.
    tried: Mutex<Vec<(Instant, usize)>>,
}

impl Store for Refusing {
    async fn count(&self, _: Votes) -> Result<Counted, Fault> {
        let running = 1 + self.running.fetch_add(1, Ordering::Relaxed);
        self.tried.lock().expect("no panic while held").push((Instant::now(), running));
        tokio::time::sleep(Duration::from_millis(10)).await;
        self.running.fetch_sub(1, Ordering::Relaxed);
        Err(Fault { class: Class::Pause, sqlstate: None, message: "a trigger".to_owned() })
    }

    async fn probe(&self) -> Result<(), Fault> {
        Ok(())
    }
}

const BATCH_SIZE: u16 = 10;
const PREFETCH: u16 = 40;

const LIMITS: Limits = Limits {
    batch_size: BATCH_SIZE as usize,
    batch_timeout: Duration::from_secs(1),
    batch_deadline: Duration::from_secs(900),
    in_flight: 4,
    max_message_bytes: 1_024,
    cell: None,
    most_acked: 500,
    plain_after: 64,
    retry: RetryPolicy { max_attempts: 3, delay: Duration::from_secs(1) },
};

fn vote(tag: DeliveryTag) -> Delivery {
    let vote = format!(
        r#"{{"vote_hash":"h{tag}","citizen_id":"c","law_id":"l","choice":"oui","timestamp":"2025-11-13T08:00:00Z"}}"#
    );
    Delivery::new(tag, vote.into_bytes())
}

/// Runs a supervisor until `long_enough` has passed.
async fn supervise(
    broker: &Scripted,
    store: &impl Store,
    long_enough: Duration,
) -> Result<(), OpenError> {
    supervise_with(broker, store, long_enough, &Arc::default()).await.0
}

async fn supervise_with(
    broker: &Scripted,
    store: &impl Store,
    long_enough: Duration,
    health: &Arc<Health>,
) -> (Result<(), OpenError>, Metrics) {
    let metrics = Metrics::new(1, ShownTotals::Full, Arc::clone(health), None).expect("metrics");
    let supervisor = Supervisor {
        broker,
        store,
        limits: &LIMITS,
        prefetch: PREFETCH,
        jitter: &Jitter::seeded(1),
        instruments: &metrics.instruments,
        health,
        acknowledged: &Acknowledged::default(),
    };
    let stop = CancellationToken::new();
    let stopping = async {
        tokio::time::sleep(long_enough).await;
        stop.cancel();
    };
    let (ended, ()) = futures::join!(supervisor.run(&stop), stopping);
    (ended, metrics)
}

/// How a supervisor ended that met these openings, and when it opened sessions, or tried to.
async fn open_by(
    script: impl IntoIterator<Item = Result<Duration, OpenError>>,
    long_enough: Duration,
) -> (Result<(), OpenError>, Vec<Instant>) {
    let script = Mutex::new(script.into_iter().collect());
    let broker = Scripted { script, ..Scripted::default() };
    let ended = supervise(&broker, &Nothing, long_enough).await;
    let opened = broker.opened.into_inner().expect("no panic while held");
    (ended, opened.into_iter().map(|(at, _)| at).collect())
}

/// Whole seconds from the loss of each session to the opening of the next.
async fn waits(lives: &[u64]) -> Vec<u64> {
    let lives: Vec<Duration> = lives.iter().copied().map(Duration::from_secs).collect();
    let long_enough = lives.iter().sum::<Duration>() + LONGEST_WAIT * 2 * lives.len() as u32;
    let (ended, opened) = open_by(lives.iter().copied().map(Ok), long_enough).await;
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

/// Semantics of a start: what a retry cannot help ends it, and later on an operator may be fixing
/// the same.
#[tokio::test(start_paused = true)]
async fn a_refusal_is_fatal_before_the_first_session_and_waited_for_after_it() {
    let minutes = Duration::from_secs(600);
    let refused = "refused".to_owned();
    for fatal in
        [OpenError::Credentials(refused.clone()), OpenError::Configuration(refused.clone())]
    {
        let (ended, opened) = open_by([Err(fatal.clone())], minutes).await;
        assert_eq!((ended, opened.len()), (Err(fatal.clone()), 1));
        let later = [Ok(Duration::ZERO), Err(fatal.clone()), Err(fatal)];
        let (ended, opened) = open_by(later, minutes).await;
        assert_eq!((ended, opened.len()), (Ok(()), 4));
    }
    let occupied = OpenError::Occupied { phrase: "a limit is reached", message: refused.clone() };
    for waited_for in [OpenError::Unavailable(refused), occupied] {
        let (ended, opened) = open_by([Err(waited_for)], minutes).await;
        assert_eq!((ended, opened.len()), (Ok(()), 2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_connection_is_no_reconnect_and_each_later_one_is_one() {
    let away = || Err(OpenError::Unavailable("refused".to_owned()));
    for (script, reconnects) in [
        (vec![away(), away()], 0),
        (vec![away(), Ok(Duration::ZERO), away(), away()], 1),
        (vec![Ok(Duration::ZERO), Ok(Duration::ZERO)], 2),
    ] {
        let script = Mutex::new(script.into_iter().collect());
        let broker = Scripted { script, ..Scripted::default() };
        let minutes = Duration::from_secs(600);
        let (ended, metrics) = supervise_with(&broker, &Nothing, minutes, &Arc::default()).await;
        ended.expect("no refusal is fatal");
        let scrape = metrics.scrape().expect("encodable");
        let line = scrape.lines().find(|line| {
            line.starts_with("reconnects_total{") && line.contains("side=\"rabbitmq\"")
        });
        let expected = format!(" {reconnects}");
        assert!(line.is_some_and(|line| line.ends_with(&expected)), "{reconnects}: {line:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_consumer_timeout_is_counted_and_shown_as_what_it_is() {
    let end = Some(BrokerError::ConsumerTimeout("held for 1800 s".to_owned()));
    let script = Mutex::new([Ok(Duration::ZERO)].into());
    let broker = Scripted { script, end, ..Scripted::default() };
    let health = Arc::default();
    let half_a_second = Duration::from_millis(500);
    let (_, metrics) = supervise_with(&broker, &Nothing, half_a_second, &health).await;
    let scrape = metrics.scrape().expect("encodable");
    assert!(scrape.lines().any(|line| line == "consumer_timeouts_total 1"), "{scrape}");
}

/// Semantics, section 6: one batch at a time until one commits, and the longest wait when the same
/// votes fail again.
#[tokio::test(start_paused = true)]
async fn what_fails_again_is_tried_batch_by_batch_and_seldom() {
    let deliveries = (1..=u64::from(PREFETCH)).map(vote);
    let broker = Scripted { deliveries: deliveries.collect(), ..Scripted::default() };
    let store = Refusing::default();
    supervise(&broker, &store, Duration::from_secs(90)).await.expect("never refused");

    let opened = broker.opened.into_inner().expect("no panic while held");
    let waits: Vec<u64> = opened.windows(2).map(|two| (two[1].0 - two[0].0).as_secs()).collect();
    assert_delays(&waits, &[1, 30, 30]);
    let prefetches: Vec<u16> = opened.iter().map(|(_, prefetch)| *prefetch).collect();
    assert_eq!(prefetches, [PREFETCH, BATCH_SIZE, BATCH_SIZE, BATCH_SIZE]);
    let tried = store.tried.into_inner().expect("no panic while held");
    let trials = opened[1].0;
    assert!(tried.iter().any(|(at, running)| *at < trials && *running == 4), "flowing: {tried:?}");
    assert!(tried.iter().all(|(at, running)| *at < trials || *running == 1), "trial: {tried:?}");
}

/// Takes nothing, and says when it was asked.
#[derive(Default)]
struct Away(Mutex<Vec<Instant>>);

impl Store for Away {
    async fn count(&self, _: Votes) -> Result<Counted, Fault> {
        self.probe().await.map(|()| Counted::default())
    }

    async fn probe(&self) -> Result<(), Fault> {
        self.0.lock().expect("no panic while held").push(Instant::now());
        Err(Fault { class: Class::Pause, sqlstate: None, message: "away".to_owned() })
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_is_probed_every_5_seconds_at_least() {
    let broker = Scripted { deliveries: vec![vote(1)], ..Scripted::default() };
    let store = Away::default();
    supervise(&broker, &store, Duration::from_secs(25)).await.expect("never refused");
    let asked = store.0.into_inner().expect("no panic while held");
    let waits: Vec<u64> = asked.windows(2).map(|two| (two[1] - two[0]).as_secs()).collect();
    assert_delays(&waits, &[1, 2, 4, 5, 5]);
}

/// Semantics, section 6: a probe write proves nothing about the votes that failed.
#[tokio::test(start_paused = true)]
async fn half_open_is_not_ready_until_a_batch_commits_or_the_queue_proves_empty() {
    let broker = Scripted { deliveries: vec![vote(1)], ..Scripted::default() };
    let (store, health) = (Refusing::default(), Arc::new(Health::default()));
    // A row lock on one law, say: each batch fails, and the probe succeeds.
    let watching = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        for _ in 0..110 {
            health.postgres_answers();
            let report = health.report();
            assert!(!report.is_ready(), "{report:?}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let running = supervise_with(&broker, &store, Duration::from_secs(120), &health);
    futures::join!(running, watching).0.0.expect("never refused");

    // One batch fails, and from then on nothing is delivered: other instances counted it.
    let broker = Scripted { once: true, ..broker };
    let health = Arc::new(Health::default());
    let watching = async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        health.postgres_answers();
        assert!(health.report().is_ready(), "{:?}", health.report());
    };
    let running = supervise_with(&broker, &store, Duration::from_secs(31), &health);
    futures::join!(running, watching).0.0.expect("never refused");
}
