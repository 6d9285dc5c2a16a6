//! How RabbitMQ is reached.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::keys;
use super::password::Password;
use super::reader::Reader;
use super::values::{amqp_name, boolean, host, name, queue, whole};
use super::{rules, urls, values};

/// The port that AMQP over TLS has by convention.
const TLS_PORT: u16 = 5671;

/// Longest name AMQP can carry, in bytes.
const LONGEST_NAME: usize = 255;

/// RabbitMQ: address, login, queue and flow control.
#[derive(Clone, Debug)]
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
    /// Where messages go that cannot be counted; never the queue itself.
    pub dead_letter_queue: String,
    /// Deliveries the broker hands out ahead of acknowledgement: at least the batch size, or no
    /// batch could ever fill. Never 0, which AMQP takes for "without bound".
    pub prefetch: u16,
    /// AMQP heartbeat, whole seconds.
    pub heartbeat: Duration,
    /// The broker's `consumer_timeout`: it closes a channel that holds a delivery for longer.
    pub consumer_timeout: Duration,
    /// TLS, when the connection is encrypted.
    pub tls: Option<RabbitMqTls>,
    /// The management API, when it may be asked.
    pub management_url: Option<ManagementUrl>,
}

/// Certificates for RabbitMQ; the files held what they should when the configuration was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RabbitMqTls {
    /// Authorities that may sign the server's certificate, beside the system's.
    pub ca_file: Option<PathBuf>,
    /// This client's certificate; given together with the key or not at all.
    pub cert_file: Option<PathBuf>,
    /// The private key of this client's certificate.
    pub key_file: Option<PathBuf>,
}

/// The management API and the login for it, which is RabbitMQ's own unless the URL has one.
#[derive(Clone, Debug)]
pub struct ManagementUrl {
    /// `http` or `https`, without a login.
    pub url: Url,
    /// User name.
    pub user: String,
    /// Password.
    pub password: Password,
}

/// Reads the section; none when something in it is refused, which the reader notes.
pub(super) fn read(reader: &mut Reader, shared: &rules::Shared) -> Option<RabbitMq> {
    let host = reader.required(&keys::RABBITMQ_HOST, host);
    let user = reader.required(&keys::RABBITMQ_USER, name);
    let password = reader
        .password(&keys::RABBITMQ_PASSWORD, &keys::RABBITMQ_PASSWORD_FILE)
        .map(Option::unwrap_or_default);
    let vhost = reader.required(&keys::RABBITMQ_VHOST, amqp_name);
    let queue = reader.required(&keys::RABBITMQ_QUEUE, queue);
    let dead_letter_queue = dead_letter_queue(reader, queue.as_deref());
    let heartbeat = reader.required(&keys::RABBITMQ_HEARTBEAT_SECONDS, whole(1, 3600));
    let tls = tls(reader);
    let port = port(reader, matches!(tls, Some(Some(_))));
    let management = reader.optional(&keys::RABBITMQ_MANAGEMENT_URL, urls::management);

    let (user, password) = (user?, password?);
    let management_url = management?.map(|address| ManagementUrl {
        url: address.url,
        user: address.user.unwrap_or_else(|| user.clone()),
        password: address.password.unwrap_or_else(|| password.clone()),
    });
    Some(RabbitMq {
        host: host?,
        port: port?,
        user,
        password,
        vhost: vhost?,
        queue: queue?,
        dead_letter_queue: dead_letter_queue?,
        prefetch: shared.prefetch?,
        heartbeat: Duration::from_secs(heartbeat?),
        consumer_timeout: shared.consumer_timeout?,
        tls: tls?,
        management_url,
    })
}

/// The queue for what cannot be counted: unless set, the queue's name with `.dlq`.
fn dead_letter_queue(reader: &mut Reader, votes: Option<&str>) -> Option<String> {
    let key = &keys::RABBITMQ_DEAD_LETTER_QUEUE;
    let given = reader.optional(key, queue)?;
    let votes = votes?;
    let Some(given) = given else {
        let derived = format!("{votes}.dlq");
        if derived.len() > LONGEST_NAME {
            let queue = reader.find(&keys::RABBITMQ_QUEUE)?;
            let help = format!("shorten it, or set {} ({})", key.path, key.variable);
            let wrong = "leaves no room for .dlq within AMQP's 255 bytes".to_owned();
            reader.refuse(&keys::RABBITMQ_QUEUE, &queue, wrong, help);
            return None;
        }
        reader.derived(key, &keys::RABBITMQ_QUEUE);
        return Some(derived);
    };
    if given == votes {
        let found = reader.find(key)?;
        let wrong = format!(
            "is also {}: what is rejected would come back for ever",
            keys::RABBITMQ_QUEUE.path
        );
        reader.refuse(key, &found, wrong, "give the two queues different names".to_owned());
        return None;
    }
    Some(given)
}

/// Whether TLS is on, and its files. Options as for [`Reader::optional`].
fn tls(reader: &mut Reader) -> Option<Option<RabbitMqTls>> {
    let on = reader.required(&keys::RABBITMQ_TLS, boolean);
    let on = if contradicted(reader, on) { None } else { on };
    let ca_file = reader.authorities(&keys::RABBITMQ_TLS_CA_FILE);
    let [cert_file, key_file] = rules::certificate_and_key(
        reader,
        [&keys::RABBITMQ_TLS_CERT_FILE, &keys::RABBITMQ_TLS_KEY_FILE],
    );
    let on = on?;
    let (ca_file, cert_file, key_file) = (ca_file?, cert_file?, key_file?);
    if on {
        return Some(Some(RabbitMqTls { ca_file, cert_file, key_file }));
    }
    for key in
        [&keys::RABBITMQ_TLS_CA_FILE, &keys::RABBITMQ_TLS_CERT_FILE, &keys::RABBITMQ_TLS_KEY_FILE]
    {
        // Somebody who names a certificate believes that the connection is encrypted.
        if let Some(found) = reader.find(key) {
            let wrong = format!("has no effect, because {} is off", keys::RABBITMQ_TLS.path);
            let help = format!("set {}=true, or remove it", keys::RABBITMQ_TLS.variable);
            reader.refuse(key, &found, wrong, help);
            return None;
        }
    }
    Some(None)
}

/// Whether somebody set `rabbitmq.tls` to the opposite of what a URL's scheme says. Letting
/// either win in silence could send a password in clear.
fn contradicted(reader: &mut Reader, on: Option<bool>) -> bool {
    let key = &keys::RABBITMQ_TLS;
    let Some(url) = reader.find(&keys::RABBITMQ_URL) else {
        return false;
    };
    let Some(alone) = reader.set_alone(key) else {
        return false;
    };
    if urls::amqp(&url.text).is_err() {
        return false;
    }
    let scheme_says = url.text.trim().to_ascii_lowercase().starts_with("amqps");
    if on.is_none() || boolean(&alone.text) == Ok(scheme_says) {
        return false;
    }
    let scheme = if scheme_says { "amqps" } else { "amqp" };
    let wrong =
        format!("contradicts the scheme {scheme} of {} ({})", keys::RABBITMQ_URL.path, url.set_by);
    let help = format!("remove {}, or write the scheme that is meant", key.variable);
    reader.refuse(key, &alone, wrong, help);
    true
}

/// The port; with TLS the conventional other one, unless somebody set a port.
fn port(reader: &mut Reader, encrypted: bool) -> Option<u16> {
    let key = &keys::RABBITMQ_PORT;
    let port = reader.required(key, values::port(1))?;
    if encrypted && reader.find(key).is_some_and(|found| found.shipped) {
        reader.derived(key, &keys::RABBITMQ_TLS);
        return Some(TLS_PORT);
    }
    Some(port)
}
