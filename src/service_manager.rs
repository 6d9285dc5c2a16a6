//! What a service manager (systemd) is told by `sd_notify`: that the service came up, how it goes,
//! that it makes progress, that it stops. Nothing is told unless `NOTIFY_SOCKET` is set.
//!
//! *Came up* means: votes are counted, or a server is down and waited for. An outage is no failed
//! start: whoever started us could not mend it by ending us and starting us again, and a boot would
//! hang on it. What waiting does not mend, a wrong password say, ends the process before that, so
//! that starting the unit fails and shows why.
//!
//! The sign of life stands for this process alone. It is given by the very task that counts, and
//! only after the runtime and a thread for blocking work have each done something besides. A
//! server that hangs does not keep it back: a restart would mend nothing there either.
//!
//! Architecture invariant: a service manager that does not listen delays no vote, and a stop by no
//! more than a second.

use std::convert::Infallible;
use std::env;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;

use crate::telemetry::Health;

/// How long telling something may take; the socket's buffer is full when nobody reads it.
const PATIENCE: Duration = Duration::from_secs(1);

/// The service manager that started us.
#[derive(Debug)]
pub struct ServiceManager {
    /// It ends us when it gets no sign of life for as long as this.
    watchdog: Option<Duration>,
    /// It did not listen, and that was logged.
    deaf: AtomicBool,
}

impl ServiceManager {
    /// The one that the environment names (`NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`).
    pub fn from_env() -> Option<Self> {
        env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())?;
        let watchdog = sd_notify::watchdog_enabled().filter(|period| !period.is_zero());
        Some(Self { watchdog, deaf: AtomicBool::new(false) })
    }

    /// Tells of every change of `health`, and gives signs of life. To be polled by the task that
    /// counts.
    pub async fn attend(&self, health: &Health, stop: &CancellationToken) -> Infallible {
        let mut notes = health.notes();
        let mut heartbeat = self.watchdog.map(heartbeat);
        let mut told = None;
        loop {
            let summary = health.summary();
            // What becomes of a stop is for the exit code to tell.
            if summary != told
                && !stop.is_cancelled()
                && let Some(summary) = summary
            {
                let status = one_line(&summary);
                if told.replace(summary).is_none() {
                    self.tell(move || notify(&[NotifyState::Ready, NotifyState::Status(&status)]))
                        .await;
                } else {
                    self.tell(move || notify(&[NotifyState::Status(&status)])).await;
                }
            }
            tokio::select! {
                noted = notes.changed() => {
                    // Health outlives us; were it gone, there would be nothing left to tell.
                    if noted.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                () = tick(&mut heartbeat) => {
                    a_worker_takes_work().await;
                    self.tell(|| notify(&[NotifyState::Watchdog])).await;
                }
            }
        }
    }

    /// Tells that a stop was asked for and is under way.
    pub async fn stopping(&self) {
        let status = NotifyState::Status("stopping: what was taken is committed and acked");
        self.tell(move || notify(&[NotifyState::Stopping, status])).await;
    }

    /// In a thread for blocking work, since the socket blocks while its buffer is full.
    async fn tell(&self, tell: impl FnOnce() -> io::Result<()> + Send + 'static) {
        let told = timeout(PATIENCE, tokio::task::spawn_blocking(tell)).await;
        let problem = match told {
            Ok(Ok(Ok(()))) => return,
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(failed)) => failed.to_string(),
            Err(_) => format!("nobody took it for {PATIENCE:?}"),
        };
        if !self.deaf.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the service manager cannot be told how it goes: {problem}. Check NOTIFY_SOCKET, \
                 or unset it; votes are counted all the same"
            );
        }
    }
}

fn notify(states: &[NotifyState<'_>]) -> io::Result<()> {
    sd_notify::notify(states)
}

/// Beats twice in each `period`, as sd_watchdog_enabled(3) recommends.
fn heartbeat(period: Duration) -> Interval {
    let half = (period / 2).max(Duration::from_millis(1));
    let mut heartbeat = interval_at(Instant::now() + half, half);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeat
}

async fn tick(heartbeat: &mut Option<Interval>) {
    match heartbeat {
        Some(heartbeat) => {
            heartbeat.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// Waits until the runtime has run another task: not while all its threads are blocked.
async fn a_worker_takes_work() {
    // It fails when the runtime is going down; then nobody needs the answer.
    tokio::spawn(async {}).await.ok();
}

/// A newline would begin another assignment of the protocol.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc;

    use super::*;

    /// One worker, blocked by hand: the task that asks is polled by a thread of its own.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn no_sign_of_life_while_every_worker_is_blocked() {
        let (blocked, is_blocked) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let blocker = tokio::spawn(async move {
            blocked.send(()).expect("the test waits");
            released.recv().expect("the test releases it");
        });
        is_blocked.recv().expect("blocked");
        let mut alive = pin!(a_worker_takes_work());
        for _ in 0..1_000 {
            assert!(futures::poll!(&mut alive).is_pending());
            std::thread::yield_now();
        }
        release.send(()).expect("the blocker waits");
        alive.await;
        blocker.await.expect("no panic");
    }

    #[tokio::test(start_paused = true)]
    async fn it_beats_at_half_the_watchdogs_period_and_does_not_catch_up() {
        let mut heartbeat = Some(heartbeat(Duration::from_secs(30)));
        let began = Instant::now();
        tick(&mut heartbeat).await;
        assert_eq!(began.elapsed(), Duration::from_secs(15));
        tokio::time::advance(Duration::from_secs(60)).await;
        tick(&mut heartbeat).await;
        assert_eq!(began.elapsed(), Duration::from_secs(75));
        tick(&mut heartbeat).await;
        assert_eq!(began.elapsed(), Duration::from_secs(90));
    }

    #[test]
    fn a_status_stays_one_line() {
        assert_eq!(one_line("disk full\nREADY=1\r"), "disk full READY=1 ");
    }
}
