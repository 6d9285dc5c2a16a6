use amq_protocol::frame::{AMQPFrame, parse_frame};
use amq_protocol::protocol::{AMQPClass, basic, channel};
use futures::AsyncReadExt;

use super::*;

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("no frame is that long");
    [&[kind][..], &channel.to_be_bytes(), &size.to_be_bytes(), payload, &[0xce]].concat()
}

fn header(channel: u16, properties: &[u8]) -> Vec<u8> {
    frame(2, channel, &[&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9], properties].concat())
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).expect("short")], text].concat()
}

/// The frames that the client parses.
fn parsed(sent: &[u8]) -> Vec<AMQPFrame> {
    let mut frames = Frames::new();
    let mut given = Vec::new();
    let mut unread = sent;
    while !unread.is_empty() {
        let space = frames.space();
        let read = space.len().min(unread.len()).min(1_000);
        space[..read].copy_from_slice(&unread[..read]);
        unread = &unread[read..];
        frames.filled(read).expect("a frame that can be held");
        let mut buffer = [0; 2_000];
        while let count @ 1.. = frames.give(&mut buffer) {
            given.extend_from_slice(&buffer[..count]);
        }
    }
    let (mut rest, mut found) = (given.as_slice(), Vec::new());
    while !rest.is_empty() {
        let (behind, frame) = parse_frame(rest).expect("a frame that the client takes");
        assert!(rest.len() - behind.len() <= FRAME_MAX as usize);
        rest = behind;
        found.push(frame);
    }
    found
}

fn properties(frame: &AMQPFrame) -> &BasicProperties {
    let AMQPFrame::Header(_, header) = frame else { panic!("no header frame: {frame:?}") };
    assert_eq!(header.body_size, 9);
    &header.properties
}

#[test]
fn an_invalid_routing_key_marks_the_message_on_its_own_channel() {
    let deliver = |key: &[u8]| {
        [&[0, 60, 0, 60][..], &short(b"ctag"), &[0; 9], &short(b"ex"), &short(key)].concat()
    };
    let get_ok = [&[0, 60, 0, 71][..], &[0; 9], &short(b"\xff"), &short(b"key"), &[0; 4]].concat();
    let returned =
        [&[0, 60, 0, 50, 1, 56][..], &short(b"NO_ROUTE"), &short(b""), &short(b"a\xe9")].concat();
    let frames = parsed(
        &[
            frame(1, 1, &deliver(b"vote.\xe9t\xe9")),
            frame(1, 2, &deliver(b"vote")),
            header(2, &[0, 0]),
            header(1, &[0, 0]),
            frame(1, 1, &get_ok),
            header(1, &[0, 0]),
            frame(1, 3, &returned),
            header(3, &[0, 0]),
            header(3, &[0, 0]),
        ]
        .concat(),
    );
    let AMQPFrame::Method(1, AMQPClass::Basic(basic::AMQPMethod::Deliver(deliver))) = &frames[0]
    else {
        panic!("{:?}", frames[0]);
    };
    assert_eq!(deliver.routing_key.as_str(), "vote.?t?");
    let marked = [2, 3, 5, 7, 8].map(|index| is_invalid(properties(&frames[index])));
    assert_eq!(marked, [false, true, true, true, false]);
}

/// RabbitMQ cuts a long text off behind 252 bytes, wherever that is.
#[test]
fn a_reply_text_that_is_cut_off_within_a_character_is_readable() {
    let close = [&[0, 20, 0, 40, 1, 148][..], &short(b"no queue '\xc3"), &[0, 50, 0, 10]].concat();
    let AMQPFrame::Method(1, AMQPClass::Channel(channel::AMQPMethod::Close(close))) =
        &parsed(&frame(1, 1, &close))[0]
    else {
        panic!("no channel.close");
    };
    assert_eq!((close.reply_code, close.reply_text.as_str()), (404, "no queue '?"));
}

#[test]
fn a_frame_that_the_broker_made_too_long_loses_its_headers_and_stays_valid() {
    let entries = |length: usize| {
        let value = u32::try_from(length).expect("small").to_be_bytes();
        [&short(b"a")[..], b"S", &value, &vec![b'x'; length]].concat()
    };
    for (length, too_long) in [(100, false), (130_000, false), (131_100, true), (400_000, true)] {
        let entries = entries(length);
        let size = u32::try_from(entries.len()).expect("small").to_be_bytes();
        let sent = header(1, &[&[0x20, 0x80][..], &size, &entries, &short(b"id")].concat());
        let frames = parsed(&sent);
        let found = properties(&frames[0]);
        assert!(!is_invalid(found), "{length}");
        let kept = found.headers().as_ref().expect("headers").inner().len();
        assert_eq!(kept, usize::from(!too_long), "{length}");
        assert_eq!(found.message_id().as_ref().map(|id| id.as_str()), Some("id"));
    }
    let mut frames = Frames::new();
    let head = [2, 0, 1, 0x7f, 0, 0, 0];
    frames.space()[..7].copy_from_slice(&head);
    assert!(frames.filled(7).is_err(), "2 GiB are not held");
}

#[test]
fn nesting_is_cut_at_a_depth_and_keeps_what_is_beside_it() {
    for (depth, cut) in [(31, false), (32, true), (500, true)] {
        let mut deep = Vec::new();
        for _ in 0..depth {
            let size = u32::try_from(deep.len()).expect("small").to_be_bytes();
            deep = [&b"A"[..], &size, &deep].concat();
        }
        let entries = [&short(b"deep")[..], &deep, &short(b"x-replays"), b"b\x02"].concat();
        let size = u32::try_from(entries.len()).expect("small").to_be_bytes();
        let sent = header(1, &[&[0x20, 0][..], &size, &entries].concat());
        let frames = parsed(&sent);
        let found = properties(&frames[0]);
        assert!(!is_invalid(found), "what is cut is harmless");
        assert_eq!(crate::broker::headers::replays(found), 0, "of another type");
        let headers = found.headers().as_ref().expect("headers").inner();
        assert_eq!(headers.len(), 2);
        assert_eq!(format!("{headers:?}").contains("ByteArray"), cut, "{depth}");
    }
}

#[tokio::test]
async fn a_stream_gives_everything_and_then_ends() {
    let sent =
        [b"AMQP\0\0\x09\x01".to_vec(), frame(8, 0, b""), frame(3, 1, &[7; 100_000])].concat();
    let mut screen = Screen::new(futures::io::Cursor::new(sent.clone()));
    let mut given = Vec::new();
    screen.read_to_end(&mut given).await.expect("read");
    assert!(given == sent);
    // Neither AMQP nor held back: the client says what is wrong.
    let sent = b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec();
    let mut screen = Screen::new(futures::io::Cursor::new(sent.clone()));
    let mut given = Vec::new();
    screen.read_to_end(&mut given).await.expect("read");
    assert_eq!(given, sent);
}
