//! Servers, a database and a queue for each test, and the service's binary as a process.

pub mod browser;
mod certificates;
pub mod collector;
mod command;
mod files;
mod interceptor;
mod pooler;
mod process;
mod raw;
pub mod repository;
mod servers;
mod stage;
mod steps;
pub mod web;

#[path = "../shared/messages.rs"]
mod fields;
#[path = "../shared/processes.rs"]
mod processes;
#[path = "../shared/tables.rs"]
pub mod tables;

use std::time::Duration;

use lapin::types::AMQPValue;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::time::Instant;
use vote_aggregator::model::vote::{Choice, Vote};

pub use self::certificates::{Authority, Validity};
pub use self::collector::Collector;
pub use self::command::{BINARY, Ended, bare, ended, ended_into, on_path};
pub use self::files::Files;
pub use self::interceptor::{Interceptor, Pass, contains};
pub use self::pooler::Pooler;
pub use self::process::{Answer, Environment, Frozen, Service, exchange, request, send};
pub use self::raw::RawPublisher;
pub use self::servers::Servers;
pub use self::stage::{Stage, headers};
pub use self::steps::{
    FORBID_LAW_X, PREDECESSOR, WAITS, assert_contains, assert_lacks, insert, login,
};

/// How long anything may take: generous, for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds; panics when it does not within [`PATIENCE`].
pub async fn eventually(what: &str, condition: impl AsyncFnMut() -> bool) {
    eventually_within(PATIENCE, what, condition).await;
}

/// As [`eventually`], with another limit.
pub async fn eventually_within(limit: Duration, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds().await {
        assert!(Instant::now() < deadline, "still not so after {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A valid vote; the number makes hash, citizen and time its own.
pub fn vote(number: u64, law_id: &str, choice: Choice) -> Vote {
    Vote {
        vote_hash: format!("hash-{number:08}").into(),
        citizen_id: format!("citizen-{number:08}").into(),
        law_id: law_id.into(),
        choice,
        timestamp: OffsetDateTime::UNIX_EPOCH
            + time::Duration::seconds(1_763_000_000)
            + time::Duration::milliseconds(i64::try_from(number).expect("a small number")),
    }
}

/// `count` distinct votes from `first` on, over five laws and both choices.
pub fn votes(first: u64, count: u64) -> Vec<Vote> {
    let choose = |n: u64| if n.is_multiple_of(3) { Choice::Non } else { Choice::Oui };
    (first..first + count).map(|n| vote(n, &format!("law-{:03}", n % 5), choose(n))).collect()
}

/// The message a publisher sends.
pub fn message(vote: &Vote) -> Vec<u8> {
    fields::fields(vote).to_string().into_bytes()
}

/// [`message`] of each.
pub fn messages(votes: &[Vote]) -> Vec<Vec<u8>> {
    votes.iter().map(message).collect()
}

/// A free port, and what accepts connections on it.
pub async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("an address").port().to_string();
    (listener, port)
}

/// The settings in `NAME=value NAME=value …`.
pub fn settings(assignments: &str) -> Vec<(&str, &str)> {
    let assignments = assignments.split_whitespace();
    assignments.map(|one| one.split_once('=').expect("NAME=value")).collect()
}

/// A text as an argument of a queue or a header of a message.
pub fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}
