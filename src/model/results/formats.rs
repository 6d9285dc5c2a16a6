//! For programs: JSON, and CSV as RFC 4180 has it.

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{LawResult, Reading, percent, printable};
use crate::model::publication::Published;

const HEADER: &str = "law_id,oui,non,total,oui_percent,non_percent,updated_at\r\n";

/// What a spreadsheet takes for the beginning of a formula.
const FORMULA: [char; 4] = ['=', '+', '-', '@'];

/// One JSON object: the first `top` laws, the sums of all of them, which of the laws `asked` for
/// have no votes, what is public of it, and the time of the reading. Shares are not rounded; one that there is not
/// is null.
pub fn json(
    reading: &Reading,
    top: usize,
    asked: &[String],
    published: Option<&Published>,
) -> String {
    let laws = reading.laws.iter().take(top).map(|law| {
        let mut object = counts(law);
        object["law_id"] = law.law_id.as_str().into();
        object
    });
    let mut totals = counts(&reading.sum());
    totals["laws"] = reading.laws.len().into();
    let object = json!({
        "read_at": timestamp(Some(reading.at)),
        "laws": laws.collect::<Vec<Value>>(),
        "totals": totals,
        "not_counted": reading.not_counted(asked),
        "publication": published.map(Published::json),
    });
    format!("{object}\n")
}

fn counts(law: &LawResult) -> Value {
    json!({
        "oui": law.oui,
        "non": law.non,
        "total": law.total(),
        "oui_percent": percent(law.oui, law.total()),
        "non_percent": percent(law.non, law.total()),
        "updated_at": timestamp(law.updated_at),
    })
}

/// A header and the first `top` laws, one line each, and no sums: a column can be summed up. Shares
/// are not rounded; one that there is not is empty.
pub fn csv(reading: &Reading, top: usize) -> String {
    let mut text = HEADER.to_owned();
    for law in reading.laws.iter().take(top) {
        let share = |part| percent(part, law.total()).map(|p| p.to_string()).unwrap_or_default();
        let fields = [
            field(&law.law_id),
            law.oui.to_string(),
            law.non.to_string(),
            law.total().to_string(),
            share(law.oui),
            share(law.non),
            timestamp(law.updated_at).unwrap_or_default(),
        ];
        text.push_str(&fields.join(","));
        text.push_str("\r\n");
    }
    text
}

/// Text as a field. A control character, a line break too, is written as an escape, so that a law is
/// a line; what a spreadsheet would take for a formula gets an apostrophe in front of it, which a
/// spreadsheet takes for "this is text".
pub fn field(text: &str) -> String {
    let mut text = printable(text);
    // A full-width sign counts as the sign in some of them, and so does one behind spaces.
    let first = text.trim_start().chars().next().map(|first| match first {
        '\u{ff1d}' => '=',
        '\u{ff0b}' => '+',
        '\u{ff0d}' => '-',
        '\u{ff20}' => '@',
        other => other,
    });
    let formula = first.is_some_and(|first| FORMULA.contains(&first));
    if formula {
        text.insert(0, '\'');
    }
    // A semicolon separates columns where a comma separates decimals.
    if formula || text.contains([',', ';', '"', ' ']) {
        text = format!("\"{}\"", text.replace('"', "\"\""));
    }
    text
}

/// Whether a spreadsheet that guesses types takes this law id for a number, a date, a time or a truth
/// value, and shows another text: `0012`, `1E5`, `1.0`, `3-4`, `12:30`, `MAR1`, `true`.
///
/// Quotation marks do not keep it from that, and `="0012"` is another text to all other readers.
pub fn looks_like_a_value(law_id: &str) -> bool {
    const MONTHS: &str = "january february march april may june july august september october \
                          november december";
    let lower = law_id.to_ascii_lowercase();
    let (digits, words): (String, String) = lower.chars().partition(|c| !c.is_alphabetic());
    let only = |extra: &str| digits.chars().all(|c| c.is_ascii_digit() || extra.contains(c));
    match (words.as_str(), digits.chars().any(|c| c.is_ascii_digit())) {
        ("true" | "false", false) => digits.is_empty(),
        // A number of up to 15 digits stays as it is.
        ("", true) => {
            let whole = digits.bytes().all(|byte| byte.is_ascii_digit());
            let same = whole && digits.len() <= 15 && (digits == "0" || !digits.starts_with('0'));
            only("+-./:") && !same
        }
        ("e", true) => only("+-.") && !lower.starts_with('e') && !lower.ends_with('e'),
        ("am" | "pm" | "a" | "p", true) => only(": ") && lower.ends_with(&words),
        (month, true) => {
            month.len() >= 3
                && only("-./ ")
                && MONTHS.split(' ').any(|name| name.starts_with(month))
        }
        (_, false) => false,
    }
}

fn timestamp(time: Option<OffsetDateTime>) -> Option<String> {
    time.and_then(|time| time.to_offset(time::UtcOffset::UTC).format(&Rfc3339).ok())
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::super::tests::law;
    use super::*;

    fn reading(laws: Vec<LawResult>) -> Reading {
        Reading { laws, at: datetime!(2026-11-25 22:15:04 +1) }
    }

    #[test]
    fn json_has_the_first_laws_the_sums_of_all_and_the_time() {
        let updated_at = Some(datetime!(2026-11-25 21:15:03.25 UTC));
        let first = LawResult { updated_at, ..law("law-1", 3, 1) };
        let reading = reading(vec![first, law("law-2", 0, 1), law("empty", 0, 0)]);
        let text = json(&reading, 1, &["law-2".to_owned(), "law-9".to_owned()], None);
        let expected = json!({
            "read_at": "2026-11-25T21:15:04Z",
            "laws": [{
                "law_id": "law-1", "oui": 3, "non": 1, "total": 4, "oui_percent": 75.0,
                "non_percent": 25.0, "updated_at": "2026-11-25T21:15:03.25Z",
            }],
            "totals": {
                "laws": 3, "oui": 3, "non": 2, "total": 5, "oui_percent": 60.0,
                "non_percent": 40.0, "updated_at": "2026-11-25T21:15:03.25Z",
            },
            "not_counted": ["law-9"],
            "publication": null,
        });
        assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), expected);
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn json_without_a_law_has_no_shares() {
        let object: Value =
            serde_json::from_str(&json(&reading(vec![]), 9, &[], None)).expect("JSON");
        assert_eq!(object["laws"], json!([]));
        assert_eq!(object["totals"]["total"], 0);
        assert_eq!(object["totals"]["oui_percent"], Value::Null);
    }

    #[test]
    fn csv_is_a_line_a_law_that_ends_with_cr_lf() {
        let text = csv(&reading(vec![law("law-1", 1, 2), law("empty", 0, 0), law("x", 1, 0)]), 2);
        let lines: Vec<&str> = text.split("\r\n").collect();
        assert_eq!(
            lines,
            [
                "law_id,oui,non,total,oui_percent,non_percent,updated_at",
                "law-1,1,2,3,33.333333333333336,66.66666666666667,",
                "empty,0,0,0,,,",
                "",
            ]
        );
    }

    #[test]
    fn law_ids_that_a_spreadsheet_changes_are_known() {
        let changed = "0012 1E5 1e-5 1.0 007 3-4 2026.11 12:30 MAR1 1-sept TRUE 1234567890123456 -5 \
                       9:pm 00 1:30pm";
        for changed in changed.split(' ') {
            assert!(looks_like_a_value(changed), "{changed}");
        }
        for kept in
            ["law-001", "12", "0", "L0012", "E5", "5E", "march", "MA1", "12-x", "-", "", "a", "é1"]
        {
            assert!(!looks_like_a_value(kept), "{kept}");
        }
    }

    #[test]
    fn csv_quotes_what_has_to_be_and_leaves_a_spreadsheet_no_formula() {
        for (text, quoted) in [
            ("law-1", "law-1"),
            ("a,b", "\"a,b\""),
            ("a;=1", "\"a;=1\""),
            ("say \"oui\"", "\"say \"\"oui\"\"\""),
            ("=1+1", "\"'=1+1\""),
            ("-law", "\"'-law\""),
            ("+41", "\"'+41\""),
            ("@SUM(A1)", "\"'@SUM(A1)\""),
            (" =1", "\"' =1\""),
            ("\u{ff1d}1", "\"'\u{ff1d}1\""),
            // Written as escapes, these begin with no sign any more.
            ("\t=1", "\\t=1"),
            ("\r\n=1", "\\r\\n=1"),
            ("", ""),
        ] {
            assert_eq!(field(text), quoted, "{text:?}");
        }
    }
}
