//! The corpus of message properties under `tests/data`: what only a client that was made for it can
//! send.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Flag of the headers, and of the other properties by their names.
const HEADERS: u16 = 1 << 13;
const STRINGS: [(&str, u16); 8] = [
    ("content_type", 1 << 15),
    ("content_encoding", 1 << 14),
    ("correlation_id", 1 << 10),
    ("reply_to", 1 << 9),
    ("message_id", 1 << 7),
    ("type", 1 << 5),
    ("app_id", 1 << 3),
    ("cluster_id", 1 << 2),
];

/// The properties of one message.
pub struct Hostile {
    pub name: String,
    /// `None`: whatever leads to the queue.
    pub routing_key: Option<Vec<u8>>,
    /// Property flags and properties, as they stand in a header frame.
    pub properties: Vec<u8>,
    /// Whether a vote with these properties is counted.
    pub is_counted: bool,
}

/// Reads the corpus.
///
/// # Panics
/// At a line that is not as `tests/data/README.md` has it.
pub fn corpus() -> Vec<Hostile> {
    include_str!("../data/properties.ndjson").lines().map(hostile).collect()
}

fn hostile(line: &str) -> Hostile {
    let entry: Value = serde_json::from_str(line).expect("one JSON object a line");
    let name = entry["name"].as_str().expect("a name").to_owned();
    let is_counted = match entry["verdict"].as_str() {
        Some("vote") => true,
        Some("properties") => false,
        _ => panic!("{name}: a verdict of the two"),
    };
    let bytes = |value: &Value| STANDARD.decode(value.as_str().expect("base64")).expect("base64");
    let headers = match (&entry["headers_base64"], &entry["nested"], &entry["repeat"]) {
        (Value::String(_), _, _) => Some(bytes(&entry["headers_base64"])),
        (_, nested @ Value::Object(_), _) => {
            let depth = usize::try_from(nested["depth"].as_u64().expect("a depth"));
            let kind = nested["type"].as_str().expect("A or F").as_bytes()[0];
            Some(deep(kind, depth.expect("a depth")))
        }
        (_, _, repeat @ Value::Object(_)) => {
            let times = usize::try_from(repeat["times"].as_u64().expect("times")).expect("times");
            let unit = bytes(&repeat["unit_base64"]).repeat(times);
            Some([bytes(&repeat["before_base64"]), unit, bytes(&repeat["after_base64"])].concat())
        }
        _ => None,
    };
    let headers = headers.map(|headers| [&length(headers.len())[..], &headers].concat());
    let mut fields = Vec::from_iter(headers.map(|field| (HEADERS, field)));
    for (property, flag) in STRINGS {
        if let Value::String(_) = entry["strings"][property] {
            let text = bytes(&entry["strings"][property]);
            fields.push((flag, [&[u8::try_from(text.len()).expect("short")], &*text].concat()));
        }
    }
    // In the order of the flags.
    fields.sort_by_key(|(flag, _)| std::cmp::Reverse(*flag));
    let flags = fields.iter().fold(0, |flags, (flag, _)| flags | flag);
    let mut properties = u16::to_be_bytes(flags).to_vec();
    properties.extend(fields.into_iter().flat_map(|(_, field)| field));
    let routing_key = entry["routing_key_base64"].is_string();
    let routing_key = routing_key.then(|| bytes(&entry["routing_key_base64"]));
    Hostile { name, routing_key, properties, is_counted }
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).expect("no frame is that long").to_be_bytes()
}

/// Properties with one header, a text of this length.
pub fn long_header(text: usize) -> Vec<u8> {
    let table = [&b"\x01aS"[..], &length(text), &vec![b'x'; text]].concat();
    [&HEADERS.to_be_bytes()[..], &length(table.len()), &table].concat()
}

/// The entries of a table with one header that nests so deep.
fn deep(kind: u8, depth: usize) -> Vec<u8> {
    let name: &[u8] = if kind == b'F' { b"\x01a" } else { b"" };
    let mut entries = b"\x04deep".to_vec();
    for level in (0..depth).rev() {
        if level + 1 < depth {
            entries.extend_from_slice(name);
        }
        entries.push(kind);
        entries.extend(length(level * (name.len() + 5)));
    }
    entries
}
