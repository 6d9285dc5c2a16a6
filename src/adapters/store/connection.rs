//! Connections: their settings, the pool and its generations.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, Error, Postgres, pool::PoolConnection};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::CONNECT_TIMEOUT;
use super::error::{StartError, describe};
use crate::model::ports::{Class, Fault};
use crate::platform::config::{self, Password, keys};
use crate::platform::tls::{TlsFailure, TlsFailureKind, Variables};

/// The server ends a transaction whose client sends nothing for so long, and with it its locks.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection idle for longer is pinged before it gets a batch.
const IDLE_BEFORE_PING: Duration = Duration::from_secs(1);

/// sqlx's connect options out of ours, without the session limits (migrations take their time).
pub fn options(config: &config::Postgres) -> PgConnectOptions {
    let config::ServerAddress { host, port } = config.address();
    let mut options = PgConnectOptions::new_without_pgpass()
        .host(&host)
        .port(port)
        .database(&config.database)
        .username(&config.user)
        .application_name("vote-aggregator")
        .ssl_mode(match config.sslmode {
            config::SslMode::Disable => PgSslMode::Disable,
            // sqlx's own `Allow` never encrypts, not even where the server insists.
            config::SslMode::Allow | config::SslMode::Prefer => PgSslMode::Prefer,
            config::SslMode::Require => PgSslMode::Require,
            config::SslMode::VerifyCa => PgSslMode::VerifyCa,
            config::SslMode::VerifyFull => PgSslMode::VerifyFull,
        })
        // The server detects a client that vanished without closing the connection.
        .options([
            ("tcp_keepalives_idle", "10"),
            ("tcp_keepalives_interval", "5"),
            ("tcp_keepalives_count", "3"),
        ])
        .disable_statement_logging();
    options = with_password(options, config.password.as_ref());
    if let Some(file) = &config.sslrootcert {
        options = options.ssl_root_cert(file);
    }
    if let Some(file) = &config.sslcert {
        options = options.ssl_client_cert(file);
    }
    if let Some(file) = &config.sslkey {
        options = options.ssl_client_key(file);
    }
    options
}

/// With the password as its file has it now.
fn with_password(options: PgConnectOptions, password: Option<&Password>) -> PgConnectOptions {
    match password {
        Some(password) => options.password(password.current().expose_secret()),
        None => options,
    }
}

pub(super) fn pool(
    config: &config::Postgres,
    options: PgConnectOptions,
    generation: Arc<Generation>,
    connected: Arc<Notify>,
) -> PgPool {
    PgPoolOptions::new()
        .after_connect(move |_, _| {
            connected.notify_one();
            Box::pin(async { Ok(()) })
        })
        .min_connections(config.min_connections)
        .max_connections(config.max_connections)
        .acquire_timeout(CONNECT_TIMEOUT)
        // It would cost each batch a round trip; `before_acquire` pings idle connections.
        .test_before_acquire(false)
        .before_acquire(move |connection, meta| {
            let stale = generation.is_over_for(meta.age);
            Box::pin(async move {
                if !stale && meta.idle_for > IDLE_BEFORE_PING {
                    connection.ping().await?;
                }
                Ok(!stale)
            })
        })
        .connect_lazy_with(options)
}

static VARIABLES: Variables = Variables {
    host: keys::POSTGRES_HOST.variable,
    port: keys::POSTGRES_PORT.variable,
    mode: keys::POSTGRES_SSLMODE.variable,
    ca_file: keys::POSTGRES_SSLROOTCERT.variable,
    cert_file: keys::POSTGRES_SSLCERT.variable,
    key_file: keys::POSTGRES_SSLKEY.variable,
};

/// The server, for connections outside the pool.
#[derive(Clone)]
pub(super) struct Address {
    pub(super) options: PgConnectOptions,
    pub(super) config: config::Postgres,
    /// Nothing is to be written.
    pub(super) reads: bool,
}

impl Address {
    pub(super) fn new(config: &config::Postgres, options: PgConnectOptions) -> Self {
        Self { options, config: config.clone(), reads: false }
    }

    /// With the limits of a counting session: no statement, lock or idle transaction may hang.
    pub(super) fn limited(config: &config::Postgres, statement_timeout: Duration) -> Self {
        let limits = [
            ("statement_timeout", statement_timeout),
            ("lock_timeout", config::Postgres::LOCK_TIMEOUT),
            ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_TIMEOUT),
        ];
        let limits = limits.map(|(setting, limit)| (setting, limit.as_millis()));
        // A statement outside BEGIN takes the role's default otherwise.
        let isolation = [("default_transaction_isolation", "read committed")];
        Self::new(config, options(config).options(limits).options(isolation))
    }

    /// The same for transactions that write nothing.
    pub(super) fn read_only(self) -> Self {
        let options = self.options.options([("default_transaction_read_only", "on")]);
        Self { options, reads: true, ..self }
    }

    /// The same server under another name in `pg_stat_activity`.
    pub(super) fn named(&self, application_name: &str) -> Self {
        let options = self.options.clone().application_name(application_name);
        Self { options, ..self.clone() }
    }

    /// The options with the address in use, and with the password that the file holds now.
    pub(super) fn current_options(&self) -> PgConnectOptions {
        let config::ServerAddress { host, port } = self.config.address();
        let options = self.options.clone().host(&host).port(port);
        with_password(options, self.config.password.as_ref())
    }

    /// Has `pool` open connections with [`Address::current_options`]; whether the password may be another.
    pub(super) fn renew_options(&self, pool: &PgPool) -> bool {
        let in_file = self.config.password.as_ref().is_some_and(Password::is_in_file);
        if in_file || self.config.host.count() > 1 {
            pool.set_connect_options(self.current_options());
        }
        in_file
    }

    /// A connection to the address in use, opened within [`CONNECT_TIMEOUT`].
    pub(super) async fn open(&self) -> Result<PgConnection, StartError> {
        let opened = timeout(CONNECT_TIMEOUT, self.current_options().connect()).await;
        opened.map_or_else(
            |_| {
                let place = describe(&self.config);
                let message = format!("no connection within {CONNECT_TIMEOUT:?}; {place}");
                Err(Fault::new(Class::Reconnect, message).into())
            },
            |opened| opened.map_err(|error| self.refused(&error)),
        )
    }

    fn refused(&self, error: &Error) -> StartError {
        let (fault, place) = (Fault::from(error), describe(&self.config));
        if fault.sqlstate.is_some() {
            return fault.into();
        }
        let failure = match error {
            Error::Io(error) => TlsFailure::of(error),
            Error::Tls(error) => TlsFailure::of(&**error),
            _ => None,
        };
        if let Some(failure) = failure {
            let authorities = self.config.sslrootcert.as_deref();
            let message = failure.message(&place, &VARIABLES, authorities);
            let fault = Fault { message, ..fault };
            return match failure.kind {
                TlsFailureKind::Untrusted => StartError::Tls(fault),
                TlsFailureKind::ClientCertificate => StartError::Certificate(fault),
                // A certificate can be renewed while the service waits.
                TlsFailureKind::OutOfDate => StartError::Unavailable(fault),
            };
        }
        let (of, message): (fn(Fault) -> StartError, _) = match error {
            Error::Configuration(cause) => {
                (StartError::Settings, format!("{}; {place}", self.unusable(&**cause)))
            }
            Error::Tls(cause) => (
                StartError::Tls,
                format!(
                    "no TLS with the server ({cause}); {place}. POSTGRES_SSLMODE={} needs a server \
                     with ssl = on: check POSTGRES_HOST and POSTGRES_PORT, and the server's settings",
                    self.config.sslmode
                ),
            ),
            Error::Protocol(_) => (
                StartError::Unavailable,
                format!(
                    "{}; {place}. The server there is not PostgreSQL, or requires a login other \
                     than a password: check POSTGRES_HOST, POSTGRES_PORT and the server's \
                     pg_hba.conf",
                    fault.message
                ),
            ),
            _ => (StartError::Unavailable, format!("{}; {place}", fault.message)),
        };
        of(Fault { message, ..fault })
    }

    /// Why the driver cannot even try: a login that SASLprep refuses, or the files of our certificate.
    /// Its own words about a login quote a character of the password.
    fn unusable(&self, cause: &dyn std::error::Error) -> String {
        let is_ascii = |password: &Password| password.current().expose_secret().is_ascii();
        let config::Postgres { user, password, sslcert, .. } = &self.config;
        let plain = user.is_ascii() && password.as_ref().is_none_or(is_ascii);
        if plain && sslcert.is_some() {
            return cause.to_string();
        }
        "the user name or the password has a character that a login by SCRAM-SHA-256 cannot have, a \
         control character or an emoji for example (RFC 4013): change it on the server (ALTER ROLE ... \
         PASSWORD) and in POSTGRES_PASSWORD, POSTGRES_PASSWORD_FILE or DATABASE_URL"
            .to_owned()
    }
}

/// The pool's generation: connections opened before it began are not used again. After a restart of
/// the server every pooled connection is dead, and each would cost a batch one of its few retries.
#[derive(Debug, Default)]
pub(super) struct Generation(Mutex<Option<Instant>>);

impl Generation {
    /// Begins a new generation.
    pub(super) fn invalidate(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether a connection of this age was opened before the generation began.
    fn is_over_for(&self, age: Duration) -> bool {
        let began = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        began.is_some_and(|began| began.elapsed() <= age)
    }
}

/// A pooled connection that goes back only by [`Lease::release`]: dropped in any other way, by an
/// error or an abort, it is closed, whatever transaction it is in.
pub(super) struct Lease(Option<PoolConnection<Postgres>>);

impl Lease {
    pub(super) async fn from(pool: &PgPool) -> Result<Self, Fault> {
        Ok(Self(Some(pool.acquire().await?)))
    }

    pub(super) fn connection(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect("a lease holds its connection until it is released or dropped")
    }

    /// Back to the pool: the connection is outside any transaction.
    pub(super) fn release(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(connection.detach());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_message_about_a_password_is_not_repeated() {
        let words = "Failed to saslprep password: Error(ProhibitedCharacter('\u{1f5f3}'))";
        let refused = Fault::from(Error::Configuration(words.into()));
        assert!(!refused.message.contains("Prohibited"), "{refused}");

        let sources = crate::platform::config::Sources::default();
        let config = config::Config::load(&sources).expect("the defaults are good").postgres;
        let address = Address::new(&config, options(&config));
        let refused = address.unusable(&Error::Configuration(words.into()));
        assert!(refused.contains("SCRAM-SHA-256") && !refused.contains("Prohibited"), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_generation_is_over_for_what_was_opened_before_and_nothing_after() {
        let generation = Generation::default();
        assert!(!generation.is_over_for(Duration::from_secs(3600)), "nothing happened yet");
        generation.invalidate();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(generation.is_over_for(Duration::from_secs(6)));
        assert!(!generation.is_over_for(Duration::from_secs(4)));
    }
}
