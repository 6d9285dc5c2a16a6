//! Half-open: what passes a trial, and what it leaves settled.

use super::*;

/// A trial over `count` votes, behind which the broker delivers nothing until it is cancelled.
fn run_trial(world: &World, batch_size: usize, count: usize) -> Ended {
    let watched = world.clone();
    let cancelled = async move {
        while !watched.events().contains(&Event::Cancelled) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let end = cancelled.into_stream().filter_map(|()| ready(None));
    let items = stream::iter(deliveries(votes_named(count))).chain(end).boxed();
    run_chain(world, &limits(batch_size, 1), Mode::Trial, items, None).0
}

#[test]
fn a_trial_ends_behind_its_first_commit() {
    let world = World::default();
    let ended = run_trial(&world, 5, 12);
    assert_eq!(ended.failure, None);
    assert_eq!(world.events()[1..3], [Event::Acked(5), Event::Cancelled]);
    assert_eq!(
        world.events().last(),
        Some(&Event::Acked(12)),
        "what was delivered is not given back"
    );
}

#[test]
fn a_trial_is_passed_by_votes_that_are_found_counted() {
    for known in [Known::Replay, Known::Attempt] {
        let world = World { known: Some(known), ..World::default() };
        let ended = run_trial(&world, 2, 2);
        assert!(ended.committed, "{known:?}");
        assert_eq!(world.events()[1..], [Event::Acked(2), Event::Cancelled], "{known:?}");
    }
}

#[test]
fn a_trial_is_not_passed_by_votes_that_were_all_refused() {
    let refused = "h1".to_owned();
    let world = World { refused: vec![refused.clone()], ..World::default() };
    let ended = run_trial(&world, 1, 2);
    assert!(ended.committed, "by the second");
    let stored = Event::Stored(vec!["h2".to_owned()]);
    let events =
        [Event::DeadLettered(refused), Event::Acked(1), stored, Event::Acked(2), Event::Cancelled];
    assert_eq!(world.events(), events);
}
