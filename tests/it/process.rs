//! The binary as operators run it: signals, deadlines, several at once.

use rustix::process::Signal;

use crate::support::{Servers, Stage, settings};

#[tokio::test]
async fn signals_in_mid_stream_lose_nothing_and_the_next_start_counts_nothing_twice() {
    let stage = Stage::migrated(Servers::shared(), "signals").await;
    let all = stage.publish_new(0, 40_000).await;
    for (signal, at_least, code) in [
        (Signal::TERM, 500, Some(0)),
        (Signal::INT, 5_000, Some(0)),
        (Signal::KILL, 10_000, None),
        (Signal::KILL, 14_000, None),
    ] {
        let mut service = stage.start(&[]).await;
        stage.until_counted(at_least).await;
        service.signal(signal);
        assert_eq!(service.exit_code().await, code, "{}", service.log());
        let counted = stage.number("SELECT count(*) FROM vote_audit").await as usize;
        assert!(counted < all.len(), "stopped in mid stream, not at its end");
        if code == Some(0) {
            assert_eq!(service.logged("stopped; "), 1, "{}", service.log());
            // What was counted was acked, what was not is back: nothing is counted and still queued.
            stage.until_ready(&stage.queue, all.len() - counted).await;
        }
    }
    let service = stage.start(&[]).await;
    stage.finish([service], &all).await;
}

/// While a batch cannot end: at the deadline, or at once at a second signal. Nothing uncommitted is
/// acked.
#[tokio::test]
async fn a_stop_that_cannot_end_is_cut_short_by_the_deadline_or_a_second_signal() {
    for (deadline, second, code) in [
        ("1", None, Some(75)),
        ("600", Some(Signal::TERM), Some(143)),
        ("600", Some(Signal::INT), Some(130)),
    ] {
        let stage = Stage::migrated(Servers::shared(), "deadline").await;
        let mut service = stage.start(&[("SHUTDOWN_TIMEOUT_SECONDS", deadline)]).await;
        let lock = stage.hold("LOCK TABLE vote_audit").await;
        let all = stage.publish_new(0, 90).await;
        stage.until_ready(&stage.queue, 0).await;
        service.signal(Signal::TERM);
        service.until_logged("stopping: ").await;
        if let Some(second) = second {
            service.signal(second);
        }
        assert_eq!(service.exit_code().await, code, "{}", service.log());
        let done = service.logged("stopped; 0 votes counted");
        assert!(second.is_some() || done == 1, "{}", service.log());
        drop(lock);
        stage.until_ready(&stage.queue, all.len()).await;
        let service = stage.start(&[]).await;
        stage.finish([service], &all).await;
    }
}

#[tokio::test]
async fn two_instances_share_a_queue_and_show_the_same_totals() {
    let stage = Stage::migrated(Servers::shared(), "two").await;
    let refreshed = settings("TOTALS_REFRESH_SECONDS=0.2");
    let throughput = settings(
        "TOTALS_REFRESH_SECONDS=0.2 PIPELINE_PROFILE=throughput BATCH_SIZE=200 \
         RABBITMQ_PREFETCH_COUNT=1000",
    );
    let services = [stage.start(&refreshed).await, stage.start(&throughput).await];
    let all = stage.count(0, 40_000).await;
    let results = stage.results().await;
    for service in &services {
        for (law, [oui, non]) in &results {
            for (choice, total) in [("non", *non), ("oui", *oui)] {
                let series = format!("current_vote_totals{{choice=\"{choice}\",law_id=\"{law}\"}}");
                service.until_metric(&series, total as f64).await;
            }
        }
        let share = service.metric("batch_size_processed_total").await;
        assert!(share > Some(0.0), "both counted: {share:?}");
    }
    stage.finish(services, &all).await;
    stage.assert_no_deadlock().await;
}
