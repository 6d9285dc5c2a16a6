//! The client's side of the model broker: the ports that the pipeline and the supervisor use.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use vote_aggregator::model::ports::{
    Broker, BrokerError, Channel, DeadLetter, DeadLetters, Delivery, DeliveryTag, OpenError,
    Session,
};

use crate::broker::{Frame, How, SessionId};
use crate::invariants;
use crate::world::{Process, World, lock};

const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// A dead peer shows within two heartbeats of 10 s.
const HEARTBEATS_MS: u64 = 20_000;
/// Sessions that one process may open within a second: more is a hot loop.
const MOST_OPENS: usize = 3;
/// Votes of one batch that may be dead-lettered, with batches of this size.
const MOST_LETTERS: usize = 3;

/// The broker as one process sees it.
pub struct SimBroker {
    world: Arc<World>,
    process: Arc<Process>,
    ever_opened: AtomicBool,
    opens: Mutex<VecDeque<Instant>>,
}

impl SimBroker {
    pub fn new(world: &Arc<World>, process: &Arc<Process>) -> Self {
        Self {
            world: Arc::clone(world),
            process: Arc::clone(process),
            ever_opened: AtomicBool::new(false),
            opens: Mutex::default(),
        }
    }

    /// Sessions opened within the last second, this one included.
    fn opens(&self) -> usize {
        let mut opens = lock(&self.opens);
        opens.push_back(Instant::now());
        opens.retain(|then| then.elapsed() < Duration::from_secs(1));
        opens.len()
    }

    async fn refuse(&self) -> OpenError {
        let unavailable = || OpenError::Unavailable("connection refused".to_owned());
        match self.world.choose(&[0, 0, 1, 2]) {
            Some(1) => {
                sleep(OPEN_TIMEOUT).await;
                OpenError::Unavailable("no answer".to_owned())
            }
            Some(2) if self.ever_opened.load(Ordering::Relaxed) => {
                OpenError::Credentials("access refused".to_owned())
            }
            _ => unavailable(),
        }
    }
}

impl Broker for SimBroker {
    type Session = SimSession;

    async fn open(&self, prefetch: u16) -> Result<SimSession, OpenError> {
        let (world, process) = (&self.world, &self.process);
        process.point().await;
        if prefetch == 0 || prefetch > world.plan.prefetch {
            world.violation(format!("{} asks for a prefetch of {prefetch}", process.name));
        }
        if self.opens() > MOST_OPENS {
            world.violation(format!("{} opens session after session", process.name));
        }
        world.sleep_up_to(world.plan.network_ms).await;
        if lock(&world.broker).is_down() || world.mishap(world.plan.faults.open_refused) {
            world.trace(|| format!("{}: open refused", process.name));
            return Err(self.refuse().await);
        }
        let id = lock(&world.broker).connect(world, prefetch);
        world.trace(|| format!("{}: session {id} opened, prefetch {prefetch}", process.name));
        let channel = SimChannel {
            world: Arc::clone(world),
            process: Arc::clone(process),
            id,
            cancelled: AtomicBool::new(false),
        };
        lock(&process.letters).clear();
        // From here on its drop ends the connection.
        let session = SimSession(channel);
        self.ever_opened.store(true, Ordering::Relaxed);
        process.point().await;
        Ok(session)
    }
}

impl DeadLetters for SimBroker {
    async fn publish(&self, letter: &DeadLetter) -> Result<(), BrokerError> {
        let (world, process) = (&self.world, &self.process);
        process.point().await;
        world.sleep_up_to(world.plan.network_ms).await;
        // Of each batch in flight a few; more without an ack in between are of a batch that should
        // have been given back.
        let letters = {
            let mut letters = lock(&process.letters);
            letters.insert(letter.vote_hash.clone());
            letters.len()
        };
        if letters > MOST_LETTERS * world.plan.limits.in_flight {
            world.violation(format!("{} dead-letters vote after vote", process.name));
        }
        let item = invariants::check_letter(world, letter);
        let lost = |why: &str| Err(BrokerError::disconnected("consume", why));
        if lock(&world.broker).is_down() {
            return lost("connection refused");
        }
        let land = |landed: bool| {
            if let (true, Some(item)) = (landed, item) {
                world.trace(|| format!("{}: item {item} dead-lettered", process.name));
                lock(&world.broker).dead_letters.push((item, How::Published));
            }
        };
        if world.mishap(world.plan.faults.dead_letter_lost) {
            world.trace(|| format!("{}: confirm of a dead letter lost", process.name));
            land(world.chance(0.5));
            if world.chance(0.3) {
                sleep(CONFIRM_TIMEOUT).await;
            }
            process.point().await;
            return lost("not confirmed");
        }
        land(true);
        process.point().await;
        Ok(())
    }
}

pub struct SimSession(SimChannel);

pub struct SimChannel {
    world: Arc<World>,
    process: Arc<Process>,
    id: SessionId,
    cancelled: AtomicBool,
}

impl SimChannel {
    /// Puts a frame on the wire, where it may be lost with the connection.
    fn send(&self, frame: Frame) {
        let world = &self.world;
        let cut = world.mishap(world.plan.faults.frame_cut);
        let mut server = lock(&world.broker);
        let Some(connection) = server.connections.get_mut(&self.id) else { return };
        if !connection.linked {
            if let Frame::Cancel(reply) | Frame::Close(reply) = frame {
                connection.unanswered.push(reply);
            }
            return;
        }
        let now = Instant::now();
        let earliest = connection.outgoing.back().map_or(now, |(due, _)| *due);
        let due = earliest.max(now + world.millis(world.plan.network_ms));
        connection.outgoing.push_back((due, frame));
        if cut {
            let arrives = world.chance(0.5);
            if arrives {
                connection.outgoing.iter_mut().for_each(|(due, _)| *due = now);
                server.process_due(world, self.id);
            }
            drop(server);
            return cut_connection(world, self.id);
        }
        if due <= now {
            return server.process_due(world, self.id);
        }
        let (world, id) = (Arc::clone(world), self.id);
        tokio::spawn(async move {
            sleep_until(due).await;
            lock(&world.broker).process_due(&world, id);
        });
    }

    async fn ask(
        &self,
        frame: impl FnOnce(oneshot::Sender<()>) -> Frame,
    ) -> Result<(), BrokerError> {
        let dead = || BrokerError::disconnected("settle", "the channel is dead");
        if self.is_dead() {
            return Err(dead());
        }
        let (reply, answer) = oneshot::channel();
        self.send(frame(reply));
        answer.await.map_err(|_| dead())
    }

    fn is_dead(&self) -> bool {
        let server = lock(&self.world.broker);
        server.connections.get(&self.id).is_none_or(|connection| connection.noticed)
    }

    async fn close(&self) -> Result<(), BrokerError> {
        self.process.point().await;
        let closed = match timeout(CLOSE_TIMEOUT, self.ask(Frame::Close)).await {
            Ok(closed) => closed,
            Err(_) => Err(BrokerError::Timeout("no answer to a close".to_owned())),
        };
        self.process.point().await;
        closed
    }
}

impl Channel for SimChannel {
    async fn ack_up_to(&self, tag: DeliveryTag) -> Result<(), BrokerError> {
        self.process.point().await;
        if self.is_dead() {
            return Err(BrokerError::disconnected("settle", "the channel is dead"));
        }
        self.world.trace(|| format!("{}: acks up to {tag} on {}", self.process.name, self.id));
        invariants::check_ack(&self.world, self.id, tag);
        lock(&self.process.letters).clear();
        self.send(Frame::AckUpTo(tag));
        self.process.point().await;
        Ok(())
    }

    async fn reject(&self, tag: DeliveryTag) -> Result<(), BrokerError> {
        self.process.point().await;
        if self.is_dead() {
            return Err(BrokerError::disconnected("settle", "the channel is dead"));
        }
        invariants::check_reject(&self.world, self.id, tag);
        self.send(Frame::Reject(tag));
        self.process.point().await;
        Ok(())
    }

    async fn cancel(&self) -> Result<(), BrokerError> {
        self.process.point().await;
        if self.cancelled.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        self.world.trace(|| format!("{}: cancels on {}", self.process.name, self.id));
        let cancelled = self.ask(Frame::Cancel).await;
        self.process.point().await;
        cancelled
    }
}

impl Session for SimSession {
    type Channel = SimChannel;
    type Deliveries = Deliveries;

    fn split(&mut self) -> (&SimChannel, Deliveries) {
        let world = Arc::clone(&self.0.world);
        (&self.0, Deliveries { world, id: self.0.id, arrival: None, ended: false })
    }

    async fn requeue(self) {
        let giving_back = async {
            self.0.cancel().await?;
            self.0.process.point().await;
            self.0.send(Frame::RequeueAll);
            Ok::<_, BrokerError>(())
        };
        // Whatever this did not give back, the end of the connection does.
        let _given_back = timeout(CLOSE_TIMEOUT, giving_back).await;
        let _closed = self.0.close().await;
    }

    async fn close(self) -> Result<(), BrokerError> {
        self.0.close().await
    }
}

impl Drop for SimChannel {
    fn drop(&mut self) {
        let world = &self.world;
        // What a process wrote before it ended mostly still arrives.
        if self.process.is_dead() && world.chance(0.3) {
            cut_connection(world, self.id);
        } else {
            self.send(Frame::Gone);
        }
        lock(&world.broker).drop_client(self.id);
    }
}

/// Frames on their way are lost. Each side finds out on its own, within two heartbeats.
pub fn cut_connection(world: &Arc<World>, id: SessionId) {
    let finds_out =
        || if world.mishap(0.3) { world.millis(HEARTBEATS_MS) } else { world.millis(50) };
    let (client, server) = (finds_out(), finds_out());
    world.trace(|| format!("connection of session {id} cut"));
    if let Some(connection) = lock(&world.broker).connections.get_mut(&id) {
        connection.unlink(Instant::now());
    }
    notice_in(world, id, client, "connection reset");
    let world = Arc::clone(world);
    tokio::spawn(async move {
        sleep(server).await;
        lock(&world.broker).close(&world, id);
    });
}

/// The broker closes the channel; what it has sent before still arrives.
pub fn close_channel(world: &Arc<World>, id: SessionId) {
    world.trace(|| format!("channel of session {id} closed by the broker"));
    lock(&world.broker).close(world, id);
    notice_in(world, id, world.millis(world.plan.network_ms), "channel closed");
}

fn notice_in(world: &Arc<World>, id: SessionId, delay: Duration, why: &'static str) {
    let world = Arc::clone(world);
    tokio::spawn(async move {
        sleep(delay).await;
        if let Some(connection) = lock(&world.broker).connections.get_mut(&id) {
            connection.notice(why);
        }
    });
}

/// What comes out of a consumer: everything buffered, then the end.
pub struct Deliveries {
    world: Arc<World>,
    id: SessionId,
    arrival: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl Stream for Deliveries {
    type Item = Result<Delivery, BrokerError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let mut server = lock(&this.world.broker);
        let Some(connection) = server.connections.get_mut(&this.id) else {
            this.ended = true;
            return Poll::Ready(Some(Err(BrokerError::disconnected(
                "consume",
                "the connection is gone",
            ))));
        };
        match connection.inbox.front() {
            Some((arrives, _)) if *arrives <= Instant::now() => {
                let delivery = connection.inbox.pop_front().map(|(_, delivery)| Ok(delivery));
                return Poll::Ready(delivery);
            }
            Some((arrives, _)) => {
                let arrives = *arrives;
                connection.waker = Some(cx.waker().clone());
                let arrival = this.arrival.insert(Box::pin(sleep_until(arrives)));
                if arrival.as_mut().poll(cx).is_ready() {
                    cx.waker().wake_by_ref();
                }
            }
            None => match connection.stream_end.clone() {
                Some(end) => {
                    this.ended = true;
                    return Poll::Ready(end.map(Err));
                }
                None => connection.waker = Some(cx.waker().clone()),
            },
        }
        Poll::Pending
    }
}
