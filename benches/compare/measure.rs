//! One measurement: a queue is filled, consumers are started, and between the first votes and the
//! last the clock and the processors' times are read.

use std::fmt;
use std::iter::Sum;
use std::path::Path;
use std::time::Duration;

use sqlx::AssertSqlSafe;
use tokio::time::{Instant, sleep, timeout};
use vote_aggregator::operator::publish::{Samples, Shape};

use crate::it::support::{Servers, Service, Stage};
use crate::meter::{cpu_seconds, peak_memory};

/// What a quorum queue has in the broker's log it has in memory, too; what was there when a log was
/// full is read from disk. With a new log for each measurement all find their votes in memory, as
/// long as they are fewer than a log holds (512 MiB).
const NEW_LOG: [&str; 4] = ["ctl", "--", "eval", "ra_log_wal:force_roll_over(ra_log_wal)."];
/// Between two looks at how far they are.
const LOOK: Duration = Duration::from_millis(10);
/// A consumer that has counted nothing new for so long has failed.
const STALLED: Duration = Duration::from_secs(60);
/// The servers are quiet when they have had less of a processor than this, in such a time.
const QUIET: (f64, Duration) = (0.05, Duration::from_millis(500));
/// They may never be: a checkpoint takes its time.
const QUIET_AT_LAST: Duration = Duration::from_secs(30);

/// The servers, and the tables that all contenders write into.
pub struct Bench {
    pub stage: Stage<'static>,
    broker: u32,
    database: u32,
}

/// What one measurement came to.
#[derive(Clone, Debug, Default)]
pub struct Run {
    pub votes: u64,
    pub seconds: f64,
    /// Processor seconds: client, broker, database.
    pub cpu: [f64; 3],
    /// MiB, of the largest process.
    pub memory: f64,
}

impl Run {
    pub fn rate(&self) -> f64 {
        self.votes as f64 / self.seconds
    }

    /// Processor seconds a million votes: client, broker, database.
    pub fn cost(&self) -> [f64; 3] {
        self.cpu.map(|cpu| cpu * 1e6 / self.votes as f64)
    }
}

/// Measurements one after the other, as one.
impl Sum for Run {
    fn sum<I: Iterator<Item = Self>>(runs: I) -> Self {
        runs.fold(Self::default(), |all, run| Self {
            votes: all.votes + run.votes,
            seconds: all.seconds + run.seconds,
            cpu: [0, 1, 2].map(|of| all.cpu[of] + run.cpu[of]),
            memory: all.memory.max(run.memory),
        })
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [client, broker, database] = self.cost();
        write!(
            f,
            "{:.0} votes/s over {:.1} s; CPU-s a million: client {client:.1}, broker {broker:.1}, \
             database {database:.1}; {:.0} MiB",
            self.rate(),
            self.seconds,
            self.memory
        )
    }
}

impl Bench {
    /// On these servers, PostgreSQL with the settings of a file, and keeping the times of commits
    /// where they are asked for.
    pub async fn new(
        servers: &'static Servers,
        settings: Option<&Path>,
        commit_times: bool,
    ) -> Self {
        if commit_times {
            servers.script(&["psql", "--", "-qc", "ALTER SYSTEM SET track_commit_timestamp = on"]);
        }
        if let Some(file) = settings {
            let text = std::fs::read_to_string(file).expect("the settings can be read");
            let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
            for line in lines.filter(|line| !line.is_empty()) {
                let (name, value) = line.split_once('=').expect("name = value");
                let value = value.trim().trim_matches('\'');
                let sql = format!("ALTER SYSTEM SET {} = '{value}'", name.trim());
                servers.script(&["psql", "--", "-qc", &sql]);
            }
        }
        servers.script(&["restart", "postgres"]);
        let stage = Stage::migrated(servers, "bench").await;
        let pid = |which| servers.script(&["pid", which]).trim().parse().expect("a process id");
        Self { broker: pid("rabbitmq"), database: pid("postgres"), stage }
    }

    pub async fn sql(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.stage.sql).await.expect("SQL");
    }

    /// Processor seconds that PostgreSQL has had.
    pub fn database_cpu(&self) -> f64 {
        cpu_seconds(self.database)
    }

    /// So many votes on a queue of their own, taken by what `start` starts; right after a checkpoint,
    /// or without one.
    pub async fn consume(
        &self,
        votes: u64,
        laws: u32,
        checkpoint: bool,
        start: impl FnOnce(&Stage<'_>) -> Vec<Service>,
    ) -> Run {
        let stage = &self.stage;
        let count = usize::try_from(votes).expect("64 bits");
        let shape = Shape::distinct(count, laws, fastrand::u64(..));
        stage.servers.script(&NEW_LOG);
        stage.publish_each(Samples::new(shape)).await;
        self.quiet(checkpoint).await;

        let before = self.counted().await;
        let running = start(stage);
        let run = self.watch(&running, before, votes).await;
        drop(running);
        stage.delete(&stage.queue).await;
        run
    }

    /// From the first votes to the last.
    async fn watch(&self, running: &[Service], before: u64, votes: u64) -> Run {
        let mut first: Option<(Instant, u64, [f64; 3])> = None;
        let mut progress = (0, Instant::now());
        loop {
            sleep(LOOK).await;
            // One that only acks writes how many to its log.
            let acked = running[0].log().lines().rev().find_map(|line| line.parse::<u64>().ok());
            let done = match acked {
                Some(acked) => acked,
                None => self.counted().await - before,
            };
            if done > progress.0 {
                progress = (done, Instant::now());
            }
            assert!(progress.1.elapsed() < STALLED, "stalled at {done}: {}", running[0].log());
            // To read the processors' times takes so much of a processor that in between it would
            // slow down what is measured.
            if done == 0 || (first.is_some() && done < votes) {
                continue;
            }
            let now = Instant::now();
            let client = running.iter().map(|service| cpu_seconds(service.id())).sum();
            let cpu = [client, cpu_seconds(self.broker), self.database_cpu()];
            let Some((began, early, spent)) = first else {
                first = Some((now, done, cpu));
                continue;
            };
            return Run {
                votes: done - early,
                seconds: (now - began).as_secs_f64(),
                cpu: [0, 1, 2].map(|of| cpu[of] - spent[of]),
                memory: running.iter().map(|one| peak_memory(one.id())).fold(0.0, f64::max),
            };
        }
    }

    pub async fn counted(&self) -> u64 {
        let counted = "SELECT coalesce(sum(oui_count + non_count), 0)::bigint FROM vote_results";
        self.stage.number(counted).await.try_into().expect("no negative totals")
    }

    /// Waits until the servers have written what they have to write.
    pub async fn quiet(&self, checkpoint: bool) {
        if checkpoint {
            self.sql("CHECKPOINT").await;
        }
        let waiting = async {
            loop {
                let before = cpu_seconds(self.broker) + self.database_cpu();
                sleep(QUIET.1).await;
                if cpu_seconds(self.broker) + self.database_cpu() - before < QUIET.0 {
                    return;
                }
            }
        };
        if timeout(QUIET_AT_LAST, waiting).await.is_err() {
            eprintln!("the servers do not come to rest; measuring all the same");
        }
    }
}
