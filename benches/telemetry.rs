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

#[path = "compare/median.rs"]
mod median;

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use tokio::process::Command;
use vote_aggregator::adapters::broker::RabbitMq;
use vote_aggregator::operator::publish::{Samples, Shape};

use self::it::support::{Collector, PATIENCE, Servers, Service, Stage, eventually_within};
use self::median::median;

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

/// What is switched on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Telemetry {
    Off,
    Metrics,
    MetricsAndTraces,
}

const ALL: [Telemetry; 3] = [Telemetry::Off, Telemetry::Metrics, Telemetry::MetricsAndTraces];

impl Telemetry {
    const fn name(self) -> &'static str {
        match self {
            Self::Off => "both off",
            Self::Metrics => "metrics",
            Self::MetricsAndTraces => "metrics, traces of 1 %",
        }
    }

    fn variables(self, collector: &Collector) -> Vec<(&'static str, String)> {
        match self {
            Self::Off => vec![("OTEL_METRICS_EXPORTER", "none".to_owned())],
            Self::Metrics => Vec::new(),
            Self::MetricsAndTraces => {
                let settings = collector.settings().into_iter();
                let settings = settings.filter(|(name, _)| *name != "OTEL_BSP_SCHEDULE_DELAY");
                let mut variables: Vec<_> =
                    settings.map(|(name, value)| (name, value.to_owned())).collect();
                variables.push(("OTEL_TRACES_SAMPLER", "traceidratio".to_owned()));
                variables.push(("OTEL_TRACES_SAMPLER_ARG", "0.01".to_owned()));
                variables
            }
        }
    }
}

/// What is measured of the service's process.
#[derive(Clone, Copy)]
enum Meter {
    CpuTime,
    Instructions,
}

impl Meter {
    const fn unit(self) -> &'static str {
        match self {
            Self::CpuTime => "µs",
            Self::Instructions => "instructions",
        }
    }

    fn spawn(self, stage: &Stage<'_>, environment: &BTreeMap<String, String>) -> Service {
        let binary = env!("CARGO_BIN_EXE_vote-aggregator");
        let mut command = match self {
            Self::CpuTime => Command::new(binary),
            Self::Instructions => {
                let mut valgrind = Command::new("valgrind");
                let out = format!("--callgrind-out-file={}", counts(stage).display());
                valgrind.args(["--tool=callgrind", "--log-file=/dev/null", &out, binary]);
                valgrind
            }
        };
        command.arg("run");
        Service::spawn_as(&stage.queue, command, environment)
    }

    /// Microseconds or instructions of a service that has counted its votes, which ends with that.
    async fn read(self, stage: &Stage<'_>, service: Service) -> f64 {
        let seconds = cpu_seconds(service.id());
        service.stop().await;
        match self {
            Self::CpuTime => seconds * 1e6,
            Self::Instructions => {
                let counts = fs::read_to_string(counts(stage)).expect("callgrind wrote it");
                let total = counts.lines().find_map(|line| line.strip_prefix("totals: "));
                total.expect("a total").trim().parse().expect("a number")
            }
        }
    }
}

/// Where callgrind writes.
fn counts(stage: &Stage<'_>) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.callgrind", stage.queue))
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    if std::env::var_os("SERVICES_DIR").is_none() {
        eprintln!("this one needs servers of its own: run script/telemetry-cost");
        return;
    }
    let stage = Stage::migrated(Servers::shared(), "cost").await;
    let collector = Collector::listen("grpc").await;
    let shape = Shape::distinct(arguments.votes, 5, 1);
    let votes: Vec<Vec<u8>> = Samples::new(shape).collect();

    let meter = if arguments.instructions { Meter::Instructions } else { Meter::CpuTime };

    // Starting and stopping costs as much whatever is counted: it is in the figure for a few votes,
    // and what the others need on top of that is theirs.
    let few = &votes[..votes.len() / 20];
    let mut start = [0.0; 3];
    for (start, telemetry) in start.iter_mut().zip(ALL) {
        *start = measure(&stage, &collector, few, telemetry, meter).await;
    }

    // By what is on: of one vote.
    let mut measured: [Vec<f64>; 3] = Default::default();
    for round in 0..arguments.rounds {
        for turn in 0..ALL.len() {
            let which = (round + turn) % ALL.len();
            let needed = measure(&stage, &collector, &votes, ALL[which], meter).await;
            let a_vote = (needed - start[which]) / (votes.len() - few.len()) as f64;
            measured[which].push(a_vote);
            let (round, rounds) = (round + 1, arguments.rounds);
            let (name, unit) = (ALL[which].name(), meter.unit());
            eprintln!("round {round} of {rounds}: {name}: {a_vote:.2} {unit} a vote");
        }
    }
    println!("{}", table(&measured, meter));
    let spans = collector.spans().len();
    println!("spans received: {spans}");
    assert!(spans > 0, "traces were on");
}

/// What a service needs from its start until it has counted all votes.
async fn measure(
    stage: &Stage<'_>,
    collector: &Collector,
    votes: &[Vec<u8>],
    telemetry: Telemetry,
    meter: Meter,
) -> f64 {
    stage.empty().await;
    publish(stage, votes).await;
    let mut environment = stage.environment();
    let variables = telemetry.variables(collector).into_iter();
    environment.extend(variables.map(|(name, value)| (name.to_owned(), value)));
    let service = meter.spawn(stage, &environment);
    let all = i64::try_from(votes.len()).expect("a small number");
    eventually_within(PATIENCE * 5, "all votes are counted", async || {
        let counted = "SELECT coalesce(sum(oui_count + non_count), 0)::bigint FROM vote_results";
        stage.number(counted).await == all
    })
    .await;
    meter.read(stage, service).await
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

fn table(measured: &[Vec<f64>; 3], meter: Meter) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let unit = format!("{} a vote: median", meter.unit());
    table.set_header(["telemetry", &unit, "least", "most", "on top, median of pairs"]);
    for (which, figures) in measured.iter().enumerate() {
        let figure = |at: f64| format!("{at:.2}");
        let all = sorted(figures.clone());
        let on_top = match which {
            0 => String::new(),
            // Traces come on top of metrics.
            _ => {
                let pairs = figures.iter().zip(&measured[which - 1]);
                let ratios = pairs.map(|(on, off)| on / off - 1.0).collect();
                format!("{:+.1} %", 100.0 * median(ratios))
            }
        };
        table.add_row([
            ALL[which].name().to_owned(),
            figure(median(all.clone())),
            figure(all[0]),
            figure(all[all.len() - 1]),
            on_top,
        ]);
    }
    for column in 1..5 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn sorted(mut figures: Vec<f64>) -> Vec<f64> {
    figures.sort_by(f64::total_cmp);
    figures
}
