//! The model broker's inside: one queue, its consumers, its dead letters. No time passes in here;
//! `session.rs` has the client's side of a connection.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use vote_aggregator::model::ports::{BrokerError, Delivery, DeliveryTag};

use crate::world::World;

/// Index into [`Server::connections`].
pub type SessionId = usize;

/// A message in the queue.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    pub item: usize,
    /// Times it was requeued: a quorum queue counts them.
    requeued: u32,
}

/// How a message came into the dead-letter queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Rejected,
    /// By the service.
    Published,
    /// Requeued more often than the queue allows.
    OverLimit,
}

/// What a client sends.
pub enum Frame {
    AckUpTo(DeliveryTag),
    Reject(DeliveryTag),
    RequeueAll,
    Cancel(oneshot::Sender<()>),
    Close(oneshot::Sender<()>),
}

/// What a consumer gets, and when it arrives.
pub type Arrival = (Instant, Result<Delivery, BrokerError>);
pub type Arrivals = mpsc::UnboundedReceiver<Arrival>;

/// Both ends of one connection with its one channel. Stays when it has ended.
#[derive(Default)]
pub struct Connection {
    prefetch: usize,
    /// Frames and deliveries pass. When they do not, neither side may know yet.
    pub linked: bool,
    /// The broker takes the channel for open.
    pub up: bool,
    consuming: bool,
    last_tag: DeliveryTag,
    unacked: BTreeMap<DeliveryTag, (Message, Instant)>,
    /// Until the stream ends.
    deliveries: Option<mpsc::UnboundedSender<Arrival>>,
    /// The client knows that the channel is dead.
    pub noticed: bool,
    /// Deliveries that the client may still settle, by what they carry.
    pub held: BTreeMap<DeliveryTag, usize>,
    /// Requests that get no answer before the client notices the end.
    unanswered: Vec<oneshot::Sender<()>>,
}

impl Connection {
    fn has_capacity(&self) -> bool {
        self.up && self.consuming && self.unacked.len() < self.prefetch
    }

    fn deliver(&self, arrives: Instant, delivery: Result<Delivery, BrokerError>) {
        if let Some(deliveries) = &self.deliveries {
            // The client may have dropped its stream.
            let _unheard = deliveries.send((arrives, delivery));
        }
    }

    fn end_stream(&mut self, why: &str) {
        self.deliver(Instant::now(), Err(BrokerError::disconnected("consume", why)));
        self.deliveries = None;
    }

    /// The client learns of the end.
    pub fn notice(&mut self, why: &str) {
        self.noticed = true;
        self.unanswered.clear();
        self.end_stream(why);
    }

    fn leave_unanswered(&mut self, frame: Frame) {
        if let Frame::Cancel(reply) | Frame::Close(reply) = frame
            && !self.noticed
        {
            self.unanswered.push(reply);
        }
    }
}

#[derive(Default)]
pub struct Server {
    ready: VecDeque<Message>,
    /// All that were ever opened.
    pub connections: Vec<Connection>,
    last_served: SessionId,
    /// Connecting and publishing fail before.
    pub down_until: Option<Instant>,
    /// Without a dead-letter route, what is rejected vanishes.
    pub dead_letters: Vec<(usize, How)>,
    /// By item: how often it is in the queue for certain.
    pub landed: Vec<u32>,
    pub confirmed: Vec<bool>,
    pub most_requeued: u32,
}

impl Server {
    pub fn new(items: usize) -> Self {
        Self { landed: vec![0; items], confirmed: vec![false; items], ..Self::default() }
    }

    pub fn is_down(&self) -> bool {
        self.down_until.is_some_and(|until| Instant::now() < until)
    }

    pub fn publish(&mut self, world: &World, item: usize) {
        self.landed[item] += 1;
        self.ready.push_back(Message { item, requeued: 0 });
        self.dispatch(world);
    }

    pub fn connect(&mut self, world: &World, prefetch: u16) -> (SessionId, Arrivals) {
        let (deliveries, arrivals) = mpsc::unbounded_channel();
        self.connections.push(Connection {
            prefetch: prefetch.into(),
            linked: true,
            up: true,
            consuming: true,
            deliveries: Some(deliveries),
            ..Connection::default()
        });
        self.dispatch(world);
        (self.connections.len() - 1, arrivals)
    }

    /// Ready and unacked messages.
    pub fn depth(&self) -> [usize; 2] {
        [self.ready.len(), self.connections.iter().map(|c| c.unacked.len()).sum()]
    }

    /// Sessions of which `condition` holds, in the order in which they were opened.
    pub fn sessions(&self, condition: impl Fn(&Connection) -> bool) -> Vec<SessionId> {
        let sessions = self.connections.iter().enumerate();
        sessions.filter(|(_, connection)| condition(connection)).map(|(id, _)| id).collect()
    }

    /// Channels with a delivery older than this.
    pub fn overdue(&self, timeout: Duration) -> Vec<SessionId> {
        self.sessions(|c| c.up && c.unacked.values().any(|(_, since)| since.elapsed() > timeout))
    }

    /// Hands out what is ready, in turn to each consumer that has capacity.
    fn dispatch(&mut self, world: &World) {
        let now = Instant::now();
        let all = self.connections.len();
        while let Some(message) = self.ready.front().copied() {
            let mut others = (1..=all).map(|n| (self.last_served + n) % all);
            let Some(id) = others.find(|id| self.connections[*id].has_capacity()) else { return };
            self.ready.pop_front();
            self.last_served = id;
            let connection = &mut self.connections[id];
            connection.last_tag += 1;
            let tag = connection.last_tag;
            connection.unacked.insert(tag, (message, now));
            connection.held.insert(tag, message.item);
            if connection.linked {
                let arrives = now + world.millis(world.plan.network_ms);
                let body = world.plan.items[message.item].body.clone();
                connection.deliver(arrives, Ok(Delivery::new(tag, body)));
            }
        }
    }

    fn requeue(&mut self, world: &World, id: SessionId) {
        let unacked = std::mem::take(&mut self.connections[id].unacked);
        let back = unacked.len();
        for (mut message, _) in unacked.into_values().rev() {
            message.requeued += 1;
            self.most_requeued = self.most_requeued.max(message.requeued);
            if message.requeued > world.plan.delivery_limit {
                self.dead_letters.push((message.item, How::OverLimit));
            } else if world.plan.requeue_to_front {
                self.ready.push_front(message);
            } else {
                let at = self.ready.len().saturating_sub(back);
                self.ready.insert(at, message);
            }
        }
        if back > 0 {
            world.trace(|| format!("broker: {back} messages of session {id} requeued"));
        }
        self.dispatch(world);
    }

    /// The broker's side of a channel ends: what it held is requeued.
    pub fn close(&mut self, world: &World, id: SessionId) {
        self.connections[id].up = false;
        self.requeue(world, id);
    }

    /// The broker ends the consumer, not the channel.
    pub fn cancel_consumer(&mut self, id: SessionId) {
        self.connections[id].consuming = false;
        self.connections[id].end_stream("the broker ended the consumer");
    }

    pub fn process(&mut self, world: &World, id: SessionId, frame: Frame) {
        let connection = &mut self.connections[id];
        if !connection.linked || !connection.up {
            // The client hears of it through the end of the channel.
            return connection.leave_unanswered(frame);
        }
        match frame {
            Frame::AckUpTo(tag) => {
                if !connection.unacked.contains_key(&tag) {
                    return self.precondition_failed(world, id, "ack", tag);
                }
                let rest = connection.unacked.split_off(&(tag + 1));
                let acked = std::mem::replace(&mut connection.unacked, rest);
                world.trace(|| format!("broker: {} acked up to {tag} on {id}", acked.len()));
                self.dispatch(world);
            }
            Frame::Reject(tag) => {
                let Some((message, _)) = connection.unacked.remove(&tag) else {
                    return self.precondition_failed(world, id, "reject", tag);
                };
                world.trace(|| format!("broker: {tag} rejected on {id}"));
                if world.plan.dead_letter_route {
                    self.dead_letters.push((message.item, How::Rejected));
                }
                self.dispatch(world);
            }
            Frame::RequeueAll => self.requeue(world, id),
            Frame::Cancel(_) => {
                connection.consuming = false;
                connection.deliveries = None;
                self.answer(world, id, frame);
            }
            Frame::Close(_) => {
                self.answer(world, id, frame);
                self.close(world, id);
            }
        }
    }

    fn answer(&mut self, world: &World, id: SessionId, request: Frame) {
        if world.mishap(world.plan.faults.no_answer) {
            world.trace(|| format!("broker: no answer on {id}"));
            self.connections[id].leave_unanswered(request);
        } else if let Frame::Cancel(reply) | Frame::Close(reply) = request {
            // A client that is gone needs no answer.
            let _gone = reply.send(());
        }
    }

    fn precondition_failed(&mut self, world: &World, id: SessionId, what: &str, tag: DeliveryTag) {
        world.violation(format!("{what} of unknown tag {tag} on session {id}: the channel closes"));
        self.connections[id].notice("PRECONDITION_FAILED");
        self.close(world, id);
    }
}
