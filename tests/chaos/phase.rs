//! One queue type, from an empty database to the verdict.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::HumanCount;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use tokio::sync::Mutex as Lock;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::common::{drain, environment, migrate, refuse_poison};
use crate::disk::Disk;
use crate::faults::inflict;
use crate::invariants::{self, Evidence};
use crate::ledger::Ledger;
use crate::links::Linked;
use crate::plan::{Harm, Planned};
use crate::publisher::Publisher;
use crate::report::QueueReport;
use crate::servers::{Server, Servers};
use crate::tables::{self, ATTEMPTS, AUDIT, RECOUNT, RESULTS};
use crate::watch::{Watched, watch};
use crate::{PATIENCE, QueueType, Result, lock};

/// What a run of one queue type needs.
pub struct Setup {
    pub servers: &'static Servers,
    pub disk: &'static Disk,
    pub binary: PathBuf,
    /// For logs and the ledger of a failed run.
    pub directory: PathBuf,
    pub queue_type: QueueType,
    pub instances: usize,
    /// Messages a second.
    pub rate: u32,
    pub seed: u64,
    pub plan: Vec<Planned>,
    /// No line for each fault.
    pub brief: bool,
}

/// What faults, publisher and watch share of a run.
pub struct Phase {
    pub setup: Setup,
    pub database: String,
    pub queue: String,
    pub instances: Vec<&'static Linked>,
    pub ledger: Mutex<Ledger>,
    /// Votes counted so far, as the watch sees them.
    pub counted: AtomicU64,
    pub began: Instant,
    /// Each held by the fault that harms this server.
    pub rabbitmq: Lock<()>,
    pub postgres: Lock<()>,
    /// Restarts of a RabbitMQ that came back without its queue.
    pub revivals: AtomicU64,
    /// In PostgreSQL's log, from the queue types before this one.
    deadlocks_before: usize,
}

/// Runs it.
///
/// # Errors
/// When the run itself fails; what the service does wrong is in the report.
pub async fn run(setup: Setup) -> Result<QueueReport> {
    let queue_type: &str = setup.queue_type.into();
    let (database, queue) = (format!("chaos_{queue_type}"), format!("chaos.{queue_type}"));
    let servers = setup.servers;
    // The link reads along: no encryption.
    let settings = format!(
        "RABBITMQ_QUEUE={queue} POSTGRES_DB={database} POSTGRES_SSLMODE=disable PROMETHEUS_HOST=127.0.0.1 \
         PROMETHEUS_PORT=0"
    );
    let environment = |index| environment(servers, index, &settings);
    migrate(&setup, &environment(0)).await?;
    setup.disk.take_in(servers, &database).await?;
    refuse_poison(servers, &database).await?;
    if setup.queue_type == QueueType::Classic {
        declare_classic(servers, &queue).await?;
    }

    // Leaked as the phase is below, since tasks use both until the process ends.
    let mut instances = Vec::new();
    let mut keepers = JoinSet::new();
    for index in 0..setup.instances {
        let instance = Linked::new(index, &setup, environment(index)).await?;
        let instance: &Linked = Box::leak(Box::new(instance));
        keepers.spawn(instance.keep());
        instances.push(instance);
    }
    until_exists(servers, &queue).await?;

    let phase: &Phase = Box::leak(Box::new(Phase {
        ledger: Mutex::default(),
        setup,
        database,
        queue,
        instances,
        counted: AtomicU64::new(0),
        began: Instant::now(),
        rabbitmq: Lock::default(),
        postgres: Lock::default(),
        revivals: AtomicU64::new(0),
        deadlocks_before: servers.deadlocks().await?,
    }));
    let (no_more, over) = (CancellationToken::new(), CancellationToken::new());
    let mut publishing = JoinSet::new();
    publishing.spawn(Publisher::new(phase, no_more.clone()).run());
    let mut watching = JoinSet::new();
    watching.spawn(watch(phase, over.clone()));

    let mut faults = JoinSet::new();
    for planned in phase.setup.plan.clone() {
        faults.spawn(inflict(phase, planned));
    }
    let (mut struck, mut missed) = (Vec::new(), 0);
    while let Some(fault) = faults.join_next().await {
        match fault?? {
            Some(fault) => struck.push(fault),
            None => missed += 1,
        }
    }
    struck.sort_by_key(|fault| fault.began);

    no_more.cancel();
    while let Some(published) = publishing.join_next().await {
        published??;
    }
    let drained_after = drain(async || phase.messages().await).await?;
    let seconds = phase.began.elapsed().as_secs_f64();
    over.cancel();
    let watched = watching.join_next().await.ok_or("the watch is gone")??;
    phase.instances.iter().for_each(|instance| instance.stop());
    while let Some(stopped) = timeout(PATIENCE, keepers.join_next()).await? {
        stopped?;
    }

    if phase.instances.iter().all(|one| one.postgres.committed_after(phase.began).is_none()) {
        return Err("no link recognised a COMMIT: faults of a COMMIT struck nothing".into());
    }

    let killed = |harm| matches!(harm, Harm::KillServer(Server::RabbitMq));
    let kills = struck.iter().filter(|fault| killed(fault.planned.kind.harm));
    let classic_killed = match phase.setup.queue_type {
        QueueType::Classic => kills.map(|fault| fault.began).collect(),
        QueueType::Quorum => Vec::new(),
    };
    let evidence = phase.evidence(drained_after, watched, classic_killed).await?;
    let ledger = lock(&phase.ledger);
    let verdicts = invariants::judge(&ledger, &evidence);
    if verdicts.iter().any(|verdict| !verdict.held) {
        ledger.write(&phase.setup.directory.join("ledger.ndjson"))?;
    }
    Ok(QueueReport {
        queue: queue_type,
        seconds,
        verdicts,
        messages: ledger.counts,
        votes_counted: evidence.audit.len(),
        attempts_recorded: evidence.attempts.len(),
        dead_letters: evidence.dead_letters.len(),
        drained_after,
        missed,
        broker_revivals: phase.revivals.load(Ordering::Relaxed),
        outcomes: phase.outcomes(&struck),
    })
}

/// The service would create a quorum queue.
async fn declare_classic(servers: &Servers, queue: &str) -> Result<()> {
    let connection = servers.amqp().await?;
    let channel = connection.create_channel().await?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let dead = format!("{queue}.dlq");
    channel.queue_declare(dead.as_str().into(), durable, FieldTable::default()).await?;
    let mut arguments = FieldTable::default();
    let text = |text: &str| AMQPValue::LongString(text.into());
    arguments.insert("x-dead-letter-exchange".into(), text(""));
    arguments.insert("x-dead-letter-routing-key".into(), text(&dead));
    channel.queue_declare(queue.into(), durable, arguments).await?;
    connection.close(200, "OK".into()).await?;
    Ok(())
}

async fn until_exists(servers: &Servers, queue: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match servers.ready(queue).await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

impl Phase {
    /// Prints what happens, and how far publishing and counting are.
    pub fn progress(&self, what: &str) {
        if !self.setup.brief {
            eprintln!(
                "{} {:>4} s  published {}  counted {}  {what}",
                <&str>::from(self.setup.queue_type),
                self.began.elapsed().as_secs(),
                HumanCount(lock(&self.ledger).counts.confirmed),
                HumanCount(self.counted.load(Ordering::Relaxed)),
            );
        }
    }

    async fn messages(&self) -> Result<u64> {
        let ready = self.setup.servers.ready(&self.queue).await?;
        if ready > 0 {
            return Ok(ready.into());
        }
        // Only the broker's own tool counts what is unacked, and it takes its time.
        let queues = self.setup.servers.ctl(&["list_queues", "name", "messages"]).await?;
        let mut columns = queues.lines().filter_map(|line| line.split_once('\t'));
        let ours = columns.find(|(name, _)| *name == self.queue);
        Ok(ours.ok_or("the queue is gone")?.1.trim().parse()?)
    }

    /// What is in queues and tables, once every instance has stopped.
    async fn evidence(
        &self,
        drained_after: Option<f64>,
        watched: Watched,
        classic_killed: Vec<Instant>,
    ) -> Result<Evidence> {
        let servers = self.setup.servers;
        let connection = servers.amqp().await?;
        let mut sql = servers.sql(&self.database).await?;
        let attempts = tables::votes(&mut sql, ATTEMPTS).await?;
        let audit = tables::votes(&mut sql, AUDIT).await?.into_iter();
        let dead = format!("{}.dlq", self.queue);
        Ok(Evidence {
            audit: audit.map(|vote| (vote.vote_hash.to_string(), vote)).collect(),
            results: tables::totals(&mut sql, RESULTS).await?,
            recounted: tables::totals(&mut sql, RECOUNT).await?,
            attempt_rows: attempts.len(),
            attempts: attempts.into_iter().collect(),
            dead_letters: invariants::take_all(&connection, &dead).await?,
            left: servers.ready(&self.queue).await?,
            drained_after,
            watched,
            seen: self.instances.iter().map(|instance| lock(&instance.seen).clone()).collect(),
            deadlocks: servers.deadlocks().await? - self.deadlocks_before,
            classic_killed,
        })
    }
}
