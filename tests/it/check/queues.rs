//! Findings about the queues.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lapin::types::AMQPValue;
use serde_json::json;

use super::{check, closed_port, connected, everything};
use crate::support::{Interceptor, Pass, Servers, Stage, contains, eventually, text};

/// The rules have unit tests; this shows that the broker's answers reach them, and nothing changes.
#[tokio::test]
async fn a_queue_that_loses_votes_is_reported_with_all_its_reasons() {
    let bounded = [
        ("x-message-ttl", AMQPValue::LongInt(60_000)),
        ("x-max-length", AMQPValue::LongInt(1_000)),
        ("x-expires", AMQPValue::LongInt(3_600_000)),
    ];
    let limited = [("x-queue-type", text("quorum")), ("x-delivery-limit", AMQPValue::LongInt(0))];
    let to_nowhere =
        [("x-dead-letter-exchange", text("")), ("x-dead-letter-routing-key", text("nowhere"))];
    let quorum = [("x-queue-type", text("quorum"))];
    let stream = [("x-queue-type", text("stream"))];
    let no_exchange = ("warning", "declared without a dead-letter exchange");
    let bounds = [
        ("error", "x-message-ttl=60000"),
        ("error", "x-max-length=1000 with drop-head"),
        ("error", "x-expires=3600000"),
        ("warning", "x-queue-type=classic"),
        no_exchange,
    ];
    let no_target = ("error", "the queue \"nowhere\", which does not exist");
    for (name, durable, arguments, code, found) in [
        ("checkttl", true, &bounded[..], 1, &bounds[..]),
        ("checklimit", true, &limited, 1, &[("error", "x-delivery-limit=0")]),
        ("checkroute", true, &quorum, 0, &[no_exchange]),
        ("checknowhere", true, &to_nowhere, 1, &[no_target]),
        ("checkstream", true, &stream, 1, &[("error", "x-queue-type=stream")]),
        ("checktransient", false, &[], 1, &[("error", "not durable")]),
    ] {
        let stage = Stage::migrated(Servers::shared(), name).await;
        stage.declare(durable, arguments).await;
        let before = everything(&stage).await;
        connected(&stage, &[]).await.finds(code, found);
        assert_eq!(everything(&stage).await, before, "{name}");
        check(&stage, &["--connect", "--strict"], &[]).await.assert(1, &[]);
    }
}

/// RabbitMQ says which version it is when a connection opens.
#[tokio::test]
async fn an_unset_limit_depends_on_the_version() {
    let stage = Stage::migrated(Servers::shared(), "checkdefault").await;
    stage.declare(true, &[("x-queue-type", text("quorum"))]).await;
    let ended = connected(&stage, &[]).await;
    let (major, minor) = stage.servers.version();
    ended.finds(0, &[("info", &format!("RabbitMQ {major}.{minor}."))]);
    assert_eq!(ended.stdout.contains("no x-delivery-limit"), major >= 4, "{}", ended.stdout);
}

#[tokio::test]
async fn a_queue_that_is_exclusive_to_another_connection_is_an_error() {
    let stage = Stage::migrated(Servers::shared(), "checkexclusive").await;
    let _connection = stage.exclusive_queue(&stage.queue).await;
    connected(&stage, &[]).await.finds(1, &[("error", "has declared it exclusive")]);
}

/// Arguments are found by redeclaring: a queue that has just vanished must not be created by that.
#[tokio::test]
async fn a_queue_that_vanishes_during_a_check_is_not_created() {
    for (name, argument) in [
        ("vanishquorum", ("x-queue-type", text("quorum"))),
        ("vanishclassic", ("x-message-ttl", AMQPValue::LongInt(60_000))),
    ] {
        let stage = Arc::new(Stage::migrated(Servers::shared(), name).await);
        stage.declare(true, &[argument]).await;
        let (hooked, redeclares) = (Arc::clone(&stage), Arc::new(AtomicUsize::new(0)));
        let seen = Arc::clone(&redeclares);
        let interceptor = Interceptor::start(&stage, "RABBITMQ", move |part| {
            let (stage, redeclares) = (Arc::clone(&hooked), Arc::clone(&seen));
            Box::pin(async move {
                // The first redeclare finds the queue; the second finds none.
                if contains(&part, "x-max-age") && redeclares.fetch_add(1, Ordering::Relaxed) == 1 {
                    stage.delete(&stage.queue).await;
                }
                Pass::Forward
            })
        })
        .await;
        let ended = connected(&stage, &[("RABBITMQ_PORT", &interceptor.port)]).await;
        assert_eq!(redeclares.load(Ordering::Relaxed), 2, "{name}: {}", ended.stdout);
        assert_eq!(stage.ready(&stage.queue).await, None, "{name}");
    }
}

/// Only the management API shows a policy.
#[tokio::test]
async fn policies_are_seen_through_the_management_api() {
    let servers = Servers::private_with("checkpolicy", &["--management"]);
    let stage = Stage::migrated(&servers, "checkpolicy").await;
    // Of two limits the lower one holds.
    let limited =
        [("x-queue-type", text("quorum")), ("x-delivery-limit", AMQPValue::LongInt(1_000))];
    stage.declare(true, &limited).await;
    stage.declare_queue(&stage.dead_letter_queue(), true, &[]).await;
    let management = [("RABBITMQ_MANAGEMENT_URL", servers.get("RABBITMQ_MANAGEMENT_URL"))];
    let version = format!("RabbitMQ {}", servers.ctl(&["version"]).trim());
    let found = [("error", "the queue has no dead-letter exchange"), ("info", version.as_str())];
    connected(&stage, &management).await.finds(1, &found);

    stage.set_policy(&json!({
        "dead-letter-exchange": "", "dead-letter-routing-key": stage.dead_letter_queue(),
        "dead-letter-strategy": "at-least-once", "overflow": "reject-publish",
        "delivery-limit": 5,
    }));
    // The API shows what is new a moment later.
    eventually("the policy is seen", async || {
        let with = connected(&stage, &management).await;
        with.code == Some(0)
            && with.severity("x-delivery-limit=5") == "warning"
            && !with.stdout.contains("at most once")
    })
    .await;

    stage.set_policy(&json!({"dead-letter-exchange": "amq.fanout"}));
    eventually("the new policy is seen", async || {
        let unbound = connected(&stage, &management).await;
        unbound.code == Some(1) && unbound.stdout.contains("to which nothing is bound")
    })
    .await;

    let gone = format!("http://127.0.0.1:{}", closed_port().await);
    let blind = connected(&stage, &[("RABBITMQ_MANAGEMENT_URL", &gone)]).await;
    assert_eq!(blind.severity("the management API does not answer"), "warning");
    assert_eq!(blind.severity("declared without a dead-letter exchange"), "warning");
}
