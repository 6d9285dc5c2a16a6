//! The rules, I1 to I8 and I11 of the design: checked when something is settled, and at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use vote_aggregator::model::ports::{DeadLetter, DeliveryTag};
use vote_aggregator::model::vote::{Choice, Vote};

use crate::broker::{How, SessionId};
use crate::plan::POISON;
use crate::world::{World, lock};

/// I8, at the moment an ack leaves: every vote it covers is committed, as counted, as a replay or
/// as an attempt, or is in the dead-letter queue. Afterwards the client holds none of them.
pub fn check_ack(world: &World, session: SessionId, tag: DeliveryTag) {
    let mut server = lock(&world.broker);
    let connection = &mut server.connections[session];
    if !connection.held.contains_key(&tag) {
        return world.violation(format!("acks tag {tag}, which is settled already or unknown"));
    }
    let rest = connection.held.split_off(&(tag + 1));
    let covered = std::mem::replace(&mut connection.held, rest);
    let published: BTreeSet<usize> =
        server.dead_letters.iter().filter(|(_, how)| *how == How::Published).map(|d| d.0).collect();
    drop(server);

    let database = lock(&world.database);
    for (covered_tag, item) in covered {
        let vote = world.plan.items[item].vote.as_ref();
        let broken = |rule: &str, what: &str| {
            world.violation(format!("{rule}: ack {tag} covers {covered_tag}, item {item}: {what}"));
        };
        if vote.is_none_or(|vote| !database.tables.has(vote) && !published.contains(&item)) {
            broken("I8", "not settled");
        }
        // A rerun after an interrupted COMMIT may be refused and dead-lettered: then it is there.
        if !published.contains(&item) && vote.is_some_and(|vote| database.standby_lacks(vote)) {
            broken("I11", "the standby does not have it");
        }
    }
}

/// Only what is malformed is rejected, and once.
pub fn check_reject(world: &World, session: SessionId, tag: DeliveryTag) {
    let mut server = lock(&world.broker);
    let connection = &mut server.connections[session];
    match connection.held.remove(&tag) {
        Some(item) if world.plan.items[item].vote.is_none() => {}
        Some(item) => world.violation(format!("rejects tag {tag}, item {item}: a valid vote")),
        None => world.violation(format!("rejects tag {tag}, which is settled or unknown")),
    }
}

/// Only what the store refused alone is dead-lettered, whole and with its SQLSTATE. Returns the item.
pub fn check_dead_letter(world: &World, dead_letter: &DeadLetter) -> Option<usize> {
    let items = &world.plan.items;
    let Some(item) = items.iter().position(|item| item.body == dead_letter.body) else {
        world.violation("dead-letters a body that was never published".to_owned());
        return None;
    };
    let vote = items[item].vote.as_ref();
    let refused = vote.is_some_and(|vote| lock(&world.database).refused.contains(vote));
    if !refused {
        world.violation(format!("I5: dead-letters item {item}, which the store did not refuse"));
    }
    let has_hash = vote.is_some_and(|vote| vote.vote_hash == dead_letter.vote_hash);
    if !has_hash || dead_letter.sqlstate.len() != 5 {
        world.violation(format!("the dead letter of item {item} has wrong headers"));
    }
    Some(item)
}

/// Everything that must hold once the queue is drained and every instance has stopped.
pub fn check_end(world: &World) {
    let server = lock(&world.broker);
    let database = lock(&world.database);
    let broken = |rule: &str, what: &dyn Display| world.violation(format!("{rule}: {what}"));

    let [ready, unacked] = server.depth();
    if ready + unacked > 0 {
        broken("I4", &format!("{ready} ready, {unacked} unacked"));
    }

    let landed = |item: &usize| server.landed[*item] > 0;
    let dead: BTreeSet<usize> = server.dead_letters.iter().map(|(item, _)| *item).collect();
    for (item, _) in server.dead_letters.iter().filter(|(_, how)| *how == How::OverLimit) {
        broken("I5", &format!("item {item} was requeued more often than the queue allows"));
    }
    let mut published: BTreeMap<&str, BTreeSet<&Vote>> = BTreeMap::new();
    for (number, item) in world.plan.items.iter().enumerate().filter(|(n, _)| landed(n)) {
        let Some(vote) = &item.vote else {
            if world.plan.dead_letter_route && !dead.contains(&number) {
                broken("I5", &format!("malformed item {number} is not in the dead-letter queue"));
            }
            continue;
        };
        published.entry(&vote.vote_hash).or_default().insert(vote);
        let refused = database.refused.contains(vote) && dead.contains(&number);
        if !database.tables.has(vote) && !refused {
            broken("I1", &format!("item {number} was published and is neither counted nor dead"));
        }
        let counted = database.tables.audit.get(vote.vote_hash.as_str());
        if counted.is_some_and(|vote| vote.citizen_id == POISON) {
            broken("I1", &format!("item {number} is unstorable and was counted"));
        }
    }
    for item in &dead {
        let vote = world.plan.items[*item].vote.as_ref();
        if !landed(item) || vote.is_some_and(|vote| !database.refused.contains(vote)) {
            broken("I5", &format!("item {item} does not belong into the dead-letter queue"));
        }
    }

    let mut totals: BTreeMap<&str, [i64; 2]> = BTreeMap::new();
    for (hash, vote) in &database.tables.audit {
        totals.entry(&vote.law_id).or_default()[usize::from(vote.choice == Choice::Non)] += 1;
        if !published.get(hash.as_str()).is_some_and(|votes| votes.contains(vote)) {
            broken("I6", &format!("{hash} was counted with a content that was never published"));
        }
    }
    for attempt in &database.tables.attempts {
        let counted = database.tables.audit.get(attempt.vote_hash.as_str());
        let known = published.get(attempt.vote_hash.as_str()).is_some_and(|v| v.contains(attempt));
        if !known || counted.is_none_or(|counted| counted == attempt) {
            broken("I6", &format!("{}: a wrong duplicate attempt", attempt.vote_hash));
        }
    }
    let same = totals.len() == database.tables.totals.len()
        && totals.iter().all(|(law, counts)| database.tables.totals.get(*law) == Some(counts));
    if !same {
        broken("I2", &"totals differ from the rows of vote_audit");
    }
    if let Some(item) = (0..server.confirmed.len()).find(|i| server.confirmed[*i] && !landed(i)) {
        broken("the model", &format!("item {item} was confirmed and is not in the queue"));
    }
}
