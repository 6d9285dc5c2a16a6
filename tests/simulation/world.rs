//! What all models of one run share: the plan, virtual time, the one source of chance, the trace,
//! what went wrong, and the processes that may crash at any point.

use std::collections::BTreeSet;
use std::future::{pending, poll_fn};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
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
    pub traced: Mutex<Vec<String>>,
    pub violations: Mutex<Vec<String>>,
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
            broker: Mutex::new(Server::new(plan.items.len())),
            database: Mutex::default(),
            plan,
            began: Instant::now(),
            tracing,
            traced: Mutex::default(),
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
        lock(&self.traced).push(line);
    }

    /// A rule was broken.
    pub fn violation(&self, what: String) {
        self.trace(|| format!("VIOLATION {what}"));
        lock(&self.violations).push(what);
        self.violated.cancel();
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

    pub fn number(&self) -> u64 {
        lock(&self.rng).u64(..)
    }

    /// A time up to `longest` milliseconds.
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
}

/// One process of an instance. Everything that it does passes through [`Process::point`].
pub struct Process {
    pub instance: usize,
    pub name: String,
    pub world: Arc<World>,
    points: AtomicU64,
    crash_at: AtomicU64,
    /// Votes it has dead-lettered since its last ack or session.
    pub dead_lettered: Mutex<BTreeSet<String>>,
    /// Ends it at once when it is cancelled.
    pub dead: CancellationToken,
    /// Asks it to stop.
    pub stop: CancellationToken,
}

impl Process {
    pub fn new(world: &Arc<World>, number: usize, instance: usize) -> Arc<Self> {
        let crash_at = world.plan.crash_points.get(number).copied();
        Arc::new(Self {
            instance,
            name: format!("process {number}.{instance}"),
            world: Arc::clone(world),
            points: AtomicU64::new(0),
            crash_at: AtomicU64::new(crash_at.unwrap_or(u64::MAX)),
            dead_lettered: Mutex::default(),
            dead: CancellationToken::new(),
            stop: CancellationToken::new(),
        })
    }

    pub fn trace(&self, line: impl FnOnce() -> String) {
        self.world.trace(|| format!("{}: {}", self.name, line()));
    }

    pub fn violation(&self, what: &str) {
        self.world.violation(format!("{} {what}", self.name));
    }

    pub fn crash_in(&self, points: u64) {
        self.crash_at.store(self.points() + points, Ordering::Relaxed);
    }

    pub fn points(&self) -> u64 {
        self.points.load(Ordering::Relaxed)
    }

    pub fn is_dead(&self) -> bool {
        self.dead.is_cancelled()
    }

    /// Counts one point; `false` when the process dies there.
    fn passes(&self) -> bool {
        let steps = self.world.steps.fetch_add(1, Ordering::Relaxed);
        if steps == MOST_STEPS {
            self.world.violation(format!("no end: {MOST_STEPS} steps taken"));
        }
        let point = self.points.fetch_add(1, Ordering::Relaxed) + 1;
        if steps >= MOST_STEPS || point >= self.crash_at.load(Ordering::Relaxed) {
            self.dead.cancel();
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

    /// Runs `life` to its end or to the death of the process: then it is dropped where it stands.
    /// Each poll is a point, too. `None`: it died.
    pub async fn live<F: Future>(&self, life: F) -> Option<F::Output> {
        let mut life = std::pin::pin!(life);
        let mortal = poll_fn(|context| {
            let polled = if self.passes() { life.as_mut().poll(context) } else { Poll::Pending };
            if self.is_dead() { Poll::Pending } else { polled }
        });
        self.dead.run_until_cancelled(mortal).await
    }
}
