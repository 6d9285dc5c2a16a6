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
