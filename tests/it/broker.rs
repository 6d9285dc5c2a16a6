//! The queue as it is found, malformed messages, and sessions that end.

use std::collections::BTreeMap;

use base64::Engine;
use lapin::types::AMQPValue;
use serde_json::Value;
use vote_aggregator::model::vote::{Choice, Vote};

use crate::support::{Servers, Stage, eventually, message, messages, vote, votes};

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// One message of the corpus: its body, and whether it is a vote.
pub fn corpus() -> Vec<(String, Vec<u8>, bool)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/messages.ndjson");
    let lines = std::fs::read_to_string(path).expect("the corpus is there");
    lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("one JSON object a line"))
        // Those have a corpus of their own, see `hostile`.
        .filter(|entry: &Value| entry["invalid_properties"] != true)
        .map(|entry| {
            let field =
                |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
            let body = if let Some(body) = entry["body"].as_str() {
                body.as_bytes().to_vec()
            } else if let Some(body) = entry["body_base64"].as_str() {
                base64::engine::general_purpose::STANDARD.decode(body).expect("base64")
            } else {
                let repeat = &entry["repeat"];
                let times = repeat["times"].as_u64().expect("a number of times") as usize;
                [
                    field(repeat, "before"),
                    field(repeat, "unit").repeat(times),
                    field(repeat, "after"),
                ]
                .concat()
                .into_bytes()
            };
            (field(&entry, "name"), body, entry["verdict"] == "vote")
        })
        .collect()
}

#[tokio::test]
async fn the_corpus_ends_up_counted_or_dead_lettered_and_nothing_is_lost() {
    let stage = Stage::migrated(Servers::shared(), "corpus").await;
    let corpus = corpus();
    let (good, bad): (Vec<_>, Vec<_>) = corpus.into_iter().partition(|(_, _, is_vote)| *is_vote);
    assert!(bad.len() >= 60 && good.len() >= 20, "{} bad, {} good", bad.len(), good.len());
    // Bad ones before, between and behind good ones.
    let mut bodies: Vec<Vec<u8>> =
        bad.iter().chain(&good).map(|(_, body, _)| body.clone()).collect();
    fastrand::Rng::with_seed(3).shuffle(&mut bodies);

    let service = stage.start(&[]).await;
    stage.publish(&bodies).await;
    stage.until_counted(good.len()).await;
    eventually("all bad ones are rejected", async || {
        stage.ready(&stage.dead_letter_queue()).await == Some(bad.len() as u32)
    })
    .await;
    assert_eq!(
        service.metric("aggregation_errors_total{error_type=\"malformed\"}").await,
        Some(bad.len() as f64)
    );
    let log = service.stop().await;
    let expected: Vec<Vote> = good
        .iter()
        .map(|(name, body, _)| vote_aggregator::model::vote::decode(body, 16_384).expect(name))
        .collect();
    for vote in expected.iter().filter(|vote| vote.citizen_id.len() > 3) {
        assert!(!log.contains(vote.citizen_id.as_str()), "a citizen_id in the log");
    }
    stage.assert_counted_exactly(&expected).await;
    stage.assert_drained().await;
    let mut letters: Vec<Vec<u8>> =
        stage.take_dead_letters().await.into_iter().map(|(body, _)| body).collect();
    let mut sent: Vec<Vec<u8>> = bad.into_iter().map(|(_, body, _)| body).collect();
    letters.sort();
    sent.sort();
    assert!(letters == sent, "the dead letters are the malformed messages, byte for byte");
}

#[tokio::test]
async fn a_batch_of_nothing_but_malformed_messages_blocks_nothing() {
    let stage = Stage::migrated(Servers::shared(), "allbad").await;
    let service = stage.start(&[]).await;
    // More than the prefetch, all rejected, then good ones behind them.
    let mut bodies = vec![b"not a vote".to_vec(); 350];
    let good = votes(0, 30);
    bodies.extend(messages(&good));
    stage.publish(&bodies).await;
    stage.until_counted(30).await;
    service.stop().await;
    stage.assert_counted_exactly(&good).await;
    stage.assert_drained().await;
    assert_eq!(stage.ready(&stage.dead_letter_queue()).await, Some(350));
}

#[tokio::test]
async fn a_queue_that_exists_with_other_arguments_is_used_and_warned_of() {
    let stage = Stage::migrated(Servers::shared(), "foreign").await;
    stage
        .declare(
            true,
            &[
                ("x-message-ttl", AMQPValue::LongInt(3_600_000)),
                ("x-max-length", AMQPValue::LongInt(1_000_000)),
                ("x-max-priority", AMQPValue::LongInt(5)),
                ("x-expires", AMQPValue::LongInt(3_600_000)),
            ],
        )
        .await;
    let service = stage.start(&[]).await;
    let batch = votes(0, 250);
    stage.publish_votes(&batch).await;
    stage.until_counted(250).await;

    let unknown = "does not tell all arguments of this queue";
    for warned in ["x-message-ttl=3600000", "x-expires=3600000", unknown] {
        assert_eq!(service.logged(warned), 1, "{warned}\n{}", service.log());
    }
    let refusals = stage.servers.script(&["log", "rabbitmq"]);
    let named = format!("for queue '{}'", stage.queue);
    let refusals = refusals.lines().filter(|line| line.contains(&named));
    assert_eq!(refusals.count(), 2, "errors in the broker's log");
    let readiness = service.get("/readyz").await;
    assert_eq!(readiness.status, 200, "told, but no reason to be unready");
    let rabbitmq = readiness.json()["checks"]["rabbitmq"].clone();
    assert_eq!(rabbitmq["dead_letter_route"], "unknown");
    assert!(rabbitmq["warnings"].as_array().is_some_and(|all| all.len() == 3), "{rabbitmq}");
    assert_eq!(service.metric("dead_letter_route{state=\"unknown\"}").await, Some(1.0));
    assert_eq!(service.metric("dead_letter_route{state=\"yes\"}").await, Some(0.0));
    service.stop().await;
    stage.assert_counted_exactly(&batch).await;
    stage.assert_drained().await;
    assert_eq!(stage.ready(&stage.dead_letter_queue()).await, Some(0), "made for a bad day");
}

#[tokio::test]
async fn queues_of_every_kind_work_and_a_dead_letter_route_is_seen() {
    let classic_with_route = [
        ("x-queue-type", text("classic")),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text("elsewhere")),
    ];
    let quorum_plain =
        [("x-queue-type", text("quorum")), ("x-delivery-limit", AMQPValue::LongInt(3))];
    let lazy =
        [("x-queue-mode", text("lazy")), ("x-single-active-consumer", AMQPValue::Boolean(true))];
    struct Case<'a> {
        name: &'a str,
        durable: bool,
        arguments: &'a [(&'a str, AMQPValue)],
        route: &'a str,
        warnings: &'a [&'a str],
    }
    let cases = [
        Case {
            name: "classic",
            durable: true,
            arguments: &classic_with_route,
            // Its target does not exist, so a rejected message would vanish.
            route: "no",
            warnings: &["\\\"elsewhere\\\", which does not exist"],
        },
        Case {
            name: "quorum",
            durable: true,
            arguments: &quorum_plain,
            route: "unknown",
            warnings: &["x-delivery-limit=3"],
        },
        Case { name: "lazy", durable: true, arguments: &lazy, route: "unknown", warnings: &[] },
        Case {
            name: "transient",
            durable: false,
            arguments: &[],
            route: "unknown",
            warnings: &["not durable"],
        },
    ];
    for Case { name, durable, arguments, route, warnings } in cases {
        let stage = Stage::migrated(Servers::shared(), name).await;
        stage.declare(durable, arguments).await;
        let service = stage.start(&[]).await;
        let batch = votes(0, 120);
        stage.publish_votes(&batch).await;
        stage.until_counted(120).await;
        let readiness = service.get("/readyz").await.json();
        assert_eq!(readiness["checks"]["rabbitmq"]["dead_letter_route"], route, "{name}");
        for warning in warnings {
            assert_eq!(service.logged(warning), 1, "{name}: {warning}\n{}", service.log());
        }
        service.stop().await;
        stage.assert_counted_exactly(&batch).await;
        stage.assert_drained().await;
    }
}

#[tokio::test]
async fn the_queue_is_created_safe_and_keeps_what_we_reject() {
    let stage = Stage::migrated(Servers::shared(), "created").await;
    let service = stage.start(&[]).await;
    assert_eq!(service.get("/readyz").await.json()["checks"]["rabbitmq"], {
        let mut rabbitmq = service.get("/readyz").await.json()["checks"]["rabbitmq"].clone();
        rabbitmq["dead_letter_route"] = "yes".into();
        rabbitmq["warnings"] = serde_json::json!([]);
        rabbitmq["reason"] = "consuming".into();
        rabbitmq
    });
    let arguments = stage.servers.script(&[
        "ctl",
        "--",
        "-q",
        "list_queues",
        "name",
        "durable",
        "arguments",
        "--formatter",
        "json",
    ]);
    let queues: Value = serde_json::from_str(&arguments).expect("JSON from rabbitmqctl");
    let queues: BTreeMap<String, Value> = queues
        .as_array()
        .expect("a list")
        .iter()
        .map(|queue| (queue["name"].as_str().unwrap_or_default().to_owned(), queue.clone()))
        .collect();
    let main = queues[&stage.queue].to_string();
    for expected in [
        "quorum",
        "at-least-once",
        "reject-publish",
        "x-delivery-limit",
        &stage.dead_letter_queue(),
    ] {
        assert!(main.contains(expected), "{expected} in {main}");
    }
    let dlq = &queues[&stage.dead_letter_queue()];
    assert!(dlq["durable"] == true && dlq.to_string().contains("quorum"), "{dlq}");
    service.stop().await;
}

#[tokio::test]
async fn a_second_start_finds_its_own_queue_without_warning() {
    let stage = Stage::migrated(Servers::shared(), "again").await;
    stage.start(&[]).await.stop().await;
    let service = stage.start(&[]).await;
    let rabbitmq = service.get("/readyz").await.json()["checks"]["rabbitmq"].clone();
    assert_eq!(rabbitmq["dead_letter_route"], "yes", "{rabbitmq}");
    assert_eq!(rabbitmq["warnings"], serde_json::json!([]));
    assert!(!service.log().contains("\"WARN\""), "{}", service.log());
    service.stop().await;
}

#[tokio::test]
async fn a_queue_deleted_while_consuming_is_made_anew() {
    let stage = Stage::migrated(Servers::shared(), "deleted").await;
    let service = stage.start(&[]).await;
    stage.publish_votes(&votes(0, 50)).await;
    stage.until_counted(50).await;
    stage.delete(&stage.queue).await;
    service.until_logged("the broker ended the consumer").await;
    eventually("the queue is there again", async || stage.ready(&stage.queue).await.is_some())
        .await;
    service.until_ready().await;
    stage.publish_votes(&votes(50, 50)).await;
    stage.until_counted(100).await;
    service.stop().await;
    stage.assert_counted_exactly(&votes(0, 100)).await;
    stage.assert_drained().await;
}

#[tokio::test]
async fn connections_closed_by_the_broker_in_mid_stream_lose_and_double_nothing() {
    let servers = Servers::private("closed");
    let stage = Stage::migrated(&servers, "closed").await;
    let service = stage.start(&[]).await;
    let all = votes(0, 20_000);
    let publishing = async {
        for part in all.chunks(4_000) {
            stage.publish_votes(part).await;
        }
    };
    let closing = async {
        for part in 1..=3 {
            stage.until_counted(part * 3_000).await;
            servers.script(&["ctl", "--", "-q", "close_all_connections", "maintenance"]);
        }
    };
    // The publisher's own connection is closed, too: it publishes before the cuts begin.
    publishing.await;
    closing.await;
    stage.until_counted(all.len()).await;
    assert!(service.logged("session with RabbitMQ lost") >= 1, "{}", service.log());
    let errors = service.metric("aggregation_errors_total{error_type=\"broker\"}").await;
    assert!(errors >= Some(1.0), "{errors:?}");
    service.stop().await;
    stage.assert_counted_exactly(&all).await;
    stage.assert_drained().await;
}

#[tokio::test]
async fn a_partial_batch_is_committed_after_the_timeout() {
    let stage = Stage::migrated(Servers::shared(), "timeout").await;
    let service = stage.start(&[("BATCH_TIMEOUT_SECONDS", "0.2")]).await;
    stage.publish(&[message(&vote(1, "law-a", Choice::Oui))]).await;
    stage.until_counted(1).await;
    assert_eq!(service.metric("batch_size_processed_total").await, Some(1.0));
    service.stop().await;
}

/// By the runbook: a queue of somebody else's without a route, then a policy.
#[tokio::test]
async fn a_policy_has_a_dead_letter_queue_to_lead_to_also_when_that_was_deleted() {
    let stage = Stage::migrated(Servers::shared(), "policy").await;
    stage.declare(true, &[("x-queue-type", text("quorum"))]).await;
    let service = stage.start(&[]).await;
    let dead_letters = stage.dead_letter_queue();
    assert_eq!(stage.ready(&dead_letters).await, Some(0), "there before any policy");
    let policy = serde_json::json!({
        "dead-letter-exchange": "", "dead-letter-routing-key": dead_letters,
    });
    let (name, pattern) = (&stage.database, format!("^{}$", stage.queue.replace('.', "\\.")));
    let ctl = ["ctl", "--", "-q"];
    let policy = policy.to_string();
    let set = ["set_policy", name, &pattern, &policy, "--apply-to", "queues"];
    stage.servers.script(&[&ctl[..], &set].concat());
    // The queue learns of a policy a moment later.
    let kept = async || {
        stage.publish(&[b"not a vote".to_vec()]).await;
        stage.ready(&dead_letters).await.is_some_and(|ready| ready > 0)
    };
    eventually("what is rejected is kept", kept).await;
    // At least one look of the service has found it.
    eventually("its depth is known", async || {
        service.metric("dead_letter_queue_messages").await.is_some()
    })
    .await;
    stage.delete(&dead_letters).await;
    service.until_logged("the dead-letter queue was deleted and has been created anew").await;
    eventually("what is rejected is kept again", kept).await;
    service.stop().await;
    stage.servers.script(&[&ctl[..], &["clear_policy", name]].concat());
}
