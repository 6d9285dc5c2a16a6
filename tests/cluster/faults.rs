//! Brings faults about, ends them, and measures how long counting takes to come back.

use std::time::Duration;

use rustix::process::Signal;
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use tokio::time::{Instant, sleep, timeout};

use crate::phase::Phase;
use crate::plan::{Bound, Harm, Nodes, Planned, Target};
use crate::servers::{HOSTS, address, get};
use crate::{PATIENCE, Result};

/// Deliveries that an instance holds when a fault begins are committed by then, whatever it does.
const IN_FLIGHT: Duration = Duration::from_secs(3);
/// No instance takes longer to come back, however many faults there were.
const RECOVERY: Duration = Duration::from_secs(120);

/// A fault that came to be.
pub struct Struck {
    pub planned: Planned,
    pub began: Instant,
    pub healed: Instant,
    /// Instances that it leaves no way to count: none of the servers' majority can be reached from there.
    pub cut_off: Vec<usize>,
}

/// What became of it, for the report.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub fault: &'static str,
    /// Seconds from the beginning of the traffic.
    pub began: f64,
    pub lasted: f64,
    /// Until every instance has committed again, from the beginning or from the end of the fault: as its
    /// bound is. `None`: not within two minutes.
    pub recovered_after: Option<f64>,
    pub bound: f64,
    /// Together with another fault: the time is not this one's alone, and the bound does not hold.
    pub paired: bool,
}

impl Phase {
    /// Brings a fault about and ends it.
    ///
    /// # Errors
    /// When that fails: the run proves nothing then.
    pub async fn inflict(&self, planned: Planned) -> Result<Struck> {
        let name = planned.kind.name;
        self.bring_about(planned).await.map_err(|error| format!("{name}: {error}").into())
    }

    async fn bring_about(&self, planned: Planned) -> Result<Struck> {
        let servers = self.setup.servers;
        let hold = || sleep(planned.hold);
        let mut cut_off = Vec::new();
        let mut began = Instant::now();
        let mut begin = |what: String| {
            began = Instant::now();
            self.progress(&format!("{}: {what}", planned.kind.name));
        };
        match planned.kind.harm {
            Harm::KillNodes(nodes) | Harm::FreezeNodes(nodes) => {
                let hosts = self.nodes(nodes, planned.pick).await?;
                let (away, back) = match planned.kind.harm {
                    Harm::KillNodes(_) => ("kill", "start"),
                    _ => ("freeze", "thaw"),
                };
                begin(format!("hosts {hosts:?}"));
                servers.act(away, &hosts, &["rabbitmq"]).await?;
                hold().await;
                servers.act(back, &hosts, &["rabbitmq"]).await?;
            }
            Harm::RollNodes => {
                begin(String::new());
                for host in HOSTS {
                    servers.act("stop", &[host], &["rabbitmq"]).await?;
                    servers.act("start", &[host], &["rabbitmq"]).await?;
                    servers.until_node(host, &self.queue).await?;
                }
            }
            Harm::Isolate(target) | Harm::Apart(target) => {
                let host = self.target(target).await?;
                cut_off = self.on(host);
                begin(format!("host {host}"));
                let isolated = matches!(planned.kind.harm, Harm::Isolate(_));
                servers.link(host, if isolated { "down" } else { "apart" }).await?;
                hold().await;
                if target == Target::Primary {
                    servers.primary_after(host).await?;
                }
                servers.link(host, "up").await?;
            }
            Harm::Link(state) => {
                let host = HOSTS[planned.pick % 3];
                begin(format!("host {host}"));
                servers.link(host, state).await?;
                hold().await;
                servers.link(host, "up").await?;
            }
            Harm::Switchover => {
                let primary = servers.primary().await?;
                let candidate = others(primary)[planned.pick % 2];
                begin(format!("from host {primary} to {candidate}"));
                let [from, to] = [primary, candidate].map(|host| format!("host{host}"));
                let via = candidate.to_string();
                servers
                    .script(&[
                        "patronictl",
                        &via,
                        "--",
                        "switchover",
                        "votes",
                        "--leader",
                        &from,
                        "--candidate",
                        &to,
                        "--force",
                    ])
                    .await?;
                servers.primary_after(primary).await?;
            }
            Harm::KillPrimary(services) => {
                let primary = servers.primary().await?;
                begin(format!("host {primary}"));
                servers.act("kill", &[primary], services).await?;
                if services == ["postgres"] {
                    // Patroni starts it again.
                    servers.primary().await?;
                } else {
                    servers.primary_after(primary).await?;
                    hold().await;
                    servers.act("start", &[primary], services).await?;
                }
            }
            Harm::KillStandbys(count) => {
                let hosts = others(servers.primary().await?);
                let hosts = if count == 2 { &hosts[..] } else { &hosts[planned.pick % 2..][..1] };
                begin(format!("hosts {hosts:?}"));
                servers.act("kill", hosts, &["patroni", "postgres"]).await?;
                let away = Instant::now();
                hold().await;
                if count == 2 {
                    self.must_not_have_committed(away);
                }
                servers.act("start", hosts, &["patroni"]).await?;
            }
            Harm::KillEtcd(count) => {
                let first = planned.pick % 3;
                let hosts: Vec<u8> = (first..first + count).map(|index| HOSTS[index % 3]).collect();
                begin(format!("hosts {hosts:?}"));
                servers.act("kill", &hosts, &["etcd"]).await?;
                hold().await;
                servers.act("start", &hosts, &["etcd"]).await?;
            }
            Harm::InterruptedCommit => {
                let primary = servers.primary().await?;
                let restart = planned.pick.is_multiple_of(2);
                begin(format!(
                    "host {primary}, by {}",
                    if restart { "a restart" } else { "termination" }
                ));
                self.interrupt_a_commit(primary, restart, planned.hold).await?;
            }
            Harm::KillHaproxy => {
                begin(String::new());
                servers.act("kill", &[4], &["haproxy"]).await?;
                hold().await;
                servers.act("start", &[4], &["haproxy"]).await?;
            }
            Harm::KillInstance => {
                let index = planned.pick % self.members.len();
                let instance = &self.members[index].instance;
                let _held = instance.process.lock().await;
                begin(format!("instance {index}"));
                instance.end(Signal::KILL).await?;
                instance.until_running().await?;
            }
            Harm::FreezeInstance => {
                let index = planned.pick % self.members.len();
                let instance = &self.members[index].instance;
                let _held = instance.process.lock().await;
                begin(format!("instance {index}"));
                instance.signal(Signal::STOP).await?;
                hold().await;
                instance.signal(Signal::CONT).await?;
            }
            Harm::RollInstances => {
                begin(String::new());
                for member in &self.members {
                    let _held = member.instance.process.lock().await;
                    member.instance.end(Signal::TERM).await?;
                    member.instance.until_running().await?;
                }
            }
        }
        Ok(Struck { planned, began, healed: Instant::now(), cut_off })
    }

    async fn nodes(&self, nodes: Nodes, pick: usize) -> Result<Vec<u8>> {
        if nodes == Nodes::All {
            return Ok(HOSTS.to_vec());
        }
        let leader = self.setup.servers.leader(&self.queue).await?;
        Ok(vec![if nodes == Nodes::Leader { leader } else { others(leader)[pick % 2] }])
    }

    async fn target(&self, target: Target) -> Result<u8> {
        match target {
            Target::QueueLeader => self.setup.servers.leader(&self.queue).await,
            Target::Primary => self.setup.servers.primary().await,
            Target::Session => {
                let member = &self.members[0];
                let (_, body) = get(&address(member.host), member.port, "/readyz").await?;
                let body: Value = serde_json::from_str(&body)?;
                let address = &body["checks"]["rabbitmq"]["address"];
                let number = address.as_str().and_then(|text| text.split(' ').next());
                Ok(number.ok_or_else(|| format!("no session: {body}"))?.parse()?)
            }
        }
    }

    /// The instances on a host.
    fn on(&self, host: u8) -> Vec<usize> {
        let members = self.members.iter().enumerate();
        members.filter(|(_, member)| member.host == host).map(|(index, _)| index).collect()
    }

    /// Semantics, section 10: the interrupted COMMIT is visible without its standby, and its rerun finds
    /// replays only.
    async fn interrupt_a_commit(&self, primary: u8, restart: bool, hold: Duration) -> Result<()> {
        let servers = self.setup.servers;
        servers.act("kill", &others(primary), &["patroni", "postgres"]).await?;
        let mut sql = servers.sql_on(primary, &self.database).await?;
        timeout(PATIENCE, until_a_commit_waits(&mut sql)).await??;
        if restart {
            servers.act("kill", &[primary], &["postgres"]).await?;
        } else {
            sqlx::raw_sql(TERMINATE).execute(&mut sql).await?;
        }
        // The rerun, or at least a batch of another instance.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let waits = async {
                let mut sql = servers.sql_on(primary, &self.database).await?;
                timeout(PATIENCE, until_a_commit_waits(&mut sql)).await?
            };
            match waits.await {
                Ok(()) => break,
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => sleep(Duration::from_millis(500)).await,
            }
        }
        sleep(hold).await;
        servers.act("kill", &[primary], &["etcd", "patroni", "postgres"]).await?;
        servers.act("start", &others(primary), &["patroni"]).await?;
        self.promote(others(primary)).await?;
        servers.act("start", &[primary], &["etcd", "patroni"]).await
    }

    /// Promotes the standby that has received more, as an operator would: a primary that lost both standbys
    /// and then itself leaves Patroni none that it may promote.
    async fn promote(&self, standbys: [u8; 2]) -> Result<()> {
        let servers = self.setup.servers;
        let deadline = Instant::now() + PATIENCE;
        while servers.has_leader(standbys[0]).await {
            if Instant::now() > deadline {
                return Err("the leader's key does not expire".into());
            }
            sleep(Duration::from_millis(500)).await;
        }
        let [one, other] = standbys;
        let more = servers.received(one).await? >= servers.received(other).await?;
        let (via, candidate) = (one.to_string(), if more { one } else { other });
        let name = format!("host{candidate}");
        let failover =
            ["patronictl", &via, "--", "failover", "votes", "--candidate", &name, "--force"];
        let forced = servers.script(&failover).await;
        match timeout(PATIENCE, servers.until_primary(candidate)).await {
            Ok(()) => Ok(()),
            Err(_) => Err(format!("host {candidate} was not promoted: {forced:?}").into()),
        }
    }

    /// Waits until every instance has committed since, and every server is back.
    pub async fn until_recovered(&self, struck: &[Struck]) -> Result<()> {
        let healed = struck.iter().map(|fault| fault.healed).max().unwrap_or_else(Instant::now);
        let back = |then| self.members.iter().all(|member| member.committed_after(then).is_some());
        while !back(healed) && healed.elapsed() < RECOVERY {
            sleep(Duration::from_millis(200)).await;
        }
        self.setup.servers.until_healthy(&self.queue).await
    }

    /// What became of each fault, once they are over.
    pub fn outcomes(&self, struck: &[Struck]) -> Vec<Outcome> {
        // The last of the first commits since then.
        let committed = |since, absent: &[usize]| {
            let members = self.members.iter().enumerate();
            let there = members.filter(|(index, _)| !absent.contains(index));
            let commits = there.map(|(_, member)| member.committed_after(since));
            commits.collect::<Option<Vec<_>>>()?.into_iter().max()
        };
        let outcome = |fault: &Struck| {
            let healed = committed(fault.healed, &[]);
            let (from, bound, last) = match fault.planned.kind.bound {
                Bound::Healed(bound) => (fault.healed, bound, healed),
                Bound::Begun(bound) => {
                    let last = committed(fault.began + IN_FLIGHT, &fault.cut_off);
                    (fault.began, bound, last.filter(|_| healed.is_some()))
                }
            };
            Outcome {
                fault: fault.planned.kind.name,
                began: (fault.began - self.began).as_secs_f64(),
                lasted: (fault.healed - fault.began).as_secs_f64(),
                recovered_after: last.map(|at| (at - from).as_secs_f64()),
                bound,
                paired: struck.len() > 1,
            }
        };
        struck.iter().map(outcome).collect()
    }
}

fn others(host: u8) -> [u8; 2] {
    let mut others = HOSTS.into_iter().filter(|other| *other != host);
    [(); 2].map(|()| others.next().unwrap_or_default())
}

/// Sessions of the service whose COMMIT waits for a standby.
const WAITING: &str = "SELECT count(*) FROM pg_stat_activity \
                       WHERE wait_event = 'SyncRep' AND application_name = 'vote-aggregator'";
const TERMINATE: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                         WHERE wait_event = 'SyncRep' AND application_name = 'vote-aggregator'";

async fn until_a_commit_waits(sql: &mut PgConnection) -> Result<()> {
    while sqlx::query_scalar::<_, i64>(WAITING).fetch_one(&mut *sql).await? == 0 {
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
