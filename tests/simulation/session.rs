//! The client's side of the model broker: the ports that the pipeline and the supervisor use.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use vote_aggregator::model::ports::{
    Broker, BrokerError, Channel, DeadLetter, DeadLetters, Delivery, DeliveryTag, OpenError,
    Session,
};

use crate::broker::{Arrivals, Frame, How, SessionId};
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
const MOST_DEAD_LETTERS: usize = 3;

/// The broker as one process sees it.
pub struct SimBroker {
    process: Arc<Process>,
    ever_opened: AtomicBool,
    opens: Mutex<VecDeque<Instant>>,
}

impl SimBroker {
    pub fn new(process: &Arc<Process>) -> Self {
        let process = Arc::clone(process);
        Self { process, ever_opened: AtomicBool::new(false), opens: Mutex::default() }
    }

    /// Sessions opened within the last second, this one included.
    fn opens(&self) -> usize {
        let mut opens = lock(&self.opens);
        opens.push_back(Instant::now());
        opens.retain(|then| then.elapsed() < Duration::from_secs(1));
        opens.len()
    }

    async fn refuse(&self) -> OpenError {
        match self.process.world.choose(&[0, 0, 1, 2]) {
            Some(1) => {
                sleep(OPEN_TIMEOUT).await;
                OpenError::Unavailable("no answer".to_owned())
            }
            // At start it would be fatal.
            Some(2) if self.ever_opened.load(Ordering::Relaxed) => {
                OpenError::Credentials("access refused".to_owned())
            }
            _ => OpenError::Unavailable("connection refused".to_owned()),
        }
    }
}

impl Broker for SimBroker {
    type Session = SimSession;

    async fn open(&self, prefetch: u16) -> Result<SimSession, OpenError> {
        let process = &self.process;
        let world = &process.world;
        process.point().await;
        if prefetch == 0 || prefetch > world.plan.prefetch {
            process.violation(&format!("asks for a prefetch of {prefetch}"));
        }
        if self.opens() > MOST_OPENS {
            process.violation("opens session after session");
        }
        world.sleep_up_to(world.plan.network_ms).await;
        if lock(&world.broker).is_down() || world.mishap(world.plan.faults.open_refused) {
            process.trace(|| "open refused".to_owned());
            return Err(self.refuse().await);
        }
        let (id, arrivals) = lock(&world.broker).connect(world, prefetch);
        process.trace(|| format!("session {id} opened, prefetch {prefetch}"));
        lock(&process.dead_lettered).clear();
        let (frames, sent) = mpsc::unbounded_channel();
        tokio::spawn(carry(Arc::clone(world), id, sent));
        let session = SimSession {
            process: Arc::clone(process),
            id,
            frames,
            arrivals: Some(arrivals),
            cancelled: AtomicBool::new(false),
        };
        self.ever_opened.store(true, Ordering::Relaxed);
        process.point().await;
        Ok(session)
    }
}

impl DeadLetters for SimBroker {
    async fn publish(&self, dead_letter: &DeadLetter) -> Result<(), BrokerError> {
        let process = &self.process;
        let world = &process.world;
        process.point().await;
        world.sleep_up_to(world.plan.network_ms).await;
        // A few of each batch in flight; more without an ack in between are of a batch that should
        // have been requeued.
        lock(&process.dead_lettered).insert(dead_letter.vote_hash.clone());
        if lock(&process.dead_lettered).len() > MOST_DEAD_LETTERS * world.plan.limits.in_flight {
            process.violation("dead-letters vote after vote");
        }
        let item = invariants::check_dead_letter(world, dead_letter);
        if lock(&world.broker).is_down() {
            return Err(BrokerError::disconnected("connect", "connection refused"));
        }
        let lost = world.mishap(world.plan.faults.dead_letter_lost);
        if let Some(item) = item
            && (!lost || world.chance(0.5))
        {
            process.trace(|| format!("item {item} dead-lettered"));
            lock(&world.broker).dead_letters.push((item, How::Published));
        }
        if lost {
            process.trace(|| "confirm of a dead letter lost".to_owned());
            if world.chance(0.3) {
                sleep(CONFIRM_TIMEOUT).await;
            }
        }
        process.point().await;
        if lost { Err(BrokerError::Timeout("not confirmed".to_owned())) } else { Ok(()) }
    }
}

/// A frame, and when it arrives.
type Sent = (Instant, Frame);

/// A connection with its channel. Its drop ends the connection.
pub struct SimSession {
    process: Arc<Process>,
    id: SessionId,
    frames: mpsc::UnboundedSender<Sent>,
    arrivals: Option<Arrivals>,
    cancelled: AtomicBool,
}

/// Carries frames to the broker in their order, until the client's end is gone; the connection may
/// be cut just before or just after one takes effect.
async fn carry(world: Arc<World>, id: SessionId, mut sent: mpsc::UnboundedReceiver<Sent>) {
    while let Some((arrives, frame)) = sent.recv().await {
        sleep_until(arrives).await;
        let linked = lock(&world.broker).connections[id].linked;
        let cut = linked && world.mishap(world.plan.faults.frame_cut);
        let before = cut && world.chance(0.5);
        if before {
            cut_connection(&world, id);
        }
        lock(&world.broker).process(&world, id, frame);
        if cut && !before {
            cut_connection(&world, id);
        }
    }
    // Of a cut connection the broker learns later.
    let mut server = lock(&world.broker);
    if server.connections[id].linked {
        server.close(&world, id);
    }
}

impl SimSession {
    fn send(&self, frame: Frame) {
        let world = &self.process.world;
        let arrives = Instant::now() + world.millis(world.plan.network_ms);
        self.frames.send((arrives, frame)).expect("frames are carried until this is dropped");
    }

    /// Sends a request and waits for its answer.
    async fn ask(&self, request: fn(oneshot::Sender<()>) -> Frame) -> Result<(), BrokerError> {
        self.check_alive()?;
        let (reply, answer) = oneshot::channel();
        self.send(request(reply));
        answer.await.map_err(|_| dead())
    }

    fn check_alive(&self) -> Result<(), BrokerError> {
        let server = lock(&self.process.world.broker);
        if server.connections[self.id].noticed { Err(dead()) } else { Ok(()) }
    }
}

fn dead() -> BrokerError {
    BrokerError::disconnected("settle", "the channel is dead")
}

impl Channel for SimSession {
    async fn ack_up_to(&self, tag: DeliveryTag) -> Result<(), BrokerError> {
        let process = &self.process;
        process.point().await;
        self.check_alive()?;
        process.trace(|| format!("acks up to {tag} on {}", self.id));
        invariants::check_ack(&process.world, self.id, tag);
        lock(&process.dead_lettered).clear();
        self.send(Frame::AckUpTo(tag));
        process.point().await;
        Ok(())
    }

    async fn reject(&self, tag: DeliveryTag) -> Result<(), BrokerError> {
        self.process.point().await;
        self.check_alive()?;
        invariants::check_reject(&self.process.world, self.id, tag);
        self.send(Frame::Reject(tag));
        self.process.point().await;
        Ok(())
    }

    async fn cancel(&self) -> Result<(), BrokerError> {
        self.process.point().await;
        if self.cancelled.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        self.process.trace(|| format!("cancels on {}", self.id));
        let cancelled = self.ask(Frame::Cancel).await;
        self.process.point().await;
        cancelled
    }
}

impl Session for SimSession {
    type Channel = Self;
    type Deliveries = BoxStream<'static, Result<Delivery, BrokerError>>;

    fn split(&mut self) -> (&Self, Self::Deliveries) {
        let arrivals = self.arrivals.take().expect("split once");
        let deliveries = stream::unfold(arrivals, async |mut arrivals: Arrivals| {
            let (arrives, delivery) = arrivals.recv().await?;
            sleep_until(arrives).await;
            Some((delivery, arrivals))
        });
        (&*self, deliveries.boxed())
    }

    async fn requeue(self) {
        let requeueing = async {
            self.cancel().await?;
            self.process.point().await;
            self.send(Frame::RequeueAll);
            Ok::<_, BrokerError>(())
        };
        // Whatever this did not requeue, the end of the connection does.
        let _requeued = timeout(CLOSE_TIMEOUT, requeueing).await;
        let _closed = self.close().await;
    }

    async fn close(self) -> Result<(), BrokerError> {
        self.process.point().await;
        let closed = timeout(CLOSE_TIMEOUT, self.ask(Frame::Close)).await;
        self.process.point().await;
        closed.unwrap_or_else(|_| Err(BrokerError::Timeout("no answer to a close".to_owned())))
    }
}

impl Drop for SimSession {
    fn drop(&mut self) {
        // What a process sent before it ended mostly still arrives.
        let world = &self.process.world;
        if self.process.is_dead() && world.chance(0.3) {
            cut_connection(world, self.id);
        }
    }
}

/// Frames on their way are lost. Each side finds out on its own, within two heartbeats.
pub fn cut_connection(world: &Arc<World>, id: SessionId) {
    let finds_out = || world.millis(if world.mishap(0.3) { HEARTBEATS_MS } else { 50 });
    let (client, server) = (finds_out(), finds_out());
    world.trace(|| format!("connection of session {id} cut"));
    lock(&world.broker).connections[id].linked = false;
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
        lock(&world.broker).connections[id].notice(why);
    });
}
