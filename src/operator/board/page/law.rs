//! A law: its title, a bar, and a table.

use maud::{Markup, html};

use super::words::{self, NO_VOTES};
use crate::model::results::{LawResult, percentages};
use crate::operator::board::Language;
use crate::operator::board::view::{Row, View};

pub(super) fn law(view: &View<'_>, row: &Row<'_>, language: Language) -> Markup {
    let title = row.title(language);
    html! {
        article {
            h3 {
                (title)
                @if row.title.is_some() { " " span class="id" { (row.law_id) } }
            }
            @match row.result {
                Some(result) => {
                    @if let Some(outcome) = view.outcome(result) {
                        p class="outcome" { strong { (words::outcome(outcome).of(language)) } }
                    }
                    (bar(result, language))
                    (table(result, row.registered, title, language))
                }
                None if view.as_of.is_some() => p { (NO_VOTES.of(language)) },
                None => {}
            }
        }
    }
}

/// The shares as one bar, oui on the left. The table says the same, so it is no text.
fn bar(law: &LawResult, language: Language) -> Markup {
    let total = law.total();
    if law.oui < 0 || law.non < 0 || total == 0 {
        return html! {};
    }
    // Of thousandths, which is finer than a pixel.
    let oui = i128::from(law.oui) * 1_000 / i128::from(total);
    let percent = |thousandths: i128| format!("{}.{}%", thousandths / 10, thousandths % 10);
    html! {
        div class="bar" aria-hidden="true" {
            span { (language.of("Oui", "Yes")) }
            svg focusable="false" {
                rect class="non" width="100%" height="100%" {}
                line class="hatch" x1="0" x2="100%" y1="50%" y2="50%" {}
                rect class="oui" width=(percent(oui)) height="100%" {}
                line class="halo" x1="50%" x2="50%" y1="0" y2="100%" {}
                line class="half" x1="50%" x2="50%" y1="0" y2="100%" {}
            }
            span { (language.of("Non", "No")) }
        }
    }
}

fn table(law: &LawResult, registered: Option<i64>, title: &str, language: Language) -> Markup {
    let [oui, non] = percentages(law.oui, law.non);
    let turnout = registered.map(|registered| {
        let [turnout, _] = percentages(law.total(), registered.saturating_sub(law.total()));
        (registered, turnout)
    });
    let row = |name: &str, count: i64, share: Option<&str>| {
        html! {
            tr {
                th scope="row" { (name) }
                td { (language.count(count)) }
                td { @if let Some(share) = share { (language.share(share)) } }
            }
        }
    };
    html! {
        table {
            // The heading shows it; a reader's list of tables has no headings.
            caption { span class="hidden" { (title) } }
            thead {
                tr {
                    th scope="col" { (language.of("Réponse", "Answer")) }
                    th scope="col" { (language.of("Voix", "Votes")) }
                    th scope="col" { (language.of("% des exprimés", "% of votes")) }
                }
            }
            tbody {
                (row(language.of("Oui", "Yes"), law.oui, Some(&oui)))
                (row(language.of("Non", "No"), law.non, Some(&non)))
                (row(language.of("Exprimés", "Total"), law.total(), None))
            }
        }
        @if let Some((registered, turnout)) = turnout {
            p class="turnout" {
                (language.of("Inscrits : ", "Registered voters: ")) (language.count(registered))
                (language.of(". Exprimés : ", ". Votes: ")) (language.share(&turnout))
                (language.of(" des inscrits.", " of them."))
            }
        }
    }
}
