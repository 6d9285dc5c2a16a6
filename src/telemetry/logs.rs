//! Logs: text for people, JSON for machines, on standard error; and the way of spans to a collector.

use std::fmt;
use std::time::Duration;

use opentelemetry::trace::TraceContextExt;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterExt, Targets, filter_fn};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{self as format, FmtContext};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use super::traces::Traces;
use crate::config::{LogFormat, LogLevel};
use crate::terminal;

/// Target of events that the log tells of in summary only; they are for traces.
pub const SUMMARISED: &str = "vote_aggregator::summarised";

/// Sends the logs of this process to standard error, from `level` up, and its spans to `traces`.
///
/// Libraries are heard from WARN up, whatever the level: at their lowest level they log frames and
/// rows, and those hold who voted what. lapin is not heard at all: it logs every refusal as an
/// error, also those we ask for to learn a queue's arguments, and returns each of them to us.
pub fn init(level: LogLevel, format: LogFormat, traces: &Traces) {
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
    // Its own report of a line that can't be written goes to standard error as well, and panics there.
    let writer = format::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let layer = match format {
        LogFormat::Text => writer
            .with_ansi(terminal::colours(&std::io::stderr()))
            .map_event_format(|text| WithTrace::text(text.with_target(false)))
            .boxed(),
        LogFormat::Json => {
            writer.json().flatten_event(true).map_event_format(WithTrace::json).boxed()
        }
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
}

/// A time as a field of a line tells it: in seconds, to the microsecond.
pub fn seconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e6
}

/// A format whose lines tell the trace and the span they belong to, if any.
struct WithTrace<F> {
    format: F,
    json: bool,
}

impl<F> WithTrace<F> {
    const fn text(format: F) -> Self {
        Self { format, json: false }
    }

    const fn json(format: F) -> Self {
        Self { format, json: true }
    }
}

impl<S, N, F> FormatEvent<S, N> for WithTrace<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let ids = opentelemetry::Context::map_current(|current| {
            let span = current.span();
            let ids = span.span_context();
            ids.is_valid().then(|| (ids.trace_id(), ids.span_id()))
        });
        let Some((trace, span)) = ids else {
            return self.format.format_event(context, writer, event);
        };
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end();
        match line.strip_suffix('}') {
            Some(object) if self.json => {
                writeln!(writer, r#"{object},"trace_id":"{trace}","span_id":"{span}"}}"#)
            }
            _ => writeln!(writer, "{line} trace_id={trace} span_id={span}"),
        }
    }
}
