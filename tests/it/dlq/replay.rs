//! `dlq replay`: what is put back is counted once, and what is not stays.

use std::process::Stdio;

use indicatif::ProgressBar;
use lapin::types::AMQPValue;
use vote_aggregator::adapters::broker::{DeadLetterQueue, RabbitMq, Republisher};
use vote_aggregator::operator::dlq::{Filter, Reader, Selection, Target, replay};

use super::*;
use crate::support::{Frozen, ended, headers, text};

/// Without a trial of one message of each cause.
const REPLAY_ALL: [&str; 3] = ["replay", "--yes", "--no-trial"];

#[tokio::test]
async fn a_replay_counts_what_was_refused_once_and_leaves_the_malformed() {
    let (stage, service, every, dead) = some_dead("dlq_replay").await;
    expect(&stage, 2, &["replay"]).await.assert(2, &["--yes"]);
    let dry = unchanged(&stage, dead.len(), &["replay", "--dry-run"]).await;
    assert_eq!(dry.count("would be put back"), "2");
    let listed = unchanged(&stage, dead.len(), &["list", "--json"]).await.lines();
    assert!(listed.iter().all(|row| row["replays"] == 0), "a dry run changes nothing");

    stage.execute(ALLOW_LAW_X).await;
    let replay = expect(&stage, 1, &["replay", "--yes"]).await;
    assert_eq!((replay.count("put back"), replay.count("skipped: malformed")), ("2", "4"));
    stage.until_counted(every.len()).await;
    until_dead(&stage, 4).await;
    // Nothing matches any more: all of it is done.
    expect(&stage, 0, &["replay", "--yes", "--sqlstate", "23514"]).await;
    stage.finish([service], &every).await;
    until_dead(&stage, 4).await;
    assert_eq!(taken(&stage).await, sorted(malformed()));
}

/// The header goes with the vote through the service and back.
#[tokio::test]
async fn what_keeps_coming_back_is_left_after_so_many_times() {
    let stage = Stage::migrated(Servers::shared(), "dlq_guard").await;
    stage.execute(FORBID_LAW_X).await;
    stage.publish_votes(&[vote(1, "law-x", Choice::Oui)]).await;
    stage.publish(&no_votes(1)).await;
    let service = stage.start(&[]).await;
    until_dead(&stage, 2).await;
    let replay = ["replay", "--yes", "--max-replays", "2", "--force"];
    for times in 1..=2 {
        expect(&stage, 0, &replay).await;
        eventually("both are back", async || {
            let back = expect(&stage, 0, &["list", "--json"]).await.lines();
            back.len() == 2 && back.iter().all(|row| row["replays"] == times)
        })
        .await;
        until_dead(&stage, 2).await;
    }
    let left = expect(&stage, 1, &replay).await;
    assert_eq!(left.count("skipped: replayed 2 times or more"), "2");
    until_dead(&stage, 2).await;
    service.stop().await;
    stage.assert_drained().await;
    let dead = stage.take_dead_letters().await;
    let (rejected, refused): (Vec<_>, Vec<_>) =
        dead.iter().partition(|(body, _)| body.starts_with(b"no vote"));
    assert_eq!(refused[0].1.get("x-sqlstate"), Some(&text("23514")));
    let Some(AMQPValue::FieldArray(deaths)) = rejected[0].1.get("x-death") else { panic!("death") };
    let [AMQPValue::FieldTable(death)] = deaths.as_slice() else { panic!("one death") };
    let count = death.inner().get("count");
    assert_eq!(count, Some(&AMQPValue::LongLongInt(1)), "the last one alone, not all of them");
}

/// More than one consumer's window, and all of it comes straight back while the replay runs.
#[tokio::test]
async fn a_replay_takes_what_was_there_at_the_beginning_and_no_more() {
    let stage = Stage::migrated(Servers::shared(), "dlq_bounded").await;
    let bodies = no_votes(1_300);
    let service = stage.start(&[]).await;
    stage.publish(&bodies).await;
    until_dead(&stage, bodies.len()).await;
    let replay = expect(&stage, 0, &["replay", "--yes", "--force", "--no-trial"]).await;
    assert_eq!(replay.count("put back"), "1,300");
    until_dead(&stage, bodies.len()).await;
    service.stop().await;
    let dead = stage.take_dead_letters().await;
    for (_, headers) in &dead {
        assert_eq!(headers.get("x-replays"), Some(&AMQPValue::LongLongInt(1)), "each once");
    }
    assert_eq!(sorted(dead.into_iter().map(|(body, _)| body).collect()), sorted(bodies));
}

#[tokio::test]
async fn a_kill_in_the_middle_of_a_replay_loses_nothing() {
    let stage = Stage::migrated(Servers::shared(), "dlq_kill").await;
    let all = votes(0, 4_000);
    let service = stage.start(&[]).await;
    put(&stage, &messages(&all), &REFUSED).await;
    let mut replay = stage.command(BINARY, &[&["dlq"], &REPLAY_ALL[..]].concat());
    let mut replay = replay.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
    stage.until_counted(200).await;
    replay.kill().await.expect("killed");
    // What it held is back, and what it published is counted.
    let counted = async || stage.number("SELECT count(*) FROM vote_audit").await;
    eventually("every vote is counted or dead", async || {
        let dead = stage.ready(&stage.dead_letter_queue()).await.unwrap_or_default();
        stage.ready(&stage.queue).await == Some(0) && counted().await + i64::from(dead) >= 4_000
    })
    .await;
    assert!(counted().await < 4_000, "it was killed in the middle");
    expect(&stage, 0, &REPLAY_ALL).await;
    until_dead(&stage, 0).await;
    stage.finish([service], &all).await;
}

/// What the queue does not confirm stays where it is.
#[tokio::test]
async fn what_the_votes_queue_refuses_stays_a_dead_letter() {
    let stage = Stage::migrated(Servers::shared(), "dlq_full").await;
    let full = [("x-max-length", AMQPValue::LongInt(5)), ("x-overflow", text("reject-publish"))];
    stage.declare(true, &full).await;
    stage.declare_queue(&stage.dead_letter_queue(), true, &[]).await;
    put(&stage, &messages(&votes(0, 400)), &[]).await;
    expect(&stage, 1, &REPLAY_ALL).await.assert(1, &["full"]);
    let service = stage.start(&[]).await;
    stage.assert_drained().await;
    service.stop().await;
    let counted = stage.audit().await.len() as u32;
    let dead = stage.ready(&stage.dead_letter_queue()).await;
    assert_eq!(dead, Some(400 - counted), "each in one of the two");
    assert!((1..400).contains(&counted), "{counted}");
}

/// Frozen in the middle of a replay: a clear error, and everything is there when it is back.
#[tokio::test]
async fn a_broker_that_freezes_ends_a_replay_with_an_error_and_loses_nothing() {
    let servers = Servers::private("dlq-frozen");
    let stage = Stage::migrated(&servers, "dlq_frozen").await;
    stage.publish(&[]).await;
    let all = votes(0, 100);
    put(&stage, &messages(&all), &[]).await;
    let slowly = [&["dlq"], &REPLAY_ALL[..], &["--rate", "5"]].concat();
    let replay = tokio::spawn(ended(stage.command(BINARY, &slowly)));
    eventually("in the middle", async || stage.ready(&stage.queue).await >= Some(3)).await;
    let frozen = Frozen::server(&servers, "rabbitmq");
    let replayed = replay.await.expect("no panic");
    drop(frozen);
    replayed.assert(1, &["Nothing is lost"]);
    eventually("everything is in one of the two queues, or in both", async || {
        let dead = stage.ready(&stage.dead_letter_queue()).await.unwrap_or_default();
        dead + stage.ready(&stage.queue).await.unwrap_or_default() >= 100
    })
    .await;
    expect(&stage, 0, &REPLAY_ALL).await;
    let service = stage.start(&[]).await;
    stage.finish([service], &all).await;
    until_dead(&stage, 0).await;
}

/// Its publisher's headers are kept, such as the time of publishing and the trace.
#[tokio::test]
async fn a_replayed_vote_is_what_its_publisher_sent() {
    let stage = Stage::migrated(Servers::shared(), "dlq_headers").await;
    stage.publish(&[]).await;
    let kept = [
        ("own", "kept"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("x-published-at-us", "1763000000000000"),
    ];
    let bodies = messages(&votes(1, 1));
    put(&stage, &bodies, &[&kept[..], &REFUSED].concat()).await;
    expect(&stage, 0, &["replay", "--yes"]).await;
    let delivery = stage.take(&stage.queue).await.remove(0);
    assert_eq!(delivery.data, bodies[0]);
    let mut headers = headers(&delivery.properties);
    // The broker's own count in this queue.
    headers.remove("x-delivery-count");
    let kept = kept.map(|(name, value)| (name.to_owned(), text(value)));
    let replays = ("x-replays".to_owned(), AMQPValue::LongLongInt(1));
    assert_eq!(headers, kept.into_iter().chain([replays]).collect());
    assert_eq!(*delivery.properties.delivery_mode(), Some(2));
}

/// Many refused votes of one law at once are a systemic fault: they would open the breaker, and stop
/// good votes.
#[tokio::test]
async fn one_of_each_cause_is_tried_and_what_would_come_back_is_left() {
    let stage = Stage::migrated(Servers::shared(), "dlq_trial").await;
    stage.execute(FORBID_LAW_X).await;
    stage.publish(&[]).await;
    let on = |law: &str, first: u64, count: u64| -> Vec<Vote> {
        (first..first + count).map(|number| vote(number, law, Choice::Oui)).collect()
    };
    let (repaired, refused, behind) =
        (on("law-y", 0, 5), on("law-x", 100, 30), on("law-z", 200, 5));
    put(&stage, &messages(&repaired), &REFUSED).await;

    // Without a service the trial has no result.
    let put_back_and_skipped = |replay: &Ended, expected: [&str; 2]| {
        let rows = ["put back", "skipped: another one with its cause"];
        assert_eq!(rows.map(|row| replay.count(row)), expected, "{}", replay.stdout);
    };
    let waited = expect(&stage, 1, &["replay", "--yes", "--trial-seconds", "1"]).await;
    put_back_and_skipped(&waited.assert(1, &["law-y: no outcome within 1 s"]), ["1", "4"]);
    until_dead(&stage, 4).await;

    let service = stage.start(&[("BATCH_TIMEOUT_SECONDS", "0.2")]).await;
    stage.until_counted(1).await;
    put(&stage, &messages(&refused), &REFUSED).await;
    let results = ["law-y: it was consumed and did not come back", "law-x: it came back"];
    let tried = expect(&stage, 1, &["replay", "--yes"]).await.assert(1, &results);
    put_back_and_skipped(&tried, ["4", "30"]);
    stage.until_counted(5).await;
    until_dead(&stage, 30).await;
    assert_eq!(service.logged("consuming stops"), 0, "the breaker stayed closed");

    // Behind more messages of another cause than may be replayed.
    put(&stage, &messages(&behind), &REFUSED).await;
    let tried = expect(&stage, 1, &["replay", "--yes", "--max", "20"]).await;
    assert_eq!(tried.count("put back"), "5");
    stage.until_counted(10).await;
    until_dead(&stage, 30).await;

    stage.execute(ALLOW_LAW_X).await;
    assert_eq!(expect(&stage, 0, &["replay", "--yes"]).await.count("put back"), "30");
    stage.finish([service], &[repaired, refused, behind].concat()).await;
    until_dead(&stage, 0).await;
}

/// RabbitMQ confirms what it returns, several at once, and lapin may attribute the return to another
/// message.
#[tokio::test]
async fn no_message_is_acked_while_its_queue_is_gone() {
    const DEAD: usize = 300;
    let stage = Stage::migrated(Servers::shared(), "dlq_gone").await;
    let config = stage.config(&[]);
    stage.publish(&[]).await;
    put(&stage, &messages(&votes(0, DEAD as u64)), &[]).await;
    let broker = RabbitMq::new(config.rabbitmq.clone());
    let publisher = broker.publisher().await.expect("RabbitMQ takes a publisher");
    let mut republisher = Republisher::new(publisher);
    let mut queue = DeadLetterQueue::open(&config.rabbitmq, DEAD).await.expect("opened");
    let (filter, bar) = (Filter::default(), ProgressBar::hidden());
    let selection = Selection { malformed: false, ..Selection::of(&config, &filter) };
    let mut reader = Reader::new(&mut queue, &selection, &bar);
    let target = Target { queue: "no.such.queue", rate: None };
    let ended = replay(&mut reader, &mut republisher, target).await;
    let tally = reader.tally;
    queue.finish().await.expect("finished");
    assert!(ended.is_err());
    assert_eq!((tally.taken, tally.failed), (0, 200), "all that were under way, and then no more");
    until_dead(&stage, DEAD).await;
}
