//! Message properties that no client library can decode: every vote behind them is counted, and
//! they end no process and no command.

use std::time::Duration;

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions};
use lapin::types::{AMQPValue, FieldTable};
use vote_aggregator::model::vote::{Choice, Vote};

use self::corpus::{Hostile, corpus, long_header};
use super::until_settled;
use crate::support::{RawPublisher, Servers, Stage, message, text, vote, votes};

#[path = "../../fuzz/hostile.rs"]
mod corpus;

const PATIENCE: Duration = Duration::from_secs(90);

/// A vote of its own for each number of a hostile message.
fn hostile_vote(number: u64) -> Vote {
    vote(10_000 + number, "law-000", Choice::Oui)
}

/// Publishes a vote with these properties, through the exchange of [`with_exchange`] where they come
/// with a routing key.
async fn publish(stage: &Stage<'_>, raw: &mut RawPublisher, hostile: &Hostile, vote: &Vote) {
    let to = match &hostile.routing_key {
        None => ("", stage.queue.as_bytes()),
        Some(key) => (stage.queue.as_str(), key.as_slice()),
    };
    raw.publish(to, &hostile.properties, &message(vote)).await;
}

/// Declares the queue, and a topic exchange of the same name that routes everything to it.
async fn with_exchange(stage: &Stage<'_>) {
    stage.publish(&[]).await;
    let name = stage.queue.as_str();
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let (topic, none) = (ExchangeKind::Topic, FieldTable::default());
    stage
        .on_channel(async |channel| {
            channel.exchange_declare(name.into(), topic, durable, none.clone()).await?;
            let bind = QueueBindOptions::default();
            channel.queue_bind(name.into(), name.into(), "#".into(), bind, none).await
        })
        .await
        .expect("declared and bound");
}

#[tokio::test]
async fn votes_behind_any_hostile_properties_are_counted() {
    let stage = Stage::migrated(Servers::shared(), "properties").await;
    with_exchange(&stage).await;
    let corpus = corpus();
    let mut raw = RawPublisher::open(&stage).await;
    let mut counted = votes(5_000, 500);
    for (number, hostile) in (0..).zip(&corpus) {
        let own = hostile_vote(number);
        publish(&stage, &mut raw, hostile, &own).await;
        counted.extend(hostile.is_counted.then_some(own));
        let behind = votes(number * 20, 20);
        stage.publish_votes(&behind).await;
        counted.extend(behind);
    }
    stage.publish_votes(&counted[..500]).await;
    // With what the broker notes about a redelivery, one frame is longer than frames may be.
    let published = 500 + 21 * corpus.len();
    assert_eq!(raw.requeue_all(&stage.queue).await, published);
    drop(raw);

    let service = stage.start(&[]).await;
    let dead = (published - counted.len()) as u64;
    until_settled(&stage, PATIENCE, counted.len(), dead).await;
    service.until_metric("votes_rejected_total{reason=\"properties\"}", dead as f64).await;
    let log = stage.finish([service], &counted).await;
    assert!(!log.contains("session with RabbitMQ lost"), "{log}");
}

/// RabbitMQ never splits a header frame that it sends. Without a `frame_max`, as for AMQP 1.0
/// publishers, properties have any length; with a lower one, what RabbitMQ adds makes a frame longer.
#[tokio::test]
async fn votes_behind_headers_of_any_length_are_counted() {
    let servers = Servers::private("properties-length");
    let stage = Stage::migrated(&servers, "properties_length").await;
    stage.publish(&[]).await;
    servers.ctl(&["eval", "application:set_env(rabbit, frame_max, 0)."]);
    let mut raw = RawPublisher::open_with(&stage, 0).await;
    let mut counted = votes(0, 100);
    for (number, length) in (0..).zip([7_000, 8_100, 8_150, 100_000, 600_000, 2_000_000]) {
        let own = hostile_vote(number);
        let properties = long_header(length as usize);
        raw.publish(("", stage.queue.as_bytes()), &properties, &message(&own)).await;
        counted.extend((length < 500_000).then_some(own));
    }
    stage.publish_votes(&counted[..100]).await;
    assert_eq!(raw.requeue_all(&stage.queue).await, 106);
    drop(raw);

    servers.ctl(&["eval", "application:set_env(rabbit, frame_max, 8192)."]);
    let service = stage.start(&[]).await;
    until_settled(&stage, PATIENCE, counted.len(), 2).await;
    let log = stage.finish([service], &counted).await;
    assert!(!log.contains("session with RabbitMQ lost"), "{log}");
}

/// One at the head of the queue, three instances that could requeue it for each other, and a limit of
/// 20 deliveries that good votes must not reach.
#[tokio::test]
async fn a_low_delivery_limit_drops_no_vote_because_of_one_message() {
    let stage = Stage::migrated(Servers::shared(), "properties_limit").await;
    stage.publish(&[]).await;
    stage.delete(&stage.queue).await;
    let arguments = [
        ("x-queue-type", text("quorum")),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(&stage.dead_letter_queue())),
        ("x-delivery-limit", AMQPValue::LongInt(20)),
    ];
    stage.declare(true, &arguments).await;
    let mut raw = RawPublisher::open(&stage).await;
    let mut counted = votes(0, 300);
    let names = "latin1-header-name latin1-message-id arrays-26000-deep arrays-1400-deep \
                 tables-2000-deep";
    let corpus = corpus();
    for (number, name) in (0..).zip(names.split(' ')) {
        let hostile = corpus.iter().find(|hostile| hostile.name == name).expect(name);
        let own = hostile_vote(number);
        publish(&stage, &mut raw, hostile, &own).await;
        counted.extend(hostile.is_counted.then_some(own));
    }
    assert_eq!(counted.len(), 303, "two of the five are dead-lettered");
    stage.publish_votes(&counted[..300]).await;
    let services = [stage.start(&[]).await, stage.start(&[]).await, stage.start(&[]).await];
    until_settled(&stage, PATIENCE, counted.len(), 2).await;
    stage.finish(services, &counted).await;
    // The client library alone could not read them.
    let listed = stage.run("dlq", &["list", "--json"]).await;
    let rejected = |line: &&str| line.contains(r#""x_death_reason":"rejected""#);
    assert_eq!(listed.stdout.lines().filter(rejected).count(), 2, "{}", listed.stdout);
}

#[tokio::test]
async fn each_dlq_command_gets_past_hostile_properties() {
    let stage = Stage::migrated(Servers::shared(), "properties_dlq").await;
    stage.publish(&[]).await;
    let corpus = Vec::from_iter(corpus().into_iter().filter(|it| it.routing_key.is_none()));
    let mut raw = RawPublisher::open(&stage).await;
    let dead_letters = stage.dead_letter_queue();
    let all = Vec::from_iter((0..corpus.len() as u64).map(|n| vote(n, "law-000", Choice::Non)));
    for (hostile, vote) in corpus.iter().zip(&all) {
        raw.publish(("", dead_letters.as_bytes()), &hostile.properties, &message(vote)).await;
    }
    let invalid = corpus.iter().filter(|hostile| !hostile.is_counted).count();

    let dlq = async |command: &[&str], code| stage.run("dlq", command).await.assert(code, &[]);
    let listed = dlq(&["list", "--json", "--max", "0"], 0).await.stdout;
    let found = listed.lines().filter(|line| line.contains(r#""reason":"properties""#)).count();
    assert_eq!((listed.lines().count(), found), (corpus.len(), invalid));
    let listed = dlq(&["list"], 0).await.stdout;
    assert!(listed.len() < 40_000, "{} bytes of a list", listed.len());
    let shown = dlq(&["show", "--max", "0", "--reason", "properties"], 0).await.stdout;
    assert_eq!(shown.matches("not valid AMQP").count(), invalid, "{shown}");

    // The valid ones, and then three of the others, with `?` for what was invalid.
    let service = stage.start(&[]).await;
    // Some of those that match were left: exit code 1.
    dlq(&["replay", "--yes", "--no-trial"], 1).await;
    stage.until_ready(&dead_letters, invalid).await;
    let forced = ["--reason", "properties", "--force", "--yes", "--max", "3", "--no-trial"];
    dlq(&[&["replay"], &forced[..]].concat(), 0).await;
    stage.until_counted(corpus.len() - invalid + 3).await;
    dlq(&["purge", "--yes"], 0).await;
    assert_eq!(stage.ready(&dead_letters).await, Some(0));
    service.stop().await;
}
