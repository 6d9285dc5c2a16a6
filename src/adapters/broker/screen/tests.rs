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

/// The frames that the client parses, none of which is longer than `frame_max`.
fn parsed(frame_max: u32, sent: &[u8]) -> Vec<AMQPFrame> {
    let given = screened(&mut Frames::default(), sent);
    let (mut rest, mut found) = (given.as_slice(), Vec::new());
    while !rest.is_empty() {
        let (behind, frame) = parse_frame(rest).expect("a frame that the client takes");
        assert!(rest.len() - behind.len() <= frame_max as usize);
        rest = behind;
        found.push(frame);
    }
    found
}

fn screened(frames: &mut Frames, sent: &[u8]) -> Vec<u8> {
    let mut given = Vec::new();
    for read in sent.chunks(1_000) {
        frames.receive(read).expect("a frame that can be held");
        let mut buffer = [0; 2_000];
        while let count @ 1.. = frames.give(&mut buffer) {
            given.extend_from_slice(&buffer[..count]);
        }
    }
    given
}

/// A table with one header whose text has this length, as it stands in the properties.
fn headers(length: usize) -> Vec<u8> {
    let size = |length: usize| u32::try_from(length).expect("small").to_be_bytes();
    let entries = [&short(b"a")[..], b"S", &size(length), &vec![b'x'; length]].concat();
    [&size(entries.len())[..], &entries].concat()
}

fn tune(frame_max: u32) -> Vec<u8> {
    frame(1, 0, &[&[0, 10, 0, 30, 7, 255][..], &frame_max.to_be_bytes(), &[0, 60]].concat())
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
        FRAME_MAX,
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
            // Too long to be held.
            frame(1, 4, &deliver(b"\xff")),
            header(4, &[&[0x20, 0][..], &headers(600_000)].concat()),
            header(4, &[0, 0]),
        ]
        .concat(),
    );
    let AMQPFrame::Method(1, AMQPClass::Basic(basic::AMQPMethod::Deliver(deliver))) = &frames[0]
    else {
        panic!("{:?}", frames[0]);
    };
    assert_eq!(deliver.routing_key.as_str(), "vote.?t?");
    let marked = [2, 3, 5, 7, 8, 10, 11].map(|index| is_invalid(properties(&frames[index])));
    assert_eq!(marked, [false, true, true, true, false, true, false]);
}

/// RabbitMQ cuts a long text off behind 252 bytes, wherever that is.
#[test]
fn a_reply_text_that_is_cut_off_within_a_character_is_readable() {
    let close = [&[0, 20, 0, 40, 1, 148][..], &short(b"no queue '\xc3"), &[0, 50, 0, 10]].concat();
    let AMQPFrame::Method(1, AMQPClass::Channel(channel::AMQPMethod::Close(close))) =
        &parsed(FRAME_MAX, &frame(1, 1, &close))[0]
    else {
        panic!("no channel.close");
    };
    assert_eq!((close.reply_code, close.reply_text.as_str()), (404, "no queue '?"));
}

#[test]
fn a_header_frame_too_long_to_be_held_is_a_marked_message_and_what_is_behind_it_arrives() {
    let valid = |length| header(1, &[&[0x20, 0][..], &headers(length)].concat());
    // The last length that is held, the first that is not, and one of many reads. Head of the content,
    // flags, and of the table: its length, name and length of the text.
    let held = 4 * FRAME_MAX as usize - 12 - 2 - 4 - 7;
    for (length, too_long) in [(held, false), (held + 1, true), (3_000_000, true)] {
        let sent = [
            frame(3, 2, b"before"),
            valid(length),
            frame(3, 1, b"body"),
            header(1, &[0, 0]),
            frame(8, 0, b""),
        ]
        .concat();
        let found = parsed(FRAME_MAX, &sent);
        assert_eq!(found.len(), 5, "{length}");
        assert_eq!(is_invalid(properties(&found[1])), too_long, "{length}");
        assert_eq!(found[2], AMQPFrame::Body(1, b"body".to_vec()));
        assert!(!is_invalid(properties(&found[3])), "another message");
    }
    // However much is announced, nothing is held.
    let mut frames = Frames::default();
    let head = [&[2, 0, 1, 0x7f, 0, 0, 0][..], &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]].concat();
    let given = screened(&mut frames, &head);
    let (rest, frame) = parse_frame(given.as_slice()).expect("a whole frame");
    assert!(rest.is_empty() && is_invalid(properties(&frame)));
    assert!(screened(&mut frames, &vec![0; 2_000_000]).is_empty());
    assert!(frames.input.is_empty());
    // RabbitMQ has no method that long.
    assert!(Frames::default().receive(&[1, 0, 1, 0x7f, 0, 0, 0]).is_err());
}

#[test]
fn a_frame_longer_than_what_the_broker_announced_loses_its_headers_and_stays_valid() {
    for (announced, frame_max) in
        [(0, FRAME_MAX), (8_192, 8_192), (1_000, 4_096), (1 << 20, FRAME_MAX)]
    {
        for (length, kept) in
            [(frame_max - 1_100, true), (frame_max - 900, false), (400_000, false)]
        {
            let sent = [&[0x20, 0x80][..], &headers(length as usize), &short(b"id")].concat();
            let sent = [tune(announced), header(1, &sent)].concat();
            let frames = parsed(frame_max, &sent);
            let found = properties(&frames[1]);
            assert!(!is_invalid(found), "{announced}, {length}");
            let headers = found.headers().as_ref().expect("headers").inner().len();
            assert_eq!(headers, usize::from(kept), "{announced}, {length}");
            assert_eq!(found.message_id().as_ref().map(|id| id.as_str()), Some("id"));
        }
    }
}

#[test]
fn too_deep_or_too_many_values_become_bytes_and_what_is_beside_them_stays() {
    let array = |values: &[u8]| {
        let size = u32::try_from(values.len()).expect("small").to_be_bytes();
        [&b"A"[..], &size, values].concat()
    };
    let nested = |depth| (0..depth).fold(Vec::new(), |deep, _| array(&deep));
    for (value, cut) in [
        (nested(31), false),
        (nested(32), true),
        (nested(500), true),
        (array(&[b'V'; 1_000]), false),
        (array(&array(&[b'V'; 2_000])), true),
    ] {
        let entries = [&short(b"odd")[..], &value, &short(b"x-replays"), b"b\x02"].concat();
        let size = u32::try_from(entries.len()).expect("small").to_be_bytes();
        let sent = header(1, &[&[0x20, 0][..], &size, &entries].concat());
        let frames = parsed(FRAME_MAX, &sent);
        let found = properties(&frames[0]);
        assert!(!is_invalid(found), "what is cut is harmless");
        let headers = found.headers().as_ref().expect("headers").inner();
        assert_eq!(headers.len(), 2);
        assert_eq!(format!("{headers:?}").contains("ByteArray"), cut, "{}", value.len());
    }
    // Too many in the outermost table.
    let entries = [&short(b"a")[..], b"V"].concat().repeat(2_000);
    let sent = [&[0x20, 0][..], &6_000_u32.to_be_bytes(), &entries].concat();
    let frames = parsed(FRAME_MAX, &header(1, &sent));
    let found = properties(&frames[0]);
    assert!(!is_invalid(found) && found.headers().as_ref().expect("a table").inner().is_empty());
}

#[tokio::test]
async fn a_stream_gives_everything_and_then_ends() {
    let frames =
        [b"AMQP\0\0\x09\x01".to_vec(), frame(8, 0, b""), frame(3, 1, &[7; 100_000])].concat();
    // Not AMQP, and not held back: the client reports it.
    let http = b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec();
    for sent in [frames, http] {
        let mut screen = Screen::new(futures::io::Cursor::new(sent.clone()), Arc::default());
        let mut given = Vec::new();
        screen.read_to_end(&mut given).await.expect("read");
        assert!(given == sent);
    }
}
