//! The queue as it is found, malformed messages, and sessions that end.

use std::time::Duration;

use futures::StreamExt;
use lapin::types::AMQPValue;
use serde_json::{Value, json};
use vote_aggregator::adapters::broker::RabbitMq;
use vote_aggregator::model::ports::{Broker, BrokerError, Session};
use vote_aggregator::model::vote::{Vote, decode};

use crate::support::{Servers, Stage, eventually, text};

#[path = "../shared/corpus.rs"]
mod corpus;

#[tokio::test]
async fn the_corpus_ends_up_counted_or_dead_lettered_and_nothing_is_lost() {
    let (stage, service) = Stage::started("corpus", &[]).await;
    // Those with invalid properties have a corpus of their own, see `hostile`.
    let messages = corpus::messages().filter(|(entry, _)| entry["invalid_properties"] != true);
    let (good, bad): (Vec<_>, Vec<_>) = messages.partition(|(entry, _)| entry["verdict"] == "vote");
    let [good, mut bad] =
        [good, bad].map(|messages| messages.into_iter().map(|(_, body)| body).collect::<Vec<_>>());
    assert!(bad.len() >= 60 && good.len() >= 20, "{} bad, {} good", bad.len(), good.len());
    // Bad ones before, between and behind good ones.
    let mut bodies = [&bad[..], &good].concat();
    fastrand::Rng::with_seed(3).shuffle(&mut bodies);
    let decoded = good.iter().map(|body| decode(body, 16_384).expect("a vote"));
    let votes: Vec<Vote> = decoded.collect();

    stage.publish(&bodies).await;
    stage.until_ready(&stage.dead_letter_queue(), bad.len()).await;
    let malformed = "aggregation_errors_total{error_type=\"malformed\"}";
    service.until_metric(malformed, bad.len() as f64).await;
    let log = stage.finish([service], &votes).await;
    for vote in votes.iter().filter(|vote| vote.citizen_id.len() > 3) {
        assert!(!log.contains(vote.citizen_id.as_str()), "a citizen_id in the log");
    }
    let dead_letters = stage.take_dead_letters().await;
    let mut kept: Vec<Vec<u8>> = dead_letters.into_iter().map(|(body, _)| body).collect();
    kept.sort();
    bad.sort();
    assert!(kept == bad, "the dead letters are the malformed messages, byte for byte");
}

#[tokio::test]
async fn a_queue_that_exists_with_other_arguments_is_used_and_warned_of() {
    let stage = Stage::migrated(Servers::shared(), "foreign").await;
    let arguments = [
        ("x-message-ttl", AMQPValue::LongInt(3_600_000)),
        ("x-max-length", AMQPValue::LongInt(1_000_000)),
        ("x-max-priority", AMQPValue::LongInt(5)),
        ("x-expires", AMQPValue::LongInt(3_600_000)),
    ];
    stage.declare(true, &arguments).await;
    let service = stage.start(&[]).await;

    let unknown = "does not show all arguments of this queue";
    for warned in ["x-message-ttl=3600000", "x-expires=3600000", unknown] {
        assert_eq!(service.logged(warned), 1, "{warned}\n{}", service.log());
    }
    let refusals = stage.servers.script(&["log", "rabbitmq"]);
    let named = format!("for queue '{}'", stage.queue);
    let refusals = refusals.lines().filter(|line| line.contains(&named));
    // RabbitMQ 4.3 refuses a consumer's time-out on a classic queue, once.
    let expected = if stage.servers.version() < (4, 3) { 2 } else { 3 };
    assert_eq!(refusals.count(), expected, "errors in the broker's log");
    let rabbitmq = service.checks().await["rabbitmq"].clone();
    assert_eq!(rabbitmq["dead_letter_route"], "unknown");
    assert_eq!(rabbitmq["warnings"].as_array().map(Vec::len), Some(3), "{rabbitmq}");
    service.until_metric("dead_letter_route{state=\"unknown\"}", 1.0).await;
    service.until_metric("dead_letter_route{state=\"yes\"}", 0.0).await;
    let batch = stage.publish_new(0, 250).await;
    stage.finish([service], &batch).await;
    assert_eq!(stage.ready(&stage.dead_letter_queue()).await, Some(0), "created in advance");
}

#[tokio::test]
async fn queues_of_every_kind_work_and_a_dead_letter_route_is_seen() {
    let classic_with_route = vec![
        ("x-queue-type", text("classic")),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text("elsewhere")),
    ];
    let limit = AMQPValue::LongInt(3);
    let quorum = vec![("x-queue-type", text("quorum")), ("x-delivery-limit", limit)];
    let single = AMQPValue::Boolean(true);
    let lazy = vec![("x-queue-mode", text("lazy")), ("x-single-active-consumer", single)];
    // With a route whose target does not exist, a rejected message would be lost.
    let no_target = "\\\"elsewhere\\\", which does not exist";
    for (name, durable, arguments, route, warning) in [
        ("classic", true, classic_with_route, "no", Some(no_target)),
        ("quorum", true, quorum, "unknown", Some("x-delivery-limit=3")),
        ("lazy", true, lazy, "unknown", None),
        ("transient", false, vec![], "unknown", Some("not durable")),
    ] {
        let stage = Stage::migrated(Servers::shared(), name).await;
        stage.declare(durable, &arguments).await;
        let service = stage.start(&[]).await;
        assert_eq!(service.checks().await["rabbitmq"]["dead_letter_route"], route, "{name}");
        if let Some(warning) = warning {
            assert_eq!(service.logged(warning), 1, "{name}: {warning}\n{}", service.log());
        }
        let batch = stage.publish_new(0, 120).await;
        stage.finish([service], &batch).await;
    }
}

#[tokio::test]
async fn the_queue_is_created_safe_and_found_again_without_a_warning() {
    let stage = Stage::migrated(Servers::shared(), "created").await;
    stage.start(&[]).await.stop().await;
    let list = ["list_queues", "name", "durable", "arguments", "--formatter", "json"];
    let queues: Vec<Value> = serde_json::from_str(&stage.servers.ctl(&list)).expect("JSON");
    let dead_letters = stage.dead_letter_queue();
    let safe = ["quorum", "at-least-once", "reject-publish", "x-delivery-limit", &dead_letters];
    for (name, arguments) in [(&stage.queue, &safe[..]), (&dead_letters, &["quorum"])] {
        let queue = queues.iter().find(|queue| queue["name"] == **name).expect("it exists");
        assert_eq!(queue["durable"], true);
        let queue = queue.to_string();
        assert!(arguments.iter().all(|argument| queue.contains(argument)), "{queue}");
    }
    let service = stage.start(&[]).await;
    let rabbitmq = service.checks().await["rabbitmq"].clone();
    assert_eq!(rabbitmq["dead_letter_route"], "yes", "{rabbitmq}");
    assert_eq!((&rabbitmq["warnings"], &rabbitmq["reason"]), (&json!([]), &json!("consuming")));
    assert!(!service.log().contains("\"WARN\""), "{}", service.log());
    service.stop().await;
}

/// By the runbook: a queue that others declared without a route, then a policy.
#[tokio::test]
async fn a_policy_has_a_dead_letter_queue_to_lead_to_also_when_that_was_deleted() {
    let stage = Stage::migrated(Servers::shared(), "policy").await;
    stage.declare(true, &[("x-queue-type", text("quorum"))]).await;
    let service = stage.start(&[]).await;
    let dead_letters = stage.dead_letter_queue();
    assert_eq!(stage.ready(&dead_letters).await, Some(0), "there before any policy");
    stage.set_policy(&json!({"dead-letter-exchange": "", "dead-letter-routing-key": dead_letters}));
    // The queue learns of a policy a moment later.
    let kept = async || {
        stage.publish(&[b"not a vote".to_vec()]).await;
        stage.ready(&dead_letters).await > Some(0)
    };
    eventually("what is rejected is kept", kept).await;
    // The service has found the queue at least once.
    let depth = async || service.metric("dead_letter_queue_messages").await;
    eventually("its depth is known", async || depth().await.is_some()).await;
    stage.delete(&dead_letters).await;
    service.until_logged("the dead-letter queue was deleted and has been recreated").await;
    eventually("what is rejected is kept again", kept).await;
    service.stop().await;
    stage.servers.ctl(&["clear_policy", &stage.queue]);
}

/// RabbitMQ 4.3 cancels the consumer on a channel that stays open, exactly when the consumer's own time-out is
/// over; earlier ones have one for all consumers, and close the channel at their next look. By its own
/// deadlines the service never holds a vote for so long.
#[tokio::test]
async fn a_consumer_timeout_is_distinguished_from_other_ends_of_a_consumer() {
    let servers = Servers::private("consumertimeout");
    let (major, minor) = servers.version();
    let of_the_broker = if (major, minor) < (4, 3) { 3_000 } else { 600_000 };
    let limits = format!(
        "application:set_env(rabbit, consumer_timeout, {of_the_broker}), \
         application:set_env(rabbit, channel_tick_interval, 500)."
    );
    servers.ctl(&["eval", &limits]);
    let stage = Stage::new(&servers, "consumertimeout").await;
    let timeout = Duration::from_secs(3);
    let mut rabbitmq = stage.config(&[]).rabbitmq;
    rabbitmq.consumer_timeout = timeout;
    let broker = RabbitMq::new(rabbitmq);
    stage.publish_new(0, 2).await;

    let mut session = broker.open(10).await.expect("a session");
    let (_, mut deliveries) = session.split();
    for _ in 0..2 {
        deliveries.next().await.expect("open").expect("delivered");
    }
    let ended = deliveries.next().await.expect("an end").expect_err("taken back");
    match ended {
        BrokerError::ConsumerEnded { timeout: known } => {
            assert!((major, minor) >= (4, 3));
            assert_eq!(known, Some(timeout));
        }
        BrokerError::ConsumerTimeout(text) => {
            assert!((major, minor) < (4, 3));
            assert!(text.contains("timed out"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    stage.until_ready(&stage.queue, 2).await;
}
