//! The headers and properties that the service reads and writes.

use std::time::{Duration, SystemTime};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::long_string;
use crate::model::ports::TraceContext;

/// Microseconds since the Unix epoch at which the message was published.
const PUBLISHED_AT: &str = "x-published-at-us";
/// Votes may wait for an outage to end, and dead letters for an operator.
const OLDEST: Duration = Duration::from_secs(30 * 24 * 3_600);
/// A publisher's clock may be ahead by so much.
const CLOCKS_DIFFER: Duration = Duration::from_secs(3_600);
/// W3C trace context.
const TRACEPARENT: &str = "traceparent";
/// Why PostgreSQL refused a vote that the service dead-lettered.
pub(super) const SQLSTATE: &str = "x-sqlstate";
/// The vote_hash of such a vote.
pub(super) const VOTE_HASH: &str = "x-vote-hash";
/// When that was, as RFC 3339.
pub(super) const REFUSED_AT: &str = "x-refused-at";
/// On a copy of a dead letter whose properties were invalid: the copy's own are valid.
pub(super) const INVALID_PROPERTIES: &str = "x-invalid-properties";
/// How often a message was put back from the dead-letter queue by `dlq replay`.
pub(super) const REPLAYS: &str = "x-replays";

/// How often a quorum queue got the message back, written by the broker.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// AMQP's delivery mode for messages that survive a restart of the broker.
pub(super) const PERSISTENT: u8 = 2;

/// Notes that the message is published now.
pub(super) fn stamp(headers: &mut FieldTable) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if let Ok(micros) = i64::try_from(now.as_micros()) {
        headers.insert(PUBLISHED_AT.into(), AMQPValue::LongLongInt(micros));
    }
}

/// When the message was published: by the header, to the microsecond; by the `timestamp` property,
/// to the second, when there is no such header or it holds no plausible time.
pub(super) fn published_at(properties: &BasicProperties) -> Option<SystemTime> {
    let header = header(properties, PUBLISHED_AT).and_then(whole);
    let header = header.map(Duration::from_micros).and_then(recent);
    let property = || properties.timestamp().map(Duration::from_secs).and_then(recent);
    header.or_else(property)
}

fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

/// The time, if a message in the queue can have it. A single one in seconds or milliseconds where
/// microseconds belong, or the reverse, would spoil the sum and the quantiles of the latency.
fn recent(since_epoch: Duration) -> Option<SystemTime> {
    let at = SystemTime::UNIX_EPOCH.checked_add(since_epoch)?;
    let now = SystemTime::now();
    let past = now.duration_since(at).unwrap_or_default();
    let future = at.duration_since(now).unwrap_or_default();
    (past <= OLDEST && future <= CLOCKS_DIFFER).then_some(at)
}

/// The time, as headers have it.
pub(super) fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}

/// How often an operator put the message back from the dead-letter queue, at most [`u32::MAX`].
pub(super) fn replays(properties: &BasicProperties) -> u32 {
    count(properties, REPLAYS)
}

/// How often the message was given back, as far as that counts towards the queue's delivery limit.
pub(super) fn delivery_count(properties: &BasicProperties) -> u32 {
    count(properties, DELIVERY_COUNT)
}

fn count(properties: &BasicProperties, name: &str) -> u32 {
    let count = header(properties, name).and_then(whole);
    count.map_or(0, |count| u32::try_from(count).unwrap_or(u32::MAX))
}

/// Makes the message part of a trace.
pub(super) fn join(headers: &mut FieldTable, trace: &TraceContext) {
    if let Some(traceparent) = trace.traceparent() {
        headers.insert(TRACEPARENT.into(), long_string(traceparent));
    }
}

/// The trace that the message is part of.
pub(super) fn trace(properties: &BasicProperties) -> TraceContext {
    let text = header(properties, TRACEPARENT).and_then(text);
    text.map(TraceContext::new).unwrap_or_default()
}

/// A positive whole number, whichever of AMQP's types a client library chose for it.
fn whole(value: &AMQPValue) -> Option<u64> {
    let number = match value {
        AMQPValue::LongLongInt(number) => u64::try_from(*number).ok(),
        AMQPValue::LongInt(number) => u64::try_from(*number).ok(),
        AMQPValue::LongUInt(number) => Some((*number).into()),
        AMQPValue::Timestamp(number) => Some(*number),
        text_or_other => text(text_or_other)?.parse().ok(),
    };
    number.filter(|number| *number > 0)
}

fn text(value: &AMQPValue) -> Option<&str> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten seconds ago.
    fn second() -> u64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.expect("after 1970").as_secs() - 10
    }

    fn micros(header: Option<AMQPValue>, timestamp: Option<u64>) -> Option<u128> {
        let mut properties = BasicProperties::default();
        if let Some(value) = header {
            let mut headers = FieldTable::default();
            headers.insert(PUBLISHED_AT.into(), value);
            properties = properties.with_headers(headers);
        }
        if let Some(seconds) = timestamp {
            properties = properties.with_timestamp(seconds);
        }
        let at = published_at(&properties)?;
        Some(at.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_micros())
    }

    #[test]
    fn the_header_wins_over_the_property_unless_it_cannot_be_the_time() {
        let second = second();
        let exact = i64::try_from(second * 1_000_000 + 123_456).expect("a time");
        let header = Some(AMQPValue::LongLongInt(exact));
        assert_eq!(micros(header, Some(second - 7)), Some(exact as u128));
        for odd in [
            AMQPValue::LongLongInt(-1),
            AMQPValue::LongLongInt(0),
            AMQPValue::Boolean(true),
            AMQPValue::LongString("yesterday".into()),
            AMQPValue::Void,
            // Seconds, milliseconds and nanoseconds where microseconds belong.
            AMQPValue::Timestamp(second),
            AMQPValue::Timestamp(second * 1_000),
            AMQPValue::Timestamp(second * 1_000_000_000),
            AMQPValue::Timestamp(u64::MAX),
        ] {
            assert_eq!(micros(Some(odd.clone()), None), None, "{odd:?}");
            let property = micros(Some(odd), Some(second));
            assert_eq!(property, Some(u128::from(second) * 1_000_000));
        }
        for odd in [0, 1, second * 1_000, second + 7_200, second - 31 * 86_400, u64::MAX] {
            assert_eq!(micros(None, Some(odd)), None, "{odd}");
        }
        for good in [second + 60, second - 29 * 86_400] {
            assert!(micros(None, Some(good)).is_some(), "{good}");
        }
    }

    #[test]
    fn a_stamp_is_read_back_as_now() {
        let mut headers = FieldTable::default();
        stamp(&mut headers);
        let read = published_at(&BasicProperties::default().with_headers(headers));
        let age = read.expect("a time").elapsed().expect("in the past");
        assert!(age < Duration::from_secs(5), "{age:?}");
    }
}
