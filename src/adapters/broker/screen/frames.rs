//! The frames in a stream of bytes: which are held until they are complete, and repaired.

use std::collections::BTreeSet;
use std::io;

use super::{FRAME_MAX, repair};
use repair::CONTENT_HEAD;

/// Type, channel and size.
const FRAME_HEAD: usize = 7;
/// Head, and the octet behind the payload.
const FRAME_OVERHEAD: usize = FRAME_HEAD + 1;
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xce;
/// The first byte of `AMQP` and four bytes more: the answer to an unsupported protocol version.
const PROTOCOL_HEADER: u8 = b'A';
const PROTOCOL_HEADER_SIZE: u64 = 8;

/// AMQP 0-9-1's `frame-min-size`, the least that the client negotiates.
const FRAME_MIN: u32 = 4_096;
/// Longest payload of a method or header frame that is held, in bytes. RabbitMQ refuses longer frames
/// than its `frame_max` from AMQP 0-9-1 publishers, but never splits a header frame that it sends: its
/// own headers (`x-death`, `x-delivery-count`) make one longer, and properties of AMQP 1.0 publishers,
/// or of any with `frame_max = 0`, have no limit.
const HELD_AT_MOST: usize = 4 * FRAME_MAX as usize;
/// Length of the buffer, unless a longer frame has to be held.
const CAPACITY: usize = 64 << 10;

/// A stream of AMQP 0-9-1 frames on its way from the broker to the client, without any I/O.
pub struct Frames {
    bytes: Vec<u8>,
    /// `bytes[start..checked]` may be given to the client, `bytes[checked..end]` is not looked at.
    start: usize,
    checked: usize,
    end: usize,
    /// Bytes to come that belong to a frame that is not held.
    passing: u64,
    /// Bytes to come that belong to a header frame too long to be held, and don't reach the client.
    discarding: u64,
    /// Longest frame that the client takes: what it negotiates with the broker.
    frame_max: usize,
    /// Channels whose last method announced a message with an invalid short string.
    invalid: BTreeSet<u16>,
}

impl Default for Frames {
    fn default() -> Self {
        Self::new()
    }
}

impl Frames {
    /// Returns an empty stream.
    pub fn new() -> Self {
        Self {
            bytes: vec![0; CAPACITY],
            start: 0,
            checked: 0,
            end: 0,
            passing: 0,
            discarding: 0,
            frame_max: FRAME_MAX as usize,
            invalid: BTreeSet::new(),
        }
    }

    /// Returns where the next bytes from the broker are to be written; never empty.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            // Nothing to move most of the time: the client takes all it is given.
            self.bytes.copy_within(self.start..self.end, 0);
            self.checked -= self.start;
            self.end -= self.start;
            self.start = 0;
        }
        // A replaced payload leaves the buffer shorter or longer than it was.
        let length = if self.end < CAPACITY {
            CAPACITY
        } else {
            (2 * self.end).min(HELD_AT_MOST + FRAME_OVERHEAD).max(self.end + 1)
        };
        self.bytes.resize(length, 0);
        &mut self.bytes[self.end..]
    }

    /// Takes in `count` bytes that were written to [`Frames::space`].
    ///
    /// # Errors
    /// A method frame that is too long to be held, which no AMQP broker sends.
    pub fn filled(&mut self, count: usize) -> io::Result<()> {
        self.end += count;
        while self.checked < self.end && self.check_next()? {}
        Ok(())
    }

    /// Copies bytes for the client into `buf`; returns how many.
    pub fn give(&mut self, buf: &mut [u8]) -> usize {
        let count = buf.len().min(self.checked - self.start);
        buf[..count].copy_from_slice(&self.bytes[self.start..self.start + count]);
        self.start += count;
        count
    }

    /// Checks the bytes of one frame, or of a part of one; false when more have to arrive first.
    fn check_next(&mut self) -> io::Result<bool> {
        let unchecked = &self.bytes[self.checked..self.end];
        if self.passing > 0 {
            let count = unchecked.len().min(usize::try_from(self.passing).unwrap_or(usize::MAX));
            self.passing -= count as u64;
            self.checked += count;
            return Ok(true);
        }
        if self.discarding > 0 {
            let arrived = unchecked.len();
            let count = arrived.min(usize::try_from(self.discarding).unwrap_or(usize::MAX));
            self.discarding -= count as u64;
            self.bytes.copy_within(self.checked + count..self.end, self.checked);
            self.end -= count;
            return Ok(true);
        }
        if unchecked[0] == PROTOCOL_HEADER {
            self.passing = PROTOCOL_HEADER_SIZE;
            return Ok(true);
        }
        let Some(&[kind, c0, c1, s0, s1, s2, s3]) = unchecked.first_chunk::<FRAME_HEAD>() else {
            return Ok(false);
        };
        let channel = u16::from_be_bytes([c0, c1]);
        let size = u32::from_be_bytes([s0, s1, s2, s3]) as usize;
        match kind {
            METHOD if size > HELD_AT_MOST => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the broker sent a method frame of {size} bytes"),
            )),
            HEADER if size > HELD_AT_MOST => {
                if unchecked.len() < FRAME_HEAD + CONTENT_HEAD {
                    return Ok(false);
                }
                self.cut_off(channel, size);
                Ok(true)
            }
            METHOD | HEADER if unchecked.len() < size + FRAME_OVERHEAD => Ok(false),
            METHOD | HEADER => {
                self.repair(kind, channel, size);
                Ok(true)
            }
            BODY | HEARTBEAT => {
                self.passing = (size + FRAME_OVERHEAD) as u64;
                Ok(true)
            }
            // Not AMQP: the client says so.
            _ => {
                self.passing = u64::MAX;
                Ok(true)
            }
        }
    }

    /// Repairs one complete frame, and lets it pass.
    fn repair(&mut self, kind: u8, channel: u16, size: usize) {
        let begin = self.checked + FRAME_HEAD;
        let payload = &mut self.bytes[begin..begin + size];
        self.checked += size + FRAME_OVERHEAD;
        if kind == METHOD {
            match repair::method(payload) {
                repair::Method::InvalidMessage => {
                    self.invalid.insert(channel);
                }
                repair::Method::Tune { frame_max } => self.frame_max = negotiated(frame_max),
                repair::Method::Other => {}
            }
            return;
        }
        let invalid = !self.invalid.is_empty() && self.invalid.remove(&channel);
        if let Some(replacement) = repair::header(payload, invalid, self.frame_max) {
            self.set_size(begin, replacement.len());
            let added = replacement.len();
            self.bytes.splice(begin..begin + size, replacement);
            self.checked = self.checked - size + added;
            self.end = self.end - size + added;
        }
    }

    /// Lets a header frame that is too long to be held pass without its properties, and marked.
    fn cut_off(&mut self, channel: u16, size: usize) {
        self.invalid.remove(&channel);
        let begin = self.checked + FRAME_HEAD;
        let mut bare = repair::bare(&self.bytes[begin..begin + CONTENT_HEAD]);
        self.set_size(begin, bare.len());
        bare.push(FRAME_END);
        let (sent, added) = (size + 1, bare.len());
        let arrived = sent.min(self.end - begin);
        self.bytes.splice(begin..begin + arrived, bare);
        self.checked = begin + added;
        self.end = self.end - arrived + added;
        self.discarding = (sent - arrived) as u64;
    }

    /// Sets the size of the frame whose payload begins at `begin`.
    fn set_size(&mut self, begin: usize, size: usize) {
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        self.bytes[begin - 4..begin].copy_from_slice(&size.to_be_bytes());
    }
}

/// Returns the longest frame that the client takes when the broker announces this one; 0 is no limit.
fn negotiated(announced: u32) -> usize {
    let frame_max = if announced == 0 { FRAME_MAX } else { announced };
    frame_max.clamp(FRAME_MIN, FRAME_MAX) as usize
}
