//! What goes wrong when: a seed gives the same faults at the same times.

use std::time::Duration;

use rustix::process::Signal;

use self::LinkFault::{Cut, Down, HalfOpen, Slow};
use crate::proxy::Direction::{self, ToServer, ToService};
use crate::proxy::Place::{self, AfterCommit, BeforeCommit};
use crate::servers::Server::{self, Postgres, RabbitMq};

/// What a fault does, and to what.
#[derive(Clone, Copy, Debug)]
pub enum Harm {
    /// Ends the service's process by a signal; it is started again.
    End(Signal),
    /// Stops the service's process for a while.
    Freeze,
    /// Kills the service's process while its transaction is caught there.
    KillAt(Place),
    /// Withholds the reply to a COMMIT, then closes the connection.
    HoldReply,
    Link(Server, LinkFault),
    KillServer(Server),
    FreezeServer(Server),
    CloseConnections,
    MemoryAlarm,
    TerminateBackends,
    DiskFull,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkFault {
    Cut,
    HalfOpen,
    Down,
    Slow,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its name in the table.
    pub name: &'static str,
    pub harm: Harm,
    /// Shortest and longest time that it lasts, in seconds.
    hold: (f64, f64),
}

const fn kind(name: &'static str, harm: Harm, hold: (f64, f64)) -> Kind {
    Kind { name, harm, hold }
}

/// It is over at once, or when what it struck has started again.
const MOMENTARY: (f64, f64) = (0.0, 0.0);

pub const ALL: [Kind; 23] = [
    kind("service: kill -9", Harm::End(Signal::KILL), MOMENTARY),
    kind("service: kill -9 between insert and COMMIT", Harm::KillAt(BeforeCommit), MOMENTARY),
    kind("service: kill -9 between COMMIT and ack", Harm::KillAt(AfterCommit), MOMENTARY),
    kind("service: SIGSTOP", Harm::Freeze, (1.0, 30.0)),
    kind("service: SIGTERM", Harm::End(Signal::TERM), MOMENTARY),
    kind("RabbitMQ: kill -9", Harm::KillServer(RabbitMq), MOMENTARY),
    kind("RabbitMQ: SIGSTOP", Harm::FreezeServer(RabbitMq), (1.0, 15.0)),
    kind("RabbitMQ: closes all connections", Harm::CloseConnections, MOMENTARY),
    kind("RabbitMQ: memory alarm", Harm::MemoryAlarm, (2.0, 12.0)),
    kind("link to RabbitMQ: cut", Harm::Link(RabbitMq, Cut), MOMENTARY),
    kind("link to RabbitMQ: half open", Harm::Link(RabbitMq, HalfOpen), (2.0, 25.0)),
    kind("link to RabbitMQ: down", Harm::Link(RabbitMq, Down), (1.0, 10.0)),
    kind("link to RabbitMQ: slow", Harm::Link(RabbitMq, Slow), (2.0, 10.0)),
    kind("PostgreSQL: kill -9", Harm::KillServer(Postgres), MOMENTARY),
    kind("PostgreSQL: SIGSTOP", Harm::FreezeServer(Postgres), (1.0, 15.0)),
    kind("PostgreSQL: pg_terminate_backend", Harm::TerminateBackends, MOMENTARY),
    kind("PostgreSQL: disk full", Harm::DiskFull, (2.0, 12.0)),
    kind("link to PostgreSQL: cut", Harm::Link(Postgres, Cut), MOMENTARY),
    kind("link to PostgreSQL: half open", Harm::Link(Postgres, HalfOpen), (2.0, 25.0)),
    kind("link to PostgreSQL: down", Harm::Link(Postgres, Down), (1.0, 10.0)),
    kind("link to PostgreSQL: slow", Harm::Link(Postgres, Slow), (2.0, 10.0)),
    kind("COMMIT: its reply never comes", Harm::HoldReply, (1.0, 20.0)),
    kind("COMMIT: cut before its reply", Harm::HoldReply, MOMENTARY),
];

/// A fault begins this often on average.
const EVERY: Duration = Duration::from_millis(3_300);
/// The ways in which a half-open link may be dead.
const DEAD_WAYS: [&[Direction]; 3] = [&[ToServer], &[ToService], &[ToServer, ToService]];

/// One fault to come.
#[derive(Clone, Debug)]
pub struct Planned {
    pub kind: Kind,
    /// From the beginning of the traffic.
    pub at: Duration,
    pub hold: Duration,
    /// The instances that it strikes, at least one.
    pub instances: Vec<usize>,
    /// Directions of a half-open link that are dead.
    pub dead: &'static [Direction],
}

/// Deals faults so that every kind has come once before any comes again.
pub struct Deck {
    rng: fastrand::Rng,
    left: Vec<Kind>,
}

impl Deck {
    pub fn new(seed: u64) -> Self {
        Self { rng: fastrand::Rng::with_seed(seed), left: Vec::new() }
    }

    fn draw(&mut self) -> Kind {
        if self.left.is_empty() {
            self.left = ALL.to_vec();
            self.rng.shuffle(&mut self.left);
        }
        self.left.pop().expect("just filled")
    }

    /// Faults for `length`, none longer than `longest`.
    pub fn plan(&mut self, length: Duration, longest: Duration, instances: usize) -> Vec<Planned> {
        let count = (length.as_secs_f64() / EVERY.as_secs_f64()) as u32;
        (0..count)
            .map(|n| {
                let kind = self.draw();
                // Anywhere in its slot: sometimes right behind the last one.
                let at = EVERY.mul_f64(f64::from(n) + self.rng.f64());
                let (shortest, limit) = kind.hold;
                let limit = limit.min(longest.as_secs_f64()).max(shortest);
                // Short ones more often than long ones.
                let hold = shortest + (limit - shortest) * self.rng.f64().powi(2);
                let all = match kind.harm {
                    Harm::End(_) | Harm::Freeze | Harm::KillAt(_) | Harm::HoldReply => false,
                    Harm::Link(..) => self.rng.u8(..4) == 0,
                    _ => true,
                };
                let one = self.rng.usize(..instances);
                Planned {
                    kind,
                    at,
                    hold: Duration::from_secs_f64(hold),
                    instances: if all { (0..instances).collect() } else { vec![one] },
                    dead: DEAD_WAYS[self.rng.usize(..3)],
                }
            })
            .collect()
    }
}
