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

mod common;
mod disk;
mod faults;
mod instances;
mod invariants;
mod ledger;
mod links;
#[path = "../shared/messages.rs"]
mod messages;
mod phase;
mod plan;
#[path = "../shared/printed.rs"]
mod printed;
#[path = "../shared/processes.rs"]
mod processes;
mod proxy;
mod publisher;
mod report;
mod revival;
mod servers;
#[path = "../shared/tables.rs"]
mod tables;
mod traffic;
mod watch;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use strum::IntoStaticStr;
use tokio::signal::unix::{SignalKind, signal};

use crate::disk::Disk;
use crate::phase::Setup;
use crate::plan::Deck;
use crate::report::Report;
use crate::servers::Servers;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How long anything may take that should take moments.
const PATIENCE: Duration = Duration::from_secs(30);
/// Without a confirm for so long, the publisher gives its connection up. Longer than a memory alarm, so
/// that some alarms end with the same connection.
const SILENCE: Duration = Duration::from_secs(15);
/// Traffic on each queue type when nothing else is said.
const SHORT: Duration = Duration::from_secs(54);
/// No fault of a short run lasts longer.
const SHORT_HOLD: Duration = Duration::from_secs(5);
/// From this length on, faults last as long as they like.
const LONG: Duration = Duration::from_secs(180);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum QueueType {
    Classic,
    Quorum,
}

/// Kills, freezes, cuts and fills what the service depends on, and the service, while votes are
/// published; then checks that every vote was counted exactly once.
#[derive(Parser)]
#[command(name = "chaos", bin_name = "script/chaos")]
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
}

fn minutes(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(minutes) if (0.1..=10_000.0).contains(&minutes) => Ok(minutes),
        _ => Err("a number of minutes, 0.1 or more".to_owned()),
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn main() -> ExitCode {
    match chaos(Arguments::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("chaos: {error}");
            println!("0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}

/// Servers around the run, which end with it however it ends.
#[tokio::main]
async fn chaos(mut arguments: Arguments) -> Result<u8> {
    let binary = arguments.binary.canonicalize();
    arguments.binary =
        binary.map_err(|error| format!("{}: {error}", arguments.binary.display()))?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;

    let mut servers = Servers::new();
    let up = servers.up().await;
    // Leaked, since tasks use both until the process ends.
    let servers: &Servers = Box::leak(Box::new(servers));
    let disk: &Disk = Box::leak(Box::new(match &up {
        Ok(()) => Disk::prepare(servers).await,
        Err(_) => Disk::Trigger("no servers".to_owned()),
    }));
    // When a signal wins, the run is dropped, and with it its tasks and processes.
    let ended = tokio::select! {
        ended = async { up?; run(&arguments, servers, disk).await } => ended,
        _ = interrupt.recv() => Ok(128 + 2),
        _ = terminate.recv() => Ok(128 + 15),
    };
    let down = servers.down().await;
    disk.release().await;
    let code = ended?;
    down?;
    Ok(code)
}

async fn run(arguments: &Arguments, servers: &'static Servers, disk: &'static Disk) -> Result<u8> {
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
    eprintln!("chaos: seed {seed}, {instances} instances; logs in {}", directory.display());

    // One deck for all: the second queue type gets the kinds that the first did not.
    let mut deck = Deck::new(seed);
    let mut phases = Vec::new();
    for (number, queue_type) in (0..).zip(queue_types) {
        let directory = directory.join(<&str>::from(queue_type));
        std::fs::create_dir_all(&directory)?;
        phases.push(
            phase::run(Setup {
                servers,
                disk,
                binary: arguments.binary.clone(),
                directory,
                queue_type,
                instances,
                rate: arguments.rate,
                seed: seed.wrapping_add(number),
                plan: deck.plan(length, longest, instances),
                brief: arguments.brief,
            })
            .await?,
        );
    }

    let verdicts = || phases.iter().flat_map(|phase| &phase.verdicts);
    let passed = verdicts().filter(|verdict| verdict.held).count();
    let report = Report {
        seed,
        instances,
        binary: arguments.binary.display().to_string(),
        disk_full: match disk {
            Disk::Mount(_) => "a tablespace on a full file system".to_owned(),
            Disk::Trigger(why) => format!("simulated by a trigger that raises 53100 ({why})"),
        },
        faults: report::rows(&phases),
        passed,
        failed: verdicts().count() - passed,
        phases,
    };
    let path = directory.join("report.json");
    std::fs::write(&path, serde_json::to_string_pretty(&report)?)?;
    if arguments.brief && report.failed == 0 {
        println!("{}", report.votes());
    } else {
        println!("\n{}\n\n{}\n\n{}", report.faults(), report.votes(), report.verdicts());
    }
    println!("Report: {}", path.display());
    println!("Again: script/chaos --seed {seed} (with the other arguments as they were)");
    println!("{} passed, {} failed", report.passed, report.failed);
    Ok(u8::from(report.failed > 0))
}
