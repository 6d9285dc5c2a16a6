//! Deadlocks and serialization failures: outside the retries, and not for ever.

use super::*;

fn conflicts(count: usize) -> World {
    let world = World::default();
    world.faults.lock().expect("no panic while held").extend(vec![Class::Retry; count]);
    world
}

#[test]
fn twenty_conflicts_cost_no_retry_and_at_most_two_seconds() {
    let world = conflicts(20);
    let items = stream::iter(deliveries(votes_named(2))).boxed();
    let (ended, took) = run_chain(&world, &limits(2, 1), Mode::Flowing, items, None);
    assert_eq!(ended.failure, None);
    assert_eq!(world.events().last(), Some(&Event::Acked(2)));
    // 10 to 100 ms each, and 5 ms for each try.
    let (least, most) = (20 * 10 + 21 * 5, 20 * 100 + 21 * 5);
    assert!((least..=most).contains(&took.as_millis()), "{took:?}");
}

#[test]
fn a_batch_that_meets_nothing_but_conflicts_is_given_up_behind_its_retries() {
    let world = conflicts(usize::from(u8::MAX));
    let items = stream::iter(deliveries(votes_named(2))).boxed();
    let (ended, took) = run_chain(&world, &limits(2, 1), Mode::Flowing, items, None);
    assert!(matches!(ended.failure, Some(Failure::Paused(_))), "{:?}", ended.failure);
    let left = world.faults.lock().expect("no panic while held").len();
    assert_eq!(usize::from(u8::MAX) - left, 20 + 1 + 3, "conflicts, the try behind them, retries");
    assert!(took > Duration::from_secs(1 + 2 + 4), "with the delays of retries: {took:?}");
}
