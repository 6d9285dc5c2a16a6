//! Message properties that no client library can decode: every vote behind them is counted, and
//! no process and no command ends by them.

use std::time::Duration;

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions};
use lapin::types::{AMQPValue, FieldTable};
use vote_aggregator::model::vote::Vote;

use self::corpus::{Hostile, corpus};
use crate::support::{
    RawPublisher, Servers, Stage, eventually, eventually_within, message, run, vote, votes,
};
use vote_aggregator::model::vote::Choice;

#[path = "../../fuzz/hostile.rs"]
mod corpus;

const WITHIN: Duration = Duration::from_secs(90);

/// Publishes the vote with this number and these properties, through a topic exchange where they
/// come with a routing key.
async fn publish(stage: &Stage<'_>, raw: &mut RawPublisher, hostile: &Hostile, body: &[u8]) {
    match &hostile.routing_key {
        None => raw.publish("", stage.queue.as_bytes(), &hostile.properties, body).await,
        Some(key) => raw.publish(&stage.queue, key, &hostile.properties, body).await,
    }
}

/// The queue, and an exchange of the same name that leads everything to it.
async fn with_exchange(stage: &Stage<'_>) {
    stage.publish(&[]).await;
    let connection = stage.amqp().await;
    let channel = connection.create_channel().await.expect("a channel");
    let (exchange, durable) =
        (stage.queue.as_str(), ExchangeDeclareOptions { durable: true, ..Default::default() });
    channel
        .exchange_declare(exchange.into(), ExchangeKind::Topic, durable, FieldTable::default())
        .await
        .expect("declared");
    let bind = QueueBindOptions::default();
    channel
        .queue_bind(exchange.into(), exchange.into(), "#".into(), bind, FieldTable::default())
        .await
        .expect("bound");
    connection.close(200, "OK".into()).await.expect("closed");
}

async fn until_settled(stage: &Stage<'_>, counted: usize, dead: usize) {
    eventually_within(WITHIN, &format!("{counted} counted and {dead} dead letters"), async || {
        stage.number("SELECT count(*) FROM vote_audit").await >= counted as i64
            && stage.ready(&stage.dead_letter_queue()).await == Some(dead as u32)
    })
    .await;
}

#[tokio::test]
async fn votes_behind_any_hostile_properties_are_counted() {
    let stage = Stage::migrated(Servers::shared(), "properties").await;
    with_exchange(&stage).await;
    let corpus = corpus();
    let mut raw = RawPublisher::open(&stage).await;
    let (mut counted, mut dead): (Vec<Vote>, usize) = (Vec::new(), 0);
    for (number, hostile) in corpus.iter().enumerate() {
        let own = vote(10_000 + number as u64, "law-000", Choice::Oui);
        publish(&stage, &mut raw, hostile, &message(&own)).await;
        if hostile.is_counted {
            counted.push(own);
        } else {
            dead += 1;
        }
        let behind = votes(number as u64 * 20, 20);
        stage.publish_votes(&behind).await;
        counted.extend(behind);
    }
    let behind = votes(5_000, 500);
    stage.publish_votes(&behind).await;
    counted.extend(behind);
    // With what the broker notes about a redelivery, one frame is longer than frames may be.
    assert_eq!(raw.requeue_all(&stage.queue).await, 500 + 21 * corpus.len());
    drop(raw);

    let service = stage.start(&[]).await;
    until_settled(&stage, counted.len(), dead).await;
    let rejected = service.metric("votes_rejected_total{reason=\"properties\"}").await;
    assert_eq!(rejected, Some(dead as f64));
    let log = service.stop().await;
    assert!(!log.contains("session with RabbitMQ lost"), "{log}");
    stage.assert_counted_exactly(&counted).await;
    stage.assert_drained().await;
}

/// RabbitMQ never splits a header frame that it sends. Without a `frame_max`, as for AMQP 1.0
/// publishers, properties have any length; with a lower one, what RabbitMQ adds makes a frame longer.
#[tokio::test]
async fn votes_behind_headers_of_any_length_are_counted() {
    let servers = Servers::private("properties-length");
    let stage = Stage::migrated(&servers, "properties_length").await;
    stage.publish(&[]).await;
    let announce = |frame_max: u32| {
        let set = format!("application:set_env(rabbit, frame_max, {frame_max}).");
        servers.script(&["ctl", "--", "eval", &set]);
    };
    announce(0);
    let mut raw = RawPublisher::open_with(&stage, 0).await;
    let mut counted = votes(0, 100);
    for (number, length) in (10_000..).zip([7_000, 8_100, 8_150, 100_000, 600_000, 2_000_000]) {
        let own = vote(number, "law-000", Choice::Oui);
        let text = u32::try_from(length).expect("small");
        let table = [&b"\x01aS"[..], &text.to_be_bytes(), &vec![b'x'; length]].concat();
        let size = u32::try_from(table.len()).expect("small").to_be_bytes();
        let properties = [&[0x20, 0][..], &size, &table].concat();
        raw.publish("", stage.queue.as_bytes(), &properties, &message(&own)).await;
        if length < 500_000 {
            counted.push(own);
        }
    }
    stage.publish_votes(&counted[..100]).await;
    assert_eq!(raw.requeue_all(&stage.queue).await, 106);
    drop(raw);

    announce(8_192);
    let service = stage.start(&[]).await;
    until_settled(&stage, counted.len(), 2).await;
    let log = service.stop().await;
    assert!(!log.contains("session with RabbitMQ lost"), "{log}");
    stage.assert_counted_exactly(&counted).await;
    stage.assert_drained().await;
}

/// One at the head, three instances that could hand it to each other, and a limit of 20 that good
/// votes must not reach.
#[tokio::test]
async fn a_low_delivery_limit_drops_no_vote_because_of_one_message() {
    let stage = Stage::migrated(Servers::shared(), "properties_limit").await;
    stage.publish(&[]).await;
    stage.delete(&stage.queue).await;
    let text = |value: &str| AMQPValue::LongString(value.into());
    let arguments = [
        ("x-queue-type", text("quorum")),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(&stage.dead_letter_queue())),
        ("x-delivery-limit", AMQPValue::LongInt(20)),
    ];
    stage.declare(true, &arguments).await;
    let corpus = corpus();
    let named = |name: &str| corpus.iter().find(|entry| entry.name == name).expect(name);
    let mut raw = RawPublisher::open(&stage).await;
    let mut counted = votes(0, 300);
    for (number, name) in [
        "latin1-header-name",
        "latin1-message-id",
        "arrays-26000-deep",
        "arrays-1400-deep",
        "tables-2000-deep",
    ]
    .into_iter()
    .enumerate()
    {
        let own = vote(10_000 + number as u64, "law-000", Choice::Oui);
        publish(&stage, &mut raw, named(name), &message(&own)).await;
        if named(name).is_counted {
            counted.push(own);
        }
    }
    stage.publish_votes(&counted[..300]).await;
    let services = [stage.start(&[]).await, stage.start(&[]).await, stage.start(&[]).await];
    until_settled(&stage, counted.len(), 2).await;
    for service in services {
        service.stop().await;
    }
    stage.assert_counted_exactly(&counted).await;
    stage.assert_drained().await;
    // The client library alone could not read them.
    let listed = run(&stage, "dlq", &["list", "--json"]).await;
    let rejected = |line: &&str| line.contains(r#""x_death_reason":"rejected""#);
    assert_eq!(listed.stdout.lines().filter(rejected).count(), 2, "{}", listed.stdout);
}

#[tokio::test]
async fn each_dlq_command_gets_past_hostile_properties() {
    let stage = Stage::migrated(Servers::shared(), "properties_dlq").await;
    stage.publish(&[]).await;
    let corpus: Vec<Hostile> =
        corpus().into_iter().filter(|hostile| hostile.routing_key.is_none()).collect();
    let mut raw = RawPublisher::open(&stage).await;
    let dead_letters = stage.dead_letter_queue();
    let all: Vec<Vote> =
        (0..corpus.len() as u64).map(|n| vote(n, "law-000", Choice::Non)).collect();
    for (hostile, vote) in corpus.iter().zip(&all) {
        raw.publish("", dead_letters.as_bytes(), &hostile.properties, &message(vote)).await;
    }
    let invalid = corpus.iter().filter(|hostile| !hostile.is_counted).count();

    let listed = run(&stage, "dlq", &["list", "--json", "--max", "0"]).await;
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    let lines = listed.stdout.lines();
    let found = lines.clone().filter(|line| line.contains(r#""reason":"properties""#)).count();
    assert_eq!((lines.count(), found), (corpus.len(), invalid));
    let listed = run(&stage, "dlq", &["list"]).await;
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    assert!(listed.stdout.len() < 40_000, "{} bytes of a list", listed.stdout.len());
    let shown = run(&stage, "dlq", &["show", "--max", "0", "--reason", "properties"]).await;
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    assert_eq!(shown.stdout.matches("not valid AMQP").count(), invalid, "{}", shown.stdout);

    // The valid ones and, with `?` for what was invalid, the others.
    let service = stage.start(&[]).await;
    let replayed = run(&stage, "dlq", &["replay", "--yes", "--no-trial"]).await;
    // Some of those that match were left.
    assert_eq!(replayed.code, Some(1), "{}{}", replayed.stdout, replayed.stderr);
    eventually("the invalid ones are left", async || {
        stage.ready(&dead_letters).await == Some(invalid as u32)
    })
    .await;
    let replayed = run(
        &stage,
        "dlq",
        &["replay", "--reason", "properties", "--force", "--yes", "--max", "3", "--no-trial"],
    )
    .await;
    assert_eq!(replayed.code, Some(0), "{}{}", replayed.stdout, replayed.stderr);
    stage.until_counted(corpus.len() - invalid + 3).await;
    let purged = run(&stage, "dlq", &["purge", "--yes"]).await;
    assert_eq!(purged.code, Some(0), "{}{}", purged.stdout, purged.stderr);
    assert_eq!(stage.ready(&dead_letters).await, Some(0));
    service.stop().await;
}
