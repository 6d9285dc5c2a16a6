//! A TCP link between one instance and one server, which can be cut, frozen, slowed down, and made
//! to stand still at a COMMIT.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::pgwire::{Messages, Piece};
use crate::plan::Dead;

/// What is wrong with a link; the default: nothing.
#[derive(Clone, Debug, Default)]
pub struct Trouble {
    /// Sockets stay open, nothing passes.
    pub dead: Option<Dead>,
    /// New connections are closed at once.
    pub refuse: bool,
    /// Delay of every read.
    pub slow: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToService,
}

impl Trouble {
    fn holds(&self, direction: Direction) -> bool {
        match self.dead {
            None => false,
            Some(Dead::BothWays) => true,
            Some(Dead::ToServer) => direction == Direction::ToServer,
            Some(Dead::ToService) => direction == Direction::ToService,
        }
    }
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
pub struct Caught {
    _release: oneshot::Sender<()>,
}

struct Trap {
    place: Place,
    spring: oneshot::Sender<Caught>,
}

struct Shared {
    server: SocketAddr,
    trouble: watch::Sender<Trouble>,
    /// Every change closes every connection, on both ends.
    cuts: watch::Sender<u64>,
    trap: Mutex<Option<Trap>>,
    /// COMMITs whose reply has reached the service.
    commits: AtomicU64,
    postgres: bool,
}

/// A link; ends when it is dropped.
pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
    _accepting: JoinSet<()>,
}

impl Proxy {
    /// A link that passes bytes.
    pub async fn opaque(server: SocketAddr) -> io::Result<Self> {
        Self::to(server, false).await
    }

    /// A link that knows a COMMIT when it sees one.
    pub async fn postgres(server: SocketAddr) -> io::Result<Self> {
        Self::to(server, true).await
    }

    async fn to(server: SocketAddr, postgres: bool) -> io::Result<Self> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            server,
            trouble: watch::Sender::default(),
            cuts: watch::Sender::default(),
            trap: Mutex::default(),
            commits: AtomicU64::new(0),
            postgres,
        });
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { port, shared, _accepting: accepting })
    }

    /// Transactions that the service knows to be committed, so far.
    pub fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }

    /// Makes trouble; `Trouble::default()` ends it. Open connections stay.
    pub fn trouble(&self, trouble: Trouble) {
        self.shared.trouble.send_replace(trouble);
    }

    /// Closes every connection.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Catches the next transaction that gets to `place`.
    pub fn catch(&self, place: Place) -> oneshot::Receiver<Caught> {
        let (spring, caught) = oneshot::channel();
        *self.trap() = Some(Trap { place, spring });
        caught
    }

    /// Takes the trap away if nothing has got into it.
    pub fn disarm(&self) {
        self.trap().take();
    }

    fn trap(&self) -> std::sync::MutexGuard<'_, Option<Trap>> {
        self.shared.trap.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Out of descriptors, say: the next try may do better.
                let Ok((client, _)) = accepted else { continue };
                if !shared.trouble.borrow().refuse {
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
    let pump = |direction| Pump {
        shared: &shared,
        direction,
        trouble: shared.trouble.subscribe(),
        reply_trap: &reply_trap,
    };
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
    trouble: watch::Receiver<Trouble>,
    /// Set while the reply to this connection's COMMIT is to be caught.
    reply_trap: &'a Mutex<Option<oneshot::Sender<Caught>>>,
}

impl Pump<'_> {
    async fn run(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
        let mut chunk = vec![0; 65_536];
        let mut messages = match self.direction {
            Direction::ToServer => Messages::of_client(),
            Direction::ToService => Messages::of_server(),
        };
        loop {
            let read = from.read(&mut chunk).await?;
            if read == 0 {
                return Ok(());
            }
            self.passable().await;
            if !self.shared.postgres {
                to.write_all(&chunk[..read]).await?;
                continue;
            }
            messages.push(&chunk[..read]);
            while let Some(piece) = messages.next() {
                match piece {
                    Piece::Other(bytes) => to.write_all(&bytes).await?,
                    Piece::Commit(bytes) => {
                        if self.caught().await {
                            return Ok(());
                        }
                        to.write_all(&bytes).await?;
                        if self.direction == Direction::ToService {
                            self.shared.commits.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }
        }
    }

    /// Waits while the link is dead in this direction; dawdles while it is slow.
    async fn passable(&mut self) {
        let direction = self.direction;
        let slow = self.trouble.borrow().slow;
        if let Some(delay) = slow {
            tokio::time::sleep(delay).await;
        }
        // It only fails when the proxy is gone, and then the connection is, too.
        drop(self.trouble.wait_for(|trouble| !trouble.holds(direction)).await);
    }

    /// Whether this COMMIT, or the reply to it, got into a trap; comes back after its release.
    async fn caught(&self) -> bool {
        let spring = match self.direction {
            Direction::ToService => {
                self.reply_trap.lock().unwrap_or_else(PoisonError::into_inner).take()
            }
            Direction::ToServer => {
                match self.shared.trap.lock().unwrap_or_else(PoisonError::into_inner).take() {
                    Some(Trap { place: Place::BeforeCommit, spring }) => Some(spring),
                    Some(Trap { place: Place::AfterCommit, spring }) => {
                        *self.reply_trap.lock().unwrap_or_else(PoisonError::into_inner) =
                            Some(spring);
                        None
                    }
                    None => None,
                }
            }
        };
        let Some(spring) = spring else { return false };
        let (release, released) = oneshot::channel();
        if spring.send(Caught { _release: release }).is_err() {
            // Nobody waits for it any more: an ordinary COMMIT.
            return false;
        }
        // Ends with an error when the sender is dropped, which is the release.
        released.await.is_err()
    }
}
