//! A `.env` file: its assignments, and what a `$` in them does.
//!
//! The parser replaces `$NAME` and `${NAME}` outside single quotes by that variable's value, and by
//! nothing when it is not set: of the password `pa$s` it leaves `pa`. A value that would
//! lose characters is therefore refused, and one with a replacement is reported.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::keys;
use super::problems::Problem;
use super::sources::DOTENV;

const QUOTE: &str = "put a value with spaces, quotes, # or $ in single quotes: NAME='value'";

/// The variables of a file.
#[derive(Default)]
pub(super) struct DotEnv {
    pub values: BTreeMap<String, String>,
    /// Settings with another variable's value in them.
    pub expanded: Vec<Problem>,
}

/// Reads the assignments; of a repeated name the last one holds, as in a shell.
pub(super) fn parse(text: &str, path: &Path, problems: &mut Vec<Problem>) -> DotEnv {
    let text = text.trim_start_matches('\u{feff}');
    let mut values = BTreeMap::new();
    let mut broken = BTreeSet::new();
    for item in dotenvy::from_read_iter(text.as_bytes()) {
        match item {
            Ok((name, value)) => {
                values.insert(name, value);
            }
            Err(error) => {
                // The error repeats the line, which may hold a password: only its number is shown.
                let start = match &error {
                    dotenvy::Error::LineParse(line, _) => text.find(line.as_str()),
                    _ => None,
                };
                let line = start.map(|start| text[..start].matches('\n').count() + 1);
                broken.extend(line);
                let place = line.map_or(path.display().to_string(), |line| at(path, line));
                problems.push(Problem::about(DOTENV, place, "is not NAME=value", QUOTE));
            }
        }
    }
    let mut expanded = Vec::new();
    let mut assigned = BTreeSet::new();
    for (line, (name, value)) in assignments(text) {
        let key = keys::by_variable(name).filter(|_| !broken.contains(&line));
        let inserted = inserted(value);
        if let Some(key) = key
            && !inserted.is_empty()
        {
            let is_set = |name: &&str| assigned.contains(name) || std::env::var(name).is_ok();
            // `${NAME}` or `${NAME:-default}` alone, without that variable: unset, on purpose.
            let unset = value.starts_with("${")
                && value.ends_with('}')
                && values.get(name).is_some_and(String::is_empty);
            // The name behind the $ may be a part of a password: it is not shown.
            if inserted.iter().all(is_set) || unset {
                let wrong =
                    "has a $ outside single quotes, which was replaced by a variable's value";
                let help = "if the $ is part of the value, put the value in single quotes";
                expanded.push(Problem::about(key.variable, at(path, line), wrong, help));
            } else {
                let wrong = "has a $ outside single quotes, and no such variable is set: it would be removed from the value";
                problems.push(Problem::about(key.path, at(path, line), wrong, QUOTE));
            }
        }
        assigned.insert(name);
    }
    DotEnv { values, expanded }
}

fn at(path: &Path, line: usize) -> String {
    format!("{}, line {line}", path.display())
}

/// Number, name and value of each line that assigns something, the value as it is written.
fn assignments(text: &str) -> impl Iterator<Item = (usize, (&str, &str))> {
    text.lines().enumerate().filter_map(|(index, line)| {
        let line = line.trim_start();
        let line =
            line.strip_prefix("export").filter(|l| l.starts_with([' ', '\t'])).unwrap_or(line);
        let (name, value) = line.split_once('=')?;
        (!name.starts_with('#')).then_some((index + 1, (name.trim(), value.trim())))
    })
}

/// The names of the variables that the parser puts in, as it reads them: empty behind a bare `$`.
fn inserted(value: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut quote = None;
    let mut rest = value.chars();
    while let Some(c) = rest.next() {
        match (quote, c) {
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (Some('\''), _) => {}
            (_, '\\') => {
                rest.next();
            }
            (_, '$') => {
                let text = rest.as_str();
                let braced = text.strip_prefix('{').and_then(|text| text.split_once('}'));
                let (name, behind) = braced.unwrap_or_else(|| {
                    text.split_at(text.find(|c: char| !c.is_alphanumeric()).unwrap_or(text.len()))
                });
                names.push(name);
                rest = behind.chars();
            }
            (None, '\'' | '"') => quote = Some(c),
            // A comment may follow.
            (None, ' ' | '\t') => break,
            _ => {}
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (DotEnv, Vec<Problem>) {
        let mut problems = Vec::new();
        let read = parse(text, Path::new("/srv/.env"), &mut problems);
        (read, problems)
    }

    #[test]
    fn values_are_text_and_may_be_quoted() {
        let (read, problems) = read(
            "\u{feff}A=12345\n# B=1\nexport C='pa$s #1'\nD=\"two words\"\nE=1 # note\nF='\"q\"'\nA=2\nG=\n",
        );
        assert_eq!(problems, []);
        let values: Vec<_> = read.values.iter().map(|(name, it)| format!("{name}={it}")).collect();
        assert_eq!(values, ["A=2", "C=pa$s #1", "D=two words", "E=1", "F=\"q\"", "G="]);
    }

    #[test]
    fn a_broken_line_is_named_by_its_number_and_not_shown() {
        let (read, problems) = read("A=1\nRABBITMQ_PASSWORD=hun ter2\nB=2\nnot an assignment\n");
        assert_eq!(read.values.len(), 2);
        let places: Vec<&str> = problems.iter().map(|problem| problem.set_by.as_str()).collect();
        assert_eq!(places, ["/srv/.env, line 2", "/srv/.env, line 4"]);
        assert!(!format!("{problems:?}").contains("ter2"));
    }

    /// Beside each value: what the parser makes of it, without an error.
    #[test]
    fn a_dollar_that_would_vanish_is_refused_by_its_line_and_not_shown() {
        for value in [
            "pa$hunter2",      // pa
            "$$hunter2",       // nothing
            "${hunter2}pa",    // pa
            "\"pa$hunter2 \"", // pa and a blank
            "'a'$hunter2",     // a
            "\\\\$hunter2",    // a backslash
            "$SET_hunter2",    // _hunter2: of a name without braces only letters and digits count
        ] {
            let (read, problems) = read(&format!("#\n export RABBITMQ_PASSWORD={value}\n"));
            assert_eq!(problems.len(), 1, "{value}: {problems:?}");
            assert_eq!(problems[0].key, "rabbitmq.password");
            assert_eq!(problems[0].set_by, "/srv/.env, line 2");
            assert!(!format!("{problems:?}").contains("hunter2"), "{problems:?}");
            assert!(read.expanded.is_empty());
        }
    }

    #[test]
    fn a_variable_alone_that_is_not_set_leaves_the_setting_unset() {
        for value in ["${UNSET_HERE}", "${UNSET_HERE:-localhost}"] {
            let (read, problems) = read(&format!("RABBITMQ_HOST={value}\n"));
            assert_eq!((problems, read.expanded.len()), (Vec::new(), 1));
            assert_eq!(read.values["RABBITMQ_HOST"], "");
        }
    }

    #[test]
    fn a_variable_that_is_put_in_is_warned_of_and_not_shown() {
        let (read, problems) = read("SET=hunter2\nRABBITMQ_HOST=a.${SET}\nPOSTGRES_DB=\"$SET!\"\n");
        assert_eq!(problems, []);
        assert_eq!(read.values["RABBITMQ_HOST"], "a.hunter2");
        let found: Vec<_> =
            read.expanded.iter().map(|it| (it.key.as_str(), it.set_by.as_str())).collect();
        let expected =
            [("RABBITMQ_HOST", "/srv/.env, line 2"), ("POSTGRES_DB", "/srv/.env, line 3")];
        assert_eq!(found, expected);
        assert!(!format!("{:?}", read.expanded).contains("hunter2"));
    }

    #[test]
    fn a_dollar_that_stays_and_one_of_others_are_nothing_to_say() {
        for line in [
            "RABBITMQ_PASSWORD='pa$hunter2'",
            "RABBITMQ_PASSWORD=pa\\$hunter2",
            "RABBITMQ_PASSWORD=\"pa\\$hunter2\"",
            "RABBITMQ_PASSWORD=pa # costs $5",
            "# RABBITMQ_PASSWORD=pa$hunter2",
            "PROMPT=$hunter2",
        ] {
            let (read, problems) = read(line);
            assert_eq!(problems, [], "{line}");
            assert!(read.expanded.is_empty(), "{line}");
        }
    }
}
