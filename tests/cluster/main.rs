//! The service on three hosts, each with a RabbitMQ node, a PostgreSQL under Patroni and an etcd, while
//! hosts, links and servers fail by a seeded plan. Afterwards, and at every failover of PostgreSQL, what was
//! acknowledged is compared with the audit.
//!
//! ```text
//! host 0: publisher, watch ──┬── host 1: RabbitMQ, PostgreSQL, etcd, an instance
//!                            ├── host 2: the same
//!                            ├── host 3: the same
//!                            └── host 4: an instance, and one behind HAProxy
//! ```
//!
//! Runs on host 0, which no fault touches. `script/cluster run` starts the hosts and this, and ends both.
//! Publisher, ledger, watch and invariants are those of chaos.

mod census;
#[path = "../chaos/common.rs"]
mod common;
mod faults;
#[path = "../chaos/instances.rs"]
mod instances;
#[path = "../chaos/invariants.rs"]
mod invariants;
#[path = "../chaos/ledger.rs"]
mod ledger;
mod loss;
#[path = "../shared/messages.rs"]
mod messages;
mod phase;
mod plan;
#[path = "../shared/printed.rs"]
mod printed;
mod progress;
#[path = "../chaos/publisher.rs"]
mod publisher;
mod report;
mod servers;
#[path = "../shared/tables.rs"]
mod tables;
#[path = "../chaos/traffic.rs"]
mod traffic;
#[path = "../chaos/watch.rs"]
mod watch;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::phase::Setup;
use crate::plan::Deck;
use crate::servers::Servers;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How long anything may take that should take moments.
const PATIENCE: Duration = Duration::from_secs(60);
/// Without a confirm for so long, the publisher goes on to another node.
const SILENCE: Duration = Duration::from_secs(5);

/// Injects faults into a cluster of three hosts while votes are published and counted; then checks that
/// every vote was counted exactly once.
#[derive(Parser)]
#[command(name = "cluster", bin_name = "script/cluster run")]
struct Arguments {
    /// Minutes in which faults begin [default: each fault of the short run once]
    #[arg(long)]
    minutes: Option<f64>,
    /// Same faults in the same order, same messages [default: another each time; it is printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Only faults whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// A failover that loses acknowledged votes, which must raise the alarm
    #[arg(long)]
    asynchronous: bool,
    /// Messages a second
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rate: u32,
    /// Print the tables only when a check fails
    #[arg(long)]
    brief: bool,
    /// The cluster's directory, for script/cluster
    #[arg(long)]
    dir: PathBuf,
    /// The service's binary
    #[arg(long, default_value = env!("CARGO_BIN_EXE_vote-aggregator"))]
    binary: PathBuf,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[tokio::main]
async fn main() -> ExitCode {
    let ended = async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        // When a signal wins, the run is dropped, and with it its tasks and processes.
        tokio::select! {
            ended = run(Arguments::parse()) => ended,
            _ = interrupt.recv() => Ok(128 + 2),
            _ = terminate.recv() => Ok(128 + 15),
        }
    };
    match ended.await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("cluster: {error}");
            println!("0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<u8> {
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let directory = arguments.dir.with_extension("logs");
    std::fs::create_dir_all(&directory)?;
    eprintln!("cluster: seed {seed}; logs in {}", directory.display());
    // Leaked, since tasks use it until the process ends.
    let servers: &Servers = Box::leak(Box::new(Servers::new(arguments.dir).await?));
    let setup = Setup {
        servers,
        binary: arguments.binary.canonicalize()?,
        directory: directory.clone(),
        rate: arguments.rate,
        seed,
        brief: arguments.brief,
    };
    let report = if arguments.asynchronous {
        loss::run(setup).await?
    } else {
        let (only, links) = (arguments.only.as_deref(), servers.has_links());
        let deck = Deck::new(seed, only, arguments.minutes, links)?;
        phase::run(setup, deck).await?
    };
    let path = directory.join("report.json");
    std::fs::write(&path, serde_json::to_string_pretty(&report)?)?;
    if arguments.brief && report.failed == 0 {
        println!("{}", report.votes());
    } else {
        println!("\n{}\n\n{}\n\n{}", report.faults(), report.votes(), report.verdicts());
    }
    println!("Report: {}", path.display());
    println!("Again: script/cluster run --seed {seed} (with the other arguments as they were)");
    println!("{} passed, {} failed", report.passed, report.failed);
    Ok(u8::from(report.failed > 0))
}
