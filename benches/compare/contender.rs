//! Who is compared, and how each is started.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::it::support::{Service, Stage};

/// One way to take votes off a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Contender {
    /// A no-op consumer: acks and does nothing else.
    Null,
    /// This service as it comes.
    Default,
    /// This service with its profile for many votes.
    Throughput,
    /// Python with aio-pika: an ack a message before anything is stored, totals without an audit.
    PythonAsShipped,
    /// Python with pika and psycopg2: batches of 100 by `execute_batch`, audit, ack after commit.
    PythonReadme,
    /// Python with aio-pika, asyncpg and uvloop: arrays, four batches in flight, audit.
    PythonTuned,
    /// Node.js with amqplib and pg: arrays, four batches in flight, audit.
    Node,
}

impl Contender {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Null => "null consumer",
            Self::Default => "vote-aggregator, default",
            Self::Throughput => "vote-aggregator, throughput",
            Self::PythonAsShipped => "Python, acks first, no audit",
            Self::PythonReadme => "Python, pika + psycopg2",
            Self::PythonTuned => "Python, aio-pika + asyncpg",
            Self::Node => "Node.js, amqplib + pg",
        }
    }

    /// Whether it is another project's, with a language to install.
    pub const fn is_peer(self) -> bool {
        !matches!(self, Self::Null | Self::Default | Self::Throughput)
    }

    /// Of `votes`, how many take it about as long as the others.
    pub const fn share(self, votes: u64) -> u64 {
        match self {
            Self::Null | Self::Throughput | Self::Node => votes,
            Self::Default => votes / 2,
            Self::PythonAsShipped | Self::PythonReadme | Self::PythonTuned => votes / 8,
        }
    }

    pub fn start(self, stage: &Stage<'_>, peers: &Peers, votes: u64) -> Service {
        let mut command = match self {
            Self::Null => Command::new(std::env::current_exe().expect("its own path")),
            Self::Default | Self::Throughput => Command::new(env!("CARGO_BIN_EXE_vote-aggregator")),
            Self::PythonAsShipped => peers.python("acks_first.py"),
            Self::PythonReadme => peers.python("readme.py"),
            Self::PythonTuned => peers.python("tuned.py"),
            Self::Node => peers.node("consumer.mjs"),
        };
        match self {
            Self::Null => drop(command.arg(format!("--consume-only={votes}"))),
            Self::Default => drop(command.arg("run")),
            Self::Throughput => drop(command.args(["--profile", "throughput", "run"])),
            _ => {}
        }
        let mut environment = stage.environment();
        // Its background reading of the whole audit is not what is compared; the others ignore this.
        environment.insert("RECONCILE_INTERVAL_SECONDS".to_owned(), "0".to_owned());
        Service::spawn_as(&stage.queue, command, &environment)
    }
}

/// Where the other services and what they need were installed.
pub struct Peers {
    sources: PathBuf,
    installed: Option<PathBuf>,
}

impl Peers {
    /// `installed` holds a Python environment `python` and a folder `node`.
    pub fn new(installed: Option<PathBuf>) -> Self {
        Self { sources: Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers"), installed }
    }

    pub fn are_there(&self) -> bool {
        self.installed.is_some()
    }

    fn installed(&self) -> &Path {
        self.installed.as_deref().expect("peers are only started where they are installed")
    }

    fn python(&self, script: &str) -> Command {
        let mut command = Command::new(self.installed().join("python/bin/python3"));
        command.arg(self.sources.join(script));
        command
    }

    fn node(&self, script: &str) -> Command {
        // Modules are looked for beside the script.
        let mut command = Command::new(self.installed().join("node/bin/node"));
        command.arg(self.installed().join("node").join(script));
        command
    }
}
