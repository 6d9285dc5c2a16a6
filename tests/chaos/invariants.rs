//! Compares what came of a run with what was published: the invariants I1 to I10.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lapin::Connection;
use lapin::options::BasicGetOptions;
use serde::Serialize;
use tokio::time::Instant;
use vote_aggregator::model::vote::{Vote, decode};

use crate::Result;
use crate::instances::Seen;
use crate::ledger::{Confirmed, Ledger};
use crate::tables::Totals;
use crate::watch::Watched;

/// A drain within this many seconds.
const DRAIN_LIMIT: f64 = 60.0;
/// Far above what prefetch and pool need, far below what a backlog would take.
const MEMORY_LIMIT_KIB: u64 = 64 * 1024;

/// A message that a stopped or cut off instance holds is delivered to another one this long after
/// those behind it: a fault lasts up to 15 s, and the broker's heartbeat notices it within 30 s.
const HELD: Duration = Duration::from_secs(45);
/// The service's default, which no instance changes.
const MAX_MESSAGE_BYTES: usize = 16_384;

/// All that is known when a run is over.
pub struct Evidence {
    /// By `vote_hash`, its key.
    pub audit: BTreeMap<String, Vote>,
    pub results: Totals,
    /// What vote_results should be, by the audit.
    pub recounted: Totals,
    pub attempts: BTreeSet<Vote>,
    /// Rows of duplicate_attempts, which may be more than there are different ones.
    pub attempt_rows: usize,
    pub dead_letters: BTreeSet<Vec<u8>>,
    /// In the queue after every instance has stopped: whatever was unacked is ready then.
    pub left: u32,
    /// From the last fault's end; `None` when the queue was never empty.
    pub drained_after: Option<f64>,
    pub watched: Watched,
    pub seen: Vec<Seen>,
    /// In PostgreSQL's log.
    pub deadlocks: usize,
    /// When the broker was killed under a classic queue, which dead-letters without confirms of
    /// its own: what it was about to move then may be lost, whatever its consumers do.
    pub classic_killed: Vec<Instant>,
}

/// One verdict.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub name: &'static str,
    pub held: bool,
    pub detail: String,
}

fn verdict(name: &'static str, held: bool, detail: String) -> Verdict {
    Verdict { name, held, detail }
}

/// Judges a run.
pub fn judge(ledger: &Ledger, evidence: &Evidence) -> Vec<Verdict> {
    let Evidence { audit, results, recounted, watched, deadlocks, left, .. } = evidence;
    let confirmed = |hash: &str| {
        ledger.votes.get(hash).is_some_and(|casts| casts.iter().any(|cast| cast.confirmed))
    };
    let missing = ledger.votes.keys().filter(|hash| confirmed(hash) && !audit.contains_key(*hash));
    let missing = missing.count();
    let foreign = audit.keys().filter(|hash| !ledger.votes.contains_key(*hash)).count();
    let counted: i64 = results.values().flatten().sum();
    let laws: BTreeSet<_> = results.keys().chain(recounted.keys()).collect();
    let differing = laws.iter().filter(|law| results.get(**law) != recounted.get(**law)).count();
    let altered = audit.values().filter(|row| !sent(ledger, row)).count();
    let decreases = &watched.decreases;
    let drained = evidence.drained_after;
    let peak = evidence.seen.iter().map(|seen| seen.peak_memory).max().unwrap_or_default();
    let starts: u64 = evidence.seen.iter().map(|seen| seen.starts).sum();
    let wrong: Vec<&String> = evidence.seen.iter().flat_map(|seen| &seen.wrong_ends).collect();
    vec![
        verdict(
            "I1 confirmed ⊆ audit ⊆ attempted",
            missing == 0 && foreign == 0 && !audit.is_empty(),
            format!("{} rows; confirmed and missing {missing}, never sent {foreign}", audit.len()),
        ),
        verdict(
            "I2 totals of each law = its audit rows",
            differing == 0,
            format!("{} laws, {differing} differ", laws.len()),
        ),
        verdict(
            "I3 sum of totals = audit rows",
            usize::try_from(counted).ok() == Some(audit.len()),
            format!("{counted} counted, {} rows", audit.len()),
        ),
        verdict("I4 nothing ready, nothing unacked", *left == 0, format!("{left} left")),
        dead_letters(ledger, evidence),
        verdict("I6 audit rows as sent", altered == 0, format!("{altered} with other content")),
        verdict(
            "I7 totals never decrease",
            decreases.is_empty() && !watched.counted.is_empty(),
            format!("{} looks, decreases: {decreases:?}", watched.counted.len()),
        ),
        duplicates(ledger, evidence),
        verdict(
            "I9 drained within 60 s",
            drained.is_some_and(|seconds| seconds <= DRAIN_LIMIT),
            drained.map_or("not drained".to_owned(), |seconds| format!("{seconds:.1} s")),
        ),
        // Anonymous memory alone: pages of the binary's file are shared, can be dropped at any
        // time, and do not depend on what the bound is about, prefetch and backlog.
        verdict(
            "I10 memory flat",
            peak > 0 && peak <= MEMORY_LIMIT_KIB,
            format!("most anonymous memory {:.1} MiB of 64", peak as f64 / 1024.0),
        ),
        verdict(
            "no process ends by itself, SIGTERM ends it well",
            wrong.is_empty(),
            format!("{starts} processes, wrong ends: {wrong:?}"),
        ),
        verdict("no deadlock in the log", *deadlocks == 0, format!("{deadlocks} deadlocks")),
    ]
}

fn sent(ledger: &Ledger, vote: &Vote) -> bool {
    let casts = ledger.votes.get(vote.vote_hash.as_str());
    casts.is_some_and(|casts| casts.iter().any(|cast| cast.vote == *vote))
}

fn dead_letters(ledger: &Ledger, evidence: &Evidence) -> Verdict {
    let there = &evidence.dead_letters;
    let foreign = there.iter().filter(|body| !ledger.refused.contains_key(*body)).count();
    let missing = ledger.refused.iter().filter(|(body, _)| !there.contains(*body));
    let missing = missing.filter_map(|(body, confirmed)| Some((body, (*confirmed)?)));
    let missing: Vec<(&Vec<u8>, Confirmed)> = missing.collect();
    // In the queue or in hand before the kill: with a backlog, that is not when it was published.
    let about_to_move = |message: &Confirmed, killed: Instant| {
        message.at <= killed && message.behind >= evidence.watched.counted_by(killed - HELD)
    };
    // The service publishes a vote that the database refused, and waits for the confirm.
    let excused = |(body, message): &(&Vec<u8>, Confirmed)| {
        decode(body, MAX_MESSAGE_BYTES).is_err()
            && evidence.classic_killed.iter().any(|killed| about_to_move(message, *killed))
    };
    let lost: Vec<_> = missing.iter().filter(|missing| !excused(missing)).collect();
    let mut detail = format!(
        "{} different bodies; confirmed and missing {}, of which {} were on their way when \
         RabbitMQ was killed (docs/reliability.md), good votes among them {foreign}",
        there.len(),
        missing.len(),
        missing.len() - lost.len(),
    );
    for (body, _) in &lost {
        detail += &format!("; lost: {}", body.escape_ascii());
    }
    let held = foreign == 0 && lost.is_empty() && !there.is_empty();
    verdict("I5 dead letters = malformed and unstorable", held, detail)
}

/// What was acked is counted, a replay, or an attempt on record: a confirmed content that is none of
/// them was acked and lost.
fn duplicates(ledger: &Ledger, evidence: &Evidence) -> Verdict {
    let attempts = &evidence.attempts;
    let counted = |vote: &Vote| evidence.audit.get(vote.vote_hash.as_str()) == Some(vote);
    let casts = ledger.votes.values().flatten().filter(|cast| cast.confirmed);
    let lost = casts.filter(|cast| !counted(&cast.vote) && !attempts.contains(&cast.vote)).count();
    let wrong = attempts.iter().filter(|row| counted(row) || !sent(ledger, row)).count();
    let repeated = evidence.attempt_rows - attempts.len();
    verdict(
        "I8 nothing acked is lost: each content counted or on record as an attempt",
        lost == 0 && wrong == 0 && repeated == 0 && !attempts.is_empty(),
        format!("{} attempts; lost {lost}, wrong {wrong}, twice {repeated}", attempts.len()),
    )
}

/// Takes every message out of a queue.
pub async fn take_all(connection: &Connection, queue: &str) -> Result<BTreeSet<Vec<u8>>> {
    let channel = connection.create_channel().await?;
    let no_ack = BasicGetOptions { no_ack: true };
    let mut bodies = BTreeSet::new();
    while let Some(got) = channel.basic_get(queue.into(), no_ack).await? {
        bodies.insert(got.delivery.data);
    }
    channel.close(200, "OK".into()).await?;
    Ok(bodies)
}
