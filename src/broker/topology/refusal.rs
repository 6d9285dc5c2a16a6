//! What the broker's refusal of a declare tells of the queue.

use lapin::types::AMQPValue;

use crate::broker::long_string;

/// One argument in which a queue differs from a declare.
#[derive(Debug, PartialEq)]
pub(super) struct Difference {
    pub(super) name: String,
    pub(super) current: Current,
}

#[derive(Debug, PartialEq)]
pub(super) enum Current {
    None,
    Flag(bool),
    Value(AMQPValue),
    /// Some arguments are told without their type.
    Untyped(String),
}

impl Difference {
    /// Reads `… inequivalent arg 'NAME' for queue … but current is CURRENT`, where CURRENT is
    /// `none`, `'true'`, `'untyped'` or `the value 'V' of type 'T'`.
    pub(super) fn parse(told: &str) -> Option<Self> {
        let (_, rest) = told.split_once("inequivalent arg '")?;
        let (name, rest) = rest.split_once('\'')?;
        let (_, current) = rest.rsplit_once(" but current is ")?;
        let current = match current.strip_prefix("the value '") {
            None => match current.trim_matches('\'') {
                "none" => Current::None,
                "true" => Current::Flag(true),
                "false" => Current::Flag(false),
                text => Current::Untyped(text.to_owned()),
            },
            Some(typed) => {
                let (value, kind) = typed.rsplit_once("' of type '")?;
                Current::Value(typed_value(value, kind.split('\'').next()?)?)
            }
        };
        Some(Self { name: name.to_owned(), current })
    }
}

fn typed_value(value: &str, kind: &str) -> Option<AMQPValue> {
    Some(match kind {
        "longstr" => long_string(value),
        "bool" => AMQPValue::Boolean(value.parse().ok()?),
        // Every integer type compares equal to any other of the same value.
        _ => AMQPValue::LongLongInt(value.parse().ok()?),
    })
}
