//! `publish --file`: a backfill that is killed or stopped, or that loses its broker.

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::{
    BINARY, Ended, Files, PATIENCE, Servers, Service, Stage, ended, eventually, message, messages,
    send, votes,
};

/// A line for each vote.
fn ndjson(first: u64, count: u64) -> Vec<u8> {
    messages(&votes(first, count)).join(&b'\n')
}

fn read(path: &str) -> Vec<u8> {
    std::fs::read(path).unwrap_or_default()
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&read(path)).unwrap_or_default()
}

/// `confirmed.lines` of a checkpoint; 0 while there is none.
fn reached(checkpoint: &str) -> u64 {
    json(checkpoint)["confirmed"]["lines"].as_u64().unwrap_or_default()
}

async fn until_reached(checkpoint: &str, lines: u64) {
    eventually("a part is confirmed", async || reached(checkpoint) >= lines).await;
}

async fn publish(stage: &Stage<'_>, arguments: &[&str]) -> Ended {
    stage.run("publish", arguments).await
}

/// `publish --file -` with this input.
async fn publish_input(stage: &Stage<'_>, arguments: &[&str], input: &[u8]) -> Ended {
    let mut command = stage.command(BINARY, &[&["publish", "--file", "-"], arguments].concat());
    let (read, mut write) = std::io::pipe().expect("a pipe");
    command.stdin(read);
    let input = input.to_vec();
    let writing = std::thread::spawn(move || write.write_all(&input));
    let ended = ended(command).await;
    writing.join().expect("no panic").expect("written");
    ended
}

fn spawn(stage: &Stage<'_>, arguments: &[&str]) -> Service {
    let mut command = Command::new(BINARY);
    command.arg("publish").args(arguments);
    Service::spawn_as(&stage.queue, command, &stage.environment())
}

#[tokio::test]
async fn a_backfill_that_was_killed_goes_on_from_its_checkpoint() {
    let stage = Stage::migrated(Servers::shared(), "backfill").await;
    let files = Files::new("backfill");
    let all = votes(0, 20_000);
    let file = files.write("votes", ndjson(0, 20_000));
    let [checkpoint, report] = ["checkpoint", "report"].map(|name| files.file(name));
    let arguments = ["--file", &file, "--checkpoint", &checkpoint];
    // Slow enough to be met in the middle.
    let slow = [&arguments[..], &["--rate", "2000"]].concat();

    let mut first = spawn(&stage, &slow);
    until_reached(&checkpoint, 1_000).await;
    first.signal(Signal::KILL);
    assert_eq!(first.exit_code().await, None);
    let killed_at = reached(&checkpoint);
    assert!(killed_at < 20_000, "in the middle");

    // An orderly stop: nothing that was confirmed is published again.
    let second = spawn(&stage, &slow);
    second.until_logged("resuming after line").await;
    until_reached(&checkpoint, killed_at + 1_000).await;
    second.signal(Signal::INT);
    second.assert_ends(1, &["Run the same command again"]).await;
    let stopped_at = reached(&checkpoint);
    let ready = stage.ready(&stage.queue).await.expect("a queue");
    assert!(u64::from(ready) >= stopped_at && stopped_at < 20_000);

    let last = publish(&stage, &[&arguments[..], &["--report", &report]].concat()).await;
    last.assert(0, &["resuming after line", "of earlier runs"]);
    for file in [&report, &checkpoint] {
        let mode = std::fs::metadata(file).expect("written").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "only the owner can read {file}");
    }
    let report = json(&report);
    assert_eq!(report["resumed_from"]["lines"], stopped_at);
    assert_eq!(report["confirmed"], 20_000 - stopped_at, "not from zero");
    assert_eq!((&report["complete"], &report["blank"]), (&true.into(), &0.into()));
    assert_eq!(reached(&checkpoint), 20_000);

    let service = stage.start(&[]).await;
    stage.until_ready(&stage.queue, 0).await;
    stage.finish([service], &all).await;

    // Nothing is left, until the file grows; then only that.
    publish(&stage, &arguments).await.assert(0, &[" 0 messages"]);
    files.write("votes", [ndjson(0, 20_000), b"\n\n".to_vec(), ndjson(20_000, 5)].concat());
    let more = publish(&stage, &arguments).await;
    more.assert(0, &[" 5 messages", "6 lines, 1 of them blank"]);
    assert_eq!(reached(&checkpoint), 20_006);
}

#[tokio::test]
async fn a_report_follows_no_link_and_a_password_in_the_arguments_is_warned_of() {
    let stage = Stage::new(Servers::shared(), "link").await;
    let files = Files::new("link");
    let target = files.write("target", "precious");
    let link = files.file("link");
    symlink(&target, &link).expect("a link");
    let password = format!("rabbitmq.password={}", stage.servers.get("RABBITMQ_PASSWORD"));
    let arguments = ["--count", "1", "--report", &link, "--set", &password];
    let texts = ["it is a link", "RABBITMQ_PASSWORD_FILE"];
    publish(&stage, &arguments).await.assert(70, &texts);
    assert_eq!(read(&target), b"precious");
}

#[tokio::test]
async fn a_broker_that_restarts_in_the_middle_costs_only_time() {
    let servers = Servers::private("publishing");
    let stage = Stage::migrated(&servers, "publishing").await;
    let files = Files::new("publishing");
    let all = votes(0, 8_000);
    let file = files.write("votes", ndjson(0, 8_000));
    let checkpoint = files.file("checkpoint");
    let arguments = ["--file", &file, "--checkpoint", &checkpoint, "--rate", "1000"];
    let publishing = spawn(&stage, &arguments);
    until_reached(&checkpoint, 500).await;
    servers.script(&["stop", "rabbitmq"]);
    publishing.until_logged("waiting for RabbitMQ").await;
    assert!(reached(&checkpoint) < 8_000, "in the middle");
    servers.script(&["start", "rabbitmq"]);
    publishing.assert_ends(0, &[]).await;
    assert_eq!(reached(&checkpoint), 8_000);
    let service = stage.start(&[]).await;
    stage.until_ready(&stage.queue, 0).await;
    stage.finish([service], &all).await;

    servers.script(&["stop", "rabbitmq"]);
    publish(&stage, &["--count", "5", "--retry-for", "0"]).await.assert(1, &["--retry-for"]);
}

#[tokio::test]
async fn what_can_not_be_resumed_is_refused_before_anything_is_published() {
    let stage = Stage::new(Servers::shared(), "refusedcheckpoint").await;
    let files = Files::new("refusedcheckpoint");
    let (one, other) = (files.write("one", ndjson(0, 10)), files.write("two", ndjson(5, 10)));
    let checkpoint = files.file("checkpoint");
    publish(&stage, &["--file", &one, "--checkpoint", &checkpoint]).await.assert(0, &[]);
    let saved = read(&checkpoint);

    for (arguments, text) in [
        (&["--file", &other, "--checkpoint", &checkpoint][..], "belongs to another file"),
        (&["--file", "-", "--checkpoint", &checkpoint], "--checkpoint"),
        (&["--file", &one, "--checkpoint", &one], "checkpoint"),
        (&["--count", "1", "--checkpoint", &checkpoint], "--checkpoint"),
        (&["--count", "1", "--dry-run"], "--dry-run"),
    ] {
        publish(&stage, arguments).await.assert(2, &[text]);
    }
    assert_eq!(read(&checkpoint), saved);
    assert_eq!(stage.ready(&stage.queue).await, Some(10));

    // The lines before one that is too long for a vote are published, and the line is named.
    let long = [ndjson(20, 3), vec![b'\n'], vec![b'x'; 17 << 20], vec![b'\n'], ndjson(30, 3)];
    let long = files.write("long", long.concat());
    let checkpoint = files.file("long-checkpoint");
    let ended = publish(&stage, &["--file", &long, "--checkpoint", &checkpoint]).await;
    ended.assert(1, &["line 4 of"]);
    assert_eq!(reached(&checkpoint), 3);
    assert_eq!(stage.ready(&stage.queue).await, Some(13));
}

#[tokio::test]
async fn a_dry_run_reports_invalid_lines_and_publishes_nothing() {
    let stage = Stage::new(Servers::shared(), "dryrun").await;
    let good = publish_input(&stage, &["--dry-run"], &ndjson(0, 10)).await;
    good.assert(0, &["10 lines: 10 votes, 0 that"]);

    let vote = String::from_utf8(message(&votes(0, 1)[0])).expect("JSON");
    let bad = [
        vote.as_str(),
        "",
        "not json",
        &vote.replace("law-000", "law 000"),
        "{",
        &format!("{}{}", vote, " ".repeat(20_000)),
        &vote.replace("oui", "maybe").replace("non", "maybe"),
        &"x".repeat(20_000),
    ]
    .join("\n");
    let ended = publish_input(&stage, &["--dry-run"], bad.as_bytes()).await;
    let ended = ended.assert(1, &["8 lines: 2 votes, 5 that"]);
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let rows: Vec<String> = ended.stdout.lines().map(words).collect();
    assert_eq!(rows[0], "reason field lines first in lines");
    assert_eq!(
        rows[2..6],
        ["too_large - 1 8", "not_json - 2 3, 5", "bad_law_id law_id 1 4", "bad_choice choice 1 7"]
    );
    assert_eq!(stage.ready(&stage.queue).await, None, "not even a queue");
}

#[tokio::test]
async fn a_file_in_another_format_is_refused_and_a_byte_order_mark_is_not() {
    let stage = Stage::new(Servers::shared(), "otherformat").await;
    let files = Files::new("otherformat");
    let zipped = files.write("votes.gz", b"\x1f\x8b\x08\0\0\0\0\0\n\n");
    let table = files.write("votes.csv", "vote_hash,citizen_id,law_id,choice,timestamp\n");
    let checkpoint = files.file("checkpoint");
    let zcat = format!("zcat {zipped} | vote");
    publish(&stage, &["--file", &zipped, "--checkpoint", &checkpoint]).await.assert(2, &[&zcat]);
    publish(&stage, &["--file", &table]).await.assert(2, &["mlr"]);
    publish(&stage, &["--file", &table, "--dry-run"]).await.assert(2, &["mlr"]);
    assert!(!Path::new(&checkpoint).exists(), "nothing is left behind");
    let array = publish_input(&stage, &[], &[b"[", &ndjson(0, 2)[..], b"]"].concat()).await;
    array.assert(2, &["standard input is a JSON array"]);
    assert_eq!(stage.ready(&stage.queue).await, None, "not even a queue");

    let marked = files.write("marked", [b"\xef\xbb\xbf", &ndjson(0, 10)[..]].concat());
    publish(&stage, &["--file", &marked, "--checkpoint", &checkpoint]).await.assert(0, &[]);
    let service = stage.start(&[]).await;
    stage.finish([service], &votes(0, 10)).await;
    assert_eq!(stage.take_dead_letters().await, []);
}

#[tokio::test]
async fn a_pipe_that_stays_silent_does_not_delay_a_stop() {
    let stage = Stage::new(Servers::shared(), "silentpipe").await;
    let mut silent = stage.command(BINARY, &["publish", "--file", "-"]);
    let mut silent = silent.stdin(Stdio::piped()).spawn().expect("it runs");
    let status = format!("/proc/{}/status", silent.id().expect("it runs"));
    eventually("it listens for signals", async || {
        let status = std::fs::read_to_string(&status).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        caught.is_some_and(|mask| mask & 1 << 14 != 0)
    })
    .await;
    send(&silent, Signal::TERM);
    let status = timeout(PATIENCE, silent.wait()).await.expect("ends in time").expect("it ran");
    assert_eq!(status.code(), Some(1));
}

/// RabbitMQ 3.10 returns what comes after a classic queue, and closes the connection (541) after a
/// quorum queue.
#[tokio::test]
async fn a_vote_that_has_no_queue_is_not_published_and_the_exit_code_says_so() {
    for classic in [true, false] {
        let stage = Stage::new(Servers::shared(), "returned").await;
        let files = Files::new("returned");
        if classic {
            stage.declare(true, &[]).await;
        }
        let file = files.write("votes", ndjson(0, 20_000));
        let [checkpoint, report] = ["checkpoint", "report"].map(|name| files.file(name));
        let arguments = ["--file", &file, "--checkpoint", &checkpoint, "--report", &report];
        let publishing = spawn(&stage, &[&arguments[..], &["--rate", "2000"]].concat());
        until_reached(&checkpoint, 1_000).await;
        stage.delete(&stage.queue).await;
        let texts = ["the queue was deleted meanwhile", "Publish the whole file again"];
        let log = publishing.assert_ends(1, &texts).await;
        assert!(!classic || !log.contains("waiting for RabbitMQ"), "{log}");
        let (report, confirmed) = (json(&report), reached(&checkpoint));
        assert_eq!(report["confirmed"], confirmed);
        assert_eq!(report["complete"], false);
        assert!(confirmed < 20_000, "what was returned is behind it");
    }
}

#[tokio::test]
async fn a_missing_permission_to_write_is_no_outage() {
    let stage = Stage::new(Servers::shared(), "mayread").await;
    let user = format!("reader-{}", stage.database);
    // With its queue: to create one takes other permissions.
    stage.publish(&[]).await;
    stage.servers.ctl(&["add_user", &user, "right"]);
    stage.servers.ctl(&["set_permissions", &user, ".*", "^$", ".*"]);
    let login = [("RABBITMQ_USER", user.as_str()), ("RABBITMQ_PASSWORD", "right")];
    let refused = stage.run_with(&["publish", "--count", "3000"], &login).await;
    stage.servers.ctl(&["delete_user", &user]);
    let permission = "write permission on the default exchange";
    let host = r#"virtual host \"/\""#;
    let refused = refused.assert(77, &[permission, "amq.default", &user, host]);
    assert!(!refused.stderr.contains("waiting for"), "{}", refused.stderr);
}
