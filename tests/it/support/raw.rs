//! A publisher that sends properties as raw bytes, valid or not; no client library does.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{PATIENCE, Stage};

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const CHANNEL: u16 = 1;

/// Class and method.
type Method = (u16, u16);

/// One channel in confirm mode.
pub struct RawPublisher {
    stream: TcpStream,
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).expect("short")], text].concat()
}

fn long(text: &[u8]) -> Vec<u8> {
    [&u32::try_from(text.len()).expect("no text is that long").to_be_bytes(), text].concat()
}

impl RawPublisher {
    pub async fn open(stage: &Stage<'_>) -> Self {
        Self::open_with(stage, 0x2_0000).await
    }

    /// `frame_max`: the longest frame in bytes, 0 for no limit, which the broker must allow.
    pub async fn open_with(stage: &Stage<'_>, frame_max: u32) -> Self {
        let [host, port, user, password] = ["HOST", "PORT", "USER", "PASSWORD"]
            .map(|name| stage.servers.get(&format!("RABBITMQ_{name}")));
        let stream = TcpStream::connect(format!("{host}:{port}")).await;
        let mut raw = Self { stream: stream.expect("the private RabbitMQ") };
        raw.stream.write_all(b"AMQP\0\0\x09\x01").await.expect("written");
        raw.expect((10, 10)).await;
        let login = format!("\0{user}\0{password}");
        let start = [long(b""), short(b"PLAIN"), long(login.as_bytes()), short(b"en_US")].concat();
        // Channels, the longest frame, no heartbeat.
        let tune_ok = [&[7, 255][..], &frame_max.to_be_bytes(), &[0, 0]].concat();
        let open = [&short(b"/")[..], &[0, 0]].concat();
        raw.call(0, (10, 11), &start, (10, 30)).await;
        raw.send(0, (10, 31), &tune_ok).await;
        raw.call(0, (10, 40), &open, (10, 41)).await;
        raw.call(CHANNEL, (20, 10), &short(b""), (20, 11)).await;
        raw.call(CHANNEL, (85, 10), &[0], (85, 11)).await;
        raw
    }

    /// Publishes one message to an exchange with a routing key, and waits until the broker has
    /// confirmed it. `properties`: their flags, and what follows from these.
    pub async fn publish(&mut self, to: (&str, &[u8]), properties: &[u8], body: &[u8]) {
        let publish = [&[0, 0][..], &short(to.0.as_bytes()), &short(to.1), &[1]].concat();
        self.send(CHANNEL, (60, 40), &publish).await;
        let header = [&[0, 60, 0, 0][..], &(body.len() as u64).to_be_bytes(), properties].concat();
        self.frame(HEADER, CHANNEL, &header).await;
        self.frame(BODY, CHANNEL, body).await;
        self.expect((60, 80)).await;
    }

    /// Takes every message of a queue and requeues them all, so that each is redelivered; returns how many.
    pub async fn requeue_all(&mut self, queue: &str) -> usize {
        let get = [&[0, 0][..], &short(queue.as_bytes()), &[0]].concat();
        let mut count = 0;
        loop {
            self.send(CHANNEL, (60, 70), &get).await;
            let (_, answer) = self.read().await;
            if method(&answer) == (60, 72) {
                break;
            }
            assert_eq!(method(&answer), (60, 71));
            count += 1;
            while self.read().await.0 != BODY {}
        }
        // All tags, multiple and requeue.
        self.send(CHANNEL, (60, 120), &[0, 0, 0, 0, 0, 0, 0, 0, 3]).await;
        count
    }

    async fn call(&mut self, channel: u16, method: Method, arguments: &[u8], answer: Method) {
        self.send(channel, method, arguments).await;
        self.expect(answer).await;
    }

    async fn send(&mut self, channel: u16, (class, method): Method, arguments: &[u8]) {
        let payload = [&class.to_be_bytes()[..], &method.to_be_bytes(), arguments].concat();
        self.frame(METHOD, channel, &payload).await;
    }

    async fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let frame = [&[kind][..], &channel.to_be_bytes(), &long(payload), &[0xce]].concat();
        self.stream.write_all(&frame).await.expect("written");
    }

    async fn expect(&mut self, expected: Method) {
        let (kind, payload) = self.read().await;
        let said = String::from_utf8_lossy(&payload[4..]).into_owned();
        assert_eq!((kind, method(&payload)), (METHOD, expected), "the broker: {said:?}");
    }

    /// Reads the next frame: its type, and its payload with the octet behind it.
    async fn read(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 7];
        let read = timeout(PATIENCE, self.stream.read_exact(&mut head)).await;
        read.expect("an answer in time").expect("an answer");
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
        let mut payload = vec![0; size as usize + 1];
        self.stream.read_exact(&mut payload).await.expect("a whole frame");
        (head[0], payload)
    }
}

fn method(payload: &[u8]) -> Method {
    let number = |at| u16::from_be_bytes([payload[at], payload[at + 1]]);
    (number(0), number(2))
}
