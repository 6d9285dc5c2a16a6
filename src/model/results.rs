//! The results as people and programs read them: sums, shares, order, text.
//!
//! Architecture invariant: pure. Whoever reads the table gives a [`Reading`]; nothing here asks for
//! one, and nothing here looks at a clock.

mod formats;

use std::cmp::{Ordering, Reverse};
use std::fmt::Write;

use indicatif::HumanCount;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

pub use self::formats::{csv, field, json, looks_like_a_value};
use crate::model::hex;

/// One row of vote_results.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LawResult {
    /// ASCII by the contract; a table that was there before this service may hold anything.
    pub law_id: String,
    /// Votes. Below 0 is wrong, and possible in a table that was edited by hand.
    pub oui: i64,
    pub non: i64,
    /// When a vote on it was last counted, or the row corrected; unknown where the table says
    /// nothing that a calendar has.
    pub updated_at: Option<OffsetDateTime>,
}

impl LawResult {
    pub const fn total(&self) -> i64 {
        self.oui.saturating_add(self.non)
    }
}

/// vote_results as one snapshot has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    pub laws: Vec<LawResult>,
    /// By the clock of the server.
    pub at: OffsetDateTime,
}

impl Reading {
    /// All laws together, under no name.
    pub fn sum(&self) -> LawResult {
        self.laws.iter().fold(LawResult::default(), |sum, law| LawResult {
            law_id: String::new(),
            oui: sum.oui.saturating_add(law.oui),
            non: sum.non.saturating_add(law.non),
            updated_at: sum.updated_at.max(law.updated_at),
        })
    }

    /// Those of the laws `asked` for on which no vote is counted.
    pub fn not_counted<'a>(&self, asked: &'a [String]) -> Vec<&'a str> {
        let counted = |id: &&String| self.laws.iter().any(|law| law.law_id == **id);
        asked.iter().filter(|id| !counted(id)).map(String::as_str).collect()
    }

    pub fn sort(&mut self, order: Order) {
        self.laws.sort_by(|one, two| order.compare(one, two));
    }
}

/// What comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The law with the most votes.
    #[default]
    Votes,
    /// The law whose name sorts first, byte by byte.
    Law,
    /// The law that was voted on last.
    Updated,
}

impl Order {
    /// Laws that are equal otherwise are in the order of their names, so that a table never jumps.
    fn compare(self, one: &LawResult, two: &LawResult) -> Ordering {
        let first = match self {
            Self::Votes => two.total().cmp(&one.total()),
            Self::Law => Ordering::Equal,
            Self::Updated => Reverse(one.updated_at).cmp(&Reverse(two.updated_at)),
        };
        first.then_with(|| one.law_id.cmp(&two.law_id))
    }
}

/// `part` of `whole` in percent, not rounded, for programs. `None` where there is no such share:
/// no votes, or a count below 0.
pub fn percent(part: i64, whole: i64) -> Option<f64> {
    let sound = whole > 0 && (0..=whole).contains(&part);
    sound.then(|| part as f64 * 100.0 / whole as f64)
}

/// The shares of oui and non in percent, for people: one decimal, and together 100.0. What is
/// neither nothing nor all never looks so: a share that would round to 0.0 is `<0.1`, one that would
/// round to 100.0 is `>99.9`. `-` where there is no share.
pub fn percentages(oui: i64, non: i64) -> [String; 2] {
    let (part, whole) = (i128::from(oui), i128::from(oui) + i128::from(non));
    if oui < 0 || non < 0 || whole == 0 {
        return ["-".to_owned(), "-".to_owned()];
    }
    // Half up for one and what is left for the other, which is half down: both are well rounded.
    let tenths = (part * 2_000 + whole) / (whole * 2);
    [(part, tenths), (whole - part, 1_000 - tenths)].map(|(part, tenths)| match tenths {
        0 if part > 0 => "<0.1".to_owned(),
        1_000 if part < whole => ">99.9".to_owned(),
        tenths => format!("{}.{}", tenths / 10, tenths % 10),
    })
}

/// `text` with whatever a terminal might obey, or not show, written as an escape. Backslashes are
/// doubled, so that an escape differs from the same characters in the text.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' | '\'' => shown.push(character),
            // Writing to a String cannot fail.
            other => write!(shown, "{}", other.escape_debug()).unwrap_or_default(),
        }
    }
    shown
}

/// The SHA-256 of a frozen copy, in hexadecimal digits: of the lines `law_id,oui,non`, sorted bytewise, as
/// publish_final.sql computes it.
pub fn results_sha256(laws: &[LawResult]) -> String {
    let line = |law: &LawResult| format!("{},{},{}\n", law.law_id, law.oui, law.non);
    let mut laws = Vec::from_iter(laws);
    laws.sort_by(|one, other| one.law_id.cmp(&other.law_id));
    hex::encode(&Sha256::digest(laws.into_iter().map(line).collect::<String>()))
}

/// 1234567 as `1,234,567`.
pub fn grouped(count: i64) -> String {
    format!("{}{}", if count < 0 { "-" } else { "" }, HumanCount(count.unsigned_abs()))
}

/// A time to the second, in UTC: `2026-11-25 21:15:04Z`. `-` for none.
pub fn moment(time: Option<OffsetDateTime>) -> String {
    let Some(time) = time else {
        return "-".to_owned();
    };
    let time = time.to_offset(time::UtcOffset::UTC);
    let (date, (hour, minute, second)) = (time.date(), time.to_hms());
    format!("{date} {hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    pub(super) fn law(law_id: &str, oui: i64, non: i64) -> LawResult {
        LawResult { law_id: law_id.to_owned(), oui, non, updated_at: None }
    }

    #[test]
    fn a_share_that_is_not_all_or_nothing_never_looks_so() {
        for (oui, non, shown) in [
            (0, 0, ["-", "-"]),
            (1, -1, ["-", "-"]),
            (-1, 5, ["-", "-"]),
            (5, 0, ["100.0", "0.0"]),
            (0, 5, ["0.0", "100.0"]),
            (1, 2, ["33.3", "66.7"]),
            (1, 1, ["50.0", "50.0"]),
            (1, 7, ["12.5", "87.5"]),
            (667, 1_333, ["33.4", "66.6"]),
            (999_999, 1, [">99.9", "<0.1"]),
            (1, i64::MAX, ["<0.1", ">99.9"]),
            (i64::MAX, i64::MAX, ["50.0", "50.0"]),
            (1, 1_999, ["0.1", "99.9"]),
            (1, 2_000, ["<0.1", ">99.9"]),
            // Exactly between 99.9 and 100.0.
            (1_999, 1, [">99.9", "<0.1"]),
        ] {
            assert_eq!(percentages(oui, non), shown, "{oui} to {non}");
        }
    }

    proptest! {
        #[test]
        fn shares_are_well_rounded_and_come_to_a_hundred(oui in 0_i64.., non in 0_i64..) {
            prop_assume!(oui > 0 || non > 0);
            let [yes, no] = percentages(oui, non);
            if let (Ok(a), Ok(b)) = (yes.parse::<f64>(), no.parse::<f64>()) {
                prop_assert!((a + b - 100.0).abs() < 1e-9, "{yes} and {no}");
                let exact = oui as f64 / (oui as f64 + non as f64) * 100.0;
                prop_assert!((a - exact).abs() < 0.05 + 1e-9, "{yes}, and {exact}");
                prop_assert!((oui == 0) == (yes == "0.0") && (non == 0) == (yes == "100.0"));
            } else {
                prop_assert!(yes.starts_with(['<', '>']) && no.starts_with(['<', '>']));
                prop_assert!(oui > 0 && non > 0);
            }
        }

        #[test]
        fn what_is_printed_has_no_control_characters(text in any::<String>()) {
            prop_assert!(!printable(&text).chars().any(char::is_control));
        }
    }

    #[test]
    fn shares_for_programs_are_not_rounded() {
        assert_eq!(percent(1, 3), Some(100.0 / 3.0));
        assert_eq!((percent(0, 0), percent(-1, 3), percent(4, 3)), (None, None, None));
    }

    #[test]
    fn laws_are_sorted_by_votes_by_name_or_by_time_and_then_by_name() {
        let at = |law: LawResult, at| LawResult { updated_at: Some(at), ..law };
        let mut reading = Reading {
            laws: vec![
                law("c", 5, 5),
                at(law("b", 20, 0), datetime!(2026-11-25 21:00 UTC)),
                at(law("a", 4, 6), datetime!(2026-11-25 22:00 UTC)),
            ],
            at: datetime!(2026-11-25 23:00 UTC),
        };
        for (order, sorted) in [
            (Order::Votes, ["b", "a", "c"]),
            (Order::Law, ["a", "b", "c"]),
            (Order::Updated, ["a", "b", "c"]),
        ] {
            reading.laws.reverse();
            reading.sort(order);
            let names: Vec<&str> = reading.laws.iter().map(|law| law.law_id.as_str()).collect();
            assert_eq!(names, sorted, "{order:?}");
        }
        let sum = reading.sum();
        assert_eq!((sum.oui, sum.non, sum.total()), (29, 11, 40));
        assert_eq!(sum.updated_at, Some(datetime!(2026-11-25 22:00 UTC)));
        let asked = ["b", "d"].map(str::to_owned);
        assert_eq!(reading.not_counted(&asked), ["d"]);
    }

    #[test]
    fn counts_and_times_are_for_people() {
        for (count, shown) in [(0, "0"), (999, "999"), (1_000, "1,000"), (-1_234_567, "-1,234,567")]
        {
            assert_eq!(grouped(count), shown);
        }
        assert_eq!(grouped(i64::MIN), "-9,223,372,036,854,775,808");
        let time = datetime!(2026-11-25 23:05:09.9 +2);
        assert_eq!(moment(Some(time)), "2026-11-25 21:05:09Z");
        assert_eq!(moment(None), "-");
    }

    #[test]
    fn a_terminal_is_given_nothing_to_obey() {
        assert_eq!(printable("law-001"), "law-001");
        assert_eq!(printable("loi d'été \"1\""), "loi d'été \"1\"");
        assert_eq!(printable("a\x1b[2J\r\n\u{202e}\\"), "a\\u{1b}[2J\\r\\n\\u{202e}\\\\");
    }
}
