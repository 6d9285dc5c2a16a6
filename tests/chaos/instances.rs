//! The service's processes: started, signalled, and started again for as long as the run lasts.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex as Lock, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::proxy::Proxy;
use crate::servers::Servers;
use crate::{PATIENCE, Result};

/// Between the end of a process and its next start, as a supervisor of processes would.
const RESTART_DELAY: Duration = Duration::from_millis(300);
/// `SHUTDOWN_TIMEOUT_SECONDS` and some.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// Before it has installed its handlers, SIGTERM simply ends a process.
const HANDLERS_INSTALLED: Duration = Duration::from_secs(2);
/// "The shutdown deadline passed": right when a server does not answer.
const DEADLINE: i32 = 75;

/// How to start an instance.
pub struct Recipe {
    pub binary: PathBuf,
    pub directory: PathBuf,
    pub environment: BTreeMap<String, String>,
}

/// One instance and its two links. A fault takes the lock of what it harms, in this order.
pub struct Instance {
    pub process: Lock<()>,
    pub broker_link: Lock<()>,
    pub postgres_link: Lock<()>,
    pub broker: Proxy,
    pub postgres: Proxy,
    /// Counts the faults that began here: one that came meanwhile shows.
    pub faults: AtomicU64,
    commands: mpsc::Sender<Order>,
    starts: watch::Receiver<u64>,
    seen: Arc<Mutex<Seen>>,
}

/// What its processes did.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub starts: u64,
    /// Ends that nobody asked for, and ends with a code that nobody expects.
    pub wrong_ends: Vec<String>,
    /// Highest resident set of any of its processes, in KiB.
    pub peak_rss: u64,
}

struct Order {
    signal: Signal,
    /// Answered when the process has got the signal and, if it must end by it, has ended.
    done: oneshot::Sender<()>,
}

impl Instance {
    /// Links and a task that keeps the process running; `settings` are its environment.
    pub async fn start(
        index: usize,
        servers: &Servers,
        mut recipe: Recipe,
    ) -> Result<(Self, tokio::task::JoinHandle<()>)> {
        let broker = Proxy::opaque(servers.address("RABBITMQ")?).await?;
        let postgres = Proxy::postgres(servers.address("POSTGRES")?).await?;
        for (name, proxy) in [("RABBITMQ", &broker), ("POSTGRES", &postgres)] {
            recipe.environment.insert(format!("{name}_HOST"), "127.0.0.1".to_owned());
            recipe.environment.insert(format!("{name}_PORT"), proxy.port.to_string());
        }
        let (commands, orders) = mpsc::channel(1);
        let (started, starts) = watch::channel(0);
        let seen = Arc::default();
        let keeper = Keeper { index, recipe, orders, started, seen: Arc::clone(&seen) };
        let task = tokio::spawn(keeper.run());
        let instance = Self {
            process: Lock::default(),
            broker_link: Lock::default(),
            postgres_link: Lock::default(),
            broker,
            postgres,
            faults: AtomicU64::new(0),
            commands,
            starts,
            seen,
        };
        Ok((instance, task))
    }

    pub fn disturbed(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// SIGSTOP or SIGCONT.
    pub async fn signal(&self, signal: Signal) -> Result<()> {
        let (done, answered) = oneshot::channel();
        self.commands.send(Order { signal, done }).await?;
        Ok(timeout(PATIENCE, answered).await??)
    }

    /// SIGKILL or SIGTERM; comes back when the next process has started.
    pub async fn end(&self, signal: Signal) -> Result<()> {
        let mut starts = self.starts.clone();
        let before = *starts.borrow_and_update();
        self.signal(signal).await?;
        timeout(PATIENCE, starts.wait_for(|start| *start > before)).await??;
        Ok(())
    }

    /// SIGKILL; comes back when the process has ended.
    pub async fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL).await
    }

    pub async fn until_started(&self, more_than: u64) -> Result<()> {
        let mut starts = self.starts.clone();
        timeout(PATIENCE, starts.wait_for(|start| *start > more_than)).await??;
        Ok(())
    }

    pub fn started(&self) -> u64 {
        *self.starts.borrow()
    }
}

/// Ends an instance for good, in good order; the keeper ends with its orders.
pub async fn stop(instance: Instance, keeper: tokio::task::JoinHandle<()>) -> Result<Seen> {
    let Instance { commands, seen, broker, postgres, .. } = instance;
    // With its orders gone, the keeper sends SIGTERM; the links have to stand until it has ended.
    drop(commands);
    timeout(PATIENCE, keeper).await??;
    drop((broker, postgres));
    let seen = lock(&seen).clone();
    Ok(seen)
}

struct Keeper {
    index: usize,
    recipe: Recipe,
    orders: mpsc::Receiver<Order>,
    started: watch::Sender<u64>,
    seen: Arc<Mutex<Seen>>,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            match self.spawn() {
                Ok(child) => {
                    if self.watch(child).await {
                        return;
                    }
                }
                Err(error) => self.wrong(format!("cannot be started: {error}")),
            }
            sleep(RESTART_DELAY).await;
        }
    }

    fn spawn(&self) -> Result<Child> {
        let start = *self.started.borrow() + 1;
        let name = format!("service-{}-{start:03}.log", self.index);
        let log = File::create(self.recipe.directory.join(name))?;
        let child = Command::new(&self.recipe.binary)
            .arg("run")
            .env_clear()
            .envs(&self.recipe.environment)
            // No pipeline.toml and no .env to be found.
            .current_dir(&self.recipe.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        lock(&self.seen).starts = start;
        self.started.send_replace(start);
        Ok(child)
    }

    /// Follows orders until the process ends; `true` when it is not to be started again.
    async fn watch(&mut self, mut child: Child) -> bool {
        let began = Instant::now();
        let mut sent = None;
        let mut waiting: Vec<oneshot::Sender<()>> = Vec::new();
        let mut last = false;
        let mut deadline = None;
        let mut glance = tokio::time::interval(Duration::from_millis(200));
        let status = loop {
            let order = tokio::select! {
                status = child.wait() => break status,
                order = self.orders.recv(), if !last => order,
                _ = glance.tick() => {
                    self.measure(&child);
                    if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                        deadline = None;
                        self.wrong(format!("still there {STOP_LIMIT:?} after SIGTERM"));
                        self.send(&child, Signal::KILL);
                        sent = Some((Signal::KILL, began.elapsed()));
                    }
                    continue;
                }
            };
            let signal = order.as_ref().map_or(Signal::TERM, |order| order.signal);
            last |= order.is_none();
            self.send(&child, signal);
            let ends = matches!(signal, Signal::KILL | Signal::TERM);
            if ends {
                sent = Some((signal, began.elapsed()));
                deadline = (signal == Signal::TERM).then(|| Instant::now() + STOP_LIMIT);
            }
            if let Some(order) = order {
                if ends {
                    waiting.push(order.done);
                } else {
                    // Whoever asked may have been told to stop.
                    order.done.send(()).ok();
                }
            }
        };
        match status {
            Ok(status) => self.judge(status, sent),
            Err(error) => self.wrong(format!("cannot be waited for: {error}")),
        }
        for done in waiting {
            done.send(()).ok();
        }
        last
    }

    fn send(&self, child: &Child, signal: Signal) {
        // Not yet waited for, so the id is still this process's.
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(pid) = pid
            && let Err(error) = kill_process(pid, signal)
        {
            self.wrong(format!("{signal:?} cannot be sent: {error}"));
        }
    }

    /// `sent`: the last signal that was to end it, and its age by then.
    fn judge(&self, status: ExitStatus, sent: Option<(Signal, Duration)>) {
        let expected = match sent {
            Some((Signal::KILL, _)) => true,
            Some((_, age)) => {
                let by_signal = status.signal() == Some(Signal::TERM.as_raw());
                matches!(status.code(), Some(0 | DEADLINE))
                    || (by_signal && age < HANDLERS_INSTALLED)
            }
            None => false,
        };
        if !expected {
            let start = *self.started.borrow();
            self.wrong(format!("process {start} ended: {status}, sent {sent:?}"));
        }
    }

    fn measure(&self, child: &Child) {
        let Some(id) = child.id() else { return };
        let Ok(status) = std::fs::read_to_string(format!("/proc/{id}/status")) else { return };
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok());
        let mut seen = lock(&self.seen);
        seen.peak_rss = seen.peak_rss.max(peak.unwrap_or_default());
    }

    fn wrong(&self, what: String) {
        lock(&self.seen).wrong_ends.push(format!("instance {}: {what}", self.index));
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
