//! What must hold for the decoder, whatever the bytes: an accepted vote obeys the rules, a refused
//! message broke one. The rules are checked a second time here, plainly and not by the decoder's
//! code, on what `serde_json` and `time` make of the text.

use std::cmp::Ordering;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use vote_aggregator::model::vote::{self, Choice, Reason, Vote};

use self::messages::fields;

#[path = "../shared/messages.rs"]
mod messages;

/// The limit of a body unless it is configured otherwise.
pub const MAX_BYTES: usize = 16_384;

/// Checks one body.
///
/// # Panics
/// When the decoder breaks a rule.
pub fn check(body: &[u8]) {
    if !body.is_empty() {
        let refused = vote::decode(body, body.len() - 1).expect_err("longer than the limit");
        assert_eq!((refused.reason, refused.vote_hash), (Reason::TooLarge, None));
    }
    let decoded = vote::decode(body, MAX_BYTES);
    match &decoded {
        Ok(vote) => {
            assert!(body.len() <= MAX_BYTES);
            assert!(obeys_the_rules(vote), "{vote:?}");
            let again = vote::decode(fields(vote).to_string().as_bytes(), MAX_BYTES);
            assert_eq!(again.as_ref(), Ok(vote), "encoded and decoded again");
        }
        Err(rejection) => {
            assert_eq!(rejection.reason == Reason::TooLarge, body.len() > MAX_BYTES);
            if body.len() <= MAX_BYTES {
                let is_text = std::str::from_utf8(body).is_ok();
                assert_eq!(rejection.reason == Reason::NotUtf8, !is_text, "{rejection}");
            }
            let hash = rejection.vote_hash.as_deref();
            assert!(hash.is_none_or(is_vote_hash), "an invalid vote_hash would be logged");
        }
    }
    // A text that is too deep, or has a number too large, for a `Value` is not judged.
    if body.len() <= MAX_BYTES
        && let Ok(Pairs(pairs)) = serde_json::from_slice(body)
    {
        assert_eq!(decoded.ok(), judge(&pairs), "decoded, and judged from its fields");
    }
}

/// An object's members as they stand there, repeated names and all.
struct Pairs(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// The vote that these members are, if they are a valid one.
fn judge(pairs: &[(String, Value)]) -> Option<Vote> {
    let text = |name: &str| {
        let mut named = pairs.iter().filter(|(key, _)| key == name);
        match (named.next(), named.next()) {
            (Some((_, Value::String(text))), None) => Some(text.as_str()),
            _ => None,
        }
    };
    let vote = Vote {
        vote_hash: text("vote_hash")?.into(),
        citizen_id: text("citizen_id")?.into(),
        law_id: text("law_id")?.into(),
        choice: match text("choice")? {
            "oui" => Choice::Oui,
            "non" => Choice::Non,
            _ => return None,
        },
        timestamp: instant(text("timestamp")?)?,
    };
    obeys_the_rules(&vote).then_some(vote)
}

fn is_vote_hash(hash: &str) -> bool {
    (1..=64).contains(&hash.len()) && hash.bytes().all(|byte| (0x21..=0x7e).contains(&byte))
}

fn obeys_the_rules(vote: &Vote) -> bool {
    let law = &vote.law_id;
    let year = vote.timestamp.year();
    is_vote_hash(&vote.vote_hash)
        && (1..=100).contains(&vote.citizen_id.chars().count())
        && !vote.citizen_id.chars().any(|c| c < ' ' || ('\u{7f}'..='\u{9f}').contains(&c))
        && (1..=50).contains(&law.len())
        && law.chars().all(|c| c.is_ascii_alphanumeric() || "._:-".contains(c))
        && (1970..=9999).contains(&year)
        && vote.timestamp.offset().is_utc()
        && vote.timestamp.nanosecond().is_multiple_of(1_000)
}

/// RFC 3339, with T, t or a space in the middle; rounded to microseconds, ties to even. Leap seconds
/// and digits behind the ninth are for the `time` crate to judge.
fn instant(text: &str) -> Option<OffsetDateTime> {
    if !matches!(text.as_bytes().get(10), Some(b'T' | b't' | b' ')) {
        return None;
    }
    let nanos = OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp_nanos();
    let micros = nanos.div_euclid(1_000);
    let up = match nanos.rem_euclid(1_000).cmp(&500) {
        Ordering::Less => false,
        Ordering::Equal => micros.rem_euclid(2) == 1,
        Ordering::Greater => true,
    };
    OffsetDateTime::from_unix_timestamp_nanos((micros + i128::from(up)) * 1_000).ok()
}
