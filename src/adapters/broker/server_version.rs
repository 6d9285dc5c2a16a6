//! Which RabbitMQ answers, as it announces itself when a connection opens.

use std::fmt;

use lapin::protocol::AMQPClass;
use lapin::protocol::connection::AMQPMethod;
use lapin::types::AMQPValue;

/// RabbitMQ's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerVersion {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl ServerVersion {
    /// Quorum queues dead-letter at least once.
    pub const AT_LEAST_ONCE: Self = Self::new(3, 10);
    /// Quorum queues have a delivery limit (20) also where none is set.
    pub const LIMIT_BY_DEFAULT: Self = Self::new(4, 0);
    /// A consumer's `x-consumer-timeout` wins over what the queue and the broker have, a time-out cancels the
    /// consumer and closes no channel, and a `basic.nack` no longer counts towards a quorum queue's delivery
    /// limit.
    pub const CONSUMER_TIMEOUTS: Self = Self::new(4, 3);

    pub(crate) const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor, patch: 0 }
    }

    /// Reads the payload of `connection.start`. `None` for another product, or another method.
    pub(super) fn announced(payload: &[u8]) -> Option<Self> {
        let parsed = lapin::protocol::parse_class(payload);
        let Ok((_, AMQPClass::Connection(AMQPMethod::Start(start)))) = parsed else { return None };
        let text = |name| match start.server_properties.inner().get(name) {
            Some(AMQPValue::LongString(text)) => str::from_utf8(text.as_bytes()).ok(),
            _ => None,
        };
        (text("product")? == "RabbitMQ").then(|| Self::parse(text("version")?)).flatten()
    }

    fn parse(version: &str) -> Option<Self> {
        let mut numbers = version.split(['.', '-']).map(|number| number.parse().ok());
        let (major, minor) = (numbers.next()??, numbers.next()??);
        Some(Self { major, minor, patch: numbers.next().flatten().unwrap_or_default() })
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(product: &str, version: &str) -> Option<ServerVersion> {
        let text = |text: &str| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
        let entry =
            |name: &str, value| [&[name.len() as u8], name.as_bytes(), b"S", value].concat();
        let (product, version) = (text(product), text(version));
        let table = [entry("product", &product), entry("version", &version)].concat();
        let table = [&(table.len() as u32).to_be_bytes(), &table[..]].concat();
        let start = [0, 10, 0, 10, 0, 9];
        ServerVersion::announced(&[&start, &table[..], &text("PLAIN"), &text("en_US")].concat())
    }

    #[test]
    fn the_version_is_what_rabbitmq_announces() {
        for (text, shown) in [("4.3.6", "4.3.6"), ("3.10.8", "3.10.8"), ("4.10.0-rc.1", "4.10.0")] {
            let version = announced("RabbitMQ", text).expect("a version");
            assert_eq!(version.to_string(), shown);
            assert_eq!(version >= ServerVersion::CONSUMER_TIMEOUTS, text != "3.10.8");
        }
        assert_eq!(announced("RabbitMQ", "unknown"), None);
        assert_eq!(announced("LavinMQ", "4.3.6"), None, "its versions mean something else");
        assert_eq!(ServerVersion::announced(&[0, 10, 0, 30, 7, 255]), None);
    }
}
