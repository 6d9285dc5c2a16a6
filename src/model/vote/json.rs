//! The five fields out of a JSON text, without copying what needs no unescaping.

use std::borrow::Cow;
use std::fmt;

use compact_str::CompactString;
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Broken, Reason};

/// What was found under one of the five names.
pub(super) enum Slot<'a> {
    Missing,
    Text(Cow<'a, str>),
    WrongType,
    Repeated,
}

impl<'a> Slot<'a> {
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The text, owned; empty when there is none, which `complete` ruled out.
    pub(super) fn into_text(self) -> CompactString {
        match self {
            Self::Text(text) => text.into(),
            _ => CompactString::default(),
        }
    }

    fn fill(&mut self, value: Value<'a>) {
        *self = match (&self, value) {
            (Self::Missing, Value::Text(text)) => Self::Text(text),
            (Self::Missing, Value::Other) => Self::WrongType,
            _ => Self::Repeated,
        };
    }
}

/// The fields of a vote as they stand in the message. Unknown fields are ignored.
pub(super) struct Fields<'a> {
    pub(super) vote_hash: Slot<'a>,
    pub(super) citizen_id: Slot<'a>,
    pub(super) law_id: Slot<'a>,
    pub(super) choice: Slot<'a>,
    pub(super) timestamp: Slot<'a>,
}

impl Fields<'_> {
    fn named(&self) -> [(&Slot<'_>, &'static str); 5] {
        [
            (&self.vote_hash, "vote_hash"),
            (&self.citizen_id, "citizen_id"),
            (&self.law_id, "law_id"),
            (&self.choice, "choice"),
            (&self.timestamp, "timestamp"),
        ]
    }

    /// All five are there, once each, as strings.
    pub(super) fn complete(&self) -> Result<(), Broken> {
        let broken = |is: fn(&Slot<'_>) -> bool, reason| {
            let found = self.named().into_iter().find(|(slot, _)| is(slot));
            found.map_or(Ok(()), |(_, field)| Err((reason, field)))
        };
        broken(|slot| matches!(slot, Slot::Repeated), Reason::RepeatedField)?;
        broken(|slot| matches!(slot, Slot::Missing), Reason::MissingField)?;
        broken(|slot| matches!(slot, Slot::WrongType), Reason::WrongType)
    }

    /// The five texts, in the order of the contract; empty where there is none.
    pub(super) fn texts(&self) -> [&str; 5] {
        self.named().map(|(slot, _)| slot.text().unwrap_or_default())
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
    fn from(plain: Plain<'a>) -> Self {
        let slot = |text| Slot::Text(Cow::Borrowed(text));
        Self {
            vote_hash: slot(plain.vote_hash),
            citizen_id: slot(plain.citizen_id),
            law_id: slot(plain.law_id),
            choice: slot(plain.choice),
            timestamp: slot(plain.timestamp),
        }
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
        // The visitor gives up at the first byte of a value that is no object, and a number beyond
        // a double is JSON too: only the whole text tells whether this is JSON of another kind.
        let begins_as_object = text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{');
        if !begins_as_object && serde_json::from_str::<IgnoredAny>(text).is_ok() {
            Reason::NotObject
        } else {
            Reason::NotJson
        }
    })
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Name {
    VoteHash,
    CitizenId,
    LawId,
    Choice,
    Timestamp,
    #[serde(other)]
    Unknown,
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
                let mut fields = Fields {
                    vote_hash: Slot::Missing,
                    citizen_id: Slot::Missing,
                    law_id: Slot::Missing,
                    choice: Slot::Missing,
                    timestamp: Slot::Missing,
                };
                while let Some(name) = map.next_key()? {
                    let slot = match name {
                        Name::VoteHash => &mut fields.vote_hash,
                        Name::CitizenId => &mut fields.citizen_id,
                        Name::LawId => &mut fields.law_id,
                        Name::Choice => &mut fields.choice,
                        Name::Timestamp => &mut fields.timestamp,
                        Name::Unknown => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    slot.fill(map.next_value()?);
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_any(ObjectOnly)
    }
}

/// A string, or anything else: the wrong type is a verdict of its own, not a parse error.
enum Value<'a> {
    Text(Cow<'a, str>),
    Other,
}

impl<'de: 'a, 'a> Deserialize<'de> for Value<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Raw, because a number beyond a double is a wrong type and not a syntax error.
        let raw = <&'de RawValue>::deserialize(deserializer)?.get();
        if !raw.starts_with('"') {
            return Ok(Value::Other);
        }
        if !raw.contains('\\') {
            return Ok(Value::Text(Cow::Borrowed(&raw[1..raw.len() - 1])));
        }
        let text: String = serde_json::from_str(raw).map_err(Error::custom)?;
        Ok(Value::Text(Cow::Owned(text)))
    }
}
