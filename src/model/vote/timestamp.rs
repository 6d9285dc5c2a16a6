//! The moment a vote was cast, in the precision in which PostgreSQL keeps it.

use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime, UtcOffset};

/// RFC 3339 with an offset → UTC, rounded to microseconds; `None` when it is not that or lies
/// outside the years 1970–9999 UTC.
///
/// Rounded here and not by the database, to nearest and ties to even like PostgreSQL's own
/// rounding, because a replay is distinguished from a duplicate attempt by the stored value.
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
    // Every digit as a 0.
    let form: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    if text.trim() != text {
        return "blanks before or behind it";
    }
    if form.chars().all(|c| "0.-+".contains(c)) && text.parse::<f64>().is_ok() {
        return "a number: Unix time perhaps";
    }
    let Some(behind) = form.strip_prefix("0000-00-00") else {
        return "the date is not written as 2025-11-14";
    };
    if behind.is_empty() {
        return "a date without a time";
    }
    let Some(time) = behind.strip_prefix(['T', 't', ' ']) else {
        return "neither T nor a blank between date and time";
    };
    let Some(behind) = time.strip_prefix("00:00:00") else {
        return "the time is not written as 12:00:00";
    };
    let zone = match behind.strip_prefix('.') {
        Some(fraction) if fraction.starts_with('0') => fraction.trim_start_matches('0'),
        None if !behind.starts_with(',') => behind,
        _ => return "the fraction of a second is not a point and digits",
    };
    match zone {
        "" => "no zone: Z or an offset such as +01:00 is missing",
        "Z" | "z" | "+00:00" | "-00:00" => match OffsetDateTime::parse(text, &Rfc3339) {
            Ok(_) => "outside the years 1970 to 9999 (UTC)",
            Err(_) => "a date or a time that does not exist",
        },
        _ => "the zone is neither Z nor an offset such as +01:00",
    }
}
