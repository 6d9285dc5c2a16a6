//! What goes to a terminal: colours only where they are wanted, and untrusted text made harmless.

use std::ffi::OsStr;
use std::io::IsTerminal;

/// Whether it is a terminal that takes escape sequences.
fn draws(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && obeys(std::env::var_os("TERM").as_deref())
}

/// The shell of an editor and the console of a CI job are terminals with `TERM=dumb`, or without
/// TERM. indicatif and clap decide in the same way.
fn obeys(term: Option<&OsStr>) -> bool {
    term.is_some_and(|term| !term.is_empty() && term != "dumb")
}

/// Whether a person who likes colours reads it: <https://no-color.org>.
pub fn colours(stream: &impl IsTerminal) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !refused && draws(stream)
}

/// Escapes what a terminal would obey and what would change the look of the text around it: control
/// characters, line separators, and marks of direction or without any width.
pub fn printable(text: &str) -> String {
    let shown = |c: char| if obeyed(c) { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

/// The same in a line of JSON, where such a character can only be within a string.
pub fn json_line(json: &str) -> String {
    let shown = |c: char| {
        let escape = |unit: &mut u16| format!("\\u{unit:04x}");
        if obeyed(c) {
            c.encode_utf16(&mut [0; 2]).iter_mut().map(escape).collect()
        } else {
            c.to_string()
        }
    };
    json.chars().map(shown).collect()
}

fn obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_obeyed_and_the_rest_stays() {
        assert_eq!(printable("é \"quoted\" \\ 投票"), "é \"quoted\" \\ 投票");
        assert_eq!(printable("a\x1b[2J\r\n\u{9b}b"), "a\\u{1b}[2J\\r\\n\\u{9b}b");
        assert_eq!(printable("\u{202e}oui\u{200b}"), "\\u{202e}oui\\u{200b}");
    }

    #[test]
    fn a_dumb_terminal_obeys_nothing() {
        assert!(obeys(Some(OsStr::new("xterm-256color"))));
        for term in [None, Some(""), Some("dumb")] {
            assert!(!obeys(term.map(OsStr::new)), "{term:?}");
        }
    }

    #[test]
    fn json_stays_the_same_json() {
        let text = "a\u{9b}b\u{7f}\u{202e}\u{e0041}\n\"";
        let line = json_line(&serde_json::to_string(text).expect("JSON"));
        assert!(line.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{line}");
        assert_eq!(serde_json::from_str::<String>(&line).expect("JSON"), text);
    }
}
