//! The one clock of a batch: everything that is tried for it ends at its deadline.

use super::*;

/// Runs batches of this size with a deadline of a minute.
fn run_a_minute(world: &World, batch_size: usize, votes: usize) -> (Ended, Duration) {
    let limits = Limits { batch_deadline: Duration::from_secs(60), ..limits(batch_size, 1) };
    let items = stream::iter(deliveries(votes_named(votes))).boxed();
    run_chain(world, &limits, Mode::Flowing, items, None)
}

/// A batch of `votes` that meets `class` each time, after `hangs`; its last fault, when it failed, and how
/// many transactions were tried.
fn tried(class: Class, votes: usize, hangs: Duration) -> (Fault, Duration, usize) {
    let world = World { hangs, ..World::failing([class; 10_000]) };
    let (ended, took) = run_a_minute(&world, votes, votes);
    assert_eq!(world.events(), [], "nothing stored, nothing acked, nothing dead-lettered");
    (assert_paused(&ended).clone(), took, 10_000 - world.faults_left())
}

fn assert_out_of_time(fault: &Fault) {
    assert!(fault.message.contains("within the batch's time"), "{fault}");
    assert_eq!(fault.class, Class::Pause);
}

/// Twenty conflicts are outside MAX_RETRY_ATTEMPTS, and each may wait for a lock for 3 s.
#[test]
fn conflicts_end_at_the_deadline() {
    let (fault, took, tries) = tried(Class::Retry, 2, Duration::from_secs(4));
    assert_out_of_time(&fault);
    assert!((56..=64).contains(&took.as_secs()), "{took:?}");
    assert!((13..=15).contains(&tries), "{tries}");
}

/// Bisecting a batch of 500 takes up to a thousand transactions.
#[test]
fn halving_ends_at_the_deadline() {
    let (fault, took, tries) = tried(Class::Isolate, 500, Duration::from_secs(9));
    assert_out_of_time(&fault);
    assert!((60..=69).contains(&took.as_secs()), "{took:?}");
    assert_eq!(tries, 7);
}

/// Semantics, section 5: a statement that takes too long is halved for as long as there is time.
#[test]
fn a_batch_that_takes_too_long_is_halved_down_to_one_vote() {
    let (fault, took, tries) = tried(Class::Split, 16, Duration::from_secs(10));
    assert_eq!(fault.class, Class::Split, "the single vote took too long as well: {fault}");
    assert_eq!((tries, took.as_secs()), (5, 50));
}

/// The clock starts with the first delivery and not with the first transaction.
#[test]
fn waiting_for_other_batches_counts() {
    let world = World { hangs: Duration::from_secs(50), ..World::default() };
    let (ended, took) = run_a_minute(&world, 2, 6);
    assert_out_of_time(assert_paused(&ended));
    assert_eq!(world.stored().len(), 2, "the third was 100 s old when its turn came");
    assert!((100..101).contains(&took.as_secs()), "{took:?}");
}

#[test]
fn the_confirm_of_a_dead_letter_is_waited_for_until_the_deadline() {
    let refused = vec!["h1".to_owned()];
    let world = World { refused, confirm: Duration::from_secs(600), ..World::default() };
    let (ended, took) = run_a_minute(&world, 2, 2);
    assert!(matches!(ended.failure, Some(Failure::DeadLetterFailed(_))), "{:?}", ended.failure);
    assert!((60..61).contains(&took.as_secs()), "{took:?}");
    assert!(!ended.acked);
}
