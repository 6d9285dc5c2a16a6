//! How RabbitMQ is reached.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use url::Url;

use super::password::Password;
use super::reader::Reader;
use super::values::{amqp_name, as_seconds, boolean, host, plain, queue, seconds, whole};
use super::{keys, urls};
use crate::platform::tls;

/// RabbitMQ: address, login, queue, flow control and encryption. The files were valid when the
/// configuration was read.
#[derive(Clone, Debug, Serialize)]
pub struct RabbitMq {
    /// Host name or IP address, an IPv6 address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// User name.
    pub user: String,
    /// Password.
    pub password: Password,
    /// Virtual host.
    pub vhost: String,
    /// The queue the votes are consumed from.
    pub queue: String,
    /// Where messages go that cannot be counted; never the queue itself. Unless set, the queue's
    /// name with `.dlq`.
    pub dead_letter_queue: String,
    /// Deliveries the broker hands out ahead of acknowledgement: at least the batch size, or no
    /// batch could ever fill. Never 0, which AMQP takes for "without bound".
    #[serde(rename = "prefetch_count")]
    pub prefetch: u16,
    /// AMQP heartbeat, whole seconds.
    #[serde(rename = "heartbeat_seconds", serialize_with = "as_seconds")]
    pub heartbeat: Duration,
    /// The broker's `consumer_timeout`: it closes a channel that holds a delivery for longer.
    #[serde(rename = "consumer_timeout_seconds", serialize_with = "as_seconds")]
    pub consumer_timeout: Duration,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// Authorities that may sign the server's certificate, beside the system's. This and the next two
    /// are `None` without TLS.
    pub tls_ca_file: Option<PathBuf>,
    /// This client's certificate; given together with the key or not at all.
    pub tls_cert_file: Option<PathBuf>,
    /// The private key of this client's certificate.
    pub tls_key_file: Option<PathBuf>,
    /// The management API, if it is set.
    pub management_url: Option<ManagementUrl>,
}

impl RabbitMq {
    pub(super) fn read(from: &mut Reader) -> Self {
        let user = from.get(&keys::RABBITMQ_USER, plain);
        let password = from
            .password(&keys::RABBITMQ_PASSWORD, &keys::RABBITMQ_PASSWORD_FILE)
            .unwrap_or_default();
        let heartbeat = from.get(&keys::RABBITMQ_HEARTBEAT_SECONDS, whole(1..=3_600));
        let consumer_timeout = &keys::RABBITMQ_CONSUMER_TIMEOUT_SECONDS;
        Self {
            host: from.get(&keys::RABBITMQ_HOST, host),
            port: from.get(&keys::RABBITMQ_PORT, whole(1..=65_535)),
            vhost: from.get(&keys::RABBITMQ_VHOST, amqp_name),
            queue: from.get(&keys::RABBITMQ_QUEUE, queue),
            dead_letter_queue: from
                .get_if_set(&keys::RABBITMQ_DEAD_LETTER_QUEUE, queue)
                .unwrap_or_default(),
            prefetch: from.get(&keys::RABBITMQ_PREFETCH_COUNT, whole(0..=65_535)),
            heartbeat: Duration::from_secs(heartbeat),
            consumer_timeout: from.get(consumer_timeout, seconds(1.0..=31_536_000.0)),
            tls: from.get(&keys::RABBITMQ_TLS, boolean),
            tls_ca_file: from.pem(&keys::RABBITMQ_TLS_CA_FILE, tls::authorities),
            tls_cert_file: from.file(&keys::RABBITMQ_TLS_CERT_FILE),
            tls_key_file: from.pem(&keys::RABBITMQ_TLS_KEY_FILE, tls::check_key),
            management_url: from.get_if_set(&keys::RABBITMQ_MANAGEMENT_URL, |text| {
                urls::management(text, &user, &password)
            }),
            user,
            password,
        }
    }
}

/// The management API and the login for it, which is RabbitMQ's own unless the URL has one.
#[derive(Clone, Debug, Serialize)]
#[serde(into = "String")]
pub struct ManagementUrl {
    /// `http` or `https`, without a login.
    pub url: Url,
    /// User name.
    pub user: String,
    /// Password.
    pub password: Password,
}

impl From<ManagementUrl> for String {
    fn from(management: ManagementUrl) -> Self {
        management.url.into()
    }
}
