//! The model broker's inside: one queue, its consumers, its dead letters. No time passes in here;
//! `session.rs` has the client's side of a connection.

use std::collections::{BTreeMap, VecDeque};
use std::task::Waker;

use tokio::sync::oneshot;
use tokio::time::Instant;
use vote_aggregator::model::ports::{BrokerError, Delivery, DeliveryTag};

use crate::plan::Plan;
use crate::world::World;

pub type SessionId = u64;

/// A message in the queue.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    pub item: usize,
    /// Times it was given back: a quorum queue counts them.
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
    /// The end of the connection, orderly or not.
    Gone,
}

/// Both ends of one connection with its one channel.
pub struct Connection {
    prefetch: usize,
    /// Frames pass. When they do not, neither side may know yet.
    pub linked: bool,
    /// The broker takes the channel for open.
    pub up: bool,
    consuming: bool,
    last_tag: DeliveryTag,
    unacked: BTreeMap<DeliveryTag, (Message, Instant)>,
    /// Frames on their way to the broker.
    pub outgoing: VecDeque<(Instant, Frame)>,
    /// Deliveries on their way to the client or buffered there.
    pub inbox: VecDeque<(Instant, Delivery)>,
    /// What the stream ends with behind the inbox.
    pub stream_end: Option<Option<BrokerError>>,
    /// The client knows that the channel is dead.
    pub noticed: bool,
    /// Deliveries that the client may still settle, by what they carry.
    pub held: BTreeMap<DeliveryTag, usize>,
    pub waker: Option<Waker>,
    /// Requests that nobody will answer.
    pub unanswered: Vec<oneshot::Sender<()>>,
    gone: bool,
}

impl Connection {
    pub fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The client learns of the end.
    pub fn notice(&mut self, why: &str) {
        self.noticed = true;
        self.unanswered.clear();
        self.stream_end.get_or_insert(Some(BrokerError::disconnected("consume", why)));
        self.wake();
    }

    /// Frames on their way are lost; what has arrived stays in the client's buffer.
    pub fn unlink(&mut self, now: Instant) {
        self.linked = false;
        self.inbox.retain(|(arrives, _)| *arrives <= now);
        for (_, frame) in self.outgoing.drain(..) {
            if let Frame::Cancel(reply) | Frame::Close(reply) = frame {
                self.unanswered.push(reply);
            }
        }
    }
}

pub struct Server {
    ready: VecDeque<Message>,
    pub connections: BTreeMap<SessionId, Connection>,
    last_id: SessionId,
    last_served: SessionId,
    /// Nobody can connect or publish before.
    pub down_until: Option<Instant>,
    /// Without a dead-letter route, what is rejected vanishes.
    pub dead_letters: Vec<(usize, How)>,
    /// By item: how often it is in the queue for certain.
    pub landed: Vec<u32>,
    pub confirmed: Vec<bool>,
    pub most_requeued: u32,
    delivery_limit: u32,
    requeue_to_front: bool,
}

impl Server {
    pub fn new(plan: &Plan) -> Self {
        Self {
            ready: VecDeque::new(),
            connections: BTreeMap::new(),
            last_id: 0,
            last_served: 0,
            down_until: None,
            dead_letters: Vec::new(),
            landed: vec![0; plan.items.len()],
            confirmed: vec![false; plan.items.len()],
            most_requeued: 0,
            delivery_limit: plan.delivery_limit,
            requeue_to_front: plan.requeue_to_front,
        }
    }

    pub fn is_down(&self) -> bool {
        self.down_until.is_some_and(|until| Instant::now() < until)
    }

    pub fn publish(&mut self, world: &World, item: usize) {
        self.landed[item] += 1;
        self.ready.push_back(Message { item, requeued: 0 });
        self.dispatch(world);
    }

    pub fn connect(&mut self, world: &World, prefetch: u16) -> SessionId {
        self.last_id += 1;
        let connection = Connection {
            prefetch: prefetch.into(),
            linked: true,
            up: true,
            consuming: true,
            last_tag: 0,
            unacked: BTreeMap::new(),
            outgoing: VecDeque::new(),
            inbox: VecDeque::new(),
            stream_end: None,
            noticed: false,
            held: BTreeMap::new(),
            waker: None,
            unanswered: Vec::new(),
            gone: false,
        };
        self.connections.insert(self.last_id, connection);
        self.dispatch(world);
        self.last_id
    }

    /// Ready and unacked messages.
    pub fn depth(&self) -> [usize; 2] {
        [self.ready.len(), self.connections.values().map(|c| c.unacked.len()).sum()]
    }

    /// Hands out what is ready, in turn to each consumer that has room.
    fn dispatch(&mut self, world: &World) {
        let now = Instant::now();
        while !self.ready.is_empty() {
            let has_room = |(id, c): (&SessionId, &Connection)| {
                (c.up && c.consuming && c.unacked.len() < c.prefetch).then_some(*id)
            };
            let later = self.connections.range(self.last_served + 1..).find_map(has_room);
            let Some(id) = later.or_else(|| self.connections.iter().find_map(has_room)) else {
                break;
            };
            let (Some(connection), Some(message)) =
                (self.connections.get_mut(&id), self.ready.pop_front())
            else {
                break;
            };
            self.last_served = id;
            connection.last_tag += 1;
            let tag = connection.last_tag;
            connection.unacked.insert(tag, (message, now));
            connection.held.insert(tag, message.item);
            if connection.linked {
                let earliest = connection.inbox.back().map_or(now, |(arrives, _)| *arrives);
                let arrives = earliest.max(now + world.millis(world.plan.network_ms));
                let body = world.plan.items[message.item].body.clone();
                connection.inbox.push_back((arrives, Delivery::new(tag, body)));
                connection.wake();
            }
        }
    }

    fn give_back(&mut self, world: &World, id: SessionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let unacked = std::mem::take(&mut connection.unacked);
        let back = unacked.len();
        for (mut message, _) in unacked.into_values().rev() {
            message.requeued += 1;
            self.most_requeued = self.most_requeued.max(message.requeued);
            if message.requeued > self.delivery_limit {
                self.dead_letters.push((message.item, How::OverLimit));
            } else if self.requeue_to_front {
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

    /// The broker's side of a channel ends: what it held goes back.
    pub fn close(&mut self, world: &World, id: SessionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.up = false;
            connection.consuming = false;
        }
        self.give_back(world, id);
        self.forget(id);
    }

    fn forget(&mut self, id: SessionId) {
        if self.connections.get(&id).is_some_and(|c| c.gone && !c.up) {
            self.connections.remove(&id);
        }
    }

    /// The broker ends the consumer, not the channel.
    pub fn cancel_consumer(&mut self, id: SessionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.consuming = false;
            let why = BrokerError::disconnected("consume", "the broker ended the consumer");
            connection.stream_end.get_or_insert(Some(why));
            connection.wake();
        }
    }

    /// The client's side no longer exists.
    pub fn drop_client(&mut self, id: SessionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.gone = true;
        }
        self.forget(id);
    }

    /// Channels with a delivery older than this, in order.
    pub fn overdue(&self, timeout: std::time::Duration) -> Vec<SessionId> {
        let late =
            |c: &Connection| c.up && c.unacked.values().any(|(_, since)| since.elapsed() > timeout);
        self.connections.iter().filter(|(_, c)| late(c)).map(|(id, _)| *id).collect()
    }

    /// Does what the next frame asks for, if it is due.
    pub fn process_due(&mut self, world: &World, id: SessionId) {
        loop {
            let now = Instant::now();
            let Some(connection) = self.connections.get_mut(&id) else { return };
            if connection.outgoing.front().is_none_or(|(due, _)| *due > now) {
                return;
            }
            let Some((_, frame)) = connection.outgoing.pop_front() else { return };
            self.process(world, id, frame);
        }
    }

    fn process(&mut self, world: &World, id: SessionId, frame: Frame) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if let Frame::Gone = frame {
            connection.linked = false;
            return self.close(world, id);
        }
        if !connection.up {
            // The client hears of it through the end of the channel.
            if let Frame::Cancel(reply) | Frame::Close(reply) = frame
                && !connection.noticed
            {
                connection.unanswered.push(reply);
            }
            return;
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
            Frame::RequeueAll => self.give_back(world, id),
            Frame::Cancel(reply) => {
                connection.consuming = false;
                connection.stream_end.get_or_insert(None);
                connection.wake();
                self.answer(world, id, reply);
            }
            Frame::Close(reply) => {
                self.answer(world, id, reply);
                self.close(world, id);
            }
            Frame::Gone => {}
        }
    }

    fn answer(&mut self, world: &World, id: SessionId, reply: oneshot::Sender<()>) {
        if world.mishap(world.plan.faults.no_answer) {
            world.trace(|| format!("broker: no answer on {id}"));
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.unanswered.push(reply);
            }
        } else {
            // A client that is gone needs no answer.
            let _gone = reply.send(());
        }
    }

    fn precondition_failed(&mut self, world: &World, id: SessionId, what: &str, tag: DeliveryTag) {
        world.violation(format!("{what} of unknown tag {tag} on session {id}: the channel closes"));
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.notice("PRECONDITION_FAILED");
        }
        self.close(world, id);
    }
}
