//! The files of what is shown: the same bytes for a folder and for `--listen`.

mod csv;
mod json;

use bytes::Bytes;
use time::{OffsetDateTime, UtcOffset};

use super::ballot::Ballot;
use super::page::{self, Assets, Place};
use super::view::View;
use super::{Board, Language};
use crate::adapters::store::Snapshot;
use crate::model::publication::{Published, State};

/// What officials and operators say about the site, besides the numbers.
#[derive(Clone, Debug)]
pub struct Site {
    /// `None`: the laws are those of the database, by their ids.
    pub ballot: Option<Ballot>,
    /// Of the page without a language in its address.
    pub language: Language,
    /// Of the times on the page.
    pub offset: UtcOffset,
}

impl Site {
    /// How many laws with votes the officials' file does not list.
    pub fn unlisted(&self, board: &Board) -> usize {
        let (Some(shown), Some(ballot)) = (board.shown(), &self.ballot) else { return 0 };
        shown.laws.iter().filter(|law| !ballot.lists(&law.law_id)).count()
    }
}

/// A file that the public gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its path below the folder.
    pub name: String,
    pub kind: Kind,
    pub content: Bytes,
}

/// The format of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Html,
    Json,
    Csv,
    Css,
    JavaScript,
    Svg,
}

impl Kind {
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Html => "text/html; charset=utf-8",
            Self::Json => "application/json",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Css => "text/css; charset=utf-8",
            Self::JavaScript => "text/javascript; charset=utf-8",
            Self::Svg => "image/svg+xml",
        }
    }

    /// Whether such files show counts.
    pub const fn has_numbers(self) -> bool {
        matches!(self, Self::Html | Self::Json | Self::Csv)
    }

    /// Whether it is for programs, also those of other sites.
    pub const fn is_data(self) -> bool {
        matches!(self, Self::Json | Self::Csv)
    }
}

impl File {
    fn new(name: impl Into<String>, kind: Kind, content: impl Into<Bytes>) -> Self {
        Self { name: name.into(), kind, content: content.into() }
    }
}

/// The files of what `board` shows at `now`; none before the first reading. Assets come first, and pages before data,
/// so that a page finds its style, and what is withheld disappears from the page first.
pub fn files(board: &Board, site: &Site, now: OffsetDateTime) -> Vec<File> {
    let Some(shown) = board.shown() else { return Vec::new() };
    let ballot = site.ballot.as_ref();
    let view = View::of(shown, board, ballot, now);
    let assets = Assets::new();
    let page = |name: &str, language, place| {
        let page = page::page(&view, site, &assets, language, place);
        File::new(name, Kind::Html, page)
    };
    let mut files = vec![
        File::new(assets.style_name(), Kind::Css, page::STYLE),
        File::new(assets.script_name(), Kind::JavaScript, page::SCRIPT),
        File::new(assets.icon_name(), Kind::Svg, page::ICON),
        page("index.html", site.language, Place::Root),
        page("fr/index.html", Language::Fr, Place::Below),
        page("en/index.html", Language::En, Place::Below),
        File::new("results.json", Kind::Json, json::results(&view)),
        File::new("results.csv", Kind::Csv, csv::results(&view)),
        File::new("results-fr.csv", Kind::Csv, csv::french(&view)),
        File::new("history.json", Kind::Json, json::history(&view, &shown.history)),
    ];
    for copy in frozen(shown) {
        let view = View::of(&copy, board, ballot, now).frozen(copy.as_of);
        if let Some(Published { id, .. }) = copy.published {
            files.extend([
                File::new(format!("final/{id}/results.json"), Kind::Json, json::results(&view)),
                File::new(format!("final/{id}/results.csv"), Kind::Csv, csv::results(&view)),
            ]);
        }
    }
    files
}

/// What was shown when each frozen copy was published.
fn frozen(shown: &Snapshot) -> impl Iterator<Item = Snapshot> + '_ {
    shown.history.iter().filter_map(|change| {
        let laws = shown.finals.get(&change.id)?.clone();
        let before = |at: OffsetDateTime| at <= change.set_at;
        let corrections = shown.corrections.iter().filter(|it| before(it.corrected_at));
        let published = Published {
            id: change.id,
            state: Some(State::Final),
            not_before: change.not_before,
            set_at: change.set_at,
            test: shown.published.as_ref().is_some_and(|it| it.test),
            reason: change.reason.clone(),
            sha256: change.sha256.clone(),
        };
        let corrections = corrections.cloned().collect();
        let none = Snapshot::without_results(Some(published), Vec::new(), change.set_at);
        Some(Snapshot { laws, corrections, ..none })
    })
}
