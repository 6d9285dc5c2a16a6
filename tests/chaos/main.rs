//! The service under faults: instances of the real binary between a RabbitMQ and a PostgreSQL of
//! this run's own, every link through a proxy, a publisher that keeps a ledger, and faults by a
//! seeded plan. Afterwards the invariants are checked against the ledger.
//!
//! ```text
//! publisher ───────────────► RabbitMQ ◄── proxy ── instance ── proxy ──► PostgreSQL ◄── watch
//!     └─ ledger ─────────────────── invariants ◄─────────────────────────────┘
//! ```
//!
//! With no arguments a short run. Not part of a plain `cargo test`: `script/chaos` runs it, and
//! `script/test` does as its last part. Servers: `script/services`.

mod deadlocks;
mod disk;
mod faults;
mod instances;
mod invariants;
mod ledger;
mod pgwire;
mod phase;
mod plan;
mod progress;
mod proxy;
mod publisher;
mod report;
mod revival;
mod servers;
mod traffic;
mod watch;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use crate::disk::Disk;
use crate::phase::Setup;
use crate::plan::Deck;
use crate::report::Report;
use crate::servers::Servers;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How long anything may take that should take moments.
const PATIENCE: Duration = Duration::from_secs(30);
/// A fault begins this often on average.
const FAULT_EVERY: Duration = Duration::from_millis(3_300);
/// Traffic on each queue type when nothing else is said.
const SHORT: Duration = Duration::from_secs(54);
/// No fault of a short run lasts longer.
const SHORT_HOLD: Duration = Duration::from_secs(5);
/// From this length on, faults last as long as they like.
const LONG: Duration = Duration::from_secs(180);

const EXAMPLES: &str = "\
Examples:
  script/chaos                                    two minutes, both queue types
  script/chaos --minutes 20 --seed 1              20 minutes, about 360 faults
  script/chaos --minutes 5 --queue quorum --instances 5

Exit codes: 0 every invariant held; 1 one did not, or the run failed; 2 wrong usage; 130 interrupted.
Logs, ledgers of failed runs and report.json stay in target/chaos.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum QueueType {
    Classic,
    Quorum,
}

impl QueueType {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Quorum => "quorum",
        }
    }
}

/// Kills, freezes, cuts and fills what the service depends on, and the service, while votes are
/// published; then checks that every vote was counted exactly once.
#[derive(Parser)]
#[command(name = "chaos", bin_name = "script/chaos", after_help = EXAMPLES)]
struct Arguments {
    /// Minutes of traffic, shared by the queue types [default: 1.8]
    #[arg(long, value_parser = minutes)]
    minutes: Option<f64>,
    /// Same faults at the same times, same messages [default: another each time; it is printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Instances of the service
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    instances: u8,
    /// Only this queue type [default: one after the other]
    #[arg(long)]
    queue: Option<QueueType>,
    /// Messages a second
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rate: u32,
    /// Print the tables only when an invariant is broken
    #[arg(long)]
    brief: bool,
    /// The service's binary
    #[arg(long, default_value = env!("CARGO_BIN_EXE_vote-aggregator"))]
    binary: PathBuf,
    /// As cargo test takes it: runs nothing unless it is part of "chaos"
    #[arg(hide = true)]
    filter: Option<String>,
    /// What people pass to tests with a harness
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    test_threads: Option<u32>,
}

fn minutes(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(minutes) if (0.1..=10_000.0).contains(&minutes) => Ok(minutes),
        _ => Err("a number of minutes, 0.1 or more".to_owned()),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.filter.as_ref().is_some_and(|filter| !"chaos".contains(filter.as_str())) {
        println!("0 passed, 0 failed");
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("chaos: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(chaos(arguments)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("chaos: {error}");
            println!("0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}

/// Servers around the run, which end with it however it ends.
async fn chaos(arguments: Arguments) -> Result<u8> {
    pgwire::self_check()?;
    traffic::self_check()?;
    let binary = arguments.binary.canonicalize();
    let binary = binary.map_err(|error| format!("{}: {error}", arguments.binary.display()))?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;

    let mut servers = Servers::new();
    let up = servers.up().await;
    let servers = Arc::new(servers);
    let mut disk = None;
    let ended = match up {
        Err(error) => Err(error),
        Ok(()) => {
            let disk = Arc::clone(disk.insert(Arc::new(Disk::prepare(&servers).await)));
            // When a signal wins, the run is dropped, and with it its tasks and processes.
            tokio::select! {
                ended = run(&arguments, binary, &servers, &disk) => ended,
                _ = interrupt.recv() => Ok(128 + 2),
                _ = terminate.recv() => Ok(128 + 15),
            }
        }
    };
    let down = servers.down().await;
    if let Some(disk) = disk {
        disk.release().await;
    }
    let code = ended?;
    down?;
    Ok(code)
}

async fn run(
    arguments: &Arguments,
    binary: PathBuf,
    servers: &Arc<Servers>,
    disk: &Arc<Disk>,
) -> Result<u8> {
    let queue_types = match arguments.queue {
        Some(queue_type) => vec![queue_type],
        None => vec![QueueType::Classic, QueueType::Quorum],
    };
    let length = match arguments.minutes {
        Some(minutes) => Duration::from_secs_f64(minutes * 60.0) / queue_types.len() as u32,
        None => SHORT,
    };
    let longest = if length < LONG { SHORT_HOLD } else { LONG };
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("chaos");
    let directory = directory.join(format!("{}-seed-{seed}", std::process::id()));
    let instances = usize::from(arguments.instances);
    deadlocks::self_check(servers).await?;
    eprintln!("chaos: seed {seed}, {instances} instances; logs in {}", directory.display());

    // One deck for all: the second queue type gets the kinds that the first did not.
    let mut deck = Deck::new(seed);
    let mut phases = Vec::new();
    for (number, queue_type) in (0..).zip(queue_types) {
        let directory = directory.join(queue_type.name());
        std::fs::create_dir_all(&directory)?;
        let setup = Setup {
            servers: Arc::clone(servers),
            disk: Arc::clone(disk),
            binary: binary.clone(),
            directory: directory.clone(),
            queue_type,
            instances,
            rate: arguments.rate,
            seed: seed.wrapping_add(number),
            plan: deck.plan(length, FAULT_EVERY, longest, instances),
            brief: arguments.brief,
        };
        let phase = setup.run().await?;
        if phase.verdicts.iter().all(|verdict| verdict.held) {
            // Large, and of interest to a post mortem only.
            std::fs::remove_file(directory.join("ledger.ndjson"))?;
        }
        phases.push(phase);
    }

    let disk_full = match &**disk {
        Disk::Mount(_) => "a tablespace on a full file system".to_owned(),
        Disk::Trigger(why) => format!("simulated by a trigger that raises 53100 ({why})"),
    };
    let report = Report::new(seed, instances, binary.display().to_string(), disk_full, phases);
    let path = directory.join("report.json");
    std::fs::write(&path, serde_json::to_string_pretty(&report)?)?;
    if arguments.brief && report.failed == 0 {
        println!("{}", report.line_each());
    } else {
        println!("{}{}", report.text(), report.failures());
    }
    println!("Report: {}", path.display());
    println!("Again: script/chaos --seed {seed} (with the other arguments as they were)");
    println!("{} passed, {} failed", report.passed, report.failed);
    Ok(u8::from(report.failed > 0))
}
