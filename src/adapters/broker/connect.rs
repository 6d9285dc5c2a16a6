//! One AMQP connection: address, TLS, heartbeat, and what a refusal means.

use std::io;
use std::path::Path;
use std::time::Duration;

use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Connection, ConnectionProperties, Error, ErrorKind};
use secrecy::ExposeSecret;
use tokio::time::timeout;

use super::screen::FRAME_MAX;
use super::{ServerVersion, refusal, runtime};
use crate::model::ports::OpenError;
use crate::platform::config::{RabbitMq as Config, ServerAddress, keys};
use crate::platform::tls::{self, TlsFailure, TlsFailureKind, Variables};

/// Longest wait for TCP, TLS and the AMQP handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

static VARIABLES: Variables = Variables {
    host: keys::RABBITMQ_HOST.variable,
    port: keys::RABBITMQ_PORT.variable,
    mode: keys::RABBITMQ_TLS.variable,
    ca_file: keys::RABBITMQ_TLS_CA_FILE.variable,
    cert_file: keys::RABBITMQ_TLS_CERT_FILE.variable,
    key_file: keys::RABBITMQ_TLS_KEY_FILE.variable,
};

/// A connection that was opened.
pub(super) struct Opened {
    pub(super) connection: Connection,
    /// Which RabbitMQ it is, if it is one.
    pub(super) version: Option<ServerVersion>,
    /// The configuration with its address alone.
    pub(super) config: Config,
}

/// A connection that is closed unless a session takes it. Dropping it would not do: the client keeps a call
/// that was not answered, and the connection with it. A node that was cut off answers later, and its new
/// consumer would hold votes that nobody reads.
pub(super) struct Unclaimed(Option<Connection>);

impl Unclaimed {
    pub(super) fn new(connection: Connection) -> Self {
        Self(Some(connection))
    }

    pub(super) fn get(&self) -> &Connection {
        self.0.as_ref().expect("it is taken with self alone")
    }

    pub(super) fn claim(mut self) -> Connection {
        self.0.take().expect("it is taken with self alone")
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            let closing = async move { connection.close(200, "OK".into()).await };
            tokio::spawn(timeout(CONNECT_TIMEOUT, closing));
        }
    }
}

/// Opens a connection, which `purpose` names in the broker's listings, at the address in use, else at the
/// next one where that is possible.
pub(super) async fn open(config: &Config, purpose: &str) -> Result<Opened, OpenError> {
    let mut failures = Vec::new();
    for index in config.host.in_turn() {
        let config = config.at(index);
        match open_at(&config, purpose).await {
            Ok((connection, version)) => return Ok(Opened { connection, version, config }),
            Err(error) => failures.push(error),
        }
    }
    Err(at_no_address(failures))
}

/// The error of all addresses together. The service waits as long as one of them may still answer.
pub(super) fn at_no_address(failures: Vec<OpenError>) -> OpenError {
    let message = failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let is_fatal = failures.iter().all(OpenError::is_fatal_at_start);
    let first = failures.into_iter().find(|error| error.is_fatal_at_start() == is_fatal);
    match first {
        Some(OpenError::Credentials(_)) => OpenError::Credentials(message),
        Some(OpenError::Configuration(_)) => OpenError::Configuration(message),
        Some(OpenError::Occupied { phrase, .. }) => OpenError::Occupied { phrase, message },
        Some(OpenError::Unavailable(_)) | None => OpenError::Unavailable(message),
    }
}

/// Opens a connection at the one address of `config`.
async fn open_at(
    config: &Config,
    purpose: &str,
) -> Result<(Connection, Option<ServerVersion>), OpenError> {
    let properties = ConnectionProperties::default()
        .with_connection_name(format!("vote-aggregator: {purpose}").into());
    let connecting = runtime::connect(uri(config), properties, tls(config)?);
    let opening = async { connecting.await.map_err(|error| not_opened(config, &error)) };
    within(config, CONNECT_TIMEOUT, "answer", opening).await
}

/// Bounds `work`; `what` the broker did not do in time.
pub(super) async fn within<T>(
    config: &Config,
    limit: Duration,
    what: &str,
    work: impl Future<Output = Result<T, OpenError>>,
) -> Result<T, OpenError> {
    timeout(limit, work).await.unwrap_or_else(|_| {
        let message = format!("{} did not {what} within {limit:?}", describe(config));
        Err(OpenError::Unavailable(message))
    })
}

/// Where and as whom we connect, for messages: never the password.
pub fn describe(config: &Config) -> String {
    let Config { vhost, user, .. } = config;
    format!("RabbitMQ on {}, virtual host {vhost:?}, user {user:?}", config.address())
}

/// Returns what an error before the AMQP handshake means.
fn not_opened(config: &Config, error: &Error) -> OpenError {
    if let ErrorKind::IOError(cause) = error.kind()
        && let Some(failure) = TlsFailure::of(&**cause)
    {
        let message = failure.message(&describe(config), &VARIABLES, config.tls_ca_file.as_deref());
        return match failure.kind {
            TlsFailureKind::ClientCertificate => OpenError::Credentials(message),
            TlsFailureKind::OutOfDate => OpenError::Unavailable(message),
            TlsFailureKind::Untrusted => OpenError::Configuration(message),
        };
    }
    let Variables { host, port, mode, cert_file, .. } = VARIABLES;
    match error.kind() {
        // The client can't use the settings, or what answers speaks another protocol.
        ErrorKind::InvalidProtocolVersion(_)
        | ErrorKind::SerialisationError(_)
        | ErrorKind::AuthProviderError(_)
        | ErrorKind::NoDefaultRuntime => OpenError::Configuration(format!(
            "{error}; {}. Check what listens there ({host}, {port}) and the login",
            describe(config)
        )),
        _ => match (refused(config, error), is_hang_up(error)) {
            (OpenError::Unavailable(message), true) => OpenError::Unavailable(match config.tls {
                // A port with TLS hangs up on a client without; so does a broker that is stopping.
                false => format!("{message}. If that port takes TLS only, set {mode}=true"),
                true => format!(
                    "{message}. If this persists, the broker may refuse the client certificate, or \
                     require one ({cert_file}); see the broker's log"
                ),
            }),
            (other, _) => other,
        },
    }
}

/// Whether the other end hung up, or answered in another protocol.
fn is_hang_up(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::IOError(cause) => matches!(
            cause.kind(),
            io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
        ),
        ErrorKind::ParsingError(_) => true,
        _ => false,
    }
}

/// Returns what an error of the broker means for opening something.
pub(super) fn refused(config: &Config, error: &Error) -> OpenError {
    let message = format!("{error}; {}", describe(config));
    if let Some(occupied) = refusal::occupied(error, &message) {
        return occupied;
    }
    match amqp_code(error) {
        Some(403) => {
            OpenError::Credentials(format!("{message}. {}", refusal::access(config, error)))
        }
        Some(530) => OpenError::Configuration(format!(
            "{message}. Check RABBITMQ_VHOST and the user's access to it"
        )),
        // RabbitMQ 3.10, killed just after a start, can come back with a queue that stays without a
        // leader: its dead-letter supervisor has given up and is not started again.
        Some(541) => OpenError::Unavailable(format!(
            "{message}. RabbitMQ reports an internal error; see its log, and restart it if this \
             persists"
        )),
        _ => OpenError::Unavailable(message),
    }
}

/// The AMQP reply code, when the broker gave one.
pub(super) fn amqp_code(error: &Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(protocol) => Some(protocol.get_id()),
        _ => None,
    }
}

/// Reads the password's file anew, as [`tls()`] does its files.
fn uri(config: &Config) -> AMQPUri {
    let ServerAddress { host, port } = config.address();
    AMQPUri {
        scheme: if config.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo {
                username: config.user.clone(),
                password: config.password.current().expose_secret().to_owned(),
            },
            host,
            port,
        },
        vhost: config.vhost.clone(),
        query: AMQPQueryString {
            // A dead peer shows after twice the heartbeat.
            heartbeat: Some(u16::try_from(config.heartbeat.as_secs()).unwrap_or(u16::MAX)),
            frame_max: Some(FRAME_MAX),
            ..AMQPQueryString::default()
        },
    }
}

/// Reads the files anew for each connection, so that renewed ones need no restart. They were in
/// order at start; what replaced them may not be.
fn tls(config: &Config) -> Result<OwnedTLSConfig, OpenError> {
    let wrong = |variable: &str, path: &Path, what: String| {
        OpenError::Configuration(format!("{variable}: {} {what}", path.display()))
    };
    let read = |variable: &str, path: &Path| {
        std::fs::read(path).map_err(|e| wrong(variable, path, format!("cannot be read ({e})")))
    };
    let Variables { ca_file, cert_file, key_file, .. } = VARIABLES;
    let cert_chain = match &config.tls_ca_file {
        None => None,
        Some(path) => {
            let pem = read(ca_file, path)?;
            tls::authorities(&pem).map_err(|what| wrong(ca_file, path, what))?;
            // Only comments can be anything but ASCII.
            Some(String::from_utf8_lossy(&pem).into_owned())
        }
    };
    let identity = match (&config.tls_cert_file, &config.tls_key_file) {
        (Some(cert), Some(key)) => {
            let (pem, private) = (read(cert_file, cert)?, read(key_file, key)?);
            tls::check_key(&private).map_err(|what| wrong(key_file, key, what))?;
            tls::check_identity(&pem, &private).map_err(|what| wrong(cert_file, cert, what))?;
            Some(OwnedIdentity::PKCS8 { pem, key: private })
        }
        _ => None,
    };
    Ok(OwnedTLSConfig { identity, cert_chain })
}

#[cfg(test)]
mod tests {
    use rustls::{AlertDescription, CertificateError, Error as TlsError};

    use super::*;
    use crate::platform::config::{Config as Whole, Sources};

    fn judged(error: impl Into<Error>) -> OpenError {
        let config = Whole::load(&Sources::default()).expect("the defaults are good");
        not_opened(&config.rabbitmq, &error.into())
    }

    fn tls(error: TlsError) -> OpenError {
        judged(io::Error::new(io::ErrorKind::InvalidData, error))
    }

    #[test]
    fn tls_is_fatal_at_start_unless_a_certificate_can_be_renewed() {
        let unknown = tls(TlsError::InvalidCertificate(CertificateError::UnknownIssuer));
        assert!(matches!(unknown, OpenError::Configuration(_)), "{unknown:?}");
        let refused = tls(TlsError::AlertReceived(AlertDescription::CertificateRequired));
        assert!(matches!(refused, OpenError::Credentials(_)), "{refused:?}");
        let expired = tls(TlsError::InvalidCertificate(CertificateError::Expired));
        assert!(matches!(expired, OpenError::Unavailable(_)), "{expired:?}");
        for error in [unknown, refused, expired] {
            assert!(error.to_string().contains("RabbitMQ on localhost:5672"), "{error}");
        }
    }

    #[test]
    fn of_several_addresses_all_must_be_refused_for_good() {
        let [refused, untrusted, away] =
            [OpenError::Credentials, OpenError::Configuration, OpenError::Unavailable]
                .map(|error| error("why".to_owned()));
        let all =
            |errors: &[&OpenError]| at_no_address(errors.iter().map(|e| (*e).clone()).collect());
        assert_eq!(all(&[&refused]), refused);
        assert_eq!(all(&[&refused, &untrusted]), OpenError::Credentials("why; why".to_owned()));
        assert_eq!(all(&[&refused, &away]), OpenError::Unavailable("why; why".to_owned()));
    }

    #[test]
    fn unusable_settings_are_fatal_and_a_broker_that_hangs_up_is_waited_for() {
        let unusable = judged(ErrorKind::AuthProviderError("no such mechanism".to_owned()));
        let OpenError::Configuration(text) = &unusable else { panic!("{unusable:?}") };
        assert!(text.contains("RABBITMQ_HOST"), "{text}");
        for (kind, hint) in
            [(io::ErrorKind::ConnectionReset, true), (io::ErrorKind::ConnectionRefused, false)]
        {
            let failed = judged(io::Error::from(kind));
            let OpenError::Unavailable(text) = &failed else { panic!("{failed:?}") };
            assert_eq!(text.contains("RABBITMQ_TLS=true"), hint, "{text}");
        }
    }
}
