//! What makes the payload of one frame decodable. Lengths stay as they are wherever that is
//! possible; a message whose properties are invalid AMQP is marked.

use std::ops::Range;

use super::frames::FRAME_OVERHEAD;
use super::table::{self, Table};
use crate::adapters::broker::ServerVersion;

/// The mark: `cluster_id`, a property that AMQP 0-9-1 has reserved and no publisher needs. One that
/// a publisher forged is changed on its way.
pub(super) const MARK: &str = "vote-aggregator: invalid properties";

/// Class, weight and body size, before the property flags.
pub(super) const CONTENT_HEAD: usize = 12;
const FLAGS: Range<usize> = CONTENT_HEAD..CONTENT_HEAD + 2;
const CLUSTER_ID: u16 = 1 << 2;
/// What publishing a message again may add to its properties, in bytes; else `dlq` could not.
const ADDED_AT_MOST: usize = 1_024;

/// What a method announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// A message that had a short string which was not UTF-8, such as its routing key.
    InvalidMessage,
    /// The broker's limits for the connection: its longest frame in bytes, 0 for no limit.
    Tune {
        frame_max: u32,
    },
    /// The broker, as it announces itself.
    Start {
        version: Option<ServerVersion>,
    },
    Other,
}

/// Replaces what is not UTF-8 in the short strings of a method that publishers influence.
pub(super) fn method(payload: &mut [u8]) -> Method {
    let Some((id, arguments)) = payload.split_first_chunk_mut::<4>() else {
        return Method::Other;
    };
    let [c0, c1, m0, m1] = *id;
    // Of each: bytes to skip before every short string.
    let (strings, is_message): (&[usize], bool) =
        match (u16::from_be_bytes([c0, c1]), u16::from_be_bytes([m0, m1])) {
            // basic.deliver: consumer tag; delivery tag, redelivered, exchange; routing key.
            (60, 60) => (&[0, 9, 0], true),
            // basic.get-ok: delivery tag, redelivered, exchange; routing key.
            (60, 71) => (&[9, 0], true),
            // basic.return: reply code, reply text; exchange; routing key.
            (60, 50) => (&[2, 0, 0], true),
            // connection.close and channel.close: reply code, reply text, which RabbitMQ cuts off
            // wherever it becomes too long.
            (10, 50) | (20, 40) => (&[2], false),
            (10, 10) => return Method::Start { version: ServerVersion::announced(payload) },
            // connection.tune: channels, longest frame, heartbeat.
            (10, 30) => {
                return match arguments.get(2..6).and_then(<[u8]>::first_chunk::<4>) {
                    Some(bytes) => Method::Tune { frame_max: u32::from_be_bytes(*bytes) },
                    None => Method::Other,
                };
            }
            _ => return Method::Other,
        };
    let (mut at, mut invalid) = (0, false);
    for skipped in strings {
        match short_string(arguments, at + skipped, arguments.len()) {
            Some((end, repaired)) => {
                at = end;
                invalid |= repaired;
            }
            // Not AMQP, which the client reports.
            None => return Method::Other,
        }
    }
    if invalid && is_message { Method::InvalidMessage } else { Method::Other }
}

/// Repairs the properties of a message in place, or returns a payload to replace this one. `invalid`:
/// whether the method before it was repaired; `frame_max`: the longest frame that the client takes.
pub(super) fn header(payload: &mut [u8], invalid: bool, frame_max: usize) -> Option<Vec<u8>> {
    if payload.len() < CONTENT_HEAD {
        // Not AMQP, which the client reports.
        return None;
    }
    let Some(found) = properties(payload) else {
        return Some(bare(&payload[..CONTENT_HEAD]));
    };
    if let Some(at) = found.cluster_id.filter(|at| payload[at + 1..] == *MARK.as_bytes()) {
        payload[at + 1] = b'?';
    }
    let mark = invalid || found.repaired || found.table == Table::Invalid;
    let added = if mark { 1 + MARK.len() } else { 0 };
    let fits = payload.len() + added + FRAME_OVERHEAD + ADDED_AT_MOST <= frame_max;
    // What the broker itself made too long is still a valid message.
    let with_headers = fits && matches!(found.table, Table::Valid | Table::Repaired);
    if with_headers && !mark {
        return None;
    }

    let cluster_id = found.cluster_id.unwrap_or(payload.len());
    let mut kept = match found.headers {
        // A table of no bytes.
        Some(Range { start, end }) if !with_headers => {
            [&payload[..start], &[0; 4], &payload[end..cluster_id]].concat()
        }
        _ => payload[..cluster_id].to_vec(),
    };
    if mark {
        kept[FLAGS.end - 1] |= CLUSTER_ID as u8;
        push_mark(&mut kept);
    } else {
        kept.extend_from_slice(&payload[cluster_id..]);
    }
    Some(kept)
}

/// Returns the payload with this content head that has no property but the mark.
pub(super) fn bare(content_head: &[u8]) -> Vec<u8> {
    let mut payload = content_head.to_vec();
    payload.extend(CLUSTER_ID.to_be_bytes());
    push_mark(&mut payload);
    payload
}

fn push_mark(payload: &mut Vec<u8>) {
    payload.push(MARK.len() as u8);
    payload.extend_from_slice(MARK.as_bytes());
}

/// The properties of one message.
struct Found {
    /// A short string was not UTF-8.
    repaired: bool,
    table: Table,
    /// Where the headers are, with their length.
    headers: Option<Range<usize>>,
    /// Where the last of the properties begins, with its length.
    cluster_id: Option<usize>,
}

/// From `content_type` down to `cluster_id`, in the order of their flags: a short string, a table, an
/// octet, or a timestamp.
const PROPERTIES: [u8; 14] = *b"ssFoossssTssss";

/// Repairs the properties, each where it stands; `None` when they are not exactly as long as the
/// payload.
fn properties(payload: &mut [u8]) -> Option<Found> {
    let end = payload.len();
    let [f0, f1] = *payload.get(FLAGS)?.first_chunk::<2>()?;
    let flags = u16::from_be_bytes([f0, f1]);
    let mut found = Found { repaired: false, table: Table::Valid, headers: None, cluster_id: None };
    let mut at = FLAGS.end;
    for (index, kind) in PROPERTIES.into_iter().enumerate() {
        if flags & (1 << (15 - index)) == 0 {
            continue;
        }
        let begin = at;
        match kind {
            b's' => {
                let repaired;
                (at, repaired) = short_string(payload, at, end)?;
                found.repaired |= repaired;
            }
            b'F' => {
                at = table::end(payload, at, end)?;
                found.table = table::repair(payload, begin + 4..at);
                found.repaired |= found.table == Table::Repaired;
                found.headers = Some(begin..at);
            }
            b'o' => at += 1,
            _ => at += 8,
        }
        if index == PROPERTIES.len() - 1 {
            found.cluster_id = Some(begin);
        }
    }
    (at == end).then_some(found)
}

/// Replaces what is not UTF-8 in the short string at `at`; returns where it ends, and whether
/// something was replaced. `None` when it does not end before `limit`.
pub(super) fn short_string(bytes: &mut [u8], at: usize, limit: usize) -> Option<(usize, bool)> {
    let length = usize::from(*bytes.get(at)?);
    let end = at + 1 + length;
    if end > limit {
        return None;
    }
    Some((end, make_utf8(&mut bytes[at + 1..end])))
}

fn make_utf8(mut text: &mut [u8]) -> bool {
    let mut replaced = false;
    while let Err(error) = std::str::from_utf8(text) {
        let from = error.valid_up_to();
        let to = error.error_len().map_or(text.len(), |length| from + length);
        text[from..to].fill(b'?');
        text = &mut text[to..];
        replaced = true;
    }
    replaced
}
