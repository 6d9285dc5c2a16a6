//! `dlq list` and `dlq show`: they show everything, and every message stays.

use std::cell::Cell;

use super::*;

#[tokio::test]
async fn list_and_show_give_reasons_and_leave_every_message() {
    let (stage, service, _, dead) = some_dead("dlq_look").await;
    let log = service.stop().await;
    assert!(log.contains(r#""detail":"UTF-16 with a byte order mark""#), "{log}");

    let list = unchanged(&stage, dead.len(), &["list"]).await;
    assert!(list.stdout.contains("not_utf8: UTF-16 with a byte order mark"), "{}", list.stdout);
    for (reason, count) in [
        ("bad_choice (choice)", "1"),
        ("missing_field (citizen_id)", "1"),
        ("not_json", "1"),
        ("not_utf8", "1"),
        ("SQLSTATE 23514", "2"),
    ] {
        let row = list.row(reason).unwrap_or_else(|| panic!("{reason}: {}", list.stdout));
        let shown = row[reason.len()..].split_whitespace().next();
        assert_eq!(shown, Some(count), "{row}");
    }
    assert!(list.stdout.contains("showing 6 of 6 messages"), "{}", list.stdout);

    let rows = unchanged(&stage, dead.len(), &["list", "--json"]).await.lines();
    assert_eq!(rows.len(), dead.len());
    let refused: Vec<&Value> = rows.iter().filter(|row| row["sqlstate"] == "23514").collect();
    assert_eq!(refused.len(), 2);
    for row in &rows {
        let when = row["dead_lettered_at"].as_str().unwrap_or_else(|| panic!("{row}"));
        assert!(when.starts_with("20") && when.contains('T'), "{row}");
        let valid = row["sqlstate"] == "23514";
        assert_eq!(row["x_death_reason"], if valid { Value::Null } else { "rejected".into() });
        assert_eq!(row["malformed"], !valid);
    }

    for (filter, count) in [
        (&["--reason", "malformed"][..], 4),
        (&["--reason", "refused", "--law", "law-x"], 2),
        (&["--sqlstate", "23"], 2),
        (&["--law", "law-001"], 2),
        (&["--hash", "hash-00001000"], 1),
        (&["--hash", "hash-00001000", "--reason", "malformed"], 0),
        (&["--max", "3"], 3),
    ] {
        let rows =
            unchanged(&stage, dead.len(), &[&["list", "--json"], filter].concat()).await.lines();
        assert_eq!(rows.len(), count, "{filter:?}");
    }
    let wrong = expect(&stage, 2, &["list", "--reason", "missing"]).await;
    assert!(wrong.stderr.contains("missing_field"), "{}", wrong.stderr);

    let shown = unchanged(&stage, dead.len(), &["show"]).await.stdout;
    assert!(!shown.contains("citizen-0000"), "{shown}");
    assert!(shown.contains("\"citizn_id\":\"***\"") && shown.contains("maybe"), "{shown}");
    assert!(shown.contains("not shown: not JSON") && shown.contains("not UTF-8"), "{shown}");
    assert!(shown.contains("Fix the constraint"), "{shown}");
    let shown = unchanged(&stage, dead.len(), &["show", "--json"]).await;
    assert!(!shown.stdout.contains("citizen-0000"), "{}", shown.stdout);
    assert_eq!(shown.lines().len(), dead.len());

    let shown = unchanged(&stage, dead.len(), &["show", "--reveal"]).await.stdout;
    assert!(shown.contains("citizen-00000007 voted\\u{1b}[2J"), "escaped: {shown}");
    assert!(shown.contains("hex fffe") && !shown.contains('\x1b'), "{shown}");
    let lines = expect(&stage, 0, &["show", "--json", "--reveal"]).await.lines();
    let bodies = lines.iter().map(|line| match &line["body"] {
        Value::String(text) => text.clone().into_bytes(),
        _ => STANDARD.decode(line["body_base64"].as_str().expect("base64")).expect("base64"),
    });
    assert_eq!(sorted(bodies.collect()), dead);
    until_dead(&stage, dead.len()).await;
    // After so many looks, and with what the headers told still there.
    assert_eq!(
        unchanged(&stage, dead.len(), &["list", "--json", "--reason", "rejected"])
            .await
            .lines()
            .len(),
        4
    );
    assert_eq!(taken(&stage).await, dead);
    assert!(expect(&stage, 0, &["list"]).await.stdout.contains("is empty"));
}

/// Who sent it is in its properties, which a purge keeps as well.
#[tokio::test]
async fn what_a_dead_letter_is_and_who_sent_it_is_shown_and_archived() {
    let stage = Stage::migrated(Servers::shared(), "dlq_sender").await;
    stage.publish(&[]).await;
    let connection = stage.amqp().await;
    let channel = connection.create_channel().await.expect("a channel");
    let properties = BasicProperties::default()
        .with_user_id("guest".into())
        .with_app_id("ballot-web\x1b[2J".into())
        .with_content_encoding("gzip".into())
        .with_message_id("citizen-00000007".into())
        .with_timestamp(1_763_000_000);
    let queue = stage.dead_letter_queue();
    let options = BasicPublishOptions::default();
    let gzip = b"\x1f\x8b\x08\x00\xff";
    let sent = channel.basic_publish("".into(), queue.into(), options, gzip, properties);
    sent.await.expect("published");
    connection.close(200, "OK".into()).await.expect("closed");
    until_dead(&stage, 1).await;

    let shown = expect(&stage, 0, &["show"]).await.stdout;
    for count in [
        "gzip: the publisher compresses",
        "property user_id: \"guest\"",
        "property app_id: \"ballot-web\\u001b[2J\"",
        "property content_encoding: \"gzip\"",
        "property timestamp: \"2025-11-13T02:13:20Z\"",
        "property message_id: \"***\"",
    ] {
        assert!(shown.contains(count), "{count} in {shown}");
    }
    let lines = expect(&stage, 0, &["show", "--json", "--reveal"]).await.lines();
    assert_eq!(lines[0]["properties"]["message_id"], "citizen-00000007");
    assert_eq!(lines[0]["reason"], "not_utf8");
    assert_eq!(lines[0]["detail"], "gzip: the publisher compresses");
    let file = new_file(&stage);
    let save = file.to_str().expect("UTF-8");
    expect(&stage, 0, &["purge", "--yes", "--save", save]).await;
    let saved = std::fs::read_to_string(&file).expect("saved");
    let saved: Value = serde_json::from_str(&saved).expect("one line");
    assert_eq!(saved["properties"], lines[0]["properties"]);
    assert_eq!(saved["detail"], lines[0]["detail"]);
}

/// RabbitMQ drops what is given back more often than the limit, with no word to anybody.
#[tokio::test]
async fn looking_does_not_use_up_a_delivery_limit() {
    let stage = Stage::migrated(Servers::shared(), "dlq_limit").await;
    let quorum = ("x-queue-type", AMQPValue::LongString("quorum".into()));
    let limit = ("x-delivery-limit", AMQPValue::LongLongInt(2));
    // The broker names arguments that differ one at a time, these two before the limit.
    let length = ("x-max-length", AMQPValue::LongLongInt(1_000_000));
    let overflow = ("x-overflow", AMQPValue::LongString("reject-publish".into()));
    let arguments = [quorum, length, overflow, limit];
    stage.declare_queue(&stage.dead_letter_queue(), true, &arguments).await;
    let bodies: Vec<Vec<u8>> = votes(0, 700).iter().map(message).collect();
    put(&stage, &bodies, &[("x-sqlstate", "23514")]).await;
    until_dead(&stage, bodies.len()).await;
    for _ in 0..6 {
        let list = unchanged(&stage, bodies.len(), &["list", "--max", "1"]).await;
        assert!(list.stdout.contains("showing 1 of 700"), "{}", list.stdout);
        assert!(list.stderr.contains("x-delivery-limit=2"), "{}", list.stderr);
        // Read in part, and the rest had been sent to us.
        unchanged(&stage, bodies.len(), &["show", "--max", "1"]).await;
    }
    let rows =
        unchanged(&stage, bodies.len(), &["list", "--sqlstate", "23514", "--max", "0", "--json"])
            .await;
    assert_eq!(rows.lines().len(), bodies.len(), "with what their headers told");

    // Without such care they are gone. A nack counts before RabbitMQ 4.3, a closed channel from then on.
    let connection = stage.amqp().await;
    let queue = stage.dead_letter_queue();
    let nacks = Cell::new(true);
    eventually("all of them are dropped", async || {
        let channel = connection.create_channel().await.expect("a channel");
        let get = async || {
            let got = channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await;
            got.expect("the queue is there").is_some()
        };
        while get().await {}
        if nacks.replace(!nacks.get()) {
            let back = BasicNackOptions { multiple: true, requeue: true };
            channel.basic_nack(0, back).await.expect("given back");
        }
        channel.close(200, "OK".into()).await.expect("closed");
        // Ready and unacknowledged.
        let queues = stage.servers.script(&["ctl", "--", "-q", "list_queues", "name", "messages"]);
        queues.lines().any(|line| line.split_whitespace().eq([queue.as_str(), "0"]))
    })
    .await;
    connection.close(200, "OK".into()).await.expect("closed");
}

#[tokio::test]
async fn a_scan_is_bounded_and_says_so() {
    let stage = Stage::migrated(Servers::shared(), "dlq_hold").await;
    // A classic queue, which has what is held in memory.
    stage.declare_queue(&stage.dead_letter_queue(), true, &[]).await;
    let bodies: Vec<Vec<u8>> = votes(0, 1_300).iter().map(message).collect();
    put(&stage, &bodies, &[]).await;
    until_dead(&stage, bodies.len()).await;
    let list =
        unchanged(&stage, bodies.len(), &["list", "--hold", "700", "--max", "0", "--json"]).await;
    assert_eq!(list.lines().len(), 700);
    assert!(list.stderr.contains("read 700 of 1,300 messages"), "{}", list.stderr);
    let all = expect(&stage, 0, &["list", "--max", "0", "--json"]).await;
    let hashes: Vec<String> = all
        .lines()
        .iter()
        .map(|row| row["vote_hash"].as_str().expect("a hash").to_owned())
        .collect();
    let expected: Vec<_> = votes(0, 1_300).into_iter().map(|vote| vote.vote_hash).collect();
    assert!(hashes == expected, "in the order of the queue");
    until_dead(&stage, bodies.len()).await;
    // Most of it matches and is taken, so the others fit in.
    let taken = expect(&stage, 0, &["replay", "--hold", "300", "--yes", "--no-trial"]).await;
    assert!(taken.row("put back").is_some_and(|row| row.ends_with("1,300")), "{}", taken.stdout);
    until_dead(&stage, 0).await;
    assert_eq!(stage.ready(&stage.queue).await, Some(1_300));
}

#[tokio::test]
async fn what_is_missing_has_an_exit_code_and_a_reason() {
    let stage = Stage::new(Servers::shared(), "dlq_codes").await;
    let with = async |settings: &[(&str, &str)]| {
        let mut command = command(&stage, BINARY, &["dlq", "list"]);
        command.envs(settings.iter().copied());
        let ended = ended(command).await;
        (ended.code, ended.stderr)
    };
    let (code, count) = with(&[]).await;
    assert!(code == Some(78) && count.contains(&stage.dead_letter_queue()), "{count}");
    let (code, count) = with(&[("RABBITMQ_PASSWORD", "wrong")]).await;
    assert!(code == Some(77) && count.contains("RABBITMQ_PASSWORD"), "{count}");
    let (code, count) = with(&[("RABBITMQ_PORT", "1")]).await;
    assert!(code == Some(1) && count.contains("127.0.0.1:1"), "{count}");
}
