//! Brings faults about, ends them, and measures how long counting takes to come back.

use std::sync::atomic::Ordering;

use rustix::process::Signal;
use serde::Serialize;
use tokio::sync::Mutex as Lock;
use tokio::time::{Instant, sleep, sleep_until};

use crate::Result;
use crate::links::Linked;
use crate::phase::Phase;
use crate::plan::{Harm, LinkFault, Planned};
use crate::proxy::{Place, State};
use crate::revival::revive;
use crate::servers::Server;

/// A fault that came to be.
pub struct Struck {
    pub planned: Planned,
    pub began: Instant,
    pub healed: Instant,
}

/// What became of it, for the report.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub fault: &'static str,
    pub instances: Vec<usize>,
    /// Seconds from the beginning of the traffic.
    pub began: f64,
    pub lasted: f64,
    /// From its end until every instance that it struck has committed again; `None` when no votes
    /// were left for one of them.
    pub recovered_after: Option<f64>,
    /// Another fault struck the same instances meanwhile: the time is not this one's alone.
    pub overlapped: bool,
}

/// Waits for the fault's time, brings it about, ends it. `None`: there was no transaction to catch.
///
/// # Errors
/// When it could not be brought about or ended: the run proves nothing then.
pub async fn inflict(phase: &'static Phase, planned: Planned) -> Result<Option<Struck>> {
    sleep_until(phase.began + planned.at).await;
    let name = planned.kind.name;
    phase.inflict(planned).await.map_err(|error| format!("{name}: {error}").into())
}

impl Phase {
    async fn inflict(&self, planned: Planned) -> Result<Option<Struck>> {
        let instances = planned.instances.iter().map(|index| self.instances[*index]);
        let instances: Vec<&Linked> = instances.collect();
        let one = instances[0];
        let mut held = Vec::new();
        for lock in self.locks(planned.kind.harm, &instances) {
            held.push(lock.lock().await);
        }
        let place = match planned.kind.harm {
            Harm::KillAt(place) => Some(place),
            Harm::HoldReply => Some(Place::AfterCommit),
            _ => None,
        };
        let mut caught = None;
        if let Some(place) = place {
            caught = one.postgres.catch(place).await;
            if caught.is_none() {
                return Ok(None);
            }
        }

        let began = Instant::now();
        self.progress(planned.kind.name);
        let servers = self.setup.servers;
        let hold = || sleep(planned.hold);
        match planned.kind.harm {
            Harm::End(signal) => {
                one.end(signal).await?;
                one.until_running().await?;
            }
            Harm::Freeze => {
                one.signal(Signal::STOP).await?;
                hold().await;
                one.signal(Signal::CONT).await?;
            }
            Harm::KillAt(_) => {
                one.end(Signal::KILL).await?;
                drop(caught);
                one.until_running().await?;
            }
            Harm::HoldReply => {
                hold().await;
                drop(caught);
            }
            Harm::Link(server, fault) => {
                let state = match fault {
                    LinkFault::Cut => State::Open,
                    LinkFault::HalfOpen => State::Dead(planned.dead),
                    LinkFault::Down => State::Refusing,
                    LinkFault::Slow => State::Slow,
                };
                for instance in &instances {
                    instance.link(server).set(state);
                    if matches!(fault, LinkFault::Cut | LinkFault::Down) {
                        instance.link(server).cut();
                    }
                }
                hold().await;
                instances.iter().for_each(|instance| instance.link(server).set(State::Open));
            }
            Harm::KillServer(server) => {
                servers.script(&["kill", server.name()]).await?;
                servers.script(&["start", server.name()]).await?;
                if let Server::RabbitMq = server {
                    let revivals = revive(servers, &self.queue).await?;
                    self.revivals.fetch_add(revivals, Ordering::Relaxed);
                }
            }
            Harm::FreezeServer(server) => {
                servers.signal(server, Signal::STOP).await?;
                hold().await;
                servers.signal(server, Signal::CONT).await?;
            }
            Harm::CloseConnections => {
                servers.ctl(&["close_all_connections", "chaos"]).await?;
            }
            Harm::MemoryAlarm => {
                servers.ctl(&["set_vm_memory_high_watermark", "0.0001"]).await?;
                hold().await;
                servers.ctl(&["set_vm_memory_high_watermark", "absolute", "2GB"]).await?;
            }
            Harm::TerminateBackends => {
                let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                                 WHERE application_name = 'vote-aggregator'";
                servers.execute(&self.database, terminate).await?;
            }
            Harm::DiskFull => {
                self.setup.disk.fill(servers, &self.database).await?;
                hold().await;
                self.setup.disk.clear(servers, &self.database).await?;
            }
        }
        Ok(Some(Struck { began, healed: Instant::now(), planned }))
    }

    /// What a fault harms, to be locked in this order.
    fn locks<'a>(&'a self, harm: Harm, instances: &[&'a Linked]) -> Vec<&'a Lock<()>> {
        let one = instances[0];
        match harm {
            Harm::End(_) | Harm::Freeze => vec![&one.process],
            Harm::KillAt(_) | Harm::HoldReply => vec![&one.process, &one.postgres.lock],
            Harm::Link(server, _) => {
                instances.iter().map(|instance| &instance.link(server).lock).collect()
            }
            Harm::KillServer(Server::RabbitMq)
            | Harm::FreezeServer(Server::RabbitMq)
            | Harm::CloseConnections
            | Harm::MemoryAlarm => vec![&self.rabbitmq],
            Harm::KillServer(Server::Postgres)
            | Harm::FreezeServer(Server::Postgres)
            | Harm::TerminateBackends
            | Harm::DiskFull => vec![&self.postgres],
        }
    }

    /// What became of each fault, once the run is over.
    pub fn outcomes(&self, struck: &[Struck]) -> Vec<Outcome> {
        let outcome = |fault: &Struck| {
            let instances = &fault.planned.instances;
            let commits = instances.iter().map(|index| &self.instances[*index].postgres);
            let commits = commits.map(|link| link.committed_after(fault.healed));
            let recovered =
                commits.collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max());
            let overlaps = |other: &Struck| {
                other.began > fault.began
                    && recovered.is_none_or(|recovered| other.began < recovered)
                    && other.planned.instances.iter().any(|index| instances.contains(index))
            };
            Outcome {
                fault: fault.planned.kind.name,
                instances: instances.clone(),
                began: (fault.began - self.began).as_secs_f64(),
                lasted: (fault.healed - fault.began).as_secs_f64(),
                recovered_after: recovered.map(|at| (at - fault.healed).as_secs_f64()),
                overlapped: struck.iter().any(overlaps),
            }
        };
        struck.iter().map(outcome).collect()
    }
}
