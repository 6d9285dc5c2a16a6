//! `publish --file`: what becomes of a backfill that is killed, stopped, or loses its broker.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::{
    BINARY, Ended, PATIENCE, Servers, Service, Stage, command, eventually, message, run, votes,
};

/// A directory of the test's own with a file of votes, gone with this value.
struct Folder(PathBuf);

impl Folder {
    fn new(stage: &Stage<'_>) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&stage.database);
        std::fs::create_dir_all(&folder).expect("a folder");
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("UTF-8").to_owned()
    }

    fn write(&self, name: &str, text: &[u8]) -> String {
        std::fs::write(self.0.join(name), text).expect("written");
        self.path(name)
    }

    /// `confirmed.lines` of a checkpoint; 0 while there is none.
    fn reached(&self, checkpoint: &str) -> u64 {
        let text = std::fs::read(self.0.join(checkpoint)).unwrap_or_default();
        let saved: Value = serde_json::from_slice(&text).unwrap_or_default();
        saved["confirmed"]["lines"].as_u64().unwrap_or_default()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// A line a vote.
fn ndjson(first: u64, count: u64) -> Vec<u8> {
    votes(first, count).iter().map(message).collect::<Vec<_>>().join(&b'\n')
}

async fn publish(stage: &Stage<'_>, arguments: &[&str]) -> Ended {
    run(stage, "publish", arguments).await
}

fn spawn(stage: &Stage<'_>, arguments: &[&str]) -> Service {
    let mut command = Command::new(BINARY);
    command.arg("publish").args(arguments);
    Service::spawn_as(&stage.queue, command, &stage.environment())
}

#[tokio::test]
async fn a_backfill_that_was_killed_goes_on_from_its_checkpoint() {
    let stage = Stage::migrated(Servers::shared(), "backfill").await;
    let folder = Folder::new(&stage);
    let all = votes(0, 20_000);
    let file = folder.write("votes", &ndjson(0, 20_000));
    let (checkpoint, report) = (folder.path("checkpoint"), folder.path("report"));
    let arguments = ["--file", &file, "--checkpoint", &checkpoint];

    // Slow enough to be met in the middle.
    let mut first = spawn(&stage, &[&arguments[..], &["--rate", "2000"]].concat());
    eventually("a part is confirmed", async || folder.reached("checkpoint") >= 1_000).await;
    first.signal(Signal::KILL);
    assert_eq!(first.exit_code().await, None);
    let reached = folder.reached("checkpoint");
    assert!(reached < 20_000, "in the middle");

    // A stop in good order: nothing that was confirmed is published again.
    let mut second = spawn(&stage, &[&arguments[..], &["--rate", "2000"]].concat());
    second.until_logged("going on after line").await;
    eventually("a further part", async || folder.reached("checkpoint") >= reached + 1_000).await;
    second.signal(Signal::INT);
    assert_eq!(second.exit_code().await, Some(1), "{}", second.log());
    assert_eq!(second.logged("Run the same command again"), 1, "{}", second.log());
    let stopped = folder.reached("checkpoint");
    let ready = stage.ready(&stage.queue).await.expect("a queue");
    assert!(u64::from(ready) >= stopped && stopped < 20_000);

    let last = publish(&stage, &[&arguments[..], &["--report", &report]].concat()).await;
    assert_eq!(last.code, Some(0), "{}", last.stderr);
    assert!(last.stderr.contains("going on after line"), "{}", last.stderr);
    assert!(last.stdout.contains("of earlier runs"), "{}", last.stdout);
    for file in [&report, &checkpoint] {
        let mode = std::fs::metadata(file).expect("written").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file} is for its owner alone");
    }
    let report: Value =
        serde_json::from_slice(&std::fs::read(&report).expect("written")).expect("JSON");
    assert_eq!(report["resumed_from"]["lines"], stopped);
    assert_eq!(report["confirmed"], 20_000 - stopped, "not from zero");
    assert_eq!((report["complete"].as_bool(), &report["blank"]), (Some(true), &Value::from(0)));
    assert_eq!(folder.reached("checkpoint"), 20_000);

    let service = stage.start(&[]).await;
    stage.until_counted(all.len()).await;
    eventually("drained", async || stage.ready(&stage.queue).await == Some(0)).await;
    service.stop().await;
    stage.assert_counted_exactly(&all).await;
    stage.assert_drained().await;

    // Nothing is left, until the file grows; then only that.
    let nothing = publish(&stage, &arguments).await;
    assert!(
        nothing.code == Some(0) && nothing.stdout.contains(" 0 messages"),
        "{}",
        nothing.stdout
    );
    let grown = [ndjson(0, 20_000), b"\n\n".to_vec(), ndjson(20_000, 5)].concat();
    folder.write("votes", &grown);
    let more = publish(&stage, &arguments).await;
    assert!(more.code == Some(0) && more.stdout.contains(" 5 messages"), "{}", more.stderr);
    assert!(more.stdout.contains("6 lines, 1 of them blank"), "{}", more.stdout);
    assert_eq!(folder.reached("checkpoint"), 20_006);
}

#[tokio::test]
async fn a_report_follows_no_link_and_a_password_in_the_arguments_is_warned_of() {
    let stage = Stage::new(Servers::shared(), "link").await;
    let folder = Folder::new(&stage);
    let target = folder.write("target", b"precious");
    let link = folder.path("link");
    std::os::unix::fs::symlink(&target, &link).expect("a link");
    let password = format!("rabbitmq.password={}", stage.servers.get("RABBITMQ_PASSWORD"));
    let ended = publish(&stage, &["--count", "1", "--report", &link, "--set", &password]).await;
    assert_eq!(ended.code, Some(70), "{}", ended.stderr);
    assert!(ended.stderr.contains("it is a link"), "{}", ended.stderr);
    assert_eq!(std::fs::read(&target).expect("there"), b"precious");
    assert!(ended.stderr.contains("RABBITMQ_PASSWORD_FILE"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_broker_that_restarts_in_the_middle_costs_nothing_but_time() {
    let servers = Servers::private("publishing");
    let stage = Stage::migrated(&servers, "publishing").await;
    let folder = Folder::new(&stage);
    let all = votes(0, 8_000);
    let file = folder.write("votes", &ndjson(0, 8_000));
    let arguments = ["--file", &file, "--checkpoint", &folder.path("checkpoint"), "--rate", "1000"];
    let mut publishing = spawn(&stage, &arguments);
    eventually("a part is confirmed", async || folder.reached("checkpoint") >= 500).await;
    servers.script(&["stop", "rabbitmq"]);
    publishing.until_logged("waiting for RabbitMQ").await;
    assert!(folder.reached("checkpoint") < 8_000, "in the middle");
    servers.script(&["start", "rabbitmq"]);
    assert_eq!(publishing.exit_code().await, Some(0), "{}", publishing.log());
    assert_eq!(folder.reached("checkpoint"), 8_000);
    let service = stage.start(&[]).await;
    stage.until_counted(all.len()).await;
    eventually("drained", async || stage.ready(&stage.queue).await == Some(0)).await;
    service.stop().await;
    stage.assert_counted_exactly(&all).await;

    // Nobody there, and nobody to wait for.
    servers.script(&["stop", "rabbitmq"]);
    let gave_up = publish(&stage, &["--count", "5", "--retry-for", "0"]).await;
    assert_eq!(gave_up.code, Some(1), "{}", gave_up.stderr);
    assert!(gave_up.stderr.contains("--retry-for"), "{}", gave_up.stderr);
}

#[tokio::test]
async fn what_can_not_be_resumed_is_refused_before_anything_is_published() {
    let stage = Stage::new(Servers::shared(), "refusedcheckpoint").await;
    let folder = Folder::new(&stage);
    let (one, other) = (folder.write("one", &ndjson(0, 10)), folder.write("two", &ndjson(5, 10)));
    let checkpoint = folder.path("checkpoint");
    let published = publish(&stage, &["--file", &one, "--checkpoint", &checkpoint]).await;
    assert_eq!(published.code, Some(0), "{}", published.stderr);
    let saved = std::fs::read(&checkpoint).expect("written");

    let refused = publish(&stage, &["--file", &other, "--checkpoint", &checkpoint]).await;
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("belongs to another file"), "{}", refused.stderr);
    let refused = publish(&stage, &["--file", "-", "--checkpoint", &checkpoint]).await;
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    let refused = publish(&stage, &["--file", &one, "--checkpoint", &one]).await;
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    let refused = publish(&stage, &["--count", "1", "--checkpoint", &checkpoint]).await;
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    let refused = publish(&stage, &["--count", "1", "--dry-run"]).await;
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert_eq!(std::fs::read(&checkpoint).expect("there"), saved);
    assert_eq!(stage.ready(&stage.queue).await, Some(10));

    // What is before a line that is no vote for its length is published, and the line is named.
    let long = [ndjson(20, 3), vec![b'\n'], vec![b'x'; 17 << 20], vec![b'\n'], ndjson(30, 3)];
    let long = folder.write("long", &long.concat());
    let checkpoint = folder.path("long-checkpoint");
    let ended = publish(&stage, &["--file", &long, "--checkpoint", &checkpoint]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("line 4 of"), "{}", ended.stderr);
    assert_eq!(folder.reached("long-checkpoint"), 3);
    assert_eq!(stage.ready(&stage.queue).await, Some(13));
}

#[tokio::test]
async fn a_dry_run_tells_what_is_no_vote_and_publishes_nothing() {
    let stage = Stage::new(Servers::shared(), "dryrun").await;
    let folder = Folder::new(&stage);
    let good = folder.write("good", &ndjson(0, 10));
    let ended = publish(&stage, &["--file", &good, "--dry-run"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.starts_with("10 lines: 10 votes, 0 that"), "{}", ended.stdout);

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
    let mut command = command(&stage, BINARY, &["publish", "--file", "-", "--dry-run"]);
    let mut checking =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
    let mut input = checking.stdin.take().expect("piped");
    input.write_all(bad.as_bytes()).await.expect("written");
    drop(input);
    let output = timeout(PATIENCE, checking.wait_with_output()).await.expect("ends in time");
    let output = output.expect("it ran");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    let rows: Vec<String> =
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(rows[0], "reason field lines first in lines");
    assert_eq!(
        rows[2..6],
        ["too_large - 1 8", "not_json - 2 3, 5", "bad_law_id law_id 1 4", "bad_choice choice 1 7"]
    );
    assert!(text.contains("8 lines: 2 votes, 5 that"), "{text}");
    assert_eq!(stage.ready(&stage.queue).await, None, "not even a queue");
}

#[tokio::test]
async fn a_file_in_another_format_is_refused_and_a_byte_order_mark_is_not() {
    let stage = Stage::new(Servers::shared(), "otherformat").await;
    let folder = Folder::new(&stage);
    let zipped = folder.write("votes.gz", b"\x1f\x8b\x08\0\0\0\0\0\n\n");
    let checkpoint = folder.path("checkpoint");
    let refused = publish(&stage, &["--file", &zipped, "--checkpoint", &checkpoint]).await;
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains(&format!("zcat {zipped} | vote")), "{}", refused.stderr);
    assert!(!Path::new(&checkpoint).exists(), "nothing is left behind");
    let table = folder.write("votes.csv", b"vote_hash,citizen_id,law_id,choice,timestamp\n");
    for arguments in [&["--file", &table][..], &["--file", &table, "--dry-run"]] {
        let refused = publish(&stage, arguments).await;
        assert!(refused.code == Some(2) && refused.stderr.contains("mlr"), "{}", refused.stderr);
    }
    let array = [b"[", &ndjson(0, 2)[..], b"]"].concat();
    let mut piped = command(&stage, BINARY, &["publish", "--file", "-"]);
    let mut piped = piped.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    piped.stdin.take().expect("piped").write_all(&array).await.expect("written");
    let output = timeout(PATIENCE, piped.wait_with_output()).await.expect("ends in time");
    let output = output.expect("it ran");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("standard input is a JSON array"), "{stderr}");
    assert_eq!(stage.ready(&stage.queue).await, None, "not even a queue");

    // A pipe that stays silent holds up no stop.
    let mut silent = command(&stage, BINARY, &["publish", "--file", "-"]);
    silent.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut silent = silent.spawn().expect("it runs");
    let reads = format!("/proc/{}/status", silent.id().expect("it runs"));
    eventually("it listens for signals", async || {
        let status = std::fs::read_to_string(&reads).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        caught.is_some_and(|mask| mask & 1 << 14 != 0)
    })
    .await;
    crate::support::send(&silent, Signal::TERM);
    let status = timeout(PATIENCE, silent.wait()).await.expect("ends in time").expect("it ran");
    assert_eq!(status.code(), Some(1));

    let marked = folder.write("marked", &[b"\xef\xbb\xbf", &ndjson(0, 10)[..]].concat());
    let published = publish(&stage, &["--file", &marked, "--checkpoint", &checkpoint]).await;
    assert_eq!(published.code, Some(0), "{}", published.stderr);
    let service = stage.start(&[]).await;
    stage.until_counted(10).await;
    service.stop().await;
    assert_eq!(stage.take_dead_letters().await, []);
}

/// RabbitMQ 3.10 returns what comes after a classic queue, and closes the connection (541) after a
/// quorum queue.
#[tokio::test]
async fn a_vote_that_has_no_queue_is_not_published_and_the_exit_code_says_so() {
    for classic in [true, false] {
        let stage = Stage::new(Servers::shared(), "returned").await;
        let folder = Folder::new(&stage);
        if classic {
            stage.declare(true, &[]).await;
        }
        let file = folder.write("votes", &ndjson(0, 20_000));
        let (checkpoint, report) = (folder.path("checkpoint"), folder.path("report"));
        let arguments = ["--file", &file, "--checkpoint", &checkpoint, "--report", &report];
        let mut publishing = spawn(&stage, &[&arguments[..], &["--rate", "2000"]].concat());
        eventually("a part is confirmed", async || folder.reached("checkpoint") >= 1_000).await;
        stage.delete(&stage.queue).await;
        assert_eq!(publishing.exit_code().await, Some(1), "{}", publishing.log());
        let log = publishing.log();
        assert!(log.contains("the queue was deleted meanwhile"), "{log}");
        assert!(log.contains("Publish the whole file again"), "{log}");
        assert!(!classic || !log.contains("waiting for RabbitMQ"), "{log}");
        let report: Value =
            serde_json::from_slice(&std::fs::read(&report).expect("written")).expect("JSON");
        assert_eq!(report["confirmed"], folder.reached("checkpoint"));
        assert_eq!(report["complete"], false);
        assert!(folder.reached("checkpoint") < 20_000, "what was returned is behind it");
    }
}

#[tokio::test]
async fn a_missing_permission_to_write_is_no_outage() {
    let stage = Stage::new(Servers::shared(), "mayread").await;
    let user = format!("reader-{}", stage.database);
    // With its queue: to make one takes other permissions.
    stage.publish(&[]).await;
    stage.servers.script(&["ctl", "--", "add_user", &user, "right"]);
    stage.servers.script(&["ctl", "--", "set_permissions", &user, ".*", "^$", ".*"]);
    let mut refused = command(&stage, BINARY, &["publish", "--count", "3000"]);
    refused.env("RABBITMQ_USER", &user).env("RABBITMQ_PASSWORD", "right");
    let refused = crate::support::ended(refused).await;
    stage.servers.script(&["ctl", "--", "delete_user", &user]);
    assert_eq!(refused.code, Some(77), "{}", refused.stderr);
    let stderr = &refused.stderr;
    assert!(stderr.contains("write permission on the default exchange"), "{stderr}");
    assert!(stderr.contains("amq.default") && stderr.contains(&user), "{stderr}");
    assert!(
        stderr.contains(r#"virtual host \"/\""#) && !stderr.contains("waiting for"),
        "{stderr}"
    );
}
