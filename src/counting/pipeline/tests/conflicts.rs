//! Deadlocks, serialization failures and plain INSERTs that meet a known vote: outside the retries.

use super::*;

#[test]
fn twenty_conflicts_cost_no_retry_and_at_most_two_seconds() {
    let world = World::failing([Class::Retry; 20]);
    let (ended, took) = run_votes(&world, 2, 2);
    assert_eq!(ended.failure, None);
    assert_eq!(world.events().last(), Some(&Event::Acked(2)));
    // 10 to 100 ms each, and 5 ms for each try.
    let (least, most) = (20 * 10 + 21 * 5, 20 * 100 + 21 * 5);
    assert!((least..=most).contains(&took.as_millis()), "{took:?}");
}

#[test]
fn a_batch_that_meets_nothing_but_conflicts_is_given_up_behind_its_retries() {
    let world = World::failing([Class::Retry; 255]);
    let (ended, took) = run_votes(&world, 2, 2);
    assert_paused(&ended);
    let tried = 255 - world.faults_left();
    assert_eq!(tried, 20 + 1 + 3, "conflicts, the try behind them, retries");
    assert!(took > Duration::from_secs(1 + 2 + 4), "with the delays of retries: {took:?}");
}

#[test]
fn a_plain_insert_that_meets_a_known_vote_is_repeated_at_once_with_on_conflict() {
    let world = World::failing([Class::KnownHash]);
    let (ended, took) = run_votes(&world, 2, 4);
    assert_eq!(ended.failure, None);
    assert_eq!(world.stored().concat().len(), 4, "each vote once");
    assert_eq!(world.events().last(), Some(&Event::Acked(4)));
    assert_eq!(took, Duration::from_millis(15), "three transactions, no delay");
    let inserts = world.inserts.lock().expect("no panic while held").clone();
    assert_eq!(inserts, [Insert::Plain, Insert::OnConflict, Insert::Plain]);
}

#[test]
fn a_batch_that_may_be_counted_already_is_never_inserted_plainly() {
    let world = World::failing([Class::UnknownOutcome]);
    let mut items = deliveries(votes_named(4));
    items[3].as_mut().expect("a delivery").redelivered = true;
    let (ended, _) =
        run_chain(&world, &limits(2, 1), Mode::Flowing, stream::iter(items).boxed(), None);
    assert_eq!(ended.failure, None);
    let inserts = world.inserts.lock().expect("no panic while held").clone();
    assert_eq!(
        inserts,
        [Insert::Plain, Insert::OnConflict, Insert::OnConflict],
        "behind an unknown outcome, and of a redelivered vote"
    );
}
