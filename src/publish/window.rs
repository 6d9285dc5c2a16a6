//! Messages on their way to a confirm, and the place up to which there is none before it.

use std::collections::VecDeque;
use std::ops::Range;

use super::lines::Position;

/// Messages in the window at most.
const MESSAGES: usize = 4_000;
/// No further message while so many bytes wait for their confirm: memory is bounded, however long
/// the lines are.
const BYTES: usize = 32 * 1_024 * 1_024;

/// Number of a message in the order they are read in; means nothing to the broker.
pub type Number = u64;

/// From the first message that is not certain to be in the queue to the last one that was read.
/// Confirms come in any order.
///
/// One confirm alone proves nothing. A message that the broker returns is confirmed as well, one frame
/// confirms many, and lapin gives the returned message to any one of those: another than the returned
/// one would be taken for lost, and the returned one for published. So a message leaves, and its body is
/// kept until then, when everything that was under way at its confirm has been confirmed without a
/// message being returned.
#[derive(Debug, Default)]
pub struct Window {
    /// The end of the message before the window's first.
    reached: Position,
    first: Number,
    messages: VecDeque<Message>,
    /// So many messages at the beginning are confirmed.
    confirmed: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Message {
    body: Vec<u8>,
    end: Position,
    /// The last message under way when this one was confirmed.
    confirmed_with: Option<Number>,
}

impl Window {
    /// An empty one behind what was confirmed before.
    pub fn from(reached: Position) -> Self {
        Self { reached, ..Self::default() }
    }

    /// Everything up to here is in the queue. What is behind it may be, in part.
    pub const fn reached(&self) -> Position {
        self.reached
    }

    /// Moves over what is behind the last message, blank lines say.
    ///
    /// Without effect while a message is not confirmed.
    pub fn end_at(&mut self, position: Position) {
        if self.is_empty() {
            self.reached = position;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub fn has_room(&self) -> bool {
        self.messages.len() < MESSAGES && self.bytes < BYTES
    }

    /// Takes in a message that ends at `end`.
    pub fn push(&mut self, body: Vec<u8>, end: Position) -> Number {
        self.bytes += body.len();
        self.messages.push_back(Message { body, end, confirmed_with: None });
        self.numbers().end - 1
    }

    /// The broker has confirmed it; how many messages left the window for that.
    pub fn confirm(&mut self, number: Number) -> u64 {
        let last = self.numbers().end.saturating_sub(1);
        let Some(message) = self.at(number).and_then(|at| self.messages.get_mut(at)) else {
            return 0;
        };
        message.confirmed_with.get_or_insert(last);
        let rest = usize::try_from(self.confirmed).unwrap_or_default();
        let more = self.messages.iter().skip(rest);
        self.confirmed +=
            more.take_while(|message| message.confirmed_with.is_some()).count() as u64;
        self.leave()
    }

    fn leave(&mut self) -> u64 {
        let before = self.first;
        while let Some(with) = self.messages.front().and_then(|first| first.confirmed_with)
            && with < self.first + self.confirmed
            && let Some(left) = self.messages.pop_front()
        {
            self.reached = left.end;
            self.bytes -= left.body.len();
            self.first += 1;
            self.confirmed -= 1;
        }
        self.first - before
    }

    /// A connection is over and no message was returned on it: what was confirmed is certain, whatever
    /// else was under way. Returns how many messages left the window for that.
    pub fn none_was_returned(&mut self) -> u64 {
        for (number, message) in (self.first..).zip(&mut self.messages) {
            message.confirmed_with = message.confirmed_with.map(|_| number);
        }
        self.leave()
    }

    /// The messages that are to be published again, which counts nothing twice.
    pub fn unconfirmed(&self) -> Vec<Number> {
        let all = self.numbers().zip(&self.messages);
        all.filter(|(_, message)| message.confirmed_with.is_none()).map(|(n, _)| n).collect()
    }

    /// All messages in the window, in the order of the file.
    pub fn numbers(&self) -> Range<Number> {
        self.first..self.first + self.messages.len() as u64
    }

    /// The body of a message in the window.
    pub fn body(&self, number: Number) -> Option<&[u8]> {
        Some(&self.messages.get(self.at(number)?)?.body)
    }

    fn at(&self, number: Number) -> Option<usize> {
        usize::try_from(number.checked_sub(self.first)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn position(message: u64) -> Position {
        Position { bytes: message * 10, lines: message * 2, blank: message }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Push,
        /// The confirm of any message, for the first or for another time.
        Confirm(prop::sample::Index),
        Over,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            12 => Just(Step::Push),
            16 => any::<prop::sample::Index>().prop_map(Step::Confirm),
            1 => Just(Step::Over),
        ]
    }

    proptest! {
        /// In whatever order confirms come: what is reached is the end of the longest run of messages
        /// from the beginning that were confirmed, each with all that were under way with it.
        #[test]
        fn what_is_reached_was_confirmed_with_everything_that_was_under_way(
            steps in prop::collection::vec(step(), 0..300)
        ) {
            let mut window = Window::from(position(0));
            let (mut pushed, mut reached) = (0_u64, 0_u64);
            // The last message under way at the confirm of each.
            let mut confirmed: BTreeMap<u64, u64> = BTreeMap::new();
            for step in steps {
                let mut left = 0;
                match step {
                    Step::Push => {
                        let body = pushed.to_string().into_bytes();
                        prop_assert_eq!(window.push(body, position(pushed + 1)), pushed);
                        pushed += 1;
                    }
                    Step::Confirm(which) if pushed > 0 => {
                        let number = which.index(usize::try_from(pushed).expect("few")) as u64;
                        left = window.confirm(number);
                        confirmed.entry(number).or_insert(pushed - 1);
                    }
                    Step::Confirm(_) => {}
                    Step::Over => {
                        left = window.none_was_returned();
                        confirmed.iter_mut().for_each(|(number, with)| *with = *number);
                    }
                }
                let run = (0..).take_while(|number| confirmed.contains_key(number)).count() as u64;
                let certain = |number: &u64| confirmed.get(number).is_some_and(|with| *with < run);
                let before = reached;
                reached += (reached..).take_while(certain).count() as u64;
                prop_assert_eq!(left, reached - before);
                prop_assert_eq!(window.reached(), position(reached));
                prop_assert_eq!(window.numbers(), reached..pushed);
                let unconfirmed: Vec<u64> =
                    (reached..pushed).filter(|number| !confirmed.contains_key(number)).collect();
                prop_assert_eq!(window.unconfirmed(), unconfirmed);
                for number in window.numbers() {
                    let expected = number.to_string();
                    prop_assert_eq!(window.body(number), Some(expected.as_bytes()));
                }
                let bytes: usize = window.numbers().map(|number| number.to_string().len()).sum();
                prop_assert_eq!(window.bytes, bytes);
            }
        }
    }

    #[test]
    fn a_returned_message_that_looks_confirmed_stays() {
        let mut window = Window::default();
        let numbers: Vec<Number> =
            (1..=3).map(|end| window.push(vec![b'x'], position(end))).collect();
        // One frame confirmed all three; the last was returned, and the first is told so.
        assert_eq!((window.confirm(numbers[2]), window.confirm(numbers[1])), (0, 0));
        assert_eq!(window.reached(), Position::default());
        assert_eq!(window.numbers(), 0..3);
    }

    /// A queue that is full refuses some of those under way, time and again.
    #[test]
    fn what_was_confirmed_beside_a_refused_message_is_not_published_again() {
        let mut window = Window::default();
        let numbers: Vec<Number> =
            (1..=4).map(|end| window.push(vec![b'x'], position(end))).collect();
        assert_eq!((window.confirm(numbers[0]), window.confirm(numbers[2])), (0, 0));
        assert_eq!(window.none_was_returned(), 1);
        assert_eq!((window.reached(), window.unconfirmed()), (position(1), vec![1, 3]));
        assert_eq!(window.confirm(numbers[1]), 0, "with the last one under way");
        assert_eq!(window.confirm(numbers[3]), 3);
    }

    #[test]
    fn it_is_full_by_messages_that_wait_behind_one_and_by_bytes() {
        let mut window = Window::default();
        for number in 0..MESSAGES as u64 {
            assert!(window.has_room());
            window.push(vec![b'x'], position(number + 1));
            window.confirm(number.max(1));
        }
        assert!(!window.has_room(), "the first is not confirmed: all behind it are remembered");
        assert_eq!(window.confirm(0), MESSAGES as u64);
        assert!(window.has_room() && window.is_empty());

        let number = window.push(vec![b'x'; BYTES], position(1));
        assert!(!window.has_room());
        window.confirm(number);
        assert!(window.has_room());
    }

    #[test]
    fn the_end_is_reached_only_when_everything_is_confirmed() {
        let mut window = Window::from(position(3));
        let number = window.push(vec![], position(4));
        window.end_at(position(9));
        assert_eq!(window.reached(), position(3));
        window.confirm(number);
        window.end_at(position(9));
        assert_eq!(window.reached(), position(9));
    }
}
