//! The binary as operators run it: signals, deadlines, several at once.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::Instant;

use crate::support::{Servers, Stage, eventually, votes};

#[tokio::test]
async fn signals_in_mid_stream_lose_nothing_and_the_next_start_doubles_nothing() {
    let stage = Stage::migrated(Servers::shared(), "signals").await;
    let all = votes(0, 30_000);
    stage.publish_votes(&all).await;
    for (signal, at_least) in [(Signal::TERM, 500), (Signal::INT, 5_000)] {
        let mut service = stage.start(&[]).await;
        eventually("in mid stream", async || {
            stage.number("SELECT count(*) FROM vote_audit").await >= at_least
        })
        .await;
        service.signal(signal);
        assert_eq!(service.exit_code().await, Some(0), "{}", service.log());
        assert!(service.log().contains("stopped; "), "{}", service.log());
        let counted = stage.number("SELECT count(*) FROM vote_audit").await;
        assert!(counted < 30_000, "stopped in mid stream, not at its end");
        // What was counted was acked, what was not is back: nothing is counted and still queued.
        eventually("the rest is back in the queue", async || {
            stage.ready(&stage.queue).await == Some(30_000 - counted as u32)
        })
        .await;
    }
    let service = stage.start(&[]).await;
    stage.until_counted(all.len()).await;
    assert_eq!(service.metric("votes_replayed_total").await, Some(0.0), "nothing came twice");
    service.stop().await;
    stage.assert_counted_exactly(&all).await;
    stage.assert_drained().await;
}

#[tokio::test]
async fn a_stop_flushes_the_partial_batch() {
    let stage = Stage::migrated(Servers::shared(), "flush").await;
    let service = stage.start(&[("BATCH_TIMEOUT_SECONDS", "60")]).await;
    stage.publish_votes(&votes(0, 30)).await;
    eventually("delivered", async || stage.ready(&stage.queue).await == Some(0)).await;
    assert_eq!(stage.number("SELECT count(*) FROM vote_audit").await, 0, "waits for its batch");
    let began = Instant::now();
    service.stop().await;
    assert!(began.elapsed() < Duration::from_secs(8), "well before the deadline");
    stage.assert_counted_exactly(&votes(0, 30)).await;
    stage.assert_drained().await;
}

#[tokio::test]
async fn a_stop_while_idle_is_clean() {
    let stage = Stage::migrated(Servers::shared(), "idle").await;
    stage.start(&[]).await.stop().await;
}

#[tokio::test]
async fn the_deadline_ends_it_with_75_and_nothing_uncommitted_is_acked() {
    let stage = Stage::migrated(Servers::shared(), "deadline").await;
    let mut service = stage.start(&[("SHUTDOWN_TIMEOUT_SECONDS", "1")]).await;
    let mut other = stage.sql.begin().await.expect("a transaction");
    sqlx::raw_sql("LOCK TABLE vote_audit").execute(&mut *other).await.expect("locked");
    let all = votes(0, 250);
    stage.publish_votes(&all).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity \
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("a batch waits for the lock", async || stage.number(waiting).await > 0).await;
    service.signal(Signal::TERM);
    assert_eq!(service.exit_code().await, Some(75), "{}", service.log());
    assert_eq!(service.logged("stopped; 0 votes counted"), 1, "what was done is told all the same");
    other.rollback().await.expect("unlocked");
    eventually("all is back in the queue", async || stage.ready(&stage.queue).await == Some(250))
        .await;
    let service = stage.start(&[]).await;
    stage.until_counted(250).await;
    service.stop().await;
    stage.assert_counted_exactly(&all).await;
    stage.assert_drained().await;
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    for (second, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let stage = Stage::migrated(Servers::shared(), "second").await;
        let mut service = stage.start(&[]).await;
        let mut other = stage.sql.begin().await.expect("a transaction");
        sqlx::raw_sql("LOCK TABLE vote_audit").execute(&mut *other).await.expect("locked");
        stage.publish_votes(&votes(0, 150)).await;
        eventually("delivered", async || stage.ready(&stage.queue).await < Some(150)).await;
        service.signal(Signal::TERM);
        service.until_logged("stopping: ").await;
        service.signal(second);
        assert_eq!(service.exit_code().await, Some(code), "{}", service.log());
        other.rollback().await.expect("unlocked");
    }
}

#[tokio::test]
async fn killed_outright_it_loses_and_doubles_nothing() {
    let stage = Stage::migrated(Servers::shared(), "killed").await;
    let all = votes(0, 20_000);
    stage.publish_votes(&all).await;
    for at_least in [500, 3_000, 8_000] {
        let mut service = stage.start(&[]).await;
        eventually("in mid stream", async || {
            stage.number("SELECT count(*) FROM vote_audit").await >= at_least
        })
        .await;
        service.signal(Signal::KILL);
        assert_eq!(service.exit_code().await, None);
    }
    let service = stage.start(&[]).await;
    stage.until_counted(all.len()).await;
    service.stop().await;
    stage.assert_counted_exactly(&all).await;
    stage.assert_drained().await;
}

#[tokio::test]
async fn two_instances_share_a_queue_and_show_the_same_totals() {
    let stage = Stage::migrated(Servers::shared(), "two").await;
    let one = stage.start(&[("TOTALS_REFRESH_SECONDS", "0.2")]).await;
    let two = stage
        .start(&[
            ("TOTALS_REFRESH_SECONDS", "0.2"),
            ("PIPELINE_PROFILE", "throughput"),
            ("BATCH_SIZE", "200"),
            ("RABBITMQ_PREFETCH_COUNT", "1000"),
        ])
        .await;
    let all = votes(0, 40_000);
    stage.publish_votes(&all).await;
    stage.until_counted(all.len()).await;
    let mut shares = Vec::new();
    let results = stage.results().await;
    for service in [&one, &two] {
        for (law, totals) in &results {
            for (choice, total) in [("non", totals[1]), ("oui", totals[0])] {
                let series = format!("current_vote_totals{{choice=\"{choice}\",law_id=\"{law}\"}}");
                eventually(&series, async || service.metric(&series).await == Some(total as f64))
                    .await;
            }
        }
        shares.push(service.metric("batch_size_processed_total").await.expect("a share"));
    }
    assert!(shares.iter().all(|share| *share > 0.0), "both counted: {shares:?}");
    one.stop().await;
    two.stop().await;
    stage.assert_counted_exactly(&all).await;
    stage.assert_drained().await;
    let deadlocks =
        stage.number("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()");
    assert_eq!(deadlocks.await, 0);
}
