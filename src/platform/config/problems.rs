//! What is wrong with a configuration, for the person who has to fix it.

use std::fmt;

use super::keys::Key;
use super::layers::Found;

/// Shown instead of a value that must not be shown.
pub(super) const HIDDEN: &str = "***";

/// Longest value that is repeated whole in a problem, in characters.
const SHOWN: usize = 80;

/// Everything that is wrong with the configuration, so that all of it can be fixed before the next start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", listing(.0))]
pub struct ConfigErrors(pub(super) Vec<Problem>);

impl ConfigErrors {
    /// The problems, in the order of the settings.
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The path of the setting (`batch.size`), a variable's name, or a file.
    pub key: String,
    /// The value that was given, `***` when it is secret, `None` when it is not about one value.
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

    /// The refusal of a list, for what is wrong with the address of this number in it.
    pub fn of_address(self, number: usize) -> Self {
        Self { wrong: format!("address {number}: {}", self.wrong), ..self }
    }

    /// A PEM file that holds something else.
    pub fn of_pem(wrong: String) -> Self {
        Self::new(wrong, "name the right file, in PEM form")
    }
}

impl Problem {
    /// A value that is refused, hidden when its key is secret.
    pub(super) fn refused(key: &Key, found: &Found, refusal: Refusal) -> Self {
        let value = if key.is_secret() { HIDDEN.to_owned() } else { shown(&found.text) };
        let problem = Self::about(key.path, &found.set_by, refusal.wrong, refusal.help);
        Self { value: Some(value), ..problem }
    }

    /// A problem that is not about one value.
    pub(super) fn about(
        key: impl Into<String>,
        set_by: impl Into<String>,
        wrong: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        let (key, wrong, set_by, help) = (key.into(), wrong.into(), set_by.into(), help.into());
        Self { key, value: None, wrong, set_by, help }
    }
}

/// Quoted, on one line, and of bounded length, whatever was given.
fn shown(value: &str) -> String {
    // A URL that was given as a host, for example, may hold a password.
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
        let Self { key, value, wrong, set_by, help } = self;
        let value = value.as_ref().map_or(String::new(), |value| format!(" = {value}"));
        write!(f, "{key}{value}: {wrong}\n     set by: {set_by}\n     fix:    {help}")
    }
}

fn listing(problems: &[Problem]) -> String {
    let plural = if problems.len() == 1 { "" } else { "s" };
    let mut text = format!("the configuration has {} problem{plural}:", problems.len());
    for (number, problem) in (1..).zip(problems) {
        text.push_str(&format!("\n\n  {number}. {problem}"));
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
            &Found {
                text: "abc".to_owned(),
                set_by: "environment variable BATCH_SIZE".to_owned(),
                shipped: false,
            },
            Refusal::new("is wrong", "do this"),
        );
        let errors = ConfigErrors(vec![problem.clone(), problem]);
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
