//! Notifies a service manager (systemd) by `sd_notify`: started, status, watchdog, stopping. Nothing is
//! sent unless `NOTIFY_SOCKET` is set.
//!
//! *Started* means: votes are counted, or a server is down and waited for. An outage is not a failed start:
//! a restart would not help, and a boot would hang on it. What is not retried, a wrong password for
//! example, ends the process before that, so that starting the unit fails and shows why.
//!
//! The watchdog's ping stands for this process alone. It is sent by the task that counts, and only after
//! the runtime and a thread for blocking work have each run something else. A server that hangs does not
//! hold it back: a restart would not help there either.
//!
//! Architecture invariant: a service manager that does not read its socket delays no vote, and a stop by
//! no more than a second.

use std::convert::Infallible;
use std::env;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;

use crate::platform::telemetry::Health;

/// How long one notification may take; the socket's buffer is full when it is not read.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The service manager that started us.
#[derive(Debug)]
pub struct ServiceManager {
    /// It kills us when it gets no ping for as long as this.
    watchdog: Option<Duration>,
    /// A notification failed, and that was logged.
    failed: AtomicBool,
}

impl ServiceManager {
    /// The one that the environment names (`NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`).
    pub fn from_env() -> Option<Self> {
        env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())?;
        let watchdog = sd_notify::watchdog_enabled().filter(|period| !period.is_zero());
        Some(Self { watchdog, failed: AtomicBool::new(false) })
    }

    /// Sends every change of `health`, and the watchdog's pings. To be polled by the task that counts.
    pub async fn attend(&self, health: &Health, stop: &CancellationToken) -> Infallible {
        let mut notes = health.notes();
        let mut heartbeat = self.watchdog.map(heartbeat);
        let mut sent = None;
        loop {
            let summary = health.summary();
            // The result of a stop is the exit code.
            if summary != sent
                && !stop.is_cancelled()
                && let Some(summary) = summary
            {
                let status = one_line(&summary);
                let first = sent.replace(summary).is_none();
                self.send(move || {
                    let states = [NotifyState::Ready, NotifyState::Status(&status)];
                    sd_notify::notify(if first { &states } else { &states[1..] })
                })
                .await;
            }
            tokio::select! {
                // It cannot fail: health outlives this task.
                _ = notes.changed() => {}
                () = tick(&mut heartbeat) => {
                    runtime_is_responsive().await;
                    self.send(|| sd_notify::notify(&[NotifyState::Watchdog])).await;
                }
            }
        }
    }

    /// Sends that the service is stopping.
    pub async fn stopping(&self) {
        let status = "stopping: deliveries already received are committed and acked";
        let status = NotifyState::Status(status);
        self.send(move || sd_notify::notify(&[NotifyState::Stopping, status])).await;
    }

    /// In a thread for blocking work, since the socket blocks while its buffer is full.
    async fn send(&self, send: impl FnOnce() -> io::Result<()> + Send + 'static) {
        let sent = timeout(SEND_TIMEOUT, tokio::task::spawn_blocking(send)).await;
        let problem = match sent {
            Ok(Ok(Ok(()))) => return,
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(failed)) => failed.to_string(),
            Err(_) => format!("not read within {SEND_TIMEOUT:?}"),
        };
        if !self.failed.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the service manager cannot be notified: {problem}. Check NOTIFY_SOCKET, or unset \
                 it; votes are counted all the same"
            );
        }
    }
}

/// Notifies the service manager, if there is one, that a command without a watchdog has started, and how it is.
pub fn started(status: &str) {
    if let Err(error) =
        sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&one_line(status))])
    {
        tracing::warn!(
            "the service manager cannot be notified: {error}. Check NOTIFY_SOCKET, or unset it"
        );
    }
}

/// Beats twice in each `period`, as sd_watchdog_enabled(3) recommends.
fn heartbeat(period: Duration) -> Interval {
    let half = (period / 2).max(Duration::from_millis(1));
    let mut heartbeat = interval_at(Instant::now() + half, half);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeat
}

async fn tick(heartbeat: &mut Option<Interval>) {
    let Some(heartbeat) = heartbeat else { return std::future::pending().await };
    heartbeat.tick().await;
}

/// Waits until the runtime has run another task: not while all its threads are blocked.
async fn runtime_is_responsive() {
    // It fails only when the runtime shuts down.
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
    async fn no_ping_while_every_worker_is_blocked() {
        let (blocked, is_blocked) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let blocker = tokio::spawn(async move {
            blocked.send(()).expect("the test waits");
            released.recv().expect("the test releases it");
        });
        is_blocked.recv().expect("blocked");
        let mut alive = pin!(runtime_is_responsive());
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
