//! Messages on their way to a confirm, and the place up to which there is none before it.

use std::collections::VecDeque;

use super::lines::Position;

/// Messages in the window at most.
const MESSAGES: usize = 2_000;
/// No further message while so many bytes wait for their confirm: memory is bounded, however long
/// the lines are.
const BYTES: usize = 32 * 1_024 * 1_024;

/// Number of a message in the order they are read in; means nothing to the broker.
pub type Number = u64;

/// From the first message that is not confirmed to the last one that was read. Confirms come in any
/// order; a body is kept until its own, since it has to be published again when the connection is
/// lost.
#[derive(Debug, Default)]
pub struct Window {
    /// The end of the message before the window's first.
    reached: Position,
    first: Number,
    messages: VecDeque<Message>,
    bytes: usize,
}

#[derive(Debug)]
struct Message {
    /// `None`: confirmed.
    body: Option<Vec<u8>>,
    end: Position,
}

impl Window {
    /// An empty one behind what was confirmed before.
    pub fn from(reached: Position) -> Self {
        Self { reached, ..Self::default() }
    }

    /// Everything up to here is confirmed. What is behind it may be, in part.
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
        self.messages.push_back(Message { body: Some(body), end });
        self.first + self.messages.len() as u64 - 1
    }

    /// The broker has it. A second confirm of the same changes nothing.
    pub fn confirm(&mut self, number: Number) {
        let at = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        let message = at.and_then(|at| self.messages.get_mut(at));
        if let Some(body) = message.and_then(|message| message.body.take()) {
            self.bytes -= body.len();
        }
        while let Some(first) = self.messages.pop_front_if(|first| first.body.is_none()) {
            self.reached = first.end;
            self.first += 1;
        }
    }

    /// What has to be published again, in the order of the file.
    pub fn unconfirmed(&self) -> impl Iterator<Item = (Number, &[u8])> {
        let numbered = (self.first..).zip(&self.messages);
        numbered.filter_map(|(number, message)| Some((number, message.body.as_deref()?)))
    }

    /// The body of a message that is not confirmed.
    pub fn body(&self, number: Number) -> Option<&[u8]> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.messages.get(at)?.body.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn position(message: u64) -> Position {
        Position { bytes: message * 10, lines: message * 2, blank: message }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Push,
        /// The confirm of one of those not confirmed, or of any.
        Confirm(prop::sample::Index),
        Again(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Push),
            3 => any::<prop::sample::Index>().prop_map(Step::Confirm),
            1 => any::<prop::sample::Index>().prop_map(Step::Again),
        ]
    }

    proptest! {
        /// In whatever order confirms come: what is reached is the end of the longest run of
        /// confirmed messages from the beginning, and all others would be published again.
        #[test]
        fn what_is_reached_is_the_contiguous_confirmed_prefix(
            steps in prop::collection::vec(step(), 0..200)
        ) {
            let mut window = Window::from(position(0));
            let (mut pushed, mut open) = (0_u64, BTreeSet::new());
            for step in steps {
                match step {
                    Step::Push => {
                        let number = window.push(pushed.to_string().into_bytes(), position(pushed + 1));
                        prop_assert_eq!(number, pushed);
                        open.insert(number);
                        pushed += 1;
                    }
                    Step::Confirm(which) if !open.is_empty() => {
                        let number = *which.get(&open.iter().copied().collect::<Vec<_>>());
                        open.remove(&number);
                        window.confirm(number);
                    }
                    Step::Again(which) if pushed > 0 => {
                        let number = which.index(usize::try_from(pushed).expect("few")) as u64;
                        open.remove(&number);
                        window.confirm(number);
                    }
                    Step::Confirm(_) | Step::Again(_) => {}
                }
                let prefix = open.first().copied().unwrap_or(pushed);
                prop_assert_eq!(window.reached(), position(prefix));
                let left: Vec<u64> = window.unconfirmed().map(|(number, _)| number).collect();
                prop_assert!(left.iter().eq(open.iter()));
                for (number, body) in window.unconfirmed() {
                    let expected = number.to_string();
                    prop_assert_eq!(body, expected.as_bytes());
                    prop_assert_eq!(window.body(number), Some(body));
                }
                let bytes: usize = open.iter().map(|number| number.to_string().len()).sum();
                prop_assert_eq!(window.bytes, bytes);
                prop_assert_eq!(window.is_empty(), prefix == pushed);
            }
        }
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
        window.confirm(0);
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
