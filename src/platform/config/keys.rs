//! Every setting: its path in a TOML file, its environment variable, what it is for.
//!
//! The default values are not here: they are in the shipped `pipeline.toml`.

/// One setting.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// `section.name`, as in a profile's tables and after `--set`; for the two of [`SELECTORS`],
    /// the flag.
    pub path: &'static str,
    /// The environment variable, also the name in `.env`.
    pub variable: &'static str,
    /// The value is, or may hold, a password: it is never shown.
    pub secret: bool,
    /// One line for people: what it sets, in which unit.
    pub help: &'static str,
}

/// The variables that choose where the settings come from. They are no settings themselves: a
/// file cannot set them.
pub static SELECTORS: &[&Key] = &[&PIPELINE_CONFIG, &PIPELINE_PROFILE];

/// The configuration file.
pub static PIPELINE_CONFIG: Key = Key {
    path: "--config",
    variable: "PIPELINE_CONFIG",
    secret: false,
    help: "Configuration file to read instead of pipeline.toml in the working directory.",
};

/// The profile.
pub static PIPELINE_PROFILE: Key = Key {
    path: "--profile",
    variable: "PIPELINE_PROFILE",
    secret: false,
    help: "Profile: default, or throughput (larger batches and prefetch).",
};

/// The passwords, each with the setting that names a file instead.
pub(super) static PASSWORDS: [(&Key, &Key); 2] =
    [(&RABBITMQ_PASSWORD, &RABBITMQ_PASSWORD_FILE), (&POSTGRES_PASSWORD, &POSTGRES_PASSWORD_FILE)];

/// Finds a setting by its path.
pub fn by_path(path: &str) -> Option<&'static Key> {
    ALL.iter().copied().find(|key| key.path == path)
}

/// Every key that has a variable: the settings and the selectors.
pub(super) fn with_variables() -> impl Iterator<Item = &'static Key> {
    ALL.iter().chain(SELECTORS).copied()
}

/// Finds a setting or a selector by its variable.
pub(super) fn by_variable(name: &str) -> Option<&'static Key> {
    with_variables().find(|key| key.variable == name)
}

/// Whether a section of that name exists.
pub(super) fn is_section(name: &str) -> bool {
    ALL.iter().any(|key| key.section() == name)
}

impl Key {
    /// The part of the path before the dot.
    pub fn section(&self) -> &'static str {
        self.path.split_once('.').map_or("", |(section, _)| section)
    }

    /// The part of the path after the dot.
    pub fn name(&self) -> &'static str {
        self.path.split_once('.').map_or(self.path, |(_, name)| name)
    }
}

// The identifier of each entry is its environment variable, so the two cannot drift apart.
macro_rules! keys {
    (@plain) => { false };
    (@secret) => { true };
    ($($variable:ident $path:literal $secrecy:ident $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $variable: Key = Key {
                path: $path,
                variable: stringify!($variable),
                secret: keys!(@$secrecy),
                help: $help,
            };
        )*

        /// All settings, in the order of the shipped file.
        pub static ALL: &[&Key] = &[$(&$variable),*];
    };
}

keys! {
    RABBITMQ_URL "rabbitmq.url" secret
        "AMQP address, amqp://user:password@host:port/vhost or amqps; wins over the parts.";
    RABBITMQ_HOST "rabbitmq.host" plain
        "RabbitMQ host.";
    RABBITMQ_PORT "rabbitmq.port" plain
        "RabbitMQ port; 5671 when TLS is on and no port is set.";
    RABBITMQ_USER "rabbitmq.user" plain
        "RabbitMQ user name.";
    RABBITMQ_PASSWORD "rabbitmq.password" secret
        "RabbitMQ password.";
    RABBITMQ_PASSWORD_FILE "rabbitmq.password_file" plain
        "File that holds the RabbitMQ password, read for each new connection; one newline at its end is dropped.";
    RABBITMQ_VHOST "rabbitmq.vhost" plain
        "RabbitMQ virtual host.";
    RABBITMQ_QUEUE "rabbitmq.queue" plain
        "Queue the votes are consumed from.";
    RABBITMQ_DEAD_LETTER_QUEUE "rabbitmq.dead_letter_queue" plain
        "Queue for messages that cannot be counted; unset: the queue's name with .dlq.";
    RABBITMQ_PREFETCH_COUNT "rabbitmq.prefetch_count" plain
        "Votes the broker hands out before the first is acknowledged; at least batch.size.";
    RABBITMQ_HEARTBEAT_SECONDS "rabbitmq.heartbeat_seconds" plain
        "AMQP heartbeat in whole seconds; a dead peer shows after twice that.";
    RABBITMQ_CONSUMER_TIMEOUT_SECONDS "rabbitmq.consumer_timeout_seconds" plain
        "The broker's own consumer_timeout, in seconds.";
    RABBITMQ_TLS "rabbitmq.tls" plain
        "Whether RabbitMQ is reached over TLS; an amqps URL implies it.";
    RABBITMQ_TLS_CA_FILE "rabbitmq.tls_ca_file" plain
        "PEM file of authorities trusted to sign RabbitMQ's certificate, beside the system's.";
    RABBITMQ_TLS_CERT_FILE "rabbitmq.tls_cert_file" plain
        "PEM file of this client's certificate for RabbitMQ.";
    RABBITMQ_TLS_KEY_FILE "rabbitmq.tls_key_file" plain
        "PEM file of the private key of this client's certificate for RabbitMQ.";
    RABBITMQ_MANAGEMENT_URL "rabbitmq.management_url" secret
        "Address of RabbitMQ's management API (HTTP or HTTPS); unset: it is not asked.";
    DATABASE_URL "postgres.url" secret
        "PostgreSQL address, postgres://user:password@host:port/database; wins over the parts.";
    POSTGRES_HOST "postgres.host" plain
        "PostgreSQL host, or the directory of its socket.";
    POSTGRES_PORT "postgres.port" plain
        "PostgreSQL port.";
    POSTGRES_DB "postgres.database" plain
        "PostgreSQL database.";
    POSTGRES_USER "postgres.user" plain
        "PostgreSQL user.";
    POSTGRES_PASSWORD "postgres.password" secret
        "PostgreSQL password; may stay unset.";
    POSTGRES_PASSWORD_FILE "postgres.password_file" plain
        "File that holds the PostgreSQL password, read for each new connection; one newline at its end is dropped.";
    POSTGRES_MIN_CONNECTIONS "postgres.min_connections" plain
        "Connections the pool keeps open.";
    POSTGRES_MAX_CONNECTIONS "postgres.max_connections" plain
        "Connections the pool may open; also the most batches in flight.";
    POSTGRES_SSLMODE "postgres.sslmode" plain
        "disable, allow, prefer, require, verify-ca or verify-full.";
    POSTGRES_SSLROOTCERT "postgres.sslrootcert" plain
        "PEM file of authorities trusted to sign PostgreSQL's certificate, beside the system's.";
    POSTGRES_SSLCERT "postgres.sslcert" plain
        "PEM file of this client's certificate for PostgreSQL.";
    POSTGRES_SSLKEY "postgres.sslkey" plain
        "PEM file of the private key of this client's certificate for PostgreSQL.";
    POSTGRES_STATEMENT_TIMEOUT_SECONDS "postgres.statement_timeout_seconds" plain
        "Seconds after which PostgreSQL gives up one statement.";
    POSTGRES_ALLOW_LOSSY "postgres.allow_lossy" plain
        "Start although the server's settings or tables can lose commits (fsync off and the like).";
    POSTGRES_REQUIRE_STANDBY "postgres.require_standby" plain
        "Start only where synchronous_standby_names is set, so that a commit waits for a standby.";
    POSTGRES_ACCEPT_LOST "postgres.accept_lost" plain
        "Alarms about lost acknowledged votes that an operator accepts, by the names that the log gives, with commas.";
    MIGRATE_ON_START "postgres.migrate_on_start" plain
        "Whether pending migrations of the schema are applied at start.";
    BATCH_SIZE "batch.size" plain
        "Votes per batch.";
    BATCH_TIMEOUT_SECONDS "batch.timeout_seconds" plain
        "Seconds after its first vote at which a batch is processed although it is not full.";
    MAX_MESSAGE_BYTES "batch.max_message_bytes" plain
        "Largest message body in bytes; a larger one is rejected as malformed.";
    MAX_RETRY_ATTEMPTS "retry.max_attempts" plain
        "Retries of a failed batch before its votes go back to the queue.";
    RETRY_DELAY_SECONDS "retry.delay_seconds" plain
        "Seconds before the first retry; doubled before each further one.";
    PROMETHEUS_HOST "monitoring.host" plain
        "IP address the metrics and health endpoints listen on.";
    PROMETHEUS_PORT "monitoring.port" plain
        "Port of the metrics and health endpoints; 0: a free one.";
    LOG_LEVEL "monitoring.log_level" plain
        "TRACE, DEBUG, INFO, WARNING or ERROR.";
    LOG_FORMAT "monitoring.log_format" plain
        "text or json.";
    METRICS_MAX_LAWS "monitoring.max_laws" plain
        "Laws that get metric series of their own; the votes of others share one.";
    TOTALS_REFRESH_SECONDS "monitoring.totals_refresh_seconds" plain
        "Seconds between two readings of the totals in the database.";
    RECONCILE_INTERVAL_SECONDS "monitoring.reconcile_interval_seconds" plain
        "Seconds between two comparisons of all totals with the audit; 0: never.";
    SHUTDOWN_TIMEOUT_SECONDS "shutdown.timeout_seconds" plain
        "Seconds a graceful shutdown may take; keep it below the supervisor's (docker stop: 10).";
}

/// The key that was most likely meant by a path or a variable, in whatever spelling.
pub(super) fn closest_key(written: &str) -> Option<&'static Key> {
    let spellings = with_variables().flat_map(|key| {
        let path = as_variable(key.path);
        // DATABASE_URL suggests DATABASE_HOST and so on.
        let database = path.strip_prefix("POSTGRES_").map(|name| format!("DATABASE_{name}"));
        // CONFIG and PROFILE are variables of many programs.
        let path = (!key.path.starts_with('-')).then_some(path);
        let names = [Some(key.variable.to_owned()), database, path];
        names.into_iter().flatten().map(move |name| (name, key))
    });
    closest(written, spellings)
}

/// What stands beside the name nearest to what was written, if one is near enough to be meant.
pub(super) fn closest<T>(
    written: &str,
    names: impl IntoIterator<Item = (impl AsRef<str>, T)>,
) -> Option<T> {
    let written = as_variable(written);
    let near = names.into_iter().filter_map(|(name, beside)| {
        let name = as_variable(name.as_ref());
        let likeness = match (written.split_once('_'), name.split_once('_')) {
            // The rest decides: a first word that all of a section share says nothing of what was meant.
            (Some((section, written)), Some((ours, name))) if is_near(section, ours) => {
                Some(strsim::jaro_winkler(written, name)).filter(|likeness| *likeness > 0.8)
            }
            (None, None) => {
                Some(strsim::jaro_winkler(&written, &name)).filter(|likeness| *likeness > 0.85)
            }
            _ => (written.replace('_', "") == name.replace('_', "")).then_some(1.0),
        };
        likeness.map(|likeness| (likeness, beside))
    });
    near.max_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, beside)| beside)
}

/// Whether a first word is ours, or a slip of the keyboard away from it.
fn is_near(word: &str, ours: &str) -> bool {
    strsim::osa_distance(word, ours) <= (ours.len() / 4).max(1)
}

/// In the form that variables have: `rabbitmq.host` and `rabbitmq_host` are near misses, too.
pub(super) fn as_variable(name: &str) -> String {
    name.to_uppercase().replace(['.', '-'], "_")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn paths_and_variables_are_unique_and_have_one_section() {
        let paths: BTreeSet<_> = ALL.iter().map(|key| key.path).collect();
        let variables: BTreeSet<_> = ALL.iter().map(|key| key.variable).collect();
        assert_eq!(paths.len(), ALL.len());
        assert_eq!(variables.len(), ALL.len());
        for key in ALL {
            assert_eq!(key.path.split('.').count(), 2, "{}", key.path);
            assert!(key.help.ends_with('.'), "{}", key.path);
        }
    }

    #[test]
    fn every_password_and_every_url_is_secret() {
        for key in ALL {
            let holds_secret = key.name().ends_with("password") || key.name().ends_with("url");
            assert_eq!(key.secret, holds_secret, "{}", key.path);
        }
    }

    #[test]
    fn near_names_are_suggested_and_far_ones_are_not() {
        for (written, path) in [
            ("batch.sise", "batch.size"),
            ("batch.timeout", "batch.timeout_seconds"),
            ("rabbitmq.prefetch", "rabbitmq.prefetch_count"),
        ] {
            assert_eq!(closest_key(written).map(|key| key.path), Some(path));
        }
        assert_eq!(closest_key("zebra"), None);
    }
}
