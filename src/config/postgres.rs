//! How PostgreSQL is reached.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::keys::{self, Key};
use super::password::Password;
use super::problems::Refusal;
use super::reader::Reader;
use super::rules;
use super::values::{alarms, boolean, host_or_socket, name, port, whole};

/// Most connections a pool may have.
const MOST_CONNECTIONS: u64 = 10_000;

/// PostgreSQL: address, login and pool.
#[derive(Clone, Debug)]
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
    /// Encryption.
    pub ssl: PostgresSsl,
    /// Start although the server's settings or tables can lose commits.
    pub allow_lossy: bool,
    /// Start only where `synchronous_standby_names` is set.
    pub require_standby: bool,
    /// Alarms about lost acknowledged votes that an operator accepts.
    pub accept_lost: Vec<String>,
    /// After this PostgreSQL gives up a statement.
    pub statement_timeout: Duration,
    /// Whether pending migrations are applied at start.
    pub migrate_on_start: bool,
}

/// Encryption of the connection to PostgreSQL; the files held what they should when the
/// configuration was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresSsl {
    /// How much encryption and proof is asked for.
    pub mode: SslMode,
    /// Authorities that may sign the server's certificate, beside the system's.
    pub root_cert: Option<PathBuf>,
    /// This client's certificate; given together with the key or not at all.
    pub cert: Option<PathBuf>,
    /// The private key of this client's certificate.
    pub key: Option<PathBuf>,
}

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// Never encrypt.
    Disable,
    /// As [`SslMode::Prefer`]: nothing is gained by starting in clear.
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

impl SslMode {
    const ALL: [Self; 6] =
        [Self::Disable, Self::Allow, Self::Prefer, Self::Require, Self::VerifyCa, Self::VerifyFull];

    /// libpq's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }

    fn parse(text: &str) -> Result<Self, Refusal> {
        let word = text.trim().to_ascii_lowercase();
        Self::ALL.into_iter().find(|mode| mode.as_str() == word).ok_or_else(|| {
            let words = Self::ALL.map(Self::as_str).join(", ");
            Refusal::new("is not an SSL mode", format!("give one of {words}"))
        })
    }
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Reads the section; none when something in it is refused, which the reader notes.
pub(super) fn read(reader: &mut Reader, shared: &rules::Shared) -> Option<Postgres> {
    let host = reader.required(&keys::POSTGRES_HOST, host_or_socket);
    let port = reader.required(&keys::POSTGRES_PORT, port(1));
    let database = reader.required(&keys::POSTGRES_DB, name);
    let user = reader.required(&keys::POSTGRES_USER, name);
    let password = reader.password(&keys::POSTGRES_PASSWORD, &keys::POSTGRES_PASSWORD_FILE);
    let max_connections =
        reader.required(&keys::POSTGRES_MAX_CONNECTIONS, whole(1, MOST_CONNECTIONS));
    let min_connections = min_connections(reader, max_connections);
    let ssl = ssl(reader);
    let allow_lossy = reader.required(&keys::POSTGRES_ALLOW_LOSSY, boolean);
    let require_standby = reader.required(&keys::POSTGRES_REQUIRE_STANDBY, boolean);
    let accept_lost = reader.optional(&keys::POSTGRES_ACCEPT_LOST, alarms);
    let migrate_on_start = reader.required(&keys::MIGRATE_ON_START, boolean);
    Some(Postgres {
        host: host?,
        port: port?,
        database: database?,
        user: user?,
        password: password?,
        min_connections: min_connections?,
        max_connections: max_connections?,
        ssl: ssl?,
        allow_lossy: allow_lossy?,
        require_standby: require_standby?,
        accept_lost: accept_lost?.unwrap_or_default(),
        statement_timeout: shared.statement_timeout?,
        migrate_on_start: migrate_on_start?,
    })
}

/// At most the maximum: a minimum that nobody set sinks to it, one that was set above is refused.
fn min_connections(reader: &mut Reader, max: Option<u32>) -> Option<u32> {
    let key = &keys::POSTGRES_MIN_CONNECTIONS;
    let min: u32 = reader.required(key, whole(0, MOST_CONNECTIONS))?;
    let max = max?;
    if min <= max {
        return Some(min);
    }
    let found = reader.find(key)?;
    if found.shipped {
        reader.derived(key, &keys::POSTGRES_MAX_CONNECTIONS);
        return Some(max);
    }
    let limit = reader.find(&keys::POSTGRES_MAX_CONNECTIONS)?;
    let path = keys::POSTGRES_MAX_CONNECTIONS.path;
    let wrong = format!("is more than {path} = {max} ({})", limit.set_by);
    reader.refuse(key, &found, wrong, format!("lower it to {max} or less, or raise {path}"));
    None
}

fn ssl(reader: &mut Reader) -> Option<PostgresSsl> {
    let mode = reader.required(&keys::POSTGRES_SSLMODE, SslMode::parse);
    let root_cert = reader.authorities(&keys::POSTGRES_SSLROOTCERT);
    let [cert, key] =
        rules::certificate_and_key(reader, [&keys::POSTGRES_SSLCERT, &keys::POSTGRES_SSLKEY]);
    let (mode, root_cert, cert, key) = (mode?, root_cert?, cert?, key?);
    // Somebody who names a file believes that it is used.
    let useless: &[&Key] = match mode {
        SslMode::VerifyCa | SslMode::VerifyFull => &[],
        SslMode::Disable => {
            &[&keys::POSTGRES_SSLROOTCERT, &keys::POSTGRES_SSLCERT, &keys::POSTGRES_SSLKEY]
        }
        SslMode::Allow | SslMode::Prefer | SslMode::Require => &[&keys::POSTGRES_SSLROOTCERT],
    };
    for key in useless {
        if let Some(found) = reader.find(key) {
            let mode_key = &keys::POSTGRES_SSLMODE;
            let wrong = format!("has no effect with {} = {mode}", mode_key.path);
            let help = format!("set {}=verify-full, or remove it", mode_key.variable);
            reader.refuse(key, &found, wrong, help);
            return None;
        }
    }
    Some(PostgresSsl { mode, root_cert, cert, key })
}

impl Postgres {
    /// How long a statement of the service waits for a lock. One that is waited for longer is most likely
    /// held by the zombie of our own lost COMMIT.
    pub const LOCK_TIMEOUT: Duration = Duration::from_secs(3);

    /// The longest time one transaction may take, in all; a connection that is half open never
    /// answers, and after this nobody waits for it any more.
    pub fn transaction_deadline(&self) -> Duration {
        rules::transaction_deadline(self.statement_timeout)
    }
}
