//! What `script/demo` runs between its servers' start and their end: migrates, publishes sample
//! votes, counts them with the real service, and compares what came of it with what was published.
//!
//! Exit code 0 only when counts, audit and publisher agree.

mod servers;
mod service;
mod verdict;

use std::error::Error;
use std::fmt::Write;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use clap::Parser;
use indicatif::{HumanCount, ProgressBar, ProgressState, ProgressStyle};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

use servers::{QUEUE, Servers};
use service::{Metrics, Service, command};
use verdict::{Evidence, Report};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Between two looks at the service's metrics.
const POLL: Duration = Duration::from_millis(200);
/// Without progress for so long, counting is over: the comparison shows what is missing.
const STALL: Duration = Duration::from_secs(30);

/// Publishes sample votes, counts them and compares; to be run by script/demo.
#[derive(Parser)]
struct Arguments {
    /// Where logs, the publisher's report and the verdict are written
    directory: PathBuf,
    #[arg(long, default_value_t = 100_000)]
    votes: u64,
    #[arg(long, default_value = "default")]
    profile: String,
    #[arg(long)]
    seed: Option<u64>,
    /// Leave the service running
    #[arg(long)]
    keep: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // When a signal wins, the demo is dropped, and with it the processes that it started.
    let ended = tokio::select! {
        ended = demo(&arguments) => ended,
        ended = interrupted() => ended,
    };
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A shell's exit code for the signal that came.
async fn interrupted() -> Result<u8> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => 128 + 2,
        _ = terminate.recv() => 128 + 15,
    })
}

async fn demo(arguments: &Arguments) -> Result<u8> {
    let servers = Servers::from_environment()?;
    let directory = arguments.directory.canonicalize()?;

    step("Creating the tables: vote-aggregator migrate", run(&directory, &["migrate"])).await?;

    let report = directory.join("report.json");
    let (votes, report_path) = (arguments.votes.to_string(), report.display().to_string());
    let seed = arguments.seed.map(|seed| seed.to_string());
    let mut publish =
        vec!["publish", "--count", &votes, "--duplicates", "0.05", "--malformed", "0.01"];
    publish.extend(seed.iter().flat_map(|seed| ["--seed", seed]));
    let title = format!("Publishing: vote-aggregator {}", publish.join(" "));
    publish.extend(["--report", &report_path]);
    step(&title, run(&directory, &publish)).await?;
    let report: Report = serde_json::from_slice(&std::fs::read(&report)?)?;

    let title = format!("Counting: vote-aggregator --profile {} run", arguments.profile);
    let (mut service, metrics, elapsed) = step(&title, async {
        let mut service = Service::count(&directory, &arguments.profile).await?;
        println!("  metrics: http://{}/metrics  log: target/demo/service.log", service.address);
        let (metrics, elapsed) = count(&mut service, &servers, report.confirmed).await?;
        Ok((service, metrics, elapsed))
    })
    .await?;

    if !arguments.keep {
        step("Stopping the service: SIGTERM", async {
            service.stop().await?;
            println!("  exit code 0");
            Ok(())
        })
        .await?;
    }
    let evidence = step("Comparing counts, audit and publisher", async {
        Ok(Evidence {
            tables: servers.tables().await?,
            dead_letters: servers.dead_letters(report.expected.malformed).await?,
            left: servers.ready(QUEUE).await?,
            metrics,
            elapsed,
        })
    })
    .await?;
    // With several batches in flight, a duplicate attempt can be counted before the vote that it
    // repeats: then which of the two counts is open, and all that the sample fixes are the sums.
    let in_order = arguments.profile == "default";
    let verdict = evidence.compare(&report, in_order);
    println!("\n{}", verdict.tables);
    step("Publishing the results as a test: vote-aggregator publication, board", show(&directory))
        .await?;
    if arguments.keep {
        let board = Service::board(&directory, ["--listen", "127.0.0.1:0"], "the board").await?;
        left_running(&servers, &service, &board);
        service.keep();
        board.keep();
    }
    std::fs::write(directory.join("verdict"), format!("{}\n", verdict.line))?;
    Ok(u8::from(!verdict.agrees))
}

/// Makes the results public, as a rehearsal's, and the page of what the public sees then.
async fn show(directory: &Path) -> Result<()> {
    let set =
        "publication set counting --not-before 2020-01-01T00:00:00Z --test --reason demo --yes";
    run(directory, &set.split(' ').collect::<Vec<_>>()).await?;
    std::fs::create_dir_all(directory.join("board"))?;
    let mut board = Service::board(directory, ["--out", "board"], "metrics and health").await?;
    board.written(&directory.join("board/results.json"), "\"counting\"").await?;
    board.stop().await?;
    println!("  the page: target/demo/board/en/index.html");
    Ok(())
}

/// Says what is done, does it, and says how long it took.
async fn step<T>(title: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    println!("{title}");
    let began = Instant::now();
    let done = work.await?;
    println!("  done in {:.1} s", began.elapsed().as_secs_f64());
    Ok(done)
}

/// Runs a command of the service to its end.
async fn run(directory: &Path, arguments: &[&str]) -> Result<()> {
    let mut command: Command = command(directory)?;
    let ended = command
        .args(arguments)
        .env("LOG_LEVEL", "WARNING")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await?;
    match ended.success() {
        true => Ok(()),
        false => Err(format!("vote-aggregator {} ended with {ended}", arguments.join(" ")).into()),
    }
}

/// Waits until the service has settled as many messages as were published and the queue is empty.
/// Returns its metrics then, and the time from the first vote to the last.
async fn count(
    service: &mut Service,
    servers: &Servers,
    published: u64,
) -> Result<(Metrics, Duration)> {
    let rate = |state: &ProgressState, out: &mut dyn Write| {
        write!(out, "{}/s", human(state.per_sec() as u64)).ok();
    };
    let style = ProgressStyle::with_template(
        "counting {bar:40} {human_pos}/{human_len} ({rate}, {eta} left)",
    )?;
    let bar = ProgressBar::new(published).with_style(style.with_key("rate", rate));
    let began = service.consuming().await?;
    let (mut progressed, mut before, mut all_settled) = (began, 0, None);
    loop {
        service.still_runs()?;
        let metrics = service.metrics().await?;
        let settled = metrics.settled();
        bar.set_position(settled);
        if settled > before {
            (progressed, before) = (Instant::now(), settled);
        }
        if settled >= published {
            // More than was published may come; then the end is when the last has been settled.
            all_settled = Some(progressed);
        }
        let empty = all_settled.is_some() && servers.ready(QUEUE).await? == 0;
        if empty || progressed.elapsed() > STALL {
            if !empty {
                println!("  nothing was counted for {} s", STALL.as_secs());
            }
            bar.finish_and_clear();
            return Ok((metrics, progressed.duration_since(began)));
        }
        sleep(POLL).await;
    }
}

fn left_running(servers: &Servers, service: &Service, board: &Service) {
    let (metrics, page) = (&service.address, &board.address);
    println!(
        "Left running:
  RabbitMQ    {}
  PostgreSQL  {}
              script/services psql --dir target/services/demo
  metrics     http://{metrics}/metrics
  health      http://{metrics}/readyz
  service     process {}, log in target/demo/service.log
  board       http://{page}/en/
Publish more:
  RABBITMQ_URL={} target/debug/vote-aggregator publish --count 1000
Stop it all:
  script/demo --stop
",
        servers.amqp, servers.postgres, service.id, servers.amqp
    );
}

/// A count with its thousands marked.
fn human(count: u64) -> String {
    HumanCount(count).to_string()
}
