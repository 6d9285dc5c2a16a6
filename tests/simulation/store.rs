//! The model store: counts in the plainest way, in transactions that lock, hang, get lost and come
//! back as zombies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};
use vote_aggregator::adapters::store::classify;
use vote_aggregator::model::ports::{Class, Counted, Fault, Insert, LawCount, Store, Votes};
use vote_aggregator::model::vote::{Choice, Vote};

use crate::plan::{Mishap, Outage, POISON, Trouble};
use crate::world::{Process, World, lock};

/// As the service waits for its store.
const DEADLINE: Duration = Duration::from_secs(15);
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);
/// The server ends what has been idle in a transaction for that long.
const LONGEST_IDLE_MS: u64 = 10_000;

/// Whether a transaction that adds nothing writes WAL all the same, where a standby is named: as the
/// service's own statement does.
const REPLAYS_WRITE: &str = "pg_logical_emit_message(true";

/// What is committed.
#[derive(Clone, Default)]
pub struct Tables {
    pub audit: BTreeMap<String, Vote>,
    pub attempts: BTreeSet<Vote>,
    pub totals: BTreeMap<String, [i64; 2]>,
}

impl Tables {
    /// Whether the effect of this vote is committed.
    fn has(&self, vote: &Vote) -> bool {
        self.audit.get(vote.vote_hash.as_str()) == Some(vote) || self.attempts.contains(vote)
    }
}

/// What is committed, on the primary and on its standby, and who holds what.
#[derive(Default)]
pub struct Database {
    pub tables: Tables,
    /// What the standby has while it is disconnected; `None` while it has everything.
    standby: Option<Tables>,
    /// Restarts of the primary: each interrupts every COMMIT that waits for the standby.
    restarts: u64,
    /// Failovers: a transaction on an earlier timeline can no longer commit.
    timeline: u64,
    replication: Arc<Notify>,
    /// Votes that were refused alone, for what is in them.
    pub refused: BTreeSet<Vote>,
    locks: BTreeSet<String>,
    freed: Arc<Notify>,
    pub commits: u64,
}

impl Database {
    /// The counting rule: by hash the first wins; equals are replays; what differs is an attempt.
    fn count(&mut self, world: &World, votes: &[Vote]) -> Counted {
        let Tables { audit, attempts, totals } = &mut self.tables;
        let before = totals.clone();
        let mut counted = Counted::default();
        for vote in votes {
            match audit.get(vote.vote_hash.as_str()) {
                None => {
                    audit.insert(vote.vote_hash.to_string(), vote.clone());
                    counted.marker = Some(vote.vote_hash.clone());
                    let totals = totals.entry(vote.law_id.to_string()).or_default();
                    totals[usize::from(vote.choice == Choice::Non)] += 1;
                }
                Some(first) if first == vote => counted.replays += 1,
                Some(_) => {
                    counted.attempts += 1;
                    attempts.insert(vote.clone());
                }
            }
        }
        for (law_id, totals) in totals.iter() {
            let old = before.get(law_id).copied().unwrap_or_default();
            if totals[0] < old[0] || totals[1] < old[1] {
                world.violation(format!("totals of {law_id} decreased"));
            }
            let added = [totals[0] - old[0], totals[1] - old[1]];
            if added != [0, 0] {
                let added = added.map(i64::unsigned_abs);
                counted.laws.push(LawCount { law_id: law_id.clone(), added, totals: *totals });
            }
        }
        self.commits += 1;
        counted
    }

    /// Whether the effect of this vote is committed.
    pub fn has(&self, vote: &Vote) -> bool {
        self.tables.has(vote)
    }

    /// Whether a failover at this moment would lose the effect of this vote.
    pub fn standby_lacks(&self, vote: &Vote) -> bool {
        self.has(vote) && self.standby.as_ref().is_some_and(|standby| !standby.has(vote))
    }

    /// Whether the standby is disconnected.
    pub fn is_degraded(&self) -> bool {
        self.standby.is_some()
    }

    /// The standby no longer receives anything.
    pub fn standby_disconnects(&mut self) {
        self.standby = Some(self.tables.clone());
    }

    /// The standby catches up with everything that the primary has.
    pub fn standby_connects(&mut self) {
        self.standby = None;
        self.replication.notify_waiters();
    }

    /// PostgreSQL commits locally what waited for the standby.
    pub fn restart(&mut self) {
        self.restarts += 1;
        self.replication.notify_waiters();
    }

    /// The primary is lost and the standby promoted; another standby follows it at once.
    pub fn fail_over(&mut self) {
        self.timeline += 1;
        if let Some(standby) = self.standby.take() {
            self.tables = standby;
        }
        self.replication.notify_waiters();
    }

    /// PostgreSQL waits for standbys only if a transaction wrote WAL.
    fn writes(&self, votes: &[Vote]) -> bool {
        include_str!("../../src/adapters/store/classify.sql").contains(REPLAYS_WRITE)
            || votes.iter().any(|vote| !self.has(vote))
    }
}

/// How the wait of a COMMIT for the standby ended.
enum Replicated {
    Yes,
    /// By a restart: committed on the primary alone.
    Interrupted,
    /// With the primary.
    Lost,
}

/// The store as one process sees it.
pub struct SimStore {
    pub world: Arc<World>,
    pub process: Arc<Process>,
}

impl Store for SimStore {
    async fn count(&self, votes: Votes) -> Result<Counted, Fault> {
        self.process.point().await;
        let (answer, answered) = oneshot::channel();
        let transaction = Transaction {
            world: Arc::clone(&self.world),
            process: Arc::clone(&self.process),
            votes,
            answer: Some(answer),
        };
        // A transaction outlives whoever waits for it.
        tokio::spawn(transaction.run());
        let result = match timeout(DEADLINE, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(fault("no answer", Class::UnknownOutcome, None)),
            Err(_) => Err(fault("no answer in time", Class::UnknownOutcome, None)),
        };
        self.process.point().await;
        result
    }

    async fn probe(&self) -> Result<(), Fault> {
        self.process.point().await;
        let world = &self.world;
        world.sleep_up_to(world.plan.disk_ms).await;
        let result = match world.trouble() {
            Some(Trouble::Down) => Err(down()),
            Some(Trouble::Refuses(code)) => Err(refusal(code)),
            Some(Trouble::Silent) => {
                sleep(DEADLINE).await;
                Err(fault("no answer", Class::UnknownOutcome, None))
            }
            Some(Trouble::LawRefused(..) | Trouble::SlowAbove(_)) | None => Ok(()),
        };
        world.trace(|| format!("{}: probe {result:?}", self.process.name));
        self.process.point().await;
        result
    }
}

impl World {
    /// What is wrong with the store right now.
    fn trouble(&self) -> Option<Trouble> {
        let now = self.now();
        let current =
            |outage: &&Outage| !self.is_healed() && (outage.from..outage.to).contains(&now);
        self.plan.faults.outages.iter().find(current).map(|outage| outage.trouble.clone())
    }
}

struct Transaction {
    world: Arc<World>,
    process: Arc<Process>,
    votes: Votes,
    answer: Option<oneshot::Sender<Result<Counted, Fault>>>,
}

/// How a transaction ends, once it got as far as its COMMIT.
type Ending = (bool, Result<(), Fault>);

impl Transaction {
    async fn run(mut self) {
        let world = Arc::clone(&self.world);
        let disk = world.plan.disk_ms;
        world.sleep_up_to(disk).await;
        match world.trouble() {
            Some(Trouble::Down) => return self.tell(Err(down())),
            Some(Trouble::Refuses(code)) => return self.tell(Err(refusal(code))),
            Some(Trouble::Silent) => return sleep(2 * DEADLINE).await,
            Some(Trouble::LawRefused(..) | Trouble::SlowAbove(_)) | None => {}
        }
        let keys = self.keys();
        if timeout(LOCK_TIMEOUT, acquire(&world, &keys)).await.is_err() {
            return self.tell(Err(refusal("55P03")));
        }
        let _locks = Locks { world: Arc::clone(&world), keys };
        let timeline = lock(&world.database).timeline;
        world.sleep_up_to(disk).await;
        if self.process.is_dead() {
            // Nobody is there to commit; the server may take its time to find out.
            return self.linger(0.2).await;
        }
        if let Some(code) = self.refusal() {
            return self.tell(Err(refusal(code)));
        }
        if self.meets_known_hash() {
            return self.tell(Err(fault("a known vote_hash", Class::KnownHash, Some("23505"))));
        }
        let (commits, ending) = self.ending().await;
        // COMMIT is sent. The crash of the process no longer decides alone.
        world.sleep_up_to(disk).await;
        let survives = !self.process.is_dead() || world.chance(world.plan.commit_survives);
        let lost = || fault("connection lost at COMMIT", Class::UnknownOutcome, None);
        if !commits || !survives || matches!(world.trouble(), Some(Trouble::Down)) {
            return self.tell(Err(ending.err().unwrap_or_else(lost)));
        }
        let ending = match self.replicate(timeline).await {
            Replicated::Yes => ending,
            Replicated::Interrupted => ending.and(Err(lost())),
            Replicated::Lost => return self.tell(Err(ending.err().unwrap_or_else(lost))),
        };
        let counted = lock(&world.database).count(&world, &self.votes);
        world.trace(|| {
            format!("{}: committed {} {:?}", self.process.name, self.votes.len(), counted)
        });
        drop(_locks);
        world.sleep_up_to(disk).await;
        self.tell(ending.map(|()| counted));
    }

    /// Draws how it goes on from here: whether it commits, and what the client is told. Of a
    /// zombie the client is told before.
    async fn ending(&mut self) -> Ending {
        let world = Arc::clone(&self.world);
        let faults = &world.plan.faults;
        let unknown = || fault("connection lost at COMMIT", Class::UnknownOutcome, None);
        let mishap = world.mishap(faults.transaction).then(|| world.choose(&faults.mishaps));
        let Some(mishap) = mishap.flatten() else { return (true, Ok(())) };
        world.trace(|| format!("{}: {mishap:?}", self.process.name));
        match mishap {
            Mishap::Fails(code) => (false, Err(refusal(code))),
            Mishap::AnswerLost => (true, Err(unknown())),
            Mishap::LostBeforeCommit => (false, Err(unknown())),
            Mishap::Zombie => {
                self.tell(Err(unknown()));
                sleep(world.millis(LONGEST_IDLE_MS)).await;
                (world.chance(0.7), Err(unknown()))
            }
            Mishap::Hangs => {
                let late = world.chance(0.5);
                sleep(if late { DEADLINE } else { Duration::ZERO } + world.millis(2_000)).await;
                let never_told = self.answer.take();
                tokio::spawn(async move {
                    sleep(2 * DEADLINE).await;
                    drop(never_told);
                });
                (world.chance(0.5), Err(unknown()))
            }
            Mishap::Slow => {
                sleep(world.millis(8_000)).await;
                (true, Ok(()))
            }
        }
    }

    /// Waits until the standby has this transaction, as far as PostgreSQL does.
    async fn replicate(&self, timeline: u64) -> Replicated {
        let restarts = lock(&self.world.database).restarts;
        loop {
            let changed = {
                let database = lock(&self.world.database);
                if database.timeline != timeline {
                    return Replicated::Lost;
                }
                if database.standby.is_none() || !database.writes(&self.votes) {
                    return Replicated::Yes;
                }
                if database.restarts != restarts {
                    return Replicated::Interrupted;
                }
                Arc::clone(&database.replication).notified_owned()
            };
            changed.await;
        }
    }

    /// Rows and totals that it locks, all at once: sorted batches do not deadlock.
    fn keys(&self) -> BTreeSet<String> {
        let laws = self.votes.iter().map(|vote| format!("law {}", vote.law_id));
        laws.chain(self.votes.iter().map(|vote| vote.vote_hash.to_string())).collect()
    }

    /// The SQLSTATE with which the server refuses these votes.
    fn refusal(&self) -> Option<&'static str> {
        let trouble = self.world.trouble();
        if let Some(Trouble::SlowAbove(most)) = trouble
            && self.votes.len() > most
        {
            return Some("57014");
        }
        let code = self.votes.iter().find_map(|vote| match &trouble {
            _ if vote.citizen_id == POISON => Some("22021"),
            Some(Trouble::LawRefused(law, code)) if *law == vote.law_id => Some(*code),
            _ => None,
        })?;
        if let [alone] = &*self.votes {
            lock(&self.world.database).refused.insert(alone.clone());
        }
        Some(code)
    }

    /// Whether it is a plain INSERT that the audit's key refuses. What has attempts within the batch is
    /// never inserted plainly.
    fn meets_known_hash(&self) -> bool {
        let database = lock(&self.world.database);
        let known = |vote: &Vote| database.tables.audit.contains_key(vote.vote_hash.as_str());
        let contents: BTreeSet<&Vote> = self.votes.iter().collect();
        let hashes: BTreeSet<&str> = contents.iter().map(|vote| vote.vote_hash.as_str()).collect();
        self.votes.insert() == Insert::Plain
            && contents.len() == hashes.len()
            && self.votes.iter().any(known)
    }

    async fn linger(&self, probability: f64) {
        if self.world.mishap(probability) {
            sleep(self.world.millis(LONGEST_IDLE_MS)).await;
        }
    }

    fn tell(&mut self, result: Result<Counted, Fault>) {
        if let Some(answer) = self.answer.take() {
            if let Err(fault) = &result {
                self.world.trace(|| format!("{}: told {fault:?}", self.process.name));
            }
            // Nobody waits any more: the process has ended, or its deadline has passed.
            let _unheard = answer.send(result);
        }
    }
}

/// Locks that go with whoever holds them.
struct Locks {
    world: Arc<World>,
    keys: BTreeSet<String>,
}

impl Drop for Locks {
    fn drop(&mut self) {
        let mut database = lock(&self.world.database);
        database.locks.retain(|key| !self.keys.contains(key));
        database.freed.notify_waiters();
    }
}

async fn acquire(world: &World, keys: &BTreeSet<String>) {
    loop {
        let freed = {
            let mut database = lock(&world.database);
            if database.locks.is_disjoint(keys) {
                database.locks.extend(keys.iter().cloned());
                return;
            }
            Arc::clone(&database.freed).notified_owned()
        };
        freed.await;
    }
}

fn fault(message: &str, class: Class, sqlstate: Option<&str>) -> Fault {
    Fault { class, sqlstate: sqlstate.map(str::to_owned), message: message.to_owned() }
}

fn refusal(code: &'static str) -> Fault {
    fault("refused", classify(code, None), Some(code))
}

fn down() -> Fault {
    fault("connection refused", Class::Reconnect, None)
}
