//! One line of the log: with the trace that it belongs to and, for journald, its priority.

use std::fmt::{self, Write};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use opentelemetry::trace::TraceContextExt;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

/// A format whose lines name the trace and the span they belong to, if any.
pub(super) struct Line<F> {
    pub(super) format: F,
    pub(super) json: bool,
}

impl<S, N, F> FormatEvent<S, N> for Line<F>
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
        let ids = ids();
        if ids.is_none() && !to_journald() {
            return self.format.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        line.truncate(line.trim_end().len());
        if let Some((trace, span)) = ids {
            match line.strip_suffix('}').filter(|_| self.json) {
                Some(object) => {
                    line = format!(r#"{object},"trace_id":"{trace}","span_id":"{span}"}}"#);
                }
                None => write!(line, " trace_id={trace} span_id={span}")?,
            }
        }
        writeln!(writer, "{}", with_priority(*event.metadata().level(), &line))
    }
}

fn ids() -> Option<(opentelemetry::TraceId, opentelemetry::SpanId)> {
    opentelemetry::Context::map_current(|current| {
        let span = current.span();
        let ids = span.span_context();
        ids.is_valid().then(|| (ids.trace_id(), ids.span_id()))
    })
}

/// The text as standard error takes it: where that leads to journald, each of its lines with the
/// priority that `journalctl -p` selects by (sd-daemon(3)).
pub fn with_priority(level: Level, text: &str) -> String {
    if to_journald() { prefixed(level, text) } else { text.to_owned() }
}

fn to_journald() -> bool {
    static JOURNALD: OnceLock<bool> = OnceLock::new();
    *JOURNALD.get_or_init(leads_to_journald)
}

fn prefixed(level: Level, text: &str) -> String {
    let priority = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    };
    let lines: Vec<String> = text.lines().map(|line| format!("<{priority}>{line}")).collect();
    lines.join("\n")
}

/// Whether standard error is the stream whose device and inode JOURNAL_STREAM names
/// (systemd.exec(5)). A process that was started by one under systemd may have another.
fn leads_to_journald() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let descriptor = std::io::stderr().as_fd().try_clone_to_owned();
    let metadata = descriptor.and_then(|descriptor| File::from(descriptor).metadata());
    metadata.is_ok_and(|it| format!("{}:{}", it.dev(), it.ino()) == stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_the_priority() {
        assert_eq!(prefixed(Level::ERROR, "one\ntwo"), "<3>one\n<3>two");
        for (level, line) in [
            (Level::WARN, "<4>x"),
            (Level::INFO, "<6>x"),
            (Level::DEBUG, "<7>x"),
            (Level::TRACE, "<7>x"),
        ] {
            assert_eq!(prefixed(level, "x"), line);
        }
    }
}
