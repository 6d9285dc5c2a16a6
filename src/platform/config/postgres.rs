//! How PostgreSQL is reached.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, VariantNames};

use super::hosts::{Hosts, ServerAddress};
use super::password::Password;
use super::values::{
    Seconds, Whole, alarms, authorities, boolean, file, hosts_or_socket, name, private_key, word,
};

/// Statements of one transaction that may each take as long as the statement timeout allows.
pub(super) const STATEMENTS: u32 = 2;

/// What one attempt at a batch may take beyond its statements: a connection to get, a commit.
pub(super) const ATTEMPT_OVERHEAD: Duration = Duration::from_secs(5);

/// PostgreSQL: address, login, encryption and pool. The files were valid when the
/// configuration was read.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Postgres {
    /// One host, the directory of its socket, or the addresses of a primary and its standbys.
    #[serde(deserialize_with = "hosts_or_socket")]
    pub host: Hosts,
    /// TCP port of hosts without a port of their own, also part of the socket's name.
    #[serde(deserialize_with = "Whole::<1, 65_535>::deserialize")]
    pub port: u16,
    /// Database.
    #[serde(deserialize_with = "name")]
    pub database: String,
    /// User name.
    #[serde(deserialize_with = "name")]
    pub user: String,
    /// Password; none for a server that asks for none, or for a certificate.
    pub password: Option<Password>,
    /// The file that holds the password instead.
    #[serde(default, deserialize_with = "file", skip_serializing)]
    pub(super) password_file: Option<PathBuf>,
    /// Connections the pool keeps open; at most `max_connections`.
    #[serde(deserialize_with = "Whole::<0, 10_000>::deserialize")]
    pub min_connections: u32,
    /// Connections the pool may open; at least 1.
    #[serde(deserialize_with = "Whole::<1, 10_000>::deserialize")]
    pub max_connections: u32,
    /// Whether the connection is encrypted and the certificate checked.
    #[serde(deserialize_with = "word")]
    pub sslmode: SslMode,
    /// Authorities that may sign the server's certificate, beside the system's.
    #[serde(default, deserialize_with = "authorities")]
    pub sslrootcert: Option<PathBuf>,
    /// This client's certificate; given together with the key or not at all.
    #[serde(default, deserialize_with = "file")]
    pub sslcert: Option<PathBuf>,
    /// The private key of this client's certificate.
    #[serde(default, deserialize_with = "private_key")]
    pub sslkey: Option<PathBuf>,
    /// Start although the server's settings or tables can lose commits.
    #[serde(deserialize_with = "boolean")]
    pub allow_lossy: bool,
    /// Start only where `synchronous_standby_names` is set.
    #[serde(deserialize_with = "boolean")]
    pub require_standby: bool,
    /// Alarms about lost acknowledged votes that an operator accepts.
    #[serde(default, deserialize_with = "alarms")]
    pub accept_lost: Vec<String>,
    /// After this PostgreSQL gives up a statement.
    #[serde(rename = "statement_timeout_seconds", with = "Seconds::<100, 3_600_000>")]
    pub statement_timeout: Duration,
    /// Whether pending migrations are applied at start.
    #[serde(deserialize_with = "boolean")]
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
    /// How long a statement of the service waits for a lock. Past that, the holder is most likely our own
    /// transaction whose connection was lost at COMMIT.
    pub const LOCK_TIMEOUT: Duration = Duration::from_secs(3);

    /// Every address, in the order of the setting.
    pub fn addresses(&self) -> Vec<ServerAddress> {
        self.host.addresses(self.port)
    }

    /// The address in use, or to be tried first.
    pub fn address(&self) -> ServerAddress {
        self.host.address(self.port)
    }

    /// The same with the address of this index alone.
    pub fn at(&self, index: usize) -> Self {
        Self { host: self.host.only(index), ..self.clone() }
    }

    /// The longest time one transaction may take, in all; a connection that is half open never
    /// answers, and after this the service stops waiting for it.
    pub fn transaction_deadline(&self) -> Duration {
        self.statement_timeout * STATEMENTS + ATTEMPT_OVERHEAD
    }
}
