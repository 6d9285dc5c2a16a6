//! Servers that stop and come back, under load.

use vote_aggregator::model::vote::Vote;

use crate::support::{
    Frozen, PATIENCE, Servers, Service, Stage, eventually, eventually_within, settings, votes,
};

/// A stage with votes in its queue.
async fn stage_with_votes(servers: &Servers, count: u64) -> (Stage<'_>, Vec<Vote>) {
    let stage = Stage::migrated(servers, "outage").await;
    let votes = stage.publish_new(0, count).await;
    (stage, votes)
}

/// A batch is given up soon.
const HASTY: &str = "MAX_RETRY_ATTEMPTS=2 RETRY_DELAY_SECONDS=0.1";

/// Waits until the metrics balance as docs/metrics.md says, which they do once nothing is in flight.
async fn until_balanced(service: &Service) {
    let metric = async |name: &str| service.metric(name).await.expect("in every scrape");
    let sum = async |one, other| metric(one).await + metric(other).await;
    let acked = "deliveries_settled_total{outcome=\"acked\"}";
    eventually("deliveries balance", async || {
        metric("deliveries_unacked").await == 0.0
            && sum("batch_size_processed_total", "votes_isolated_total").await
                == sum(acked, "deliveries_committed_unacked_total").await
    })
    .await;
}

async fn settle(stage: &Stage<'_>, service: Service, all: &[Vote]) -> String {
    stage.until_counted(all.len()).await;
    service.until_ready().await;
    until_balanced(&service).await;
    stage.finish([service], all).await
}

/// RabbitMQ 3.10.8, killed within seconds of a start, sometimes comes back with a quorum queue that
/// has no leader and elects none: applying its log again, the leader looks for messages that are gone
/// (`lists:zipwith` in `rabbit_fifo`), and ends the supervisor of dead-lettering as well. RabbitMQ
/// answers each open with 541 then; another restart helps, as the service's own message says.
async fn until_ready_or_restarted(servers: &Servers, service: &Service) {
    let mut restarted = 0;
    eventually_within(PATIENCE * 3, "ready, if need be after a restart of RabbitMQ", async || {
        let failures = service.logged("restart it if this persists");
        // One may be a queue that is still electing its leader.
        if failures >= restarted + 2 {
            restarted = failures;
            servers.script(&["restart", "rabbitmq"]);
        }
        service.get("/readyz").await.status == 200
    })
    .await;
}

#[tokio::test]
async fn a_broker_that_stops_and_starts_loses_nothing() {
    let servers = Servers::private("broker");
    let (stage, all) = stage_with_votes(&servers, 30_000).await;
    let service = stage.start(&[]).await;
    for (command, at_least) in [("stop", 1_000), ("kill", 5_000)] {
        stage.until_counted(at_least).await;
        servers.script(&[command, "rabbitmq"]);
        service.until_check("rabbitmq", false).await;
        servers.script(&["start", "rabbitmq"]);
        until_ready_or_restarted(&servers, &service).await;
    }
    // A broker that was killed may end a session once more while it recovers.
    assert!(service.metric("reconnects_total{side=\"rabbitmq\"}").await >= Some(2.0));
    let errors = service.metric("aggregation_errors_total{error_type=\"broker\"}").await;
    assert!(errors >= Some(1.0), "{errors:?}");
    service.until_metric("session_state{state=\"consuming\"}", 1.0).await;
    settle(&stage, service, &all).await;
}

#[tokio::test]
async fn postgresql_away_for_longer_than_all_retries_loses_nothing_and_requeues_once() {
    let servers = Servers::private("postgres");
    let (stage, all) = stage_with_votes(&servers, 30_000).await;
    let small = format!("{HASTY} BATCH_SIZE=50 RABBITMQ_PREFETCH_COUNT=200");
    let service = stage.start(&settings(&small)).await;
    stage.until_counted(1_000).await;
    servers.script(&["stop", "postgres"]);
    service.until_logged("consuming stops until a write succeeds").await;
    service.until_check("postgres", false).await;
    // Not consuming, and readiness shows it.
    service.until_check("rabbitmq", false).await;
    // All of it is back in the queue, and stays there: no redelivery loop.
    eventually("everything is requeued", async || stage.ready(&stage.queue).await > Some(0)).await;
    let waiting = stage.ready(&stage.queue).await;
    service.until_logged("probe write failed").await;
    assert_eq!(stage.ready(&stage.queue).await, waiting);
    assert_eq!(service.logged("consuming stops until a write succeeds"), 1, "requeued once");
    for (series, value) in [
        ("breaker_state{state=\"open\"}", 1.0),
        ("session_state{state=\"waiting\"}", 1.0),
        ("deliveries_unacked", 0.0),
        ("reconnects_total{side=\"postgres\"}", 0.0),
    ] {
        service.until_metric(series, value).await;
    }
    let requeued = service.metric("deliveries_requeued_total").await;
    assert!(requeued > Some(0.0) && requeued <= Some(200.0), "{requeued:?}");
    assert!(service.metric("last_commit_age_seconds").await > Some(0.0));

    servers.script(&["start", "postgres"]);
    // Behind the first batch that is committed.
    service.until_metric("breaker_state{state=\"closed\"}", 1.0).await;
    assert!(service.metric("reconnects_total{side=\"postgres\"}").await > Some(0.0));
    assert_eq!(service.metric("deliveries_requeued_total").await, requeued);
    let log = settle(&stage, service, &all).await;
    assert!(log.contains("\"mode\":\"HalfOpen\""), "came back half-open:\n{log}");
    assert!(log.contains("PostgreSQL commits votes again"));
}

/// Under a memory or disk alarm the broker reads nothing more from connections that publish: neither
/// the probe of a permission nor a dead letter may share one with acks.
#[tokio::test]
async fn an_alarm_of_the_broker_blocks_publishers_and_not_counting() {
    let servers = Servers::private("alarm");
    let (stage, all) = stage_with_votes(&servers, 2_000).await;
    servers.ctl(&["set_vm_memory_high_watermark", "0"]);
    let service = stage.spawn(&[]).await;
    stage.until_counted(all.len()).await;
    stage.assert_drained().await;
    // A second session, on a connection of its own.
    servers.ctl(&["close_all_connections", "a test"]);
    service.until_logged("session with RabbitMQ lost").await;
    service.until_ready().await;
    servers.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    let more = stage.publish_new(2_000, 100).await;
    stage.finish([service], &[all, more].concat()).await;
}

/// A crash of the database in the middle of commits, shorter than the retries: no requeue at all.
#[tokio::test]
async fn postgresql_killed_and_back_within_the_retries_stops_no_session() {
    let servers = Servers::private("crash");
    let (stage, all) = stage_with_votes(&servers, 30_000).await;
    let service = stage.start(&[("MAX_RETRY_ATTEMPTS", "8"), ("RETRY_DELAY_SECONDS", "0.2")]).await;
    for at_least in [1_000, 8_000] {
        stage.until_counted(at_least).await;
        servers.script(&["kill", "postgres"]);
        servers.script(&["start", "postgres"]);
    }
    let log = settle(&stage, service, &all).await;
    assert!(log.contains("batch not committed, trying again"), "{log}");
    assert!(!log.contains("consuming stops"), "{log}");
}

#[tokio::test]
async fn a_frozen_broker_shows_after_two_heartbeats_and_is_left() {
    let servers = Servers::private("frozenbroker");
    let (stage, all) = stage_with_votes(&servers, 30_000).await;
    let service = stage.start(&[("RABBITMQ_HEARTBEAT_SECONDS", "1")]).await;
    stage.until_counted(1_000).await;
    let frozen = Frozen::server(&servers, "rabbitmq");
    service.until_not_ready().await;
    drop(frozen);
    settle(&stage, service, &all).await;
}

#[tokio::test]
async fn a_frozen_database_runs_into_the_deadline_and_counts_nothing_twice() {
    let servers = Servers::private("frozenpostgres");
    let (stage, all) = stage_with_votes(&servers, 30_000).await;
    let impatient = "POSTGRES_STATEMENT_TIMEOUT_SECONDS=1 RETRY_DELAY_SECONDS=0.1 BATCH_SIZE=50 \
                     RABBITMQ_PREFETCH_COUNT=200";
    let service = stage.start(&settings(impatient)).await;
    stage.until_counted(1_000).await;
    let frozen = Frozen::server(&servers, "postgres");
    service.until_logged("no answer from PostgreSQL within").await;
    service.until_not_ready().await;
    drop(frozen);
    settle(&stage, service, &all).await;
}

/// Its consumer is ended in the same way as by a time-out.
#[tokio::test]
async fn a_queue_deleted_while_consuming_is_created_anew() {
    let (stage, _) = stage_with_votes(Servers::shared(), 50).await;
    let service = stage.start(&[]).await;
    stage.until_counted(50).await;
    stage.delete(&stage.queue).await;
    service.until_logged("the broker ended the consumer").await;
    service.until_logged("the queue was deleted, moved or lost its leader").await;
    service.until_logged("queue created").await;
    stage.until_ready(&stage.queue, 0).await;
    service.until_ready().await;
    assert_eq!(service.metric("consumer_timeouts_total").await, Some(0.0));
    stage.publish_new(50, 50).await;
    settle(&stage, service, &votes(0, 100)).await;
}

/// A failover leaves the connections on a server that is a standby now: it takes no writes (25006)
/// until a primary is back under the same address.
#[tokio::test]
async fn a_failover_to_a_read_only_server_is_waited_for() {
    let servers = Servers::private("readonly");
    let (stage, all) = stage_with_votes(&servers, 30_000).await;
    let service = stage.start(&settings(HASTY)).await;
    stage.until_counted(1_000).await;
    stage.execute("ALTER SYSTEM SET default_transaction_read_only = on").await;
    stage.execute("SELECT pg_reload_conf()").await;
    service.until_logged("consuming stops until a write succeeds").await;
    service.until_logged("probe write failed").await;
    service.until_not_ready().await;
    assert_eq!(stage.ready(&stage.dead_letter_queue()).await, Some(0), "no vote is at fault");
    let log = service.log();
    let tripped = log.lines().find(|line| line.contains("consuming stops")).unwrap_or_default();
    assert!(tripped.contains("25006"), "{tripped}");

    stage.execute("ALTER SYSTEM RESET default_transaction_read_only").await;
    stage.execute("SELECT pg_reload_conf()").await;
    settle(&stage, service, &all).await;
}
