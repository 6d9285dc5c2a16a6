//! What is wrong with a configuration, for the person who has to fix it.

use std::fmt;

use super::keys::Key;

/// What stands in the place of a value that must not be shown.
pub(super) const HIDDEN: &str = "***";

/// Longest value that is repeated whole in a problem, in characters.
const SHOWN: usize = 80;

/// Everything that is wrong with the configuration, listed at once, so that a person fixes it
/// in one go and not one restart a mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", listing(.problems))]
pub struct ConfigErrors {
    problems: Vec<Problem>,
}

impl ConfigErrors {
    /// The exit code for a configuration that cannot be used: `EX_CONFIG` of `sysexits.h`.
    pub const EXIT_CODE: u8 = 78;

    pub(super) fn new(problems: Vec<Problem>) -> Self {
        Self { problems }
    }

    /// The problems, in the order in which they were found.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The path of the setting (`batch.size`), a variable's name, or a file.
    pub key: String,
    /// The value that was given, `***` when it is secret, none when there is no single one.
    pub value: Option<String>,
    /// What is wrong with it.
    pub wrong: String,
    /// Where it came from: a file with the path in it, a variable, a flag.
    pub set_by: String,
    /// What to do.
    pub help: String,
}

/// Why a value is refused. It never repeats the value: only the caller knows whether the value
/// is secret. As text, which is how it passes through serde, it has a line for each field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wrong}\n{help}")]
pub(super) struct Refusal {
    pub wrong: String,
    pub help: String,
}

impl Refusal {
    pub fn new(wrong: impl Into<String>, help: impl Into<String>) -> Self {
        Self { wrong: wrong.into(), help: help.into() }
    }

    pub fn from_text(text: &str) -> Self {
        let (wrong, help) = text.split_once('\n').unwrap_or((text, ""));
        Self::new(wrong, help)
    }

    /// A PEM file that holds something else.
    pub fn of_pem(wrong: String) -> Self {
        Self::new(wrong, "name the right file, in PEM form")
    }
}

impl Problem {
    /// A value that is refused, hidden when its key is secret.
    pub(super) fn refused(key: &Key, value: &str, set_by: &str, refusal: Refusal) -> Self {
        Self {
            key: key.path.to_owned(),
            value: Some(if key.secret { HIDDEN.to_owned() } else { shown(value) }),
            wrong: refusal.wrong,
            set_by: set_by.to_owned(),
            help: refusal.help,
        }
    }

    /// A problem that is not about one value.
    pub(super) fn about(
        key: impl Into<String>,
        set_by: impl Into<String>,
        wrong: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self {
            key: key.into(),
            value: None,
            wrong: wrong.into(),
            set_by: set_by.into(),
            help: help.into(),
        }
    }
}

/// Quoted, on one line, and of bounded length, whatever was given.
fn shown(value: &str) -> String {
    // A URL in the wrong place, as a host say, brings its password along.
    if value.contains('@') && value.contains(':') {
        return HIDDEN.to_owned();
    }
    if value.chars().count() <= SHOWN {
        return format!("{value:?}");
    }
    let start: String = value.chars().take(SHOWN).collect();
    format!("{start:?}...")
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        write!(f, ": {}", self.wrong)?;
        write!(f, "\n     set by: {}", self.set_by)?;
        write!(f, "\n     fix:    {}", self.help)
    }
}

fn listing(problems: &[Problem]) -> String {
    let count = match problems.len() {
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    };
    let mut text = format!("the configuration has {count}:");
    for (index, problem) in problems.iter().enumerate() {
        text.push_str(&format!("\n\n  {}. {problem}", index + 1));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::keys;
    use super::*;

    #[test]
    fn a_problem_says_what_where_and_what_to_do() {
        let problem = Problem::refused(
            &keys::BATCH_SIZE,
            "abc",
            "environment variable BATCH_SIZE",
            Refusal::new("is wrong", "do this"),
        );
        let errors = ConfigErrors::new(vec![problem.clone(), problem]);
        assert_eq!(
            errors.to_string(),
            "the configuration has 2 problems:\n\
             \n  1. batch.size = \"abc\": is wrong\
             \n     set by: environment variable BATCH_SIZE\
             \n     fix:    do this\n\
             \n  2. batch.size = \"abc\": is wrong\
             \n     set by: environment variable BATCH_SIZE\
             \n     fix:    do this"
        );
    }

    #[test]
    fn a_value_stays_on_one_line_and_short() {
        assert_eq!(shown("a\nb\u{1b}[0m"), r#""a\nb\u{1b}[0m""#);
        assert!(shown(&"x".repeat(10_000)).len() < 100);
    }
}
