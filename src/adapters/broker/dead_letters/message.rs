//! One dead letter: plain values to show, and the properties to publish it again with.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::adapters::broker::headers::{self, PERSISTENT};
use crate::adapters::broker::screen;
use crate::model::ports::DeliveryTag;

/// How often a quorum queue has taken the message back.
const DELIVERY_COUNT: &str = "x-delivery-count";
/// RabbitMQ routes a message to these queues, too.
const OTHER_RECIPIENTS: [&str; 2] = ["CC", "BCC"];
/// Set by the broker for the time in one queue.
const OF_THIS_QUEUE: [&str; 2] = [DELIVERY_COUNT, "x-acquired-count"];
/// About the dead-lettering: out of date after a replay, and RabbitMQ would go on counting in `x-death`.
const OF_DEAD_LETTERING: [&str; 5] = [
    "x-death",
    headers::SQLSTATE,
    headers::VOTE_HASH,
    headers::REFUSED_AT,
    headers::INVALID_PROPERTIES,
];
const DEAD_LETTERING_PREFIXES: [&str; 2] = ["x-first-death-", "x-last-death-"];

/// A message in the dead-letter queue.
pub struct DeadLetterMessage {
    /// Counts from 1, in the queue's order.
    pub tag: DeliveryTag,
    pub body: Vec<u8>,
    /// Headers as JSON: times as RFC 3339, bytes that are not UTF-8 as `{"base64": …}`.
    pub headers: BTreeMap<String, Value>,
    /// The other properties that are set, by AMQP's names; each text is 255 bytes at most.
    pub plain_properties: BTreeMap<&'static str, Value>,
    /// Whether its publisher's properties were valid AMQP.
    pub valid_properties: bool,
    properties: BasicProperties,
}

impl DeadLetterMessage {
    /// Returns a message that no broker delivered, for tests.
    pub fn new(body: impl Into<Vec<u8>>, headers: BTreeMap<String, Value>) -> Self {
        let properties = BasicProperties::default();
        let plain_properties = BTreeMap::new();
        let (body, valid_properties) = (body.into(), true);
        Self { tag: 0, body, headers, plain_properties, valid_properties, properties }
    }

    pub(super) fn delivered(tag: DeliveryTag, body: Vec<u8>, properties: BasicProperties) -> Self {
        let table = properties.headers().as_ref();
        let headers = table.map(|table| plain_table(table, 0).into_iter().collect());
        let headers: BTreeMap<String, Value> = headers.unwrap_or_default();
        let valid_properties = !screen::is_invalid(&properties)
            && headers.get(headers::INVALID_PROPERTIES) != Some(&Value::Bool(true));
        let plain_properties = plain_properties(&properties);
        Self { tag, body, headers, plain_properties, valid_properties, properties }
    }

    /// Returns the approximate size of body and headers in memory, in bytes.
    pub fn size(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + size(value));
        self.body.len() + headers.sum::<usize>()
    }

    /// Returns how often the queue has taken it back.
    pub(super) fn delivery_count(&self) -> i64 {
        self.headers.get(DELIVERY_COUNT).and_then(Value::as_i64).unwrap_or(0)
    }

    /// Returns the properties for a replay: its publisher's, and the number of replays.
    pub(super) fn replayed(&self, replays: u32) -> BasicProperties {
        let dropped = |name: &str| {
            OF_DEAD_LETTERING.contains(&name)
                || DEAD_LETTERING_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        };
        let mut headers = self.headers_without(dropped);
        headers.insert(headers::REPLAYS.into(), AMQPValue::LongLongInt(replays.into()));
        self.properties_with(headers)
    }

    /// Returns the properties for a copy in the dead-letter queue.
    pub(super) fn copied(&self) -> BasicProperties {
        let mut table = self.headers_without(|_| false);
        if !self.valid_properties {
            table.insert(headers::INVALID_PROPERTIES.into(), AMQPValue::Boolean(true));
        }
        self.properties_with(table)
    }

    fn headers_without(&self, dropped: impl Fn(&str) -> bool) -> FieldTable {
        let table = self.properties.headers().as_ref();
        let kept = table.into_iter().flat_map(FieldTable::inner).filter(|(name, _)| {
            let name = name.as_str();
            !OTHER_RECIPIENTS.contains(&name) && !OF_THIS_QUEUE.contains(&name) && !dropped(name)
        });
        let kept: BTreeMap<_, _> = kept.map(|(n, v)| (n.clone(), v.clone())).collect();
        kept.into()
    }

    /// Without the expiration, which would apply again, and the user id, which RabbitMQ compares with
    /// the connection's user.
    fn properties_with(&self, headers: FieldTable) -> BasicProperties {
        let mut kept = json!(self.properties.clone().with_headers(FieldTable::default()));
        for dropped in ["expiration", "user_id", "cluster_id"] {
            kept[dropped] = Value::Null;
        }
        let kept: BasicProperties = serde_json::from_value(kept).unwrap_or_default();
        kept.with_delivery_mode(PERSISTENT).with_headers(headers)
    }
}

fn plain_properties(properties: &BasicProperties) -> BTreeMap<&'static str, Value> {
    let text = |text: &Option<ShortString>| text.as_ref().map(|text| json!(text.as_str()));
    let all = [
        ("user_id", text(properties.user_id())),
        ("app_id", text(properties.app_id())),
        ("type", text(properties.kind())),
        ("content_type", text(properties.content_type())),
        ("content_encoding", text(properties.content_encoding())),
        ("message_id", text(properties.message_id())),
        ("correlation_id", text(properties.correlation_id())),
        ("reply_to", text(properties.reply_to())),
        ("expiration", text(properties.expiration())),
        ("timestamp", properties.timestamp().map(|at| plain(&AMQPValue::Timestamp(at), 0))),
        ("delivery_mode", properties.delivery_mode().map(|mode| json!(mode))),
        ("priority", properties.priority().map(|priority| json!(priority))),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// Deepest nesting that is shown. The screen lets through less; this recursion does not rely on it.
const MAX_DEPTH: usize = 64;

fn plain_table(table: &FieldTable, depth: usize) -> Map<String, Value> {
    table.inner().iter().map(|(name, value)| (name.to_string(), plain(value, depth))).collect()
}

fn plain(value: &AMQPValue, depth: usize) -> Value {
    let nested = depth + 1;
    match value {
        AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) if depth >= MAX_DEPTH => {
            json!("nested too deep")
        }
        AMQPValue::LongString(text) => bytes(text.as_bytes()),
        AMQPValue::ByteArray(array) => bytes(array.as_slice()),
        AMQPValue::FieldArray(array) => {
            array.as_slice().iter().map(|value| plain(value, nested)).collect()
        }
        AMQPValue::FieldTable(table) => Value::Object(plain_table(table, nested)),
        AMQPValue::Timestamp(seconds) => {
            let time = i64::try_from(*seconds).ok().map(OffsetDateTime::from_unix_timestamp);
            match time.and_then(|time| time.ok()?.format(&Rfc3339).ok()) {
                Some(text) => json!(text),
                None => json!(seconds),
            }
        }
        AMQPValue::Void => Value::Null,
        // Booleans, numbers and short strings: as serde has them, without the name of the type.
        scalar => match json!(scalar) {
            Value::Object(tagged) => {
                tagged.into_iter().next().map_or(Value::Null, |(_, value)| value)
            }
            other => other,
        },
    }
}

fn size(value: &Value) -> usize {
    size_of::<Value>()
        + match value {
            Value::String(text) => text.len(),
            Value::Array(array) => array.iter().map(size).sum(),
            Value::Object(map) => map.iter().map(|(name, value)| name.len() + size(value)).sum(),
            _ => 0,
        }
}

fn bytes(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({"base64": STANDARD.encode(bytes)}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    fn dead() -> DeadLetterMessage {
        let mut death = FieldTable::default();
        death.insert("reason".into(), long("rejected"));
        death.insert("time".into(), AMQPValue::Timestamp(1_763_000_000));
        let mut table = FieldTable::default();
        for (name, value) in [
            ("x-death", AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into())),
            ("x-first-death-reason", long("rejected")),
            ("x-last-death-queue", long("votes")),
            ("x-sqlstate", long("23514")),
            ("x-vote-hash", long("h")),
            ("x-refused-at", long("2026-11-25T04:00:00Z")),
            ("x-delivery-count", AMQPValue::LongLongInt(3)),
            ("x-replays", long("1")),
            ("x-published-at-us", AMQPValue::LongLongInt(7)),
            ("traceparent", long("00-1-2-01")),
            ("CC", AMQPValue::FieldArray(vec![long("elsewhere")].into())),
            ("own", AMQPValue::ByteArray(vec![0xff].into())),
        ] {
            table.insert(name.into(), value);
        }
        let properties = BasicProperties::default()
            .with_headers(table)
            .with_message_id("id".into())
            .with_priority(3)
            .with_timestamp(1_763_000_000)
            .with_expiration("1000".into())
            .with_user_id("publisher".into());
        DeadLetterMessage::delivered(1, b"body".to_vec(), properties)
    }

    fn names(properties: &BasicProperties) -> Vec<&str> {
        let headers = properties.headers().as_ref().expect("headers");
        headers.inner().keys().map(|name| name.as_str()).collect()
    }

    #[test]
    fn a_replay_has_its_publishers_headers_and_none_about_its_dead_lettering() {
        let replayed = dead().replayed(2);
        assert_eq!(names(&replayed), ["own", "traceparent", "x-published-at-us", "x-replays"]);
        assert_eq!(headers::replays(&replayed), 2);
        assert_eq!(*replayed.delivery_mode(), Some(PERSISTENT));
        assert_eq!(replayed.message_id().as_ref().map(|id| id.as_str()), Some("id"));
        assert_eq!((*replayed.priority(), *replayed.timestamp()), (Some(3), Some(1_763_000_000)));
        assert!(replayed.expiration().is_none() && replayed.user_id().is_none());
    }

    #[test]
    fn a_copy_keeps_the_reason_and_starts_a_new_delivery_count() {
        let copied = dead().copied();
        for kept in ["x-death", "x-sqlstate", "x-replays", "x-last-death-queue", "own"] {
            assert!(names(&copied).contains(&kept), "{kept}");
        }
        assert!(!names(&copied).iter().any(|name| ["x-delivery-count", "CC"].contains(name)));
    }

    #[test]
    fn a_copy_of_invalid_properties_is_known_as_one_and_a_replay_is_not() {
        let delivered = |properties| DeadLetterMessage::delivered(2, Vec::new(), properties);
        let mut message = dead();
        message.valid_properties = false;
        let copy = delivered(message.copied());
        let copy_of_it = delivered(copy.copied());
        assert!(!copy.valid_properties && !copy_of_it.valid_properties);
        assert!(delivered(copy.replayed(1)).valid_properties);
    }

    #[test]
    fn nesting_is_shown_to_a_bounded_depth() {
        let mut deep = AMQPValue::Void;
        for _ in 0..MAX_DEPTH + 10 {
            deep = AMQPValue::FieldArray(vec![deep].into());
        }
        let shown = plain(&deep, 0).to_string();
        assert_eq!(shown.matches('[').count(), MAX_DEPTH);
        assert!(shown.contains("nested too deep"), "{shown}");
    }

    #[test]
    fn headers_become_json() {
        let message = dead();
        assert_eq!(message.delivery_count(), 3);
        assert!((500..3_000).contains(&message.size()), "{}", message.size());
        let expected = json!({"user_id": "publisher", "message_id": "id", "expiration": "1000",
                              "priority": 3, "timestamp": "2025-11-13T02:13:20Z"});
        assert_eq!(json!(message.plain_properties), expected);
        let death = json!([{"reason": "rejected", "time": "2025-11-13T02:13:20Z"}]);
        assert_eq!(message.headers["x-death"], death);
        assert_eq!(message.headers["own"], json!({"base64": "/w=="}));
        let decimal = lapin::types::DecimalValue { scale: 2, value: 314 };
        assert_eq!(plain(&AMQPValue::DecimalValue(decimal), 0), json!({"scale": 2, "value": 314}));
        assert_eq!(plain(&AMQPValue::Boolean(true), 0), json!(true));
    }
}
