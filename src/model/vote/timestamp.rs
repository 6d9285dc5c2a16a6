//! The moment a vote was cast, in the precision in which PostgreSQL keeps it.

use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime, UtcOffset};

/// RFC 3339 with an offset → UTC, rounded to microseconds; `None` when it is no such thing or lies
/// outside the years 1970–9999 UTC.
///
/// Rounded here and not by the database, to nearest and ties to even like PostgreSQL's own
/// rounding, because a duplicate is told from a replay by comparing with the stored value.
pub(super) fn parse(text: &str) -> Option<OffsetDateTime> {
    // The parser takes any byte between date and time.
    if !matches!(text.as_bytes().get(10), Some(b'T' | b't' | b' ')) {
        return None;
    }
    let parsed = OffsetDateTime::parse(text, &Rfc3339).ok()?.checked_to_offset(UtcOffset::UTC)?;
    let excess = parsed.nanosecond() % 1_000;
    let microsecond_is_odd = (parsed.nanosecond() / 1_000) % 2 == 1;
    let floor = parsed - Duration::nanoseconds(i64::from(excess));
    let up = excess > 500 || (excess == 500 && microsecond_is_odd);
    let rounded = if up { floor.checked_add(Duration::MICROSECOND)? } else { floor };
    (1970..=9999).contains(&rounded.year()).then_some(rounded)
}

/// Returns which rule a text breaks that [`parse`] did not take.
pub(super) fn broken_rule(text: &str) -> &'static str {
    const SECONDS: usize = "2025-11-14T12:00:00".len();
    let bytes = text.as_bytes();
    let written = |from: usize, pattern: &[u8]| {
        let part = bytes.get(from..from + pattern.len()).unwrap_or_default();
        part.len() == pattern.len()
            && part.iter().zip(pattern).all(|(byte, p)| match p {
                b'0' => byte.is_ascii_digit(),
                p => byte == p,
            })
    };
    if text.trim() != text {
        return "blanks before or behind it";
    }
    if text.bytes().all(|byte| byte.is_ascii_digit() || b".-+".contains(&byte))
        && text.parse::<f64>().is_ok()
    {
        return "a number: Unix time perhaps";
    }
    if !written(0, b"0000-00-00") {
        return "the date is not written as 2025-11-14";
    }
    if bytes.len() == 10 {
        return "a date without a time";
    }
    if !matches!(bytes[10], b'T' | b't' | b' ') {
        return "neither T nor a blank between date and time";
    }
    if !written(11, b"00:00:00") {
        return "the time is not written as 12:00:00";
    }
    let (_, behind) = bytes.split_at(SECONDS);
    let zone = match behind {
        [b'.', fraction @ ..] => {
            let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
            if digits == 0 {
                return "the fraction of a second is not a point and digits";
            }
            SECONDS + 1 + digits
        }
        [b',', ..] => return "the fraction of a second is not a point and digits",
        _ => SECONDS,
    };
    match &bytes[zone..] {
        [] => "no zone: Z or an offset such as +01:00 is missing",
        [b'Z' | b'z'] => outside(text),
        [b'+' | b'-', ..] if bytes.len() == zone + 6 && written(zone + 1, b"00:00") => {
            outside(text)
        }
        _ => "the zone is neither Z nor an offset such as +01:00",
    }
}

fn outside(text: &str) -> &'static str {
    match OffsetDateTime::parse(text, &Rfc3339) {
        Ok(_) => "outside the years 1970 to 9999 (UTC)",
        Err(_) => "a date or a time that does not exist",
    }
}
