//! Counting and duplicates, on a real PostgreSQL.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sqlx::{AssertSqlSafe, Row};
use time::OffsetDateTime;
use vote_aggregator::adapters::store::PgStore;
use vote_aggregator::model::ports::{Class, Counted, Store, Votes};
use vote_aggregator::model::vote::{self, Choice, Vote};

use crate::support::{Servers, Stage, eventually, message, vote, votes};

async fn count(store: &PgStore, votes: &[Vote]) -> Counted {
    store.count(Votes::new(votes.to_vec())).await.expect("counted")
}

async fn attempts(stage: &Stage<'_>) -> Vec<(String, String, String, String, OffsetDateTime)> {
    let rows = sqlx::query("SELECT * FROM duplicate_attempts ORDER BY vote_hash, citizen_id")
        .fetch_all(&stage.sql)
        .await
        .expect("duplicate_attempts can be read");
    rows.iter()
        .map(|row| {
            (
                row.get("vote_hash"),
                row.get("citizen_id"),
                row.get("law_id"),
                row.get("choice"),
                row.get("attempt_timestamp"),
            )
        })
        .collect()
}

#[tokio::test]
async fn a_batch_adds_its_votes_to_audit_and_totals() {
    let stage = Stage::new(Servers::shared(), "batch").await;
    let store = stage.store().await;
    let batch = votes(0, 100);
    let counted = count(&store, &batch).await;
    assert_eq!((counted.added(), counted.replays, counted.attempts), (100, 0, 0));
    let laws: Vec<&str> = counted.laws.iter().map(|law| law.law_id.as_str()).collect();
    assert_eq!(laws, ["law-000", "law-001", "law-002", "law-003", "law-004"], "in law order");
    assert!(
        counted.laws.iter().all(|law| law.added.map(|votes| votes as i64) == law.totals),
        "first batch"
    );
    stage.assert_counted_exactly(&batch).await;

    let more = count(&store, &votes(100, 10)).await;
    assert!(more.laws.iter().all(|law| law.totals.iter().sum::<i64>() == 22), "totals go on");
}

#[tokio::test]
async fn an_empty_batch_of_replays_changes_nothing() {
    let stage = Stage::new(Servers::shared(), "replays").await;
    let store = stage.store().await;
    let batch = votes(0, 50);
    count(&store, &batch).await;
    let before = stage.results().await;
    for _ in 0..3 {
        let counted = count(&store, &batch).await;
        assert_eq!((counted.added(), counted.replays, counted.attempts), (0, 50, 0));
        assert!(counted.laws.is_empty());
    }
    assert_eq!(stage.results().await, before);
    assert!(attempts(&stage).await.is_empty());
}

#[tokio::test]
async fn inside_a_batch_the_first_delivery_of_a_hash_counts() {
    let stage = Stage::new(Servers::shared(), "inbatch").await;
    let store = stage.store().await;
    let first = vote(1, "law-a", Choice::Oui);
    let other_choice = Vote { choice: Choice::Non, ..first.clone() };
    let other_law = Vote { law_id: "law-b".into(), ..first.clone() };
    let alone = vote(0, "law-b", Choice::Non);
    let batch = [
        first.clone(),
        other_choice.clone(),
        first.clone(),
        alone.clone(),
        other_law,
        other_choice,
    ];
    let counted = count(&store, &batch).await;
    assert_eq!((counted.added(), counted.replays, counted.attempts), (2, 1, 3));
    stage.assert_counted_exactly(&[first, alone]).await;
    assert_eq!(attempts(&stage).await.len(), 2, "the repeated attempt adds no second row");
}

#[tokio::test]
async fn each_differing_field_makes_an_attempt_recorded_with_its_own_content() {
    let stage = Stage::new(Servers::shared(), "attempts").await;
    let store = stage.store().await;
    let stored = vote(7, "law-a", Choice::Oui);
    count(&store, std::slice::from_ref(&stored)).await;
    let microsecond = time::Duration::MICROSECOND;
    let differing = [
        Vote { choice: Choice::Non, ..stored.clone() },
        Vote { law_id: "law-z".into(), ..stored.clone() },
        Vote { citizen_id: "somebody-else".into(), ..stored.clone() },
        Vote { timestamp: stored.timestamp + microsecond, ..stored.clone() },
    ];
    for attempt in &differing {
        let counted = count(&store, std::slice::from_ref(attempt)).await;
        assert_eq!((counted.added(), counted.replays, counted.attempts), (0, 0, 1));
        // The same attempt once more, as a redelivery brings it.
        let counted = count(&store, std::slice::from_ref(attempt)).await;
        assert_eq!((counted.added(), counted.replays, counted.attempts), (0, 0, 1));
    }
    stage.assert_counted_exactly(std::slice::from_ref(&stored)).await;
    let mut expected: Vec<_> = differing
        .into_iter()
        .map(|vote| {
            let texts = [vote.vote_hash, vote.citizen_id, vote.law_id].map(String::from);
            let [vote_hash, citizen_id, law_id] = texts;
            (vote_hash, citizen_id, law_id, vote.choice.as_str().to_owned(), vote.timestamp)
        })
        .collect();
    let mut recorded = attempts(&stage).await;
    expected.sort();
    recorded.sort();
    assert_eq!(recorded, expected);
}

/// A batch that brings an attempt first and the stored vote again behind it: the second equals
/// what is stored, whatever came before it in the batch.
#[tokio::test]
async fn a_duplicate_is_compared_with_the_stored_vote_and_not_with_its_neighbour() {
    let stage = Stage::new(Servers::shared(), "neighbour").await;
    let store = stage.store().await;
    let stored = vote(1, "law-a", Choice::Oui);
    let attempt = Vote { choice: Choice::Non, ..stored.clone() };
    count(&store, std::slice::from_ref(&stored)).await;
    let counted = count(&store, &[attempt, stored.clone()]).await;
    assert_eq!((counted.added(), counted.replays, counted.attempts), (0, 1, 1));
    assert_eq!(attempts(&stage).await.len(), 1);
}

/// The statement's snapshot does not see a row that another transaction commits while the insert
/// waits for it. What differs from that row is an attempt all the same.
#[tokio::test]
async fn a_conflict_that_the_snapshot_does_not_see_is_classified_all_the_same() {
    let stage = Stage::new(Servers::shared(), "snapshot").await;
    let store = stage.store().await;
    let mine = vote(1, "law-a", Choice::Oui);
    let replayed = vote(2, "law-a", Choice::Oui);
    let theirs = Vote { citizen_id: "the-other-one".into(), ..mine.clone() };

    let mut other = stage.sql.begin().await.expect("a transaction");
    for vote in [&theirs, &replayed] {
        sqlx::query("INSERT INTO vote_audit VALUES ($1, $2, $3, $4, $5)")
            .bind(vote.vote_hash.as_str())
            .bind(vote.citizen_id.as_str())
            .bind(vote.law_id.as_str())
            .bind(vote.choice.as_str())
            .bind(vote.timestamp)
            .execute(&mut *other)
            .await
            .expect("inserted, not committed");
    }
    let waiting = tokio::spawn({
        let (store, batch) = (store.clone(), vec![mine.clone(), replayed.clone()]);
        async move { store.count(Votes::new(batch)).await }
    });
    eventually("the batch waits for the other transaction", async || {
        stage
            .number(
                "SELECT count(*) FROM pg_stat_activity \
                 WHERE datname = current_database() AND wait_event_type = 'Lock'",
            )
            .await
            == 1
    })
    .await;
    other.commit().await.expect("committed");

    let counted = waiting.await.expect("no panic").expect("counted");
    assert_eq!((counted.added(), counted.replays, counted.attempts), (0, 1, 1));
    assert_eq!(attempts(&stage).await.len(), 1, "the attempt is not lost");
}

#[tokio::test]
async fn a_batch_with_one_refused_vote_counts_nothing_and_says_so_without_the_vote() {
    let stage = Stage::new(Servers::shared(), "refused").await;
    let store = stage.store().await;
    sqlx::raw_sql("ALTER TABLE vote_audit ADD CONSTRAINT no_law_x CHECK (law_id <> 'law-x')")
        .execute(&stage.sql)
        .await
        .expect("a constraint");
    let mut batch = votes(0, 20);
    batch.push(vote(99, "law-x", Choice::Oui));
    let fault = store.count(Votes::new(batch)).await.expect_err("refused");
    assert_eq!((fault.class, fault.sqlstate.as_deref()), (Class::Isolate, Some("23514")));
    assert!(fault.message.contains("no_law_x"), "{fault}");
    assert!(!fault.to_string().contains("citizen") && !fault.to_string().contains("hash-"));
    assert_eq!(stage.number("SELECT count(*) FROM vote_audit").await, 0);
    assert_eq!(stage.number("SELECT count(*) FROM vote_results").await, 0);
    // The connection went back in good order.
    assert_eq!(count(&store, &votes(0, 20)).await.added(), 20);
}

/// A trigger may say anything, under any code: what is not the server's own stays out of the log.
#[tokio::test]
async fn what_a_trigger_says_of_a_vote_is_not_passed_on() {
    let stage = Stage::new(Servers::shared(), "says").await;
    let store = stage.store().await;
    let says = "CREATE FUNCTION says() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN \
        RAISE EXCEPTION '% votes %', NEW.citizen_id, NEW.choice USING ERRCODE = TG_ARGV[0]; END$$";
    sqlx::raw_sql(says).execute(&stage.sql).await.expect("a function");
    for (code, class) in [
        ("P0001", Class::Isolate),
        ("54000", Class::Isolate),
        ("23514", Class::Isolate),
        ("P0002", Class::Pause),
        ("ZZ001", Class::Pause),
    ] {
        let trigger = format!(
            "DROP TRIGGER IF EXISTS says ON vote_audit; \
             CREATE TRIGGER says BEFORE INSERT ON vote_audit FOR EACH ROW \
             EXECUTE FUNCTION says('{code}')"
        );
        sqlx::raw_sql(AssertSqlSafe(trigger)).execute(&stage.sql).await.expect("a trigger");
        let fault = store.count(Votes::new(votes(0, 1))).await.expect_err("refused");
        assert_eq!((fault.class, fault.sqlstate.as_deref()), (class, Some(code)));
        assert!(!fault.message.contains("votes"), "{fault}");
    }
}

#[tokio::test]
async fn a_lock_that_is_not_given_up_is_a_conflict_and_not_a_wait_for_ever() {
    let stage = Stage::new(Servers::shared(), "locked").await;
    let store = stage.store().await;
    let mut other = stage.sql.begin().await.expect("a transaction");
    sqlx::raw_sql("LOCK TABLE vote_audit").execute(&mut *other).await.expect("locked");
    let fault = store.count(Votes::new(votes(0, 5))).await.expect_err("locked out");
    assert_eq!((fault.class, fault.sqlstate.as_deref()), (Class::Retry, Some("55P03")));
    other.rollback().await.expect("unlocked");
    assert_eq!(count(&store, &votes(0, 5)).await.added(), 5);
}

#[tokio::test]
async fn a_connection_that_the_server_ends_costs_one_try_and_counts_nothing_twice() {
    let stage = Stage::new(Servers::shared(), "terminated").await;
    let store = stage.store().await;
    count(&store, &votes(0, 5)).await;
    let mut other = stage.sql.begin().await.expect("a transaction");
    sqlx::raw_sql("LOCK TABLE vote_audit").execute(&mut *other).await.expect("locked");
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.count(Votes::new(votes(0, 10))).await }
    });
    let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                 WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("the waiting backend is ended", async || stage.number(ended).await == 1).await;
    let fault = waiting.await.expect("no panic").expect_err("ended by the server");
    assert_eq!(fault.class, Class::Reconnect, "{fault}");
    other.rollback().await.expect("unlocked");

    // Whatever else was in the pool is not trusted: the very next try succeeds.
    let counted = count(&store, &votes(0, 10)).await;
    assert_eq!((counted.added(), counted.replays), (5, 5));
    stage.assert_counted_exactly(&votes(0, 10)).await;
}

#[tokio::test]
async fn overlapping_batches_at_the_same_time_count_each_vote_once_without_deadlock() {
    let stage = Stage::new(Servers::shared(), "overlap").await;
    let store = stage.store().await;
    let all = votes(0, 400);
    let mut rng = fastrand::Rng::with_seed(11);
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let mut shuffled = all.clone();
        rng.shuffle(&mut shuffled);
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            let mut added = 0;
            for batch in shuffled.chunks(50) {
                added += count(&store, batch).await.added();
            }
            added
        }));
    }
    let mut added = 0;
    for task in tasks {
        added += task.await.expect("no panic");
    }
    assert_eq!(added, 400);
    stage.assert_counted_exactly(&all).await;
    let deadlocks =
        stage.number("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()");
    assert_eq!(deadlocks.await, 0);
}

#[tokio::test]
async fn timestamps_are_rounded_as_postgresql_rounds_them() {
    let stage = Stage::migrated(Servers::shared(), "rounding").await;
    let mut rng = fastrand::Rng::with_seed(5);
    for _ in 0..300 {
        let fraction = rng.u32(..1_000_000_000);
        let text = format!(
            "2025-11-14T12:34:56.{fraction:09}{}",
            ["Z", "+05:30", "-03:00"][rng.usize(..3)]
        );
        let theirs: OffsetDateTime = sqlx::query_scalar("SELECT $1::text::timestamptz")
            .bind(&text)
            .fetch_one(&stage.sql)
            .await
            .expect("a timestamp to PostgreSQL, too");
        let mut body: serde_json::Value =
            serde_json::from_slice(&message(&vote(1, "law-a", Choice::Oui))).expect("JSON");
        body["timestamp"] = text.as_str().into();
        let body = body.to_string();
        let ours = vote::decode(body.as_bytes(), 16_384).expect("a valid vote").timestamp;
        assert_eq!(ours, theirs, "{text}");
    }
}

/// Whatever the order, the splitting into batches and the repetition of deliveries: votes without
/// a conflicting hash come to the same audit and the same totals.
#[test]
fn counting_is_the_same_under_permutation_split_and_repetition() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (stage, store) = runtime.block_on(async {
        let stage = Stage::new(Servers::shared(), "algebra").await;
        let store = stage.store().await;
        (stage, store)
    });
    let deliveries = vec((0_u64..40, 1_usize..4), 1..60);
    let mut runner =
        TestRunner::new(Config { cases: 40, failure_persistence: None, ..Config::default() });
    let law = (deliveries, any::<u64>(), vec(1_usize..20, 1..12));
    runner
        .run(&law, |(deliveries, order, sizes)| {
            runtime.block_on(async {
                stage.empty().await;
                let mut stream: Vec<Vote> = deliveries
                    .iter()
                    .flat_map(|(number, times)| std::iter::repeat_n(*number, *times))
                    .flat_map(|number| votes(number, 1))
                    .collect();
                fastrand::Rng::with_seed(order).shuffle(&mut stream);

                let delivered = stream.len() as u64;
                let mut sum = Counted::default();
                let mut rest = stream.as_slice();
                for size in sizes.iter().cycle() {
                    let (batch, later) = rest.split_at((*size).min(rest.len()));
                    if batch.is_empty() {
                        break;
                    }
                    sum.absorb(count(&store, batch).await);
                    rest = later;
                }
                let distinct: BTreeMap<_, _> =
                    stream.iter().map(|vote| (vote.vote_hash.clone(), vote.clone())).collect();
                let distinct: Vec<Vote> = distinct.into_values().collect();
                assert_eq!(sum.added(), distinct.len() as u64);
                assert_eq!(sum.replays, delivered - sum.added());
                assert_eq!(sum.attempts, 0);
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
    let execute = |sql: &'static str| sqlx::raw_sql(sql).execute(&stage.sql);
    // What an ANALYZE would repair, the test must not wait for.
    execute("ALTER TABLE vote_audit SET (autovacuum_enabled = off)").await.expect("altered");
    let store = stage.prepare(&[("POSTGRES_MAX_CONNECTIONS", "1")]).await.expect("prepared");
    let repeated = votes(0, 10);
    for _ in 0..10 {
        count(&store, &repeated).await;
    }
    execute(
        "INSERT INTO vote_audit SELECT 'more-' || n, 'c', 'law-001', 'oui', now() \
         FROM generate_series(1, 50000) AS n",
    )
    .await
    .expect("many rows");
    assert_eq!(count(&store, &repeated).await.replays, 10);
    // A session that ends leaves its statistics.
    store.close().await;
    let sessions = "SELECT count(*) FROM pg_stat_activity \
                    WHERE datname = current_database() AND application_name = 'vote-aggregator'";
    eventually("the session has ended", async || stage.number(sessions).await == 0).await;
    let read = "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'vote_audit'";
    let read = stage.number(read).await;
    assert!(read < 50_000, "the whole table was read: {read} rows");
}
