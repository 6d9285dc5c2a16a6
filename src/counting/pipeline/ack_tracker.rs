//! Which deliveries of one channel are settled, and how far a `multiple` ack may reach.
//!
//! Architecture invariant: no I/O here. A tracker belongs to one channel and dies with it; tags of
//! an older channel can't reach it.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::model::ports::DeliveryTag;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Delivered, and not settled yet.
    Held,
    /// Its effect is committed: may be acked.
    Done,
    /// Already rejected on its own: no ack may name it.
    Rejected,
}

/// How far to ack, with `multiple`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckPoint {
    pub tag: DeliveryTag,
    /// How many deliveries that acks.
    pub deliveries: u64,
}

/// The deliveries of one channel that are not behind the last ack, in order of arrival.
#[derive(Debug, Default)]
pub struct AckTracker {
    open: VecDeque<(DeliveryTag, State, Instant)>,
    /// Of those, how many are rejected.
    rejected: usize,
}

impl AckTracker {
    /// Notes a delivery; tags arrive in ascending order on a channel.
    pub fn track(&mut self, tag: DeliveryTag, taken: Instant) {
        debug_assert!(self.open.back().is_none_or(|(last, ..)| *last < tag), "tags ascend");
        self.open.push_back((tag, State::Held, taken));
    }

    /// Deliveries that are neither behind an ack point nor rejected.
    pub fn unsettled(&self) -> usize {
        self.open.len() - self.rejected
    }

    /// When the first of them was taken; the front is never a rejected one.
    pub fn oldest(&self) -> Option<Instant> {
        self.open.front().map(|(_, _, taken)| *taken)
    }

    /// The deliveries' effect is committed.
    pub fn done(&mut self, tags: impl IntoIterator<Item = DeliveryTag>) {
        tags.into_iter().for_each(|tag| self.settle(tag, State::Done));
    }

    /// The delivery was rejected on its own. Rejected ones at the front are forgotten here: a queue of only
    /// malformed messages never has an ack that would cover them.
    pub fn rejected(&mut self, tag: DeliveryTag) {
        self.settle(tag, State::Rejected);
        while self.open.pop_front_if(|(_, state, _)| *state == State::Rejected).is_some() {
            self.rejected -= 1;
        }
    }

    fn settle(&mut self, tag: DeliveryTag, state: State) {
        if let Some(entry) = self.position(tag).and_then(|at| self.open.get_mut(at)) {
            self.rejected += usize::from(state == State::Rejected);
            self.rejected -= usize::from(entry.1 == State::Rejected);
            entry.1 = state;
        }
    }

    fn position(&self, tag: DeliveryTag) -> Option<usize> {
        // RabbitMQ leaves out no tag, so the position follows from it. The search is for a broker that does:
        // its deliveries must not stay unsettled.
        let (front, ..) = self.open.front()?;
        let expected = usize::try_from(tag.checked_sub(*front)?).ok()?;
        if self.open.get(expected).is_some_and(|(at, ..)| *at == tag) {
            return Some(expected);
        }
        self.open.binary_search_by_key(&tag, |(tag, ..)| *tag).ok()
    }

    /// Forgets the contiguous settled prefix, as far as one ack may reach, and names the tag to ack
    /// it by, with `multiple`: the highest that is not rejected, since RabbitMQ closes a channel
    /// that names a rejected tag and takes passing over one well. `None` when nothing is left to
    /// ack.
    pub fn ack_point(&mut self, at_most: u64) -> Option<AckPoint> {
        let mut point: Option<AckPoint> = None;
        while let Some((tag, state, _)) = self.open.front().copied() {
            match state {
                State::Held => break,
                State::Done if point.is_some_and(|point| point.deliveries >= at_most) => break,
                State::Done => {
                    let deliveries = 1 + point.map_or(0, |point| point.deliveries);
                    point = Some(AckPoint { tag, deliveries });
                }
                State::Rejected => self.rejected -= 1,
            }
            self.open.pop_front();
        }
        point
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn never_passes_a_held_delivery_and_never_names_a_rejected_one() {
        let mut acks = AckTracker::default();
        (1..=5).for_each(|tag| acks.track(tag, Instant::now()));
        acks.done([2]);
        assert_eq!(acks.ack_point(u64::MAX), None, "1 is still held");
        acks.rejected(1);
        acks.rejected(3);
        let point = AckPoint { tag: 2, deliveries: 1 };
        assert_eq!(acks.ack_point(u64::MAX), Some(point), "3 is rejected, 4 is held");
        assert_eq!(acks.ack_point(u64::MAX), None, "nothing twice");
        acks.done([5]);
        assert_eq!(acks.ack_point(u64::MAX), None);
        acks.rejected(4);
        assert_eq!(acks.ack_point(u64::MAX), Some(AckPoint { tag: 5, deliveries: 1 }));
        assert!(acks.open.is_empty());
    }

    #[test]
    fn a_delivery_behind_a_gap_in_the_tags_is_found() {
        let mut acks = AckTracker::default();
        [3, 4, 9, 12].into_iter().for_each(|tag| acks.track(tag, Instant::now()));
        acks.done([12, 3, 9, 4, 5]);
        assert_eq!(acks.ack_point(3), Some(AckPoint { tag: 9, deliveries: 3 }));
        assert_eq!(acks.ack_point(3), Some(AckPoint { tag: 12, deliveries: 1 }));
        assert!(acks.open.is_empty());
    }

    #[test]
    fn a_rejected_prefix_alone_sends_nothing() {
        let mut acks = AckTracker::default();
        (1..=3).for_each(|tag| acks.track(tag, Instant::now()));
        acks.rejected(2);
        assert_eq!(acks.open.len(), 3, "behind a held one it has to stay");
        assert_eq!(acks.unsettled(), 2);
        acks.rejected(2);
        assert_eq!(acks.unsettled(), 2, "a second reject changes nothing");
        acks.rejected(1);
        assert_eq!(acks.open.len(), 1, "forgotten without any ack");
        acks.rejected(3);
        assert!(acks.open.is_empty());
        assert_eq!(acks.ack_point(u64::MAX), None);
    }

    proptest! {
        /// Against a plain model: whatever the order of settling, an ack point covers only settled
        /// tags, and no more of them than it may, names a done one, never the same twice, and in
        /// the end all are covered.
        #[test]
        fn covers_the_settled_prefix_and_only_that(
            rejected in proptest::collection::vec(any::<bool>(), 1..60),
            order in any::<u64>(),
            at_most in 1_u64..=20,
        ) {
            let count = rejected.len() as u64;
            let mut acks = AckTracker::default();
            (1..=count).for_each(|tag| acks.track(tag, Instant::now()));
            let mut open: BTreeMap<u64, Option<bool>> = (1..=count).map(|tag| (tag, None)).collect();
            let mut tags: Vec<u64> = (1..=count).collect();
            fastrand::Rng::with_seed(order).shuffle(&mut tags);

            let mut acked = 0;
            let mut deliveries = 0;
            for tag in tags {
                let is_rejected = rejected[(tag - 1) as usize];
                if is_rejected { acks.rejected(tag) } else { acks.done([tag]) }
                open.insert(tag, Some(is_rejected));
                let counted = acks.open.iter().filter(|(_, state, _)| *state != State::Rejected);
                prop_assert_eq!(acks.unsettled(), counted.count());
                while let Some(AckPoint { tag: point, deliveries: more }) = acks.ack_point(at_most) {
                    prop_assert!(more <= at_most);
                    deliveries += more;
                    let done = open.range(..=point).filter(|(_, state)| **state == Some(false));
                    prop_assert_eq!(deliveries, done.count() as u64);
                    prop_assert!(point > acked, "acks move forward");
                    prop_assert_eq!(open[&point], Some(false), "names a tag that is done");
                    prop_assert!(open.range(..=point).all(|(_, state)| state.is_some()), "no gap");
                    acked = point;
                }
            }
            let last_done = (1..=count).rev().find(|tag| !rejected[(*tag - 1) as usize]);
            prop_assert_eq!(acked, last_done.unwrap_or(0));
            prop_assert!(acks.open.is_empty());
        }
    }
}
