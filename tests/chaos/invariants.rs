//! Compares what came of a run with what was published: the invariants I1 to I10.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use lapin::Connection;
use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use tokio::time::Instant;
use vote_aggregator::model::vote::{Choice, Vote, decode};

use crate::Result;
use crate::instances::Seen;
use crate::ledger::{Confirmed, Ledger};
use crate::watch::{self, Totals, Watched};

/// A drain within this many seconds.
const DRAIN_LIMIT: f64 = 60.0;
/// Far above what prefetch and pool need, far below what a backlog would take.
const RSS_LIMIT_KIB: u64 = 64 * 1024;

/// A message that a stopped or cut off instance holds is delivered to another one this long after those
/// behind it: a fault lasts up to 15 s, and the broker's heartbeat notices it within 30 s.
const HELD: Duration = Duration::from_secs(45);
/// The limit of the service's that the messages are made for.
const MAX_MESSAGE_BYTES: usize = 16_384;

/// All that is known when a run is over.
pub struct Evidence {
    /// By `vote_hash`, its key.
    pub audit: BTreeMap<String, Vote>,
    pub results: Totals,
    pub recounted: Totals,
    pub attempts: BTreeSet<Vote>,
    /// Rows of duplicate_attempts, which may be more than there are different ones.
    pub attempt_rows: usize,
    pub dead_letters: BTreeSet<Vec<u8>>,
    /// In the queue after every instance has stopped: whatever was unacked is ready then.
    pub left: u32,
    /// From the last fault's end; `None` when it never was.
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
    let Evidence { audit, results, recounted, watched, .. } = evidence;
    let confirmed = |hash: &str| {
        ledger.votes.get(hash).is_some_and(|casts| casts.iter().any(|cast| cast.confirmed))
    };
    let missing = ledger.votes.keys().filter(|hash| confirmed(hash) && !audit.contains_key(*hash));
    let missing = missing.count();
    let foreign = audit.keys().filter(|hash| !ledger.votes.contains_key(*hash)).count();
    let indeterminate = audit.keys().filter(|hash| !confirmed(hash)).count();
    let counted: i64 = results.values().flatten().sum();
    let altered = audit
        .values()
        .filter(|row| !sent(ledger, &row.vote_hash).any(|cast| cast.vote == **row))
        .count();
    let drained = evidence.drained_after;
    vec![
        verdict(
            "I1 confirmed ⊆ audit ⊆ attempted",
            missing == 0 && foreign == 0 && !audit.is_empty(),
            format!(
                "{} rows; confirmed and missing {missing}, never sent {foreign}, \
                 indeterminate and there {indeterminate}",
                audit.len()
            ),
        ),
        verdict(
            "I2 totals of each law = its audit rows",
            results == recounted,
            format!("{} laws, {} differ", recounted.len(), differing(results, recounted)),
        ),
        verdict(
            "I3 sum of totals = audit rows",
            usize::try_from(counted).ok() == Some(audit.len()),
            format!("{counted} counted, {} rows", audit.len()),
        ),
        verdict(
            "I4 nothing ready, nothing unacked",
            evidence.left == 0,
            format!("{} left", evidence.left),
        ),
        dead_letters(ledger, evidence),
        verdict(
            "I6 audit rows as they were sent",
            altered == 0,
            format!("{altered} with other content"),
        ),
        verdict(
            "I7 totals never decrease",
            watched.decreases.is_empty() && watched.looks > 0,
            match watched.decreases.first() {
                None => format!("{} looks", watched.looks),
                Some(first) => format!("{} times: {first}", watched.decreases.len()),
            },
        ),
        duplicates(ledger, evidence),
        verdict(
            "I9 drained within 60 s",
            drained.is_some_and(|seconds| seconds <= DRAIN_LIMIT),
            drained.map_or("not drained".to_owned(), |seconds| format!("{seconds:.1} s")),
        ),
        memory(&evidence.seen),
        endings(&evidence.seen),
        verdict(
            "no deadlock in PostgreSQL's log",
            evidence.deadlocks == 0,
            format!("{} deadlocks", evidence.deadlocks),
        ),
    ]
}

fn sent<'l>(ledger: &'l Ledger, hash: &str) -> impl Iterator<Item = &'l crate::ledger::Cast> {
    ledger.votes.get(hash).into_iter().flatten()
}

fn differing(one: &Totals, other: &Totals) -> usize {
    let laws: BTreeSet<_> = one.keys().chain(other.keys()).collect();
    laws.into_iter().filter(|law| one.get(*law) != other.get(*law)).count()
}

fn dead_letters(ledger: &Ledger, evidence: &Evidence) -> Verdict {
    let there = &evidence.dead_letters;
    let missing = ledger.refused.iter().filter(|(body, _)| !there.contains(*body));
    let missing: Vec<(&Vec<u8>, Confirmed)> =
        missing.filter_map(|(body, confirmed)| Some((body, (*confirmed)?))).collect();
    let foreign = there.iter().filter(|body| !ledger.refused.contains_key(*body)).count();
    let mut detail = format!(
        "{} different bodies; confirmed and missing {}, good votes among them {foreign}",
        there.len(),
        missing.len(),
    );
    // In the queue or in hand before the kill: with a backlog, that is not when it was published.
    let about_to_move = |message: &Confirmed, killed: Instant| {
        message.at <= killed && message.behind >= evidence.watched.counted_by(killed - HELD)
    };
    let mut excused = true;
    for (body, message) in &missing {
        // The service publishes a vote that the database refused, and waits for the confirm.
        let malformed = decode(body, MAX_MESSAGE_BYTES).is_err();
        let killed = evidence.classic_killed.iter().find(|kill| about_to_move(message, **kill));
        if malformed && killed.is_some() {
            continue;
        }
        excused = false;
        let kind = if malformed { "malformed" } else { "refused by the database" };
        let since = |kill: &Instant| kill.saturating_duration_since(message.at).as_secs_f64();
        let kills = evidence.classic_killed.iter().map(since).filter(|s| *s > 0.0);
        let kills: Vec<String> = kills.map(|seconds| format!("{seconds:.1} s")).collect();
        write!(
            detail,
            "; lost: {kind}, {} bytes, behind {} votes, RabbitMQ killed {} after its confirm",
            body.len(),
            message.behind,
            if kills.is_empty() { "never".to_owned() } else { kills.join(", ") },
        )
        .expect("written to a String");
    }
    if excused && !missing.is_empty() {
        detail.push_str("; on their way when RabbitMQ was killed, see docs/reliability.md");
    }
    let held = foreign == 0 && excused && !there.is_empty();
    verdict("I5 dead letters = malformed and unstorable", held, detail)
}

/// Whatever was acked is either counted, a replay, or an attempt on record: a confirmed content
/// that is none of them was acked and lost.
fn duplicates(ledger: &Ledger, evidence: &Evidence) -> Verdict {
    let differs =
        |vote: &Vote| evidence.audit.get(vote.vote_hash.as_str()).is_none_or(|row| row != vote);
    let casts = ledger.votes.values().flatten();
    let lost = casts
        .filter(|cast| cast.confirmed && differs(&cast.vote))
        .filter(|cast| !evidence.attempts.contains(&cast.vote))
        .count();
    let wrong = evidence
        .attempts
        .iter()
        .filter(|row| !differs(row) || !sent(ledger, &row.vote_hash).any(|c| c.vote == **row))
        .count();
    let repeated = evidence.attempt_rows - evidence.attempts.len();
    verdict(
        "I8 nothing acked is lost: each content counted or on record as an attempt",
        lost == 0 && wrong == 0 && repeated == 0,
        format!(
            "{} attempts; lost {lost}, wrong {wrong}, twice {repeated}",
            evidence.attempts.len()
        ),
    )
}

fn memory(seen: &[Seen]) -> Verdict {
    let peak = seen.iter().map(|seen| seen.peak_rss).max().unwrap_or_default();
    let held = peak > 0 && peak <= RSS_LIMIT_KIB;
    let detail = format!("highest resident set {:.1} MiB of 64", peak as f64 / 1024.0);
    verdict("I10 memory flat", held, detail)
}

fn endings(seen: &[Seen]) -> Verdict {
    let starts: u64 = seen.iter().map(|seen| seen.starts).sum();
    let wrong: Vec<&String> = seen.iter().flat_map(|seen| &seen.wrong_ends).collect();
    let detail = match wrong.first() {
        None => format!("{starts} processes"),
        Some(first) => format!("{} times: {first}", wrong.len()),
    };
    verdict("no process ends by itself, SIGTERM ends it well", wrong.is_empty(), detail)
}

/// Every row of vote_audit.
pub async fn audit(connection: &mut PgConnection) -> Result<BTreeMap<String, Vote>> {
    let query = "SELECT vote_hash, citizen_id, law_id, choice, \"timestamp\" AS cast_at \
                 FROM vote_audit";
    let rows = sqlx::query(query).fetch_all(connection).await?;
    rows.iter().map(vote).map(|vote| vote.map(|vote| (vote.vote_hash.to_string(), vote))).collect()
}

/// Every row of duplicate_attempts.
pub async fn attempts(connection: &mut PgConnection) -> Result<Vec<Vote>> {
    let query = "SELECT vote_hash, citizen_id, law_id, choice, attempt_timestamp AS cast_at \
                 FROM duplicate_attempts";
    sqlx::query(query).fetch_all(connection).await?.iter().map(vote).collect()
}

fn vote(row: &PgRow) -> Result<Vote> {
    Ok(Vote {
        vote_hash: row.try_get::<&str, _>("vote_hash")?.into(),
        citizen_id: row.try_get::<&str, _>("citizen_id")?.into(),
        law_id: row.try_get::<&str, _>("law_id")?.into(),
        choice: if row.try_get::<&str, _>("choice")? == "oui" { Choice::Oui } else { Choice::Non },
        timestamp: row.try_get("cast_at")?,
    })
}

/// What vote_results should be.
pub async fn recount(connection: &mut PgConnection) -> Result<Totals> {
    let query = "SELECT law_id, count(*) FILTER (WHERE choice = 'oui') AS oui_count, \
                 count(*) FILTER (WHERE choice = 'non') AS non_count \
                 FROM vote_audit GROUP BY law_id";
    watch::read(connection, query).await
}

/// Messages ready in a queue.
pub async fn ready(connection: &Connection, queue: &str) -> Result<u32> {
    let channel = connection.create_channel().await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(queue.into(), passive, FieldTable::default()).await?;
    let ready = declared.message_count();
    channel.close(200, "OK".into()).await?;
    Ok(ready)
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
