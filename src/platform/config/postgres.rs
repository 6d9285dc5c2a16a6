//! How PostgreSQL is reached.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use strum::{Display, EnumString, VariantNames};

use super::keys;
use super::password::Password;
use super::reader::Reader;
use super::values::{alarms, as_seconds, boolean, host_or_socket, plain, seconds, whole, word};
use crate::platform::tls;

/// Statements of one transaction that may each take as long as the statement timeout allows.
pub(super) const STATEMENTS: u32 = 2;

/// What one attempt at a batch may take beyond its statements: a connection to get, a commit.
pub(super) const ATTEMPT_OVERHEAD: Duration = Duration::from_secs(5);

/// PostgreSQL: address, login, encryption and pool. The files were valid when the
/// configuration was read.
#[derive(Clone, Debug, Serialize)]
pub struct Postgres {
    /// Host name, IP address (IPv6 without brackets), or the absolute path of the directory of
    /// the server's socket.
    pub host: String,
    /// TCP port, also part of the socket's name.
    pub port: u16,
    /// Database.
    pub database: String,
    /// User name.
    pub user: String,
    /// Password; none for a server that asks for none, or for a certificate.
    pub password: Option<Password>,
    /// Connections the pool keeps open; at most `max_connections`.
    pub min_connections: u32,
    /// Connections the pool may open; at least 1.
    pub max_connections: u32,
    /// Whether the connection is encrypted and the certificate checked.
    pub sslmode: SslMode,
    /// Authorities that may sign the server's certificate, beside the system's.
    pub sslrootcert: Option<PathBuf>,
    /// This client's certificate; given together with the key or not at all.
    pub sslcert: Option<PathBuf>,
    /// The private key of this client's certificate.
    pub sslkey: Option<PathBuf>,
    /// Start although the server's settings or tables can lose commits.
    pub allow_lossy: bool,
    /// Start only where `synchronous_standby_names` is set.
    pub require_standby: bool,
    /// Alarms about lost acknowledged votes that an operator accepts.
    pub accept_lost: Vec<String>,
    /// After this PostgreSQL gives up a statement.
    #[serde(rename = "statement_timeout_seconds", serialize_with = "as_seconds")]
    pub statement_timeout: Duration,
    /// Whether pending migrations are applied at start.
    pub migrate_on_start: bool,
}

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, Serialize, VariantNames)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case", ascii_case_insensitive)]
pub enum SslMode {
    /// Never encrypt.
    Disable,
    /// As [`SslMode::Prefer`].
    Allow,
    /// Encrypt when the server can; the certificate is not checked.
    Prefer,
    /// Encrypt or fail; the certificate is not checked.
    Require,
    /// Encrypt, and check who signed the server's certificate.
    VerifyCa,
    /// Encrypt, and check who signed the certificate and that it names the host.
    VerifyFull,
}

impl Postgres {
    pub(super) fn read(from: &mut Reader) -> Self {
        let statement_timeout = &keys::POSTGRES_STATEMENT_TIMEOUT_SECONDS;
        Self {
            host: from.get(&keys::POSTGRES_HOST, host_or_socket),
            port: from.get(&keys::POSTGRES_PORT, whole(1..=65_535)),
            database: from.get(&keys::POSTGRES_DB, plain),
            user: from.get(&keys::POSTGRES_USER, plain),
            password: from.password(&keys::POSTGRES_PASSWORD, &keys::POSTGRES_PASSWORD_FILE),
            min_connections: from.get(&keys::POSTGRES_MIN_CONNECTIONS, whole(0..=10_000)),
            max_connections: from.get(&keys::POSTGRES_MAX_CONNECTIONS, whole(1..=10_000)),
            sslmode: from.get(&keys::POSTGRES_SSLMODE, word),
            sslrootcert: from.pem(&keys::POSTGRES_SSLROOTCERT, tls::authorities),
            sslcert: from.file(&keys::POSTGRES_SSLCERT),
            sslkey: from.pem(&keys::POSTGRES_SSLKEY, tls::check_key),
            allow_lossy: from.get(&keys::POSTGRES_ALLOW_LOSSY, boolean),
            require_standby: from.get(&keys::POSTGRES_REQUIRE_STANDBY, boolean),
            accept_lost: from.get_if_set(&keys::POSTGRES_ACCEPT_LOST, alarms).unwrap_or_default(),
            statement_timeout: from.get(statement_timeout, seconds(0.1..=3_600.0)),
            migrate_on_start: from.get(&keys::MIGRATE_ON_START, boolean),
        }
    }

    /// How long a statement of the service waits for a lock. Past that, the holder is most likely our own
    /// transaction whose connection was lost at COMMIT.
    pub const LOCK_TIMEOUT: Duration = Duration::from_secs(3);

    /// The longest time one transaction may take, in all; a connection that is half open never
    /// answers, and after this the service stops waiting for it.
    pub fn transaction_deadline(&self) -> Duration {
        self.statement_timeout * STATEMENTS + ATTEMPT_OVERHEAD
    }
}
