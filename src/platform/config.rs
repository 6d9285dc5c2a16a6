//! The configuration: read and checked as a whole before anything is bound or connected.
//!
//! A setting's value comes from the highest of these layers that has one:
//!
//! 1. the defaults: the `default` profile of the shipped `pipeline.toml`, part of this program
//! 2. the selected profile of the shipped file (`--profile`, `PIPELINE_PROFILE`)
//! 3. the `default` profile, then the selected one, of the file named by `--config` or
//!    `PIPELINE_CONFIG`, else of `pipeline.toml` in the working directory
//! 4. `.env` in the working directory
//! 5. the environment
//! 6. `--set` on the command line
//!
//! In every layer an empty value counts as not set. A value is text until its setting says what
//! it must be, so a password may look like a number. `RABBITMQ_URL` and `DATABASE_URL` win over
//! the parts (host, user and so on) of their own layer and of lower ones; a part that a higher
//! layer sets wins over the URL, as that layer wins over everything. Variables that are not in
//! [`keys`] change nothing; those that look like one are [`Suspicions`].
//!
//! Each layer is a provider of figment's, which merges them, extracts [`Config`] through serde (each field
//! names the function of `values` that checks it) and knows where a value came from. What spans settings
//! is in `rules`.
//!
//! Architecture invariant: nothing here knows lapin, sqlx or the pipeline; a leaf that every
//! other module may read.

mod document;
mod dotenv;
mod hosts;
pub mod keys;
mod layers;
mod password;
mod postgres;
mod problems;
mod rabbitmq;
mod rules;
mod service;
mod settings;
mod sources;
mod unread;
mod urls;
mod values;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use figment::value::Value;
use serde::{Deserialize, Serialize};

use keys::Key;
use settings::Settings;

use crate::platform::retry;

pub use hosts::{Hosts, ServerAddress};
pub use password::Password;
pub use postgres::{Postgres, SslMode};
pub use problems::{ConfigErrors, Problem};
pub use rabbitmq::{ManagementUrl, RabbitMq};
pub use service::{
    Batch, LogFormat, LogLevel, Monitoring, Publication, Retry, ShownTotals, Shutdown,
};
pub use sources::{Overrides, Sources, Suspicions};

/// The profile that holds when none is selected, and whose values every other builds on.
pub const DEFAULT_PROFILE: &str = "default";

/// A configuration that was checked: every value is in its range and fits the others.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Config {
    /// The selected profile.
    #[serde(skip)]
    pub profile: &'static str,
    /// How RabbitMQ is reached.
    pub rabbitmq: RabbitMq,
    /// How PostgreSQL is reached.
    pub postgres: Postgres,
    /// How votes are gathered.
    pub batch: Batch,
    /// How a failed batch is retried.
    pub retry: Retry,
    /// Metrics, health and logs.
    pub monitoring: Monitoring,
    /// How the service ends.
    pub shutdown: Shutdown,
    /// Who decides what the public sees.
    pub publication: Publication,
    /// What is most likely a mistake although all of this can be used.
    #[serde(skip)]
    pub suspicions: Suspicions,
    /// Where each value came from, by the path of its setting.
    #[serde(skip)]
    sources: BTreeMap<&'static str, String>,
}

/// One line of the effective configuration, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The path, such as `batch.size`.
    pub path: &'static str,
    /// The value that holds, `***` for a password, `(not set)` for none.
    pub value: String,
    /// Where it came from, such as `environment variable BATCH_SIZE`; empty for none.
    pub set_by: String,
}

impl Config {
    /// Reads and checks the configuration.
    ///
    /// # Errors
    /// All problems at once, each with the setting and the file, variable or flag it came from.
    pub fn load(sources: &Sources) -> Result<Self, ConfigErrors> {
        let mut problems = Vec::new();
        let (profile, layers, suspicions) = sources.read(&mut problems);
        let mut settings = Settings::new(layers, &sources.base(), problems);
        let mut config: Self = settings.extract()?;
        rules::apply(&mut config, &mut settings);
        Ok(Self { profile, suspicions, sources: settings.finish()?, ..config })
    }

    /// How many batches may be on their way to the database at once: as many as the prefetch
    /// count fills, at least one, at most one a connection of the pool.
    pub fn batches_in_flight(&self) -> usize {
        let filled = usize::from(self.rabbitmq.prefetch) / self.batch.size.max(1);
        let connections = usize::try_from(self.postgres.max_connections).unwrap_or(usize::MAX);
        filled.min(connections).max(1)
    }

    /// How long after its first delivery was taken something may be begun for a batch; past it the
    /// batch pauses (semantics, section 6). Half of the broker's consumer timeout, as the broker looks
    /// only now and then, and what was begun takes its time.
    pub fn batch_deadline(&self) -> Duration {
        self.rabbitmq.consumer_timeout / 2
    }

    /// All delays between the attempts at a batch, at their longest.
    pub fn retry_delays(&self) -> Duration {
        let Retry { max_attempts, delay } = self.retry;
        let doubled = f64::from(max_attempts).exp2() - 1.0;
        let total = delay.as_secs_f64() * doubled * (1.0 + retry::JITTER);
        Duration::try_from_secs_f64(total).unwrap_or(Duration::MAX)
    }

    /// The effective configuration without its passwords, in the order of the shipped file, for
    /// the log line at start and for people.
    pub fn redacted(&self) -> Vec<Setting> {
        let values = Value::serialize(self).expect("nothing in it can fail to be serialized");
        let listed = keys::ALL.iter().filter_map(|key| {
            let value = text_of(values.find_ref(key.path)?);
            let set_by = self.sources.get(key.path).cloned().unwrap_or_default();
            Some(Setting { path: key.path, value, set_by })
        });
        listed.collect()
    }
}

/// An effective value as text.
fn text_of(value: &Value) -> String {
    match value {
        Value::String(_, text) => text.clone(),
        Value::Bool(_, yes) => yes.to_string(),
        Value::Num(_, number) => number.to_u128().unwrap_or_default().to_string(),
        Value::Array(_, words) if !words.is_empty() => {
            words.iter().map(text_of).collect::<Vec<_>>().join(",")
        }
        _ => "(not set)".to_owned(),
    }
}

/// Warnings about passwords that `flags` give on the command line, where every process of the machine
/// can read them.
pub fn exposed_passwords(flags: &Overrides) -> Vec<String> {
    let exposed = flags.set.iter().filter_map(|(path, text)| {
        let key = keys::by_path(path).filter(|key| key.is_secret())?;
        // Of a URL, the part in front of the @ may hold a password.
        if text.is_empty() || key.name().ends_with("url") && !text.contains('@') {
            return None;
        }
        let files = keys::PASSWORDS.map(|(_, file)| file);
        let instead = files.into_iter().find(|file| file.section() == key.section())?;
        Some(format!(
            "--set {} shows a password in the list of processes; write it to a file and set {} \
             ({})",
            key.path, instead.variable, instead.path
        ))
    });
    exposed.collect()
}

/// The default value of a setting as the shipped file writes it; none when it has no default, or
/// one that follows from another setting.
pub fn shipped_default(key: &Key) -> Option<String> {
    let layers = document::layers(document::SHIPPED, None, DEFAULT_PROFILE, &mut Vec::new());
    Some(layers.first()?.get(key)?.text)
}
