//! The progress bar, on a terminal only.

use std::fmt;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressState, ProgressStyle};

/// A bar of unknown length shows a spinner.
const TICK: Duration = Duration::from_millis(100);

/// How long the work is.
#[derive(Clone, Copy, Debug)]
pub enum Length {
    Messages(u64),
    /// A file of so many bytes, read from an offset.
    Bytes {
        from: u64,
        all: u64,
    },
    /// Standard input.
    Unknown,
}

/// Returns a bar that says what it is `doing`.
pub fn bar(doing: &'static str, length: Length) -> ProgressBar {
    let (bar, template) = match length {
        Length::Messages(count) => (
            ProgressBar::new(count),
            "{prefix} {bar:40} {human_pos}/{human_len} ({rate}, {eta} left)",
        ),
        Length::Bytes { from, all } => (
            // Earlier bytes took no time: they count for neither rate nor time left.
            ProgressBar::new(all).with_position(from),
            "{prefix} {bar:40} {bytes}/{total_bytes} ({binary_bytes_per_sec}, {msg}, {eta} left)",
        ),
        Length::Unknown => (ProgressBar::new_spinner(), "{prefix} {spinner} {bytes} ({msg})"),
    };
    bar.enable_steady_tick(TICK);
    bar.reset_eta();
    let bar = bar.with_prefix(doing);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.with_key("rate", rate)),
        Err(_) => bar,
    }
}

/// indicatif's own `per_sec` has decimals, which flicker.
fn rate(state: &ProgressState, out: &mut dyn fmt::Write) {
    // A bar that cannot be drawn cannot report it either.
    write!(out, "{}/s", HumanCount(state.per_sec() as u64)).ok();
}
