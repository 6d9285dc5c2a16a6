//! Deadlocks and serialization failures: outside the retries, and with a limit.

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
