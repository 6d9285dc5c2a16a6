//! Many votes refused at once: a fault of the database, for which no vote is dead-lettered.

use super::*;

/// Runs batches of ten votes each, one after the other, of which the first `bad` of each batch are
/// refused.
fn run_refusing(batches: usize, bad: usize) -> (World, Option<Failure>) {
    let refused =
        (0..batches).flat_map(|batch| (1..=bad).map(move |n| format!("h{}", 10 * batch + n)));
    let world = World { refused: refused.collect(), ..World::default() };
    let (ended, _) = run_votes(&world, 10, 10 * batches);
    (world, ended.failure)
}

fn dead_lettered(world: &World) -> usize {
    let events = world.events().into_iter();
    events.filter(|event| matches!(event, Event::DeadLettered(_))).count()
}

#[test]
fn three_of_ten_are_dead_lettered_and_four_are_not() {
    let (world, failure) = run_refusing(1, 3);
    assert_eq!((dead_lettered(&world), failure), (3, None));
    let (world, failure) = run_refusing(1, 4);
    assert_eq!(dead_lettered(&world), 0);
    let Some(Failure::Paused(fault)) = failure else { panic!("paused, not {failure:?}") };
    assert!(fault.message.starts_with("4 of a batch of 10 votes refused"), "{fault}");
}

#[test]
fn twenty_in_a_minute_are_dead_lettered_and_no_more() {
    let (world, failure) = run_refusing(6, 3);
    assert_eq!((dead_lettered(&world), failure), (18, None));
    let (world, failure) = run_refusing(7, 3);
    assert_eq!(dead_lettered(&world), 18, "of the seventh batch none");
    assert!(matches!(failure, Some(Failure::Paused(_))), "{failure:?}");
    let events = world.events().into_iter();
    let acked =
        events.filter_map(|event| if let Event::Acked(tag) = event { Some(tag) } else { None });
    assert_eq!(acked.max(), Some(60), "what was refused is not acked, nor what is beside it");
}
