//! The message: one vote as UTF-8 JSON, decoded and validated without any I/O.
//!
//! Every rule here rejects: a message that breaks one is malformed and will be so on every
//! redelivery, hence it is dead-lettered and never requeued. The first broken rule is the reason
//! given, in the order of [`Reason`].

mod json;
mod shape;
mod timestamp;

use std::fmt;

use compact_str::CompactString;
use strum::{IntoStaticStr, VariantArray};
use time::OffsetDateTime;

use crate::model::cell::Cell;

/// Longest `vote_hash`, in characters.
pub const MAX_VOTE_HASH: usize = 64;
/// Longest `law_id`, in characters.
pub const MAX_LAW_ID: usize = 50;
/// Longest `citizen_id`, in characters (Unicode scalar values, as PostgreSQL counts them).
pub const MAX_CITIZEN_ID: usize = 100;

/// The fields of a message, in the order in which they are checked.
const FIELDS: [&str; 5] = ["vote_hash", "citizen_id", "law_id", "choice", "timestamp"];

/// What was voted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Choice {
    Oui,
    Non,
}

impl Choice {
    /// Both choices, in the order in which results name them.
    pub const ALL: [Self; 2] = [Self::Oui, Self::Non];

    /// The spelling in messages, in SQL and in metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Oui => "oui",
            Self::Non => "non",
        }
    }
}

/// A valid vote. A replay equals the counted vote in all five fields, a duplicate attempt does not.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vote {
    /// Identity of the vote: 1–64 visible ASCII characters.
    pub vote_hash: CompactString,
    /// Who voted: 1–100 characters. Never logged.
    pub citizen_id: CompactString,
    /// What was voted on: 1–50 characters of `[A-Za-z0-9._:-]`.
    pub law_id: CompactString,
    pub choice: Choice,
    /// When the vote was cast: UTC, rounded to microseconds as PostgreSQL stores it.
    pub timestamp: OffsetDateTime,
}

/// Leaves `citizen_id` out: a vote that ends up in a log or a panic must not show who cast it.
impl fmt::Debug for Vote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vote")
            .field("vote_hash", &self.vote_hash)
            .field("law_id", &self.law_id)
            .finish_non_exhaustive()
    }
}

/// Why a message is malformed; also the value of the metric label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Reason {
    /// The message's properties are not valid AMQP: a short string is not UTF-8, or the headers
    /// cannot be decoded or are longer than 512 KiB.
    Properties,
    /// The body is longer than `MAX_MESSAGE_BYTES`.
    TooLarge,
    /// The body is not UTF-8.
    NotUtf8,
    /// The body is not JSON, or has something behind its value.
    NotJson,
    /// The body is JSON but not an object.
    NotObject,
    /// A field that a vote needs occurs twice, even with equal values.
    RepeatedField,
    /// A field that a vote needs is not there.
    MissingField,
    /// A field that a vote needs is not a string.
    WrongType,
    /// A field is the empty string.
    EmptyField,
    /// A field is longer than its column.
    TooLong,
    /// A field has a control character; NUL alone would fail the whole SQL batch (SQLSTATE 22021).
    ControlCharacter,
    /// `vote_hash` is not visible ASCII.
    BadVoteHash,
    /// `law_id` has a character outside `[A-Za-z0-9._:-]`: look-alikes would be laws of their own.
    BadLawId,
    /// `choice` is neither `oui` nor `non`.
    BadChoice,
    /// `timestamp` is not RFC 3339 with an offset, or outside the years 1970–9999 UTC.
    BadTimestamp,
    /// A valid vote whose `vote_hash` belongs to another cell: counted here it could be counted twice.
    WrongCell,
}

impl Reason {
    /// Every reason, in the order in which they are checked.
    pub const ALL: &[Self] = Self::VARIANTS;

    /// The name in logs and in the metric label.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The verdict on a malformed message: all that may be logged of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub reason: Reason,
    /// The field the reason is about, where it is about one.
    pub field: Option<&'static str>,
    /// The message's `vote_hash`, when that much of it was valid.
    pub vote_hash: Option<String>,
    /// What its first bytes or its shape say of the cause, where they do: a text of the program.
    pub detail: Option<&'static str>,
}

impl Rejection {
    const fn of_message(reason: Reason) -> Self {
        Self { reason, field: None, vote_hash: None, detail: None }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field {
            Some(field) => write!(f, "{} ({field})", self.reason.as_str()),
            None => f.write_str(self.reason.as_str()),
        }
    }
}

/// Decodes and validates one message of a queue, which is that of `cell` if there are cells: the body as
/// [`decode`] does, unless its properties are invalid.
///
/// # Errors
/// [`Reason::Properties`], or the first rule that the body breaks.
pub fn decode_message(
    body: &[u8],
    valid_properties: bool,
    max_bytes: usize,
    cell: Option<Cell>,
) -> Result<Vote, Rejection> {
    let decoded = decode(body, max_bytes);
    if !valid_properties {
        // The hash helps whoever looks for the message.
        let vote_hash = hash_in(decoded);
        return Err(Rejection { vote_hash, ..Rejection::of_message(Reason::Properties) });
    }
    match (decoded, cell) {
        (Ok(vote), Some(cell)) if cell.is_foreign(&vote.vote_hash) => Err(Rejection {
            field: Some("vote_hash"),
            vote_hash: Some(vote.vote_hash.into()),
            ..Rejection::of_message(Reason::WrongCell)
        }),
        (decoded, _) => decoded,
    }
}

/// Returns the `vote_hash` of a message body of any size, if that much of it is valid.
pub fn hash_of(body: &[u8]) -> Option<String> {
    hash_in(decode(body, usize::MAX))
}

fn hash_in(decoded: Result<Vote, Rejection>) -> Option<String> {
    match decoded {
        Ok(vote) => Some(vote.vote_hash.into()),
        Err(rejection) => rejection.vote_hash,
    }
}

/// Decodes and validates one message body of at most `max_bytes` bytes.
///
/// # Errors
/// The first broken rule, see [`Reason`].
pub fn decode(body: &[u8], max_bytes: usize) -> Result<Vote, Rejection> {
    check(body, max_bytes).map_err(|rejection| {
        let detail = shape::of(body, rejection.reason, rejection.field);
        Rejection { detail, ..rejection }
    })
}

fn check(body: &[u8], max_bytes: usize) -> Result<Vote, Rejection> {
    if body.len() > max_bytes {
        return Err(Rejection::of_message(Reason::TooLarge));
    }
    let text = std::str::from_utf8(body).map_err(|_| Rejection::of_message(Reason::NotUtf8))?;
    let fields = json::parse(text).map_err(Rejection::of_message)?;

    let [hash, citizen, law, choice, timestamp] = fields.texts();
    let reject = |(reason, field)| {
        // Whatever is wrong with the rest, a valid hash helps whoever looks for the message.
        let vote_hash = check_vote_hash(hash).is_ok().then(|| hash.to_owned());
        Rejection { field: Some(field), vote_hash, ..Rejection::of_message(reason) }
    };

    fields.complete().and_then(|()| validate(fields.texts())).map_err(reject)?;
    let choice = match choice {
        "oui" => Choice::Oui,
        "non" => Choice::Non,
        _ => return Err(reject((Reason::BadChoice, "choice"))),
    };
    let timestamp =
        timestamp::parse(timestamp).ok_or_else(|| reject((Reason::BadTimestamp, "timestamp")))?;

    Ok(Vote {
        vote_hash: hash.into(),
        citizen_id: citizen.into(),
        law_id: law.into(),
        choice,
        timestamp,
    })
}

type Broken = (Reason, &'static str);

/// Checks the lengths and the characters.
fn validate(texts: [&str; 5]) -> Result<(), Broken> {
    // Choice and timestamp have no column length to overflow; what they may be is checked later.
    let longest = [MAX_VOTE_HASH, MAX_CITIZEN_ID, MAX_LAW_ID, usize::MAX, usize::MAX];
    first(Reason::EmptyField, |at| texts[at].is_empty())?;
    // Bytes bound characters from above, so most texts need no count.
    first(Reason::TooLong, |at| {
        texts[at].len() > longest[at] && texts[at].chars().count() > longest[at]
    })?;
    first(Reason::ControlCharacter, |at| has_control(texts[at]))?;
    check_vote_hash(texts[0])?;
    check_law_id(texts[2])
}

/// The first field that breaks a rule.
fn first(reason: Reason, breaks: impl Fn(usize) -> bool) -> Result<(), Broken> {
    let found = (0..FIELDS.len()).find(|at| breaks(*at));
    found.map_or(Ok(()), |at| Err((reason, FIELDS[at])))
}

fn has_control(text: &str) -> bool {
    if text.is_ascii() {
        any_byte(text, |byte| byte.is_ascii_control())
    } else {
        text.chars().any(char::is_control)
    }
}

/// Looks at every byte even behind a find: without the early end it takes many at a time.
fn any_byte(text: &str, is: impl Fn(u8) -> bool) -> bool {
    text.bytes().fold(false, |found, byte| found | is(byte))
}

fn check_vote_hash(hash: &str) -> Result<(), Broken> {
    let fits = !hash.is_empty() && hash.len() <= MAX_VOTE_HASH;
    let valid = fits && !any_byte(hash, |byte| !byte.is_ascii_graphic());
    if valid { Ok(()) } else { Err((Reason::BadVoteHash, "vote_hash")) }
}

fn check_law_id(law: &str) -> Result<(), Broken> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    if law.bytes().all(allowed) { Ok(()) } else { Err((Reason::BadLawId, "law_id")) }
}

#[cfg(test)]
mod tests;
