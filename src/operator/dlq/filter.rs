//! Which messages a command is about.

use super::reason::{DeadLetterReason, Examined};
use crate::model::vote::Reason;

/// Words of [`Filter::reasons`] beside the decoder's own.
pub const REASONS: [&str; 7] =
    ["malformed", "refused", "rejected", "delivery_limit", "expired", "maxlen", "unknown"];

/// Every kind that is given has to fit; within a kind, any value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// A decoder's reason, or one of [`REASONS`].
    pub reasons: Vec<String>,
    /// A whole SQLSTATE, or its class: its first two characters.
    pub sqlstates: Vec<String>,
    pub laws: Vec<String>,
    pub hashes: Vec<String>,
}

impl Filter {
    /// Whether the message fits.
    pub fn matches(&self, message: &Examined) -> bool {
        let one_of = |wanted: &[String], found: &Option<String>| {
            wanted.is_empty() || found.as_ref().is_some_and(|found| wanted.contains(found))
        };
        let reason = self.reasons.is_empty() || self.reasons.iter().any(|r| is_for(message, r));
        let sqlstate = self.sqlstates.is_empty()
            || message.sqlstate.as_ref().is_some_and(|found| {
                self.sqlstates.iter().any(|wanted| {
                    found == wanted || (wanted.len() == 2 && found.starts_with(wanted.as_str()))
                })
            });
        reason
            && sqlstate
            && one_of(&self.laws, &message.law_id)
            && one_of(&self.hashes, &message.vote_hash)
    }
}

fn is_for(message: &Examined, reason: &str) -> bool {
    match reason {
        "malformed" => !message.reason.is_valid(),
        "refused" => matches!(message.reason, DeadLetterReason::Refused { .. }),
        // A malformed message was rejected, too.
        "rejected" | "delivery_limit" | "expired" | "maxlen" => {
            message.deaths.first().is_some_and(|death| death.reason == reason)
        }
        reason => message.reason.code() == reason,
    }
}

/// Parses a reason.
///
/// # Errors
/// The reasons there are.
pub fn reason(text: &str) -> Result<String, String> {
    let words = || REASONS.into_iter().chain(Reason::ALL.iter().map(|reason| reason.as_str()));
    if words().any(|word| word == text) {
        return Ok(text.to_owned());
    }
    Err(format!("one of {}", words().collect::<Vec<_>>().join(", ")))
}

/// Parses an SQLSTATE or the class of one.
///
/// # Errors
/// The expected form.
pub fn sqlstate(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    if matches!(upper.len(), 2 | 5) && upper.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Ok(upper);
    }
    Err("five characters as 23514, or a class as 23".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::reason::examine;
    use super::*;
    use crate::adapters::broker::DeadLetterMessage;

    fn vote(hash: &str, law: &str, choice: &str, headers: Value) -> Examined {
        let body = json!({"vote_hash": hash, "citizen_id": "c", "law_id": law, "choice": choice,
                          "timestamp": "2025-11-14T12:00:00Z"});
        let Value::Object(headers) = headers else { panic!("headers are an object") };
        examine(
            &DeadLetterMessage::new(body.to_string(), headers.into_iter().collect()),
            16_384,
            None,
        )
    }

    /// As the options are written: `reason=malformed law=law-1`.
    fn filter(options: &str) -> Filter {
        let all = |wanted: &str| {
            let options = options.split_whitespace().filter_map(|option| option.split_once('='));
            let values = options.filter(|(kind, _)| *kind == wanted);
            values.map(|(_, value)| value.to_owned()).collect()
        };
        let (reasons, sqlstates) = (all("reason"), all("sqlstate"));
        Filter { reasons, sqlstates, laws: all("law"), hashes: all("hash") }
    }

    #[test]
    fn kinds_are_all_needed_and_of_a_kind_any() {
        let refused = vote("h1", "law-1", "oui", json!({"x-sqlstate": "23514"}));
        let died = |reason: &str| json!({"x-death": [{"reason": reason}]});
        let malformed = vote("h2", "law-2", "maybe", died("rejected"));
        let limited = vote("h3", "law-1", "non", died("delivery_limit"));
        let messages = [&refused, &malformed, &limited];
        for (options, expected) in [
            ("", [true, true, true]),
            ("reason=malformed", [false, true, false]),
            ("reason=bad_choice", [false, true, false]),
            ("reason=not_json", [false, false, false]),
            ("reason=rejected", [false, true, false]),
            ("reason=refused", [true, false, false]),
            ("reason=refused reason=delivery_limit", [true, false, true]),
            ("sqlstate=23514", [true, false, false]),
            ("sqlstate=23", [true, false, false]),
            ("sqlstate=2351", [false, false, false]),
            ("law=law-1", [true, false, true]),
            ("law=law-1 reason=refused", [true, false, false]),
            ("hash=h2 hash=h3", [false, true, true]),
            ("hash=h2 law=law-1", [false, false, false]),
        ] {
            let found = messages.map(|message| filter(options).matches(message));
            assert_eq!(found, expected, "{options}");
        }
    }

    #[test]
    fn an_sqlstate_is_whole_or_a_class() {
        assert_eq!(sqlstate("p0001").as_deref(), Ok("P0001"));
        assert_eq!(sqlstate("23").as_deref(), Ok("23"));
        for bad in ["", "2", "235", "23-14"] {
            assert!(sqlstate(bad).is_err(), "{bad}");
        }
    }
}
