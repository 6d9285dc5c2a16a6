//! Requests for the public page, as many as the board answers or at an even rate.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

const REQUEST: &[u8] = b"GET /fr/ HTTP/1.1\r\nHost: board\r\n\r\n";

/// How to ask.
#[derive(Clone, Copy)]
pub struct Load {
    pub connections: u32,
    /// Whether each request has a connection of its own.
    pub anew: bool,
    /// Requests a second over all connections; as many as are answered without it.
    pub rate: Option<u32>,
}

/// What came of it.
#[derive(Default)]
pub struct Answers {
    pub seconds: f64,
    /// How long each took, in milliseconds, from the shortest to the longest.
    pub took: Vec<f64>,
}

impl Answers {
    pub fn rate(&self) -> f64 {
        self.took.len() as f64 / self.seconds
    }

    pub fn p99(&self) -> f64 {
        self.took.get(self.took.len() * 99 / 100).copied().unwrap_or_default()
    }
}

impl Load {
    /// Asks for so long.
    pub async fn run(self, address: &str, time: Duration) -> Answers {
        let began = Instant::now();
        let mut clients = JoinSet::new();
        for _ in 0..self.connections {
            clients.spawn(self.client(address.to_owned(), began + time));
        }
        let mut took = clients.join_all().await.concat();
        took.sort_by(f64::total_cmp);
        Answers { seconds: began.elapsed().as_secs_f64(), took }
    }

    async fn client(self, address: String, end: Instant) -> Vec<f64> {
        let pause = self.rate.map(|rate| Duration::from_secs(self.connections.into()) / rate);
        let mut ticks = pause.map(interval);
        if let Some(ticks) = &mut ticks {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        }
        let (mut took, mut open, mut read) = (Vec::new(), None, vec![0; 64 * 1024]);
        while Instant::now() < end {
            if let Some(ticks) = &mut ticks {
                ticks.tick().await;
            }
            let began = Instant::now();
            let mut stream = match open.take() {
                Some(stream) => stream,
                None => TcpStream::connect(&address).await.expect("the board takes connections"),
            };
            stream.write_all(REQUEST).await.expect("asked");
            answer(&mut stream, &mut read).await;
            took.push(began.elapsed().as_secs_f64() * 1e3);
            if !self.anew {
                open = Some(stream);
            }
        }
        took
    }
}

/// Reads one answer, which is a page, to its end.
async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) {
    let (mut filled, mut length) = (0, usize::MAX);
    while filled < length {
        if filled == buffer.len() {
            buffer.resize(2 * filled, 0);
        }
        let read = stream.read(&mut buffer[filled..]).await.expect("an answer");
        assert!(read > 0, "the board closed a connection in the middle of an answer");
        filled += read;
        if length == usize::MAX
            && let Some(end) = buffer[..filled].windows(4).position(|it| it == b"\r\n\r\n")
        {
            let head = String::from_utf8_lossy(&buffer[..end]).to_lowercase();
            assert!(head.starts_with("http/1.1 200"), "{head}");
            let body = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            length = end + 4 + body.and_then(|it| it.parse::<usize>().ok()).expect("a length");
        }
    }
}
