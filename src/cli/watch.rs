//! `results --watch`: readings, keys and the clock, drawn together.

mod screen;

use std::io;
use std::time::Duration;

use futures::future;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use time::OffsetDateTime;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::{Instant, MissedTickBehavior};
use vote_aggregator::adapters::store::{Results, StartError};
use vote_aggregator::model::results::Reading;
use vote_aggregator::platform::config::Config;

pub(super) use self::screen::View;
use super::signals::Signals;

/// How often the clock and the age of the reading are drawn anew.
const TICK: Duration = Duration::from_secs(1);

/// Why it did not begin, or could not go on.
pub(super) enum Error {
    Start(StartError),
    Terminal(io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Terminal(error)
    }
}

/// What a try to read came to.
type Read = Result<Reading, StartError>;

/// Draws the results until q, Ctrl-C or a signal; leaves the terminal as it was, however it ends. A
/// refusal that waiting does not mend ends it, too, but only before the first reading: later on
/// somebody may be mending it.
pub(super) async fn watch(config: &Config, view: View, interval: Duration) -> Result<(), Error> {
    // Before the terminal is ours: a signal must find somebody who gives it back.
    let signals = Signals::listen()?;
    // Also restores the terminal when we panic.
    let terminal = ratatui::try_init()?;
    let ended = run(config, view, interval, terminal, signals).await;
    ratatui::try_restore()?;
    ended
}

async fn run(
    config: &Config,
    mut view: View,
    interval: Duration,
    mut terminal: DefaultTerminal,
    mut signals: Signals,
) -> Result<(), Error> {
    let laws = view.asked().to_vec();
    let (sender, mut readings) = mpsc::channel(1);
    let mut reading = Box::pin(read(config, &laws, interval, sender));
    let mut keys = keys();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| {
            screen::draw(frame, &view, OffsetDateTime::now_utc(), Instant::now());
        })?;
        tokio::select! {
            read = readings.recv() => match read {
                Some(Ok(reading)) => view.read(Instant::now(), reading),
                Some(Err(error)) if view.is_empty() && !error.is_retried() => {
                    return Err(Error::Start(error));
                }
                Some(Err(error)) => view.failed(OffsetDateTime::now_utc(), error.to_string()),
                None => return Ok(()),
            },
            () = &mut reading => {}
            Some(event) = keys.recv() => if ends(&event) {
                return Ok(());
            },
            _ = ticks.tick() => {}
            _ = signals.next() => return Ok(()),
        }
    }
}

/// Reads every `interval`, and no sooner than the last reading has been taken.
async fn read(config: &Config, laws: &[String], interval: Duration, readings: Sender<Read>) {
    let mut results = Results::new(config, laws);
    let mut due = tokio::time::interval(interval);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        if readings.send(results.read().await).await.is_err() {
            return future::pending().await;
        }
    }
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
        KeyCode::Char('c' | 'd') if modifiers.contains(KeyModifiers::CONTROL) => true,
        KeyCode::Char('q' | 'Q') | KeyCode::Esc => true,
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
