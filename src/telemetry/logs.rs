//! Logs: text for people, JSON for machines, on standard error.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::{LogFormat, LogLevel};

/// Sends the logs of this process to standard error, from `level` up.
///
/// Libraries are heard from WARN up, whatever the level: at their lowest level they log frames and
/// rows, and those hold who voted what. lapin is not heard at all: it logs every refusal as an
/// error, also those we ask for to learn a queue's arguments, and returns each of them to us.
pub fn init(level: LogLevel, format: LogFormat) {
    let ours = match level {
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    let filter = Targets::new()
        .with_default(ours.min(LevelFilter::WARN))
        .with_target("lapin", LevelFilter::OFF)
        // What a trigger says about a row, word for word.
        .with_target("sqlx::postgres::notice", LevelFilter::OFF)
        .with_target("vote_aggregator", ours);
    let writer = fmt::layer().with_writer(std::io::stderr);
    let layer = match format {
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal();
            writer.with_target(false).with_ansi(colours).boxed()
        }
        LogFormat::Json => writer.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
}
