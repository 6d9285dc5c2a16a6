//! What all models of one run share: the plan, virtual time, the one source of chance, the trace,
//! what went wrong, and the processes that may crash at any point.

use std::collections::BTreeSet;
use std::future::pending;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::broker::Server;
use crate::plan::Plan;
use crate::store::Database;

/// A run that takes more steps than this does not come to an end by itself.
const MOST_STEPS: u64 = 400_000;

/// What becomes of the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracing {
    Off,
    Keep,
    Print,
}

pub struct World {
    pub plan: Plan,
    pub broker: Mutex<Server>,
    pub database: Mutex<Database>,
    began: Instant,
    rng: Mutex<fastrand::Rng>,
    tracing: Tracing,
    trace: Mutex<Vec<String>>,
    violations: Mutex<Vec<String>>,
    /// Cancelled by the first violation: what follows from it is of no interest.
    pub violated: CancellationToken,
    healed: AtomicBool,
    steps: AtomicU64,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub fn new(plan: Plan, tracing: Tracing) -> Arc<Self> {
        Arc::new(Self {
            rng: Mutex::new(fastrand::Rng::with_seed(!plan.seed)),
            broker: Mutex::new(Server::new(&plan)),
            database: Mutex::default(),
            plan,
            began: Instant::now(),
            tracing,
            trace: Mutex::default(),
            violations: Mutex::default(),
            violated: CancellationToken::new(),
            healed: AtomicBool::new(false),
            steps: AtomicU64::new(0),
        })
    }

    /// Virtual time since the run began.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub fn instant(&self, at: Duration) -> Instant {
        self.began + at
    }

    pub fn trace(&self, line: impl FnOnce() -> String) {
        if self.tracing == Tracing::Off {
            return;
        }
        let line = format!("{:>10.3} {}", self.now().as_secs_f64(), line());
        if self.tracing == Tracing::Print {
            println!("{line}");
        }
        lock(&self.trace).push(line);
    }

    /// A rule was broken.
    pub fn violation(&self, what: String) {
        self.trace(|| format!("VIOLATION {what}"));
        lock(&self.violations).push(what);
        self.violated.cancel();
    }

    pub fn violations(&self) -> Vec<String> {
        lock(&self.violations).clone()
    }

    pub fn take_trace(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.trace))
    }

    /// Whether something of this probability happens.
    pub fn chance(&self, probability: f64) -> bool {
        probability > 0.0 && lock(&self.rng).f64() < probability
    }

    /// Whether a fault of this probability happens: never once the run has healed.
    pub fn mishap(&self, probability: f64) -> bool {
        !self.is_healed() && self.chance(probability)
    }

    pub fn choose<T: Copy>(&self, from: &[T]) -> Option<T> {
        lock(&self.rng).choice(from).copied()
    }

    pub fn seed(&self) -> u64 {
        lock(&self.rng).u64(..)
    }

    /// A time below `longest` milliseconds; 0 is 0.
    pub fn millis(&self, longest: u64) -> Duration {
        Duration::from_millis(if longest == 0 { 0 } else { lock(&self.rng).u64(0..=longest) })
    }

    pub async fn sleep_up_to(&self, longest_ms: u64) {
        let delay = self.millis(longest_ms);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }

    pub fn heal(&self) {
        self.trace(|| "healed".to_owned());
        self.healed.store(true, Ordering::Relaxed);
    }

    pub fn is_healed(&self) -> bool {
        self.healed.load(Ordering::Relaxed)
    }

    /// Counts a step; `false` when there were too many of them.
    fn step(&self) -> bool {
        let steps = self.steps.fetch_add(1, Ordering::Relaxed);
        if steps == MOST_STEPS {
            self.violation(format!("no end: {MOST_STEPS} steps taken"));
        }
        steps < MOST_STEPS
    }
}

/// One process of an instance. Everything that it does passes through [`Process::point`].
pub struct Process {
    pub name: String,
    world: Arc<World>,
    points: AtomicU64,
    crash_at: AtomicU64,
    dead: AtomicBool,
    /// Votes it has dead-lettered since its last ack or session.
    pub letters: Mutex<BTreeSet<String>>,
    /// Ends it at once.
    pub kill: CancellationToken,
    /// Asks it to stop.
    pub stop: CancellationToken,
}

impl Process {
    pub fn new(world: &Arc<World>, name: String, crash_at: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            name,
            world: Arc::clone(world),
            points: AtomicU64::new(0),
            crash_at: AtomicU64::new(crash_at.unwrap_or(u64::MAX)),
            dead: AtomicBool::new(false),
            letters: Mutex::default(),
            kill: CancellationToken::new(),
            stop: CancellationToken::new(),
        })
    }

    pub fn crash_in(&self, points: u64) {
        self.crash_at.store(self.points() + points, Ordering::Relaxed);
    }

    pub fn points(&self) -> u64 {
        self.points.load(Ordering::Relaxed)
    }

    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// Counts one point; `false` when the process does not live on behind it.
    fn passes(&self) -> bool {
        let point = self.points.fetch_add(1, Ordering::Relaxed) + 1;
        if !self.world.step() || point >= self.crash_at.load(Ordering::Relaxed) {
            self.dead.store(true, Ordering::Relaxed);
        }
        !self.is_dead()
    }

    /// A place where the process may crash: before and after each of its effects. A dead process
    /// gets no further.
    pub async fn point(&self) {
        if !self.passes() {
            pending::<()>().await;
        }
    }
}

/// A future that dies with its process: dropped where it stands, each poll being a point, too.
pub struct Mortal<F> {
    inner: Option<Pin<Box<F>>>,
    process: Arc<Process>,
}

impl<F> Mortal<F> {
    pub fn new(process: &Arc<Process>, inner: F) -> Self {
        Self { inner: Some(Box::pin(inner)), process: Arc::clone(process) }
    }
}

impl<F: Future> Future for Mortal<F> {
    /// `None`: it died.
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let process = Arc::clone(&self.process);
        let Some(inner) = self.inner.as_mut().filter(|_| process.passes()) else {
            self.inner = None;
            return Poll::Ready(None);
        };
        match inner.as_mut().poll(cx) {
            Poll::Ready(output) if !process.is_dead() => Poll::Ready(Some(output)),
            Poll::Pending if !process.is_dead() => Poll::Pending,
            _ => {
                self.inner = None;
                Poll::Ready(None)
            }
        }
    }
}

/// Runs a process to its end, however it comes. `None`: it died.
pub async fn live<F: Future>(process: &Arc<Process>, life: F) -> Option<F::Output> {
    let mortal = Mortal::new(process, life);
    tokio::pin!(mortal);
    tokio::select! {
        biased;
        () = process.kill.cancelled() => {
            process.dead.store(true, Ordering::Relaxed);
            None
        }
        ended = &mut mortal => ended,
    }
}
