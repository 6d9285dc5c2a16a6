//! The progress bar, on a terminal only.

use std::fmt;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressState, ProgressStyle};

/// A bar of unknown length shows a spinner.
const TICK: Duration = Duration::from_millis(100);

/// What is gone through, and how long it is.
#[derive(Clone, Copy, Debug)]
pub enum Length {
    Messages(u64),
    /// A file of so many bytes, gone through from this one on.
    Bytes {
        from: u64,
        all: u64,
    },
    /// Of standard input only what has gone by.
    Unknown,
}

/// A bar that says what it is `doing`.
pub fn bar(doing: &'static str, length: Length) -> ProgressBar {
    let (bar, template) = match length {
        Length::Messages(count) => (
            ProgressBar::new(count),
            "{prefix} {bar:40} {human_pos}/{human_len} ({rate}, {eta} left)",
        ),
        Length::Bytes { from, all } => (
            // What went before took no time: left out of rate and time left.
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
    // Nobody is left to tell of a bar that cannot be drawn.
    write!(out, "{}/s", HumanCount(state.per_sec() as u64)).ok();
}
