//! `results --watch`: readings, keys and the clock, drawn together.

mod screen;

use std::io;
use std::pin::pin;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use time::OffsetDateTime;
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use vote_aggregator::adapters::store::{Results, StartError};
use vote_aggregator::platform::config::Config;

pub(super) use self::screen::{View, counts, laws};
use super::exit::{self, Exit, Outcome};
use super::output;
use super::signals::Signals;

/// How often the clock and the age of the reading are drawn anew.
const TICK: Duration = Duration::from_secs(1);

/// Draws the results until q, Ctrl-C or a signal; restores the terminal, however it ends. An error that a
/// retry cannot help ends it only before the first reading: later an operator may be fixing it.
pub(super) async fn watch(config: &Config, view: View, interval: Duration) -> Outcome {
    // Before it draws: a signal must not leave the terminal in raw mode.
    let signals = Signals::listen().map_err(cannot_draw)?;
    // Also restores the terminal at a panic.
    let terminal = ratatui::try_init().map_err(cannot_draw)?;
    let ended = run(config, view, interval, terminal, signals).await;
    ratatui::try_restore().map_err(cannot_draw)?;
    // Not before the terminal is restored.
    match ended {
        Ok(None) => Ok(0),
        Ok(Some(error)) => {
            output::note(format_args!("cannot read the results: {error}"));
            Err(Exit(exit::of_postgres(&error)))
        }
        Err(error) => Err(cannot_draw(error)),
    }
}

fn cannot_draw(error: io::Error) -> Exit {
    output::note(format_args!("cannot draw on this terminal: {error}"));
    Exit(exit::INTERNAL)
}

/// Returns the error that ended it, if it could not read the results.
async fn run(
    config: &Config,
    mut view: View,
    interval: Duration,
    mut terminal: DefaultTerminal,
    mut signals: Signals,
) -> io::Result<Option<StartError>> {
    let laws = view.asked.clone();
    let pauses = every(interval);
    let readings =
        stream::unfold((Results::new(config, &laws), pauses), async |(mut results, mut pauses)| {
            pauses.tick().await;
            Some((results.read().await, (results, pauses)))
        });
    let mut readings = pin!(readings);
    let mut keys = keys();
    let mut ticks = every(TICK);
    loop {
        terminal.draw(|frame| {
            screen::draw(frame, &view, OffsetDateTime::now_utc(), Instant::now());
        })?;
        tokio::select! {
            Some(read) = readings.next() => match read {
                Ok(reading) => view.read(Instant::now(), reading),
                Err(error) if view.is_empty() && !error.is_retried() => return Ok(Some(error)),
                Err(error) => view.failed(OffsetDateTime::now_utc(), error.to_string()),
            },
            Some(event) = keys.recv() => if ends(&event) {
                return Ok(None);
            },
            _ = ticks.tick() => {}
            _ = signals.next() => return Ok(None),
        }
    }
}

/// Ticks at once and then every `period`; a late tick delays those after it.
fn every(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// What is typed. The thread that waits for it ends with the process.
fn keys() -> Receiver<Event> {
    let (sender, keys) = mpsc::channel(8);
    std::thread::spawn(move || {
        // Without a keyboard there are no keys; signals still end it.
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    keys
}

fn ends(event: &Event) -> bool {
    let Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) = event else {
        return false;
    };
    match code {
        KeyCode::Char('q' | 'Q') | KeyCode::Esc => true,
        KeyCode::Char('c' | 'd') => modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q_and_ctrl_c_end_it_and_other_keys_do_not() {
        let key = |code, modifiers| Event::Key(KeyEvent::new(code, modifiers));
        assert!(ends(&key(KeyCode::Char('q'), KeyModifiers::NONE)));
        assert!(ends(&key(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        assert!(!ends(&key(KeyCode::Char('c'), KeyModifiers::NONE)));
        assert!(!ends(&key(KeyCode::Enter, KeyModifiers::NONE)));
        assert!(!ends(&Event::Resize(80, 24)));
    }
}
