//! Every setting: its path in a TOML file and its environment variable.
//!
//! The default values are in the shipped `pipeline.toml`.

/// One setting.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// `section.name`, as in a profile's tables and after `--set`; for the two of [`SELECTORS`],
    /// the flag.
    pub path: &'static str,
    /// The environment variable, also the name in `.env`.
    pub variable: &'static str,
}

impl Key {
    /// The part of the path before the dot, empty for a flag.
    pub fn section(&self) -> &'static str {
        self.path.split_once('.').map_or("", |(section, _)| section)
    }

    /// The part of the path after the dot.
    pub fn name(&self) -> &'static str {
        self.path.split_once('.').map_or(self.path, |(_, name)| name)
    }

    /// Whether the value is a password or may hold one: it is never shown.
    pub fn is_secret(&self) -> bool {
        self.name().ends_with("password") || self.name().ends_with("url")
    }
}

/// The variables that choose where the settings come from. They are not settings: a file cannot set
/// them.
pub static SELECTORS: &[&Key] = &[&PIPELINE_CONFIG, &PIPELINE_PROFILE];

/// The configuration file.
pub static PIPELINE_CONFIG: Key = Key { path: "--config", variable: "PIPELINE_CONFIG" };

/// The profile.
pub static PIPELINE_PROFILE: Key = Key { path: "--profile", variable: "PIPELINE_PROFILE" };

/// The passwords, each with the setting that names a file instead.
pub(super) static PASSWORDS: [(&Key, &Key); 2] =
    [(&RABBITMQ_PASSWORD, &RABBITMQ_PASSWORD_FILE), (&POSTGRES_PASSWORD, &POSTGRES_PASSWORD_FILE)];

/// Finds a setting by its path.
pub fn by_path(path: &str) -> Option<&'static Key> {
    ALL.iter().copied().find(|key| key.path == path)
}

/// The settings and the selectors.
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

// The identifier of each entry is its environment variable, so the two cannot differ.
macro_rules! keys {
    ($($variable:ident $path:literal)*) => {
        $(
            #[doc = $path]
            pub static $variable: Key = Key { path: $path, variable: stringify!($variable) };
        )*

        /// All settings, in the order of the shipped file.
        pub static ALL: &[&Key] = &[$(&$variable),*];
    };
}

keys! {
    RABBITMQ_URL "rabbitmq.url"
    RABBITMQ_HOST "rabbitmq.host"
    RABBITMQ_PORT "rabbitmq.port"
    RABBITMQ_USER "rabbitmq.user"
    RABBITMQ_PASSWORD "rabbitmq.password"
    RABBITMQ_PASSWORD_FILE "rabbitmq.password_file"
    RABBITMQ_VHOST "rabbitmq.vhost"
    RABBITMQ_QUEUE "rabbitmq.queue"
    RABBITMQ_DEAD_LETTER_QUEUE "rabbitmq.dead_letter_queue"
    CELL "rabbitmq.cell"
    RABBITMQ_PREFETCH_COUNT "rabbitmq.prefetch_count"
    RABBITMQ_HEARTBEAT_SECONDS "rabbitmq.heartbeat_seconds"
    RABBITMQ_CONSUMER_TIMEOUT_SECONDS "rabbitmq.consumer_timeout_seconds"
    RABBITMQ_TLS "rabbitmq.tls"
    RABBITMQ_TLS_CA_FILE "rabbitmq.tls_ca_file"
    RABBITMQ_TLS_CERT_FILE "rabbitmq.tls_cert_file"
    RABBITMQ_TLS_KEY_FILE "rabbitmq.tls_key_file"
    RABBITMQ_MANAGEMENT_URL "rabbitmq.management_url"
    DATABASE_URL "postgres.url"
    POSTGRES_HOST "postgres.host"
    POSTGRES_PORT "postgres.port"
    POSTGRES_DB "postgres.database"
    POSTGRES_USER "postgres.user"
    POSTGRES_PASSWORD "postgres.password"
    POSTGRES_PASSWORD_FILE "postgres.password_file"
    POSTGRES_MIN_CONNECTIONS "postgres.min_connections"
    POSTGRES_MAX_CONNECTIONS "postgres.max_connections"
    POSTGRES_SSLMODE "postgres.sslmode"
    POSTGRES_SSLROOTCERT "postgres.sslrootcert"
    POSTGRES_SSLCERT "postgres.sslcert"
    POSTGRES_SSLKEY "postgres.sslkey"
    POSTGRES_STATEMENT_TIMEOUT_SECONDS "postgres.statement_timeout_seconds"
    POSTGRES_ALLOW_LOSSY "postgres.allow_lossy"
    POSTGRES_REQUIRE_STANDBY "postgres.require_standby"
    POSTGRES_ACCEPT_LOST "postgres.accept_lost"
    MIGRATE_ON_START "postgres.migrate_on_start"
    BATCH_SIZE "batch.size"
    BATCH_TIMEOUT_SECONDS "batch.timeout_seconds"
    MAX_MESSAGE_BYTES "batch.max_message_bytes"
    MAX_RETRY_ATTEMPTS "retry.max_attempts"
    RETRY_DELAY_SECONDS "retry.delay_seconds"
    PROMETHEUS_HOST "monitoring.host"
    PROMETHEUS_PORT "monitoring.port"
    LOG_LEVEL "monitoring.log_level"
    LOG_FORMAT "monitoring.log_format"
    METRICS_MAX_LAWS "monitoring.max_laws"
    METRICS_TOTALS "monitoring.totals"
    TOTALS_REFRESH_SECONDS "monitoring.totals_refresh_seconds"
    RECONCILE_INTERVAL_SECONDS "monitoring.reconcile_interval_seconds"
    SHUTDOWN_TIMEOUT_SECONDS "shutdown.timeout_seconds"
    PUBLICATION_FOUR_EYES "publication.four_eyes"
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

/// Of pairs of a name and a value, the value whose name is nearest to what was written, if one is near
/// enough to be meant.
pub(super) fn closest<T>(
    written: &str,
    names: impl IntoIterator<Item = (impl AsRef<str>, T)>,
) -> Option<T> {
    let written = as_variable(written);
    // The first word is ours, or has a typing error.
    let is_near = |word, ours: &str| strsim::osa_distance(word, ours) <= (ours.len() / 4).max(1);
    let near = names.into_iter().filter_map(|(name, beside)| {
        let name = as_variable(name.as_ref());
        let (likeness, enough) = match (written.split_once('_'), name.split_once('_')) {
            // All names of a section share the first word, so that only the rest is compared.
            (Some((section, written)), Some((ours, name))) if is_near(section, ours) => {
                (strsim::jaro_winkler(written, name), 0.8)
            }
            (None, None) => (strsim::jaro_winkler(&written, &name), 0.85),
            _ => (f64::from(written.replace('_', "") == name.replace('_', "")), 0.5),
        };
        (likeness > enough).then_some((likeness, beside))
    });
    near.max_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, beside)| beside)
}

/// In the form that variables have: `rabbitmq.host` and `rabbitmq_host` are near misses, too.
pub(super) fn as_variable(name: &str) -> String {
    name.to_uppercase().replace(['.', '-'], "_")
}
