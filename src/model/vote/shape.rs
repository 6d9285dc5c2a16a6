//! What an invalid message most likely is, by its first bytes or by the names of its fields: a hint at
//! the publisher's mistake, for people. It decides nothing.
//!
//! Architecture invariant: only texts of the program are returned, nothing of the message.

use serde_json::{Map, Value};

use super::{FIELDS, Reason, timestamp};

/// Formats with first bytes of their own.
const MAGIC: [(&[u8], &str); 21] = [
    (b"\x1f\x8b", "gzip: the publisher compresses"),
    (b"\x28\xb5\x2f\xfd", "zstd: the publisher compresses"),
    (b"\x04\x22\x4d\x18", "LZ4: the publisher compresses"),
    (b"\xff\x06\x00\x00sNaPpY", "Snappy: the publisher compresses"),
    (b"BZh", "bzip2: the publisher compresses"),
    (b"\xfd7zXZ\x00", "xz: the publisher compresses"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\xef\xbb\xbf", "a UTF-8 byte order mark before the text"),
    (b"\xff\xfe\x00\x00", "UTF-32 with a byte order mark"),
    (b"\x00\x00\xfe\xff", "UTF-32 with a byte order mark"),
    (b"\xff\xfe", "UTF-16 with a byte order mark"),
    (b"\xfe\xff", "UTF-16 with a byte order mark"),
    (b"{\x00\x00\x00", "UTF-32"),
    (b"\x00\x00\x00{", "UTF-32"),
    (b"{\x00", "UTF-16"),
    (b"\x00{", "UTF-16"),
    (b"\xac\xed\x00\x05", "Java serialisation: the publisher sends an object instead of JSON"),
    (b"\x00\x01\x00\x00\x00\xff\xff\xff\xff", ".NET BinaryFormatter instead of JSON"),
    (b"Obj\x01", "an Avro file instead of JSON"),
    (b"\x83h", "an Erlang term instead of JSON"),
    (b"\x83t", "an Erlang term instead of JSON"),
];

/// Returns what a message that was rejected for `reason` is, as far as that is cheap and certain.
pub(super) fn of(body: &[u8], reason: Reason, field: Option<&'static str>) -> Option<&'static str> {
    let object = || serde_json::from_slice::<Map<String, Value>>(body).ok();
    match reason {
        Reason::NotUtf8 | Reason::NotJson if body.is_empty() => Some("an empty body"),
        Reason::NotUtf8 => bytes(body).or_else(|| other_encoding(body)),
        Reason::NotJson => bytes(body).or_else(|| text(std::str::from_utf8(body).ok()?)),
        Reason::NotObject => not_object(&serde_json::from_slice(body).ok()?),
        Reason::MissingField => envelope(&object()?),
        Reason::WrongType => wrong_type(&object()?, field?),
        Reason::BadChoice => {
            let choice = object()?.get("choice")?.as_str()?.trim().to_lowercase();
            ["oui", "non"].contains(&&*choice).then_some("spelt with capitals or blanks")
        }
        Reason::BadTimestamp => Some(timestamp::broken_rule(object()?.get("timestamp")?.as_str()?)),
        _ => None,
    }
}

fn bytes(body: &[u8]) -> Option<&'static str> {
    let magic = MAGIC.iter().find(|(magic, _)| body.starts_with(magic)).map(|(_, what)| *what);
    magic.or_else(|| match body {
        // Deflate with a window of 32 KiB at most; both bytes are a multiple of 31.
        [0x78, level, ..] if (0x7800 + u16::from(*level)) % 31 == 0 && body.len() > 8 => {
            Some("zlib: the publisher compresses")
        }
        // A described type of AMQP 1.0, its descriptor a small or a whole ulong: sections 0x70 to 0x78.
        [0, 0x53, 0x70..=0x78, ..] | [0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x70..=0x78, ..] => {
            Some("a section of AMQP 1.0: the publisher's client encodes the body as a value")
        }
        [0, _, _, _, _, b'{', ..] => Some("a schema registry's header (5 bytes) before the JSON"),
        [0x80, 2..=5, .., b'.'] => Some("Python pickle instead of JSON"),
        // A map, and the length of its first name.
        [0x81..=0x8f, length @ 0xa1..=0xbf, rest @ ..] if is_name(rest, length & 0x1f) => {
            Some("MessagePack instead of JSON")
        }
        [0xa1..=0xb7 | 0xbf, length @ 0x61..=0x77, rest @ ..] if is_name(rest, length & 0x1f) => {
            Some("CBOR instead of JSON")
        }
        [a, b, c, d, .., 0] if u32::from_le_bytes([*a, *b, *c, *d]) as usize == body.len() => {
            Some("BSON instead of JSON")
        }
        _ if is_protobuf(body) => Some("what looks like Protocol Buffers instead of JSON"),
        _ => None,
    })
}

fn is_name(rest: &[u8], length: u8) -> bool {
    let name = rest.get(..usize::from(length)).unwrap_or_default();
    !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

/// Whether the whole body is fields of Protocol Buffers, at least three of them texts or messages;
/// hardly any text is.
fn is_protobuf(mut body: &[u8]) -> bool {
    let mut with_length = 0;
    while !body.is_empty() {
        match skip_field(&mut body) {
            Some(has_length) => with_length += u32::from(has_length),
            None => return false,
        }
    }
    with_length >= 3
}

/// Skips one field of Protocol Buffers; returns whether it is a text or a message.
fn skip_field(rest: &mut &[u8]) -> Option<bool> {
    let tag = varint(rest)?;
    let length = match tag & 7 {
        _ if !(1..536_870_912).contains(&(tag >> 3)) => return None,
        0 => varint(rest).map(|_| 0)?,
        1 => 8,
        2 => varint(rest)?,
        5 => 4,
        _ => return None,
    };
    *rest = rest.get(usize::try_from(length).ok()?..)?;
    Some(tag & 7 == 2)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// JSON by all its ASCII, with bytes in it that are not UTF-8.
fn other_encoding(body: &[u8]) -> Option<&'static str> {
    let trimmed = body.trim_ascii();
    let json = trimmed.starts_with(b"{") && trimmed.ends_with(b"}");
    json.then_some("JSON in another encoding, Latin-1 or Windows-1252 most likely")
}

fn text(text: &str) -> Option<&'static str> {
    let text = text.trim();
    if text.is_empty() {
        return Some("nothing but blanks");
    }
    let fields = FIELDS.iter().filter(|field| text.contains(**field)).count();
    let several = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let objects = several.take(2).take_while(|value| matches!(value, Ok(Value::Object(_)))).count();
    let parsed = serde_json::from_str::<Value>(text);
    Some(match text.as_bytes() {
        _ if objects == 2 => "several JSON objects: one message is one vote",
        [b'<', ..] => "XML or HTML instead of JSON",
        [b'e', b'y', b'J', ..] => "base64 of JSON, or a JSON Web Token",
        [b'a' | b'O', b':', b'0'..=b'9', ..] => "PHP serialisation instead of JSON",
        [b'{', b'\'', ..] => "single quotes: a dict of Python that was printed, not JSON",
        _ if text.contains('\0') => "binary data instead of JSON",
        _ if parsed.is_err_and(|error| error.is_eof()) => "JSON that ends too early: cut off?",
        [b'{', ..] => "an object that breaks the rules of JSON",
        _ if fields >= 2 && text.contains('=') && text.contains('&') => {
            "a form (application/x-www-form-urlencoded) instead of JSON"
        }
        _ if fields >= 2 && text.contains(',') && !text.contains('{') => "CSV instead of JSON",
        _ if fields >= 2 => "another format instead of JSON: YAML perhaps",
        _ => return None,
    })
}

fn not_object(value: &Value) -> Option<&'static str> {
    Some(match value {
        Value::Array(items) => match &items[..] {
            [Value::Array(_), Value::Object(_), ..] => "a task of Celery: arguments and options",
            [Value::Object(_), ..] => "an array of objects: one message is one vote",
            _ => "an array",
        },
        Value::String(text) if text.trim_start().starts_with('{') => {
            "a string that holds JSON: the publisher encodes twice"
        }
        Value::String(_) => "a string",
        Value::Number(_) => "a number",
        Value::Bool(_) => "true or false",
        Value::Null => "null",
        Value::Object(_) => return None,
    })
}

/// The envelopes of messaging libraries, by the names that make them what they are.
const ENVELOPES: [(&[&str], &str); 9] = [
    (&["messageType", "message"], "an envelope of MassTransit: the vote is below `message`"),
    (&["specversion", "type", "source"], "a CloudEvents envelope: the vote is below `data`"),
    (&["detail-type", "detail"], "an envelope of EventBridge: the vote is below `detail`"),
    (&["TopicArn", "Message"], "an envelope of SNS: the vote is a text below `Message`"),
    (&["schema", "payload"], "an envelope of Kafka Connect: the vote is below `payload`"),
    (&["task", "args"], "a task of Celery"),
    (&["displayName", "data"], "a job of Laravel"),
    (&["pattern", "data"], "an envelope of NestJS: the vote is below `data`"),
    (&["jsonrpc", "params"], "a JSON-RPC request: the vote is below `params`"),
];

fn envelope(object: &Map<String, Value>) -> Option<&'static str> {
    let known = ENVELOPES.iter().find(|(names, _)| names.iter().all(|n| object.contains_key(*n)));
    if let Some((_, what)) = known {
        return Some(what);
    }
    let plain = |name: &str| -> String {
        name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
    };
    let spelt = |name: &String| {
        let ours = FIELDS.iter().any(|field| plain(field) == plain(name));
        ours && !FIELDS.contains(&name.as_str())
    };
    let is_vote = |value: &Value| match value {
        Value::Object(inner) => inner.keys().any(|name| plain(name) == "votehash"),
        Value::String(text) => text.trim_start().starts_with('{') && text.contains("vote_hash"),
        _ => false,
    };
    if object.is_empty() {
        Some("an empty object")
    } else if object.values().any(is_vote) {
        Some("an envelope: the vote is below another field")
    } else if object.keys().any(spelt) {
        Some("a name is spelt another way: voteHash instead of vote_hash, say")
    } else if FIELDS.iter().all(|field| !object.contains_key(*field)) {
        Some("none of a vote's five fields is there: a message of another kind")
    } else {
        None
    }
}

fn wrong_type(object: &Map<String, Value>, field: &str) -> Option<&'static str> {
    Some(match object.get(field)? {
        Value::Null => "null instead of a string",
        Value::Bool(_) => "true or false instead of a string",
        Value::Number(_) if field == "timestamp" => "a number instead of a string: Unix time?",
        Value::Number(_) => "a number instead of a string",
        Value::Array(_) => "an array instead of a string",
        Value::Object(_) => "an object instead of a string",
        Value::String(_) => return None,
    })
}

#[cfg(test)]
mod tests;
