//! What batching keeps, whatever the sizes.

use super::*;

proptest! {
    /// Batching loses, repeats and reorders nothing, whatever the sizes, the gaps between
    /// deliveries and the malformed ones among them; acks move forward, cover only what is stored
    /// or rejected, and in the end all.
    #[test]
    fn every_vote_is_stored_once_in_order_and_acked_behind_its_batch(
        good in proptest::collection::vec(any::<bool>(), 1..120),
        gaps in proptest::collection::vec(0_u64..1500, 1..8),
        batch_size in 1_usize..12,
        in_flight in 1_usize..4,
        most_acked in 1_u64..15,
    ) {
        let bodies: Vec<Vec<u8>> = good
            .iter()
            .enumerate()
            .map(|(n, good)| if *good { body(&format!("h{}", n + 1)) } else { b"bad".to_vec() })
            .collect();
        let paced = stream::iter(deliveries(bodies).into_iter().zip(gaps.into_iter().cycle()))
            .then(|(delivery, gap)| async move {
                tokio::time::sleep(Duration::from_millis(gap)).await;
                delivery
            })
            .boxed();
        let world = World::default();
        let limits = Limits { most_acked, ..limits(batch_size, in_flight) };
        let (ended, _) = run_chain(&world, &limits, Mode::Flowing, paced, None);
        prop_assert_eq!(ended.failure, None);

        let stored = world.stored();
        prop_assert!(stored.iter().all(|batch| (1..=batch_size).contains(&batch.len())));
        // Batches in flight may finish out of order; within a batch and in all, nothing is missing.
        let mut all: Vec<String> = stored.concat();
        all.sort_by_key(|hash| hash[1..].parse::<u64>().unwrap_or_default());
        let expected: Vec<String> = (1..=good.len())
            .filter(|n| good[n - 1])
            .map(|n| format!("h{n}"))
            .collect();
        prop_assert_eq!(&all, &expected);
        if in_flight == 1 {
            prop_assert_eq!(&stored.concat(), &expected, "in order of arrival");
        }

        let mut settled: BTreeMap<DeliveryTag, bool> = BTreeMap::new();
        let mut acked = 0;
        for event in world.events() {
            match event {
                Event::Stored(hashes) => settled.extend(
                    hashes.iter().map(|hash| (hash[1..].parse().unwrap_or_default(), true)),
                ),
                Event::Rejected(tag) => {
                    prop_assert!(settled.insert(tag, false).is_none(), "settled once");
                }
                Event::Acked(tag) => {
                    prop_assert!(tag > acked, "forward");
                    prop_assert_eq!(settled.get(&tag), Some(&true), "names a stored one");
                    prop_assert!((1..=tag).all(|tag| settled.contains_key(&tag)), "no gap");
                    let covered = settled.range(acked + 1..=tag).filter(|(_, stored)| **stored);
                    prop_assert!(covered.count() as u64 <= most_acked, "few at a time");
                    acked = tag;
                }
                Event::DeadLettered(_) | Event::Cancelled => {}
            }
        }
        let last_good = (1..=good.len()).rev().find(|n| good[n - 1]).unwrap_or_default() as u64;
        prop_assert_eq!(acked, last_good);
    }
}
