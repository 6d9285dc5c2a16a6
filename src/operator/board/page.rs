//! The page: one renderer, so that a number is formatted once. It is complete without JavaScript, and without CSS.

mod law;
mod results;
mod words;

use maud::{DOCTYPE, Markup, html};
use sha2::{Digest, Sha256};
use strum::VariantArray;

use self::words::heading;
use super::Language;
use super::files::Site;
use super::view::View;
use crate::model::hex;

pub(super) const STYLE: &str = include_str!("page/board.css");
pub(super) const SCRIPT: &str = include_str!("page/board.js");
pub(super) const ICON: &str = include_str!("page/icon.svg");

/// The names of the assets, which change with their contents: a cache may keep them for ever.
pub(super) struct Assets {
    style: String,
    script: String,
    icon: String,
}

impl Assets {
    pub fn new() -> Self {
        let [style, script, icon] = [STYLE, SCRIPT, ICON].map(|asset| digest(asset.as_bytes(), 12));
        Self { style, script, icon }
    }

    pub fn style_name(&self) -> String {
        format!("assets/{}.css", self.style)
    }

    pub fn script_name(&self) -> String {
        format!("assets/{}.js", self.script)
    }

    pub fn icon_name(&self) -> String {
        format!("assets/{}.svg", self.icon)
    }
}

/// The first hexadecimal digits of a SHA-256.
pub(super) fn digest(content: &[u8], digits: usize) -> String {
    hex::encode(&Sha256::digest(content))[..digits].to_owned()
}

/// Where a page is, as seen from the root of the site: links are relative, so that the site may be in a folder.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Root,
    Below,
}

impl Place {
    const fn to_root(self) -> &'static str {
        match self {
            Self::Root => "",
            Self::Below => "../",
        }
    }
}

/// The page of `view` in a language.
pub(super) fn page(
    view: &View<'_>,
    site: &Site,
    assets: &Assets,
    language: Language,
    place: Place,
) -> String {
    let root = place.to_root();
    let name =
        view.election.map_or(language.of("Résultats", "Results"), |it| it.name.of(language));
    let test = if view.is_test() { "TEST – " } else { "" };
    let markup = html! {
        (DOCTYPE)
        html lang=(language) {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (test) (heading(view, language, site.offset)) " – " (name) }
                link rel="stylesheet" href={ (root) (assets.style_name()) };
                // Without one, each browser asks for /favicon.ico.
                link rel="icon" type="image/svg+xml" href={ (root) (assets.icon_name()) };
                script type="module" src={ (root) (assets.script_name()) } {}
                @for other in Language::VARIANTS {
                    link rel="alternate" hreflang=(other) href={ (root) (other) "/" };
                }
            }
            body {
                header {
                    h1 { (name) }
                    nav aria-label=(language.of("Langue", "Language")) {
                        @for other in Language::VARIANTS {
                            @let current = (*other == language).then_some("true");
                            a href={ (root) (other) "/" } hreflang=(other) lang=(other)
                                aria-current=[current] { (other.of("Français", "English")) }
                        }
                    }
                    (controls(language))
                }
                p id="status" role="status"
                    data-lost=(words::INTERRUPTED.of(language))
                    data-back=(words::RESTORED.of(language)) {}
                (results::results(view, site, language))
                (footer(view, site, language, root))
            }
        }
    };
    markup.into_string()
}

/// A group and no navigation: both concern this page.
fn controls(language: Language) -> Markup {
    html! {
        div class="controls" role="group" aria-label=(language.of("Mise à jour", "Updates")) {
            button id="pause" type="button" aria-pressed="false" hidden {
                (language.of("Suspendre la mise à jour", "Pause updates"))
            }
            a href="" { (language.of("Recharger la page", "Reload the page")) }
        }
    }
}

fn footer(view: &View<'_>, site: &Site, language: Language, root: &str) -> Markup {
    let files = [
        ("results.json", "JSON"),
        ("results.csv", "CSV"),
        ("results-fr.csv", language.of("CSV (virgules décimales)", "CSV (decimal commas)")),
        ("history.json", language.of("Historique (JSON)", "History (JSON)")),
    ];
    html! {
        footer {
            nav aria-label=(language.of("Données", "Data")) {
                @for (file, name) in files {
                    a href={ (root) (file) } { (name) }
                }
            }
            @if let Some(election) = view.election {
                p {
                    (written(&election.authority, site, language))
                    @if let Some(source) = &election.source {
                        " – "
                        a href=(source) rel="noreferrer" { (source) }
                    }
                }
            }
            p id="address" {}
        }
    }
}

/// What officials wrote in one language, that of the site, on a page in `language`.
fn written(text: &str, site: &Site, language: Language) -> Markup {
    html! {
        @if site.language == language { (text) } @else { span lang=(site.language) { (text) } }
    }
}

/// A short page without results, in both languages.
pub(super) fn notice(french: &str, english: &str) -> String {
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (english) }
            }
            body {
                main {
                    h1 { (english) }
                    p lang="fr" { (french) }
                }
            }
        }
    };
    markup.into_string()
}
