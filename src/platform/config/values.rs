//! What each kind of setting must be: text in, a checked value out.
//!
//! Whatever layer a value came from, it arrives here as text, so that `100` means the same in a
//! file, in the environment and on the command line, and a password that looks like a number
//! stays the text it was.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use serde::Serializer;
use strum::VariantNames;

use super::problems::Refusal;

/// Longest AMQP name (a short string), in bytes.
pub(super) const LONGEST_AMQP_NAME: usize = 255;

/// Largest PEM file, in bytes: several times a system's whole bundle of authorities.
const LARGEST_PEM_FILE: u64 = 4_194_304;

/// What to do about a line break at the end.
const LINE_BREAK: &str = "write the value without it: `echo` puts one there, in a Kubernetes Secret for \
     example; `echo -n` and `printf %s` do not";

pub(super) const ONE_HOST: &str = "give one host; lists are not supported yet";

/// A whole number.
pub(super) fn whole<T: TryFrom<i128>>(
    range: RangeInclusive<i128>,
) -> impl Fn(&str) -> Result<T, Refusal> {
    move |text| {
        if text.contains("://") {
            return Err(Refusal::new(
                "is an address, as Kubernetes sets it in each pod for a Service of that name \
                 (service links)",
                "set enableServiceLinks: false in the pod's spec, or set the variable to the \
                 port's number in the container's env, which replaces it",
            ));
        }
        let (least, most) = (range.start(), range.end());
        let wrong = match text.trim().parse::<i128>() {
            Err(_) => "is not a whole number".to_owned(),
            Ok(number) => match T::try_from(number) {
                Ok(value) if range.contains(&number) => return Ok(value),
                _ => format!("is not between {least} and {most}"),
            },
        };
        Err(Refusal::new(wrong, format!("give a whole number from {least} to {most}")))
    }
}

/// A span of time in seconds, fractions allowed.
pub(super) fn seconds(range: RangeInclusive<f64>) -> impl Fn(&str) -> Result<Duration, Refusal> {
    move |text| {
        let (least, most) = (range.start(), range.end());
        let wrong = match text.trim().parse::<f64>() {
            Err(_) => "is not a number of seconds".to_owned(),
            Ok(number) if !number.is_finite() => "is not a finite number of seconds".to_owned(),
            Ok(number) if range.contains(&number) => return Ok(Duration::from_secs_f64(number)),
            Ok(_) => format!("is not between {least} and {most} seconds"),
        };
        Err(Refusal::new(wrong, format!("give seconds, from {least} to {most}, such as 1.5")))
    }
}

/// Shows a span of time in seconds.
pub(super) fn as_seconds<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&value.as_secs_f64())
}

/// Names of alarms about lost votes, eight hexadecimal digits each, with commas between them.
pub(super) fn alarms(text: &str) -> Result<Vec<String>, Refusal> {
    let names: Vec<_> = text.split(',').map(|name| name.trim().to_ascii_lowercase()).collect();
    if names.iter().all(|it| it.len() == 8 && it.bytes().all(|byte| byte.is_ascii_hexdigit())) {
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

/// One of the words that strum knows, in any case.
pub(super) fn word<T: FromStr + VariantNames>(text: &str) -> Result<T, Refusal> {
    let help = || format!("give one of {}", T::VARIANTS.join(", "));
    text.trim().parse().map_err(|_| Refusal::new("is not an accepted value", help()))
}

/// A text, such as a user's name. One with quotation marks around it, a blank at either end or a control
/// character is refused: most likely a shell or a file added them, no queue, host or user has such a
/// name, and the service would create the queue and count nothing.
pub(super) fn plain(text: &str) -> Result<String, Refusal> {
    const QUOTES: [char; 7] = ['"', '\'', '`', '\u{201c}', '\u{201d}', '\u{2018}', '\u{2019}'];
    let blank = |c: char| c.is_whitespace() || c == '\u{feff}';
    if text.ends_with(blank) || text.starts_with(blank) {
        let place = if text.starts_with(blank) { "begins" } else { "ends" };
        let line_break = text.ends_with(['\n', '\r']);
        let help = if line_break { LINE_BREAK } else { "write the value without it" };
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

/// A password. One with a control character is refused: no server has it, and a driver may not even
/// send it. Blanks and quotation marks may be anywhere.
pub(super) fn secret(text: &str) -> Result<String, Refusal> {
    if text.ends_with(['\n', '\r']) {
        return Err(Refusal::new("ends with a control character, a line break", LINE_BREAK));
    }
    if text.starts_with('\u{feff}') {
        let wrong = "begins with a byte order mark, which is part of it";
        return Err(Refusal::new(wrong, "save it as UTF-8 without one"));
    }
    no_control_character(text)
}

fn no_control_character(text: &str) -> Result<String, Refusal> {
    if text.chars().any(char::is_control) {
        let wrong = "holds a control character or a line break";
        return Err(Refusal::new(wrong, "write the value without it"));
    }
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
    plain(text)
}

/// A queue's name.
pub(super) fn queue(text: &str) -> Result<String, Refusal> {
    if text.starts_with("amq.") {
        let wrong = "begins with amq., which the broker keeps for itself";
        return Err(Refusal::new(wrong, "choose another name"));
    }
    amqp_name(text)
}

/// A host name or an IP address, not a URL and not `host:port`.
pub(super) fn host(text: &str) -> Result<String, Refusal> {
    let help = "give a host name or an IP address alone; the port has a setting of its own";
    plain(text)?;
    if text.contains([',', ';']) {
        return Err(Refusal::new("is a list of hosts", ONE_HOST));
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
    if text.starts_with('/') { plain(text) } else { host(text) }
}

/// An IP address to listen on. `localhost` stands for 127.0.0.1.
pub(super) fn address(text: &str) -> Result<IpAddr, Refusal> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("localhost") {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    let help =
        "give 0.0.0.0 (every interface), 127.0.0.1 (this machine only) or another IP address";
    let parsed = text.trim_start_matches('[').trim_end_matches(']').parse();
    parsed.map_err(|_| Refusal::new("is not an IP address", help))
}

/// The bytes of a PEM file.
pub(super) fn read_pem(path: &Path) -> Result<Vec<u8>, Refusal> {
    let help = "give the path of a file that this service may read";
    let bytes = read_file(path, LARGEST_PEM_FILE)
        .map_err(|error| Refusal::new(format!("cannot be read ({error})"), help))?;
    bytes.ok_or_else(|| Refusal::of_pem("is too large for a PEM file".to_owned()))
}

/// The bytes of a file, `None` when there are more than `largest`.
pub(super) fn read_file(path: &Path, largest: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(largest + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes).filter(|bytes| bytes.len() as u64 <= largest))
}
