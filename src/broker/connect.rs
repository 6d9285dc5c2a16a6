//! One AMQP connection: address, TLS, heartbeat, and what a refusal means.

use std::path::Path;
use std::time::Duration;

use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Connection, ConnectionProperties, Error, ErrorKind};
use secrecy::ExposeSecret;
use tokio::time::timeout;

use crate::config::RabbitMq as Config;
use crate::ports::OpenError;

/// Longest wait for TCP, TLS and the AMQP handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens a connection that `purpose` names in the broker's listings.
pub(super) async fn open(config: &Config, purpose: &str) -> Result<Connection, OpenError> {
    let properties = ConnectionProperties::default()
        .with_connection_name(format!("vote-aggregator: {purpose}").into());
    let runtime = lapin::runtime::default_runtime().map_err(|error| refused(config, &error))?;
    let tls = tls(config)?;
    let connecting = Connection::connect_uri_with_config(uri(config), properties, tls, runtime);
    match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(refused(config, &error)),
        Err(_) => Err(OpenError::Unavailable(format!(
            "{} did not answer within {CONNECT_TIMEOUT:?}",
            describe(config)
        ))),
    }
}

/// Where and as whom we connect, for messages: never the password.
pub(super) fn describe(config: &Config) -> String {
    let Config { host, port, vhost, user, .. } = config;
    format!("RabbitMQ on {host}:{port}, virtual host {vhost:?}, user {user:?}")
}

/// What an error of the broker means for whoever wanted to open something.
pub(super) fn refused(config: &Config, error: &Error) -> OpenError {
    let told = format!("{error}; {}", describe(config));
    match amqp_code(error) {
        Some(403) => OpenError::Credentials(format!(
            "{told}. Check RABBITMQ_USER and RABBITMQ_PASSWORD (or RABBITMQ_URL) and the user's \
             permissions on the virtual host"
        )),
        Some(530) => OpenError::Configuration(format!(
            "{told}. Check RABBITMQ_VHOST and the user's access to it"
        )),
        _ => OpenError::Unavailable(told),
    }
}

/// The AMQP reply code, when the broker gave one.
pub(super) fn amqp_code(error: &Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(protocol) => Some(protocol.get_id()),
        _ => None,
    }
}

fn uri(config: &Config) -> AMQPUri {
    AMQPUri {
        scheme: if config.tls.is_some() { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo {
                username: config.user.clone(),
                password: config.password.expose_secret().to_owned(),
            },
            host: config.host.clone(),
            port: config.port,
        },
        vhost: config.vhost.clone(),
        query: AMQPQueryString {
            // A dead peer shows after twice the heartbeat.
            heartbeat: Some(u16::try_from(config.heartbeat.as_secs()).unwrap_or(u16::MAX)),
            ..AMQPQueryString::default()
        },
    }
}

fn tls(config: &Config) -> Result<OwnedTLSConfig, OpenError> {
    let Some(tls) = &config.tls else { return Ok(OwnedTLSConfig::default()) };
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| {
            OpenError::Configuration(format!("cannot read {}: {error}", path.display()))
        })
    };
    let cert_chain = match &tls.ca_file {
        None => None,
        Some(path) => match String::from_utf8(read(path)?) {
            Ok(pem) if pem.contains("-----BEGIN CERTIFICATE-----") => Some(pem),
            _ => {
                return Err(OpenError::Configuration(format!(
                    "RABBITMQ_TLS_CA_FILE: {} holds no certificate in PEM form",
                    path.display()
                )));
            }
        },
    };
    let identity = match (&tls.cert_file, &tls.key_file) {
        (Some(cert), Some(key)) => Some(OwnedIdentity::PKCS8 { pem: read(cert)?, key: read(key)? }),
        _ => None,
    };
    Ok(OwnedTLSConfig { identity, cert_chain })
}
