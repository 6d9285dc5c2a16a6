//! One run: publishers, instances, chaos; then everything heals, drains and stops.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use vote_aggregator::counting::pipeline::Acknowledged;
use vote_aggregator::counting::supervisor::Supervisor;
use vote_aggregator::platform::retry::Jitter;
use vote_aggregator::platform::telemetry::{Health, Instruments};

use crate::broker::SessionId;
use crate::invariants;
use crate::plan::{Blow, Plan};
use crate::session::{SimBroker, close_channel, cut_connection};
use crate::store::SimStore;
use crate::world::{Process, Tracing, World, lock};

/// From healing to an empty queue: 60 s, and the longest wait of a breaker on top.
const DRAIN_LIMIT: Duration = Duration::from_secs(60 + 38);
/// As `SHUTDOWN_TIMEOUT_SECONDS`.
const STOP_LIMIT: Duration = Duration::from_secs(8);
/// Longer than any call of the service waits for an answer.
const LONGEST_HANG: Duration = Duration::from_secs(40);
const LONGEST_BROKER_RESTART_MS: u64 = 20_000;
const LONGEST_RESTART_MS: u64 = 5_000;
const LONGEST_STANDBY_OUTAGE_MS: u64 = 15_000;

/// How a run came out.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub violations: Vec<String>,
    pub trace: Vec<String>,
    /// Points that each process passed, in the order of their starts.
    pub points: Vec<u64>,
    /// Figures that say how much happened.
    pub counted: u64,
    pub commits: u64,
    pub most_requeued: u32,
    /// From healing to an empty queue.
    pub drained_in: Duration,
}

/// Runs a plan on a paused clock, to its end or its first violation. A panic is one, too.
pub fn run(plan: Plan, tracing: Tracing, instruments: &Instruments) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| run_to_end(plan, tracing, instruments))).unwrap_or_else(|_| {
        let violations = vec!["panicked, see standard error".to_owned()];
        Outcome { violations, ..Outcome::default() }
    })
}

fn run_to_end(plan: Plan, tracing: Tracing, instruments: &Instruments) -> Outcome {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O needs nothing that could fail");
    let before = instruments.deliveries().imbalance();
    // Local tasks: the supervisor's future is never moved to another thread, nor need it be Send.
    let tasks = tokio::task::LocalSet::new();
    let mut outcome = tasks.block_on(&runtime, async {
        let simulation = Arc::new(Simulation {
            world: World::new(plan, tracing),
            instruments: instruments.clone(),
            processes: Mutex::default(),
            closing: CancellationToken::new(),
        });
        simulation.run().await
    });
    // What is dropped with the tasks still spawns.
    let _inside = runtime.enter();
    drop(tasks);
    // Of all processes together, those that crashed as well.
    let imbalance = instruments.deliveries().imbalance() - before;
    if imbalance != 0 {
        outcome.violations.push(format!(
            "metrics: {imbalance} more deliveries counted than acked or known to come again"
        ));
    }
    outcome
}

struct Simulation {
    world: Arc<World>,
    instruments: Instruments,
    /// All that were ever started.
    processes: Mutex<Vec<Arc<Process>>>,
    /// The run is over: a process that ends now is not started again.
    closing: CancellationToken,
}

impl Simulation {
    async fn run(self: Arc<Self>) -> Outcome {
        let world = Arc::clone(&self.world);
        let violated = world.violated.clone();
        let mut drained_in = Duration::ZERO;
        tokio::select! {
            biased;
            () = violated.cancelled() => {}
            drained = Arc::clone(&self).life() => drained_in = drained,
        }
        let database = lock(&world.database);
        Outcome {
            violations: lock(&world.violations).clone(),
            trace: std::mem::take(&mut lock(&world.traced)),
            points: lock(&self.processes).iter().map(|process| process.points()).collect(),
            counted: database.tables.audit.len() as u64,
            commits: database.commits,
            most_requeued: lock(&world.broker).most_requeued,
            drained_in,
        }
    }

    /// Returns how long the queue took to drain, from healing on.
    async fn life(self: Arc<Self>) -> Duration {
        let world = &self.world;
        let mut instances = JoinSet::new();
        for index in 0..world.plan.instances {
            let process = self.start(index);
            instances.spawn_local(Arc::clone(&self).instance(process));
        }
        let publishing = tokio::spawn(publish_all(Arc::clone(world)));
        tokio::spawn(Arc::clone(&self).chaos());
        if let Some(longest) = world.plan.consumer_timeout {
            tokio::spawn(watch_consumers(Arc::clone(world), longest));
        }

        sleep_until(world.instant(world.plan.heals_at)).await;
        world.heal();
        if publishing.await.is_err() {
            world.violation("the publisher failed".to_owned());
        }
        let healed = world.now();
        if timeout(DRAIN_LIMIT, drained(world)).await.is_err() {
            let [ready, unacked] = lock(&world.broker).depth();
            world.violation(format!("stuck: {ready} ready, {unacked} unacked {DRAIN_LIMIT:?} on"));
        }
        let drained_in = world.now().saturating_sub(healed);

        // What hung when all healed may hang until its deadline.
        sleep_until(world.instant(world.plan.heals_at + LONGEST_HANG)).await;
        self.closing.cancel();
        (0..world.plan.instances).for_each(|index| self.current(index).stop.cancel());
        let stopping = async { while instances.join_next().await.is_some() {} };
        if timeout(STOP_LIMIT, stopping).await.is_err() {
            world.violation(format!("no stop within {STOP_LIMIT:?}, with nothing wrong"));
        }
        // Whatever is still on the wire.
        sleep(Duration::from_millis(2 * world.plan.network_ms)).await;
        invariants::check_end(world);
        drained_in
    }

    fn start(&self, instance: usize) -> Arc<Process> {
        let mut processes = lock(&self.processes);
        let process = Process::new(&self.world, processes.len(), instance);
        processes.push(Arc::clone(&process));
        process
    }

    /// The process of an instance that was started last.
    fn current(&self, instance: usize) -> Arc<Process> {
        let processes = lock(&self.processes);
        let newest = processes.iter().rfind(|process| process.instance == instance);
        Arc::clone(newest.expect("each instance is started once"))
    }

    /// One process after the other, as a supervisor of containers does it.
    async fn instance(self: Arc<Self>, mut process: Arc<Process>) {
        let world = Arc::clone(&self.world);
        loop {
            process.trace(|| "starts".to_owned());
            let end = match process.live(self.serve(&process)).await {
                None => "dies",
                Some(true) => "stops",
                Some(false) => "does not start",
            };
            process.trace(|| end.to_owned());
            if !self.closing.is_cancelled() {
                world.sleep_up_to(if world.is_healed() { 0 } else { LONGEST_RESTART_MS }).await;
            }
            if self.closing.is_cancelled() {
                return;
            }
            process = self.start(process.instance);
        }
    }

    async fn serve(&self, process: &Arc<Process>) -> bool {
        let world = &self.world;
        let supervisor = Supervisor {
            broker: &SimBroker::new(process),
            store: &SimStore(Arc::clone(process)),
            limits: &world.plan.limits,
            prefetch: world.plan.prefetch,
            jitter: &Jitter::seeded(world.number()),
            instruments: &self.instruments,
            health: &Health::default(),
            acknowledged: &Acknowledged::default(),
        };
        supervisor.run(&process.stop).await.is_ok()
    }

    async fn chaos(self: Arc<Self>) {
        let world = &self.world;
        let faults = &world.plan.faults;
        while !faults.blows.is_empty() {
            let mean = u64::try_from(faults.between_blows.as_millis()).unwrap_or(u64::MAX);
            sleep(Duration::from_millis(1) + world.millis(2 * mean)).await;
            if world.is_healed() {
                return;
            }
            let Some(blow) = world.choose(&faults.blows) else { return };
            world.trace(|| format!("chaos: {blow:?}"));
            self.strike(blow);
        }
    }

    fn strike(&self, blow: Blow) {
        let world = &self.world;
        let open = || lock(&world.broker).sessions(|connection| connection.up && connection.linked);
        let one = |harm: &dyn Fn(SessionId)| world.choose(&open()).into_iter().for_each(harm);
        let process = || self.current(world.number() as usize % world.plan.instances);
        match blow {
            Blow::CutConnection => one(&|session| cut_connection(world, session)),
            Blow::CloseChannel => one(&|session| close_channel(world, session)),
            Blow::CancelConsumer => one(&|session| lock(&world.broker).cancel_consumer(session)),
            Blow::RestartBroker => {
                let back = tokio::time::Instant::now() + world.millis(LONGEST_BROKER_RESTART_MS);
                let back = back.min(world.instant(world.plan.heals_at));
                lock(&world.broker).down_until = Some(back);
                for session in open() {
                    cut_connection(world, session);
                    lock(&world.broker).close(world, session);
                }
            }
            Blow::LosePrimary => {
                tokio::spawn(lose_primary(Arc::clone(world)));
            }
            Blow::CrashInstance => process().dead.cancel(),
            Blow::CrashAtPoint => process().crash_in(world.number() % 40 + 1),
            Blow::StopInstance => {
                let process = process();
                process.stop.cancel();
                tokio::spawn(async move {
                    sleep(STOP_LIMIT).await;
                    process.dead.cancel();
                });
            }
        }
    }
}

/// The standby disconnects; then the primary restarts, or is lost, or neither.
async fn lose_primary(world: Arc<World>) {
    if lock(&world.database).standby.is_some() {
        return;
    }
    lock(&world.database).standby_disconnects();
    let pause = async || {
        let ends = tokio::time::Instant::now() + world.millis(LONGEST_STANDBY_OUTAGE_MS);
        sleep_until(ends.min(world.instant(world.plan.heals_at))).await;
    };
    pause().await;
    if world.chance(0.7) {
        world.trace(|| "chaos: the primary restarts".to_owned());
        lock(&world.database).restart();
    }
    pause().await;
    if world.chance(0.7) {
        world.trace(|| "chaos: the standby is promoted".to_owned());
        lock(&world.database).fail_over();
    } else {
        lock(&world.database).standby_connects();
    }
}

async fn drained(world: &World) {
    while lock(&world.broker).depth() != [0, 0] {
        sleep(Duration::from_millis(100)).await;
    }
}

async fn watch_consumers(world: Arc<World>, longest: Duration) {
    loop {
        sleep(Duration::from_secs(1)).await;
        let overdue = lock(&world.broker).overdue(longest);
        for session in overdue {
            close_channel(&world, session);
        }
    }
}

/// Publishes everything, at least once where it insists; confirms may be lost either way.
async fn publish_all(world: Arc<World>) {
    for publication in &world.plan.publications {
        sleep_until(world.instant(publication.at)).await;
        loop {
            let lost = world.mishap(world.plan.faults.confirm_lost);
            let down = {
                let mut server = lock(&world.broker);
                let down = server.is_down();
                if !down && (!lost || world.chance(0.5)) {
                    server.publish(&world, publication.item);
                    server.confirmed[publication.item] |= !lost;
                }
                down
            };
            if !(down || lost) || !publication.insists {
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}
