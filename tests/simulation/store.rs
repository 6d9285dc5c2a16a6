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

/// By this a transaction that adds nothing writes WAL all the same, where a standby is named.
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
    pub fn has(&self, vote: &Vote) -> bool {
        self.audit.get(vote.vote_hash.as_str()) == Some(vote) || self.attempts.contains(vote)
    }
}

/// What is committed, on the primary and on its standby, and who holds what.
#[derive(Default)]
pub struct Database {
    pub tables: Tables,
    /// What the standby has while it is disconnected; `None` while it has everything.
    pub standby: Option<Tables>,
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
    fn count(&mut self, votes: &[Vote]) -> Counted {
        let Tables { audit, attempts, totals } = &mut self.tables;
        let mut counted = Counted::default();
        let mut laws: BTreeMap<String, [u64; 2]> = BTreeMap::new();
        for vote in votes {
            match audit.get(vote.vote_hash.as_str()) {
                None => {
                    audit.insert(vote.vote_hash.to_string(), vote.clone());
                    counted.marker = Some(vote.vote_hash.clone());
                    let choice = usize::from(vote.choice == Choice::Non);
                    totals.entry(vote.law_id.to_string()).or_default()[choice] += 1;
                    laws.entry(vote.law_id.to_string()).or_default()[choice] += 1;
                }
                Some(first) if first == vote => counted.replays += 1,
                Some(_) => {
                    counted.attempts += 1;
                    attempts.insert(vote.clone());
                }
            }
        }
        let law =
            |(law_id, added): (String, _)| LawCount { totals: totals[&law_id], law_id, added };
        counted.laws = laws.into_iter().map(law).collect();
        self.commits += 1;
        counted
    }

    /// Whether a failover at this moment would lose the effect of this vote.
    pub fn standby_lacks(&self, vote: &Vote) -> bool {
        self.tables.has(vote) && self.standby.as_ref().is_some_and(|standby| !standby.has(vote))
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
            || votes.iter().any(|vote| !self.tables.has(vote))
    }
}

/// How the wait of a COMMIT for the standby ended.
#[derive(PartialEq, Eq)]
enum Replicated {
    Yes,
    /// By a restart: committed on the primary alone.
    Interrupted,
    /// With the primary.
    Lost,
}

/// The store as one process sees it.
pub struct SimStore(pub Arc<Process>);

impl Store for SimStore {
    async fn count(&self, votes: Votes) -> Result<Counted, Fault> {
        self.0.point().await;
        let (answer, answered) = oneshot::channel();
        let process = Arc::clone(&self.0);
        // A transaction outlives its client.
        tokio::spawn(Transaction { process, votes, answer: Some(answer) }.run());
        let result = match timeout(DEADLINE, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(unknown("no answer")),
            Err(_) => Err(unknown("no answer in time")),
        };
        self.0.point().await;
        result
    }

    async fn probe(&self) -> Result<(), Fault> {
        self.0.point().await;
        let world = &self.0.world;
        world.sleep_up_to(world.plan.disk_ms).await;
        let result = begin(world).await;
        self.0.trace(|| format!("probe {result:?}"));
        self.0.point().await;
        result
    }
}

/// Whether the server begins a transaction.
async fn begin(world: &World) -> Result<(), Fault> {
    match world.trouble() {
        Some(Trouble::Down) => Err(fault("connection refused", Class::Reconnect, None)),
        Some(Trouble::Refuses(code)) => Err(refusal(code)),
        Some(Trouble::Silent) => {
            sleep(DEADLINE).await;
            Err(unknown("no answer"))
        }
        Some(Trouble::LawRefused(..) | Trouble::SlowAbove(_)) | None => Ok(()),
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
    process: Arc<Process>,
    votes: Votes,
    answer: Option<oneshot::Sender<Result<Counted, Fault>>>,
}

impl Transaction {
    async fn run(mut self) {
        let result = self.count().await;
        self.answer(result);
    }

    async fn count(&mut self) -> Result<Counted, Fault> {
        let process = Arc::clone(&self.process);
        let world = &process.world;
        let disk = world.plan.disk_ms;
        world.sleep_up_to(disk).await;
        begin(world).await?;
        let keys = self.keys();
        let locks = timeout(LOCK_TIMEOUT, acquire(Arc::clone(world), keys)).await;
        let locks = locks.map_err(|_| refusal("55P03"))?;
        let timeline = lock(&world.database).timeline;
        world.sleep_up_to(disk).await;
        if process.is_dead() {
            // The server may take its time to notice that its client is gone.
            if world.mishap(0.2) {
                sleep(world.millis(LONGEST_IDLE_MS)).await;
            }
            return Err(lost_at_commit());
        }
        if let Some(code) = self.refusal() {
            return Err(refusal(code));
        }
        if self.meets_known_hash() {
            return Err(fault("a known vote_hash", Class::KnownHash, Some("23505")));
        }
        let (commits, answer) = self.mishap().await;
        // COMMIT is sent. The crash of the process no longer decides alone.
        world.sleep_up_to(disk).await;
        let survives = !process.is_dead() || world.chance(world.plan.commit_survives);
        let is_down = matches!(world.trouble(), Some(Trouble::Down));
        if !commits || !survives || is_down {
            return Err(answer.err().unwrap_or_else(lost_at_commit));
        }
        let replicated = self.replicate(timeline).await;
        if replicated == Replicated::Lost {
            return Err(answer.err().unwrap_or_else(lost_at_commit));
        }
        let counted = lock(&world.database).count(&self.votes);
        process.trace(|| format!("committed {} {counted:?}", self.votes.len()));
        drop(locks);
        world.sleep_up_to(disk).await;
        answer?;
        if replicated == Replicated::Interrupted { Err(lost_at_commit()) } else { Ok(counted) }
    }

    /// Whether it is a plain INSERT that the audit's key refuses. A batch with attempts in it is never
    /// inserted plainly.
    fn meets_known_hash(&self) -> bool {
        let database = lock(&self.process.world.database);
        let known = |vote: &Vote| database.tables.audit.contains_key(vote.vote_hash.as_str());
        let contents: BTreeSet<&Vote> = self.votes.iter().collect();
        let hashes: BTreeSet<&str> = contents.iter().map(|vote| vote.vote_hash.as_str()).collect();
        self.votes.insert() == Insert::Plain
            && contents.len() == hashes.len()
            && self.votes.iter().any(known)
    }

    /// Draws how it goes on from here: whether it commits, and the answer to the client. To a
    /// zombie's client the answer is sent at once.
    async fn mishap(&mut self) -> (bool, Result<(), Fault>) {
        let process = Arc::clone(&self.process);
        let world = &process.world;
        let faults = &world.plan.faults;
        let mishap = world.mishap(faults.transaction).then(|| world.choose(&faults.mishaps));
        let Some(mishap) = mishap.flatten() else { return (true, Ok(())) };
        process.trace(|| format!("{mishap:?}"));
        let lost = Err(lost_at_commit());
        match mishap {
            Mishap::Fails(code) => (false, Err(refusal(code))),
            Mishap::AnswerLost => (true, lost),
            Mishap::LostBeforeCommit => (false, lost),
            Mishap::Zombie => {
                self.answer(Err(lost_at_commit()));
                sleep(world.millis(LONGEST_IDLE_MS)).await;
                (world.chance(0.7), lost)
            }
            Mishap::Hangs => {
                let late = world.chance(0.5);
                sleep(if late { DEADLINE } else { Duration::ZERO } + world.millis(2_000)).await;
                let unanswered = self.answer.take();
                tokio::spawn(async move {
                    sleep(2 * DEADLINE).await;
                    drop(unanswered);
                });
                (world.chance(0.5), lost)
            }
            Mishap::Slow => {
                sleep(world.millis(8_000)).await;
                (true, Ok(()))
            }
        }
    }

    /// Waits until the standby has this transaction, as far as PostgreSQL does.
    async fn replicate(&self, timeline: u64) -> Replicated {
        let database = &self.process.world.database;
        let restarts = lock(database).restarts;
        loop {
            let changed = {
                let database = lock(database);
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
        let world = &self.process.world;
        let trouble = world.trouble();
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
            lock(&world.database).refused.insert(alone.clone());
        }
        Some(code)
    }

    fn answer(&mut self, result: Result<Counted, Fault>) {
        if let Some(answer) = self.answer.take() {
            if let Err(fault) = &result {
                self.process.trace(|| format!("answered {fault:?}"));
            }
            // The process may have ended, or its deadline passed.
            let _unheard = answer.send(result);
        }
    }
}

/// Keys that are locked until this is dropped.
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

async fn acquire(world: Arc<World>, keys: BTreeSet<String>) -> Locks {
    loop {
        let freed = {
            let mut database = lock(&world.database);
            if database.locks.is_disjoint(&keys) {
                database.locks.extend(keys.iter().cloned());
                break;
            }
            Arc::clone(&database.freed).notified_owned()
        };
        freed.await;
    }
    Locks { world, keys }
}

fn fault(message: &str, class: Class, sqlstate: Option<&str>) -> Fault {
    Fault { class, sqlstate: sqlstate.map(str::to_owned), message: message.to_owned() }
}

fn refusal(code: &'static str) -> Fault {
    fault("refused", classify(code, None), Some(code))
}

fn unknown(message: &str) -> Fault {
    fault(message, Class::UnknownOutcome, None)
}

fn lost_at_commit() -> Fault {
    unknown("connection lost at COMMIT")
}
