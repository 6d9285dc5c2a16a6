//! The corpus of message bodies under `tests/data`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Every message of the corpus, as `tests/data/README.md` describes it, with its body.
pub fn messages() -> impl Iterator<Item = (Value, Vec<u8>)> {
    include_str!("../data/messages.ndjson").lines().map(|line| {
        let entry: Value = serde_json::from_str(line).expect("one JSON object a line");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let repeat = &entry["repeat"];
        let body = if let Some(encoded) = entry["body_base64"].as_str() {
            STANDARD.decode(encoded).expect("base64")
        } else if let Some(times) = repeat["times"].as_u64() {
            let unit = text(&repeat["unit"]).repeat(usize::try_from(times).expect("a count"));
            [text(&repeat["before"]), unit, text(&repeat["after"])].concat().into_bytes()
        } else {
            entry["body"].as_str().expect("a body").as_bytes().to_vec()
        };
        (entry, body)
    })
}
