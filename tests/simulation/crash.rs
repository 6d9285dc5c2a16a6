//! The crash matrix: a script of three batches, crashed at every point, and at all pairs of points.

use std::sync::Mutex;
use std::time::Duration;

use time::macros::datetime;
use vote_aggregator::counting::pipeline::{Limits, RetryPolicy};
use vote_aggregator::model::vote::{Choice, Vote};

use crate::plan::{Faults, Item, POISON, Plan, Publication, item, malformed_item};
use crate::run::run;
use crate::world::{Tracing, lock};
use crate::{in_parallel, instruments};

const BATCH: usize = 4;

/// Three batches: two votes of each law, a replay, an attempt, a malformed and an unstorable one.
fn script(crash_points: Vec<u64>, commit_survives: f64) -> Plan {
    let vote = |number: u8| Vote {
        vote_hash: format!("hash-{number}").into(),
        citizen_id: format!("citizen-{number}").into(),
        law_id: format!("law-{}", number % 3).into(),
        choice: if number.is_multiple_of(2) { Choice::Oui } else { Choice::Non },
        timestamp: datetime!(2025-11-14 12:00 UTC),
    };
    let mut items: Vec<Item> = (0..8).map(|number| item(vote(number))).collect();
    let attempt = Vote { choice: Choice::Non, ..vote(0) };
    let poison = Vote { citizen_id: POISON.into(), ..vote(9) };
    let malformed = malformed_item(&mut fastrand::Rng::with_seed(1), 10);
    items.extend([item(attempt), item(poison), malformed]);
    let order = [0, 1, 2, 10, 3, 8, 0, 4, 9, 5, 6, 1, 7];
    let publication = |item| Publication { at: Duration::ZERO, item, insists: true };
    Plan {
        seed: 0,
        instances: 1,
        limits: Limits {
            batch_size: BATCH,
            batch_timeout: Duration::from_millis(100),
            batch_deadline: Duration::from_secs(900),
            in_flight: 2,
            max_message_bytes: 1_024,
            cell: None,
            most_acked: BATCH as u64 - 1,
            plain_after: 0,
            retry: RetryPolicy { max_attempts: 3, delay: Duration::from_secs(1) },
        },
        prefetch: 2 * BATCH as u16,
        items,
        publications: order.map(publication).into(),
        heals_at: Duration::from_secs(1),
        network_ms: 3,
        disk_ms: 3,
        dead_letter_route: true,
        delivery_limit: 20,
        consumer_timeout: None,
        requeue_to_front: true,
        crash_points,
        commit_survives,
        faults: Faults::default(),
    }
}

/// Whether a transaction that sent its COMMIT before the crash is committed.
const FATES: [f64; 2] = [0.0, 1.0];

/// Runs all of it.
pub fn matrix() -> bool {
    let clean = run(script(Vec::new(), 1.0), Tracing::Off, &instruments());
    let Some(points) = clean.points.first().copied() else { return false };
    let failures = Mutex::new(clean.violations);
    let runs = Mutex::new(1_u64);
    let count = points * FATES.len() as u64;
    let elapsed = in_parallel("crash points", count, |number, instruments| {
        let fate = FATES[(number % 2) as usize];
        let crash = |at: Vec<u64>| {
            let outcome = run(script(at.clone(), fate), Tracing::Off, instruments);
            let violation = outcome.violations.first();
            lock(&failures).extend(violation.map(|what| format!("crashes at {at:?}: {what}")));
            *lock(&runs) += 1;
            outcome.points
        };
        let first = number / 2 + 1;
        let second = crash(vec![first]).get(1).copied().unwrap_or_default();
        for at in 1..=second {
            crash(vec![first, at]);
        }
        true
    });
    let mut failures = lock(&failures);
    failures.sort();
    for failure in failures.iter().take(10) {
        println!("FAILED {failure}");
    }
    println!(
        "crash points: {points} points and all pairs, {} runs in {:.1} s, {} failed",
        lock(&runs),
        elapsed.as_secs_f64(),
        failures.len()
    );
    failures.is_empty()
}
