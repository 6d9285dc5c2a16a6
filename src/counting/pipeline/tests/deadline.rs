//! The one clock of a batch: everything that is tried for it ends at its deadline.

use super::*;

/// A batch of `votes` that meets `class` again and again, each answer taking `hangs`; how it failed, when,
/// and how many transactions were tried.
fn tried(class: Class, votes: usize, hangs: Duration) -> (Option<Failure>, Duration, usize) {
    let world = World { hangs, ..World::default() };
    let many = 10_000;
    world.faults.lock().expect("no panic while held").extend(vec![class; many]);
    let limits = Limits { batch_deadline: Duration::from_secs(60), ..limits(votes, 1) };
    let items = stream::iter(deliveries(votes_named(votes))).boxed();
    let (ended, took) = run_chain(&world, &limits, Mode::Flowing, items, None);
    assert_eq!(world.events(), [], "nothing stored, nothing acked, nothing dead-lettered");
    let left = world.faults.lock().expect("no panic while held").len();
    (ended.failure, took, many - left)
}

fn assert_out_of_time(failure: Option<Failure>) {
    match failure {
        Some(Failure::Paused(fault)) => {
            assert!(fault.message.contains("within the batch's time"), "{fault}");
            assert_eq!(fault.class, Class::Pause);
        }
        other => panic!("{other:?}"),
    }
}

/// Twenty conflicts are outside MAX_RETRY_ATTEMPTS, and each may wait for a lock for 3 s.
#[test]
fn conflicts_end_at_the_deadline() {
    let (failure, took, tries) = tried(Class::Retry, 2, Duration::from_secs(4));
    assert_out_of_time(failure);
    assert!((56..=64).contains(&took.as_secs()), "{took:?}");
    assert!((13..=15).contains(&tries), "{tries}");
}

/// Bisecting a batch of 500 takes up to a thousand transactions.
#[test]
fn halving_ends_at_the_deadline() {
    let (failure, took, tries) = tried(Class::Isolate, 500, Duration::from_secs(9));
    assert_out_of_time(failure);
    assert!((60..=69).contains(&took.as_secs()), "{took:?}");
    assert_eq!(tries, 7);
}

/// Semantics, section 5: a statement that takes too long is halved for as long as there is time.
#[test]
fn a_batch_that_takes_too_long_is_halved_down_to_one_vote() {
    let (failure, took, tries) = tried(Class::Split, 16, Duration::from_secs(10));
    let Some(Failure::Paused(fault)) = failure else { panic!("{failure:?}") };
    assert_eq!(fault.class, Class::Split, "the single vote took too long as well: {fault}");
    assert_eq!((tries, took.as_secs()), (5, 50));
}

/// The clock starts with the first delivery and not with the first transaction.
#[test]
fn waiting_for_other_batches_counts() {
    let world = World { hangs: Duration::from_secs(50), ..World::default() };
    let limits = Limits { batch_deadline: Duration::from_secs(60), ..limits(2, 1) };
    let items = stream::iter(deliveries(votes_named(6))).boxed();
    let (ended, took) = run_chain(&world, &limits, Mode::Flowing, items, None);
    assert_out_of_time(ended.failure);
    let stored: Vec<_> = world.stored();
    assert_eq!(stored.len(), 2, "the third was 100 s old when its turn came");
    assert!((100..101).contains(&took.as_secs()), "{took:?}");
}

#[test]
fn the_confirm_of_a_dead_letter_is_waited_for_until_the_deadline() {
    let refused = vec!["h1".to_owned()];
    let world = World { refused, confirm: Duration::from_secs(600), ..World::default() };
    let limits = Limits { batch_deadline: Duration::from_secs(60), ..limits(2, 1) };
    let items = stream::iter(deliveries(votes_named(2))).boxed();
    let (ended, took) = run_chain(&world, &limits, Mode::Flowing, items, None);
    assert!(matches!(ended.failure, Some(Failure::DeadLetterFailed(_))), "{:?}", ended.failure);
    assert!((60..61).contains(&took.as_secs()), "{took:?}");
    assert!(!ended.acked);
}
