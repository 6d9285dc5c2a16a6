//! `dlq replay`: what is put back is counted once, and what is not stays.

use indicatif::ProgressBar;
use vote_aggregator::adapters::broker::{DeadLetterQueue, Republisher};
use vote_aggregator::operator::dlq::{Filter, Reader, Selection, Target, replay};

use super::*;
use crate::support::messages;

#[tokio::test]
async fn a_replay_counts_what_was_refused_once_and_leaves_the_malformed() {
    let (stage, service, every, dead) = some_dead("dlq_replay").await;
    let asks = expect(&stage, 2, &["replay"]).await;
    assert!(asks.stderr.contains("--yes"), "{}", asks.stderr);
    let dry = expect(&stage, 0, &["replay", "--dry-run"]).await;
    assert!(dry.row("would be put back").is_some_and(|row| row.ends_with(" 2")), "{}", dry.stdout);
    until_dead(&stage, dead.len()).await;
    let letters = expect(&stage, 0, &["list", "--json"]).await.lines();
    assert!(letters.iter().all(|letter| letter["replays"] == 0), "a dry run changes nothing");
    until_dead(&stage, dead.len()).await;

    execute(&stage, ALLOW_LAW_X).await;
    let replay = expect(&stage, 1, &["replay", "--yes"]).await;
    let told = |begin| replay.row(begin).and_then(|row| row.rsplit(' ').next()).map(str::to_owned);
    assert_eq!(told("put back").as_deref(), Some("2"), "{}", replay.stdout);
    assert_eq!(told("left: malformed").as_deref(), Some("4"), "{}", replay.stdout);
    stage.until_counted(every.len()).await;
    until_dead(&stage, 4).await;
    // Nothing that matches: all of it is done.
    expect(&stage, 0, &["replay", "--yes", "--sqlstate", "23514"]).await;
    service.stop().await;
    stage.assert_counted_exactly(&every).await;
    stage.assert_drained().await;
    until_dead(&stage, 4).await;
    assert_eq!(taken(&stage).await, sorted(malformed()));
}

/// The header goes with the vote through the service and back.
#[tokio::test]
async fn what_keeps_coming_back_is_left_after_so_many_times() {
    let stage = Stage::migrated(Servers::shared(), "dlq_guard").await;
    execute(&stage, FORBID_LAW_X).await;
    stage.publish_votes(&[vote(1, "law-x", Choice::Oui)]).await;
    stage.publish(&[b"no vote".to_vec()]).await;
    let service = stage.start(&[]).await;
    until_dead(&stage, 2).await;
    for times in 1..=2 {
        expect(&stage, 0, &["replay", "--yes", "--max-replays", "2", "--force"]).await;
        eventually("both are back", async || {
            let back = expect(&stage, 0, &["list", "--json"]).await.lines();
            back.len() == 2 && back.iter().all(|letter| letter["replays"] == times)
        })
        .await;
        until_dead(&stage, 2).await;
    }
    let left = expect(&stage, 1, &["replay", "--yes", "--max-replays", "2", "--force"]).await;
    let row = left.row("left: put back 2 times or more");
    assert!(row.is_some_and(|row| row.ends_with(" 2")), "{}", left.stdout);
    until_dead(&stage, 2).await;
    service.stop().await;
    stage.assert_drained().await;
    let letters = stage.take_dead_letters().await;
    let refused = letters.iter().find(|(body, _)| body != b"no vote").expect("the refused vote");
    assert_eq!(refused.1.get("x-sqlstate"), Some(&AMQPValue::LongString("23514".into())));
    let rejected = letters.iter().find(|(body, _)| body == b"no vote").expect("the malformed one");
    let Some(AMQPValue::FieldArray(deaths)) = rejected.1.get("x-death") else { panic!("x-death") };
    let [AMQPValue::FieldTable(death)] = deaths.as_slice() else { panic!("one death") };
    let count = death.inner().get("count");
    assert_eq!(count, Some(&AMQPValue::LongLongInt(1)), "the last one alone, not all of them");
}

/// More than one consumer's window, and all of it comes straight back while the replay runs.
#[tokio::test]
async fn a_replay_takes_what_was_there_at_the_beginning_and_no_more() {
    let stage = Stage::migrated(Servers::shared(), "dlq_bounded").await;
    let bodies: Vec<Vec<u8>> =
        (0..1_300).map(|number| format!("no vote {number}").into_bytes()).collect();
    let service = stage.start(&[]).await;
    stage.publish(&bodies).await;
    until_dead(&stage, bodies.len()).await;
    let replay = expect(&stage, 0, &["replay", "--yes", "--force", "--no-trial"]).await;
    let row = replay.row("put back").unwrap_or_default();
    assert!(row.ends_with("1,300"), "{}", replay.stdout);
    until_dead(&stage, bodies.len()).await;
    service.stop().await;
    let letters = stage.take_dead_letters().await;
    for (_, headers) in &letters {
        let replays = headers.get("x-replays");
        assert_eq!(replays, Some(&AMQPValue::LongLongInt(1)), "each once");
    }
    let back: Vec<Vec<u8>> = letters.into_iter().map(|(body, _)| body).collect();
    assert_eq!(sorted(back), sorted(bodies));
}

#[tokio::test]
async fn a_kill_in_the_middle_of_a_replay_loses_nothing() {
    let stage = Stage::migrated(Servers::shared(), "dlq_kill").await;
    let all = votes(0, 4_000);
    let service = stage.start(&[]).await;
    put(&stage, &all.iter().map(message).collect::<Vec<_>>(), &[("x-sqlstate", "23514")]).await;
    until_dead(&stage, all.len()).await;
    let mut replay = command(&stage, BINARY, &["dlq", "replay", "--yes", "--no-trial"]);
    let mut replay = replay.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
    stage.until_counted(200).await;
    replay.start_kill().expect("killed");
    replay.wait().await.expect("a child of ours");
    // Everything it held is back, what it published is counted, and there is no third place.
    eventually("nobody holds anything", async || {
        let counted = stage.number("SELECT count(*) FROM vote_audit").await;
        let dead = stage.ready(&stage.dead_letter_queue()).await.unwrap_or_default();
        stage.ready(&stage.queue).await == Some(0) && counted + i64::from(dead) >= 4_000
    })
    .await;
    let counted = stage.number("SELECT count(*) FROM vote_audit").await;
    assert!(counted < 4_000, "it was killed in the middle");
    expect(&stage, 0, &["replay", "--yes", "--no-trial"]).await;
    stage.until_counted(all.len()).await;
    until_dead(&stage, 0).await;
    service.stop().await;
    stage.assert_counted_exactly(&all).await;
    stage.assert_drained().await;
}

/// A queue that takes nothing: what is not confirmed stays where it is.
#[tokio::test]
async fn what_the_votes_queue_refuses_stays_a_dead_letter() {
    let stage = Stage::migrated(Servers::shared(), "dlq_full").await;
    let full = [
        ("x-max-length", AMQPValue::LongInt(5)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ];
    stage.declare(true, &full).await;
    stage.declare_queue(&stage.dead_letter_queue(), true, &[]).await;
    let all = votes(0, 400);
    put(&stage, &all.iter().map(message).collect::<Vec<_>>(), &[]).await;
    until_dead(&stage, all.len()).await;
    let refused = expect(&stage, 1, &["replay", "--yes", "--no-trial"]).await;
    assert!(refused.stderr.contains("full"), "{}", refused.stderr);
    let service = stage.start(&[]).await;
    eventually("taken up", async || stage.ready(&stage.queue).await == Some(0)).await;
    service.stop().await;
    let counted = stage.audit().await.len() as u32;
    let dead = stage.ready(&stage.dead_letter_queue()).await;
    assert_eq!(dead, Some(400 - counted), "each in one of the two");
    assert!((1..400).contains(&counted), "{counted}");
}

/// Frozen in the middle: an error in so many words, and everything is there when it is back.
#[tokio::test]
async fn a_broker_that_freezes_ends_it_with_an_error_and_loses_nothing() {
    let servers = Servers::private("dlq-frozen");
    let stage = Stage::migrated(&servers, "dlq_frozen").await;
    stage.publish(&[]).await;
    let all = votes(0, 100);
    put(&stage, &all.iter().map(message).collect::<Vec<_>>(), &[]).await;
    until_dead(&stage, all.len()).await;
    let mut replay =
        command(&stage, BINARY, &["dlq", "replay", "--yes", "--no-trial", "--rate", "5"]);
    let replay = replay.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    eventually("in the middle", async || {
        stage.ready(&stage.queue).await.is_some_and(|ready| ready >= 3)
    })
    .await;
    let pid = servers.script(&["pid", "rabbitmq"]).trim().parse().expect("a process id");
    let pid = rustix::process::Pid::from_raw(pid).expect("not 0");
    rustix::process::kill_process(pid, Signal::STOP).expect("frozen");
    let ended = timeout(PATIENCE, replay.wait_with_output()).await.expect("ends in time");
    rustix::process::kill_process(pid, Signal::CONT).expect("thawed");
    let ended = ended.expect("a child of ours");
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{told}");
    assert!(told.contains("Nothing is lost"), "{told}");
    eventually("everything is in one of the two, or in both", async || {
        let dead = stage.ready(&stage.dead_letter_queue()).await.unwrap_or_default();
        dead + stage.ready(&stage.queue).await.unwrap_or_default() >= 100
    })
    .await;
    expect(&stage, 0, &["replay", "--yes", "--no-trial"]).await;
    let service = stage.start(&[]).await;
    stage.until_counted(all.len()).await;
    service.stop().await;
    stage.assert_counted_exactly(&all).await;
    until_dead(&stage, 0).await;
}

/// What its publisher said of a vote is kept: when it was sent, and in which trace.
#[tokio::test]
async fn a_replayed_vote_is_what_its_publisher_sent() {
    let stage = Stage::migrated(Servers::shared(), "dlq_headers").await;
    stage.publish(&[]).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let told = [
        ("x-published-at-us", "1763000000000000"),
        ("traceparent", trace),
        ("x-sqlstate", "23514"),
        ("own", "kept"),
    ];
    let body = message(&vote(1, "law-001", Choice::Oui));
    put(&stage, std::slice::from_ref(&body), &told).await;
    until_dead(&stage, 1).await;
    expect(&stage, 0, &["replay", "--yes"]).await;
    let connection = stage.amqp().await;
    let channel = connection.create_channel().await.expect("a channel");
    let no_ack = BasicGetOptions { no_ack: true };
    let got = channel.basic_get(stage.queue.as_str().into(), no_ack).await.expect("asked");
    let delivery = got.expect("the vote").delivery;
    assert_eq!(delivery.data, body);
    let headers = delivery.properties.headers().clone().expect("headers");
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut headers: BTreeMap<String, AMQPValue> =
        headers.inner().iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
    // The broker's own count in this queue.
    headers.remove("x-delivery-count");
    let expected = BTreeMap::from([
        ("own".to_owned(), text("kept")),
        ("traceparent".to_owned(), text(trace)),
        ("x-published-at-us".to_owned(), text("1763000000000000")),
        ("x-replays".to_owned(), AMQPValue::LongLongInt(1)),
    ]);
    assert_eq!(headers, expected);
    assert_eq!(*delivery.properties.delivery_mode(), Some(2));
    connection.close(200, "OK".into()).await.expect("closed");
}

/// Refused votes of one law at once are a systemic fault: they would open the breaker, and stop good
/// votes.
#[tokio::test]
async fn one_of_each_cause_is_tried_and_what_would_come_back_is_left() {
    let stage = Stage::migrated(Servers::shared(), "dlq_trial").await;
    execute(&stage, FORBID_LAW_X).await;
    stage.publish(&[]).await;
    let refused = [("x-sqlstate", "23514")];
    let on = |law: &str, first: u64, count: u64| -> Vec<Vote> {
        (first..first + count).map(|number| vote(number, law, Choice::Oui)).collect()
    };
    let bodies = |votes: &[Vote]| votes.iter().map(message).collect::<Vec<_>>();
    let (mended, still) = (on("law-y", 0, 5), on("law-x", 100, 30));
    put(&stage, &bodies(&mended), &refused).await;
    until_dead(&stage, 5).await;

    // Nobody takes it.
    let waited = expect(&stage, 1, &["replay", "--yes", "--trial-seconds", "1"]).await;
    assert!(waited.stderr.contains("law-y: not known within 1 s"), "{}", waited.stderr);
    let row = |ended: &Ended, begin: &str| {
        let row = ended.row(begin).unwrap_or_else(|| panic!("{begin}: {}", ended.stdout));
        row.rsplit(' ').next().map(str::to_owned)
    };
    assert_eq!(row(&waited, "put back"), Some("1".to_owned()));
    assert_eq!(row(&waited, "left: one of its cause"), Some("4".to_owned()));
    until_dead(&stage, 4).await;

    let service = stage.start(&[("BATCH_TIMEOUT_SECONDS", "0.2")]).await;
    stage.until_counted(1).await;
    put(&stage, &bodies(&still), &refused).await;
    until_dead(&stage, 34).await;
    let tried = expect(&stage, 1, &["replay", "--yes"]).await;
    assert!(tried.stderr.contains("law-y: it was taken and stayed away"), "{}", tried.stderr);
    assert!(tried.stderr.contains("law-x: it came back"), "{}", tried.stderr);
    assert_eq!(row(&tried, "put back"), Some("4".to_owned()));
    assert_eq!(row(&tried, "left: one of its cause"), Some("30".to_owned()));
    stage.until_counted(5).await;
    until_dead(&stage, 30).await;
    assert_eq!(service.logged("consuming stops"), 0, "the breaker stayed closed");

    // Behind more messages of another cause than may be replayed.
    let behind = on("law-z", 200, 5);
    put(&stage, &bodies(&behind), &refused).await;
    until_dead(&stage, 35).await;
    let tried = expect(&stage, 1, &["replay", "--yes", "--max", "20"]).await;
    assert_eq!(row(&tried, "put back"), Some("5".to_owned()), "{}", tried.stdout);
    stage.until_counted(10).await;
    until_dead(&stage, 30).await;

    execute(&stage, ALLOW_LAW_X).await;
    let all = expect(&stage, 0, &["replay", "--yes"]).await;
    assert_eq!(row(&all, "put back"), Some("30".to_owned()));
    stage.until_counted(40).await;
    service.stop().await;
    stage.assert_counted_exactly(&[mended, still, behind].concat()).await;
    until_dead(&stage, 0).await;
}

/// RabbitMQ confirms what it returns, several at once, and lapin may attribute the return to another
/// message.
#[tokio::test]
async fn no_message_is_acked_while_its_queue_is_gone() {
    const LETTERS: usize = 300;
    let stage = Stage::migrated(Servers::shared(), "dlq_gone").await;
    let config = stage.config(&[]);
    let broker = RabbitMq::new(config.rabbitmq.clone());
    put(&stage, &messages(&votes(0, LETTERS as u64)), &[]).await;
    let publisher = broker.publisher().await.expect("RabbitMQ takes a publisher");
    let mut republisher = Republisher::new(publisher);
    let mut queue = DeadLetterQueue::open(&config.rabbitmq, LETTERS).await.expect("opened");
    let (filter, bar) = (Filter::default(), ProgressBar::hidden());
    let selection = Selection { malformed: false, ..Selection::of(&config, &filter) };
    let mut reader = Reader::new(&mut queue, &selection, &bar);
    let target = Target { queue: "no.such.queue", rate: None };
    let ended = replay(&mut reader, &mut republisher, target).await;
    let tally = reader.tally;
    queue.finish().await.expect("finished");
    assert!(ended.is_err());
    assert_eq!((tally.taken, tally.failed), (0, 200), "all that were under way, and then no more");
    until_dead(&stage, LETTERS).await;
}
