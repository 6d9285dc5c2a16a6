//! The service's own pipeline and supervisor against a model broker and a model store, on a paused
//! clock, from a seed.
//!
//! ```text
//! cargo test --test simulation                     10,000 seeds and the crash matrix
//! cargo test --test simulation -- --seed 42        one seed, with everything that happens in it
//! cargo test --test simulation -- --crash-points   a crash at every point, and all pairs of them
//! ```

mod broker;
mod crash;
mod invariants;
mod plan;
mod run;
mod session;
mod store;
mod world;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use vote_aggregator::platform::config::ShownTotals;
use vote_aggregator::platform::telemetry::{Health, Instruments, Metrics};

use crate::plan::Plan;
use crate::run::{Outcome, run};
use crate::world::{Tracing, lock};

/// Seeds that are run twice, with equal traces.
const REPEATED: u64 = 50;
/// Failures that are printed; the others are counted.
const MOST_PRINTED: usize = 10;

/// Simulates the service from seeds.
#[derive(Debug, Parser)]
#[command(name = "simulation")]
struct Arguments {
    /// Replay one seed and print what happens in it.
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// How many seeds to run [default: SIMULATION_SEEDS, or 10000].
    #[arg(long, value_name = "COUNT", default_value_t = usual_seeds(), hide_default_value = true)]
    seeds: u64,
    /// The first of them.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    from: u64,
    /// Crash at every point of a script, and at all pairs of points; run no seeds.
    #[arg(long)]
    crash_points: bool,
    /// End with the first seed that fails.
    #[arg(long)]
    first_failure: bool,
    /// As `cargo test` passes it on: runs nothing unless it is part of the name `simulation`.
    #[arg(hide = true)]
    filter: Option<String>,
    /// Other options that `cargo test` may pass on; ignored.
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    exact: bool,
    #[arg(long, hide = true)]
    test_threads: Option<usize>,
}

/// From the environment, too: `cargo test` has one command line for all tests.
fn usual_seeds() -> u64 {
    let seeds = std::env::var("SIMULATION_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    seeds.unwrap_or(10_000)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.seed {
        return replay(seed);
    }
    if arguments.filter.as_deref().is_some_and(|filter| !"simulation".contains(filter)) {
        println!("0 passed, 0 failed");
        return ExitCode::SUCCESS;
    }
    let mut tests = Vec::new();
    if !arguments.crash_points {
        tests.push(repeats(arguments.from));
        tests.push(seeds(&arguments));
    }
    if tests.iter().all(|passed| *passed) || !arguments.first_failure {
        tests.push(crash::matrix());
    }
    let failed = tests.iter().filter(|passed| !**passed).count();
    println!("{} passed, {failed} failed", tests.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs share them: they are written only, and building them takes longer than a run.
pub fn instruments() -> Instruments {
    let metrics = Metrics::new(10, ShownTotals::Full, Arc::new(Health::default()), None);
    metrics.expect("instruments of a registry of their own").instruments
}

fn replay(seed: u64) -> ExitCode {
    let outcome = run(Plan::of(seed), Tracing::Print, &instruments());
    let Outcome { violations, counted, commits, most_requeued, drained_in, .. } = &outcome;
    println!(
        "seed {seed}: {counted} votes counted in {commits} commits, at most {most_requeued} \
         requeues of a message, drained {drained_in:?} after healing"
    );
    for violation in violations {
        println!("FAILED {violation}");
    }
    if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The same seed must give the same run, or no failure could be replayed.
fn repeats(from: u64) -> bool {
    let instruments = instruments();
    let again = |seed| run(Plan::of(seed), Tracing::Keep, &instruments);
    let different = (from..from + REPEATED).find(|seed| again(*seed) != again(*seed));
    match different {
        None => println!("simulation: {REPEATED} seeds run twice, with equal traces"),
        Some(seed) => println!("FAILED simulation: seed {seed} does not repeat itself"),
    }
    different.is_none()
}

fn seeds(&Arguments { from, seeds, first_failure, .. }: &Arguments) -> bool {
    let outcomes = Mutex::new(Vec::new());
    let elapsed = in_parallel("seeds", seeds, |number, instruments| {
        let seed = from + number;
        let outcome = run(Plan::of(seed), Tracing::Off, instruments);
        let goes_on = !first_failure || outcome.violations.is_empty();
        lock(&outcomes).push((seed, outcome));
        goes_on
    });
    let mut outcomes = lock(&outcomes);
    outcomes.sort_by_key(|(seed, _)| *seed);
    let failures = outcomes.iter().filter_map(|(seed, one)| Some((seed, one.violations.first()?)));
    let failures: Vec<(&u64, &String)> = failures.collect();
    for (seed, violation) in failures.iter().take(MOST_PRINTED) {
        println!("FAILED {violation}\n  replay: cargo test --test simulation -- --seed {seed}");
    }
    let sum =
        |figure: fn(&Outcome) -> u64| outcomes.iter().map(|(_, one)| figure(one)).sum::<u64>();
    let requeued = outcomes.iter().map(|(seed, one)| (one.most_requeued, *seed)).max();
    let (requeued, requeued_seed) = requeued.unwrap_or_default();
    let slowest = outcomes.iter().map(|(seed, one)| (one.drained_in, *seed)).max();
    let (slowest, slowest_seed) = slowest.unwrap_or_default();
    println!(
        "simulation: {} seeds from {from} in {:.1} s, {} failed; {} votes in {} commits, \
         at most {requeued} requeues of a message (seed {requeued_seed}), \
         slowest drain {slowest:?} (seed {slowest_seed})",
        outcomes.len(),
        elapsed.as_secs_f64(),
        failures.len(),
        sum(|one| one.counted),
        sum(|one| one.commits),
    );
    failures.is_empty()
}

/// Does `work` for every number below `count` on all cores, each thread with its own instruments,
/// until one returns `false`.
pub fn in_parallel(
    what: &'static str,
    count: u64,
    work: impl Fn(u64, &Instruments) -> bool + Sync,
) -> Duration {
    let began = tokio::time::Instant::now();
    let bar = ProgressBar::with_draw_target(Some(count), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    bar.set_message(what);
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let instruments = instruments();
                let numbers = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)));
                for number in numbers.take_while(|number| *number < count) {
                    if !work(number, &instruments) {
                        next.fetch_max(count, Ordering::Relaxed);
                    }
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    began.elapsed()
}
