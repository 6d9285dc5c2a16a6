//! What each kind of setting must be, for serde: text in, a checked value out.
//!
//! Whatever layer a value came from, it arrives here as text, so that `100` means the same in a
//! file, in the environment and on the command line, and a password that looks like a number
//! stays the text it was.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use figment::value::magic::RelativePathBuf;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};
use strum::VariantNames;

use super::hosts::Hosts;
use super::problems::Refusal;
use super::rabbitmq::ManagementUrl;
use super::urls;
use crate::model::cell::{Cell, NotACell};
use crate::platform::tls;

/// Longest AMQP name (a short string), in bytes.
pub(super) const LONGEST_AMQP_NAME: usize = 255;

/// Largest PEM file, in bytes: several times a system's whole bundle of authorities.
const LARGEST_PEM_FILE: u64 = 4_194_304;

/// What to do about a line break at the end.
const LINE_BREAK: &str = "write the value without it: `echo` puts one there, in a Kubernetes Secret for \
     example; `echo -n` and `printf %s` do not";

/// The value that `check` makes of a setting's text.
fn checked<'de, T, D: Deserializer<'de>>(
    setting: D,
    check: impl FnOnce(&str) -> Result<T, Refusal>,
) -> Result<T, D::Error> {
    check(&String::deserialize(setting)?).map_err(D::Error::custom)
}

/// As [`checked`], for a setting that may be unset.
fn checked_if_set<'de, T: Default, D: Deserializer<'de>>(
    setting: D,
    check: impl FnOnce(&str) -> Result<T, Refusal>,
) -> Result<T, D::Error> {
    let text = Option::<String>::deserialize(setting)?;
    text.map_or(Ok(T::default()), |text| check(&text)).map_err(D::Error::custom)
}

/// A whole number between two bounds, both included.
pub(super) struct Whole<const LEAST: u64, const MOST: u64>;

impl<const LEAST: u64, const MOST: u64> Whole<LEAST, MOST> {
    pub fn deserialize<'de, T, D>(setting: D) -> Result<T, D::Error>
    where
        T: TryFrom<u64>,
        D: Deserializer<'de>,
    {
        checked(setting, |text| {
            if text.contains("://") {
                return Err(Refusal::new(
                    "is an address, as Kubernetes sets it in each pod for a Service of that name \
                     (service links)",
                    "set enableServiceLinks: false in the pod's spec, or set the variable to the \
                     port's number in the container's env, which replaces it",
                ));
            }
            let wrong = match text.trim().parse::<i128>().map(u64::try_from) {
                Err(_) => "is not a whole number".to_owned(),
                Ok(Ok(number)) if (LEAST..=MOST).contains(&number) => {
                    return Ok(T::try_from(number).ok().expect("its bounds fit its type"));
                }
                Ok(_) => format!("is not between {LEAST} and {MOST}"),
            };
            Err(Refusal::new(wrong, format!("give a whole number from {LEAST} to {MOST}")))
        })
    }
}

/// A span of time in seconds, fractions allowed, between two bounds in milliseconds, both included.
pub(super) struct Seconds<const LEAST: u64, const MOST: u64>;

impl<const LEAST: u64, const MOST: u64> Seconds<LEAST, MOST> {
    pub fn deserialize<'de, D: Deserializer<'de>>(setting: D) -> Result<Duration, D::Error> {
        let [least, most] = [LEAST, MOST].map(|bound| Duration::from_millis(bound).as_secs_f64());
        let help = format!("give seconds, from {least} to {most}, such as 1.5");
        checked(setting, |text| {
            let wrong = match text.trim().parse::<f64>() {
                Err(_) => "is not a number of seconds".to_owned(),
                Ok(number) if !number.is_finite() => "is not a finite number of seconds".to_owned(),
                Ok(number) if (least..=most).contains(&number) => {
                    return Ok(Duration::from_secs_f64(number));
                }
                Ok(_) => format!("is not between {least} and {most} seconds"),
            };
            Err(Refusal::new(wrong, help))
        })
    }

    pub fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&value.as_secs_f64())
    }
}

/// As [`Seconds`] from 0, where 0 means never.
pub(super) struct SecondsOrNever<const MOST: u64>;

impl<const MOST: u64> SecondsOrNever<MOST> {
    pub fn deserialize<'de, D: Deserializer<'de>>(
        setting: D,
    ) -> Result<Option<Duration>, D::Error> {
        let span = Seconds::<0, MOST>::deserialize(setting)?;
        Ok(Some(span).filter(|span| !span.is_zero()))
    }

    pub fn serialize<S: Serializer>(value: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        Seconds::<0, MOST>::serialize(&value.unwrap_or_default(), to)
    }
}

/// The span of a heartbeat, which AMQP carries in whole seconds.
pub(super) struct Heartbeat;

impl Heartbeat {
    pub fn deserialize<'de, D: Deserializer<'de>>(setting: D) -> Result<Duration, D::Error> {
        Whole::<1, 3600>::deserialize(setting).map(Duration::from_secs)
    }

    pub fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&value.as_secs())
    }
}

/// Names of alarms about lost votes, eight hexadecimal digits each, with commas between them.
pub(super) fn alarms<'de, D: Deserializer<'de>>(setting: D) -> Result<Vec<String>, D::Error> {
    checked_if_set(setting, |text| {
        let names: Vec<_> = text.split(',').map(|name| name.trim().to_ascii_lowercase()).collect();
        if names.iter().all(|it| it.len() == 8 && it.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            return Ok(names);
        }
        let help = "give the eight characters that the log names, e.g. 0a1b2c3d, several with commas \
                    between them, or remove it";
        Err(Refusal::new("is not the name of an alarm", help))
    })
}

/// Yes or no, in the spellings people use.
pub(super) fn boolean<'de, D: Deserializer<'de>>(setting: D) -> Result<bool, D::Error> {
    checked(setting, truth)
}

pub(super) fn truth(text: &str) -> Result<bool, Refusal> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(Refusal::new("is neither true nor false", "write true or false")),
    }
}

/// One of the words that strum knows, in any case.
pub(super) fn word<'de, T: FromStr + VariantNames, D: Deserializer<'de>>(
    setting: D,
) -> Result<T, D::Error> {
    checked(setting, |text| {
        let help = || format!("give one of {}", T::VARIANTS.join(", "));
        text.trim().parse().map_err(|_| Refusal::new("is not an accepted value", help()))
    })
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

/// A name as it is written: a user, a database.
pub(super) fn name<'de, D: Deserializer<'de>>(setting: D) -> Result<String, D::Error> {
    checked(setting, plain)
}

/// A name that AMQP can carry: 1 to 255 bytes without control characters.
pub(super) fn amqp_name<'de, D: Deserializer<'de>>(setting: D) -> Result<String, D::Error> {
    checked(setting, short_name)
}

fn short_name(text: &str) -> Result<String, Refusal> {
    if text.len() > LONGEST_AMQP_NAME {
        return Err(Refusal::new(
            format!("is {} bytes long, more than AMQP's {LONGEST_AMQP_NAME}", text.len()),
            format!("give a name of 1 to {LONGEST_AMQP_NAME} bytes"),
        ));
    }
    plain(text)
}

/// A queue's name, empty when it is unset.
pub(super) fn queue<'de, D: Deserializer<'de>>(setting: D) -> Result<String, D::Error> {
    checked_if_set(setting, |text| {
        if text.starts_with("amq.") {
            let wrong = "begins with amq., which the broker keeps for itself";
            return Err(Refusal::new(wrong, "choose another name"));
        }
        short_name(text)
    })
}

/// A cell, if one is set.
pub(super) fn cell<'de, D: Deserializer<'de>>(setting: D) -> Result<Option<Cell>, D::Error> {
    checked_if_set(setting, |text| {
        let not_a_cell = |error: NotACell| Refusal::new("is not a cell", error.to_string());
        text.trim().parse().map(Some).map_err(not_a_cell)
    })
}

/// The host of a server, or a list of addresses.
pub(super) fn hosts<'de, D: Deserializer<'de>>(setting: D) -> Result<Hosts, D::Error> {
    checked(setting, |text| Hosts::parse(text, false))
}

/// As [`hosts`]; PostgreSQL's host may also be the absolute path of the directory of its socket.
pub(super) fn hosts_or_socket<'de, D: Deserializer<'de>>(setting: D) -> Result<Hosts, D::Error> {
    checked(setting, |text| Hosts::parse(text, true))
}

/// An IP address to listen on. `localhost` stands for 127.0.0.1.
pub(super) fn address<'de, D: Deserializer<'de>>(setting: D) -> Result<IpAddr, D::Error> {
    checked(setting, |text| {
        let text = text.trim();
        if text.eq_ignore_ascii_case("localhost") {
            return Ok(Ipv4Addr::LOCALHOST.into());
        }
        let help =
            "give 0.0.0.0 (every interface), 127.0.0.1 (this machine only) or another IP address";
        let parsed = text.trim_start_matches('[').trim_end_matches(']').parse();
        parsed.map_err(|_| Refusal::new("is not an IP address", help))
    })
}

/// The address of the management API, if one is set.
pub(super) fn management_url<'de, D: Deserializer<'de>>(
    setting: D,
) -> Result<Option<ManagementUrl>, D::Error> {
    checked_if_set(setting, |text| urls::management(text).map(Some))
}

/// The path of a file, if one is set.
pub(super) fn file<'de, D: Deserializer<'de>>(setting: D) -> Result<Option<PathBuf>, D::Error> {
    let Some(path) = Option::<RelativePathBuf>::deserialize(setting)? else { return Ok(None) };
    plain(&path.original().to_string_lossy()).map_err(D::Error::custom)?;
    Ok(Some(path.relative()))
}

/// The path of a PEM file of authorities, if one is set.
pub(super) fn authorities<'de, D: Deserializer<'de>>(
    setting: D,
) -> Result<Option<PathBuf>, D::Error> {
    pem(setting, tls::authorities)
}

/// The path of a PEM file of a private key, if one is set.
pub(super) fn private_key<'de, D: Deserializer<'de>>(
    setting: D,
) -> Result<Option<PathBuf>, D::Error> {
    pem(setting, tls::check_key)
}

fn pem<'de, T, D: Deserializer<'de>>(
    setting: D,
    check: fn(&[u8]) -> Result<T, String>,
) -> Result<Option<PathBuf>, D::Error> {
    let path = file(setting)?;
    if let Some(path) = &path {
        let checked = read_pem(path).and_then(|pem| check(&pem).map_err(Refusal::of_pem));
        checked.map_err(D::Error::custom)?;
    }
    Ok(path)
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
