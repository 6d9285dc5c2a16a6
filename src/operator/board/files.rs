//! The files of what is shown.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::Board;
use crate::adapters::store::{PublishedCorrection, Snapshot};
use crate::model::publication::{Published, State, rfc3339};
use crate::model::results::{LawResult, Reading, csv, percent, percentages};

/// How often the time of the last look is renewed, in seconds: it shows that the board is running.
const CHECKED_EVERY: i64 = 10;

/// A file that the public gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub name: &'static str,
    pub content: String,
}

/// The files of what `board` shows at `now`; none before the first reading.
pub fn files(board: &Board, now: OffsetDateTime) -> Option<[File; 2]> {
    let shown = board.shown()?;
    let reading = Reading { laws: shown.laws.clone(), at: shown.as_of };
    Some([
        File { name: "results.json", content: results(board, shown, now) },
        File { name: "results.csv", content: csv(&reading, usize::MAX) },
    ])
}

/// Everything in one object. While results are not public it is the same whatever is counted.
fn results(board: &Board, shown: &Snapshot, now: OffsetDateTime) -> String {
    let published = shown.published.as_ref();
    let is_final = published.is_some_and(|it| it.state == Some(State::Final));
    let as_of = published.filter(|it| it.is_public()).map(|_| rfc3339(shown.as_of));
    let seconds = now.unix_timestamp().div_euclid(CHECKED_EVERY) * CHECKED_EVERY;
    let checked_at = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(now);
    let stale: Option<&'static str> = board.stale().map(Into::into);
    let object = json!({
        "format": "vote-aggregator-results/1",
        "test": published.is_some_and(|it| it.test),
        "publication": published.map(publication),
        "as_of": as_of,
        "checked_at": rfc3339(checked_at),
        "stale": stale.is_some(),
        "stale_reason": stale,
        "laws": shown.laws.iter().map(|it| law(it, is_final)).collect::<Vec<_>>(),
        "corrections": shown.corrections.iter().map(PublishedCorrection::json).collect::<Vec<_>>(),
        "min_new_votes": board.min_new_votes(),
    });
    format!("{object}\n")
}

fn publication(published: &Published) -> Value {
    let mut object = published.json();
    object["since"] = rfc3339(published.set_at.max(published.not_before)).into();
    object["reason"] = published.reason.as_deref().into();
    object["results_sha256"] = published.sha256.as_deref().into();
    object
}

fn law(law: &LawResult, is_final: bool) -> Value {
    let LawResult { law_id, oui, non, updated_at } = law;
    let [oui_shown, non_shown] = percentages(*oui, *non);
    // Not who leads: there is an outcome, or there is none yet.
    let outcome = is_final.then(|| match oui.cmp(non) {
        std::cmp::Ordering::Greater => "accepted",
        std::cmp::Ordering::Less => "rejected",
        std::cmp::Ordering::Equal => "tie",
    });
    json!({
        "law_id": law_id,
        "oui": oui,
        "non": non,
        "total": law.total(),
        "oui_percent": percent(*oui, law.total()),
        "non_percent": percent(*non, law.total()),
        "oui_shown": oui_shown,
        "non_shown": non_shown,
        "outcome": outcome,
        "updated_at": updated_at.map(rfc3339),
    })
}
