//! Several addresses a side: a server that is away, a standby, a failover, a node that was cut off.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use lapin::types::AMQPValue;
use serde_json::{Value, json};
use sqlx::postgres::PgPoolOptions;
use tokio::net::TcpListener;
use vote_aggregator::adapters::broker::{QueueWatch, RabbitMq};
use vote_aggregator::model::ports::{Broker, Session};

use crate::standby::replicated;
use crate::support::{Interceptor, Pass, Servers, Service, Stage, eventually, votes};

/// Where the standby of `script/services` listens, on PostgreSQL's port.
const STANDBY: &str = "127.0.0.2";

impl Service {
    /// Which address of a side is in use, as its readiness shows it.
    async fn address_of(&self, side: &str) -> Value {
        self.checks().await[side]["address"].clone()
    }
}

/// The findings of `check --connect`, as severity and subject.
async fn findings(stage: &Stage<'_>, overrides: &[(&str, &str)]) -> Vec<(String, String)> {
    let checked = stage.run_with(&["check", "--connect", "--json"], overrides).await.json();
    let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
    let found = checked["findings"].as_array().expect("findings").iter();
    found.map(|finding| (text(&finding["severity"]), text(&finding["subject"]))).collect()
}

fn has(findings: &[(String, String)], severity: &str, subject: &str) -> bool {
    findings.iter().any(|found| (found.0.as_str(), found.1.as_str()) == (severity, subject))
}

/// An address at which nothing listens.
async fn closed() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    listener.local_addr().expect("an address").to_string()
}

#[tokio::test]
async fn an_address_that_is_away_is_passed_over() {
    let stage = Stage::migrated(Servers::shared(), "away").await;
    let list = async |server: &str| {
        let [host, port] =
            ["HOST", "PORT"].map(|name| stage.servers.get(&format!("{server}_{name}")));
        format!("{},{host}:{port},{}", closed().await, closed().await)
    };
    let (rabbitmq, postgres) = (list("RABBITMQ").await, list("POSTGRES").await);
    let lists = [("RABBITMQ_HOST", rabbitmq.as_str()), ("POSTGRES_HOST", &postgres)];
    let all = votes(0, 100);
    stage.publish_votes(&all).await;
    let service = stage.start(&lists).await;
    for side in ["rabbitmq", "postgres"] {
        assert_eq!(service.address_of(side).await, json!("2 of 3"));
        service.until_metric(&format!("address_in_use{{side=\"{side}\"}}"), 2.0).await;
    }
    let address = rabbitmq.split(',').nth(1).expect("the second");
    assert_eq!(service.logged(&format!("\"address\":\"{address}\"")), 1, "consuming, and where");
    let readiness = service.get("/readyz").await.body;
    assert!(!readiness.contains("127.0.0.1"), "{readiness}");
    stage.finish([service], &all).await;

    let found = findings(&stage, &lists).await;
    for side in ["rabbitmq.host", "PostgreSQL on"] {
        let away = |found: &&(String, String)| found.0 == "warning" && found.1.starts_with(side);
        assert_eq!(found.iter().filter(away).count(), 2, "{side}: {found:?}");
    }
    let [one, two] = [closed().await, closed().await];
    let none = format!("{one},{two}");
    let found = findings(&stage, &[("RABBITMQ_HOST", &none), ("POSTGRES_HOST", &none)]).await;
    assert!(has(&found, "error", "rabbitmq.host"), "{found:?}");
    assert!(has(&found, "error", "postgres.host"), "{found:?}");
}

/// From a start with the standby first in the list, through a promotion, without any restart.
#[tokio::test]
async fn the_server_that_takes_writes_is_found_at_the_start_and_after_a_failover() {
    let servers = replicated("writer");
    let stage = Stage::migrated(&servers, "writer").await;
    let all = votes(0, 300);
    stage.publish_votes(&all[..100]).await;

    let away = format!("{STANDBY},{}", closed().await);
    let waiting = stage.spawn(&[("POSTGRES_HOST", &away)]).await;
    waiting.until_logged("none of the addresses takes writes").await;
    assert!(waiting.log().contains("a standby"), "{}", waiting.log());
    assert_eq!(waiting.get("/readyz").await.status, 503);
    waiting.stop().await;

    let list = format!("{STANDBY},127.0.0.1");
    let list = [("POSTGRES_HOST", list.as_str())];
    let found = findings(&stage, &list).await;
    let port = servers.get("POSTGRES_PORT");
    assert!(has(&found, "info", &format!("PostgreSQL on {STANDBY}:{port}")), "{found:?}");
    let service = stage.start(&list).await;
    stage.until_counted(100).await;
    assert_eq!(service.address_of("postgres").await, json!("2 of 2"));

    // A primary that refuses writes (25006) is not left for a standby, and is used again.
    stage.execute("ALTER SYSTEM SET default_transaction_read_only = on").await;
    stage.execute("SELECT pg_reload_conf()").await;
    stage.publish_votes(&all[100..200]).await;
    service.until_logged("default_transaction_read_only is on").await;
    service.until_not_ready().await;
    stage.execute("ALTER SYSTEM RESET default_transaction_read_only").await;
    stage.execute("SELECT pg_reload_conf()").await;
    stage.until_counted(200).await;
    service.until_ready().await;

    servers.script(&["kill", "postgres"]);
    let options = stage.sql.connect_options();
    let options = (*options).clone().host(STANDBY);
    let after = Stage {
        servers: &servers,
        database: stage.database.clone(),
        queue: stage.queue.clone(),
        sql: PgPoolOptions::new().max_connections(2).connect_lazy_with(options),
    };
    after.execute("SELECT pg_promote()").await;
    after.publish_votes(&all[200..]).await;
    after.until_counted(300).await;
    service.until_ready().await;
    assert_eq!(service.address_of("postgres").await, json!("1 of 2"));
    assert_eq!(service.logged("another server takes writes"), 2, "at the start, and now");
    after.finish([service], &all).await;
}

/// Two ways to the same broker. The one in use goes silent about its queue, as a node does that was cut
/// off from the others; heartbeats pass, so that the connection stays open.
#[tokio::test]
async fn a_session_moves_on_from_a_node_that_does_not_answer_about_its_queue() {
    const NONE: usize = 0;
    let stage = Stage::migrated(Servers::shared(), "silent").await;
    // The number of the address that is silent.
    let silent = Arc::new(AtomicUsize::new(NONE));
    let way = async |number: usize| {
        let silent = Arc::clone(&silent);
        Interceptor::start(&stage, "RABBITMQ", move |part| {
            // queue.declare: class 50, method 10.
            let declares = part.windows(4).any(|window| window == [0, 50, 0, 10]);
            let swallowed = declares && silent.load(Ordering::Relaxed) == number;
            Box::pin(async move { if swallowed { Pass::Swallow } else { Pass::Forward } })
        })
        .await
    };
    let ways = [way(1).await, way(2).await];
    let list = format!("127.0.0.1:{},127.0.0.1:{}", ways[0].port, ways[1].port);
    let service = stage.start(&[("RABBITMQ_HOST", &list)]).await;
    let all = votes(0, 100);
    stage.publish_votes(&all[..50]).await;
    stage.until_counted(50).await;
    let [before, after, number] = match service.address_of("rabbitmq").await.as_str() {
        Some("1 of 2") => ["1 of 2", "2 of 2", "1"],
        _ => ["2 of 2", "1 of 2", "2"],
    };
    assert_eq!(service.address_of("rabbitmq").await, json!(before));
    silent.store(number.parse().expect("a number"), Ordering::Relaxed);
    service.until_logged("a request about it was not answered").await;
    eventually("the session has moved", async || {
        service.address_of("rabbitmq").await == json!(after)
    })
    .await;
    service.until_ready().await;
    stage.publish_votes(&all[50..]).await;
    let log = stage.finish([service], &all).await;
    let moves = log.lines().filter(|line| line.contains("opening a new one")).count();
    assert_eq!(moves, 1, "one session was lost: {log}");
}

/// As on a node that was cut off: what it would register later, it must not.
#[tokio::test]
async fn a_node_that_does_not_let_us_consume_in_time_keeps_no_connection() {
    let stage = Stage::new(Servers::shared(), "unclaimed").await;
    let asked = Arc::new(AtomicBool::new(false));
    let closed = Arc::new(AtomicBool::new(false));
    let (asking, closing) = (Arc::clone(&asked), Arc::clone(&closed));
    let way = Interceptor::start(&stage, "RABBITMQ", move |part| {
        let has = |method: [u8; 4]| part.windows(4).any(|window| window == method);
        // basic.consume: class 60, method 20; connection.close: class 10, method 50.
        let consumes = has([0, 60, 0, 20]);
        asking.fetch_or(consumes, Ordering::Relaxed);
        closing.fetch_or(asking.load(Ordering::Relaxed) && has([0, 10, 0, 50]), Ordering::Relaxed);
        Box::pin(async move { if consumes { Pass::Swallow } else { Pass::Forward } })
    });
    let way = way.await;
    let config = stage.config(&[("RABBITMQ_PORT", &way.port.to_string())]);
    let broker = RabbitMq::new(config.rabbitmq);
    let opened = broker.open(10).await;
    assert!(opened.is_err_and(|error| error.to_string().contains("did not let us consume")));
    eventually("its connection is closed", async || closed.load(Ordering::Relaxed)).await;
}

/// What a session relies on: without its own consumer in the answer, the queue has no leader.
#[tokio::test]
async fn a_passive_declare_counts_the_consumer_of_a_session() {
    for kind in ["quorum", "classic"] {
        let stage = Stage::new(Servers::shared(), "consumers").await;
        let arguments = [("x-queue-type", AMQPValue::LongString(kind.into()))];
        stage.declare(true, &arguments).await;
        let config = stage.config(&[]).rabbitmq;
        let broker = RabbitMq::new(config.clone());
        let session = broker.open(10).await.expect("a session");
        let mut watch = QueueWatch::new(config);
        eventually("the consumer is counted", async || {
            watch.status().await.expect("an answer").consumers == 1
        })
        .await;
        session.close().await.expect("closed");
    }
}
