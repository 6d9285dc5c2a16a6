//! The frames in a stream of bytes: method and header frames wait until they are complete, and are
//! repaired; the others pass.

use std::collections::BTreeSet;
use std::io;

use bytes::{Buf, BufMut, BytesMut};

use super::FRAME_MAX;
use super::repair::{self, CONTENT_HEAD, Method};
use crate::adapters::broker::ServerVersion;

/// Type, channel and size.
const FRAME_HEAD: usize = 7;
/// Head, and the octet behind the payload.
pub(super) const FRAME_OVERHEAD: usize = FRAME_HEAD + 1;
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xce;
/// The first byte of `AMQP` and four bytes more: the answer to an unsupported protocol version.
const PROTOCOL_HEADER: u8 = b'A';
const PROTOCOL_HEADER_SIZE: usize = 8;

/// AMQP 0-9-1's `frame-min-size`, the least that the client negotiates.
const FRAME_MIN: u32 = 4_096;
/// Longest payload of a method or header frame that is held, in bytes. RabbitMQ refuses longer frames
/// than its `frame_max` from AMQP 0-9-1 publishers, but never splits a header frame that it sends: its
/// own headers (`x-death`, `x-delivery-count`) make one longer, and properties of AMQP 1.0 publishers,
/// or of any with `frame_max = 0`, have no limit.
const HELD_AT_MOST: usize = 4 * FRAME_MAX as usize;

/// A stream of AMQP 0-9-1 frames on its way from the broker to the client, without any I/O.
pub struct Frames {
    /// What arrived of frames that are not complete.
    pub(super) input: BytesMut,
    /// For the client.
    output: BytesMut,
    /// Bytes to come that belong to a frame that is not held.
    passing: usize,
    /// Bytes to come that belong to a header frame too long to be held, and don't reach the client.
    discarding: usize,
    /// Longest frame that the client takes: what it negotiates with the broker.
    frame_max: usize,
    /// Channels whose last method announced a message with an invalid short string.
    invalid: BTreeSet<u16>,
    /// The broker's version, once it has announced it.
    pub(super) version: Option<ServerVersion>,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            input: BytesMut::new(),
            output: BytesMut::new(),
            passing: 0,
            discarding: 0,
            frame_max: FRAME_MAX as usize,
            invalid: BTreeSet::new(),
            version: None,
        }
    }
}

impl Frames {
    /// Takes in bytes from the broker.
    ///
    /// # Errors
    /// A method frame that is too long to be held, which no AMQP broker sends.
    pub fn receive(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.input.extend_from_slice(bytes);
        while !self.input.is_empty() && self.next_frame()? {}
        Ok(())
    }

    /// Copies bytes for the client into `buf`; returns how many.
    pub fn give(&mut self, buf: &mut [u8]) -> usize {
        let count = buf.len().min(self.output.len());
        self.output.copy_to_slice(&mut buf[..count]);
        if self.output.is_empty() {
            // `input` may use the memory again.
            self.output = BytesMut::new();
        }
        count
    }

    /// Handles one frame, or a part of one; false when more has to arrive first.
    fn next_frame(&mut self) -> io::Result<bool> {
        let arrived = self.input.len();
        if self.passing > 0 {
            let count = arrived.min(self.passing);
            self.passing -= count;
            self.output.unsplit(self.input.split_to(count));
            return Ok(true);
        }
        if self.discarding > 0 {
            let count = arrived.min(self.discarding);
            self.discarding -= count;
            self.input.advance(count);
            return Ok(true);
        }
        if self.input[0] == PROTOCOL_HEADER {
            self.passing = PROTOCOL_HEADER_SIZE;
            return Ok(true);
        }
        let Some(&[kind, c0, c1, s0, s1, s2, s3]) = self.input.first_chunk::<FRAME_HEAD>() else {
            return Ok(false);
        };
        let channel = u16::from_be_bytes([c0, c1]);
        let size = u32::from_be_bytes([s0, s1, s2, s3]) as usize;
        let length = size + FRAME_OVERHEAD;
        match kind {
            METHOD if size > HELD_AT_MOST => {
                let message = format!("the broker sent a method frame of {size} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            HEADER if size > HELD_AT_MOST => {
                let Some(head) = self.input.get(FRAME_HEAD..FRAME_HEAD + CONTENT_HEAD) else {
                    return Ok(false);
                };
                let marked = repair::bare(head);
                self.invalid.remove(&channel);
                self.give_header(channel, &marked);
                self.discarding = length;
            }
            METHOD | HEADER if arrived < length => return Ok(false),
            METHOD | HEADER => {
                let mut frame = self.input.split_to(length);
                let payload = &mut frame[FRAME_HEAD..FRAME_HEAD + size];
                match self.repair(kind, channel, payload) {
                    Some(replacement) => self.give_header(channel, &replacement),
                    // No copy where it stands behind what is there.
                    None => self.output.unsplit(frame),
                }
            }
            BODY | HEARTBEAT => self.passing = length,
            // Not AMQP, which the client reports.
            _ => self.passing = usize::MAX,
        }
        Ok(true)
    }

    /// Repairs a payload where it stands, or returns one to replace it.
    fn repair(&mut self, kind: u8, channel: u16, payload: &mut [u8]) -> Option<Vec<u8>> {
        if kind == HEADER {
            let invalid = self.invalid.remove(&channel);
            return repair::header(payload, invalid, self.frame_max);
        }
        match repair::method(payload) {
            Method::InvalidMessage => {
                self.invalid.insert(channel);
            }
            // 0 is no limit.
            Method::Tune { frame_max: 0 } => self.frame_max = FRAME_MAX as usize,
            Method::Tune { frame_max } => {
                self.frame_max = frame_max.clamp(FRAME_MIN, FRAME_MAX) as usize;
            }
            Method::Start { version } => self.version = version,
            Method::Other => {}
        }
        None
    }

    fn give_header(&mut self, channel: u16, payload: &[u8]) {
        self.output.put_u8(HEADER);
        self.output.put_u16(channel);
        self.output.put_u32(payload.len() as u32);
        self.output.put_slice(payload);
        self.output.put_u8(FRAME_END);
    }
}
