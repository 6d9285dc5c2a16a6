//! The configuration: read whole and checked whole before anything is bound or connected.
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
//! Architecture invariant: nothing here knows lapin, sqlx or the pipeline; a leaf that every
//! other module may read.

mod document;
mod dotenv;
pub mod keys;
mod layers;
mod password;
mod postgres;
mod problems;
mod rabbitmq;
mod reader;
mod rules;
mod service;
mod sources;
mod unread;
mod urls;
mod values;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use keys::Key;
use layers::{Layers, Origin};
use reader::Reader;

pub use password::Password;
pub use postgres::{Postgres, PostgresSsl, SslMode};
pub use problems::{ConfigErrors, Problem};
pub use rabbitmq::{ManagementUrl, RabbitMq, RabbitMqTls};
pub use service::{Batch, LogFormat, LogLevel, Monitoring, Retry};
pub use sources::{Overrides, Sources, Suspicions};

/// The profile that holds when none is selected, and whose values every other builds on.
pub const DEFAULT_PROFILE: &str = "default";

/// A configuration that was checked: every value is in its range and fits the others.
#[derive(Clone, Debug)]
pub struct Config {
    /// The selected profile.
    pub profile: String,
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
    /// How long a graceful shutdown may take.
    pub shutdown_timeout: Duration,
    /// What is most likely a mistake although all of this can be used.
    pub suspicions: Suspicions,
    /// Where each value came from, by the path of its setting.
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
    /// All problems at once, each with the setting and the file, variable or flag it came from;
    /// see [`ConfigErrors::EXIT_CODE`].
    pub fn load(sources: &Sources) -> Result<Self, ConfigErrors> {
        let mut problems = Vec::new();
        let (profile, layers, suspicions) = sources.read(&mut problems);
        let mut reader = Reader::new(Layers::new(layers), sources.base(), problems);
        reader.take_apart(&keys::RABBITMQ_URL, urls::amqp);
        reader.take_apart(&keys::DATABASE_URL, urls::postgres);

        let shared = rules::read(&mut reader);
        let rabbitmq = rabbitmq::read(&mut reader, &shared);
        let postgres = postgres::read(&mut reader, &shared);
        let monitoring = service::monitoring(&mut reader);
        let shutdown_timeout = service::shutdown_timeout(&mut reader);

        let (problems, sources) = reader.finish();
        if !problems.is_empty() {
            return Err(ConfigErrors::new(problems));
        }
        // What is missing here was noted as a problem.
        let complete = || {
            Some(Self {
                profile,
                rabbitmq: rabbitmq?,
                postgres: postgres?,
                batch: shared.batch?,
                retry: shared.retry?,
                monitoring: monitoring?,
                shutdown_timeout: shutdown_timeout?,
                suspicions,
                sources,
            })
        };
        complete().ok_or_else(|| ConfigErrors::new(problems))
    }

    /// How many batches may be on their way to the database at once: as many as the prefetch
    /// count fills, at least one, at most one a connection of the pool.
    pub fn batches_in_flight(&self) -> usize {
        let filled = usize::from(self.rabbitmq.prefetch) / self.batch.size.max(1);
        let connections = usize::try_from(self.postgres.max_connections).unwrap_or(usize::MAX);
        filled.min(connections).max(1)
    }

    /// How long after its first delivery was taken something may be begun for a batch; past it the
    /// batch pauses (semantics, section 6).
    pub fn batch_deadline(&self) -> Duration {
        rules::batch_deadline(self.rabbitmq.consumer_timeout)
    }

    /// All delays between the attempts at a batch, at their longest.
    pub fn retry_delays(&self) -> Duration {
        rules::retry_delays(&self.retry)
    }

    /// The effective configuration without its passwords, in the order of the shipped file, for
    /// the log line at start and for people.
    pub fn redacted(&self) -> Vec<Setting> {
        let mut settings = Vec::new();
        for (key, value) in self.values() {
            let set_by = self.sources.get(key.path).cloned().unwrap_or_default();
            let value = value.unwrap_or_else(|| "(not set)".to_owned());
            settings.push(Setting { path: key.path, value, set_by });
        }
        settings
    }
}

/// Warnings about passwords that `flags` give on the command line, where every process of the machine
/// can read them.
pub fn exposed_passwords(flags: &Overrides) -> Vec<String> {
    let exposed = flags.set.iter().filter_map(|(path, text)| {
        let (key, instead) = match keys::by_path(path)? {
            key if *key == keys::RABBITMQ_PASSWORD => (key, &keys::RABBITMQ_PASSWORD_FILE),
            key if *key == keys::POSTGRES_PASSWORD => (key, &keys::POSTGRES_PASSWORD_FILE),
            // Of a URL, the part in front of the @ may hold a password.
            key if key.secret && text.contains('@') => match key.section() {
                "rabbitmq" => (key, &keys::RABBITMQ_PASSWORD_FILE),
                _ => (key, &keys::POSTGRES_PASSWORD_FILE),
            },
            _ => return None,
        };
        (!text.is_empty()).then(|| {
            format!(
                "--set {} shows a password in the list of processes; write it to a file and set {} \
                 ({})",
                key.path, instead.variable, instead.path
            )
        })
    });
    exposed.collect()
}

/// The default value of a setting as the shipped file writes it; none when it has no default, or
/// one that follows from another setting.
pub fn shipped_default(key: &Key) -> Option<String> {
    let origin = |name: &str| Origin::Shipped { profile: name.to_owned() };
    let mut problems = Vec::new();
    let layers =
        document::layers(document::SHIPPED, "shipped", DEFAULT_PROFILE, origin, &mut problems);
    Layers::new(layers).find(key).map(|found| found.text)
}
