//! Counting and duplicates, on a real PostgreSQL.

use std::collections::BTreeSet;

use futures::future::join_all;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use time::OffsetDateTime;
use vote_aggregator::adapters::store::PgStore;
use vote_aggregator::model::ports::{Class, Store, Votes};
use vote_aggregator::model::vote::{self, Choice, Vote};

use crate::support::tables::{self, ATTEMPTS};
use crate::support::{FORBID_LAW_X, Servers, Stage, WAITS, insert, login, vote, votes};

/// How many votes of a batch were added, were replays, and were attempts.
async fn count(store: &PgStore, votes: &[Vote]) -> (u64, u64, u64) {
    let counted = store.count(Votes::new(votes.to_vec())).await.expect("counted");
    (counted.added(), counted.replays, counted.attempts)
}

async fn attempts(stage: &Stage<'_>) -> Vec<Vote> {
    tables::votes(&stage.sql, ATTEMPTS).await.expect("duplicate_attempts can be read")
}

#[tokio::test]
async fn a_batch_adds_its_votes_once_to_audit_and_totals() {
    let (stage, store) = Stage::with_store("batch").await;
    let batch = votes(0, 100);
    let counted = store.count(Votes::new(batch.clone())).await.expect("counted");
    assert_eq!((counted.added(), counted.replays, counted.attempts), (100, 0, 0));
    let laws: Vec<&str> = counted.laws.iter().map(|law| law.law_id.as_str()).collect();
    assert_eq!(laws, ["law-000", "law-001", "law-002", "law-003", "law-004"], "in law order");
    assert!(counted.laws.iter().all(|law| law.added.map(|votes| votes as i64) == law.totals));
    stage.assert_counted_exactly(&batch).await;

    let replayed = store.count(Votes::new(batch)).await.expect("counted");
    assert_eq!((replayed.replays, replayed.attempts, replayed.laws), (100, 0, vec![]));
    assert_eq!(attempts(&stage).await, []);
    let more = store.count(Votes::new(votes(100, 10))).await.expect("counted");
    assert!(more.laws.iter().all(|law| law.totals.iter().sum::<i64>() == 22), "{more:?}");
}

#[tokio::test]
async fn inside_a_batch_the_first_delivery_of_a_hash_counts() {
    let (stage, store) = Stage::with_store("inbatch").await;
    let first = vote(1, "law-a", Choice::Oui);
    let other_choice = Vote { choice: Choice::Non, ..first.clone() };
    let other_law = Vote { law_id: "law-b".into(), ..first.clone() };
    let alone = vote(0, "law-b", Choice::Non);
    let batch = [&first, &other_choice, &first, &alone, &other_law, &other_choice].map(Vote::clone);
    assert_eq!(count(&store, &batch).await, (2, 1, 3));
    stage.assert_counted_exactly(&[first, alone]).await;
    assert_eq!(attempts(&stage).await.len(), 2, "the repeated attempt adds no second row");
}

/// Each attempt comes before the stored vote in its batch: both are compared with what is stored,
/// and not with each other.
#[tokio::test]
async fn each_differing_field_makes_an_attempt_recorded_with_its_own_content() {
    let (stage, store) = Stage::with_store("attempts").await;
    let stored = vote(7, "law-a", Choice::Oui);
    count(&store, std::slice::from_ref(&stored)).await;
    let mut differing = [
        Vote { choice: Choice::Non, ..stored.clone() },
        Vote { law_id: "law-z".into(), ..stored.clone() },
        Vote { citizen_id: "another-citizen".into(), ..stored.clone() },
        Vote { timestamp: stored.timestamp + time::Duration::MICROSECOND, ..stored.clone() },
    ];
    for attempt in &differing {
        // A redelivery brings the same attempt once more.
        for _ in 0..2 {
            assert_eq!(count(&store, &[attempt.clone(), stored.clone()]).await, (0, 1, 1));
        }
    }
    stage.assert_counted_exactly(&[stored]).await;
    let mut recorded = attempts(&stage).await;
    differing.sort();
    recorded.sort();
    assert!(recorded == differing, "{recorded:?}");
}

/// The statement's snapshot does not see a row that another transaction commits while the insert
/// waits for it. What differs from that row is an attempt all the same.
#[tokio::test]
async fn a_conflict_that_the_snapshot_does_not_see_is_classified_all_the_same() {
    let (stage, store) = Stage::with_store("snapshot").await;
    let mine = vote(1, "law-a", Choice::Oui);
    let replayed = vote(2, "law-a", Choice::Oui);
    let theirs = Vote { citizen_id: "another-citizen".into(), ..mine.clone() };

    let other = stage.hold(&[&theirs, &replayed].map(insert).join("; ")).await;
    let batch = [mine, replayed];
    let (counted, ()) = futures::join!(count(&store, &batch), async {
        stage.until_sessions(WAITS, 1).await;
        other.commit().await.expect("committed");
    });
    assert_eq!(counted, (0, 1, 1));
    assert_eq!(attempts(&stage).await.len(), 1, "the attempt is not lost");
}

#[tokio::test]
async fn a_batch_with_one_refused_vote_counts_nothing_and_the_error_does_not_show_the_vote() {
    let (stage, store) = Stage::with_store("refused").await;
    stage.execute(FORBID_LAW_X).await;
    let mut batch = votes(0, 20);
    batch.push(vote(99, "law-x", Choice::Oui));
    let fault = store.count(Votes::new(batch)).await.expect_err("refused");
    assert_eq!((fault.class, fault.sqlstate.as_deref()), (Class::Isolate, Some("23514")));
    assert!(fault.message.contains("no_law_x"), "{fault}");
    assert!(!fault.to_string().contains("citizen") && !fault.to_string().contains("hash-"));
    stage.assert_counted_exactly(&[]).await;
    // The connection went back to the pool in good order.
    assert_eq!(count(&store, &votes(0, 20)).await, (20, 0, 0));
}

/// A trigger may raise any message under any code: only the server's own messages are logged.
#[tokio::test]
async fn what_a_trigger_says_of_a_vote_is_not_passed_on() {
    let (stage, store) = Stage::with_store("says").await;
    let says = "CREATE FUNCTION says() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN \
        RAISE EXCEPTION '% votes %', NEW.citizen_id, NEW.choice USING ERRCODE = TG_ARGV[0]; END$$";
    stage.execute(says).await;
    for (code, class) in [
        ("P0001", Class::Isolate),
        ("54000", Class::Isolate),
        ("23514", Class::Isolate),
        ("P0002", Class::Pause),
        ("ZZ001", Class::Pause),
    ] {
        let trigger = format!(
            "CREATE OR REPLACE TRIGGER says BEFORE INSERT ON vote_audit FOR EACH ROW \
             EXECUTE FUNCTION says('{code}')"
        );
        stage.execute(&trigger).await;
        let fault = store.count(Votes::new(votes(0, 1))).await.expect_err("refused");
        assert_eq!((fault.class, fault.sqlstate.as_deref()), (class, Some(code)));
        assert!(!fault.message.contains("votes"), "{fault}");
    }
}

#[tokio::test]
async fn a_connection_that_the_server_ends_costs_one_attempt_and_counts_nothing_twice() {
    let (stage, store) = Stage::with_store("terminated").await;
    count(&store, &votes(0, 5)).await;
    let lock = stage.hold("LOCK TABLE vote_audit").await;
    let counting = store.count(Votes::new(votes(0, 10)));
    let (counted, ()) = futures::join!(counting, stage.until_terminated(WAITS));
    let fault = counted.expect_err("ended by the server");
    assert_eq!(fault.class, Class::Reconnect, "{fault}");
    drop(lock);

    // No other connection of the pool is trusted: the next attempt succeeds.
    assert_eq!(count(&store, &votes(0, 10)).await, (5, 5, 0));
    stage.assert_counted_exactly(&votes(0, 10)).await;
}

/// PostgreSQL 17 and later can end a transaction that takes too long (25P04), and its connection with it.
#[tokio::test]
async fn a_transaction_timeout_of_the_role_counts_nothing_and_a_smaller_batch_is_tried() {
    let stage = Stage::migrated(Servers::shared(), "transactiontimeout").await;
    if stage.number("SELECT current_setting('server_version_num')::int8").await < 170_000 {
        return;
    }
    let role = stage.role("hurried", "SUPERUSER").await;
    stage.execute(&format!("ALTER ROLE {role} SET transaction_timeout = '500ms'")).await;
    let store = stage.prepare(&login(&role)).await.expect("prepared");
    let lock = stage.hold("LOCK TABLE vote_audit").await;
    let fault = store.count(Votes::new(votes(0, 10))).await.expect_err("ended by the server");
    assert_eq!((fault.class, fault.sqlstate.as_deref()), (Class::Split, Some("25P04")));
    drop(lock);
    assert_eq!(count(&store, &votes(0, 10)).await, (10, 0, 0));
    stage.assert_counted_exactly(&votes(0, 10)).await;
}

#[tokio::test]
async fn overlapping_batches_at_the_same_time_count_each_vote_once_without_deadlock() {
    let (stage, store) = Stage::with_store("overlap").await;
    let all = votes(0, 400);
    let mut rng = fastrand::Rng::with_seed(11);
    let publishers = (0..8).map(|_| {
        let mut shuffled = all.clone();
        rng.shuffle(&mut shuffled);
        let store = &store;
        async move {
            let mut added = 0;
            for batch in shuffled.chunks(50) {
                added += count(store, batch).await.0;
            }
            added
        }
    });
    assert_eq!(join_all(publishers).await.into_iter().sum::<u64>(), 400);
    stage.assert_counted_exactly(&all).await;
    stage.assert_no_deadlock().await;
}

#[tokio::test]
async fn timestamps_are_rounded_as_postgresql_rounds_them() {
    let stage = Stage::new(Servers::shared(), "rounding").await;
    let mut rng = fastrand::Rng::with_seed(5);
    for _ in 0..300 {
        let (fraction, zone) = (rng.u32(..1_000_000_000), rng.usize(..3));
        let zone = ["Z", "+05:30", "-03:00"][zone];
        let text = format!("2025-11-14T12:34:56.{fraction:09}{zone}");
        let cast = sqlx::query_scalar("SELECT $1::text::timestamptz").bind(&text);
        let theirs: Option<OffsetDateTime> = cast.fetch_one(&stage.sql).await.ok();
        let body = format!(
            r#"{{"vote_hash":"h","citizen_id":"c","law_id":"l","choice":"oui","timestamp":"{text}"}}"#
        );
        let ours = vote::decode(body.as_bytes(), 16_384).expect("a valid vote").timestamp;
        assert_eq!(Some(ours), theirs, "{text}");
    }
}

/// Whatever the order, the splitting into batches and the repetition of deliveries: votes without
/// a conflicting hash come to the same audit and the same totals.
#[test]
fn counting_is_the_same_under_permutation_split_and_repetition() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (stage, store) = runtime.block_on(Stage::with_store("algebra"));
    let deliveries = vec((0_u64..40, 1_usize..4), 1..60);
    let mut runner =
        TestRunner::new(Config { cases: 40, failure_persistence: None, ..Config::default() });
    let law = (deliveries, any::<u64>(), vec(1_usize..20, 1..12));
    runner
        .run(&law, |(deliveries, order, sizes)| {
            runtime.block_on(async {
                stage.empty().await;
                let repeated = |(number, times)| vec![votes(number, 1).remove(0); times];
                let mut stream: Vec<Vote> = deliveries.into_iter().flat_map(repeated).collect();
                fastrand::Rng::with_seed(order).shuffle(&mut stream);

                let (mut added, mut replays) = (0, 0);
                let mut rest = stream.as_slice();
                for size in sizes.iter().cycle() {
                    let (batch, later) = rest.split_at((*size).min(rest.len()));
                    if batch.is_empty() {
                        break;
                    }
                    let counted = count(&store, batch).await;
                    assert_eq!(counted.2, 0, "attempts");
                    added += counted.0;
                    replays += counted.1;
                    rest = later;
                }
                let distinct = stream.iter().cloned().collect::<BTreeSet<_>>();
                let distinct = Vec::from_iter(distinct);
                assert_eq!(added, distinct.len() as u64);
                assert_eq!(added + replays, stream.len() as u64);
                stage.assert_counted_exactly(&distinct).await;
            });
            Ok(())
        })
        .expect("the law holds");
}

/// A plan that was made on an empty table and kept would read the whole audit for each batch with a
/// repeat.
#[tokio::test]
async fn repeats_are_looked_up_by_the_index_however_the_audit_has_grown() {
    let stage = Stage::migrated(Servers::shared(), "plans").await;
    // An ANALYZE would repair the plan; the test must not depend on when it runs.
    stage.execute("ALTER TABLE vote_audit SET (autovacuum_enabled = off)").await;
    let store = stage.prepare(&[("POSTGRES_MAX_CONNECTIONS", "1")]).await.expect("prepared");
    let repeated = votes(0, 10);
    for _ in 0..10 {
        count(&store, &repeated).await;
    }
    let insert = "INSERT INTO vote_audit SELECT 'more-' || n, 'c', 'law-001', 'oui', now() \
                  FROM generate_series(1, 50000) AS n";
    stage.execute(insert).await;
    assert_eq!(count(&store, &repeated).await.1, 10);
    // A session leaves its statistics behind when it ends.
    store.close().await;
    stage.until_sessions("application_name = 'vote-aggregator'", 0).await;
    let read = "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'vote_audit'";
    let read = stage.number(read).await;
    assert!(read < 50_000, "the whole table was read: {read} rows");
}
