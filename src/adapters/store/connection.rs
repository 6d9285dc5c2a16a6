//! Connections: their settings, the pool and its generations.

use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
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

/// The server ends a transaction whose client has gone quiet, and with it the zombie's locks.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection idle for longer is asked whether it is alive before it gets a batch.
const IDLE_BEFORE_PING: Duration = Duration::from_secs(1);

/// sqlx's connect options out of ours, without the session limits (migrations take their time).
pub fn options(config: &config::Postgres) -> PgConnectOptions {
    let mut options = PgConnectOptions::new_without_pgpass()
        .host(&config.host)
        .port(config.port)
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
        // The server finds out about a client that vanished without a word.
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

/// Adds the limits of a counting session: no statement, lock or idle transaction may hang.
pub(super) fn with_session_limits(
    options: PgConnectOptions,
    statement_timeout: Duration,
) -> PgConnectOptions {
    options.options([
        ("statement_timeout", statement_timeout.as_millis()),
        ("lock_timeout", config::Postgres::LOCK_TIMEOUT.as_millis()),
        ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_TIMEOUT.as_millis()),
    ])
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
        // A round trip for each batch otherwise; `before_acquire` asks where there is a doubt.
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

/// Where connections outside the pool lead, and what there is to say of it when they fail.
#[derive(Clone)]
pub(super) struct Address {
    options: PgConnectOptions,
    password: Option<Password>,
    place: String,
    ssl_mode: config::SslMode,
    has_certificate: bool,
    authorities: Option<PathBuf>,
}

impl Address {
    pub(super) fn new(config: &config::Postgres, options: PgConnectOptions) -> Self {
        Self {
            options,
            password: config.password.clone(),
            place: describe(config),
            ssl_mode: config.sslmode,
            has_certificate: config.sslcert.is_some(),
            authorities: config.sslrootcert.clone(),
        }
    }

    /// The same place under another name in `pg_stat_activity`, with session settings that go
    /// before those it had.
    pub(super) fn session(
        &self,
        application_name: &str,
        settings: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Self {
        let options = self.options.clone().application_name(application_name).options(settings);
        Self { options, ..self.clone() }
    }

    /// Has `pool` open connections with the password as its file has it now; false when it is in none.
    pub(super) fn renew_password(&self, pool: &PgPool) -> bool {
        let in_file = self.password.as_ref().is_some_and(Password::is_in_file);
        if in_file {
            pool.set_connect_options(with_password(self.options.clone(), self.password.as_ref()));
        }
        in_file
    }

    /// A connection, opened within [`CONNECT_TIMEOUT`].
    pub(super) async fn connect(&self) -> Result<PgConnection, StartError> {
        let options = with_password(self.options.clone(), self.password.as_ref());
        let error = match timeout(CONNECT_TIMEOUT, options.connect()).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => error,
            Err(_) => {
                let message = format!("no connection within {CONNECT_TIMEOUT:?}; {}", self.place);
                return Err(Fault { class: Class::Reconnect, sqlstate: None, message }.into());
            }
        };
        let fault = Fault::from(&error);
        if fault.sqlstate.is_some() {
            return Err(fault.into());
        }
        if let Error::Configuration(cause) = &error {
            let message = format!("{}; {}", self.unusable(&**cause), self.place);
            return Err(StartError::Settings(Fault { message, ..fault }));
        }
        let failure = match &error {
            Error::Io(error) => TlsFailure::of(error),
            Error::Tls(error) => TlsFailure::of(&**error),
            _ => None,
        };
        if let Some(failure) = failure {
            let message = failure.message(&self.place, &VARIABLES, self.authorities.as_deref());
            let fault = Fault { message, ..fault };
            return Err(match failure.kind {
                TlsFailureKind::Untrusted => StartError::Tls(fault),
                TlsFailureKind::ClientCertificate => StartError::Certificate(fault),
                // A certificate can be renewed while the service waits.
                TlsFailureKind::OutOfDate => StartError::Unavailable(fault),
            });
        }
        Err(match &error {
            Error::Tls(cause) => {
                let message = format!(
                    "no TLS with the server ({cause}); {}. POSTGRES_SSLMODE={} needs a server with \
                     ssl = on: check POSTGRES_HOST and POSTGRES_PORT, and the server's settings",
                    self.place, self.ssl_mode
                );
                StartError::Tls(Fault { message, ..fault })
            }
            Error::Protocol(_) => {
                let message = format!(
                    "{}; {}. What answers there is no PostgreSQL, or asks for a login other than a \
                     password: check POSTGRES_HOST, POSTGRES_PORT and the server's pg_hba.conf",
                    fault.message, self.place
                );
                Fault { message, ..fault }.into()
            }
            _ => {
                let message = format!("{}; {}", fault.message, self.place);
                Fault { message, ..fault }.into()
            }
        })
    }

    /// What keeps the driver from even trying: a login that SASLprep refuses, or the files of our
    /// certificate. Its own words about a login quote a character of the password.
    fn unusable(&self, cause: &dyn std::error::Error) -> String {
        let is_ascii = |password: &Password| password.current().expose_secret().is_ascii();
        let plain =
            self.options.get_username().is_ascii() && self.password.as_ref().is_none_or(is_ascii);
        if plain && self.has_certificate {
            return cause.to_string();
        }
        "the user name or the password has a character that a login by SCRAM-SHA-256 cannot have, a \
         control character or an emoji for example (RFC 4013): change it on the server (ALTER ROLE ... \
         PASSWORD) and in POSTGRES_PASSWORD, POSTGRES_PASSWORD_FILE or DATABASE_URL"
            .to_owned()
    }
}

/// The pool's generation: connections opened before it began are not used again. A server that
/// restarted leaves a pool of dead ones, and each would cost a batch one of its few tries.
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

    /// Back to the pool: the connection is outside any transaction.
    pub(super) fn release(mut self) {
        drop(self.0.take());
    }
}

const LEASED: &str = "a lease holds its connection until it is released or dropped";

impl Deref for Lease {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.0.as_ref().expect(LEASED)
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect(LEASED)
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
    fn what_the_driver_says_of_a_password_is_not_repeated() {
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
