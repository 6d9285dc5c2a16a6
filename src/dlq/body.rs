//! What of a letter may be shown: who voted is not to be read by who only looks why.
//!
//! By names that may be shown and not by names that may not: dead letters are those with misspelt
//! names, and `citizn_id` holds a citizen, too. A body that can't be read as JSON is not shown.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::broker::Letter;
use crate::vote::MAX_LAW_ID;

/// Stands for what is not shown.
const MASK: &str = "***";
/// Fields of a vote that name nobody.
const KNOWN: [&str; 4] = ["vote_hash", "law_id", "choice", "timestamp"];
/// Headers of RabbitMQ's and of ours.
const KNOWN_HEADERS: [&str; 9] = [
    "x-death",
    "x-sqlstate",
    "x-vote-hash",
    "x-refused-at",
    "x-replays",
    "x-delivery-count",
    "x-acquired-count",
    "x-published-at-us",
    "traceparent",
];
const KNOWN_HEADER_PREFIXES: [&str; 2] = ["x-first-death-", "x-last-death-"];
/// Properties that a publisher chooses for each message.
const OF_EACH_MESSAGE: [&str; 3] = ["message_id", "correlation_id", "reply_to"];
/// Longest text that is shown under a known name, in characters.
const LONGEST_TEXT: usize = 64;
/// Longest name that is shown.
const LONGEST_NAME: usize = 32;
/// A citizen's name within another text is found from this length on; a shorter one is in all texts.
const SHORTEST_PART: usize = 4;
/// Larger bodies are shown only as they are.
const LARGEST_MASKED: usize = 64 << 10;
/// No vote nests; what nests deeper is not shown.
const DEEPEST: usize = 32;

/// A body as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Masked JSON; or the text as it is, to be escaped by who prints it.
    Text(String),
    /// As it is, and not UTF-8.
    Bytes(Vec<u8>),
    /// Not shown, for this reason.
    Hidden(&'static str),
}

/// What of a body may be shown: everything if `reveal`, else JSON with the values of all but the
/// fields that name nobody masked.
pub fn show(body: &[u8], reveal: bool) -> Shown {
    match (std::str::from_utf8(body), reveal) {
        (Ok(text), true) => Shown::Text(text.to_owned()),
        (Err(_), true) => Shown::Bytes(body.to_vec()),
        (Err(_), false) => Shown::Hidden("not UTF-8, so that nothing in it can be masked"),
        (Ok(_), false) if body.len() > LARGEST_MASKED => Shown::Hidden("larger than 64 KiB"),
        (Ok(text), false) => match mask(text) {
            Some(masked) => Shown::Text(masked),
            None => Shown::Hidden("no JSON, so that nothing in it can be masked"),
        },
    }
}

/// The headers as they may be shown.
pub fn headers(letter: &Letter, reveal: bool) -> Vec<(String, Value)> {
    let body = std::str::from_utf8(&letter.body).unwrap_or_default();
    let names = Names::of(body).unwrap_or_default();
    let shown = letter.headers.iter().map(|(name, value)| {
        if reveal {
            return (name.clone(), value.clone());
        }
        let known = KNOWN_HEADERS.contains(&name.as_str())
            || KNOWN_HEADER_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        let harmless = known && !names.are_in(&value.to_string());
        let value = if harmless { value.clone() } else { MASK.into() };
        (if known { name.clone() } else { names.key(name).to_owned() }, value)
    });
    shown.collect()
}

/// The properties as they may be shown. What a publisher chooses for each message can be a citizen's
/// name, and is shown where the body tells which names those are.
pub fn properties(letter: &Letter, reveal: bool) -> Vec<(&'static str, Value)> {
    let names = std::str::from_utf8(&letter.body).ok().and_then(Names::of).unwrap_or_default();
    let shown = letter.plain_properties.iter().map(|(name, value)| {
        // A misspelt name hides who the citizen is from us, too.
        let known = !OF_EACH_MESSAGE.contains(name) || !names.0.is_empty();
        let harmless = known && !names.are_in(value.as_str().unwrap_or_default());
        (*name, if reveal || harmless { value.clone() } else { MASK.into() })
    });
    shown.collect()
}

/// The law of a body that is no vote, when it has one.
pub(super) fn law_id(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let Entries(entries) = serde_json::from_str(text).ok()?;
    let mut laws = entries.iter().filter(|(key, _)| key == "law_id");
    let (Some((_, raw)), None) = (laws.next(), laws.next()) else { return None };
    let law: String = serde_json::from_str(raw.get()).ok()?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    let fits = !law.is_empty() && law.len() <= MAX_LAW_ID && law.bytes().all(allowed);
    (fits && !Names::of(text)?.are_in(&law)).then_some(law)
}

fn mask(text: &str) -> Option<String> {
    let names = Names::of(text)?;
    let raw: &RawValue = serde_json::from_str(text).ok()?;
    let mut masked = String::new();
    write(raw, Place::Other, &names, &mut masked, 0)?;
    Some(masked)
}

/// Under which name a value stands.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Known,
    Citizen,
    Other,
}

impl Place {
    fn below(self, key: &str) -> Self {
        if self == Self::Citizen || tells_of_a_citizen(key) {
            Self::Citizen
        } else if KNOWN.contains(&key) {
            Self::Known
        } else {
            Self::Other
        }
    }

    fn in_array(self) -> Self {
        if self == Self::Citizen { Self::Citizen } else { Self::Other }
    }
}

fn tells_of_a_citizen(key: &str) -> bool {
    let letters = key.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase);
    letters.collect::<String>().contains("citizen")
}

/// What stands under a citizen's name somewhere in a body, and is to be shown nowhere.
#[derive(Default)]
struct Names(Vec<String>);

impl Names {
    /// `None` for what is no JSON that we can read.
    fn of(text: &str) -> Option<Self> {
        let raw: &RawValue = serde_json::from_str(text).ok()?;
        let mut names = Self::default();
        names.collect(raw, Place::Other, 0)?;
        Some(names)
    }

    fn collect(&mut self, raw: &RawValue, place: Place, depth: usize) -> Option<()> {
        match Kind::of(raw, depth)? {
            Kind::Object(entries) => {
                for (key, value) in entries {
                    self.collect(value, place.below(&key), depth + 1)?;
                }
            }
            Kind::Array(values) => {
                for value in values {
                    self.collect(value, place.in_array(), depth + 1)?;
                }
            }
            Kind::Text(name) if place == Place::Citizen && !name.is_empty() => self.0.push(name),
            Kind::Number(name) if place == Place::Citizen => self.0.push(name.to_owned()),
            _ => {}
        }
        Some(())
    }

    fn are_in(&self, text: &str) -> bool {
        let found = |name: &String| {
            text == name || (name.len() >= SHORTEST_PART && text.contains(name.as_str()))
        };
        self.0.iter().any(found)
    }

    /// A name of a field; one that looks like data is not shown.
    fn key<'k>(&self, key: &'k str) -> &'k str {
        let like_a_name = |byte: u8| byte.is_ascii_alphabetic() || b"_-.".contains(&byte);
        let fits = key.len() <= LONGEST_NAME && key.bytes().all(like_a_name);
        if KNOWN.contains(&key) || (fits && !self.are_in(key)) { key } else { MASK }
    }
}

fn write(
    raw: &RawValue,
    place: Place,
    names: &Names,
    out: &mut String,
    depth: usize,
) -> Option<()> {
    let quoted = |text: &str| serde_json::to_string(text).ok();
    match Kind::of(raw, depth)? {
        Kind::Object(entries) => {
            out.push('{');
            for (index, (key, value)) in entries.into_iter().enumerate() {
                out.push_str(if index == 0 { "" } else { "," });
                out.push_str(&quoted(names.key(&key))?);
                out.push(':');
                write(value, place.below(&key), names, out, depth + 1)?;
            }
            out.push('}');
        }
        Kind::Array(values) => {
            out.push('[');
            for (index, value) in values.into_iter().enumerate() {
                out.push_str(if index == 0 { "" } else { "," });
                write(value, place.in_array(), names, out, depth + 1)?;
            }
            out.push(']');
        }
        Kind::Text(text) => {
            let short = text.chars().count() <= LONGEST_TEXT;
            let shown = place == Place::Known && short && !names.are_in(&text);
            // That it is empty is why it is here.
            let shown = shown || text.is_empty();
            out.push_str(&quoted(if shown { &text } else { MASK })?);
        }
        Kind::Number(text) => {
            let short = text.len() <= LONGEST_TEXT;
            let shown = place == Place::Known && short && !names.are_in(text);
            out.push_str(if shown { text } else { "\"***\"" });
        }
        Kind::Literal(text) => out.push_str(text),
    }
    Some(())
}

/// One value, not yet read further.
enum Kind<'a> {
    Object(Vec<(String, &'a RawValue)>),
    Array(Vec<&'a RawValue>),
    Text(String),
    Number(&'a str),
    /// `true`, `false`, `null`: name nobody.
    Literal(&'a str),
}

impl<'a> Kind<'a> {
    fn of(raw: &'a RawValue, depth: usize) -> Option<Self> {
        let text = raw.get();
        if depth > DEEPEST {
            return None;
        }
        Some(match text.as_bytes().first()? {
            b'{' => Self::Object(serde_json::from_str::<Entries<'a>>(text).ok()?.0),
            b'[' => Self::Array(serde_json::from_str(text).ok()?),
            b'"' => Self::Text(serde_json::from_str(text).ok()?),
            b't' | b'f' | b'n' => Self::Literal(text),
            b'-' | b'0'..=b'9' => Self::Number(text),
            _ => return None,
        })
    }
}

/// An object with each of its names as often as it stands there; a map would keep the last.
struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;

        impl<'de> Visitor<'de> for Each {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(Each)
    }
}

#[cfg(test)]
mod tests;
