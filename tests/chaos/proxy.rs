//! A TCP link between one instance and one server, which can be cut, frozen, slowed down, and made
//! to stand still at a COMMIT.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex as Lock, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::lock;

/// How long to wait for a transaction to catch; an instance that is not counting begins none.
const TRANSACTION_WITHIN: Duration = Duration::from_secs(20);
/// Delay of every read on a slow link.
const SLOW: Duration = Duration::from_millis(150);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToService,
}

impl Direction {
    /// PostgreSQL's simple query `COMMIT`, or the command tag of its reply. Neither can be part of
    /// a vote, which holds no NUL. One that two reads take apart is missed; a COMMIT and its reply
    /// are small and sent by themselves, so that hardly happens.
    const fn commit(self) -> &'static [u8] {
        match self {
            Self::ToServer => b"Q\0\0\0\x0bCOMMIT\0",
            Self::ToService => b"C\0\0\0\x0bCOMMIT\0",
        }
    }
}

/// What becomes of bytes and of new connections; open connections stay.
#[derive(Clone, Copy, Debug, Default)]
pub enum State {
    #[default]
    Open,
    /// Nothing passes in these directions.
    Dead(&'static [Direction]),
    /// New connections are closed at once.
    Refusing,
    Slow,
}

/// Where the next transaction is caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Its COMMIT has come from the service and has not reached the server.
    BeforeCommit,
    /// The server has committed; the service does not know.
    AfterCommit,
}

/// A transaction that was caught: its connection stands still until this is dropped, and is
/// closed then.
pub type Caught = oneshot::Sender<()>;

struct Shared {
    server: SocketAddr,
    state: watch::Sender<State>,
    /// Every change closes every connection, on both ends.
    cuts: watch::Sender<()>,
    trap: Mutex<Option<(Place, oneshot::Sender<Caught>)>>,
    /// When the reply to each COMMIT reached the service.
    commits: Mutex<Vec<Instant>>,
}

/// A link; ends when it is dropped.
pub struct Proxy {
    pub port: u16,
    /// Held by the fault that harms this link.
    pub lock: Lock<()>,
    shared: Arc<Shared>,
    _accepting: JoinSet<()>,
}

impl Proxy {
    pub async fn to(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            server,
            state: watch::Sender::default(),
            cuts: watch::Sender::default(),
            trap: Mutex::default(),
            commits: Mutex::default(),
        });
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { port, lock: Lock::default(), shared, _accepting: accepting })
    }

    /// When the service first learned of a commit after `then`.
    pub fn committed_after(&self, then: Instant) -> Option<Instant> {
        let commits = lock(&self.shared.commits);
        commits.get(commits.partition_point(|commit| *commit <= then)).copied()
    }

    pub fn set(&self, state: State) {
        self.shared.state.send_replace(state);
    }

    /// Closes every connection.
    pub fn cut(&self) {
        self.shared.cuts.send_replace(());
    }

    /// Catches the next transaction that gets to `place`; `None` when there was none, or its
    /// connection ended between COMMIT and reply.
    pub async fn catch(&self, place: Place) -> Option<Caught> {
        let (spring, caught) = oneshot::channel();
        *lock(&self.shared.trap) = Some((place, spring));
        let caught = timeout(TRANSACTION_WITHIN, caught).await;
        lock(&self.shared.trap).take();
        caught.ok()?.ok()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Out of descriptors, say: the next try may do better.
                let Ok((client, _)) = accepted else { continue };
                if !matches!(*shared.state.borrow(), State::Refusing) {
                    connections.spawn(serve(client, Arc::clone(&shared)));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, until either end closes it or it is cut.
async fn serve(client: TcpStream, shared: Arc<Shared>) {
    let mut cuts = shared.cuts.subscribe();
    let Ok(server) = TcpStream::connect(shared.server).await else { return };
    // Nagle's delay would add to every round trip.
    if client.set_nodelay(true).and(server.set_nodelay(true)).is_err() {
        return;
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let reply_trap = Mutex::default();
    let pump = |direction| Pump { shared: &shared, direction, reply_trap: &reply_trap };
    // An end that stops ends the other direction too: neither protocol uses half-closed sockets.
    tokio::select! {
        _ = pump(Direction::ToServer).run(from_client, to_server) => {}
        _ = pump(Direction::ToService).run(from_server, to_client) => {}
        _ = cuts.changed() => {}
    }
}

struct Pump<'a> {
    shared: &'a Shared,
    direction: Direction,
    /// Set while the reply to this connection's COMMIT is to be caught.
    reply_trap: &'a Mutex<Option<oneshot::Sender<Caught>>>,
}

impl Pump<'_> {
    async fn run(self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
        let mut state = self.shared.state.subscribe();
        let commit = self.direction.commit();
        let mut chunk = vec![0; 65_536];
        loop {
            let read = from.read(&mut chunk).await?;
            if read == 0 {
                return Ok(());
            }
            if matches!(*state.borrow(), State::Slow) {
                sleep(SLOW).await;
            }
            let passes = |state: &State| !matches!(state, State::Dead(ways) if ways.contains(&self.direction));
            // It only fails when the proxy is gone, and then the connection is, too.
            drop(state.wait_for(passes).await);

            let mut rest = &chunk[..read];
            while let Some(at) = rest.windows(commit.len()).position(|bytes| bytes == commit) {
                to.write_all(&rest[..at]).await?;
                if self.caught().await {
                    return Ok(());
                }
                to.write_all(commit).await?;
                if self.direction == Direction::ToService {
                    lock(&self.shared.commits).push(Instant::now());
                }
                rest = &rest[at + commit.len()..];
            }
            to.write_all(rest).await?;
        }
    }

    /// Whether this COMMIT, or the reply to it, was caught; returns after its release.
    async fn caught(&self) -> bool {
        let spring = match self.direction {
            Direction::ToService => lock(self.reply_trap).take(),
            Direction::ToServer => match lock(&self.shared.trap).take() {
                Some((Place::BeforeCommit, spring)) => Some(spring),
                at_reply => {
                    *lock(self.reply_trap) = at_reply.map(|(_, spring)| spring);
                    None
                }
            },
        };
        let Some(spring) = spring else { return false };
        let (release, released) = oneshot::channel();
        // Without a receiver it is an ordinary COMMIT; dropping the sender is the release.
        spring.send(release).is_ok() && released.await.is_err()
    }
}
