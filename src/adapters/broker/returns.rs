//! How often votes were given back, against the delivery limit of their queue.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::{Observer, QueueFacts, headers};
use crate::model::ports::DeliveryTag;

/// Of one session: the vote that was given back most often, until all that came back are settled.
pub(super) struct Returns {
    most: AtomicU32,
    /// The last delivery that came back.
    tag: AtomicU64,
    facts: QueueFacts,
    observe: Observer,
}

impl Returns {
    /// Of a queue with these facts; what changes is passed to `observe` with them.
    pub(super) fn new(facts: QueueFacts, observe: Observer) -> Self {
        let returns = Self { most: AtomicU32::new(0), tag: AtomicU64::new(0), facts, observe };
        returns.set(0);
        returns
    }

    pub(super) fn delivered(&self, message: &lapin::message::Delivery) {
        if !message.redelivered {
            return;
        }
        let count = headers::delivery_count(&message.properties);
        if count > 0 {
            self.tag.store(message.delivery_tag, Relaxed);
        }
        if count > self.most.load(Relaxed) {
            self.set(count);
        }
    }

    /// Acked or rejected.
    pub(super) fn settled(&self, up_to: DeliveryTag) {
        if self.most.load(Relaxed) > 0 && up_to >= self.tag.load(Relaxed) {
            self.set(0);
        }
    }

    fn set(&self, most: u32) {
        self.most.store(most, Relaxed);
        (self.observe)(&QueueFacts { returned: most, ..self.facts.clone() });
    }
}
