//! `dlq list` and `dlq show`: they show everything, and every message stays.

use lapin::BasicProperties;
use lapin::types::AMQPValue;

use super::*;
use crate::support::{Files, assert_contains, assert_lacks, settings, text};

#[tokio::test]
async fn list_and_show_give_reasons_and_leave_every_message() {
    let (stage, service, _, dead) = some_dead("dlq_look").await;
    let log = service.stop().await;
    assert!(log.contains(r#""detail":"UTF-16 with a byte order mark""#), "{log}");
    let look = async |arguments: &[&str]| unchanged(&stage, dead.len(), arguments).await;

    let list = look(&["list"]).await.stdout;
    let detail = "not_utf8: UTF-16 with a byte order mark";
    assert_contains(&list, &[detail, "showing 6 of 6 messages"]);
    for (reason, count) in [
        ("bad_choice (choice)", "1"),
        ("missing_field (citizen_id)", "1"),
        ("not_json", "1"),
        ("not_utf8", "1"),
        ("SQLSTATE 23514", "2"),
    ] {
        let mut rows = list.lines().filter_map(|line| line.trim().strip_prefix(reason));
        let shown = rows.next().and_then(|row| row.split_whitespace().next());
        assert_eq!(shown, Some(count), "{reason} in {list}");
    }

    let rows = look(&["list", "--json"]).await.lines();
    assert_eq!(rows.len(), dead.len());
    assert_eq!(rows.iter().filter(|row| row["sqlstate"] == "23514").count(), 2);
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
        let rows = look(&[&["list", "--json"], filter].concat()).await.lines();
        assert_eq!(rows.len(), count, "{filter:?}");
    }
    expect(&stage, 2, &["list", "--reason", "missing"]).await.assert(2, &["missing_field"]);

    let shown = look(&["show"]).await.stdout;
    let texts = ["\"citizn_id\":\"***\"", "maybe", "not shown: not JSON", "Fix the constraint"];
    assert_contains(&shown, &texts);
    let json = look(&["show", "--json"]).await;
    assert_eq!(json.lines().len(), dead.len());
    assert_lacks(&(shown + &json.stdout), &["citizen-0000"]);
    let shown = look(&["show", "--reveal"]).await.stdout;
    assert_contains(&shown, &["citizen-00000007 voted\\u{1b}[2J", "hex fffe"]);
    assert_lacks(&shown, &["\x1b"]);
    let lines = look(&["show", "--json", "--reveal"]).await.lines();
    assert_eq!(sorted(lines.iter().map(body).collect()), dead);
    // After so many looks, with their headers still there.
    assert_eq!(look(&["list", "--json", "--reason", "rejected"]).await.lines().len(), 4);
    assert_eq!(taken(&stage).await, dead);
    expect(&stage, 0, &["list"]).await.assert(0, &["is empty"]);
}

/// The sender is in a message's properties, which a purge keeps as well.
#[tokio::test]
async fn what_a_dead_letter_is_and_who_sent_it_is_shown_and_archived() {
    let stage = Stage::migrated(Servers::shared(), "dlq_sender").await;
    stage.publish(&[]).await;
    let properties = BasicProperties::default()
        .with_user_id("guest".into())
        .with_app_id("ballot-web\x1b[2J".into())
        .with_content_encoding("gzip".into())
        .with_message_id("citizen-00000007".into())
        .with_timestamp(1_763_000_000);
    stage.publish_with(&stage.dead_letter_queue(), b"\x1f\x8b\x08\x00\xff", properties).await;
    until_dead(&stage, 1).await;

    let lines = [
        "gzip: the publisher compresses",
        "property user_id: \"guest\"",
        "property app_id: \"ballot-web\\u001b[2J\"",
        "property content_encoding: \"gzip\"",
        "property timestamp: \"2025-11-13T02:13:20Z\"",
        "property message_id: \"***\"",
    ];
    expect(&stage, 0, &["show"]).await.assert(0, &lines);
    let shown = expect(&stage, 0, &["show", "--json", "--reveal"]).await.json();
    assert_eq!(shown["properties"]["message_id"], "citizen-00000007");
    assert_eq!(shown["reason"], "not_utf8");
    assert_eq!(shown["detail"], "gzip: the publisher compresses");
    let files = Files::new("dlq_sender");
    let file = files.file("removed.ndjson");
    expect(&stage, 0, &["purge", "--yes", "--save", &file]).await;
    let saved = std::fs::read_to_string(&file).expect("saved");
    let saved: Value = serde_json::from_str(&saved).expect("one line");
    assert_eq!(saved["properties"], shown["properties"]);
    assert_eq!(saved["detail"], shown["detail"]);
}

/// RabbitMQ silently drops a message that is requeued more often than the limit.
#[tokio::test]
async fn looking_does_not_use_up_a_delivery_limit() {
    let stage = Stage::migrated(Servers::shared(), "dlq_limit").await;
    let arguments = [
        ("x-queue-type", text("quorum")),
        // The broker names arguments that differ one at a time, these two before the limit.
        ("x-max-length", AMQPValue::LongLongInt(1_000_000)),
        ("x-overflow", text("reject-publish")),
        ("x-delivery-limit", AMQPValue::LongLongInt(2)),
    ];
    stage.declare_queue(&stage.dead_letter_queue(), true, &arguments).await;
    put(&stage, &messages(&votes(0, 700)), &REFUSED).await;
    for _ in 0..6 {
        let list = unchanged(&stage, 700, &["list", "--max", "1"]).await;
        list.assert(0, &["showing 1 of 700", "x-delivery-limit=2"]);
        // Reads one, after the broker has sent more.
        unchanged(&stage, 700, &["show", "--max", "1"]).await;
    }
    let all = ["list", "--sqlstate", "23514", "--max", "0", "--json"];
    assert_eq!(unchanged(&stage, 700, &all).await.lines().len(), 700, "with their headers");
}

#[tokio::test]
async fn a_scan_is_bounded_and_says_so() {
    let stage = Stage::migrated(Servers::shared(), "dlq_hold").await;
    // A classic queue, which keeps unacked messages in memory.
    stage.declare_queue(&stage.dead_letter_queue(), true, &[]).await;
    let all = votes(0, 1_300);
    put(&stage, &messages(&all), &[]).await;
    let bounded = ["list", "--hold", "700", "--max", "0", "--json"];
    let list = unchanged(&stage, all.len(), &bounded).await;
    assert_eq!(list.assert(0, &["read 700 of 1,300 messages"]).lines().len(), 700);
    let listed = unchanged(&stage, all.len(), &["list", "--max", "0", "--json"]).await.lines();
    let hashes = listed.iter().map(|row| row["vote_hash"].as_str().expect("a hash"));
    assert!(hashes.eq(all.iter().map(|vote| &*vote.vote_hash)), "in the order of the queue");
    // Matching messages are taken, so `--hold` does not bound them.
    let replayed = expect(&stage, 0, &["replay", "--hold", "300", "--yes", "--no-trial"]).await;
    assert_eq!(replayed.count("put back"), "1,300");
    until_dead(&stage, 0).await;
    assert_eq!(stage.ready(&stage.queue).await, Some(1_300));
}

#[tokio::test]
async fn what_is_missing_has_an_exit_code_and_a_reason() {
    let stage = Stage::new(Servers::shared(), "dlq_codes").await;
    let queue = stage.dead_letter_queue();
    for (wrong, code, named) in [
        ("", 78, queue.as_str()),
        ("RABBITMQ_PASSWORD=wrong", 77, "RABBITMQ_PASSWORD"),
        ("RABBITMQ_PORT=1", 1, "127.0.0.1:1"),
    ] {
        stage.run_with(&["dlq", "list"], &settings(wrong)).await.assert(code, &[named]);
    }
}
