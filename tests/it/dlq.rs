//! `dlq`: what an operator reads, replays and removes, and that no message is lost.

mod look;
mod purge;
mod replay;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lapin::BasicProperties;
use lapin::options::{BasicGetOptions, BasicNackOptions, BasicPublishOptions};
use lapin::types::AMQPValue;
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::timeout;
use vote_aggregator::adapters::broker::RabbitMq;
use vote_aggregator::model::vote::{Choice, Vote};

use crate::support::{
    BINARY, Ended, PATIENCE, Servers, Service, Stage, command, ended, eventually, execute, message,
    vote, votes,
};

const FORBID_LAW_X: &str =
    "ALTER TABLE vote_audit ADD CONSTRAINT no_law_x CHECK (law_id <> 'law-x')";
const ALLOW_LAW_X: &str = "ALTER TABLE vote_audit DROP CONSTRAINT no_law_x";

impl Ended {
    fn lines(&self) -> Vec<Value> {
        let line = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        self.stdout.lines().map(line).collect()
    }

    /// The rows of its tables.
    fn row(&self, begin: &str) -> Option<&str> {
        self.stdout.lines().map(str::trim).find(|line| line.starts_with(begin))
    }
}

async fn dlq(stage: &Stage<'_>, arguments: &[&str]) -> Ended {
    let mut command = command(stage, BINARY, &[&["dlq"], arguments].concat());
    // They say how long a batch may take, which a trial waits for.
    command.envs([
        ("BATCH_TIMEOUT_SECONDS", "0.2"),
        ("RETRY_DELAY_SECONDS", "0.1"),
        ("MAX_RETRY_ATTEMPTS", "1"),
    ]);
    ended(command).await
}

/// The same, which has to end with this code.
async fn expect(stage: &Stage<'_>, code: i32, arguments: &[&str]) -> Ended {
    let ended = dlq(stage, arguments).await;
    let Ended { code: was, stdout, stderr } = &ended;
    assert_eq!(*was, Some(code), "{arguments:?}\n{stdout}\n{stderr}");
    ended
}

/// A command that changes nothing: all `dead` messages are ready again afterwards.
async fn unchanged(stage: &Stage<'_>, dead: usize, arguments: &[&str]) -> Ended {
    let ended = expect(stage, 0, arguments).await;
    until_dead(stage, dead).await;
    ended
}

/// Waits until the dead-letter queue has so many ready messages.
async fn until_dead(stage: &Stage<'_>, count: usize) {
    eventually(&format!("{count} dead letters"), async || {
        stage.ready(&stage.dead_letter_queue()).await == Some(count as u32)
    })
    .await;
}

/// Publishes straight into the dead-letter queue, which exists.
async fn put(stage: &Stage<'_>, bodies: &[Vec<u8>], headers: &[(&str, &str)]) {
    let config = stage.config(&[]);
    let rabbitmq = RabbitMq::new(config.rabbitmq);
    let publisher = rabbitmq.publisher().await.expect("RabbitMQ takes a publisher");
    let mut confirms = Vec::new();
    for body in bodies {
        let sent = publisher.publish(&stage.dead_letter_queue(), body, headers).await;
        confirms.push(sent.expect("published"));
    }
    for confirm in confirms {
        confirm.await.expect("confirmed");
    }
    publisher.close().await.expect("closed");
}

/// A file of the test's own that is not there yet.
fn new_file(stage: &Stage<'_>) -> PathBuf {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.ndjson", stage.database));
    std::fs::remove_file(&file).ok();
    file
}

fn sorted(mut bodies: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    bodies.sort();
    bodies
}

async fn taken(stage: &Stage<'_>) -> Vec<Vec<u8>> {
    sorted(stage.take_dead_letters().await.into_iter().map(|(body, _)| body).collect())
}

fn malformed() -> Vec<Vec<u8>> {
    let broken = String::from_utf8(message(&vote(7, "law-001", Choice::Oui))).expect("UTF-8");
    vec![
        broken.replace("\"oui\"", "\"maybe\"").into_bytes(),
        broken.replace("citizen_id", "citizn_id").into_bytes(),
        b"citizen-00000007 voted\x1b[2J".to_vec(),
        b"\xff\xfecitizen-00000007".to_vec(),
    ]
}

/// A service that has dead-lettered four malformed messages and two votes on law-x, which the
/// database still refuses, and counted the others; with what is dead.
async fn some_dead(name: &str) -> (Stage<'static>, Service, Vec<Vote>, Vec<Vec<u8>>) {
    let stage = Stage::migrated(Servers::shared(), name).await;
    execute(&stage, FORBID_LAW_X).await;
    let good = votes(100, 60);
    let refused = [vote(1_000, "law-x", Choice::Oui), vote(1_001, "law-x", Choice::Non)];
    let dead: Vec<Vec<u8>> = malformed().into_iter().chain(refused.iter().map(message)).collect();
    let all: Vec<Vec<u8>> = good.iter().map(message).chain(dead.clone()).collect();
    stage.publish(&all).await;
    let service = stage.start(&[]).await;
    stage.until_counted(good.len()).await;
    until_dead(&stage, dead.len()).await;
    let every = good.into_iter().chain(refused).collect();
    (stage, service, every, sorted(dead))
}
