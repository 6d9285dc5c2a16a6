//! The five fields out of a JSON text, without copying what needs no unescaping.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;

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

    /// The text as an owned string; empty when there is none, which `complete` ruled out.
    pub(super) fn into_string(self) -> String {
        match self {
            Self::Text(text) => text.into_owned(),
            _ => String::new(),
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

/// Reads exactly one JSON object.
pub(super) fn parse(text: &str) -> Result<Fields<'_>, Reason> {
    serde_json::from_str(text).map_err(|error| match error.classify() {
        // The only complaint about well-formed JSON that the visitors below can raise.
        Category::Data => Reason::NotObject,
        Category::Syntax | Category::Eof | Category::Io => Reason::NotJson,
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
        struct AnyValue;

        impl<'de> Visitor<'de> for AnyValue {
            type Value = Value<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON value")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Value<'de>, E> {
                Ok(Value::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Value<'de>, E> {
                Ok(Value::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_bool<E: Error>(self, _: bool) -> Result<Value<'de>, E> {
                Ok(Value::Other)
            }

            fn visit_i64<E: Error>(self, _: i64) -> Result<Value<'de>, E> {
                Ok(Value::Other)
            }

            fn visit_u64<E: Error>(self, _: u64) -> Result<Value<'de>, E> {
                Ok(Value::Other)
            }

            fn visit_f64<E: Error>(self, _: f64) -> Result<Value<'de>, E> {
                Ok(Value::Other)
            }

            fn visit_unit<E: Error>(self) -> Result<Value<'de>, E> {
                Ok(Value::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value<'de>, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Value::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value<'de>, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Value::Other)
            }
        }

        deserializer.deserialize_any(AnyValue)
    }
}
