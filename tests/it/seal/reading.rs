//! Which rows a round finds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sqlx::postgres::PgPool;
use tokio::sync::Barrier;
use vote_aggregator::model::ports::{Insert, Store, Votes};
use vote_aggregator::model::vote::Vote;
use vote_aggregator::operator::seal::{Lineage, RoundError, round};

use super::Sealed;
use crate::support::{Servers, Stage, eventually, votes};

const COUNT: &str = include_str!("../../../src/adapters/store/count.sql");
const WRITERS: u64 = 4;
const BATCHES: u64 = 60;

async fn count(stage: &Stage<'_>, votes: &[Vote]) {
    let store = stage.store().await;
    store.count(Votes::new(votes.to_vec()).inserted(Insert::OnConflict)).await.expect("counted");
}

/// Counts in a transaction that is left open.
async fn count_in(connection: &mut sqlx::PgConnection, votes: &[Vote]) {
    let texts = |of: fn(&Vote) -> &str| votes.iter().map(|vote| of(vote).to_owned()).collect();
    let [hashes, citizens, laws, choices]: [Vec<String>; 4] = [
        texts(|vote| &vote.vote_hash),
        texts(|vote| &vote.citizen_id),
        texts(|vote| &vote.law_id),
        texts(|vote| vote.choice.as_str()),
    ];
    let times: Vec<_> = votes.iter().map(|vote| vote.timestamp).collect();
    let counting = sqlx::query(COUNT).bind(hashes).bind(citizens).bind(laws).bind(choices);
    counting.bind(times).execute(connection).await.expect("counted");
}

/// One of several writers: each keeps its transactions open until the next writer has begun one, so that they end in
/// another order than they began, and rolls back every tenth.
async fn write(pool: PgPool, number: u64, barrier: Arc<Barrier>, left: Arc<AtomicUsize>) -> u64 {
    let mut committed = 0;
    for batch in 0..BATCHES {
        let first = (number * BATCHES + batch) * 100;
        // Laws of its own: a row lock on a total would put the writers in line.
        let law = format!("law-{number}");
        let votes: Vec<Vote> = votes(first, 1 + (first * 7 + batch) % 90)
            .into_iter()
            .map(|vote| Vote { law_id: law.as_str().into(), ..vote })
            .collect();
        let mut transaction = pool.begin().await.expect("a transaction");
        count_in(&mut transaction, &votes).await;
        if batch % 3 == number % 3 {
            // Commits after all have begun.
            barrier.wait().await;
        }
        if batch % 10 == 9 {
            transaction.rollback().await.expect("rolled back");
        } else {
            transaction.commit().await.expect("committed");
            committed += votes.len() as u64;
        }
        if batch % 3 != number % 3 {
            barrier.wait().await;
        }
    }
    left.fetch_sub(1, Ordering::Relaxed);
    committed
}

/// Semantics of the horizon: a cursor over a sequence or a time lost a tenth of the batches in such a run.
#[tokio::test]
async fn each_committed_row_is_sealed_once_whatever_order_transactions_end_in() {
    let stage = Stage::with_roles(Servers::shared(), "sealrows").await;
    let sealed = Sealed::begin(&stage).await;
    let barrier = Arc::new(Barrier::new(WRITERS as usize));
    let left = Arc::new(AtomicUsize::new(WRITERS as usize));
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            tokio::spawn(write(stage.sql.clone(), number, Arc::clone(&barrier), Arc::clone(&left)))
        })
        .collect();
    let (mut log, mut reader, mut rounds) = (sealed.open(), sealed.reader(), 0);
    while left.load(Ordering::Relaxed) > 0 {
        let round = round(&mut log, &mut reader, 1).await.expect("sealed");
        assert_eq!((round.findings, round.drift), (Vec::<String>::new(), 0));
        rounds += u64::from(round.sealed.is_some());
    }
    let mut committed = 0;
    for writer in writers {
        committed += writer.await.expect("it ends");
    }
    drop((log, reader));
    assert!(rounds > 5, "{rounds} rounds beside the writers");
    assert_eq!(stage.number("SELECT count(*) FROM vote_audit").await as u64, committed);
    assert_eq!(sealed.until_sealed(committed).await, [] as [String; 0]);
    sealed.assert_has_each_row_once(&stage, 1).await;
    // Ids behind the last batch may be assigned again after a crash.
    let last = "SELECT xid::text::bigint FROM count_batch ORDER BY count_batch.xid DESC LIMIT 1";
    assert_eq!(sealed.open().state().horizon as i64, stage.number(last).await + 1);
}

#[tokio::test]
async fn an_open_transaction_holds_up_those_behind_it_and_is_named() {
    let stage = Stage::with_roles(Servers::shared(), "sealheld").await;
    let sealed = Sealed::begin(&stage).await;
    let mut open = stage.sql.begin().await.expect("a transaction");
    sqlx::raw_sql("SET LOCAL application_name = 'forgotten report'")
        .execute(&mut *open)
        .await
        .expect("set");
    // Of a law of its own, since the lock on its total stays.
    let first = votes(0, 10).into_iter().map(|vote| Vote { law_id: "law-x".into(), ..vote });
    count_in(&mut open, &first.collect::<Vec<_>>()).await;
    let pid: i32 =
        sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *open).await.expect("its id");
    count(&stage, &votes(100, 50)).await;
    // A transaction of another test may be older for a moment.
    eventually("it is the oldest", async || {
        let round = sealed.round().await;
        let Ok(round) = round else { return false };
        assert_eq!((round.unsealed.votes, round.unsealed.decided), (50, 0));
        assert!(round.sealed.is_none());
        let Some(held_by) = round.held_by else { return false };
        assert!(held_by.age.is_none(), "hidden from a role without pg_monitor");
        held_by.pid == Some(pid) && held_by.application.as_deref() == Some("forgotten report")
    })
    .await;
    open.commit().await.expect("committed");
    assert_eq!(sealed.until_sealed(60).await, [] as [String; 0]);
    sealed.assert_has_each_row_once(&stage, 1).await;
}

#[tokio::test]
async fn rows_that_were_moved_are_found_and_rows_that_were_changed_are_reported() {
    let stage = Stage::with_roles(Servers::shared(), "sealmoved").await;
    let sealed = Sealed::begin(&stage).await;
    count(&stage, &votes(0, 3_000)).await;
    stage.execute("DELETE FROM vote_audit WHERE vote_hash < 'hash-00001000'").await;
    count(&stage, &votes(10_000, 500)).await;
    stage.execute("VACUUM FULL vote_audit").await;
    let findings = sealed.until_sealed(2_500).await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].contains("counted 3000 votes, and 2000 rows"), "{findings:?}");
    sealed.assert_has_each_row_once(&stage, 1).await;

    // Without a row in count_batch it is not sealed; the totals show it.
    stage
        .execute(
            "INSERT INTO vote_audit VALUES ('forged', 'citizen', 'law-000', 'oui', now(), now());
             UPDATE vote_results SET oui_count = oui_count + 1 WHERE law_id = 'law-000'",
        )
        .await;
    eventually("the difference", async || {
        // Of the 1,000 rows that were deleted above, the totals still have all.
        sealed.round().await.is_ok_and(|round| round.drift == 1_001)
    })
    .await;
}

#[tokio::test]
async fn rows_that_are_there_already_are_sealed_as_the_opening_says() {
    let stage = Stage::with_roles(Servers::shared(), "sealexisting").await;
    count(&stage, &votes(0, 700)).await;
    // As those of an older release, or of a dump that was restored.
    stage.execute("DELETE FROM count_batch").await;
    let sealed = Sealed::of(&stage).await;
    let opened = eventually_opened(&sealed, 700).await;
    count(&stage, &votes(1_000, 300)).await;
    sealed.init(&opened);
    assert_eq!(sealed.until_sealed(1_000).await, [] as [String; 0]);
    sealed.assert_has_each_row_once(&stage, 1).await;
}

/// What a log begins with, once all these rows are below the horizon.
async fn eventually_opened(sealed: &Sealed, rows: u64) -> vote_aggregator::operator::seal::Opened {
    let mut opened = None;
    eventually("all rows are below the horizon", async || {
        let found = sealed.opened().await;
        let all = found.rows == rows;
        opened = Some(found);
        all
    })
    .await;
    opened.expect("just read")
}

#[tokio::test]
async fn corrections_are_entries_behind_the_votes() {
    let stage = Stage::with_roles(Servers::shared(), "sealcorrected").await;
    let sealed = Sealed::begin(&stage).await;
    count(&stage, &votes(0, 20)).await;
    stage
        .execute("UPDATE vote_results SET oui_count = oui_count + 5 WHERE law_id = 'law-001'")
        .await;
    eventually("the difference", async || sealed.round().await.is_ok_and(|round| round.drift == 5))
        .await;
    stage.run("recount", &["--repair", "--yes", "--reason", "too many"]).await.assert(0, &[]);
    assert_eq!(sealed.until_sealed(20).await, [] as [String; 0]);
    // Also without another vote behind it: the opening, 20 votes and the correction.
    eventually("the correction", async || {
        sealed.round().await.expect("read");
        sealed.open().state().tip.size == 22
    })
    .await;
    count(&stage, &votes(100, 20)).await;
    assert_eq!(sealed.until_sealed(40).await, [] as [String; 0]);
    sealed.assert_has_each_row_once(&stage, 2).await;
    let round = sealed.round().await.expect("read");
    assert_eq!((round.drift, round.sealed), (0, None));
}

#[tokio::test]
async fn another_database_or_an_earlier_state_of_it_is_not_sealed() {
    let stage = Stage::with_roles(Servers::shared(), "seallineage").await;
    let sealed = Sealed::of(&stage).await;
    count(&stage, &votes(0, 20)).await;
    let opened = sealed.opened().await;
    let ours = &opened.lineage;
    let elsewhere = Lineage { system_identifier: "1".into(), ..ours.clone() };
    let later = Lineage { timeline: ours.timeline + 1, ..ours.clone() };
    // Of the same server.
    let other = Stage::with_roles(Servers::shared(), "seallineage_other").await;
    let rehearsal = Sealed::of(&other).await.opened().await.lineage;
    for (lineage, horizon, says) in [
        (elsewhere, opened.horizon, "system identifier"),
        (later, opened.horizon, "timeline"),
        (rehearsal, opened.horizon, "POSTGRES_DB"),
        (opened.lineage.clone(), opened.horizon + 1_000_000, "copy of its files"),
    ] {
        let sealed = Sealed::of(&stage).await;
        let mut opened = opened.clone();
        (opened.lineage, opened.horizon, opened.rows) = (lineage, horizon, 0);
        sealed.init(&opened);
        match sealed.round().await {
            Err(error @ RoundError::Lineage(_)) => {
                assert!(error.to_string().contains(says), "{error}");
            }
            other => panic!("{says}: {other:?}"),
        }
        assert_eq!(sealed.open().state().tip.size, 1, "nothing was sealed");
    }
}

/// A copy of the directory has a lock of its own; the database has one for both.
#[tokio::test]
async fn two_directories_of_one_log_are_not_sealed_at_the_same_time() {
    let stage = Stage::with_roles(Servers::shared(), "sealtwice").await;
    let sealed = Sealed::begin(&stage).await;
    let (mut log, mut reader) = (sealed.open(), sealed.reader());
    round(&mut log, &mut reader, 1).await.expect("read");
    let mut copy = Sealed::of(&stage).await;
    copy.origin = sealed.origin.clone();
    copy.init(&copy.opened().await);
    assert!(matches!(copy.round().await, Err(RoundError::Locked)));
    drop(reader);
    eventually("the lock is free", async || copy.round().await.is_ok()).await;
    assert!(matches!(
        round(&mut log, &mut sealed.reader(), 1).await,
        Ok(_) | Err(RoundError::Locked)
    ));
}
