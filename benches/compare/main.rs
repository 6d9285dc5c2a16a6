//! How fast the service is against what broker and database themselves can do, and against other
//! consumers: all on the same servers, one after the other in changing order, round by round.
//! `script/bench` runs it.

// The tests' stage serves here as well; not all of it is needed.
#[allow(dead_code, unused_imports)]
#[path = "../../tests/it"]
mod it {
    pub mod support;
}

mod board;
mod chart;
mod contender;
mod figures;
mod growth;
mod latency;
mod load;
mod measure;
mod meter;
mod null_consumer;
mod report;
mod statement;

use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use serde_json::Value;

use self::contender::{Contender, Peers};
use self::figures::in_turn;
use self::it::support::{Servers, Stage};
use self::measure::Bench;
use self::report::{Figures, Report};

/// Compares the service with a consumer that does nothing, with the counting statement alone, and
/// with other consumers.
#[derive(Parser)]
#[command(after_help = "\
Examples:
  script/bench                                          the whole comparison
  script/bench --rounds 1 --votes 100000 --only null,throughput
  script/bench --statement                              the statement alone, by batch size
  script/bench --growth --rows 1000000,50000000         with an audit that has grown
  script/bench --latency                                from publishing to commit, start and stop
  script/bench --board                                  the public board, and counting beside it")]
struct Arguments {
    /// How often each is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Votes of the fastest for each measurement; slower ones get fewer
    #[arg(long, default_value_t = 400_000)]
    votes: u64,
    /// Only these
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Contender>,
    /// Measure the statement alone, beside a naive one
    #[arg(long, conflicts_with_all = ["growth", "latency"])]
    statement: bool,
    /// Measure by rows that the audit has, laws, and instances
    #[arg(long, conflicts_with = "latency")]
    growth: bool,
    /// Rows of the audit to measure at
    #[arg(long, value_delimiter = ',', default_values_t = [1_000_000, 50_000_000], requires = "growth")]
    rows: Vec<u64>,
    /// Measure the time from publishing to commit, from start to consuming, and of a stop
    #[arg(long)]
    latency: bool,
    /// Measure the public board: its answers, and counting beside it
    #[arg(long, conflicts_with_all = ["statement", "growth", "latency"])]
    board: bool,
    /// PostgreSQL with these settings, one `name = value` a line; those of the servers' script when
    /// not given
    #[arg(long, value_name = "FILE")]
    postgres_conf: Option<PathBuf>,
    /// Where the other consumers' languages and libraries are installed
    #[arg(long, value_name = "DIR")]
    peers: Option<PathBuf>,
    /// Write the figures, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the comparison, as SVG
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
    /// Be the consumer that only acks
    #[arg(long, hide = true)]
    consume_only: Option<u64>,
    /// What cargo passes on
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    match arguments.consume_only {
        Some(votes) => null_consumer::run(votes),
        None => measure(arguments),
    }
}

#[tokio::main]
async fn measure(arguments: Arguments) {
    if std::env::var_os("SERVICES_DIR").is_none() {
        eprintln!("this one needs servers of its own: run script/bench");
        return;
    }
    let settings = arguments.postgres_conf.as_deref();
    let bench = Bench::new(Servers::shared(), settings, arguments.latency).await;
    let report = if arguments.statement {
        statement::run(&bench, arguments.rounds, arguments.votes).await
    } else if arguments.growth {
        growth::run(&bench, arguments.rounds, arguments.votes, &arguments.rows).await
    } else if arguments.latency {
        let latencies = latency::run(&bench, arguments.rounds).await;
        println!("{latencies}");
        if let Some(file) = &arguments.json {
            write(file, &latencies.json());
        }
        return;
    } else if arguments.board {
        let boards = board::run(&bench, arguments.rounds, arguments.votes).await;
        println!("{boards}");
        if let Some(file) = &arguments.json {
            write(file, &boards.json());
        }
        return;
    } else {
        compare(&bench, &arguments).await
    };
    println!("{report}");
    if let Some(file) = &arguments.json {
        write(file, &report.json());
    }
    if let Some(file) = &arguments.chart {
        chart::draw(&report, file);
    }
}

fn write(file: &Path, object: &Value) {
    let text = serde_json::to_string_pretty(object).expect("plain data") + "\n";
    std::fs::write(file, text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

/// Every contender in every round, in an order that moves on from round to round.
async fn compare(bench: &Bench, arguments: &Arguments) -> Report {
    let peers = Peers::new(arguments.peers.clone());
    let chosen: Vec<Contender> = Contender::value_variants()
        .iter()
        .copied()
        .filter(|contender| arguments.only.is_empty() || arguments.only.contains(contender))
        .filter(|contender| peers.are_there() || !contender.is_peer())
        .collect();
    let mut measured: Vec<Figures> =
        chosen.iter().map(|contender| Figures::of(contender.name())).collect();
    in_turn(arguments.rounds, chosen.len(), async |which, round| {
        let contender = chosen[which];
        let votes = contender.share(arguments.votes);
        bench.stage.empty().await;
        let start = |stage: &Stage<'_>| vec![contender.start(stage, &peers, votes)];
        let run = bench.consume(votes, 5, true, start).await;
        eprintln!("{round}: {}: {run}", contender.name());
        measured[which].runs.push(run);
    })
    .await;
    Report::new("Votes off a quorum queue", measured).against(Contender::Null.name())
}
