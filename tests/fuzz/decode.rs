//! What must hold for the decoder, whatever the bytes: an accepted vote obeys the rules, a refused
//! message broke one. The rules are checked a second time here, plainly and not by the decoder's
//! code, on what `serde_json` makes of the text.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use vote_aggregator::model::vote::{self, Choice, Reason, Vote};

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
            let again = vote::decode(&encode(vote), MAX_BYTES);
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
    // Nothing is said of a text that is too deep, or has a number too large, for a `Value`.
    if body.len() <= MAX_BYTES
        && let Ok(Pairs(pairs)) = serde_json::from_slice(body)
        && let Some(expected) = judge(&pairs)
    {
        assert_eq!(decoded.ok(), expected, "decoded, and judged from its fields");
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

/// The vote that these members are, `Some(None)` when they are none, `None` when that is left open.
fn judge(pairs: &[(String, Value)]) -> Option<Option<Vote>> {
    let mut texts = Vec::new();
    for name in ["vote_hash", "citizen_id", "law_id", "choice", "timestamp"] {
        let mut named = pairs.iter().filter(|(key, _)| key == name);
        match (named.next(), named.next()) {
            (Some((_, Value::String(text))), None) => texts.push(text.as_str()),
            _ => return Some(None),
        }
    }
    let [hash, citizen, law, choice, moment] = texts[..] else { return Some(None) };
    let choice = match choice {
        "oui" => Choice::Oui,
        "non" => Choice::Non,
        _ => return Some(None),
    };
    let timestamp = match instant(moment) {
        Moment::At(timestamp) => timestamp,
        Moment::None => return Some(None),
        Moment::LeapSecond => return None,
    };
    let vote = Vote {
        vote_hash: hash.into(),
        citizen_id: citizen.into(),
        law_id: law.into(),
        choice,
        timestamp,
    };
    Some(obeys_the_rules(&vote).then_some(vote))
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

enum Moment {
    At(OffsetDateTime),
    None,
    /// Which of them count is for the decoder to say.
    LeapSecond,
}

/// `YYYY-MM-DD`, T or t or a space, `HH:MM:SS`, perhaps a fraction, Z or z or an offset; rounded to
/// microseconds, ties to even, from the nine digits of a fraction that are looked at.
fn instant(text: &str) -> Moment {
    read_instant(text).unwrap_or(Moment::None)
}

fn read_instant(text: &str) -> Option<Moment> {
    let (date, rest) = (text.get(..10)?, text.get(10..)?);
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let [hour, minute, second] = numbers(rest.get(..8)?, ':', [2, 2, 2])?;
    let mut rest = rest.get(8..)?;
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return None;
        }
        nanos = format!("{:0<9.9}", &fraction[..digits]).parse().ok()?;
        rest = &fraction[digits..];
    }
    let offset = match rest {
        "Z" | "z" => 0,
        _ => {
            let sign = if rest.starts_with('-') { -1 } else { 1 };
            let [hours, minutes] = numbers(rest.strip_prefix(['+', '-'])?, ':', [2, 2])?;
            if hours > 23 || minutes > 59 {
                return None;
            }
            sign * (hours * 60 + minutes)
        }
    };
    let leap_year = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap_year => 29,
        2 => 28,
        _ => return None,
    };
    if !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    if second == 60 {
        return Some(Moment::LeapSecond);
    }
    // Years from March on, so that the leap day is the last one.
    let (shifted_year, shifted_month) =
        if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let leap_days =
        shifted_year.div_euclid(4) - shifted_year.div_euclid(100) + shifted_year.div_euclid(400);
    let since_1970 = shifted_year * 365 + leap_days + day_of_year - 719_468;
    let seconds = ((since_1970 * 24 + hour) * 60 + minute - offset) * 60 + second;
    let (micros, excess) = (nanos / 1_000, nanos % 1_000);
    let up = excess > 500 || (excess == 500 && micros % 2 == 1);
    let micros = seconds * 1_000_000 + micros + i64::from(up);
    let timestamp = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1_000);
    Some(timestamp.map_or(Moment::None, Moment::At))
}

/// Numbers of exactly these many digits, with `between` between them and nothing else.
fn numbers<const N: usize>(text: &str, between: char, widths: [usize; N]) -> Option<[i64; N]> {
    let parts: Vec<&str> = text.split(between).collect();
    let fits = parts.len() == N
        && parts.iter().zip(widths).all(|(part, width)| {
            part.len() == width && part.bytes().all(|byte| byte.is_ascii_digit())
        });
    let mut numbers = [0; N];
    for (number, part) in numbers.iter_mut().zip(parts) {
        *number = if fits { part.parse().ok()? } else { return None };
    }
    Some(numbers)
}

fn encode(vote: &Vote) -> Vec<u8> {
    let timestamp = vote.timestamp.format(&Rfc3339).expect("a year of four digits");
    let vote = serde_json::json!({
        "vote_hash": vote.vote_hash,
        "citizen_id": vote.citizen_id,
        "law_id": vote.law_id,
        "choice": vote.choice.as_str(),
        "timestamp": timestamp,
    });
    vote.to_string().into_bytes()
}
