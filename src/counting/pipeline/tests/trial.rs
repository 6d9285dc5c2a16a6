//! Half-open: what passes a trial, and what it leaves settled.

use super::*;

/// A trial over `items`, behind which the broker delivers nothing until it is cancelled.
fn try_items(world: &World, batch_size: usize, items: Vec<Vec<u8>>) -> (Ended, Duration) {
    let watched = world.clone();
    let cancelled = async move {
        while !watched.events().contains(&Event::Cancelled) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let end = cancelled.into_stream().filter_map(|()| ready(None));
    let items = stream::iter(deliveries(items)).chain(end).boxed();
    run_chain(world, &limits(batch_size, 1), Mode::HalfOpen, items, None)
}

fn run_trial(world: &World, batch_size: usize, count: usize) -> Ended {
    try_items(world, batch_size, votes_named(count)).0
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

#[test]
fn a_trial_ends_once_the_queue_proves_empty() {
    let world = World::default();
    let (ended, took) = try_items(&world, 5, Vec::new());
    assert_eq!((ended.failure, ended.committed, ended.empty), (None, false, true));
    assert!((5..6).contains(&took.as_secs()), "{took:?}");
}

/// Malformed messages prove nothing about the store, and do not keep the chain half-open.
#[test]
fn a_queue_of_malformed_messages_proves_empty_behind_them() {
    let world = World::default();
    let (ended, took) = try_items(&world, 5, vec![b"{".to_vec(); 3]);
    assert_eq!((ended.failure, ended.committed, ended.empty), (None, false, true));
    assert_eq!(world.events()[..3], [1, 2, 3].map(Event::Rejected));
    assert!((5..6).contains(&took.as_secs()), "{took:?}");
}

/// Any publisher can send one malformed message every few seconds.
#[test]
fn a_trickle_of_malformed_messages_does_not_keep_the_chain_half_open() {
    let world = World::default();
    let watched = world.clone();
    let trickle = stream::unfold(1, move |tag| {
        let watched = watched.clone();
        async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            let cancelled = watched.events().contains(&Event::Cancelled);
            (!cancelled).then(|| (Ok(Delivery::new(tag, b"{".to_vec())), tag + 1))
        }
    });
    let (ended, took) = run_chain(&world, &limits(5, 1), Mode::HalfOpen, trickle.boxed(), None);
    assert_eq!((ended.failure, ended.empty), (None, true));
    assert!((5..10).contains(&took.as_secs()), "{took:?}");
}

#[test]
fn a_batch_that_takes_its_time_is_no_empty_queue() {
    let world = World { hangs: Duration::from_secs(60), ..World::default() };
    let (ended, took) = try_items(&world, 5, votes_named(5));
    assert_eq!((ended.failure, ended.committed, ended.empty), (None, true, false));
    assert!((60..61).contains(&took.as_secs()), "{took:?}");
}
