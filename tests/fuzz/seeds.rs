//! Inputs to begin with: the corpus of messages, and the shipped configuration in pieces.

use base64::Engine;
use serde_json::Value;
use vote_aggregator::config::keys;

use super::config::PART;

/// Every message of the corpus under `tests/data` that fits the decoder's limit about once.
pub fn messages() -> Vec<(String, Vec<u8>)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let corpus = include_str!("../data/messages.ndjson").lines().map(|line| {
        let entry: Value = serde_json::from_str(line).expect("one JSON object a line");
        let Value::String(name) = &entry["name"] else { panic!("no name: {line}") };
        let repeat = &entry["repeat"];
        let body = if let Some(encoded) = entry["body_base64"].as_str() {
            base64::engine::general_purpose::STANDARD.decode(encoded).expect("base64")
        } else if let Some(times) = repeat["times"].as_u64() {
            let unit = text(&repeat["unit"]).repeat(usize::try_from(times).expect("a count"));
            [text(&repeat["before"]), unit, text(&repeat["after"])].concat().into_bytes()
        } else {
            text(&entry["body"]).into_bytes()
        };
        (name.clone(), body)
    });
    corpus.filter(|(_, body)| body.len() <= 20_000).collect()
}

/// The shipped file, and for each setting one that only it is given in, by variable, flag and file.
pub fn configurations() -> Vec<(String, Vec<u8>)> {
    let shipped = include_str!("../../pipeline.toml");
    let mut seeds = vec![
        ("shipped".to_owned(), shipped.to_owned()),
        (
            "shipped-and-dotenv".to_owned(),
            format!("{shipped}# mine\n{PART}{}", include_str!("../../.env.example")),
        ),
        ("profile".to_owned(), format!("{PART}{PART}!pthroughput")),
    ];
    for (number, key) in (0_u8..).zip(keys::ALL) {
        let letter = char::from(b'!' + number);
        for value in [
            "1",
            "amqps",
            "postgres://u:p@h:1/d?sslmode=require",
            "true",
            "verify-full",
            "h,\u{e9}",
        ] {
            seeds.push((
                format!("{}-{}", key.variable, seeds.len()),
                format!(
                    "[default.{}]\n{} = \"{value}\"\n{PART}{}='{value}'\n{PART}{letter}e{value}{PART}{letter}f{value}{PART}{letter}r{value}",
                    key.section(), key.name(), key.variable,
                ),
            ));
        }
    }
    seeds.into_iter().map(|(name, seed)| (name, seed.into_bytes())).collect()
}
