//! One queue type, from an empty database to the verdict.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::Connection;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use tokio::process::Command;
use tokio::sync::Mutex as Lock;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::deadlocks;
use crate::disk::Disk;
use crate::faults::{Field, Outcome, inflict};
use crate::instances::{self, Instance, Recipe, Seen};
use crate::invariants::{self, Evidence};
use crate::ledger::Ledger;
use crate::plan::{Kind, Planned};
use crate::progress::Progress;
use crate::publisher::Publisher;
use crate::report::Phase;
use crate::servers::Servers;
use crate::traffic::{POISONOUS, Traffic};
use crate::watch::{self, watch};
use crate::{PATIENCE, QueueType, Result};

/// No use in waiting longer: the verdict is no by then.
const DRAIN_PATIENCE: Duration = Duration::from_secs(120);

/// What a run of one queue type takes.
pub struct Setup {
    pub servers: Arc<Servers>,
    pub disk: Arc<Disk>,
    pub binary: PathBuf,
    /// Logs and ledger.
    pub directory: PathBuf,
    pub queue_type: QueueType,
    pub instances: usize,
    pub rate: u32,
    pub seed: u64,
    pub plan: Vec<Planned>,
    /// No line that tells what goes on.
    pub brief: bool,
}

impl Setup {
    fn database(&self) -> String {
        format!("chaos_{}", self.queue_type.name())
    }

    fn queue(&self) -> String {
        format!("chaos.{}", self.queue_type.name())
    }

    /// Of the three, one has the defaults, one tries again quickly with several batches in flight,
    /// one has large batches.
    fn environment(&self, index: usize) -> BTreeMap<String, String> {
        let servers = &self.servers;
        let (database, queue) = (self.database(), self.queue());
        let mut environment = vec![
            ("RABBITMQ_USER", servers.get("RABBITMQ_USER")),
            ("RABBITMQ_PASSWORD", servers.get("RABBITMQ_PASSWORD")),
            ("RABBITMQ_QUEUE", queue.as_str()),
            ("POSTGRES_USER", servers.get("POSTGRES_USER")),
            ("POSTGRES_PASSWORD", servers.get("POSTGRES_PASSWORD")),
            ("POSTGRES_DB", database.as_str()),
            // The link has to read along.
            ("POSTGRES_SSLMODE", "disable"),
            ("PROMETHEUS_HOST", "127.0.0.1"),
            ("PROMETHEUS_PORT", "0"),
            ("LOG_FORMAT", "json"),
        ];
        match index % 3 {
            1 => environment.extend([
                ("RETRY_DELAY_SECONDS", "0.2"),
                ("RABBITMQ_PREFETCH_COUNT", "400"),
                ("BATCH_TIMEOUT_SECONDS", "0.2"),
            ]),
            2 => environment.push(("PIPELINE_PROFILE", "throughput")),
            _ => {}
        }
        environment.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// Database with its tables and a constraint that no poisonous vote passes; queue, if it is
    /// not the service that has to create it.
    async fn prepare(&self) -> Result<()> {
        let (servers, database) = (&self.servers, self.database());
        let create = format!("CREATE DATABASE {database}");
        servers.execute(servers.get("POSTGRES_DB"), &create).await?;
        let mut environment = self.environment(0);
        for name in ["POSTGRES_HOST", "POSTGRES_PORT"] {
            environment.insert(name.to_owned(), servers.get(name).to_owned());
        }
        let migrated = Command::new(&self.binary)
            .arg("migrate")
            .env_clear()
            .envs(&environment)
            .current_dir(&self.directory)
            .kill_on_drop(true)
            .output();
        let migrated = timeout(PATIENCE, migrated).await??;
        if !migrated.status.success() {
            let stderr = String::from_utf8_lossy(&migrated.stderr);
            return Err(format!("{} migrate: {stderr}", self.binary.display()).into());
        }
        self.disk.take_in(servers, &database).await?;
        let constraint = format!(
            "ALTER TABLE vote_audit ADD CONSTRAINT no_poison
                 CHECK (citizen_id NOT LIKE '{POISONOUS}%')"
        );
        servers.execute(&database, &constraint).await?;
        if self.queue_type == QueueType::Classic {
            self.declare_classic().await?;
        }
        Ok(())
    }

    async fn declare_classic(&self) -> Result<()> {
        let connection = self.servers.amqp().await?;
        let channel = connection.create_channel().await?;
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let dead = format!("{}.dlq", self.queue());
        channel.queue_declare(dead.as_str().into(), durable, FieldTable::default()).await?;
        let mut arguments = FieldTable::default();
        let text = |text: &str| AMQPValue::LongString(text.into());
        arguments.insert("x-dead-letter-exchange".into(), text(""));
        arguments.insert("x-dead-letter-routing-key".into(), text(&dead));
        channel.queue_declare(self.queue().as_str().into(), durable, arguments).await?;
        connection.close(200, "OK".into()).await?;
        Ok(())
    }

    /// Runs it.
    ///
    /// # Errors
    /// When the run itself fails; what the service does wrong is in the report.
    pub async fn run(self) -> Result<Phase> {
        let database = self.database();
        self.prepare().await?;
        let deadlocks_before = deadlocks::logged(&self.servers).await?;
        let mut keepers = Vec::new();
        let mut all = Vec::new();
        for index in 0..self.instances {
            let recipe = Recipe {
                binary: self.binary.clone(),
                directory: self.directory.clone(),
                environment: self.environment(index),
            };
            let (instance, keeper) = Instance::start(index, &self.servers, recipe).await?;
            all.push(Arc::new(instance));
            keepers.push(keeper);
        }
        self.until_queue_exists().await?;

        let ledger = Ledger::new(&self.directory.join("ledger.ndjson"))?;
        let ledger = Arc::new(Mutex::new(ledger));
        let counted = Arc::new(AtomicU64::new(0));
        let mut rng = fastrand::Rng::with_seed(self.seed);
        let traffic = Traffic::new(rng.u64(..), 15 * u64::from(self.rate));
        let publisher = Publisher {
            servers: Arc::clone(&self.servers),
            queue: self.queue(),
            ledger: Arc::clone(&ledger),
            rate: self.rate,
            backlog: 20_000,
            counted: Arc::clone(&counted),
            again: 0.7,
            rng: rng.fork(),
        };
        let (no_more, drained, over) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let mut publishing = JoinSet::new();
        publishing.spawn(publisher.run(traffic, no_more.clone()));
        let mut watching = JoinSet::new();
        let servers = Arc::clone(&self.servers);
        watching.spawn(watch(servers, database.clone(), Arc::clone(&counted), over.clone()));

        let field = Arc::new(Field {
            servers: Arc::clone(&self.servers),
            disk: Arc::clone(&self.disk),
            database: database.clone(),
            queue: self.queue(),
            instances: all.clone(),
            began: Instant::now(),
            broker: Lock::default(),
            postgres: Lock::default(),
            under_way: Mutex::default(),
            numbers: AtomicU64::new(0),
            revivals: AtomicU64::new(0),
        });
        let began = field.began;
        let progress =
            (!self.brief).then(|| Progress::show(self.queue_type, &field, &ledger, &counted));
        let (struck, mut last) = self.strike(&field, &drained).await?;
        let Struck { mut recovering, missed } = struck;

        no_more.cancel();
        if let Some(published) = publishing.join_next().await {
            published??;
        }
        last = last.max(Instant::now());
        let drained_after = self.drain(last).await?;
        let seconds = began.elapsed().as_secs_f64();
        drained.cancel();
        let mut outcomes = Vec::new();
        while let Some(outcome) = recovering.join_next().await {
            outcomes.push(outcome?);
        }
        outcomes.sort_by(|a: &Outcome, b| a.began.total_cmp(&b.began));
        over.cancel();
        let watched = watching.join_next().await.ok_or("the watch is gone")??;
        let broker_revivals = field.revivals.load(Ordering::Relaxed);
        drop((progress, field));

        let seen = self.stop(all, keepers).await?;
        let killed = outcomes.iter().filter(|outcome| outcome.kind == Some(Kind::KillBroker));
        let killed = killed.map(|outcome| began + Duration::from_secs_f64(outcome.began));
        let classic_killed = match self.queue_type {
            QueueType::Classic => killed.collect(),
            QueueType::Quorum => Vec::new(),
        };
        let mut evidence = self.evidence(drained_after, watched, seen, classic_killed).await?;
        evidence.deadlocks = deadlocks::logged(&self.servers).await? - deadlocks_before;
        let ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Phase {
            queue: self.queue_type.name(),
            seconds,
            verdicts: invariants::judge(&ledger, &evidence),
            messages: ledger.counts,
            votes_counted: evidence.audit.len(),
            attempts_recorded: evidence.attempts.len(),
            dead_letters: evidence.dead_letters.len(),
            drained_after,
            missed,
            broker_revivals,
            outcomes,
        })
    }

    /// Inflicts the plan; comes back when the last fault has healed, with its time.
    async fn strike(
        &self,
        field: &Arc<Field>,
        drained: &CancellationToken,
    ) -> Result<(Struck, Instant)> {
        let mut faults = JoinSet::new();
        for planned in self.plan.clone() {
            faults.spawn(inflict(Arc::clone(field), planned));
        }
        let mut struck = Struck { recovering: JoinSet::new(), missed: 0 };
        let mut last = Instant::now();
        while let Some(fault) = faults.join_next().await {
            match fault?? {
                Some(healed) => {
                    last = last.max(healed.healed);
                    struck.recovering.spawn(healed.recover(drained.clone()));
                }
                None => struck.missed += 1,
            }
        }
        Ok((struck, last))
    }

    async fn until_queue_exists(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let connection = self.servers.amqp().await?;
            let found = invariants::ready(&connection, &self.queue()).await;
            connection.close(200, "OK".into()).await?;
            match found {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Seconds from `healed` until the queue had nothing ready and nothing unacked.
    async fn drain(&self, healed: Instant) -> Result<Option<f64>> {
        let connection = self.servers.amqp().await?;
        let drained = loop {
            if healed.elapsed() > DRAIN_PATIENCE {
                break None;
            }
            let asked = healed.elapsed();
            if self.messages(&connection).await? == 0 {
                break Some(asked.as_secs_f64());
            }
            sleep(Duration::from_millis(200)).await;
        };
        connection.close(200, "OK".into()).await?;
        Ok(drained)
    }

    async fn messages(&self, connection: &Connection) -> Result<u64> {
        let ready = invariants::ready(connection, &self.queue()).await?;
        if ready > 0 {
            return Ok(u64::from(ready));
        }
        // Only the broker's own tool counts what is unacked, and it takes its time.
        let columns = ["name", "messages"];
        let list = [&["ctl", "--", "--quiet", "list_queues"], &columns[..]].concat();
        let queues = self.servers.script(&list).await?;
        let mut columns = queues.lines().filter_map(|line| line.split_once('\t'));
        let ours = columns.find(|(name, _)| *name == self.queue());
        Ok(ours.ok_or("the queue is gone")?.1.trim().parse()?)
    }

    async fn stop(
        &self,
        all: Vec<Arc<Instance>>,
        keepers: Vec<tokio::task::JoinHandle<()>>,
    ) -> Result<Vec<Seen>> {
        let mut stopping = JoinSet::new();
        for (instance, keeper) in all.into_iter().zip(keepers) {
            let instance = Arc::into_inner(instance).ok_or("an instance is still in use")?;
            stopping.spawn(instances::stop(instance, keeper));
        }
        let mut seen = Vec::new();
        while let Some(stopped) = stopping.join_next().await {
            seen.push(stopped??);
        }
        Ok(seen)
    }

    async fn evidence(
        &self,
        drained_after: Option<f64>,
        watched: watch::Watched,
        seen: Vec<Seen>,
        classic_killed: Vec<Instant>,
    ) -> Result<Evidence> {
        let connection = self.servers.amqp().await?;
        let mut sql = self.servers.sql(&self.database()).await?;
        let attempts = invariants::attempts(&mut sql).await?;
        let dead = format!("{}.dlq", self.queue());
        Ok(Evidence {
            audit: invariants::audit(&mut sql).await?,
            results: watch::totals(&mut sql).await?,
            recounted: invariants::recount(&mut sql).await?,
            attempt_rows: attempts.len(),
            attempts: attempts.into_iter().collect(),
            dead_letters: invariants::take_all(&connection, &dead).await?,
            left: invariants::ready(&connection, &self.queue()).await?,
            drained_after,
            watched,
            seen,
            deadlocks: 0,
            classic_killed,
        })
    }
}

/// What has been inflicted.
struct Struck {
    recovering: JoinSet<Outcome>,
    /// Faults that found nothing to strike at, and are no faults.
    missed: usize,
}

/// Messages confirmed and votes counted, for the progress line.
pub fn figures(ledger: &Mutex<Ledger>, counted: &AtomicU64) -> (u64, u64) {
    let counts = ledger.lock().unwrap_or_else(PoisonError::into_inner).counts;
    (counts.confirmed, counted.load(Ordering::Relaxed))
}
