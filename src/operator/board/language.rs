//! How each language writes numbers, shares and times.

use strum::{Display, EnumString, IntoStaticStr, VariantArray};
use time::{OffsetDateTime, UtcOffset};

use crate::model::results::grouped;

/// A language of the page.
#[derive(
    Clone, Copy, Debug, Default, Display, EnumString, IntoStaticStr, PartialEq, Eq, VariantArray,
)]
#[strum(serialize_all = "lowercase")]
pub enum Language {
    #[default]
    Fr,
    En,
}

const MONTHS: [[&str; 2]; 12] = [
    ["janvier", "January"],
    ["février", "February"],
    ["mars", "March"],
    ["avril", "April"],
    ["mai", "May"],
    ["juin", "June"],
    ["juillet", "July"],
    ["août", "August"],
    ["septembre", "September"],
    ["octobre", "October"],
    ["novembre", "November"],
    ["décembre", "December"],
];

impl Language {
    /// The text of this language.
    pub const fn of<'t>(self, fr: &'t str, en: &'t str) -> &'t str {
        match self {
            Self::Fr => fr,
            Self::En => en,
        }
    }

    /// 1234567 as `1 234 567`, with narrow no-break spaces, or as `1,234,567`.
    pub fn count(self, count: i64) -> String {
        let grouped = grouped(count);
        match self {
            Self::Fr => grouped.replace(',', "\u{202f}"),
            Self::En => grouped,
        }
    }

    /// A share of `percentages` with its sign; a dash where there is none.
    pub fn share(self, share: &str) -> String {
        match (share, self) {
            ("-", _) => "–".to_owned(),
            (share, Self::Fr) => format!("{}\u{a0}%", share.replace('.', ",")),
            (share, Self::En) => format!("{share}%"),
        }
    }

    /// A day and the time, to the second.
    pub fn moment(self, time: OffsetDateTime, offset: UtcOffset) -> String {
        let (day, (hour, minute, second)) =
            (self.day(time, offset), time.to_offset(offset).to_hms());
        let between = self.of(" à ", ", ");
        format!("{day}{between}{hour:02}:{minute:02}:{second:02} ({})", zone(offset))
    }

    /// The time of day, to the second.
    pub fn second(self, time: OffsetDateTime, offset: UtcOffset) -> String {
        let (hour, minute, second) = time.to_offset(offset).to_hms();
        format!("{hour:02}:{minute:02}:{second:02} ({})", zone(offset))
    }

    /// The time at which results are published.
    pub fn opening(self, time: OffsetDateTime, offset: UtcOffset) -> String {
        let (day, (hour, minute, second)) =
            (self.day(time, offset), time.to_offset(offset).to_hms());
        let zone = zone(offset);
        let seconds = if second == 0 { String::new() } else { format!(":{second:02}") };
        match self {
            Self::Fr => format!("{hour}\u{a0}h\u{a0}{minute:02}{seconds} ({zone}), le {day}"),
            Self::En => format!("{hour:02}:{minute:02}{seconds} ({zone}) on {day}"),
        }
    }

    fn day(self, time: OffsetDateTime, offset: UtcOffset) -> String {
        let date = time.to_offset(offset).date();
        let month = MONTHS[usize::from(u8::from(date.month())) - 1][self as usize];
        // "1er décembre", but "2 décembre".
        let ordinal = if date.day() == 1 { self.of("er", "") } else { "" };
        format!("{}{ordinal}\u{a0}{month} {}", date.day(), date.year())
    }
}

/// `UTC`, `UTC+1`, `UTC-3:30`.
fn zone(offset: UtcOffset) -> String {
    let (hours, minutes, _) = offset.as_hms();
    let sign = if offset.is_negative() { '-' } else { '+' };
    match (hours.unsigned_abs(), minutes.unsigned_abs()) {
        (0, 0) => "UTC".to_owned(),
        (hours, 0) => format!("UTC{sign}{hours}"),
        (hours, minutes) => format!("UTC{sign}{hours}:{minutes:02}"),
    }
}

#[cfg(test)]
mod tests {
    use time::macros::{datetime, offset};

    use super::*;

    #[test]
    fn numbers_and_times_are_written_as_the_language_does() {
        let eight = datetime!(2026-11-29 19:00 UTC);
        let (fr, en) = (Language::Fr, Language::En);
        assert_eq!(
            (fr.count(1_204_377), en.count(1_204_377)),
            ("1\u{202f}204\u{202f}377".to_owned(), "1,204,377".to_owned())
        );
        for (share, french, english) in
            [("58.3", "58,3\u{a0}%", "58.3%"), (">99.9", ">99,9\u{a0}%", ">99.9%"), ("-", "–", "–")]
        {
            assert_eq!((fr.share(share), en.share(share)), (french.to_owned(), english.to_owned()));
        }
        assert_eq!(fr.moment(eight, offset!(+1)), "29\u{a0}novembre 2026 à 20:00:00 (UTC+1)");
        assert_eq!(en.moment(eight, offset!(UTC)), "29\u{a0}November 2026, 19:00:00 (UTC)");
        assert_eq!(
            fr.opening(eight, offset!(+1)),
            "20\u{a0}h\u{a0}00 (UTC+1), le 29\u{a0}novembre 2026"
        );
        assert_eq!(en.opening(eight, offset!(-3:30)), "15:30 (UTC-3:30) on 29\u{a0}November 2026");
        assert_eq!(fr.second(eight, offset!(+1)), "20:00:00 (UTC+1)");
        for (day, french, english) in [
            (datetime!(2026-12-01 19:00 UTC), "1er\u{a0}décembre", "1\u{a0}December"),
            (datetime!(2026-12-02 19:00 UTC), "2\u{a0}décembre", "2\u{a0}December"),
            (datetime!(2026-12-21 19:00 UTC), "21\u{a0}décembre", "21\u{a0}December"),
        ] {
            assert_eq!(fr.moment(day, offset!(+1)), format!("{french} 2026 à 20:00:00 (UTC+1)"));
            assert_eq!(en.moment(day, offset!(+1)), format!("{english} 2026, 20:00:00 (UTC+1)"));
        }
    }
}
