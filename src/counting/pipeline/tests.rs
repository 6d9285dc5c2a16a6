//! The chain on a virtual clock, with a session and a store in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use futures::stream::{self, BoxStream};
use proptest::prelude::*;

use super::*;
use crate::model::ports::{Class, Counted, DeadLetter, Fault, Insert, LawCount};
use crate::platform::config::ShownTotals;
use crate::platform::retry::Jitter;
use crate::platform::telemetry::{Health, Metrics};

mod batches;
mod conflicts;
mod deadline;
mod systemic;
mod trial;

/// What happened, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Stored(Vec<String>),
    Acked(DeliveryTag),
    Rejected(DeliveryTag),
    DeadLettered(String),
    Cancelled,
}

#[derive(Clone, Copy, Debug)]
enum Known {
    Replay,
    Attempt,
}

/// A channel that records what it is asked for, and a store that answers from a script.
#[derive(Clone, Default)]
struct World {
    events: Arc<Mutex<Vec<Event>>>,
    faults: Arc<Mutex<VecDeque<Class>>>,
    /// How each transaction inserted.
    inserts: Arc<Mutex<Vec<Insert>>>,
    refused: Vec<String>,
    ack_fails: bool,
    /// The session is lost: a reject waits for its time-out.
    rejects_fail: bool,
    /// How long the store lets a batch wait, on top.
    hangs: Duration,
    /// How long the confirm of a dead letter takes.
    confirm: Duration,
    /// Every vote is known to the store already: as a replay, or as an attempt.
    known: Option<Known>,
}

impl World {
    /// Transactions meet these faults, one after the other.
    fn failing(faults: impl IntoIterator<Item = Class>) -> Self {
        let faults = Arc::new(Mutex::new(faults.into_iter().collect()));
        Self { faults, ..Self::default() }
    }

    fn faults_left(&self) -> usize {
        self.faults.lock().expect("no panic while held").len()
    }

    fn note(&self, event: Event) {
        self.events.lock().expect("no panic while held").push(event);
    }

    fn events(&self) -> Vec<Event> {
        self.events.lock().expect("no panic while held").clone()
    }

    fn stored(&self) -> Vec<Vec<String>> {
        let stored = self.events().into_iter();
        stored
            .filter_map(|event| if let Event::Stored(v) = event { Some(v) } else { None })
            .collect()
    }
}

struct Memory {
    world: World,
    deliveries: Option<BoxStream<'static, Result<Delivery, BrokerError>>>,
}

impl Channel for World {
    async fn ack_up_to(&self, tag: DeliveryTag) -> Result<(), BrokerError> {
        if self.ack_fails {
            return Err(BrokerError::disconnected("settle", "dead channel"));
        }
        self.note(Event::Acked(tag));
        Ok(())
    }

    async fn reject(&self, tag: DeliveryTag) -> Result<(), BrokerError> {
        self.note(Event::Rejected(tag));
        if self.rejects_fail {
            tokio::time::sleep(Duration::from_secs(10)).await;
            return Err(BrokerError::disconnected("reject", "the connection took no bytes"));
        }
        Ok(())
    }

    async fn cancel(&self) -> Result<(), BrokerError> {
        self.note(Event::Cancelled);
        Ok(())
    }
}

impl Session for Memory {
    type Channel = World;
    type Deliveries = BoxStream<'static, Result<Delivery, BrokerError>>;

    fn split(&mut self) -> (&World, Self::Deliveries) {
        (&self.world, self.deliveries.take().expect("taken once"))
    }

    async fn requeue(self) {}

    async fn close(self) -> Result<(), BrokerError> {
        Ok(())
    }
}

impl Store for World {
    async fn count(&self, votes: Votes) -> Result<Counted, Fault> {
        self.inserts.lock().expect("no panic while held").push(votes.insert());
        tokio::time::sleep(Duration::from_millis(5) + self.hangs).await;
        let fault = |class| Fault { class, sqlstate: None, message: "scripted".to_owned() };
        if let Some(class) = self.faults.lock().expect("no panic while held").pop_front() {
            return Err(fault(class));
        }
        if votes.iter().any(|vote| self.refused.contains(&vote.vote_hash.to_string())) {
            return Err(fault(Class::Isolate));
        }
        self.note(Event::Stored(votes.iter().map(|vote| vote.vote_hash.to_string()).collect()));
        let law = |vote: &Vote| LawCount {
            law_id: vote.law_id.to_string(),
            added: [1, 0],
            totals: [1, 0],
        };
        let all = votes.len() as u64;
        Ok(match self.known {
            Some(Known::Replay) => Counted { replays: all, ..Counted::default() },
            Some(Known::Attempt) => Counted { attempts: all, ..Counted::default() },
            None => Counted { laws: votes.iter().map(law).collect(), ..Counted::default() },
        })
    }

    async fn probe(&self) -> Result<(), Fault> {
        Ok(())
    }
}

impl DeadLetters for World {
    async fn publish(&self, dead_letter: &DeadLetter) -> Result<(), BrokerError> {
        tokio::time::sleep(self.confirm).await;
        self.note(Event::DeadLettered(dead_letter.vote_hash.clone()));
        Ok(())
    }
}

fn body(hash: &str) -> Vec<u8> {
    format!(
        r#"{{"vote_hash":"{hash}","citizen_id":"c","law_id":"l","choice":"oui","timestamp":"1970-01-01T00:00:00Z"}}"#
    )
    .into_bytes()
}

fn limits(batch_size: usize, in_flight: usize) -> Limits {
    Limits {
        batch_size,
        batch_timeout: Duration::from_secs(1),
        batch_deadline: Duration::from_secs(900),
        in_flight,
        max_message_bytes: 16_384,
        cell: None,
        most_acked: 500,
        plain_after: 0,
        retry: RetryPolicy { max_attempts: 3, delay: Duration::from_secs(1) },
    }
}

/// Runs the chain over `deliveries` on a virtual clock; how it ended and how long it took.
fn run_chain(
    world: &World,
    limits: &Limits,
    mode: Mode,
    deliveries: BoxStream<'static, Result<Delivery, BrokerError>>,
    stop_after: Option<Duration>,
) -> (Ended, Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let metrics = Metrics::new(10, ShownTotals::Full, Arc::new(Health::default()), None)
            .expect("metrics");
        let tools = Tools {
            store: world,
            dead_letters: world,
            limits,
            budget: &IsolationBudget::default(),
            jitter: &Jitter::seeded(1),
            instruments: &metrics.instruments,
            health: &Health::default(),
            acknowledged: &Acknowledged::default(),
        };
        let mut session = Memory { world: world.clone(), deliveries: Some(deliveries) };
        let stop = CancellationToken::new();
        if let Some(after) = stop_after {
            let stop = stop.clone();
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                stop.cancel();
            });
        }
        let began = Instant::now();
        (run(&mut session, &tools, mode, &stop).await, began.elapsed())
    })
}

fn deliveries(bodies: Vec<Vec<u8>>) -> Vec<Result<Delivery, BrokerError>> {
    let delivery = |(index, body)| Ok(Delivery::new(index as u64 + 1, body));
    bodies.into_iter().enumerate().map(delivery).collect()
}

fn votes_named(count: usize) -> Vec<Vec<u8>> {
    (1..=count).map(|n| body(&format!("h{n}"))).collect()
}

/// A stream of these that does not end.
fn endless(
    items: Vec<Result<Delivery, BrokerError>>,
) -> BoxStream<'static, Result<Delivery, BrokerError>> {
    stream::iter(items).chain(stream::pending()).boxed()
}

/// Runs the chain over so many votes, with one batch in flight.
fn run_votes(world: &World, batch_size: usize, votes: usize) -> (Ended, Duration) {
    let items = stream::iter(deliveries(votes_named(votes))).boxed();
    run_chain(world, &limits(batch_size, 1), Mode::Flowing, items, None)
}

fn assert_paused(ended: &Ended) -> &Fault {
    match &ended.failure {
        Some(Failure::Paused(fault)) => fault,
        other => panic!("paused, not {other:?}"),
    }
}

#[test]
fn a_full_batch_goes_at_once_and_a_partial_one_after_the_timeout() {
    let world = World::default();
    let items = endless(deliveries(votes_named(25)));
    let stop = Some(Duration::from_secs(30));
    let (_, took) = run_chain(&world, &limits(10, 1), Mode::Flowing, items, stop);
    let sizes: Vec<usize> = world.stored().iter().map(Vec::len).collect();
    assert_eq!(sizes, [10, 10, 5]);
    assert_eq!(took.as_secs(), 30, "it waits for more until it is stopped");
    assert_eq!(world.events().last(), Some(&Event::Cancelled));
}

#[test]
fn a_stop_flushes_what_was_taken() {
    let world = World::default();
    let stop = Some(Duration::from_millis(300));
    let items = endless(deliveries(votes_named(7)));
    let (ended, took) = run_chain(&world, &limits(10, 1), Mode::Flowing, items, stop);
    assert_eq!((ended.failure, ended.acked, ended.committed), (None, true, true));
    assert!(took < Duration::from_secs(1), "{took:?}: no wait for the batch timeout");
    assert_eq!(world.events().last(), Some(&Event::Acked(7)));
}

#[test]
fn retries_wait_1_2_4_seconds_and_then_the_chain_pauses_and_acks_nothing() {
    let world = World::failing([Class::Reconnect; 4]);
    let (ended, took) = run_votes(&world, 5, 5);
    assert_paused(&ended);
    assert!((7.0..7.0 * 1.25 + 0.1).contains(&took.as_secs_f64()), "{took:?}");
    assert_eq!(world.events(), [], "nothing stored, nothing acked");
}

#[test]
fn a_batch_is_halved_when_it_is_too_much_and_a_pause_pauses_at_once() {
    let world = World::failing([Class::Split]);
    let (ended, _) = run_votes(&world, 8, 8);
    assert_eq!(ended.failure, None);
    assert_eq!(world.stored().iter().map(Vec::len).collect::<Vec<_>>(), [4, 4]);
    assert_eq!(world.stored().concat(), (1..=8).map(|n| format!("h{n}")).collect::<Vec<_>>());

    for faults in [&[Class::Pause][..], &[Class::Bug], &[Class::Split; 4]] {
        let (ended, took) = run_votes(&World::failing(faults.iter().copied()), 8, 8);
        assert_paused(&ended);
        assert!(took < Duration::from_millis(100), "{took:?}: no retries");
    }
}

#[test]
fn one_refused_vote_is_dead_lettered_before_its_batch_is_acked() {
    let world = World { refused: vec!["h3".to_owned()], ..World::default() };
    let (ended, _) = run_votes(&world, 8, 8);
    assert_eq!(ended.failure, None);
    let mut stored = world.stored().concat();
    stored.sort();
    assert_eq!(stored, ["h1", "h2", "h4", "h5", "h6", "h7", "h8"]);
    let tail = &world.events()[world.events().len() - 2..];
    assert_eq!(tail, [Event::DeadLettered("h3".to_owned()), Event::Acked(8)]);
}

#[test]
fn an_error_of_the_source_or_of_an_ack_ends_the_chain_as_lost() {
    let mut items = deliveries(votes_named(3));
    items.push(Err(BrokerError::disconnected("consume", "connection reset")));
    let world = World::default();
    let (ended, _) = run_chain(&world, &limits(10, 1), Mode::Flowing, endless(items), None);
    assert_eq!(
        ended.failure,
        Some(Failure::Lost(BrokerError::disconnected("consume", "connection reset")))
    );
    assert_eq!(world.events(), [], "a batch cut off by the loss is dropped whole");

    let world = World { ack_fails: true, ..World::default() };
    let (ended, _) = run_votes(&world, 10, 30);
    assert_eq!(
        ended.failure,
        Some(Failure::Lost(BrokerError::disconnected("settle", "dead channel")))
    );
    assert!(!ended.acked, "not acked is not done");
}

#[test]
fn a_lost_session_is_noticed_while_the_chain_is_full_and_waits_for_the_store() {
    let world = World::failing([Class::Reconnect; 4]);
    let lost = stream::once(async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        Err(BrokerError::disconnected("consume", "consumer time-out"))
    });
    let items =
        stream::iter(deliveries(votes_named(5))).chain(lost).chain(stream::pending()).boxed();
    let (ended, took) = run_chain(&world, &limits(5, 1), Mode::Flowing, items, None);
    assert_eq!(
        ended.failure,
        Some(Failure::Lost(BrokerError::disconnected("consume", "consumer time-out")))
    );
    assert!(took < Duration::from_millis(600), "{took:?}: it does not wait for the retries");
    assert_eq!(world.events(), []);
}

/// RabbitMQ 4.3 names no reason. It has the deliveries again, and would take a late ack of them silently.
#[test]
fn a_consumer_that_is_ended_when_the_time_is_over_had_a_timeout_and_nothing_is_acked_behind_it() {
    let timeout = Duration::from_secs(20);
    let ended = BrokerError::ConsumerEnded { timeout: Some(timeout) };
    for (after, timed_out) in [(5, false), (20, true)] {
        let world = World { hangs: Duration::from_secs(30), ..World::default() };
        let lost = ended.clone();
        let lost = stream::once(async move {
            tokio::time::sleep(Duration::from_secs(after)).await;
            Err(lost)
        });
        let items = stream::iter(deliveries(votes_named(5))).chain(lost).boxed();
        let (ended, _) = run_chain(&world, &limits(5, 1), Mode::Flowing, items, None);
        let Some(Failure::Lost(lost)) = ended.failure else { panic!("{ended:?}") };
        assert_eq!(matches!(lost, BrokerError::ConsumerTimeout(_)), timed_out, "{lost}");
        assert_eq!(world.stored().len(), 1, "what is in flight is committed");
        assert!(!ended.acked, "{:?}", world.events());
    }
}

/// Each reject on a lost session waits for its time-out.
#[test]
fn after_a_lost_session_no_further_reject_is_tried() {
    let world = World { rejects_fail: true, ..World::default() };
    // Several chunks of what is taken at once.
    let malformed = endless(deliveries(vec![b"no vote".to_vec(); 5 * AT_ONCE]));
    let (ended, took) = run_chain(&world, &limits(10, 1), Mode::Flowing, malformed, None);
    assert!(matches!(ended.failure, Some(Failure::Lost(_))), "{ended:?}");
    assert_eq!(world.events(), [Event::Rejected(1)]);
    assert!(took < Duration::from_secs(11), "{took:?}");
}
