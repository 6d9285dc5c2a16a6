//! The log: journald gets the priority of each line, and a reader that hangs costs lines and no votes.

use std::collections::BTreeMap;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::{BINARY, PATIENCE, Servers, Service, Stage, bare, request, send, settings};

/// As under systemd: standard error is the stream that JOURNAL_STREAM names, here a file.
fn under_journald() -> Command {
    let mut command = Command::new("sh");
    let script = "JOURNAL_STREAM=$(stat -L -c %d:%i /dev/fd/2); export JOURNAL_STREAM; \
                  exec \"$0\" run";
    command.args(["-c", script, BINARY]);
    command
}

#[tokio::test]
async fn journald_gets_the_priority_of_each_line() {
    let path = ("PATH", &*std::env::var("PATH").expect("a PATH"));
    // Nothing listens there.
    let nowhere = settings("POSTGRES_HOST=127.0.0.1 POSTGRES_PORT=1");
    let metrics = settings("PROMETHEUS_HOST=127.0.0.1 PROMETHEUS_PORT=0");
    let all = nowhere.into_iter().chain(metrics).chain([path]);
    let all = all.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut environment = BTreeMap::from_iter(all);
    let service = Service::spawn_as("journald", under_journald(), &environment);
    service.until_logged("waiting for PostgreSQL").await;
    let log = service.stop().await;
    for line in log.lines() {
        let priority = if line.contains(" WARN ") { "<4>" } else { "<6>" };
        assert!(line.starts_with(priority), "{line}");
    }
    assert!(log.contains("<4>") && log.contains("<6>"), "{log}");

    // A child that inherits the variable may have another standard error.
    environment.insert("JOURNAL_STREAM".to_owned(), "8:12345".to_owned());
    let service = Service::spawn("journald", &["run"], &environment).await;
    service.until_logged("waiting for PostgreSQL").await;
    assert!(!service.stop().await.contains('<'));
}

#[tokio::test]
async fn a_log_that_is_not_read_stops_neither_counting_nor_the_stop() {
    const VOTES: u64 = 3_000;
    let stage = Stage::migrated(Servers::shared(), "unread").await;
    // A line or more for each vote.
    let environment = stage.environment_with(&[("BATCH_SIZE", "1"), ("LOG_LEVEL", "trace")]);
    let mut service = bare(BINARY, &["run"]);
    let service = service.envs(&environment).stderr(Stdio::piped()).spawn();
    let mut service = service.expect("the binary runs");
    let mut log = BufReader::new(service.stderr.take().expect("piped")).lines();
    let address = loop {
        let line = log.next_line().await.expect("UTF-8").expect("a line");
        let line: Value = serde_json::from_str(&line).expect("a JSON log line");
        if let Some(address) = line["address"].as_str() {
            break address.to_owned();
        }
    };
    // From here on the log is not read.
    let all = stage.count(0, VOTES).await;
    assert_eq!(request(&address, "/livez").await.expect("an answer").status, 200);
    let scrape = request(&address, "/metrics").await.expect("an answer").body;
    let dropped = scrape.lines().find_map(|line| line.strip_prefix("log_lines_dropped_total "));
    let dropped: f64 = dropped.expect("the metric").parse().expect("a number");
    assert!(dropped > 0.0, "{dropped}");
    send(&service, Signal::TERM);
    let ended = timeout(PATIENCE, service.wait()).await;
    assert_eq!(ended.expect("ends in time").expect("a child of ours").code(), Some(0));
    stage.assert_counted_exactly(&all).await;
}
