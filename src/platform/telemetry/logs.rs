//! Logs: text for people, JSON for machines, on standard error; and the way of spans to a collector.

mod line;

use std::panic;
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterExt, Targets, filter_fn};
use tracing_subscriber::fmt as format;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::line::Line;
pub use self::line::with_priority;
use super::traces::Traces;
use crate::platform::config::{LogFormat, LogLevel};
use crate::platform::terminal;

/// Target of events for traces; the log has a summary of them.
pub const SUMMARISED: &str = "vote_aggregator::summarised";

/// Lines that wait for the reader of standard error at most.
const WAITING_LINES: usize = 1_024;

/// How long the end waits for the reader of standard error.
const FLUSH_LIMIT: Duration = Duration::from_millis(1_200);

/// What ends with the process: the thread that writes the log.
static WRITER: Mutex<Option<WorkerGuard>> = Mutex::new(None);
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// Sends the logs of this process to standard error, from `level` up, and its spans to `traces`.
///
/// Libraries are heard from WARN up, whatever the level: at their lowest level they log frames and
/// rows, and those hold who voted what. lapin is not heard at all: it logs every refusal as an
/// error, also those we ask for to learn a queue's arguments, and returns each of them to us.
///
/// With `queued` a thread of its own writes them, and [`flush`] has to be called before the process
/// ends: a reader that hangs then costs log lines, which [`dropped_lines`] counts, and no votes.
pub fn init(level: LogLevel, format: LogFormat, traces: &Traces, queued: bool) {
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
        .with_target("vote_aggregator", ours)
        .with_target(SUMMARISED, LevelFilter::OFF)
        // Spans are for the collector alone: without one, none is ever made.
        .and(filter_fn(|metadata| metadata.is_event()).with_max_level_hint(LevelFilter::TRACE));
    let writer = if queued { queue() } else { BoxMakeWriter::new(std::io::stderr) };
    // Its own report of a line that can't be written goes to standard error as well, and panics there.
    let writer = format::layer().with_writer(writer).log_internal_errors(false);
    let layer = match format {
        LogFormat::Text => writer
            .with_ansi(terminal::colours(&std::io::stderr()))
            .map_event_format(|text| Line { format: text.with_target(false), json: false })
            .boxed(),
        LogFormat::Json => writer
            .json()
            .flatten_event(true)
            .map_event_format(|format| Line { format, json: true })
            .boxed(),
    };
    let spans = traces.tracer().map(|tracer| {
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(Targets::new().with_target("vote_aggregator", LevelFilter::INFO))
    });
    tracing_subscriber::registry().with(spans).with(layer.with_filter(filter)).init();
    // Like any other line: with a priority, in JSON, and not waiting for the reader.
    panic::set_hook(Box::new(|panicked| tracing::error!("{panicked}")));
}

fn queue() -> BoxMakeWriter {
    let queue = NonBlockingBuilder::default().buffered_lines_limit(WAITING_LINES).lossy(true);
    let (writer, guard) = queue.thread_name("log").finish(std::io::stderr());
    // Logs are set up once in a process.
    DROPPED.get_or_init(|| writer.error_counter());
    *WRITER.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
    BoxMakeWriter::new(writer)
}

/// Log lines that were dropped because standard error was not read fast enough.
pub fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |counter| counter.dropped_lines() as u64)
}

/// Waits until the log is written, for 1.2 s at most. Nothing is logged afterwards.
pub fn flush() {
    let Some(guard) = WRITER.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    // Its drop may write to standard output, which blocks when that is not read.
    let (flushed, waiting) = mpsc::channel();
    std::thread::spawn(move || {
        drop(guard);
        flushed.send(()).ok();
    });
    waiting.recv_timeout(FLUSH_LIMIT).ok();
}

/// A time as a log field: in seconds, to the microsecond.
pub fn seconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e6
}
