//! Servers that stop and come back, under load.

use rustix::process::{Pid, Signal, kill_process};
use vote_aggregator::model::vote::Vote;

use crate::support::{PATIENCE, Servers, Service, Stage, eventually, eventually_within, votes};

async fn until_some_counted(stage: &Stage<'_>, at_least: i64) {
    eventually("some votes are counted", async || {
        stage.number("SELECT count(*) FROM vote_audit").await >= at_least
    })
    .await;
}

/// What docs/metrics.md says has to balance, once nothing is in flight.
async fn until_balanced(service: &Service) {
    let sum = async |names: &[&str]| {
        let mut sum = 0.0;
        for name in names {
            sum += service.metric(name).await.expect("in every scrape");
        }
        sum
    };
    eventually("deliveries balance", async || {
        service.metric("deliveries_unacked").await == Some(0.0)
            && sum(&["batch_size_processed_total", "votes_isolated_total"]).await
                == sum(&[
                    "deliveries_settled_total{outcome=\"acked\"}",
                    "deliveries_committed_unacked_total",
                ])
                .await
    })
    .await;
}

async fn settle(stage: &Stage<'_>, service: Service, all: &[Vote]) -> String {
    stage.until_counted(all.len()).await;
    service.until_ready().await;
    until_balanced(&service).await;
    // Replays of what was committed but not acked may still be on their way.
    let log = service.stop().await;
    stage.assert_counted_exactly(all).await;
    log
}

/// RabbitMQ 3.10.8, killed within seconds of a start, sometimes comes back with a quorum queue that
/// has no leader and gets none: applying its log again, the leader looks for messages that are gone
/// (`lists:zipwith` in `rabbit_fifo`), and takes the supervisor of dead-lettering with it. Every open
/// is answered by 541 then; what helps is another restart, as the service's own message says.
async fn until_ready_or_restarted(servers: &Servers, service: &Service) {
    let mut restarted = 0;
    eventually_within(PATIENCE * 3, "ready, if need be after a restart of RabbitMQ", async || {
        let failures = service.logged("when this goes on, restart it");
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
    let stage = Stage::migrated(&servers, "broker").await;
    let all = votes(0, 30_000);
    stage.publish_votes(&all).await;
    let service = stage.start(&[]).await;
    for (command, at_least) in [("stop", 1_000), ("kill", 5_000)] {
        until_some_counted(&stage, at_least).await;
        servers.script(&[command, "rabbitmq"]);
        service.until_not_ready().await;
        let reason = service.get("/readyz").await.json()["checks"]["rabbitmq"]["ok"].clone();
        assert_eq!(reason, false);
        servers.script(&["start", "rabbitmq"]);
        until_ready_or_restarted(&servers, &service).await;
    }
    // A broker that was killed may end a session once more while it recovers.
    assert!(service.metric("reconnects_total{side=\"rabbitmq\"}").await >= Some(2.0));
    assert_eq!(service.metric("session_state{state=\"consuming\"}").await, Some(1.0));
    settle(&stage, service, &all).await;
    stage.assert_drained().await;
}

#[tokio::test]
async fn postgresql_away_for_longer_than_all_retries_loses_nothing_and_requeues_once() {
    let servers = Servers::private("postgres");
    let stage = Stage::migrated(&servers, "postgres").await;
    let all = votes(0, 30_000);
    stage.publish_votes(&all).await;
    let service = stage
        .start(&[
            ("MAX_RETRY_ATTEMPTS", "2"),
            ("RETRY_DELAY_SECONDS", "0.1"),
            ("BATCH_SIZE", "50"),
            ("RABBITMQ_PREFETCH_COUNT", "200"),
        ])
        .await;
    until_some_counted(&stage, 1_000).await;
    servers.script(&["stop", "postgres"]);
    service.until_logged("consuming stops until a write succeeds").await;
    service.until_not_ready().await;
    // All of it is back in the queue, and stays there: no redelivery loop.
    eventually("everything is given back", async || {
        stage.ready(&stage.queue).await.is_some_and(|ready| ready > 0)
    })
    .await;
    let waiting = stage.ready(&stage.queue).await;
    service.until_logged("probe write failed").await;
    assert_eq!(stage.ready(&stage.queue).await, waiting);
    let readiness = service.get("/readyz").await.json();
    assert_eq!(readiness["checks"]["postgres"]["ok"], false);
    assert_eq!(readiness["checks"]["rabbitmq"]["ok"], false, "not consuming, and it says so");
    assert_eq!(service.logged("consuming stops until a write succeeds"), 1, "requeued once");
    for (series, expected) in [
        ("breaker_state{state=\"open\"}", 1.0),
        ("session_state{state=\"waiting\"}", 1.0),
        ("deliveries_unacked", 0.0),
        ("reconnects_total{side=\"postgres\"}", 0.0),
    ] {
        assert_eq!(service.metric(series).await, Some(expected), "{series}");
    }
    let requeued = service.metric("deliveries_requeued_total").await;
    assert!(requeued > Some(0.0) && requeued <= Some(200.0), "{requeued:?}");
    assert!(service.metric("last_commit_age_seconds").await > Some(0.0));

    servers.script(&["start", "postgres"]);
    service.until_ready().await;
    eventually("the breaker closes behind a batch", async || {
        service.metric("breaker_state{state=\"closed\"}").await == Some(1.0)
    })
    .await;
    assert!(service.metric("reconnects_total{side=\"postgres\"}").await > Some(0.0));
    assert_eq!(service.metric("deliveries_requeued_total").await, requeued);
    let log = settle(&stage, service, &all).await;
    assert!(log.contains("\"mode\":\"HalfOpen\""), "came back half-open:\n{log}");
    assert!(log.contains("PostgreSQL takes votes again"));
    stage.assert_drained().await;
}

/// Under a memory or disk alarm the broker reads nothing more from connections that publish: neither
/// the probe of a permission nor a dead letter may share one with acks.
#[tokio::test]
async fn an_alarm_of_the_broker_blocks_publishers_and_not_counting() {
    let servers = Servers::private("alarm");
    let stage = Stage::migrated(&servers, "alarm").await;
    let all = votes(0, 2_000);
    stage.publish_votes(&all).await;
    let watermark = ["ctl", "--", "-q", "set_vm_memory_high_watermark"];
    servers.script(&[&watermark[..], &["0"]].concat());
    let service = stage.spawn(&[]).await;
    stage.until_counted(all.len()).await;
    stage.assert_drained().await;
    // A second session, on a connection of its own.
    servers.script(&["ctl", "--", "-q", "close_all_connections", "a test"]);
    eventually("a second session", async || {
        service.metric("reconnects_total{side=\"rabbitmq\"}").await >= Some(1.0)
    })
    .await;
    service.until_ready().await;
    servers.script(&[&watermark[..], &["0.4"]].concat());
    let more = votes(2_000, 100);
    stage.publish_votes(&more).await;
    stage.until_counted(all.len() + more.len()).await;
    service.stop().await;
    stage.assert_counted_exactly(&[all, more].concat()).await;
}

/// A crash of the database in the middle of commits, shorter than the retries: no requeue at all.
#[tokio::test]
async fn postgresql_killed_and_back_within_the_retries_is_ridden_out() {
    let servers = Servers::private("crash");
    let stage = Stage::migrated(&servers, "crash").await;
    let all = votes(0, 30_000);
    stage.publish_votes(&all).await;
    let service = stage.start(&[("MAX_RETRY_ATTEMPTS", "8"), ("RETRY_DELAY_SECONDS", "0.2")]).await;
    for at_least in [1_000, 8_000] {
        until_some_counted(&stage, at_least).await;
        servers.script(&["kill", "postgres"]);
        servers.script(&["start", "postgres"]);
    }
    let log = settle(&stage, service, &all).await;
    assert!(log.contains("batch not committed, trying again"), "{log}");
    assert!(!log.contains("consuming stops"), "{log}");
    stage.assert_drained().await;
}

/// Stopped processes hold their connections and answer nothing, as a host does that hangs. They go
/// on when this value goes.
struct Frozen(Vec<Pid>);

impl Frozen {
    /// Freezes a process and its children.
    fn tree(root: &str) -> Self {
        let root: i32 = root.trim().parse().expect("a process id");
        let mut tree = vec![root];
        for entry in std::fs::read_dir("/proc").expect("procfs").flatten() {
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // `pid (name) state ppid …`; the name may hold anything but ends with the last bracket.
            let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1));
            if parent.and_then(|pid| pid.parse().ok()) == Some(root)
                && let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok())
            {
                tree.push(pid);
            }
        }
        let frozen = Self(tree.into_iter().filter_map(Pid::from_raw).collect());
        frozen.signal(Signal::STOP);
        frozen
    }

    fn signal(&self, signal: Signal) {
        for pid in &self.0 {
            // A child may have ended meanwhile.
            kill_process(*pid, signal).ok();
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
    }
}

#[tokio::test]
async fn a_frozen_broker_shows_after_two_heartbeats_and_is_left() {
    let servers = Servers::private("frozenbroker");
    let stage = Stage::migrated(&servers, "frozenbroker").await;
    let all = votes(0, 30_000);
    stage.publish_votes(&all).await;
    let service = stage.start(&[("RABBITMQ_HEARTBEAT_SECONDS", "1")]).await;
    until_some_counted(&stage, 1_000).await;
    let frozen = Frozen::tree(&servers.script(&["pid", "rabbitmq"]));
    service.until_not_ready().await;
    drop(frozen);
    settle(&stage, service, &all).await;
    stage.assert_drained().await;
}

#[tokio::test]
async fn a_frozen_database_runs_into_the_deadline_and_counts_nothing_twice() {
    let servers = Servers::private("frozenpostgres");
    let stage = Stage::migrated(&servers, "frozenpostgres").await;
    let all = votes(0, 30_000);
    stage.publish_votes(&all).await;
    let service = stage
        .start(&[
            ("POSTGRES_STATEMENT_TIMEOUT_SECONDS", "1"),
            ("RETRY_DELAY_SECONDS", "0.1"),
            ("BATCH_SIZE", "50"),
            ("RABBITMQ_PREFETCH_COUNT", "200"),
        ])
        .await;
    until_some_counted(&stage, 1_000).await;
    let frozen = Frozen::tree(&servers.script(&["pid", "postgres"]));
    service.until_logged("no answer from PostgreSQL within").await;
    service.until_not_ready().await;
    drop(frozen);
    settle(&stage, service, &all).await;
    stage.assert_drained().await;
}

/// The broker takes a consumer that holds its deliveries for too long for dead, and closes its
/// channel while the connection stays open.
#[tokio::test]
async fn a_channel_closed_by_the_brokers_consumer_timeout_is_a_new_session() {
    let servers = Servers::private("consumertimeout");
    let stage = Stage::migrated(&servers, "consumertimeout").await;
    servers.script(&[
        "ctl",
        "--",
        "-q",
        "eval",
        "application:set_env(rabbit, consumer_timeout, 1000), \
         application:set_env(rabbit, channel_tick_interval, 500).",
    ]);
    let service = stage.start(&[]).await;
    let mut other = stage.sql.begin().await.expect("a transaction");
    sqlx::raw_sql("LOCK TABLE vote_audit").execute(&mut *other).await.expect("locked");
    let all = votes(0, 150);
    stage.publish_votes(&all).await;
    service.until_logged("session with RabbitMQ lost").await;
    assert!(service.log().contains("timed out"), "{}", service.log());
    other.rollback().await.expect("unlocked");
    settle(&stage, service, &all).await;
    stage.assert_drained().await;
}

/// A failover leaves the connections on a server that is a standby now: it takes no writes (25006)
/// until a primary is back under the same address.
#[tokio::test]
async fn a_failover_to_a_read_only_server_is_waited_for() {
    let servers = Servers::private("readonly");
    let stage = Stage::migrated(&servers, "readonly").await;
    let all = votes(0, 30_000);
    stage.publish_votes(&all).await;
    let service = stage.start(&[("MAX_RETRY_ATTEMPTS", "2"), ("RETRY_DELAY_SECONDS", "0.1")]).await;
    until_some_counted(&stage, 1_000).await;
    let read_only = async |setting: &'static str| {
        sqlx::raw_sql(setting).execute(&stage.sql).await.expect("set");
        sqlx::raw_sql("SELECT pg_reload_conf()").execute(&stage.sql).await.expect("reloaded");
    };
    read_only("ALTER SYSTEM SET default_transaction_read_only = on").await;
    service.until_logged("consuming stops until a write succeeds").await;
    service.until_logged("probe write failed").await;
    service.until_not_ready().await;
    assert_eq!(stage.ready(&stage.dead_letter_queue()).await, Some(0), "no vote is at fault");
    let tripped = service.log();
    let tripped = tripped.lines().find(|line| line.contains("consuming stops")).unwrap_or("");
    assert!(tripped.contains("25006"), "{tripped}");

    read_only("ALTER SYSTEM RESET default_transaction_read_only").await;
    settle(&stage, service, &all).await;
    stage.assert_drained().await;
}

/// A lock on one law's row, which a probe write does not meet: half-open is not ready, and the votes of
/// that law stop nothing for longer than the lock lasts.
#[tokio::test]
async fn a_row_lock_on_one_law_is_not_ready_until_it_is_released() {
    let stage = Stage::migrated(Servers::shared(), "rowlock").await;
    let all = votes(0, 40);
    stage.publish_votes(&all[..20]).await;
    // A batch's time is half of the consumer time-out: 28 s of waiting for the lock, 3 s at a time.
    let short =
        [("POSTGRES_STATEMENT_TIMEOUT_SECONDS", "4"), ("RABBITMQ_CONSUMER_TIMEOUT_SECONDS", "56")];
    let service = stage.start(&short).await;
    stage.until_counted(20).await;
    let mut forgotten = stage.sql.begin().await.expect("a transaction");
    sqlx::raw_sql("UPDATE vote_results SET updated_at = now() WHERE law_id = 'law-001'")
        .execute(&mut *forgotten)
        .await
        .expect("locked");
    stage.publish_votes(&all[20..]).await;
    let half_open = "breaker_state{state=\"half_open\"}";
    eventually("half-open", async || service.metric(half_open).await == Some(1.0)).await;
    assert_eq!(service.get("/readyz").await.status, 503);
    forgotten.rollback().await.expect("released");
    stage.until_counted(40).await;
    service.until_ready().await;
    assert_eq!(service.metric(half_open).await, Some(0.0));
    service.stop().await;
    stage.assert_counted_exactly(&all).await;
    stage.assert_drained().await;
}
