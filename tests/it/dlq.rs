//! `dlq`: what an operator reads, replays and removes, and that no message is lost.

mod list;
mod purge;
mod replay;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use vote_aggregator::model::vote::{Choice, Vote};

use crate::support::{
    BINARY, Ended, FORBID_LAW_X, Servers, Service, Stage, eventually, message, messages, settings,
    vote, votes,
};

const ALLOW_LAW_X: &str = "ALTER TABLE vote_audit DROP CONSTRAINT no_law_x";
/// The header of a vote that the database refused.
const REFUSED: [(&str, &str); 1] = [("x-sqlstate", "23514")];

impl Ended {
    fn lines(&self) -> Vec<Value> {
        let line = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        self.stdout.lines().map(line).collect()
    }

    /// The number at the end of the row that begins so.
    fn count(&self, row: &str) -> &str {
        let mut rows = self.stdout.lines().map(str::trim);
        let found = rows.find(|line| line.starts_with(row)).and_then(|row| row.rsplit(' ').next());
        found.unwrap_or_else(|| panic!("{row} in {}{}", self.stdout, self.stderr))
    }
}

/// A command that has to end with this code.
async fn expect(stage: &Stage<'_>, code: i32, arguments: &[&str]) -> Ended {
    // A trial waits as long as a batch may take by these settings.
    let quick = settings("BATCH_TIMEOUT_SECONDS=0.2 RETRY_DELAY_SECONDS=0.1 MAX_RETRY_ATTEMPTS=1");
    stage.run_with(&[&["dlq"], arguments].concat(), &quick).await.assert(code, &[])
}

/// A command that changes nothing: all `dead` messages are ready again afterwards.
async fn unchanged(stage: &Stage<'_>, dead: usize, arguments: &[&str]) -> Ended {
    let ended = expect(stage, 0, arguments).await;
    until_dead(stage, dead).await;
    ended
}

/// Waits until the dead-letter queue has so many ready messages.
async fn until_dead(stage: &Stage<'_>, count: usize) {
    stage.until_ready(&stage.dead_letter_queue(), count).await;
}

/// Publishes to the dead-letter queue, which exists, and waits until the messages are ready.
async fn put(stage: &Stage<'_>, bodies: &[Vec<u8>], headers: &[(&str, &str)]) {
    let queue = stage.dead_letter_queue();
    let before = stage.ready(&queue).await.expect("the queue exists");
    stage.publish_to(&queue, bodies, headers).await;
    until_dead(stage, before as usize + bodies.len()).await;
}

/// The body in a line of `show --json --reveal` or of an archive.
fn body(line: &Value) -> Vec<u8> {
    match &line["body"] {
        Value::String(text) => text.clone().into_bytes(),
        _ => STANDARD.decode(line["body_base64"].as_str().expect("base64")).expect("base64"),
    }
}

fn sorted(mut bodies: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    bodies.sort();
    bodies
}

/// `count` bodies that are no votes.
fn no_votes(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| format!("no vote {number}").into_bytes()).collect()
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
/// database still refuses, and has counted the others; all votes, and the dead bodies.
async fn some_dead(name: &str) -> (Stage<'static>, Service, Vec<Vote>, Vec<Vec<u8>>) {
    let stage = Stage::migrated(Servers::shared(), name).await;
    stage.execute(FORBID_LAW_X).await;
    let mut all = votes(100, 60);
    let refused = [vote(1_000, "law-x", Choice::Oui), vote(1_001, "law-x", Choice::Non)];
    let dead = [malformed(), messages(&refused)].concat();
    stage.publish(&[messages(&all), dead.clone()].concat()).await;
    let service = stage.start(&[]).await;
    stage.until_counted(all.len()).await;
    until_dead(&stage, dead.len()).await;
    all.extend(refused);
    (stage, service, all, sorted(dead))
}
