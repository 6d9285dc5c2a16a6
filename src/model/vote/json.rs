//! The five fields out of a JSON text, without copying what needs no unescaping.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Broken, FIELDS, Reason, first};

/// What was found under one of the five names.
#[derive(Default)]
pub(super) enum Slot<'a> {
    #[default]
    Missing,
    Text(Cow<'a, str>),
    WrongType,
    Repeated,
}

impl<'a> Slot<'a> {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Takes a text, `None` for a value of another type.
    fn fill(&mut self, text: Option<Cow<'a, str>>) {
        *self = match (&self, text) {
            (Self::Missing, Some(text)) => Self::Text(text),
            (Self::Missing, None) => Self::WrongType,
            _ => Self::Repeated,
        };
    }
}

/// The fields of a vote as they stand in the message, in the order of [`FIELDS`]. Unknown fields are
/// ignored.
#[derive(Default)]
pub(super) struct Fields<'a>([Slot<'a>; 5]);

impl Fields<'_> {
    /// All five are there, once each, as strings.
    pub(super) fn complete(&self) -> Result<(), Broken> {
        first(Reason::RepeatedField, |at| matches!(self.0[at], Slot::Repeated))?;
        first(Reason::MissingField, |at| matches!(self.0[at], Slot::Missing))?;
        first(Reason::WrongType, |at| matches!(self.0[at], Slot::WrongType))
    }

    /// The five texts, empty where there is none.
    pub(super) fn texts(&self) -> [&str; 5] {
        self.0.each_ref().map(|slot| slot.text().unwrap_or_default())
    }
}

/// The usual message: each field once, strings without escapes. It is read with nothing looked at
/// twice; of all others the reader of [`Fields`] has the verdict.
#[derive(Deserialize)]
struct Plain<'a> {
    vote_hash: &'a str,
    citizen_id: &'a str,
    law_id: &'a str,
    choice: &'a str,
    timestamp: &'a str,
}

impl<'a> From<Plain<'a>> for Fields<'a> {
    fn from(Plain { vote_hash, citizen_id, law_id, choice, timestamp }: Plain<'a>) -> Self {
        let texts = [vote_hash, citizen_id, law_id, choice, timestamp];
        Self(texts.map(|text| Slot::Text(Cow::Borrowed(text))))
    }
}

/// Reads exactly one JSON object.
pub(super) fn parse(text: &str) -> Result<Fields<'_>, Reason> {
    // A derived reader takes an array of five strings, too.
    if text.starts_with('{')
        && let Ok(plain) = serde_json::from_str::<Plain<'_>>(text)
    {
        return Ok(plain.into());
    }
    parse_any(text)
}

/// As [`parse`], by the reader that takes every message.
pub(super) fn parse_any(text: &str) -> Result<Fields<'_>, Reason> {
    serde_json::from_str(text).map_err(|_| {
        // The visitor gives up at the first byte of a value that is not an object, and a number beyond
        // a double is JSON too: only the whole text shows whether this is JSON of another kind.
        let begins_as_object = text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{');
        if !begins_as_object && serde_json::from_str::<IgnoredAny>(text).is_ok() {
            Reason::NotObject
        } else {
            Reason::NotJson
        }
    })
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectOnly;

        // Only `visit_map`: a derived impl would take an array of five strings for a vote, too.
        impl<'de> Visitor<'de> for ObjectOnly {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Fields::default();
                while let Some(name) = map.next_key::<String>()? {
                    match FIELDS.iter().position(|field| *field == name) {
                        // Raw, because a number beyond a double is a wrong type and not a syntax error.
                        Some(at) => fields.0[at].fill(text::<A::Error>(map.next_value()?)?),
                        None => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_any(ObjectOnly)
    }
}

/// The text of a string, `None` for another value: the wrong type is a verdict of its own.
fn text<E: Error>(value: &RawValue) -> Result<Option<Cow<'_, str>>, E> {
    let raw = value.get();
    if !raw.starts_with('"') {
        return Ok(None);
    }
    if !raw.contains('\\') {
        return Ok(Some(Cow::Borrowed(&raw[1..raw.len() - 1])));
    }
    serde_json::from_str::<String>(raw).map(|text| Some(Cow::Owned(text))).map_err(E::custom)
}
