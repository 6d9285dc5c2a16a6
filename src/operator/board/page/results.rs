//! What the script replaces: the state, the laws, corrections, and what the numbers mean.

use maud::{Markup, html};

use super::law::law;
use super::words::{self, TEST, explanation, heading, staleness};
use super::written;
use crate::adapters::store::PublishedCorrection;
use crate::model::publication::{NO_REASON, Published, State, rfc3339};
use crate::operator::board::Language;
use crate::operator::board::files::Site;
use crate::operator::board::view::View;

/// More of them are in the CSV.
const MAX_LAWS: usize = 200;
/// More of them are in `history.json`.
const MAX_CORRECTIONS: usize = 50;

pub(super) fn results(view: &View<'_>, site: &Site, language: Language) -> Markup {
    let published = view.published;
    let more = view.laws.len().saturating_sub(MAX_LAWS);
    let stale: Option<&str> = view.stale.map(|(why, _)| why.into());
    html! {
        main id="results" class=[view.is_test().then_some("test")]
            data-publication=[published.map(|it| it.id)]
            data-state=[published.map(Published::state_name)]
            data-opens=[published.map(|it| rfc3339(it.not_before))]
            data-as-of=[view.as_of.map(rfc3339)]
            data-stale=[stale]
            data-checked=(rfc3339(view.checked_at)) {
            @if view.is_test() { p class="banner" { strong { (TEST.of(language)) } } }
            (state(view, site, language))
            @for row in view.laws.iter().take(MAX_LAWS) { (law(view, row, language)) }
            @if more > 0 {
                p {
                    (language.of("Autres lois, dans le fichier CSV : ", "More laws, in the CSV file: "))
                    (language.count(more.try_into().unwrap_or(i64::MAX)))
                }
            }
            (corrections(view, site, language))
            (notes(view, language))
        }
    }
}

/// What holds now, in words: colours only repeat it.
fn state(view: &View<'_>, site: &Site, language: Language) -> Markup {
    let (state, offset) = (view.state(), site.offset);
    let reason = view.published.and_then(|published| published.reason.as_deref());
    let reason = reason.filter(|reason| *reason != NO_REASON);
    // In steps, so that it can be before the numbers that were read then.
    let checked = view.as_of.map_or(view.checked_at, |as_of| as_of.max(view.checked_at));
    html! {
        section class={ "state " (view.published.map_or("withheld", Published::state_name)) } {
            h2 { (heading(view, language, offset)) }
            @if let Some(state) = state { p { (explanation(state).of(language)) } }
            @if let Some(reason) = reason {
                p { (language.of("Motif : ", "Reason: ")) (written(reason, site, language)) }
            }
            @if let (Some(State::Final), Some(published)) = (state, view.published) {
                (certificate(view, published, site, language))
            } @else if let Some(as_of) = view.as_of {
                p { (language.of("Chiffres du ", "Figures of ")) (language.moment(as_of, offset)) }
            }
            @if let Some((why, since)) = view.stale {
                p class="stale" {
                    strong { (staleness(why).of(language)) }
                    (language.of(", depuis le ", ", since ")) (language.moment(since, offset))
                }
            }
            p class="checked" {
                (language.of("Vérifié à ", "Checked at ")) (language.second(checked, offset))
            }
        }
    }
}

/// What the frozen copy can be checked with.
fn certificate(view: &View<'_>, published: &Published, site: &Site, language: Language) -> Markup {
    let since = published.set_at.max(published.not_before);
    html! {
        dl {
            @if let Some(election) = view.election {
                dt { (language.of("Autorité", "Authority")) }
                dd { (written(&election.authority, site, language)) }
            }
            dt { (language.of("Publié le", "Published")) }
            dd { (language.moment(since, site.offset)) }
            @if let Some(sha256) = &published.sha256 {
                dt { "SHA-256" }
                dd { code { (sha256) } }
            }
        }
    }
}

fn corrections(view: &View<'_>, site: &Site, language: Language) -> Markup {
    if view.corrections.is_empty() {
        return html! {};
    }
    let one = |law_id: Option<&str>, it: &PublishedCorrection| {
        let count = |before, after| {
            html! { (language.count(before)) " → " (language.count(after)) }
        };
        html! {
            li {
                (language.moment(it.corrected_at, site.offset)) " – "
                (law_id.unwrap_or(language.of("loi non répertoriée", "law that is not listed"))) " – "
                (language.of("Oui ", "Yes ")) (count(it.oui_before, it.oui_after)) ", "
                (language.of("Non ", "No ")) (count(it.non_before, it.non_after))
                @if let Some(reason) = &it.reason { " – " (written(reason, site, language)) }
            }
        }
    };
    html! {
        section {
            h2 { "Corrections (" (view.corrections.len()) ")" }
            ul {
                @for (law_id, correction) in view.corrections.iter().rev().take(MAX_CORRECTIONS) {
                    (one(*law_id, correction))
                }
            }
        }
    }
}

fn notes(view: &View<'_>, language: Language) -> Markup {
    let unlisted = view.unlisted;
    let moving = matches!(view.state(), Some(State::Counting | State::Provisional));
    html! {
        @if unlisted.laws > 0 {
            p class="note" {
                (language.of("Votes sur des lois non répertoriées : ", "Votes on laws that are not listed: "))
                (language.count(unlisted.votes))
            }
        }
        @if moving {
            p class="note" {
                (words::UNOFFICIAL.of(language))
                @if view.min_new_votes > 1 { " " (words::steps(view.min_new_votes, language)) }
            }
        }
    }
}
