//! A run, from an empty database to the verdict.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::try_join_all;
use indicatif::HumanCount;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::census::Census;
use crate::common::{drain, environment, migrate, refuse_poison};
use crate::faults::Outcome;
use crate::instances::Instance;
use crate::invariants::{self, Evidence};
use crate::ledger::Ledger;
use crate::plan::Deck;
use crate::progress::Member;
use crate::publisher::Publisher;
use crate::report::Report;
use crate::servers::{Environment, SCRIPT, Servers, address};
use crate::tables::{self, ATTEMPTS, AUDIT, RECOUNT, RESULTS};
use crate::watch::{Watched, watch};
use crate::{PATIENCE, Result, lock};

/// Where the instances run. The one on host 4 after the first reaches both servers through HAProxy.
const PLACES: [u8; 5] = [4, 4, 1, 2, 3];
const HAPROXY: usize = 1;
/// Of the first instance; each has its own, since two are on one host.
const METRICS: u16 = 8001;
const QUEUE: &str = "votes.aggregation";

/// What a run needs.
pub struct Setup {
    pub servers: &'static Servers,
    pub binary: PathBuf,
    /// For logs and the ledger of a failed run.
    pub directory: PathBuf,
    /// Messages a second.
    pub rate: u32,
    pub seed: u64,
    /// No line for each fault.
    pub brief: bool,
}

/// What faults, publisher and watch share of a run.
pub struct Phase {
    pub setup: Setup,
    pub database: String,
    pub queue: String,
    pub members: Vec<&'static Member>,
    pub ledger: Mutex<Ledger>,
    /// Votes counted so far, as the watch sees them.
    pub counted: AtomicU64,
    pub began: Instant,
    /// Commits while no standby could confirm them.
    pub unconfirmed: Mutex<Vec<String>>,
    keepers: Mutex<JoinSet<()>>,
}

/// Tables, instances and queue, before anything is published.
///
/// # Errors
/// When one of them cannot be had.
pub async fn prepare(setup: Setup) -> Result<&'static Phase> {
    let servers = setup.servers;
    let database = servers.env["POSTGRES_DB"].clone();
    migrate(&setup, &variables(servers, 0)).await?;
    refuse_poison(servers, &database).await?;

    // Leaked, since tasks use them until the process ends.
    let (mut members, mut keepers) = (Vec::new(), JoinSet::new());
    for (index, host) in PLACES.into_iter().enumerate() {
        let [dir, binary] = [&servers.dir, &setup.binary].map(|path| path.display().to_string());
        let host_number = host.to_string();
        let command = [SCRIPT, "exec", "--dir", &dir, &host_number, "--", &binary, "run"];
        let command = Vec::from(command.map(str::to_owned));
        let environment = variables(servers, index);
        let directory = setup.directory.clone();
        let instance = Instance::new(index, command, directory, environment);
        let member: &Member =
            Box::leak(Box::new(Member::new(instance, host, METRICS + u16::try_from(index)?)));
        keepers.spawn(member.instance.keep());
        keepers.spawn(member.follow());
        members.push(member);
    }
    timeout(PATIENCE, servers.until_healthy(QUEUE)).await??;
    Ok(Box::leak(Box::new(Phase {
        ledger: Mutex::default(),
        setup,
        database,
        queue: QUEUE.to_owned(),
        members,
        counted: AtomicU64::new(0),
        began: Instant::now(),
        unconfirmed: Mutex::default(),
        keepers: Mutex::new(keepers),
    })))
}

/// The variables of an instance.
fn variables(servers: &Servers, index: usize) -> Environment {
    let host = address(PLACES[index]);
    let haproxy = match index {
        HAPROXY => format!("RABBITMQ_HOST={host} POSTGRES_HOST={host}"),
        _ => String::new(),
    };
    let port = usize::from(METRICS) + index;
    let settings =
        format!("RABBITMQ_QUEUE={QUEUE} PROMETHEUS_HOST={host} PROMETHEUS_PORT={port} {haproxy}");
    let mut variables = environment(servers, index, &settings);
    variables.insert("PATH".to_owned(), std::env::var("PATH").unwrap_or_default());
    variables
}

/// Runs faults until the deck is empty.
///
/// # Errors
/// When the run itself fails; what the service does wrong is in the report.
pub async fn run(setup: Setup, mut deck: Deck) -> Result<Report> {
    let phase = prepare(setup).await?;
    let (no_more, over) = (CancellationToken::new(), CancellationToken::new());
    let mut publishing = JoinSet::new();
    publishing.spawn(Publisher::new(phase, no_more.clone()).run());
    let mut watching = JoinSet::new();
    watching.spawn(watch(phase, over.clone()));

    // Every instance counts before the first fault.
    phase.until_recovered(&[]).await?;

    let (mut outcomes, mut censuses) = (Vec::<Outcome>::new(), Vec::<Census>::new());
    loop {
        let planned = deck.deal(phase.began.elapsed());
        if planned.is_empty() {
            break;
        }
        let names = planned.iter().map(|planned| planned.kind.name);
        let names = names.collect::<Vec<_>>().join(" and ");
        let fails_over = planned.iter().any(|planned| planned.kind.fails_over());
        let struck =
            try_join_all(planned.into_iter().map(|planned| phase.inflict(planned))).await?;
        phase.until_recovered(&struck).await?;
        outcomes.extend(phase.outcomes(&struck));
        if fails_over {
            phase.progress("comparing what was acknowledged with the audit");
            censuses.push(phase.census(&names).await?);
            // A start is not what the next fault is about.
            phase.until_recovered(&[]).await?;
        }
    }

    no_more.cancel();
    while let Some(published) = publishing.join_next().await {
        published??;
    }
    let drained_after = phase.drain().await?;
    let seconds = phase.began.elapsed().as_secs_f64();
    over.cancel();
    let watched = watching.join_next().await.ok_or("the watch is gone")??;
    phase.stop().await?;
    let evidence = phase.evidence(drained_after, watched).await?;
    let ledger = lock(&phase.ledger);
    let report = Report::new(phase, seconds, &ledger, &evidence, outcomes, censuses);
    if report.failed > 0 {
        ledger.write(&phase.setup.directory.join("ledger.ndjson"))?;
    }
    Ok(report)
}

impl Phase {
    /// Prints what happens, and how far publishing and counting are.
    pub fn progress(&self, what: &str) {
        if !self.setup.brief {
            eprintln!(
                "{:>4} s  published {}  counted {}  {what}",
                self.began.elapsed().as_secs(),
                HumanCount(lock(&self.ledger).counts.confirmed),
                HumanCount(self.counted.load(Ordering::Relaxed)),
            );
        }
    }

    /// Notes commits since then, which no standby can have confirmed.
    pub fn must_not_have_committed(&self, then: Instant) {
        // A COMMIT that was confirmed before may show a moment later.
        let then = then + Duration::from_secs(3);
        for (index, member) in self.members.iter().enumerate() {
            if let Some(at) = member.committed_after(then) {
                let seconds = (at - self.began).as_secs_f64();
                lock(&self.unconfirmed).push(format!("instance {index} at {seconds:.1} s"));
            }
        }
    }

    pub async fn drain(&self) -> Result<Option<f64>> {
        drain(async || self.setup.servers.messages(&self.queue).await).await
    }

    /// Has every instance end by SIGTERM.
    pub async fn stop(&self) -> Result<()> {
        self.members.iter().for_each(|member| member.instance.stop());
        let mut keepers = std::mem::take(&mut *lock(&self.keepers));
        // Those that follow the metrics do not end.
        for _ in &self.members {
            timeout(PATIENCE, keepers.join_next()).await?.ok_or("no instance")??;
        }
        Ok(())
    }

    /// What is in queues and tables, once every instance has stopped.
    pub async fn evidence(&self, drained_after: Option<f64>, watched: Watched) -> Result<Evidence> {
        let servers = self.setup.servers;
        let connection = servers.amqp_anywhere().await?;
        let mut sql = servers.sql_at_last(&self.database).await?;
        let attempts = tables::votes(&mut sql, ATTEMPTS).await?;
        let audit = tables::votes(&mut sql, AUDIT).await?.into_iter();
        let dead = format!("{}.dlq", self.queue);
        let seen = self.members.iter().map(|member| lock(&member.instance.seen).clone());
        Ok(Evidence {
            audit: audit.map(|vote| (vote.vote_hash.to_string(), vote)).collect(),
            results: tables::totals(&mut sql, RESULTS).await?,
            recounted: tables::totals(&mut sql, RECOUNT).await?,
            attempt_rows: attempts.len(),
            attempts: attempts.into_iter().collect(),
            dead_letters: invariants::take_all(&connection, &dead).await?,
            left: servers.queue(&self.queue).await?.0,
            drained_after,
            watched,
            seen: seen.collect(),
            deadlocks: servers.deadlocks()?,
            classic_killed: Vec::new(),
        })
    }
}
