//! What fails when: a seed gives the same faults in the same order.

use std::time::Duration;

use self::Bound::{Begun, Healed};
use self::Lane::{Broker, Database, Network};
use crate::Result;

/// What a fault does, and to what.
#[derive(Clone, Copy, Debug)]
pub enum Harm {
    /// SIGKILL for nodes of RabbitMQ.
    KillNodes(Nodes),
    /// SIGSTOP for nodes of RabbitMQ.
    FreezeNodes(Nodes),
    /// One node after the other, in order.
    RollNodes,
    /// A host that nothing reaches, the instance on it included.
    Isolate(Target),
    /// A host that the other hosts do not reach, while clients do.
    Apart(Target),
    /// A host's link becomes `slow` or `lossy`.
    Link(&'static str),
    Switchover,
    /// SIGKILL for these services on the primary's host.
    KillPrimary(&'static [&'static str]),
    /// SIGKILL for so many standbys.
    KillStandbys(usize),
    /// SIGKILL for so many nodes of etcd.
    KillEtcd(usize),
    /// Both standbys away, a COMMIT that waits for them interrupted, the primary lost, a standby promoted.
    InterruptedCommit,
    KillHaproxy,
    KillInstance,
    FreezeInstance,
    RollInstances,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nodes {
    Leader,
    Follower,
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    QueueLeader,
    Primary,
    /// The node that an instance on host 4 is connected to.
    Session,
}

/// Until when every instance must have committed again, in seconds.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// From the beginning, of those that the fault leaves a way: the majority goes on.
    Begun(f64),
    /// From the end.
    Healed(f64),
}

/// Two faults at the same time are of different lanes; one of the network is always alone, as is one that
/// needs all the rest to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Broker,
    Database,
    Network,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its name in the table.
    pub name: &'static str,
    pub lane: Lane,
    pub harm: Harm,
    /// Shortest and longest time that it lasts, in seconds.
    hold: (f64, f64),
    pub bound: Bound,
}

impl Kind {
    fn needs_links(&self) -> bool {
        matches!(self.harm, Harm::Isolate(_) | Harm::Apart(_) | Harm::Link(_))
    }

    /// Whether another PostgreSQL is the primary afterwards.
    pub fn fails_over(&self) -> bool {
        match self.harm {
            Harm::Switchover | Harm::InterruptedCommit => true,
            Harm::Isolate(target) | Harm::Apart(target) => matches!(target, Target::Primary),
            Harm::KillPrimary(services) => services != ["postgres"],
            _ => false,
        }
    }
}

const fn kind(name: &'static str, lane: Lane, harm: Harm, hold: (f64, f64), bound: Bound) -> Kind {
    Kind { name, lane, harm, hold, bound }
}

/// Patroni's `ttl`, after which a primary that is gone is replaced; what a promotion takes; and twice the
/// longest wait of an instance between two probe writes, since a first server may be found too early.
const FAILOVER: f64 = 20.0 + 10.0 + 2.0 * 6.25;
/// Over as soon as it has begun, or when what it struck has started again.
const MOMENTARY: (f64, f64) = (0.0, 0.0);
const HOST: &[&str] = &["rabbitmq", "etcd", "patroni", "postgres"];

#[rustfmt::skip] // A table.
pub const ALL: [Kind; 26] = [
    kind("RabbitMQ: kill -9 leader", Broker, Harm::KillNodes(Nodes::Leader), (5.0, 15.0), Begun(30.0)),
    kind("RabbitMQ: kill -9 follower", Broker, Harm::KillNodes(Nodes::Follower), (5.0, 15.0), Begun(30.0)),
    kind("RabbitMQ: kill -9 all three", Broker, Harm::KillNodes(Nodes::All), MOMENTARY, Healed(60.0)),
    kind("RabbitMQ: SIGSTOP leader", Broker, Harm::FreezeNodes(Nodes::Leader), (5.0, 45.0), Healed(30.0)),
    kind("RabbitMQ: SIGSTOP follower", Broker, Harm::FreezeNodes(Nodes::Follower), (5.0, 45.0), Healed(30.0)),
    kind("RabbitMQ: SIGSTOP all three", Broker, Harm::FreezeNodes(Nodes::All), (5.0, 20.0), Healed(45.0)),
    kind("RabbitMQ: rolling restart", Broker, Harm::RollNodes, MOMENTARY, Healed(30.0)),
    kind("network: queue leader's host isolated", Network, Harm::Isolate(Target::QueueLeader), (60.0, 65.0), Begun(55.0)),
    kind("network: primary's host isolated", Network, Harm::Isolate(Target::Primary), (60.0, 65.0), Begun(FAILOVER)),
    kind("network: session's node apart from the others", Network, Harm::Apart(Target::Session), (65.0, 70.0), Begun(60.0)),
    kind("network: primary apart from the others", Network, Harm::Apart(Target::Primary), (60.0, 65.0), Begun(FAILOVER)),
    kind("network: slow link", Network, Harm::Link("slow"), (5.0, 30.0), Healed(45.0)),
    kind("network: lossy link", Network, Harm::Link("lossy"), (5.0, 30.0), Healed(45.0)),
    kind("PostgreSQL: switchover", Database, Harm::Switchover, MOMENTARY, Healed(45.0)),
    kind("PostgreSQL: kill -9 primary", Database, Harm::KillPrimary(&["postgres"]), MOMENTARY, Begun(FAILOVER)),
    kind("PostgreSQL: kill -9 Patroni of the primary", Database, Harm::KillPrimary(&["patroni"]), (0.0, 10.0), Healed(45.0)),
    kind("primary's host lost", Database, Harm::KillPrimary(HOST), (0.0, 10.0), Begun(FAILOVER)),
    kind("PostgreSQL: one standby away", Database, Harm::KillStandbys(1), (5.0, 20.0), Begun(15.0)),
    kind("PostgreSQL: both standbys away", Database, Harm::KillStandbys(2), (10.0, 25.0), Healed(45.0)),
    kind("PostgreSQL: interrupted COMMIT, then failover", Network, Harm::InterruptedCommit, (5.0, 5.0), Healed(60.0)),
    kind("etcd: one away", Database, Harm::KillEtcd(1), (10.0, 30.0), Begun(15.0)),
    kind("etcd: no quorum", Database, Harm::KillEtcd(2), (30.0, 45.0), Begun(30.0)),
    kind("HAProxy: kill -9", Broker, Harm::KillHaproxy, (0.0, 5.0), Healed(20.0)),
    kind("service: kill -9", Broker, Harm::KillInstance, MOMENTARY, Healed(20.0)),
    kind("service: SIGSTOP", Broker, Harm::FreezeInstance, (2.0, 30.0), Healed(20.0)),
    kind("service: rolling restart", Broker, Harm::RollInstances, MOMENTARY, Healed(20.0)),
];

/// The short run's.
fn is_short(kind: &Kind) -> bool {
    matches!(kind.harm, Harm::KillNodes(Nodes::Leader) | Harm::Switchover | Harm::InterruptedCommit)
        || matches!(kind.harm, Harm::KillPrimary(HOST))
}

/// Of the faults that may have company, the share that has.
const PAIRED: f64 = 0.5;

/// One fault to come.
#[derive(Clone, Debug)]
pub struct Planned {
    pub kind: Kind,
    pub hold: Duration,
    /// Chooses among hosts, instances and variants.
    pub pick: usize,
}

/// Deals faults so that every kind has come once before any comes again.
pub struct Deck {
    rng: fastrand::Rng,
    kinds: Vec<Kind>,
    left: Vec<Kind>,
    /// For how long; each kind once without it.
    length: Option<Duration>,
    paired: bool,
}

impl Deck {
    /// `links`: whether those of hosts can fail.
    pub fn new(seed: u64, only: Option<&str>, minutes: Option<f64>, links: bool) -> Result<Self> {
        let wanted = |kind: &Kind| match only {
            Some(part) => kind.name.contains(part),
            None => minutes.is_some() || is_short(kind),
        };
        let possible = |kind: &Kind| links || !kind.needs_links();
        let kinds = Vec::from_iter(ALL.into_iter().filter(|kind| wanted(kind) && possible(kind)));
        if kinds.is_empty() {
            let names = ALL.map(|kind| kind.name).join("\n  ");
            return Err(format!("no such fault; there are:\n  {names}").into());
        }
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut left = kinds.clone();
        rng.shuffle(&mut left);
        let length = minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
        Ok(Self { rng, kinds, left, length, paired: only.is_none() && length.is_some() })
    }

    /// The faults that strike next, at the same time; none when it is time to end.
    pub fn deal(&mut self, elapsed: Duration) -> Vec<Planned> {
        if self.length.is_some_and(|length| elapsed >= length) {
            return Vec::new();
        }
        if self.left.is_empty() && self.length.is_some() {
            self.left.clone_from(&self.kinds);
            self.rng.shuffle(&mut self.left);
        }
        let Some(first) = self.left.pop() else { return Vec::new() };
        let mut dealt = vec![first];
        if self.paired && first.lane != Network && self.rng.f64() < PAIRED {
            let other = |kind: &Kind| kind.lane != Network && kind.lane != first.lane;
            let other = self.left.iter().rposition(other);
            dealt.extend(other.map(|index| self.left.remove(index)));
        }
        let planned = |kind: Kind| {
            let (shortest, longest) = kind.hold;
            let hold = shortest + (longest - shortest) * self.rng.f64();
            Planned { kind, hold: Duration::from_secs_f64(hold), pick: self.rng.usize(..) }
        };
        dealt.into_iter().map(planned).collect()
    }
}
