//! Messages that are published together.

use super::lines::Position;

/// A batch is full with the first of these; its bodies are kept until it is confirmed.
const MAX_MESSAGES: usize = 8_000;
const MAX_BYTES: usize = 32 * 1_024 * 1_024;

/// Messages that are not certain to be in the queue, in the order of the source.
///
/// One confirm alone proves nothing: RabbitMQ also confirms a message that it returns, one frame
/// confirms many, and lapin may attribute the return to any of those. A message is certain once
/// nothing is in flight any more and none was returned.
pub struct Batch {
    pub messages: Vec<Message>,
    bytes: usize,
    /// The end of the message before the first one: everything up to here is in the queue.
    pub reached: Position,
}

pub struct Message {
    pub body: Vec<u8>,
    end: Position,
    pub confirmed: bool,
}

impl Batch {
    pub const fn new(reached: Position) -> Self {
        Self { messages: Vec::new(), bytes: 0, reached }
    }

    pub const fn is_full(&self) -> bool {
        self.messages.len() >= MAX_MESSAGES || self.bytes >= MAX_BYTES
    }

    pub fn push(&mut self, body: Vec<u8>, end: Position) {
        self.bytes += body.len();
        self.messages.push(Message { body, end, confirmed: false });
    }

    pub fn unconfirmed(&self) -> usize {
        self.messages.iter().filter(|message| !message.confirmed).count()
    }

    /// Takes the confirms as certain, up to the first message without one.
    pub fn take_confirmed(&mut self) {
        let confirmed = self.messages.iter().take_while(|message| message.confirmed).count();
        for message in self.messages.drain(..confirmed) {
            self.bytes -= message.body.len();
            self.reached = message.end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(lines: u64) -> Position {
        Position { bytes: lines * 10, lines, blank: 0 }
    }

    /// A full queue refuses some of those in flight, time and again.
    #[test]
    fn only_messages_before_the_first_unconfirmed_one_are_taken() {
        let mut batch = Batch::new(at(0));
        (1..=4).for_each(|lines| batch.push(vec![b'x'], at(lines)));
        for confirmed in [0, 2] {
            batch.messages[confirmed].confirmed = true;
        }
        batch.take_confirmed();
        assert_eq!((batch.reached, batch.unconfirmed()), (at(1), 2));
        batch.messages.iter_mut().for_each(|message| message.confirmed = true);
        batch.take_confirmed();
        assert_eq!((batch.reached, batch.bytes, batch.unconfirmed()), (at(4), 0, 0));
    }

    #[test]
    fn a_batch_is_bounded_by_messages_and_by_bytes() {
        let mut many = Batch::new(at(0));
        while !many.is_full() {
            many.push(Vec::new(), at(1));
        }
        let mut large = Batch::new(at(0));
        large.push(vec![b'x'; MAX_BYTES], at(1));
        assert_eq!((many.messages.len(), large.is_full()), (MAX_MESSAGES, true));
    }
}
