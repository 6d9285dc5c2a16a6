//! `publish`.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use clap::Args;
use clap::builder::TypedValueParser;
use comfy_table::Table;
use indicatif::HumanCount;
use tokio_util::sync::CancellationToken;
use vote_aggregator::adapters::broker::RabbitMq;
use vote_aggregator::model::cell::{CELLS, Router};
use vote_aggregator::operator::files;
use vote_aggregator::operator::publish::{
    self, Check, Checkpoint, CheckpointError, Expected, Pace, Position, PublishError, Report,
    Route, Samples, Shape, Source,
};
use vote_aggregator::platform::config::Config;

use super::exit::{self, Exit, Outcome};
use super::signals::{Signals, leave};
use super::{RETRY_FOR, output, seconds};

/// Options of samples. Each option of a file conflicts with them: clap ignores a `requires` of an option
/// that another one conflicts with.
const OF_SAMPLES: [&str; 5] = ["count", "laws", "duplicates", "malformed", "seed"];

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator publish --count 100000 --duplicates 0.05 --malformed 0.01
  vote-aggregator publish --count 600 --rate 10 --laws 3
  vote-aggregator publish --file votes.ndjson --cells 16
  vote-aggregator publish --file votes.ndjson --dry-run
  vote-aggregator publish --file votes.ndjson --checkpoint votes.checkpoint
  zcat votes.ndjson.gz | vote-aggregator publish --file -

A broker that is unavailable, at startup or later, is retried until --retry-for is over, counted from
the last confirm; what was not confirmed is published again then. With --checkpoint, run the same
command again after whatever ended it: it goes on after the last line up to which everything is
confirmed. Without it, run it again from the beginning: that counts nothing twice, it only takes
longer. A file may have grown at its end since; a checkpoint of another file is refused. A message
that the broker returns, because the queue is gone, ends it at once, and never counts as published.

A byte order mark is skipped. A compressed file, UTF-16, CSV, a JSON array or JSON over several
lines is refused before anything is published (2), with the command that converts it.")]
pub(super) struct Arguments {
    /// Number of sample messages
    #[arg(long, default_value_t = 1000)]
    count: usize,
    /// Messages a second; as fast as the broker confirms when not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Laws voted on
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    laws: u32,
    /// Share of duplicates, half of them replays and half attempts with other content
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    duplicates: f64,
    /// Share of malformed messages
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    malformed: f64,
    /// Seed of the sample: the same votes again; a new one when not given
    #[arg(long)]
    seed: Option<u64>,
    /// Publish the lines of this file of JSON votes instead of samples; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = OF_SAMPLES)]
    file: Option<PathBuf>,
    /// Record in this file how far --file is published, and resume from there if it exists
    #[arg(long, value_name = "FILE", requires = "file", conflicts_with_all = OF_SAMPLES)]
    checkpoint: Option<PathBuf>,
    /// Publish to the queues of this many crc32: cells, by the CRC-32 of vote_hash; CELL=crc32:... implies it
    #[arg(long, value_name = "NUMBER", value_parser = cells(), conflicts_with_all = ["exchange", "dry_run"])]
    cells: Option<u16>,
    /// Publish to this exchange with vote_hash as the routing key, instead of a queue
    #[arg(long, value_name = "NAME", conflicts_with = "dry_run")]
    exchange: Option<String>,
    /// Seconds to retry while the broker is unavailable; 0: do not retry
    #[arg(long, value_name = "SECONDS", default_value = RETRY_FOR, value_parser = seconds())]
    retry_for: Duration,
    /// Decode every line of --file as the service would, report invalid votes, publish nothing
    #[arg(long, requires = "file", conflicts_with_all = OF_SAMPLES)]
    #[arg(conflicts_with_all = ["checkpoint", "rate", "report", "retry_for"])]
    dry_run: bool,
    /// Write what was confirmed, and the expected counts, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

pub(super) async fn publish(config: &Config, arguments: &Arguments) -> Outcome {
    if let (true, Some(file)) = (arguments.dry_run, &arguments.file) {
        return dry_run(config, file).await;
    }
    let route =
        route(config, arguments).map_err(|error| exit::cannot("publish", error, exit::USAGE))?;
    let mut signals = Signals::listen()
        .map_err(|error| exit::cannot("listen for signals", error, exit::INTERNAL))?;
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    // Standard input may be silent for long.
    let opened = tokio::select! {
        opened = source(arguments, seed) => opened,
        _ = signals.next() => Err(PublishError::Stopped),
    };
    let cannot_publish = |error: &PublishError| exit::cannot("publish", error, code(error));
    let (source, checkpoint) = opened.map_err(|error| cannot_publish(&error))?;
    let rabbitmq = RabbitMq::new(config.rabbitmq.clone());
    let pace = Pace { rate: arguments.rate, retry_for: arguments.retry_for };
    let stop = CancellationToken::new();
    let publishing = publish::publish(&rabbitmq, &route, source, pace, checkpoint.as_ref(), &stop);
    let (report, published) = stoppable(publishing, signals, &stop).await;
    let mut outcome = match &published {
        Ok(()) => output::report(&summary(&report, &route, seed)).map(|()| 0),
        Err(error @ PublishError::Refused(_)) if report.confirmed == 0 => {
            Err(cannot_publish(error))
        }
        Err(error) => {
            let again = again(error, checkpoint.as_ref(), arguments, seed);
            let confirmed = report.confirmed;
            tracing::error!(queue = %route, confirmed, "publishing ended early: {error}. {again}");
            Err(Exit(code(error)))
        }
    };
    if let Some(path) = &arguments.report {
        let json = serde_json::to_string_pretty(&report).unwrap_or_default() + "\n";
        if let Err(error) = files::replace(path, json.as_bytes(), files::PRIVATE, None) {
            let what = format!("write {}", path.display());
            outcome = Err(exit::cannot(&what, error, exit::INTERNAL));
        }
    }
    outcome
}

/// Returns where to publish. With cells a vote must not get into another one than its own.
fn route(config: &Config, arguments: &Arguments) -> Result<Route, String> {
    if let Some(exchange) = &arguments.exchange {
        return match config.rabbitmq.cell {
            Some(cell) if cell.router == Router::Publishers => {
                Err(format!("CELL={cell}: publishers route by CRC-32; leave out --exchange"))
            }
            _ => Ok(Route::Exchange(exchange.clone())),
        };
    }
    let (queue, cells) = (&config.rabbitmq.queue, arguments.cells);
    let (queue, cells) = match (config.rabbitmq.cell, cells) {
        (None, None) => return Ok(Route::Queue(queue.clone())),
        (None, Some(cells)) => (queue.as_str(), cells),
        (Some(cell), cells)
            if cell.router == Router::Publishers && cells.is_none_or(|cells| cells == cell.of) =>
        {
            let number = format!(".{}", cell.number);
            (queue.strip_suffix(&number).unwrap_or(queue), cell.of)
        }
        (Some(cell), Some(cells)) => {
            return Err(format!("--cells {cells} contradicts CELL={cell}; give one of them"));
        }
        (Some(cell), None) => {
            return Err(format!(
                "CELL={cell}: votes come to the cells through an exchange; name it with --exchange"
            ));
        }
    };
    Ok(Route::Cells { queue: queue.to_owned(), cells })
}

/// Opens what is published, at the place that its checkpoint says.
async fn source(
    arguments: &Arguments,
    seed: u64,
) -> Result<(Source, Option<Checkpoint>), PublishError> {
    let Some(file) = &arguments.file else {
        let shape = Shape {
            count: arguments.count,
            laws: arguments.laws,
            duplicates: arguments.duplicates,
            malformed: arguments.malformed,
            seed,
        };
        return Ok((Source::Samples(Box::new(Samples::new(shape))), None));
    };
    let (checkpoint, from) = match &arguments.checkpoint {
        None => (None, Position::default()),
        Some(_) if file.as_os_str() == "-" => {
            return Err(CheckpointError::NotAFile { file: "standard input".into() }.into());
        }
        Some(path) => {
            let (checkpoint, from) = Checkpoint::open(path, file)?;
            (Some(checkpoint), from)
        }
    };
    if from.lines > 0 {
        output::note(format_args!(
            "resuming after line {} of {}: up to there everything is confirmed",
            HumanCount(from.lines),
            file.display()
        ));
    }
    let source = Source::lines(file, from).await?;
    // A checkpoint that cannot be written is reported before anything is published.
    if let Some(checkpoint) = &checkpoint {
        checkpoint.save(from)?;
    }
    Ok((source, checkpoint))
}

/// The first signal ends it gracefully, a second one at once.
async fn stoppable<R>(
    publishing: impl Future<Output = R>,
    mut signals: Signals,
    stop: &CancellationToken,
) -> R {
    let mut publishing = pin!(publishing);
    tokio::select! {
        ended = &mut publishing => return ended,
        _ = signals.next() => stop.cancel(),
    }
    tokio::select! {
        ended = publishing => ended,
        second = signals.next() => leave(second.code),
    }
}

/// Returns how to go on after an early end.
fn again(
    error: &PublishError,
    checkpoint: Option<&Checkpoint>,
    arguments: &Arguments,
    seed: u64,
) -> String {
    match checkpoint.map(|checkpoint| checkpoint.path().display()) {
        Some(path) if matches!(error, PublishError::QueueGone) => format!(
            "Publish the whole file again, without {path}: what was counted is not counted twice"
        ),
        Some(path) => format!("Run the same command again: it resumes from {path}"),
        None if arguments.file.is_some() => "Publish the same file again: what was counted is not \
                                             counted twice. --checkpoint saves the time"
            .to_owned(),
        None => {
            format!("Publish the same again (--seed {seed}): what was counted is not counted twice")
        }
    }
}

const fn code(error: &PublishError) -> u8 {
    match error {
        PublishError::Refused(error) => exit::of_rabbitmq(error),
        PublishError::Checkpoint(CheckpointError::Write { .. }) => exit::INTERNAL,
        PublishError::Checkpoint(CheckpointError::Read { .. }) => exit::FINDINGS,
        PublishError::Unsuitable(_) | PublishError::Checkpoint(_) => exit::USAGE,
        // Not everything was confirmed.
        _ => exit::FINDINGS,
    }
}

fn summary(report: &Report, route: &Route, seed: u64) -> String {
    let Report { confirmed, seconds, .. } = report;
    let rate = report.rate();
    let confirmed = format!(
        "confirmed by the broker: {confirmed} messages to {route} in {seconds:.1} s ({rate:.0}/s)"
    );
    if let Some(expected) = &report.expected {
        let Expected { replays, attempts, malformed, .. } = expected;
        return format!(
            "{confirmed}\namong them: {} votes to count, {replays} replays, {attempts} duplicate \
             attempts, {malformed} malformed (--seed {seed})\n",
            expected.counted(),
        );
    }
    let [lines, blank, bytes] = [report.lines, report.blank, report.bytes].map(HumanCount);
    let from = match report.resumed_from {
        Some(from) => format!(", after the {} of earlier runs", HumanCount(from.lines)),
        None => String::new(),
    };
    format!("{confirmed}\n{lines} lines, {blank} of them blank, {bytes} bytes{from}\n")
}

async fn dry_run(config: &Config, file: &Path) -> Outcome {
    let cannot_check = |error: PublishError| exit::cannot("check", &error, code(&error));
    let source = Source::lines(file, Position::default()).await.map_err(cannot_check)?;
    let check =
        publish::check(source, config.batch.max_message_bytes).await.map_err(cannot_check)?;
    let code = if check.malformed() == 0 { 0 } else { exit::FINDINGS };
    output::answer(text(&check), code)
}

fn text(check: &Check) -> String {
    let counts = [check.end.lines, check.votes, check.malformed(), check.end.blank];
    let [lines, votes, malformed, blank] = counts.map(HumanCount);
    let table = match check.malformed() {
        0 => String::new(),
        _ => format!("{}\n\n", table(check)),
    };
    format!(
        "{table}{lines} lines: {votes} votes, {malformed} that the service would dead-letter, {blank} \
         blank; nothing is published\n"
    )
}

fn table(check: &Check) -> Table {
    let rows = check.rejected.iter().map(|((reason, field), rejected)| {
        let first: Vec<String> = rejected.first.iter().map(u64::to_string).collect();
        let lines = HumanCount(rejected.lines).to_string();
        [reason.as_str().to_owned(), field.unwrap_or("-").to_owned(), lines, first.join(", ")]
    });
    output::table(["reason", "field", "lines", "first in lines"], rows, [2])
}

fn cells() -> impl TypedValueParser<Value = u16> {
    clap::value_parser!(u16).range(i64::from(*CELLS.start())..=i64::from(*CELLS.end()))
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a share from 0 to 1, e.g. 0.05".to_owned()),
    }
}
