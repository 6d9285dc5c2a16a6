//! What must hold for the screen between broker and client, whatever a message's properties: the
//! client's own parser takes every frame, the message stays the same, and only properties that the
//! parser would have refused, or that are too long to be held, are marked.

use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, parse_frame};
use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::protocol::{AMQPClass, basic};
use vote_aggregator::adapters::broker::Frames;

const MARK: &str = "vote-aggregator: invalid properties";
/// RabbitMQ's and the client's.
const FRAME_MAX: usize = 131_072;
/// A longer payload of a header frame is not held.
const HELD_AT_MOST: usize = 4 * FRAME_MAX;
/// Class, weight and body size.
const CONTENT_HEAD: usize = 12;
/// A limit that a broker may announce.
const TUNED: usize = 8_192;
const BODY: &[u8] = b"{\"vote_hash\":\"h\"}\xff";
const TAG: u64 = 0x0102_0304_0506_0708;
const CHANNEL: u16 = 7;

/// Checks the frames of one message. `input`: the length of the routing key, the routing key, and
/// the property flags and properties. `read` says how many bytes are read and given at a time.
/// Returns whether the message is marked as one with invalid properties.
///
/// # Panics
/// When the parser refuses a frame, or finds another message in it.
pub fn check(input: &[u8], mut read: impl FnMut() -> usize) -> bool {
    let Some((length, rest)) = input.split_first() else { return false };
    let (routing_key, properties) = rest.split_at(rest.len().min(usize::from(*length)));
    let sent = message(routing_key, properties);
    let whole = screened(&sent, || usize::MAX);
    assert_eq!(screened(&sent, || read().max(1)), whole, "however it is read");
    let tune =
        [&[0, 10, 0, 30, 7, 255, 0, 0][..], &(TUNED as u16).to_be_bytes(), &[0, 60]].concat();
    let tuned = screened(&[frame(1, 0, &tune), sent.clone()].concat(), || usize::MAX);
    assert_eq!(parsed(&tuned, TUNED).len(), 5);

    let frames = parsed(&whole, FRAME_MAX);
    let [
        AMQPFrame::Method(CHANNEL, AMQPClass::Basic(basic::AMQPMethod::Deliver(deliver))),
        AMQPFrame::Header(_, header),
        AMQPFrame::Body(CHANNEL, body),
        AMQPFrame::Heartbeat,
    ] = &frames[..]
    else {
        panic!("other frames than those that were sent: {frames:?}");
    };
    assert_eq!((deliver.delivery_tag, body.as_slice()), (TAG, BODY));
    assert_eq!(deliver.routing_key.as_str().len(), routing_key.len());
    let AMQPContentHeader { class_id, body_size, properties: found } = header;
    assert_eq!((*class_id, *body_size), (60, BODY.len() as u64));

    let has_mark = |properties: &AMQPProperties| {
        properties.cluster_id().as_ref().is_some_and(|id| id.as_str() == MARK)
    };
    let marked = has_mark(found);
    let too_long = CONTENT_HEAD + properties.len() > HELD_AT_MOST;
    assert!(marked || !too_long, "not held, and not marked");
    // The oracle recurses, so it is asked only where it can't go deep.
    let containers = properties.iter().filter(|byte| matches!(byte, b'A' | b'F')).count();
    if properties.len() < 1_000 && containers < 30 {
        let parsed = basic::parse_properties(properties);
        let forged = parsed.as_ref().is_ok_and(|(_, properties)| has_mark(properties));
        let valid = matches!(parsed, Ok(([], _))) && std::str::from_utf8(routing_key).is_ok();
        assert_eq!(marked, !valid, "marked, and valid");
        if valid && !forged {
            assert!(whole == sent, "a valid message is changed");
        }
    }
    if !marked && whole.len() != sent.len() {
        assert!(found.headers().as_ref().is_some_and(|table| table.inner().is_empty()));
    }
    marked
}

/// The frames that the client parses, none of which is longer than `frame_max`.
fn parsed(mut bytes: &[u8], frame_max: usize) -> Vec<AMQPFrame> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let (behind, frame) = parse_frame(bytes).expect("a frame that the client takes");
        assert!(bytes.len() - behind.len() <= frame_max, "a frame that is too long");
        frames.push(frame);
        bytes = behind;
    }
    frames
}

/// What comes out of the screen; reads and takes as many bytes at a time as `count` says.
fn screened(sent: &[u8], mut count: impl FnMut() -> usize) -> Vec<u8> {
    let (mut frames, mut given, mut rest) = (Frames::default(), Vec::new(), sent);
    while !rest.is_empty() {
        let (read, unread) = rest.split_at(rest.len().min(count()));
        rest = unread;
        frames.receive(read).expect("a frame that can be held");
        let mut buffer = vec![0; count().min(4_096)];
        loop {
            let bytes = frames.give(&mut buffer);
            if bytes == 0 {
                break;
            }
            given.extend_from_slice(&buffer[..bytes]);
        }
    }
    given
}

/// A delivery as RabbitMQ sends it, and a heartbeat behind it.
fn message(routing_key: &[u8], properties: &[u8]) -> Vec<u8> {
    let short = |text: &[u8]| [&[u8::try_from(text.len()).expect("short")], text].concat();
    let tag = [&[0, 60, 0, 60][..], &short(b"ctag"), &TAG.to_be_bytes(), &[1]].concat();
    let deliver = [tag, short(b""), short(routing_key)].concat();
    let header = [&[0, 60, 0, 0][..], &(BODY.len() as u64).to_be_bytes(), properties].concat();
    let frames = [(1, &*deliver), (2, &header), (3, BODY)];
    let frames = frames.map(|(kind, payload)| frame(kind, CHANNEL, payload)).concat();
    [frames, frame(8, 0, b"")].concat()
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("no frame is that long");
    [&[kind][..], &channel.to_be_bytes(), &size.to_be_bytes(), payload, &[0xce]].concat()
}
