//! For programs: `results.json` and `history.json`. While results are not public both are the same whatever is
//! counted, but for `checked_at`.

use serde_json::{Value, json};
use strum::VariantArray;

use crate::adapters::store::PublishedCorrection;
use crate::model::publication::{Published, PublishedChange, rfc3339};
use crate::model::results::{LawResult, percent, percentages};
use crate::operator::board::Language;
use crate::operator::board::view::{Row, View};

/// Everything in one object.
pub fn results(view: &View<'_>) -> String {
    let stale: Option<&'static str> = view.stale.map(|(why, _)| why.into());
    let object = json!({
        "format": "vote-aggregator-results/1",
        "test": view.is_test(),
        "election": view.election,
        "publication": view.published.map(publication),
        "as_of": view.as_of.map(rfc3339),
        "checked_at": rfc3339(view.checked_at),
        "stale": stale.is_some(),
        "stale_reason": stale,
        "laws": view.laws.iter().map(|row| law(view, row)).collect::<Vec<_>>(),
        "unlisted": { "laws": view.unlisted.laws, "votes": view.unlisted.votes },
        "corrections": corrections(view),
        "min_new_votes": view.min_new_votes,
    });
    format!("{object}\n")
}

/// All publications and corrections, oldest first.
pub fn history(view: &View<'_>, changes: &[PublishedChange]) -> String {
    let object = json!({
        "format": "vote-aggregator-history/1",
        "test": view.is_test(),
        "publications": changes.iter().map(PublishedChange::json).collect::<Vec<_>>(),
        "corrections": corrections(view),
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

fn corrections(view: &View<'_>) -> Vec<Value> {
    let one = |(law_id, correction): &(Option<&str>, &PublishedCorrection)| {
        let mut object = correction.json();
        object["law_id"] = (*law_id).into();
        object
    };
    view.corrections.iter().map(one).collect()
}

fn law(view: &View<'_>, row: &Row<'_>) -> Value {
    let titles = Language::VARIANTS.iter().map(|it| (it.to_string(), row.title(*it).into()));
    let mut object = json!({
        "law_id": row.law_id,
        "title": titles.collect::<serde_json::Map<_, Value>>(),
        "registered": row.registered,
        "oui": null, "non": null, "total": null,
        "oui_percent": null, "non_percent": null,
        "oui_shown": null, "non_shown": null,
        "turnout_percent": null,
        "outcome": null,
        "updated_at": null,
    });
    if let Some(law @ LawResult { oui, non, updated_at, .. }) = row.result {
        let total = law.total();
        let [oui_shown, non_shown] = percentages(*oui, *non);
        let outcome: Option<&'static str> = view.outcome(law).map(Into::into);
        let turnout = row.registered.and_then(|registered| percent(total, registered));
        for (name, value) in [
            ("oui", (*oui).into()),
            ("non", (*non).into()),
            ("total", total.into()),
            ("oui_percent", percent(*oui, total).into()),
            ("non_percent", percent(*non, total).into()),
            ("oui_shown", oui_shown.into()),
            ("non_shown", non_shown.into()),
            ("turnout_percent", turnout.into()),
            ("outcome", outcome.into()),
            ("updated_at", updated_at.map(rfc3339).into()),
        ] {
            object[name] = value;
        }
    }
    object
}
