//! Inputs to begin with: the corpus of messages, and the shipped configuration in pieces.

use vote_aggregator::platform::config::keys;

use super::config::PART;
use super::{corpus, hostile};

/// A name and an input.
pub type Seed = (String, Vec<u8>);

/// Every message of the corpus under `tests/data` that fits the decoder's limit about once.
pub fn messages() -> Vec<(String, Vec<u8>)> {
    let short = corpus::messages().filter(|(_, body)| body.len() <= 20_000);
    short.map(|(entry, body)| (entry["name"].as_str().expect("a name").to_owned(), body)).collect()
}

/// The corpus of properties, and others that a broker would not take from a publisher.
pub fn properties() -> Vec<(String, Vec<u8>)> {
    let input = |key: &[u8], properties: &[u8]| {
        [&[u8::try_from(key.len()).expect("short")], key, properties].concat()
    };
    let corpus = hostile::corpus().into_iter().map(|entry| {
        let key = entry.routing_key.unwrap_or_default();
        (entry.name, input(&key, &entry.properties))
    });
    let refused: [(&str, &[u8]); 6] = [
        ("unknown-type", b"\x20\0\0\0\0\x03\x01aZ"),
        ("overrun-table", b"\x20\0\xff\xff\xff\xff"),
        ("overrun-value", b"\x20\0\0\0\0\x08\x01aS\0\0\xff\xff\0"),
        ("trailing", b"\0\0trailing"),
        ("cut-off", b"\x80\0\x09text"),
        ("no-flags", b"\0"),
    ];
    let refused = refused.map(|(name, properties)| (name.to_owned(), input(b"", properties)));
    corpus.chain(refused).collect()
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
        let setting = char::from(b'!' + number);
        let url = "postgres://u:p@h:1/d?sslmode=require";
        for value in ["1", "amqps", url, "true", "verify-full", "h,\u{e9}"] {
            seeds.push((
                format!("{}-{}", key.variable, seeds.len()),
                format!(
                    "[default.{}]\n{} = \"{value}\"\n{PART}{}='{value}'\n{PART}{setting}e{value}{PART}{setting}f{value}{PART}{setting}r{value}",
                    key.section(), key.name(), key.variable,
                ),
            ));
        }
    }
    seeds.into_iter().map(|(name, seed)| (name, seed.into_bytes())).collect()
}
