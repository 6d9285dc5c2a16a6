//! What goes wrong when: a seed gives the same faults at the same times.

use std::time::Duration;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    KillService,
    KillBeforeCommit,
    KillAfterCommit,
    StopService,
    TermService,
    KillBroker,
    FreezeBroker,
    CloseConnections,
    MemoryAlarm,
    CutBroker,
    HalfOpenBroker,
    RefuseBroker,
    SlowBroker,
    KillPostgres,
    FreezePostgres,
    TerminateBackends,
    DiskFull,
    CutPostgres,
    HalfOpenPostgres,
    RefusePostgres,
    SlowPostgres,
    CommitReplyLost,
    CommitReplyCut,
}

impl Kind {
    pub const ALL: [Self; 23] = [
        Self::KillService,
        Self::KillBeforeCommit,
        Self::KillAfterCommit,
        Self::StopService,
        Self::TermService,
        Self::KillBroker,
        Self::FreezeBroker,
        Self::CloseConnections,
        Self::MemoryAlarm,
        Self::CutBroker,
        Self::HalfOpenBroker,
        Self::RefuseBroker,
        Self::SlowBroker,
        Self::KillPostgres,
        Self::FreezePostgres,
        Self::TerminateBackends,
        Self::DiskFull,
        Self::CutPostgres,
        Self::HalfOpenPostgres,
        Self::RefusePostgres,
        Self::SlowPostgres,
        Self::CommitReplyLost,
        Self::CommitReplyCut,
    ];

    /// What the table calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::KillService => "service: kill -9",
            Self::KillBeforeCommit => "service: kill -9 between insert and COMMIT",
            Self::KillAfterCommit => "service: kill -9 between COMMIT and ack",
            Self::StopService => "service: SIGSTOP",
            Self::TermService => "service: SIGTERM",
            Self::KillBroker => "RabbitMQ: kill -9",
            Self::FreezeBroker => "RabbitMQ: SIGSTOP",
            Self::CloseConnections => "RabbitMQ: closes all connections",
            Self::MemoryAlarm => "RabbitMQ: memory alarm",
            Self::CutBroker => "link to RabbitMQ: cut",
            Self::HalfOpenBroker => "link to RabbitMQ: half open",
            Self::RefuseBroker => "link to RabbitMQ: down",
            Self::SlowBroker => "link to RabbitMQ: slow",
            Self::KillPostgres => "PostgreSQL: kill -9",
            Self::FreezePostgres => "PostgreSQL: SIGSTOP",
            Self::TerminateBackends => "PostgreSQL: pg_terminate_backend",
            Self::DiskFull => "PostgreSQL: disk full",
            Self::CutPostgres => "link to PostgreSQL: cut",
            Self::HalfOpenPostgres => "link to PostgreSQL: half open",
            Self::RefusePostgres => "link to PostgreSQL: down",
            Self::SlowPostgres => "link to PostgreSQL: slow",
            Self::CommitReplyLost => "COMMIT: its reply never comes",
            Self::CommitReplyCut => "COMMIT: cut before its reply",
        }
    }

    /// Shortest and longest time that it lasts, in seconds; a momentary one heals by itself.
    const fn holds(self) -> (f64, f64) {
        match self {
            Self::StopService => (1.0, 30.0),
            Self::FreezeBroker | Self::FreezePostgres => (1.0, 15.0),
            Self::HalfOpenBroker | Self::HalfOpenPostgres => (2.0, 25.0),
            Self::CommitReplyLost => (1.0, 20.0),
            Self::MemoryAlarm | Self::DiskFull => (2.0, 12.0),
            Self::RefuseBroker | Self::RefusePostgres => (1.0, 10.0),
            Self::SlowBroker | Self::SlowPostgres => (2.0, 10.0),
            _ => (0.0, 0.0),
        }
    }

    const fn is_of_a_link(self) -> bool {
        matches!(
            self,
            Self::CutBroker
                | Self::HalfOpenBroker
                | Self::RefuseBroker
                | Self::SlowBroker
                | Self::CutPostgres
                | Self::HalfOpenPostgres
                | Self::RefusePostgres
                | Self::SlowPostgres
        )
    }

    const fn is_of_a_server(self) -> bool {
        matches!(
            self,
            Self::KillBroker
                | Self::FreezeBroker
                | Self::CloseConnections
                | Self::MemoryAlarm
                | Self::KillPostgres
                | Self::FreezePostgres
                | Self::TerminateBackends
                | Self::DiskFull
        )
    }
}

/// Which way a half-open link is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dead {
    ToServer,
    ToService,
    BothWays,
}

/// One fault to come.
#[derive(Clone, Debug)]
pub struct Planned {
    pub kind: Kind,
    /// From the beginning of the traffic.
    pub at: Duration,
    pub hold: Duration,
    /// The instances that it strikes.
    pub instances: Vec<usize>,
    pub dead: Dead,
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
            self.left = Kind::ALL.to_vec();
            self.rng.shuffle(&mut self.left);
        }
        self.left.pop().unwrap_or(Kind::KillService)
    }

    /// Faults for `length`, one about every `every`, none longer than `longest`.
    pub fn plan(
        &mut self,
        length: Duration,
        every: Duration,
        longest: Duration,
        instances: usize,
    ) -> Vec<Planned> {
        let count = (length.as_secs_f64() / every.as_secs_f64()) as u32;
        (0..count)
            .map(|n| {
                let kind = self.draw();
                // Anywhere in its slot: sometimes on the heels of the last one.
                let at = every.mul_f64(f64::from(n) + self.rng.f64());
                let (shortest, limit) = kind.holds();
                let limit = limit.min(longest.as_secs_f64()).max(shortest);
                // Short ones more often than long ones.
                let hold = shortest + (limit - shortest) * self.rng.f64().powi(2);
                let all = kind.is_of_a_server() || (kind.is_of_a_link() && self.rng.u8(..4) == 0);
                let one = self.rng.usize(..instances);
                Planned {
                    kind,
                    at,
                    hold: Duration::from_secs_f64(hold),
                    instances: if all { (0..instances).collect() } else { vec![one] },
                    dead: [Dead::ToServer, Dead::ToService, Dead::BothWays][self.rng.usize(..3)],
                }
            })
            .collect()
    }
}
