//! `dlq purge`, and the question before a command acts.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::support::Files;

#[tokio::test]
async fn a_purge_archives_what_it_removes_and_removes_only_that() {
    let stage = Stage::migrated(Servers::shared(), "dlq_purge").await;
    let good = messages(&votes(0, 700));
    let bad = [no_votes(450), malformed()].concat();
    // Creates the queues.
    stage.publish(&[]).await;
    put(&stage, &good, &REFUSED).await;
    put(&stage, &bad, &[]).await;
    let files = Files::new("dlq_purge");
    let file = &*files.file("removed.ndjson");

    expect(&stage, 2, &["purge"]).await.assert(2, &["--yes"]);
    let dry = ["purge", "--reason", "malformed", "--dry-run"];
    let dry = unchanged(&stage, good.len() + bad.len(), &dry).await;
    assert_eq!(dry.count("would be removed"), "454");

    let purge = ["purge", "--reason", "malformed", "--save", file, "--yes"];
    assert_eq!(expect(&stage, 0, &purge).await.count("removed"), "454");
    until_dead(&stage, good.len()).await;
    let saved = fs::read_to_string(file).expect("the file");
    let mode = fs::metadata(file).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it names citizens");
    let archived = saved.lines().map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert!(line["reason"].is_string() && line["headers"].is_object(), "{line}");
        body(&line)
    });
    assert_eq!(sorted(archived.collect()), sorted(bad));

    expect(&stage, 2, &["purge", "--save", file, "--yes"]).await.assert(2, &[file]);
    assert_eq!(fs::read_to_string(file).expect("the file"), saved, "not overwritten");
    // Without an archive nothing is removed.
    let nowhere = ["purge", "--save", &format!("{file}.none/removed.ndjson"), "--yes"];
    expect(&stage, 70, &nowhere).await.assert(70, &["cannot write"]);
    until_dead(&stage, good.len()).await;
    let some = expect(&stage, 0, &["purge", "--yes", "--max", "100"]).await;
    assert_eq!(some.count("removed"), "100");
    until_dead(&stage, good.len() - 100).await;
    let left: BTreeSet<Vec<u8>> = taken(&stage).await.into_iter().collect();
    assert!(left.is_subset(&good.into_iter().collect()) && left.len() == 600);
}

#[tokio::test]
async fn on_a_terminal_they_ask_and_take_nothing_but_a_yes() {
    let stage = Stage::migrated(Servers::shared(), "dlq_asked").await;
    stage.publish(&[]).await;
    put(&stage, &messages(&votes(1, 1)), &[]).await;
    put(&stage, &no_votes(1), &[]).await;
    for (what, answer, code, left) in [
        ("replay", "n", 1, 2),
        ("purge --reason malformed", "", 1, 2),
        ("purge --reason malformed", "y", 0, 1),
        ("replay", "yes", 0, 0),
    ] {
        let asked = stage.on_terminal(&format!("dlq {what}"), answer).await;
        asked.assert(code, &["1 messages", "[y/N]"]);
        until_dead(&stage, left).await;
    }
    assert_eq!(stage.ready(&stage.queue).await, Some(1));
}
