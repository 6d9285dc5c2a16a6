//! `publish`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use vote_aggregator::broker::RabbitMq;
use vote_aggregator::config::Config;
use vote_aggregator::ports::OpenError;
use vote_aggregator::publish::{self, Report, Samples, Shape, Source};
use vote_aggregator::telemetry::Health;

use super::exit;

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator publish --count 100000 --duplicates 0.05 --malformed 0.01
  vote-aggregator publish --count 600 --rate 10 --laws 3
  vote-aggregator publish --file votes.ndjson
  zcat votes.ndjson.gz | vote-aggregator publish --file -")]
pub(super) struct Arguments {
    /// Sample messages in all
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
    #[arg(long, value_name = "FILE", conflicts_with_all = ["count", "laws", "duplicates", "malformed", "seed"])]
    file: Option<PathBuf>,
    /// Write what was confirmed, and what counting it must come to, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

pub(super) async fn publish(config: &Config, arguments: Arguments) -> ExitCode {
    let rabbitmq = RabbitMq::new(config.rabbitmq.clone(), Arc::new(Health::default()));
    let publisher = match rabbitmq.publisher().await {
        Ok(publisher) => publisher,
        Err(error) => {
            tracing::error!("cannot publish: {error}");
            return ExitCode::from(match error {
                OpenError::Credentials(_) => exit::CREDENTIALS,
                OpenError::Configuration(_) => exit::CONFIG,
                OpenError::Unavailable(_) => exit::FINDINGS,
            });
        }
    };
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    let source = match &arguments.file {
        Some(path) => Source::lines(path).await,
        None => Ok(Source::Samples(Box::new(Samples::new(Shape {
            count: arguments.count,
            laws: arguments.laws,
            duplicates: arguments.duplicates,
            malformed: arguments.malformed,
            seed,
        })))),
    };
    let queue = &config.rabbitmq.queue;
    let published = match source {
        Ok(source) => publish::publish(&publisher, queue, source, arguments.rate).await,
        Err(error) => Err(error),
    };
    let report = match published {
        Ok(report) => report,
        Err(error) => {
            tracing::error!(queue, seed, "publishing ended early: {error}");
            return ExitCode::from(exit::FINDINGS);
        }
    };
    if let Err(lost) = publisher.close().await {
        // Every message is confirmed by now.
        tracing::debug!("{lost}");
    }
    tell(&report, queue, seed);
    match arguments.report.map(|path| (std::fs::write(&path, json(&report)), path)) {
        Some((Err(error), path)) => {
            tracing::error!("cannot write {}: {error}", path.display());
            ExitCode::from(exit::INTERNAL)
        }
        _ => ExitCode::SUCCESS,
    }
}

fn tell(report: &Report, queue: &str, seed: u64) {
    println!(
        "confirmed by the broker: {} messages to {queue} in {:.1} s ({:.0}/s)",
        report.confirmed,
        report.seconds,
        report.rate()
    );
    if let Some(expected) = &report.expected {
        println!(
            "among them: {} votes to count, {} replays, {} duplicate attempts, {} malformed (--seed {seed})",
            expected.counted(),
            expected.replays,
            expected.attempts,
            expected.malformed
        );
    }
}

fn json(report: &Report) -> String {
    serde_json::to_string_pretty(report).unwrap_or_default() + "\n"
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a share from 0 to 1, e.g. 0.05".to_owned()),
    }
}
