//! Brings faults about, ends them, and measures how long counting takes to come back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use serde::Serialize;
use tokio::sync::{Mutex as Lock, MutexGuard as Locked};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::disk::Disk;
use crate::instances::Instance;
use crate::plan::{Kind, Planned};
use crate::proxy::{Place, Proxy, Trouble};
use crate::revival::revive;
use crate::servers::Servers;
use crate::{PATIENCE, Result};

/// For a transaction to get into a trap; an instance that is not counting meets none.
const TRANSACTION_WITHIN: Duration = Duration::from_secs(20);
/// Delay of every read on a slow link.
const SLOW: Duration = Duration::from_millis(150);

/// Everything that can be harmed.
pub struct Field {
    pub servers: Arc<Servers>,
    pub disk: Arc<Disk>,
    pub database: String,
    pub queue: String,
    pub instances: Vec<Arc<Instance>>,
    pub began: Instant,
    pub broker: Lock<()>,
    pub postgres: Lock<()>,
    pub under_way: Mutex<BTreeMap<u64, Kind>>,
    pub numbers: AtomicU64,
    /// Restarts of a broker that came back without its queue.
    pub revivals: AtomicU64,
}

/// A fault that came to be.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub fault: &'static str,
    #[serde(skip)]
    pub kind: Option<Kind>,
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

/// A fault under way. Locks go in the order of the fields of [`Instance`].
struct Strike<'a> {
    field: &'a Field,
    planned: &'a Planned,
    number: u64,
    began: Instant,
    /// Faults begun at each instance, this one among them.
    marks: Vec<u64>,
}

/// What has healed and may not have recovered yet.
pub struct Healed {
    planned: Planned,
    instances: Vec<Arc<Instance>>,
    field_began: Instant,
    began: Instant,
    pub healed: Instant,
    marks: Vec<u64>,
    commits: Vec<u64>,
}

/// Waits for the fault's time, brings it about, ends it. `None`: it found nothing to strike at.
///
/// # Errors
/// When it could not be brought about or ended: the run proves nothing then.
pub async fn inflict(field: Arc<Field>, planned: Planned) -> Result<Option<Healed>> {
    tokio::time::sleep_until(field.began + planned.at).await;
    let name = planned.kind.name();
    field.inflict(&planned).await.map_err(|error| format!("{name}: {error}").into())
}

impl Field {
    fn targets(&self, planned: &Planned) -> Vec<&Arc<Instance>> {
        planned.instances.iter().filter_map(|index| self.instances.get(*index)).collect()
    }

    async fn inflict(&self, planned: &Planned) -> Result<Option<Healed>> {
        match planned.kind {
            Kind::KillService | Kind::TermService | Kind::StopService => {
                self.harm_process(planned).await
            }
            Kind::KillBeforeCommit
            | Kind::KillAfterCommit
            | Kind::CommitReplyLost
            | Kind::CommitReplyCut => self.catch_commit(planned).await,
            Kind::CutBroker | Kind::HalfOpenBroker | Kind::RefuseBroker | Kind::SlowBroker => {
                let instances = self.targets(planned);
                let mut locks: Vec<Locked<'_, ()>> = Vec::new();
                for instance in &instances {
                    locks.push(instance.broker_link.lock().await);
                }
                let links = instances.iter().map(|instance| &instance.broker).collect();
                Ok(Some(self.harm_links(planned, links).await))
            }
            Kind::CutPostgres
            | Kind::HalfOpenPostgres
            | Kind::RefusePostgres
            | Kind::SlowPostgres => {
                let instances = self.targets(planned);
                let mut locks: Vec<Locked<'_, ()>> = Vec::new();
                for instance in &instances {
                    locks.push(instance.postgres_link.lock().await);
                }
                let links = instances.iter().map(|instance| &instance.postgres).collect();
                Ok(Some(self.harm_links(planned, links).await))
            }
            Kind::KillBroker | Kind::FreezeBroker | Kind::CloseConnections | Kind::MemoryAlarm => {
                let _lock = self.broker.lock().await;
                self.harm_broker(planned).await.map(Some)
            }
            Kind::KillPostgres
            | Kind::FreezePostgres
            | Kind::TerminateBackends
            | Kind::DiskFull => {
                let _lock = self.postgres.lock().await;
                self.harm_postgres(planned).await.map(Some)
            }
        }
    }

    async fn harm_process(&self, planned: &Planned) -> Result<Option<Healed>> {
        let Some(instance) = self.targets(planned).first().copied() else { return Ok(None) };
        let _lock = instance.process.lock().await;
        let strike = self.strike(planned);
        match planned.kind {
            Kind::KillService => instance.end(Signal::KILL).await?,
            Kind::TermService => instance.end(Signal::TERM).await?,
            _ => {
                instance.signal(Signal::STOP).await?;
                sleep(planned.hold).await;
                instance.signal(Signal::CONT).await?;
            }
        }
        Ok(Some(strike.healed()))
    }

    /// Holds the connection still at the next COMMIT, or at the reply to it, and does its worst.
    async fn catch_commit(&self, planned: &Planned) -> Result<Option<Healed>> {
        let Some(instance) = self.targets(planned).first().copied() else { return Ok(None) };
        let _process = instance.process.lock().await;
        let _link = instance.postgres_link.lock().await;
        let place = match planned.kind {
            Kind::KillBeforeCommit => Place::BeforeCommit,
            _ => Place::AfterCommit,
        };
        let caught = timeout(TRANSACTION_WITHIN, instance.postgres.catch(place)).await;
        instance.postgres.disarm();
        // Nobody was counting, or its connection ended between COMMIT and reply.
        let Ok(Ok(caught)) = caught else { return Ok(None) };
        let strike = self.strike(planned);
        match planned.kind {
            Kind::KillBeforeCommit | Kind::KillAfterCommit => {
                let started = instance.started();
                instance.kill().await?;
                drop(caught);
                instance.until_started(started).await?;
            }
            _ => {
                sleep(planned.hold).await;
                drop(caught);
            }
        }
        Ok(Some(strike.healed()))
    }

    async fn harm_links(&self, planned: &Planned, links: Vec<&Proxy>) -> Healed {
        let strike = self.strike(planned);
        for link in &links {
            match planned.kind {
                Kind::HalfOpenBroker | Kind::HalfOpenPostgres => {
                    link.trouble(Trouble { dead: Some(planned.dead), ..Trouble::default() });
                }
                Kind::SlowBroker | Kind::SlowPostgres => {
                    link.trouble(Trouble { slow: Some(SLOW), ..Trouble::default() });
                }
                Kind::RefuseBroker | Kind::RefusePostgres => {
                    link.trouble(Trouble { refuse: true, ..Trouble::default() });
                    link.cut();
                }
                _ => link.cut(),
            }
        }
        sleep(planned.hold).await;
        for link in &links {
            link.trouble(Trouble::default());
        }
        strike.healed()
    }

    async fn harm_broker(&self, planned: &Planned) -> Result<Healed> {
        let servers = &self.servers;
        let strike = self.strike(planned);
        let ctl = async |arguments: &[&str]| {
            servers.script(&[&["ctl", "--", "--quiet"], arguments].concat()).await
        };
        match planned.kind {
            Kind::KillBroker => {
                servers.script(&["kill", "rabbitmq"]).await?;
                servers.script(&["start", "rabbitmq"]).await?;
                let revivals = revive(servers, &self.queue).await?;
                self.revivals.fetch_add(revivals, Ordering::Relaxed);
            }
            Kind::FreezeBroker => {
                servers.signal("rabbitmq", Signal::STOP).await?;
                sleep(planned.hold).await;
                servers.signal("rabbitmq", Signal::CONT).await?;
            }
            Kind::MemoryAlarm => {
                ctl(&["set_vm_memory_high_watermark", "0.0001"]).await?;
                sleep(planned.hold).await;
                ctl(&["set_vm_memory_high_watermark", "absolute", "2GB"]).await?;
            }
            _ => {
                ctl(&["close_all_connections", "chaos"]).await?;
            }
        }
        Ok(strike.healed())
    }

    async fn harm_postgres(&self, planned: &Planned) -> Result<Healed> {
        let servers = &self.servers;
        let strike = self.strike(planned);
        match planned.kind {
            Kind::KillPostgres => {
                servers.script(&["kill", "postgres"]).await?;
                servers.script(&["start", "postgres"]).await?;
            }
            Kind::FreezePostgres => {
                servers.signal("postgres", Signal::STOP).await?;
                sleep(planned.hold).await;
                servers.signal("postgres", Signal::CONT).await?;
            }
            Kind::DiskFull => {
                self.disk.fill(servers, &self.database).await?;
                sleep(planned.hold).await;
                self.disk.clear(servers, &self.database).await?;
            }
            _ => {
                let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                                 WHERE application_name = 'vote-aggregator'";
                servers.execute(&self.database, terminate).await?;
            }
        }
        Ok(strike.healed())
    }

    fn strike<'a>(&'a self, planned: &'a Planned) -> Strike<'a> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        self.under_way().insert(number, planned.kind);
        let mark = |instance: &Arc<Instance>| instance.faults.fetch_add(1, Ordering::Relaxed) + 1;
        let marks = self.targets(planned).into_iter().map(mark).collect();
        Strike { field: self, planned, number, began: Instant::now(), marks }
    }

    /// What the progress line shows.
    pub fn under_way(&self) -> MutexGuard<'_, BTreeMap<u64, Kind>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Strike<'_> {
    fn drop(&mut self) {
        self.field.under_way().remove(&self.number);
    }
}

impl Strike<'_> {
    fn healed(self) -> Healed {
        let instances: Vec<_> = self.field.targets(self.planned).into_iter().cloned().collect();
        Healed {
            planned: self.planned.clone(),
            field_began: self.field.began,
            began: self.began,
            healed: Instant::now(),
            marks: self.marks.clone(),
            commits: instances.iter().map(|instance| instance.postgres.commits()).collect(),
            instances,
        }
    }
}

impl Healed {
    /// Waits until every instance that was struck has committed votes again, or `drained`.
    pub async fn recover(self, drained: CancellationToken) -> Outcome {
        let again = async {
            for (instance, before) in self.instances.iter().zip(&self.commits) {
                while instance.postgres.commits() <= *before {
                    sleep(Duration::from_millis(20)).await;
                }
            }
            self.healed.elapsed().as_secs_f64()
        };
        let recovered_after = tokio::select! {
            biased;
            seconds = again => Some(seconds),
            () = drained.cancelled() => None,
            () = sleep(PATIENCE * 2) => None,
        };
        let marks = self.instances.iter().map(|instance| instance.disturbed());
        Outcome {
            fault: self.planned.kind.name(),
            kind: Some(self.planned.kind),
            instances: self.planned.instances,
            began: (self.began - self.field_began).as_secs_f64(),
            lasted: (self.healed - self.began).as_secs_f64(),
            recovered_after,
            overlapped: !marks.eq(self.marks.iter().copied()),
        }
    }
}
