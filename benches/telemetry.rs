//! What metrics and traces cost the service per vote, in CPU time of its process or in instructions
//! (which know no noise, and nothing of the kernel): the same votes with both off, with metrics, and
//! with traces of one batch in a hundred on top, one after the other in changing order, round by
//! round. `script/telemetry-cost` runs it.

// The tests' stage serves here as well; not all of it is needed.
#[allow(dead_code, unused_imports)]
#[path = "../tests/it"]
mod it {
    pub mod support;
}

#[path = "compare/figures.rs"]
mod figures;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use strum::{IntoStaticStr, VariantArray};
use tokio::process::Command;
use vote_aggregator::adapters::broker::RabbitMq;
use vote_aggregator::operator::publish::{Samples, Shape};

use self::figures::{in_turn, median, table};
use self::it::support::{Collector, PATIENCE, Servers, Service, Stage, eventually_within};

/// Messages on their way to a confirm at a time.
const UNCONFIRMED: usize = 5_000;

/// Compares what the service needs per vote with telemetry off and on, side by side.
#[derive(Parser)]
#[command(after_help = "Examples:\n  script/telemetry-cost --rounds 12 --votes 100000\n  \
                        script/telemetry-cost --instructions --votes 20000")]
struct Arguments {
    /// How often each of the three is measured, in turn.
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Votes for each measurement.
    #[arg(long, default_value_t = 100_000)]
    votes: usize,
    /// Count instructions, with valgrind's callgrind, instead of CPU time.
    #[arg(long)]
    instructions: bool,
    /// What cargo passes on.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is switched on; each in addition to those before it.
#[derive(Clone, Copy, IntoStaticStr, VariantArray)]
enum Telemetry {
    #[strum(serialize = "both off")]
    Off,
    #[strum(serialize = "metrics")]
    Metrics,
    #[strum(serialize = "metrics, traces of 1 %")]
    MetricsAndTraces,
}

struct Bench {
    stage: Stage<'static>,
    collector: Collector,
    /// Counts instructions instead of CPU time.
    instructions: bool,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    if std::env::var_os("SERVICES_DIR").is_none() {
        eprintln!("this one needs servers of its own: run script/telemetry-cost");
        return;
    }
    let bench = Bench {
        stage: Stage::migrated(Servers::shared(), "cost").await,
        collector: Collector::listen("grpc").await,
        instructions: arguments.instructions,
    };
    let votes: Vec<Vec<u8>> = Samples::new(Shape::distinct(arguments.votes, 5, 1)).collect();
    let all = Telemetry::VARIANTS;

    // Starting and stopping costs as much whatever is counted: it is in the figure for a few votes,
    // and what the others need on top of that is theirs.
    let few = &votes[..votes.len() / 20];
    let mut start = Vec::new();
    for telemetry in all {
        start.push(bench.measure(few, *telemetry).await);
    }

    let unit = if bench.instructions { "instructions" } else { "µs" };
    let mut measured = vec![Vec::new(); all.len()];
    in_turn(arguments.rounds, all.len(), async |which, round| {
        let needed = bench.measure(&votes, all[which]).await;
        let a_vote = (needed - start[which]) / (votes.len() - few.len()) as f64;
        measured[which].push(a_vote);
        eprintln!("{round}: {}: {a_vote:.2} {unit} a vote", <&str>::from(all[which]));
    })
    .await;

    let header = format!("{unit} a vote: median");
    let rows = (0..all.len()).map(|which| {
        let figures = &measured[which];
        let on_top = which.checked_sub(1).map_or(String::new(), |before| {
            let pairs = figures.iter().zip(&measured[before]);
            let ratios = pairs.map(|(on, off)| on / off - 1.0).collect();
            format!("{:+.1} %", 100.0 * median(ratios))
        });
        vec![
            <&str>::from(all[which]).to_owned(),
            format!("{:.2}", median(figures.clone())),
            format!("{:.2}", figures.iter().copied().fold(f64::INFINITY, f64::min)),
            format!("{:.2}", figures.iter().copied().fold(0.0, f64::max)),
            on_top,
        ]
    });
    let header = ["telemetry", &header, "least", "most", "on top, median of pairs"];
    println!("{}", table(&header, rows));
    let spans = bench.collector.spans().len();
    println!("spans received: {spans}");
    assert!(spans > 0, "traces were on");
}

impl Bench {
    /// Microseconds or instructions that a service needs from its start until it has counted all
    /// votes.
    async fn measure(&self, votes: &[Vec<u8>], telemetry: Telemetry) -> f64 {
        let stage = &self.stage;
        stage.empty().await;
        publish(stage, votes).await;
        let service = self.spawn(telemetry);
        let all = i64::try_from(votes.len()).expect("a small number");
        eventually_within(PATIENCE * 5, "all votes are counted", async || {
            let counted =
                "SELECT coalesce(sum(oui_count + non_count), 0)::bigint FROM vote_results";
            stage.number(counted).await == all
        })
        .await;

        let seconds = cpu_seconds(service.id());
        service.stop().await;
        if !self.instructions {
            return seconds * 1e6;
        }
        let counts = fs::read_to_string(self.counts()).expect("callgrind wrote it");
        let total = counts.lines().find_map(|line| line.strip_prefix("totals: "));
        total.expect("a total").trim().parse().expect("a number")
    }

    fn spawn(&self, telemetry: Telemetry) -> Service {
        let binary = env!("CARGO_BIN_EXE_vote-aggregator");
        let mut command = Command::new(binary);
        if self.instructions {
            command = Command::new("valgrind");
            let out = format!("--callgrind-out-file={}", self.counts().display());
            command.args(["--tool=callgrind", "--log-file=/dev/null", &out, binary]);
        }
        command.arg("run");
        let variables = match telemetry {
            Telemetry::Off => vec![("OTEL_METRICS_EXPORTER", "none".to_owned())],
            Telemetry::Metrics => Vec::new(),
            Telemetry::MetricsAndTraces => {
                let settings = self.collector.settings().into_iter();
                let mut variables: Vec<_> = settings
                    .filter(|(name, _)| *name != "OTEL_BSP_SCHEDULE_DELAY")
                    .map(|(name, value)| (name, value.to_owned()))
                    .collect();
                variables.push(("OTEL_TRACES_SAMPLER", "traceidratio".to_owned()));
                variables.push(("OTEL_TRACES_SAMPLER_ARG", "0.01".to_owned()));
                variables
            }
        };
        let mut environment = self.stage.environment();
        environment.extend(variables.into_iter().map(|(name, value)| (name.to_owned(), value)));
        Service::spawn_as(&self.stage.queue, command, &environment)
    }

    /// Where callgrind writes.
    fn counts(&self) -> PathBuf {
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.callgrind", self.stage.queue))
    }
}

/// The votes, each in a trace of its own as its publisher would have begun it.
async fn publish(stage: &Stage<'_>, votes: &[Vec<u8>]) {
    let rabbitmq = RabbitMq::new(stage.config(&[]).rabbitmq);
    let publisher = rabbitmq.publisher().await.expect("RabbitMQ takes a publisher");
    let mut confirms = VecDeque::new();
    for body in votes {
        let traceparent = format!("00-{:032x}-{:016x}-00", fastrand::u128(1..), fastrand::u64(1..));
        let headers = [("traceparent", traceparent.as_str())];
        let confirm = publisher.publish(&stage.queue, body, &headers).await;
        confirms.push_back(confirm.expect("published"));
        if confirms.len() > UNCONFIRMED {
            confirms.pop_front().expect("there are some").await.expect("confirmed");
        }
    }
    for confirm in confirms {
        confirm.await.expect("confirmed");
    }
    publisher.close().await.expect("closed");
}

/// What all threads of a process have had of the processors, to the nanosecond.
fn cpu_seconds(process: u32) -> f64 {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("Linux, and it runs");
    let nanoseconds = threads.map(|thread| {
        let file = thread.expect("an entry").path().join("schedstat");
        let text = fs::read_to_string(file).unwrap_or_default();
        text.split(' ').next().and_then(|on_cpu| on_cpu.parse::<u64>().ok()).unwrap_or_default()
    });
    nanoseconds.sum::<u64>() as f64 / 1e9
}
