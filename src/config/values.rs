//! One value at a time: text in, a checked value out.
//!
//! Whatever layer a value came from, it arrives here as text, so that `100` means the same in a
//! file, in the environment and on the command line, and a password that looks like a number
//! stays the text it was.

use std::fs::File;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::problems::Refusal;

/// Longest AMQP name (a short string), in bytes.
const LONGEST_AMQP_NAME: usize = 255;

/// Largest PEM file, in bytes: several times a system's whole bundle of authorities.
const LARGEST_PEM_FILE: u64 = 4_194_304;

const LINE_BREAKS: [char; 2] = ['\n', '\r'];

/// What to do about a line break at the end.
const LINE_BREAK: &str = "write the value without it: `echo` puts one there, in a Kubernetes Secret for \
     example; `echo -n` and `printf %s` do not";

/// A port's number.
pub(super) fn port(least: u16) -> impl Fn(&str) -> Result<u16, Refusal> {
    move |text| {
        if text.contains("://") {
            return Err(Refusal::new(
                "is an address, as Kubernetes sets it in each pod for a Service of that name \
                 (service links)",
                "set enableServiceLinks: false in the pod's spec, or set the variable to the port's \
                 number in the container's env, which replaces it",
            ));
        }
        whole(least.into(), 65_535)(text)
    }
}

/// A whole number between two bounds, both included.
pub(super) fn whole<T: TryFrom<u64>>(least: u64, most: u64) -> impl Fn(&str) -> Result<T, Refusal> {
    move |text| {
        let help = || format!("give a whole number from {least} to {most}");
        let number: i128 =
            text.trim().parse().map_err(|_| Refusal::new("is not a whole number", help()))?;
        u64::try_from(number)
            .ok()
            .filter(|number| (least..=most).contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| Refusal::new(format!("is not between {least} and {most}"), help()))
    }
}

/// A span of time in seconds between two bounds, both included; fractions are allowed.
pub(super) fn seconds(least: f64, most: f64) -> impl Fn(&str) -> Result<Duration, Refusal> {
    move |text| {
        let help = || format!("give seconds, from {least} to {most}, such as 1.5");
        let number: f64 =
            text.trim().parse().map_err(|_| Refusal::new("is not a number of seconds", help()))?;
        if !number.is_finite() {
            return Err(Refusal::new("is not a finite number of seconds", help()));
        }
        if !(least..=most).contains(&number) {
            return Err(Refusal::new(format!("is not between {least} and {most} seconds"), help()));
        }
        Duration::try_from_secs_f64(number)
            .map_err(|_| Refusal::new("is not a span of time", help()))
    }
}

/// Names of alarms about lost votes, eight hexadecimal digits each, with commas between them.
pub(super) fn alarms(text: &str) -> Result<Vec<String>, Refusal> {
    let names = text.split(',').map(str::trim).map(str::to_ascii_lowercase);
    let names: Vec<String> = names.collect();
    let known = |name: &String| name.len() == 8 && name.bytes().all(|b| b.is_ascii_hexdigit());
    if names.iter().all(known) {
        return Ok(names);
    }
    let help = "give the eight characters that the log names, e.g. 0a1b2c3d, several with commas \
                between them, or remove it";
    Err(Refusal::new("is not the name of an alarm", help))
}

/// Yes or no, in the spellings people use.
pub(super) fn boolean(text: &str) -> Result<bool, Refusal> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(Refusal::new("is neither true nor false", "write true or false")),
    }
}

/// Refuses a text that its source most likely changed on the way: quotation marks around it, a blank
/// at either end, a control character. Such a queue, host or user exists nowhere, and the service
/// would create the queue and count nothing.
pub(super) fn plain(text: &str) -> Result<(), Refusal> {
    const QUOTES: [char; 7] = ['"', '\'', '`', '\u{201c}', '\u{201d}', '\u{2018}', '\u{2019}'];
    let blank = |c: char| c.is_whitespace() || c == '\u{feff}';
    let (begins, ends) = (text.starts_with(blank), text.ends_with(blank));
    if begins || ends {
        let place = if begins { "begins" } else { "ends" };
        let help =
            if text.ends_with(LINE_BREAKS) { LINE_BREAK } else { "write the value without it" };
        return Err(Refusal::new(format!("{place} with a blank or a line break"), help));
    }
    if text.starts_with(QUOTES) || text.ends_with(QUOTES) {
        return Err(Refusal::new(
            "has quotation marks around it, which are part of the value",
            "write the value without them: docker run --env-file, among others, keeps them",
        ));
    }
    no_control_character(text)
}

/// Refuses a password that its source most likely changed: with a control character no server has it,
/// and a driver may not even send it. Blanks and quotation marks may be anywhere.
pub(super) fn secret(text: &str) -> Result<(), Refusal> {
    if text.ends_with(LINE_BREAKS) {
        return Err(Refusal::new("ends with a control character, a line break", LINE_BREAK));
    }
    if text.starts_with('\u{feff}') {
        return Err(Refusal::new(
            "begins with a byte order mark, which is part of it",
            "save it as UTF-8 without one",
        ));
    }
    no_control_character(text)
}

/// Refuses a control character, wherever it is.
fn no_control_character(text: &str) -> Result<(), Refusal> {
    if text.chars().any(char::is_control) {
        return Err(Refusal::new(
            "holds a control character or a line break",
            "write the value without it",
        ));
    }
    Ok(())
}

/// A name as it is written: a user, a database.
pub(super) fn name(text: &str) -> Result<String, Refusal> {
    plain(text)?;
    Ok(text.to_owned())
}

/// A name that AMQP can carry: 1 to 255 bytes without control characters.
pub(super) fn amqp_name(text: &str) -> Result<String, Refusal> {
    if text.len() > LONGEST_AMQP_NAME {
        return Err(Refusal::new(
            format!("is {} bytes long, more than AMQP's {LONGEST_AMQP_NAME}", text.len()),
            format!("give a name of 1 to {LONGEST_AMQP_NAME} bytes"),
        ));
    }
    name(text)
}

/// A queue's name.
pub(super) fn queue(text: &str) -> Result<String, Refusal> {
    if text.starts_with("amq.") {
        return Err(Refusal::new(
            "begins with amq., which the broker keeps for itself",
            "choose another name",
        ));
    }
    amqp_name(text)
}

/// A host name or an IP address, not a URL and not `host:port`.
pub(super) fn host(text: &str) -> Result<String, Refusal> {
    let help = "give a host name or an IP address alone; the port has a setting of its own";
    plain(text)?;
    if text.contains([',', ';']) {
        return Err(Refusal::new(
            "is a list of hosts",
            "give one host; lists are not supported yet",
        ));
    }
    // An IPv6 address may come in the brackets that a URL needs.
    let text = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(text);
    if text.is_empty() {
        return Err(Refusal::new("is blank", help));
    }
    let in_a_name = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | '_');
    if text.parse::<IpAddr>().is_err() && !text.chars().all(in_a_name) {
        return Err(Refusal::new("is not a host name", help));
    }
    Ok(text.to_owned())
}

/// PostgreSQL's host: also the absolute path of the directory of its socket.
pub(super) fn host_or_socket(text: &str) -> Result<String, Refusal> {
    if text.starts_with('/') { name(text) } else { host(text) }
}

/// An IP address to listen on. `localhost` stands for 127.0.0.1.
pub(super) fn address(text: &str) -> Result<IpAddr, Refusal> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("localhost") {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    text.trim_start_matches('[').trim_end_matches(']').parse().map_err(|_| {
        Refusal::new(
            "is not an IP address",
            "give 0.0.0.0 (every interface), 127.0.0.1 (this machine only) or another IP address",
        )
    })
}

/// A PEM file: its path and its bytes, which `check` may refuse. A relative path starts at `base`.
pub(super) fn pem_file<'a>(
    base: &'a Path,
    check: impl Fn(&[u8]) -> Result<(), String> + 'a,
) -> impl Fn(&str) -> Result<(PathBuf, Vec<u8>), Refusal> + 'a {
    move |text| {
        plain(text)?;
        let path = base.join(text);
        let unreadable = |error| {
            Refusal::new(
                format!("cannot be read ({error})"),
                "give the path of a file that this service may read",
            )
        };
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(LARGEST_PEM_FILE + 1).read_to_end(&mut bytes))
            .map_err(unreadable)?;
        let refused = |why| Refusal::new(why, "name the right file, in PEM form");
        if bytes.len() as u64 > LARGEST_PEM_FILE {
            return Err(refused("is too large for a PEM file".to_owned()));
        }
        check(&bytes).map_err(refused)?;
        Ok((path, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong<T: std::fmt::Debug>(result: Result<T, Refusal>) -> String {
        result.expect_err("the value must be refused").wrong
    }

    #[test]
    fn whole_numbers() {
        let port = whole::<u16>(1, 65_535);
        assert_eq!(port(" 5672 "), Ok(5672));
        assert_eq!(wrong(port("0")), "is not between 1 and 65535");
        assert_eq!(wrong(port("65536")), "is not between 1 and 65535");
        assert_eq!(wrong(port("-1")), "is not between 1 and 65535");
        for text in ["", "abc", "1.0", "1e3", "0x10", "1_000", "true"] {
            assert_eq!(wrong(port(text)), "is not a whole number", "{text}");
        }
    }

    #[test]
    fn spans_of_time() {
        let timeout = seconds(0.001, 3600.0);
        assert_eq!(timeout("1.0"), Ok(Duration::from_secs(1)));
        assert_eq!(timeout("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(timeout("3600"), Ok(Duration::from_secs(3600)));
        for text in ["0", "-1", "0.0009", "3600.1", "1e300"] {
            assert!(wrong(timeout(text)).contains("between"), "{text}");
        }
        for text in ["NaN", "inf", "-inf", "infinity", "1e999"] {
            assert!(wrong(timeout(text)).contains("finite"), "{text}");
        }
        for text in ["", "1s", "one"] {
            assert!(wrong(timeout(text)).contains("number of seconds"), "{text}");
        }
    }

    #[test]
    fn booleans_in_any_spelling_and_case() {
        for text in ["true", "TRUE", "1", "yes", "Yes", "on", " on "] {
            assert_eq!(boolean(text), Ok(true), "{text}");
        }
        for text in ["false", "False", "0", "no", "NO", "off"] {
            assert_eq!(boolean(text), Ok(false), "{text}");
        }
        for text in ["2", "ja", "truee", "t"] {
            assert!(boolean(text).is_err(), "{text}");
        }
    }

    #[test]
    fn queue_names() {
        assert_eq!(queue("votes.aggregation"), Ok("votes.aggregation".to_owned()));
        assert!(queue(&"x".repeat(255)).is_ok());
        assert!(wrong(queue(&"é".repeat(128))).contains("256 bytes"));
        assert!(wrong(queue("a\u{7}b")).contains("control"));
        assert!(wrong(queue("amq.votes")).contains("amq."));
    }

    #[test]
    fn what_a_source_added_to_a_text_is_refused() {
        for (text, named) in [
            ("\"votes\"", "quotation marks"),
            ("'votes'", "quotation marks"),
            ("\u{201c}votes\u{201d}", "quotation marks"),
            ("votes\"", "quotation marks"),
            (" votes", "begins with a blank"),
            ("votes ", "ends with a blank"),
            ("votes\n", "ends with a blank or a line break"),
            ("votes\u{a0}", "ends with a blank"),
            ("vo\ttes", "control character"),
        ] {
            for refused in [name(text), queue(text), amqp_name(text), host(text)] {
                assert!(wrong(refused).contains(named), "{text:?}");
            }
        }
        for text in ["votes.aggregation", "the votes", "vote's", "/", "a\"b", "é"] {
            assert_eq!(name(text), Ok(text.to_owned()));
        }
    }

    #[test]
    fn hosts() {
        for (text, host_name) in
            [("db.example.org", "db.example.org"), ("[::1]", "::1"), ("10.0.0.1", "10.0.0.1")]
        {
            assert_eq!(host(text), Ok(host_name.to_owned()));
        }
        for text in ["amqp://h", "h:5672", "a b", " ", "h/x", "u@h", "h%", "h\\x", "[]", "h?"] {
            assert!(host(text).is_err(), "{text}");
        }
        for list in ["a,b", "a, b", "a;b", "10.0.0.1,10.0.0.2"] {
            assert!(wrong(host(list)).contains("list of hosts"), "{list}");
        }
        assert!(host_or_socket("/var/run/postgresql").is_ok());
    }

    #[test]
    fn addresses_to_listen_on() {
        assert_eq!(address("0.0.0.0"), Ok(Ipv4Addr::UNSPECIFIED.into()));
        assert_eq!(address("localhost"), Ok(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(address("[::]").map(|ip| ip.to_string()), Ok("::".to_owned()));
        assert!(address("example.org").is_err());
    }

    #[test]
    fn files_must_be_there_and_be_files() {
        let base = Path::new(env!("CARGO_MANIFEST_DIR"));
        let any = pem_file(base, |_| Ok(()));
        assert_eq!(any("Cargo.toml").map(|(path, _)| path), Ok(base.join("Cargo.toml")));
        assert!(wrong(any("no-such-file.pem")).contains("cannot be read"));
        assert!(wrong(any("src")).contains("directory"));
        assert!(wrong(any("/dev/zero")).contains("too large"));
        assert_eq!(wrong(pem_file(base, |_| Err("is odd".to_owned()))("Cargo.toml")), "is odd");
    }
}
