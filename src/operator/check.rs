//! The findings of `vote-aggregator check`: rules over the configuration, which need no server, and what
//! the facts about broker and database mean.
//!
//! Architecture invariant: reads, and changes nothing; AMQP and SQL are in the adapters.

mod addresses;
mod broker;
mod database;
mod offline;
pub mod queue;

use serde::Serialize;
use strum::IntoStaticStr;

pub use self::broker::broker;
pub use self::database::database;
pub use self::offline::configuration;
use crate::platform::config::{Config, Problem, keys::Key};

/// How bad a finding is; the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, IntoStaticStr)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Severity {
    /// Votes would be lost or not counted, or the service would not start.
    Error,
    /// It works, but not as well or as safely as it could.
    Warning,
    /// Good to know.
    Info,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// One thing that an operator should know about. Holds no password and nothing of a vote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// The setting (`batch.size`), or the thing on a server (`queue "votes"`).
    pub subject: String,
    /// What was found there, where it has a value.
    pub value: Option<String>,
    /// Where a setting's value came from; `None` for what is on a server.
    pub set_by: Option<String>,
    /// What it means for counting.
    pub meaning: String,
    /// What to do about it.
    pub remedy: String,
}

impl Finding {
    pub fn new(
        severity: Severity,
        subject: impl Into<String>,
        meaning: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            subject: subject.into(),
            value: None,
            set_by: None,
            meaning: meaning.into(),
            remedy: remedy.into(),
        }
    }

    /// With the value that was found.
    pub fn with_value(self, value: impl Into<String>) -> Self {
        Self { value: Some(value.into()), ..self }
    }

    /// A finding about a setting, with its value (never a password) and where that came from.
    pub fn of_setting(
        severity: Severity,
        config: &Config,
        key: &Key,
        meaning: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let found = Self::new(severity, key.path, meaning, remedy);
        let Some(setting) = config.redacted().into_iter().find(|it| it.path == key.path) else {
            return found;
        };
        let set_by = Some(setting.set_by).filter(|set_by| !set_by.is_empty());
        Self { set_by, ..found.with_value(setting.value) }
    }

    /// In one line, for a log whose other fields name the subject.
    pub fn line(&self) -> String {
        let Self { value, meaning, remedy, .. } = self;
        match value {
            Some(value) => format!("{value}: {meaning}; {remedy}"),
            None => format!("{meaning}; {remedy}"),
        }
    }
}

/// A problem that makes a configuration unusable.
impl From<&Problem> for Finding {
    fn from(problem: &Problem) -> Self {
        let Problem { key, value, wrong, set_by, help } = problem;
        Self {
            severity: Severity::Error,
            subject: key.clone(),
            value: value.clone(),
            set_by: Some(set_by.clone()),
            meaning: wrong.clone(),
            remedy: help.clone(),
        }
    }
}

/// What was checked, and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One line each, for people.
    pub checked: Vec<String>,
    pub findings: Vec<Finding>,
}

impl Report {
    /// Adds what another part found.
    pub fn absorb(&mut self, other: Self) {
        self.checked.extend(other.checked);
        self.findings.extend(other.findings);
    }

    /// Findings of that severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }
}

/// Whether a host is this machine for certain: a loopback address, `localhost`, the directory of a
/// socket. A name that only resolves to this machine counts as another.
pub fn is_local(host: &str) -> bool {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    host.starts_with('/')
        || name == "localhost"
        || name.ends_with(".localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests;
