//! Queues that drop what comes back too often: what RabbitMQ does, and that the service knows.

use futures::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicNackOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

use crate::support::{Servers, Stage, eventually, text};

const NEAR: &str = "delivery_limit_near";
const VOTES: u64 = 5;

/// How a consumer gives everything back.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Return {
    Nack,
    LostConnection,
}

fn quorum() -> [(&'static str, AMQPValue); 1] {
    [("x-queue-type", text("quorum"))]
}

/// Takes all votes of the queue, and gives them back.
async fn give_back(stage: &Stage<'_>, by: Return) {
    let (connection, channel) = stage.channel().await;
    let options = BasicConsumeOptions::default();
    let queue = stage.queue.as_str().into();
    let consuming = channel.basic_consume(queue, "".into(), options, FieldTable::default());
    let mut consumer = consuming.await.expect("consuming");
    for _ in 0..VOTES {
        consumer.next().await.expect("a delivery").expect("delivered");
    }
    if by == Return::Nack {
        channel.basic_cancel(consumer.tag(), Default::default()).await.expect("cancelled");
        let everything = BasicNackOptions { multiple: true, requeue: true };
        channel.basic_nack(0, everything).await.expect("given back");
    }
    connection.close(200, "OK".into()).await.expect("closed");
}

/// What the warnings and the runbook say of RabbitMQ: 20 returns on a queue without a limit, of which kinds,
/// and that a policy takes effect on what is in the queue.
#[tokio::test]
async fn rabbitmq_drops_what_comes_back_21_times_unless_a_policy_says_otherwise() {
    let version = Servers::shared().version();
    for (by, policy) in
        [(Return::LostConnection, false), (Return::LostConnection, true), (Return::Nack, false)]
    {
        let stage = Stage::new(Servers::shared(), "returns").await;
        stage.declare(true, &quorum()).await;
        stage.publish_new(0, VOTES).await;
        for number in 1..=20 {
            give_back(&stage, by).await;
            stage.until_ready(&stage.queue, VOTES as usize).await;
            if policy && number == 19 {
                stage.set_policy(&json!({"delivery-limit": 1_000}));
            }
        }
        give_back(&stage, by).await;
        let counted = by == Return::LostConnection || version < (4, 3);
        let dropped = version >= (4, 0) && counted && !policy;
        stage.until_ready(&stage.queue, if dropped { 0 } else { VOTES as usize }).await;
    }
}

#[tokio::test]
async fn an_operator_hears_of_the_last_returns_before_votes_are_dropped() {
    let stage = Stage::migrated(Servers::shared(), "lastreturns").await;
    stage.declare(true, &quorum()).await;
    let all = stage.publish_new(0, VOTES).await;
    let has_limit = stage.servers.version() >= (4, 0);
    for _ in 0..15 {
        give_back(&stage, Return::LostConnection).await;
        stage.until_ready(&stage.queue, VOTES as usize).await;
    }
    // A batch with this law waits, and a start does not.
    let lock = stage.hold("INSERT INTO vote_results (law_id) VALUES ('law-000')").await;
    let service = stage.start(&[]).await;
    service.until_metric("deliveries_unacked", VOTES as f64).await;
    let warned = service.get("/readyz").await.body.contains("votes are about to be dropped");
    let expected = if has_limit { (true, Some(1.0), 1) } else { (false, Some(0.0), 0) };
    let log = service.log();
    let logged = log.matches("has come back 15 times; after 20 times").count();
    assert_eq!((warned, service.metric(NEAR).await, logged), expected, "{log}");
    assert_eq!(log.contains("no x-delivery-limit"), has_limit, "at every start: {log}");

    drop(lock);
    stage.until_counted(all.len()).await;
    eventually("the warning ends", async || {
        service.metric(NEAR).await == Some(0.0)
            && !service.get("/readyz").await.body.contains("about to be dropped")
    })
    .await;
    stage.finish([service], &all).await;
}
