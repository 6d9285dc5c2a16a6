//! Votes as messages.

use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use vote_aggregator::model::vote::Vote;

/// The fields of a vote as a publisher sends them.
pub fn fields(vote: &Vote) -> Value {
    json!({
        "vote_hash": vote.vote_hash,
        "citizen_id": vote.citizen_id,
        "law_id": vote.law_id,
        "choice": vote.choice.as_str(),
        "timestamp": vote.timestamp.format(&Rfc3339).expect("a year of four digits"),
    })
}
