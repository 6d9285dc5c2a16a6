//! Servers, a database and a queue for each test, and the service's binary as a process.

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

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;
use vote_aggregator::model::vote::{Choice, Vote};

pub use self::certificates::{Authority, Validity};
pub use self::collector::Collector;
pub use self::command::{BINARY, Ended, command, ended, execute, run};
pub use self::files::Files;
pub use self::interceptor::{Interceptor, Pass};
pub use self::pooler::Pooler;
pub use self::process::{Service, request, send};
pub use self::raw::RawPublisher;
pub use self::servers::Servers;
pub use self::stage::Stage;
pub use self::steps::{LOCK_WAITS, login, run_with};

/// How long anything may take: generous, for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds; panics when it does not within [`PATIENCE`].
pub async fn eventually(what: &str, condition: impl AsyncFnMut() -> bool) {
    eventually_within(PATIENCE, what, condition).await;
}

/// As [`eventually`], with another limit.
pub async fn eventually_within(
    patience: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> bool,
) {
    let deadline = Instant::now() + patience;
    while !condition().await {
        assert!(Instant::now() < deadline, "still not so after {patience:?}: {what}");
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
    let timestamp = vote.timestamp.format(&Rfc3339).expect("a year RFC 3339 can write");
    serde_json::json!({
        "vote_hash": vote.vote_hash,
        "citizen_id": vote.citizen_id,
        "law_id": vote.law_id,
        "choice": vote.choice.as_str(),
        "timestamp": timestamp,
    })
    .to_string()
    .into_bytes()
}

/// [`message`] of each.
pub fn messages(votes: &[Vote]) -> Vec<Vec<u8>> {
    votes.iter().map(message).collect()
}
