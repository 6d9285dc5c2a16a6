//! The officials' file: the election, and its laws with their titles, in the order of the ballot.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::Spanned;
use toml::value::Datetime;

use super::Language;

/// Each is a line and a table of the page.
const MAX_LAWS: usize = 1_000;
const MAX_BYTES: u64 = 1024 * 1024;
/// In characters.
const MAX_TEXT: usize = 500;
/// In bytes, as the tables have it.
const MAX_ID: usize = 50;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BallotError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: it is larger than {MAX_BYTES} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("{}:{line}: {problem}", path.display())]
    Invalid { path: PathBuf, line: usize, problem: String },
}

/// What officials say of an election.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ballot {
    pub election: Election,
    /// In the order of the ballot.
    pub laws: Vec<ListedLaw>,
}

/// In the JSON as in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Election {
    pub name: Text,
    /// As `2026-11-29`.
    pub date: String,
    pub authority: String,
    /// The address of the authority's own page.
    pub source: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedLaw {
    pub law_id: String,
    pub title: Text,
    /// How many citizens may vote on it.
    pub registered: Option<i64>,
}

/// A text in each language.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Text {
    fr: String,
    en: String,
}

impl Text {
    pub fn of(&self, language: Language) -> &str {
        match language {
            Language::Fr => &self.fr,
            Language::En => &self.en,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    election: Heading,
    #[serde(default)]
    laws: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Heading {
    name: Texts,
    date: Spanned<Datetime>,
    authority: Spanned<String>,
    source: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: Spanned<String>,
    title: Texts,
    registered: Option<Spanned<i64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Texts {
    fr: Spanned<String>,
    en: Spanned<String>,
}

/// What is wrong, and where in the file.
type Problem = (Range<usize>, String);

impl Ballot {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`BallotError`], with the line for what is wrong in the file.
    pub fn read(path: &Path) -> Result<Self, BallotError> {
        let failed = |source| BallotError::Io { path: path.to_owned(), source };
        if fs::metadata(path).map_err(failed)?.len() > MAX_BYTES {
            return Err(BallotError::TooLarge { path: path.to_owned() });
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        Self::parse(&text).map_err(|(at, problem)| {
            let before = text.get(..at.start).unwrap_or(&text);
            let line = before.matches('\n').count() + 1;
            BallotError::Invalid { path: path.to_owned(), line, problem }
        })
    }

    pub(super) fn lists(&self, law_id: &str) -> bool {
        self.laws.iter().any(|law| law.law_id == law_id)
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let contents: Contents = toml::from_str(text)
            .map_err(|error| (error.span().unwrap_or_default(), error.message().to_owned()))?;
        let Contents { election: Heading { name, date, authority, source }, laws } = contents;
        let election = Election {
            name: texts("election.name", name)?,
            date: day(date)?,
            authority: line("election.authority", authority)?,
            source: source.map(address).transpose()?,
        };
        if laws.is_empty() {
            return Err((0..0, "it lists no law: add [[laws]] with id and title".to_owned()));
        }
        let mut ids = BTreeSet::new();
        let mut listed = Vec::new();
        for (number, Entry { id, title, registered }) in laws.into_iter().enumerate() {
            let at = id.span();
            if number == MAX_LAWS {
                return Err((at, format!("it lists more than {MAX_LAWS} laws")));
            }
            let law_id = line("laws.id", id)?;
            if law_id.len() > MAX_ID {
                return Err((at, format!("laws.id {law_id:?} is longer than {MAX_ID} bytes")));
            }
            if !ids.insert(law_id.clone()) {
                return Err((at, format!("the law {law_id:?} is listed twice; remove one")));
            }
            let title = texts("laws.title", title)?;
            let registered = registered.map(at_least_one).transpose()?;
            listed.push(ListedLaw { law_id, title, registered });
        }
        Ok(Self { election, laws: listed })
    }
}

fn texts(key: &str, Texts { fr, en }: Texts) -> Result<Text, Problem> {
    Ok(Text { fr: line(format!("{key}.fr"), fr)?, en: line(format!("{key}.en"), en)? })
}

/// One line of text that is not empty.
fn line(key: impl Display, text: Spanned<String>) -> Result<String, Problem> {
    let at = text.span();
    let text = text.into_inner();
    let wrong = if text.trim().is_empty() {
        "is empty"
    } else if text.chars().any(char::is_control) {
        "has a line break or another control character"
    } else if text.chars().count() > MAX_TEXT {
        return Err((at, format!("{key} is longer than {MAX_TEXT} characters")));
    } else {
        return Ok(text);
    };
    Err((at, format!("{key} {text:?} {wrong}")))
}

fn day(date: Spanned<Datetime>) -> Result<String, Problem> {
    let at = date.span();
    match date.into_inner() {
        Datetime { date: Some(date), time: None, offset: None } => Ok(date.to_string()),
        other => Err((at, format!("election.date {other} is not a day: write 2026-11-29"))),
    }
}

fn address(source: Spanned<String>) -> Result<String, Problem> {
    let at = source.span();
    let text = line("election.source", source)?;
    let is_http = url::Url::parse(&text).is_ok_and(|it| ["http", "https"].contains(&it.scheme()));
    if is_http {
        return Ok(text);
    }
    Err((at, format!("election.source {text:?} is not an address: write https://…")))
}

fn at_least_one(registered: Spanned<i64>) -> Result<i64, Problem> {
    let (at, number) = (registered.span(), registered.into_inner());
    if number >= 1 {
        return Ok(number);
    }
    Err((at, format!("laws.registered {number} is not a number of voters: leave it out")))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::operator::files::tests::Directory;

    pub const FILE: &str = r#"
[election]
name = { fr = "Référendum du 29 novembre", en = "Referendum of 29 November" }
date = 2026-11-29
authority = "Conseil constitutionnel"
source = "https://www.example.org/referendum"

[[laws]]
id = "b"
title = { fr = "Loi sur l'eau", en = "Water act" }
registered = 1000

[[laws]]
id = "a"
title = { fr = "Loi <sur> l'air", en = "Air act" }
"#;

    pub fn ballot() -> Ballot {
        Ballot::parse(FILE).expect("valid")
    }

    #[test]
    fn laws_are_in_the_order_of_the_file() {
        let Ballot { election, laws } = ballot();
        assert_eq!((election.date.as_str(), laws.len()), ("2026-11-29", 2));
        assert_eq!((laws[0].law_id.as_str(), laws[0].registered), ("b", Some(1_000)));
        assert_eq!(laws[1].title.of(Language::En), "Air act");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let directory = Directory::new("ballot");
        for (from, to, said) in [
            ("[election]", "[election", ":2: "),
            ("date = 2026-11-29", "date = 2026-11-29T20:00:00Z", ":4: election.date 2026-11-29T20"),
            ("date = 2026-11-29", "date = \"29.11.\"", ":4: "),
            ("https://", "www.", ":6: election.source \"www."),
            ("Conseil constitutionnel", " ", ":5: election.authority"),
            ("authority", "authorty", ":5: unknown field `authorty`"),
            ("id = \"a\"", "id = \"b\"", ":14: the law \"b\" is listed twice"),
            ("id = \"a\"", "id = \"a\\n\"", ":14: laws.id \"a\\n\" has a line break"),
            ("registered = 1000", "registered = 0", ":11: laws.registered 0"),
            (", en = \"Air act\"", "", ":15: missing field `en`"),
        ] {
            let path = directory.write("laws.toml", &FILE.replacen(from, to, 1));
            let error = Ballot::read(&path).expect_err(to).to_string();
            assert!(error.contains(&format!("laws.toml{said}")), "{error}");
        }
        let long = format!("id = \"{}\"", "a".repeat(51));
        assert!(Ballot::parse(&FILE.replace("id = \"a\"", &long)).is_err());
        let many = "[[laws]]\nid = \"law-N\"\ntitle = { fr = \"f\", en = \"e\" }\n";
        let many: String = (0..999).map(|n| many.replace('N', &n.to_string())).collect();
        let (_, problem) = Ballot::parse(&format!("{FILE}{many}")).expect_err("1,001 laws");
        assert!(problem.contains("more than 1000"), "{problem}");
        let (_, problem) =
            Ballot::parse(FILE.split("[[").next().expect("a heading")).expect_err("none");
        assert!(problem.contains("no law"), "{problem}");
        assert!(Ballot::read(&directory.path("missing")).is_err());
    }
}
