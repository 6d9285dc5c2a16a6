//! The service's processes: started, signalled, and started again for as long as the run lasts. Also a
//! part of the test target `cluster`.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex as Lock, MutexGuard, watch};
use tokio::time::{Instant, interval, sleep, timeout};

use crate::servers::Environment;
use crate::{PATIENCE, Result, lock};

/// Between the end of a process and its next start, as a supervisor of processes would.
const RESTART_DELAY: Duration = Duration::from_millis(300);
/// `SHUTDOWN_TIMEOUT_SECONDS` and some.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// Before it has installed its handlers, SIGTERM simply ends a process.
const HANDLERS_INSTALLED: Duration = Duration::from_secs(2);
/// "The shutdown deadline passed": right when a server does not answer.
const DEADLINE: i32 = 75;

/// One instance and its settings.
pub struct Instance {
    index: usize,
    /// What runs it: a program and its arguments.
    command: Vec<String>,
    /// For logs; no pipeline.toml and no .env is there.
    directory: PathBuf,
    environment: Environment,
    /// Held by the fault that harms the process.
    pub process: Lock<()>,
    /// No process is started while somebody else holds it.
    gate: Lock<()>,
    /// The process that runs, and how many were started by then.
    running: watch::Sender<Option<(Pid, u64)>>,
    /// The signal that is to end it, and when that was sent.
    ending: Mutex<Option<(Signal, Instant)>>,
    stopping: AtomicBool,
    pub seen: Mutex<Seen>,
}

/// What its processes did.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub starts: u64,
    /// Unexpected ends, and ends with an unexpected code.
    pub wrong_ends: Vec<String>,
    /// Most anonymous memory of any of its processes, in KiB.
    pub peak_memory: u64,
}

impl Instance {
    pub fn new(
        index: usize,
        command: Vec<String>,
        directory: PathBuf,
        environment: Environment,
    ) -> Self {
        Self {
            index,
            command,
            directory,
            environment,
            process: Lock::default(),
            gate: Lock::default(),
            running: watch::Sender::default(),
            ending: Mutex::default(),
            stopping: AtomicBool::new(false),
            seen: Mutex::default(),
        }
    }

    /// Waits until a process runs; returns its number.
    pub async fn until_running(&self) -> Result<(Pid, u64)> {
        let mut running = self.running.subscribe();
        let running = *timeout(PATIENCE, running.wait_for(Option::is_some)).await??;
        Ok(running.ok_or("no process runs")?)
    }

    /// SIGSTOP or SIGCONT.
    pub async fn signal(&self, signal: Signal) -> Result<()> {
        let (pid, _) = self.until_running().await?;
        Ok(kill_process(pid, signal)?)
    }

    /// SIGKILL or SIGTERM; returns when the process has ended.
    pub async fn end(&self, signal: Signal) -> Result<()> {
        let (pid, start) = self.until_running().await?;
        *lock(&self.ending) = Some((signal, Instant::now()));
        kill_process(pid, signal)?;
        let mut running = self.running.subscribe();
        let other = |running: &Option<(Pid, u64)>| running.is_none_or(|(_, now)| now > start);
        timeout(PATIENCE, running.wait_for(other)).await??;
        Ok(())
    }

    /// Kills the process, if there is one; none runs until the guard is dropped.
    #[allow(dead_code, reason = "chaos never wants the service away for longer than a moment")]
    pub async fn hold_down(&self) -> Result<MutexGuard<'_, ()>> {
        let gate = self.gate.lock().await;
        if self.running.borrow().is_some() {
            self.end(Signal::KILL).await?;
        }
        Ok(gate)
    }

    /// Runs one process after the other, until [`Self::stop`].
    pub async fn keep(&self) {
        for start in 1.. {
            let gate = self.gate.lock().await;
            match self.spawn(start) {
                Ok(child) => self.watch(child, start, gate).await,
                Err(error) => self.wrong(format!("cannot be started: {error}")),
            }
            if self.stopping.load(Ordering::Relaxed) {
                return;
            }
            sleep(RESTART_DELAY).await;
        }
    }

    /// Has the process that runs, or is about to, end by SIGTERM and be the last one.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    fn spawn(&self, start: u64) -> Result<Child> {
        let name = format!("service-{}-{start:03}.log", self.index);
        let log = File::create(self.directory.join(name))?;
        let mut command = Command::new(&self.command[0]);
        command
            .args(&self.command[1..])
            .env_clear()
            .envs(&self.environment)
            .current_dir(&self.directory);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        let child = command.spawn()?;
        lock(&self.seen).starts = start;
        Ok(child)
    }

    /// Looks after a process until it ends, and judges its end.
    async fn watch(&self, mut child: Child, start: u64, gate: MutexGuard<'_, ()>) {
        let Some(pid) = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) else {
            return self.wrong("has no id".to_owned());
        };
        let began = Instant::now();
        self.running.send_replace(Some((pid, start)));
        drop(gate);
        let mut glance = interval(Duration::from_millis(200));
        let status = loop {
            tokio::select! {
                status = child.wait() => break status,
                _ = glance.tick() => self.glance(pid),
            }
        };
        self.running.send_replace(None);
        let ending = lock(&self.ending).take();
        let expected = status.as_ref().is_ok_and(|status| match ending {
            None => false,
            Some((Signal::KILL, _)) => true,
            Some((signal, at)) => {
                let by_signal = status.signal() == Some(signal.as_raw());
                matches!(status.code(), Some(0 | DEADLINE))
                    || (by_signal && at - began < HANDLERS_INSTALLED)
            }
        });
        if !expected {
            self.wrong(format!("process {start} ended: {status:?}, sent {ending:?}"));
        }
    }

    /// Measures a process, and ends it when it is time.
    fn glance(&self, pid: Pid) {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let memory = memory.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok());
        let mut seen = lock(&self.seen);
        seen.peak_memory = seen.peak_memory.max(memory.unwrap_or_default());
        drop(seen);

        let mut ending = lock(&self.ending);
        let due = match *ending {
            None => self.stopping.load(Ordering::Relaxed).then_some(Signal::TERM),
            Some((Signal::TERM, at)) if at.elapsed() > STOP_LIMIT => Some(Signal::KILL),
            Some(_) => None,
        };
        let Some(signal) = due else { return };
        if signal == Signal::KILL {
            self.wrong(format!("still there {STOP_LIMIT:?} after SIGTERM"));
        }
        *ending = Some((signal, Instant::now()));
        if let Err(error) = kill_process(pid, signal) {
            self.wrong(format!("{signal:?} cannot be sent: {error}"));
        }
    }

    fn wrong(&self, what: String) {
        lock(&self.seen).wrong_ends.push(format!("instance {}: {what}", self.index));
    }
}
