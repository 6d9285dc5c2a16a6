//! The parts of a message that may be shown: finding the reason must not reveal who voted.
//!
//! An allow list of fields and not a list of fields to hide: dead letters have misspelt names, and
//! `citizn_id` holds a citizen, too. A body that is not JSON is not shown.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::adapters::broker::DeadLetterMessage;
use crate::model::vote::MAX_LAW_ID;

/// Replaces what is not shown.
const MASK: &str = "***";
/// Fields of a vote that do not identify the citizen.
const KNOWN: [&str; 4] = ["vote_hash", "law_id", "choice", "timestamp"];
/// Headers that RabbitMQ or this service writes.
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
/// Longest text that is shown in a known field, in characters.
const MAX_TEXT: usize = 64;
/// Longest field name that is shown.
const MAX_FIELD_NAME: usize = 32;
/// From this length on, a citizen's name is also searched for within other texts.
const MIN_PART: usize = 4;
/// Larger bodies are shown only unmasked.
const MAX_MASKED: usize = 64 << 10;
/// Votes do not nest; what nests deeper is not shown.
const MAX_DEPTH: usize = 32;

/// A body as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Masked JSON; or the text as it is, to be escaped when printed.
    Text(String),
    /// As it is, and not UTF-8.
    Bytes(Vec<u8>),
    /// Not shown, for this reason.
    Hidden(&'static str),
}

/// Returns what of a body may be shown: everything if `reveal`, else JSON with all values masked but
/// those of the fields that do not identify the citizen.
pub fn show(body: &[u8], reveal: bool) -> Shown {
    match (std::str::from_utf8(body), reveal) {
        (Ok(text), true) => Shown::Text(text.to_owned()),
        (Err(_), true) => Shown::Bytes(body.to_vec()),
        (Err(_), false) => Shown::Hidden("not UTF-8, so that nothing in it can be masked"),
        (Ok(_), false) if body.len() > MAX_MASKED => Shown::Hidden("larger than 64 KiB"),
        (Ok(_), false) => mask(body)
            .map_or(Shown::Hidden("not JSON, so that nothing in it can be masked"), Shown::Text),
    }
}

/// Returns the headers as they may be shown.
pub fn headers(message: &DeadLetterMessage, reveal: bool) -> Vec<(String, Value)> {
    let names = Names::of(&message.body).unwrap_or_default();
    let shown = message.headers.iter().map(|(name, value)| {
        let known = KNOWN_HEADERS.contains(&name.as_str())
            || KNOWN_HEADER_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        let show_name = reveal || known || names.allow_field(name);
        let show_value = reveal || (known && !names.are_in(&value.to_string()));
        let name = if show_name { name } else { MASK };
        (name.to_owned(), if show_value { value.clone() } else { MASK.into() })
    });
    shown.collect()
}

/// Returns the properties as they may be shown. One that a publisher chooses for each message can be
/// a citizen's name, and is shown only where the body says what those are.
pub fn properties(message: &DeadLetterMessage, reveal: bool) -> Vec<(&'static str, Value)> {
    let names = Names::of(&message.body).unwrap_or_default();
    let shown = message.plain_properties.iter().map(|(name, value)| {
        // A misspelt field name hides from us, too, who the citizen is.
        let known = !OF_EACH_MESSAGE.contains(name) || !names.0.is_empty();
        let harmless = known && !names.are_in(value.as_str().unwrap_or_default());
        (*name, if reveal || harmless { value.clone() } else { MASK.into() })
    });
    shown.collect()
}

/// Returns the law_id of a body that is not a vote, if it has a valid one.
pub(super) fn law_id(body: &[u8]) -> Option<String> {
    let Entries(entries) = serde_json::from_slice(body).ok()?;
    let mut laws = entries.iter().filter(|(key, _)| key == "law_id");
    let (Some((_, raw)), None) = (laws.next(), laws.next()) else { return None };
    let law: String = serde_json::from_str(raw.get()).ok()?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    let fits = !law.is_empty() && law.len() <= MAX_LAW_ID && law.bytes().all(allowed);
    (fits && !Names::of(body)?.are_in(&law)).then_some(law)
}

fn mask(body: &[u8]) -> Option<String> {
    let names = Names::of(body)?;
    let json = serde_json::from_slice(body).ok()?;
    rewrite(json, Place::Other, 0, &mut |place, text| match place {
        Place::Name => names.allow_field(text),
        Place::Known if text.chars().count() <= MAX_TEXT && !names.are_in(text) => true,
        // An empty one may be why the message is here.
        _ => text.is_empty(),
    })
}

/// Where a text or number stands.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// It is itself a field's name.
    Name,
    /// In one of the fields in [`KNOWN`].
    Known,
    /// In or below a field about a citizen.
    Citizen,
    Other,
}

impl Place {
    fn below(self, field: &str) -> Self {
        let name = field.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase);
        if self == Self::Citizen || name.collect::<String>().contains("citizen") {
            Self::Citizen
        } else if KNOWN.contains(&field) {
            Self::Known
        } else {
            Self::Other
        }
    }
}

/// Rewrites JSON with `***` for the names, texts and numbers that `shows` refuses; `true`, `false`
/// and `null` are always shown. `None` for what is not JSON or nests too deep.
fn rewrite(
    json: &RawValue,
    place: Place,
    depth: usize,
    shows: &mut dyn FnMut(Place, &str) -> bool,
) -> Option<String> {
    let raw = json.get();
    let shown = match raw.as_bytes().first()? {
        _ if depth > MAX_DEPTH => return None,
        b'{' => {
            let Entries(entries) = serde_json::from_str(raw).ok()?;
            let fields = entries.into_iter().map(|(field, value)| {
                let name = Value::from(if shows(Place::Name, &field) { &field } else { MASK });
                let value = rewrite(value, place.below(&field), depth + 1, shows)?;
                Some(format!("{name}:{value}"))
            });
            return Some(format!("{{{}}}", fields.collect::<Option<Vec<_>>>()?.join(",")));
        }
        b'[' => {
            let values: Vec<&RawValue> = serde_json::from_str(raw).ok()?;
            let place = if place == Place::Citizen { place } else { Place::Other };
            let values = values.into_iter().map(|value| rewrite(value, place, depth + 1, shows));
            return Some(format!("[{}]", values.collect::<Option<Vec<_>>>()?.join(",")));
        }
        b't' | b'f' | b'n' => true,
        b'"' => shows(place, &serde_json::from_str::<String>(raw).ok()?),
        _ => shows(place, raw),
    };
    Some(if shown { raw.to_owned() } else { format!("\"{MASK}\"") })
}

/// Texts and numbers in fields about a citizen, which are shown nowhere else either.
#[derive(Default)]
struct Names(Vec<String>);

impl Names {
    /// `None` for what is not JSON or nests too deep.
    fn of(body: &[u8]) -> Option<Self> {
        let mut names = Vec::new();
        let json = serde_json::from_slice(body).ok()?;
        rewrite(json, Place::Other, 0, &mut |place, text| {
            if place == Place::Citizen && !text.is_empty() {
                names.push(text.to_owned());
            }
            false
        })?;
        Some(Self(names))
    }

    fn are_in(&self, text: &str) -> bool {
        let found = |name: &String| {
            text == name || (name.len() >= MIN_PART && text.contains(name.as_str()))
        };
        self.0.iter().any(found)
    }

    /// Whether a field's name may be shown: not if it looks like data.
    fn allow_field(&self, field: &str) -> bool {
        let in_names = |byte: u8| byte.is_ascii_alphabetic() || b"_-.".contains(&byte);
        let fits = field.len() <= MAX_FIELD_NAME && field.bytes().all(in_names);
        KNOWN.contains(&field) || (fits && !self.are_in(field))
    }
}

/// An object with its repeated fields; a map would keep the last one.
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
