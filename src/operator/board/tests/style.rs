//! The colours, by the contrast that WCAG 2.2 asks for: axe measures text alone.

use std::collections::BTreeMap;

use super::page::STYLE;

/// The colours of the theme that the text after `heading` sets.
fn colours(heading: &str) -> BTreeMap<&str, [u8; 3]> {
    let (_, rest) = STYLE.split_once(heading).expect(heading);
    let (block, _) = rest.split_once('}').expect("its end");
    let entries =
        block.split(';').filter_map(|line| line.trim().strip_prefix("--")?.split_once(": #"));
    entries
        .map(|(name, digits)| {
            // #fff is #ffffff.
            let width = digits.len() / 3;
            let channel = |n: usize| {
                let digits = &digits[n * width..(n + 1) * width];
                u8::from_str_radix(&digits.repeat(2 / width), 16).expect("digits")
            };
            (name, [channel(0), channel(1), channel(2)])
        })
        .collect()
}

/// WCAG 2.2, "relative luminance".
fn luminance(colour: [u8; 3]) -> f64 {
    let linear = colour.map(|channel| {
        let share = f64::from(channel) / 255.0;
        if share <= 0.04045 { share / 12.92 } else { ((share + 0.055) / 1.055).powf(2.4) }
    });
    0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
}

/// WCAG 2.2, "contrast ratio": from 1 to 21.
fn contrast(one: [u8; 3], other: [u8; 3]) -> f64 {
    let [one, other] = [luminance(one), luminance(other)];
    (one.max(other) + 0.05) / (one.min(other) + 0.05)
}

#[test]
fn text_lines_and_bars_are_seen_in_both_themes_and_on_paper() {
    assert!((contrast([0; 3], [255; 3]) - 21.0).abs() < 1e-9);
    for theme in [
        ":root {\n  color-scheme",
        "dark) {\n  :root {",
        "print {\n  @page { margin: 1.2cm; }\n  :root {",
    ] {
        let colours = colours(theme);
        let enough = |one: &str, other: &str, least: f64| {
            let found = contrast(colours[one], colours[other]);
            assert!(found >= least, "{theme}: {one} on {other}: {found:.1} of {least}");
        };
        // 1.4.3
        for text in ["text", "muted", "link", "alert", "test"] {
            enough(text, "back", 4.5);
        }
        // 1.4.11: the share of oui, the stripes of non, and the line at one half with its halo on each of them.
        for (one, other) in
            [("line", "back"), ("oui", "non"), ("hatch", "non"), ("oui", "back"), ("text", "back")]
        {
            enough(one, other, 3.0);
        }
    }
}
