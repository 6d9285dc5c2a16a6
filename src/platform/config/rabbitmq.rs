//! How RabbitMQ is reached.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::Url;

use super::hosts::{Hosts, ServerAddress};
use super::password::Password;
use super::values::{
    Heartbeat, Seconds, Whole, amqp_name, authorities, boolean, cell, file, hosts, management_url,
    name, private_key, queue,
};
use crate::model::cell::Cell;

/// RabbitMQ: address, login, queue, flow control and encryption. The files were valid when the
/// configuration was read.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RabbitMq {
    /// One host, or the addresses of the nodes of one cluster.
    #[serde(deserialize_with = "hosts")]
    pub host: Hosts,
    /// TCP port of hosts without a port of their own.
    #[serde(deserialize_with = "Whole::<1, 65_535>::deserialize")]
    pub port: u16,
    /// User name.
    #[serde(deserialize_with = "name")]
    pub user: String,
    /// Password.
    #[serde(default)]
    pub password: Password,
    /// The file that holds the password instead.
    #[serde(default, deserialize_with = "file", skip_serializing)]
    pub(super) password_file: Option<PathBuf>,
    /// Virtual host.
    #[serde(deserialize_with = "amqp_name")]
    pub vhost: String,
    /// The queue the votes are consumed from.
    #[serde(deserialize_with = "queue")]
    pub queue: String,
    /// Where messages go that cannot be counted; never the queue itself. Unless set, the queue's
    /// name with `.dlq`.
    #[serde(default, deserialize_with = "queue")]
    pub dead_letter_queue: String,
    /// The cell that queue and database belong to; `None`: all votes come into this database.
    #[serde(default, deserialize_with = "cell")]
    pub cell: Option<Cell>,
    /// Deliveries the broker hands out ahead of acknowledgement: at least the batch size, or no
    /// batch could ever fill. Never 0, which AMQP takes for "without bound".
    #[serde(rename = "prefetch_count", deserialize_with = "Whole::<0, 65_535>::deserialize")]
    pub prefetch: u16,
    /// AMQP heartbeat, whole seconds.
    #[serde(rename = "heartbeat_seconds", with = "Heartbeat")]
    pub heartbeat: Duration,
    /// The broker's `consumer_timeout`: it closes a channel that holds a delivery for longer.
    #[serde(rename = "consumer_timeout_seconds", with = "Seconds::<1_000, 31_536_000_000>")]
    pub consumer_timeout: Duration,
    /// Whether the connection is encrypted.
    #[serde(deserialize_with = "boolean")]
    pub tls: bool,
    /// Authorities that may sign the server's certificate, beside the system's. This and the next two
    /// are `None` without TLS.
    #[serde(default, deserialize_with = "authorities")]
    pub tls_ca_file: Option<PathBuf>,
    /// This client's certificate; given together with the key or not at all.
    #[serde(default, deserialize_with = "file")]
    pub tls_cert_file: Option<PathBuf>,
    /// The private key of this client's certificate.
    #[serde(default, deserialize_with = "private_key")]
    pub tls_key_file: Option<PathBuf>,
    /// The management API, if it is set.
    #[serde(default, deserialize_with = "management_url")]
    pub management_url: Option<ManagementUrl>,
}

impl RabbitMq {
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
