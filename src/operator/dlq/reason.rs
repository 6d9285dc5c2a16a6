//! Why a message is in the dead-letter queue: from its headers, and from decoding it again.

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::mask;
use crate::adapters::broker::DeadLetterMessage;
use crate::model::cell::Cell;
use crate::model::vote::{self, Reason, Rejection};

/// Replaces a header's text that neither the service nor the broker would have written.
const ODD: &str = "odd";
/// Longest name in AMQP, in bytes.
const MAX_NAME: usize = 255;
/// RabbitMQ adds one for each queue and reason.
const MAX_DEATHS: usize = 50;

/// Why a message is a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeadLetterReason {
    /// The decoder rejects it, and so would the service now.
    Malformed(Rejection),
    /// A valid vote that PostgreSQL refused.
    Refused { sqlstate: String },
    /// A valid vote that RabbitMQ dead-lettered for this reason: `rejected`, `delivery_limit`,
    /// `expired`, `maxlen`.
    Died { reason: String },
    /// A valid vote without a header that says why.
    Unknown,
}

/// One entry of `x-death`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Death {
    pub reason: String,
    /// The queue it died in.
    pub queue: String,
    /// How often, there and for this reason.
    pub count: u64,
    /// The first time, as RFC 3339.
    pub time: Option<String>,
}

/// Facts about a message, without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examined {
    pub reason: DeadLetterReason,
    pub vote_hash: Option<String>,
    pub law_id: Option<String>,
    /// Newest first.
    pub deaths: Vec<Death>,
    /// From the header, whatever the decoder says now.
    pub sqlstate: Option<String>,
    /// When it was dead-lettered, as RFC 3339.
    pub when: Option<String>,
    /// In bytes.
    pub size: usize,
    /// How often `dlq replay` published it again.
    pub replays: u32,
    /// How often the dead-letter queue has taken it back.
    pub deliveries: u64,
}

/// Examines a message of the dead-letter queue of `cell`, with the decoder's limit in bytes.
pub fn examine(message: &DeadLetterMessage, max_bytes: usize, cell: Option<Cell>) -> Examined {
    let text = |name: &str| message.headers.get(name).and_then(Value::as_str);
    let deaths = deaths(message.headers.get("x-death"));
    let sqlstate = text("x-sqlstate").map(|text| checked(text, is_sqlstate));
    let (reason, vote_hash, law_id) =
        match vote::decode_message(&message.body, message.valid_properties, max_bytes, cell) {
            Ok(vote) => {
                let reason = match (&sqlstate, deaths.first()) {
                    (Some(sqlstate), _) => DeadLetterReason::Refused { sqlstate: sqlstate.clone() },
                    (None, Some(death)) => DeadLetterReason::Died { reason: death.reason.clone() },
                    (None, None) => DeadLetterReason::Unknown,
                };
                (reason, Some(vote.vote_hash.into()), Some(vote.law_id.into()))
            }
            Err(rejection) => {
                let small = message.body.len() <= max_bytes;
                let law_id = small.then(|| mask::law_id(&message.body)).flatten();
                let vote_hash = rejection.vote_hash.clone();
                (DeadLetterReason::Malformed(rejection), vote_hash, law_id)
            }
        };
    let when = deaths.first().and_then(|death| death.time.clone());
    Examined {
        reason,
        vote_hash: vote_hash.or_else(|| Some(checked(text("x-vote-hash")?, is_vote_hash))),
        law_id,
        when: when.or_else(|| Some(checked(text("x-refused-at")?, is_time))),
        deaths,
        sqlstate,
        size: message.body.len(),
        replays: u32::try_from(number(message.headers.get("x-replays"))).unwrap_or(u32::MAX),
        deliveries: number(message.headers.get("x-delivery-count")),
    }
}

fn deaths(header: Option<&Value>) -> Vec<Death> {
    let entries = header.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let deaths = entries.iter().take(MAX_DEATHS).filter_map(|entry| {
        let text = |name| entry.get(name).and_then(Value::as_str);
        Some(Death {
            reason: checked(text("reason")?, is_name),
            queue: checked(text("queue").unwrap_or_default(), is_name),
            count: number(entry.get("count")),
            time: text("time").map(|text| checked(text, is_time)),
        })
    });
    deaths.collect()
}

/// Returns the text of a header, or [`ODD`]: any publisher can write a header of any length.
fn checked(text: &str, is_sound: impl Fn(&str) -> bool) -> String {
    if is_sound(text) { text } else { ODD }.to_owned()
}

/// Empty when PostgreSQL gave none.
fn is_sqlstate(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_uppercase();
    text.is_empty() || (text.len() == 5 && text.bytes().all(fits))
}

fn is_vote_hash(text: &str) -> bool {
    let length = 1..=vote::MAX_VOTE_HASH;
    length.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn is_time(text: &str) -> bool {
    text.len() <= MAX_NAME && OffsetDateTime::parse(text, &Rfc3339).is_ok()
}

fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME
}

/// Returns a number of whichever AMQP type the client chose; 0 for anything else.
fn number(value: Option<&Value>) -> u64 {
    match value {
        Some(Value::Number(number)) => number.as_u64().unwrap_or(0),
        Some(Value::String(text)) => text.parse().unwrap_or(0),
        _ => 0,
    }
}

impl DeadLetterReason {
    /// Returns one word, for a column and a filter.
    pub fn code(&self) -> &str {
        match self {
            Self::Malformed(rejection) => rejection.reason.as_str(),
            Self::Refused { sqlstate } => sqlstate,
            Self::Died { reason } => reason,
            Self::Unknown => "unknown",
        }
    }

    /// Returns the word and what it is about, for a column.
    pub fn label(&self) -> String {
        match self {
            Self::Malformed(rejection) => rejection.to_string(),
            Self::Refused { sqlstate } => format!("SQLSTATE {sqlstate}"),
            Self::Died { .. } | Self::Unknown => self.code().to_owned(),
        }
    }

    /// Returns what the first bytes or the shape of a malformed body reveal about its publisher.
    pub const fn detail(&self) -> Option<&'static str> {
        match self {
            Self::Malformed(rejection) => rejection.detail,
            _ => None,
        }
    }

    /// Whether it is a valid vote, which is not counted from here.
    pub const fn is_valid(&self) -> bool {
        !matches!(self, Self::Malformed(_))
    }

    /// Returns a sentence that says what happened.
    pub fn explanation(&self) -> String {
        match self {
            Self::Malformed(Rejection { reason: Reason::WrongCell, .. }) => {
                format!("A valid vote: {}.", broken(Reason::WrongCell))
            }
            Self::Malformed(rejection) => {
                let Rejection { reason, field, detail, .. } = rejection;
                let field = field.map(|field| format!(" ({field})")).unwrap_or_default();
                let detail = detail.map(|detail| format!(": {detail}")).unwrap_or_default();
                format!("Malformed: {}{field}{detail}.", broken(*reason))
            }
            Self::Refused { sqlstate } => {
                format!("A valid vote that PostgreSQL refused: {}.", refusal(sqlstate))
            }
            Self::Died { reason } => match reason.as_str() {
                "rejected" => "Rejected by a consumer, and valid by the current rules.".to_owned(),
                "delivery_limit" => "A valid vote that was delivered too often without being \
                                     settled: the queue's delivery limit dropped it."
                    .to_owned(),
                "expired" => "A valid vote that waited longer than the queue's TTL.".to_owned(),
                "maxlen" => "A valid vote that the queue's length limit dropped.".to_owned(),
                other => format!("A valid vote that RabbitMQ dead-lettered: {other}."),
            },
            Self::Unknown => "A valid vote; no header says why it was dead-lettered.".to_owned(),
        }
    }

    /// Returns what an operator does about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Malformed(Rejection { reason: Reason::TooLarge, .. }) => {
                "The publisher must send it again, smaller; or raise MAX_MESSAGE_BYTES on all instances \
                 and here, and replay."
            }
            Self::Malformed(Rejection { reason: Reason::Properties, .. }) => {
                "Fix the publisher: header names, content_type, message_id and the routing key must \
                 be UTF-8. `dlq replay --reason properties --force` publishes the body again, with `?` \
                 in place of the invalid bytes."
            }
            Self::Malformed(Rejection { reason: Reason::WrongCell, .. }) => {
                "Fix the publisher: the cell is CRC-32 of vote_hash modulo the number of cells. Then save \
                 these with `dlq purge --reason wrong_cell --save FILE`, and publish them with \
                 `publish --cells`; a replay would be dead-lettered again."
            }
            Self::Malformed(_) => {
                "The publisher must fix it and publish it again; a replay would be dead-lettered \
                 again. Then purge it."
            }
            Self::Refused { .. } => {
                "Fix the constraint, trigger or column that the service's log names, then replay."
            }
            Self::Died { reason } if reason == "delivery_limit" => {
                "Find out why no instance could settle it (crashes? a low limit?), then replay."
            }
            Self::Died { reason } if matches!(reason.as_str(), "expired" | "maxlen") => {
                "Remove the limit from the queue, then replay."
            }
            Self::Died { .. } | Self::Unknown => {
                "Replay: it will be counted, or recognised as counted."
            }
        }
    }
}

const fn broken(reason: Reason) -> &'static str {
    match reason {
        Reason::Properties => {
            "the message properties are not valid AMQP: a short string is not UTF-8, or the headers \
             cannot be decoded or are longer than 512 KiB"
        }
        Reason::TooLarge => "the body is longer than MAX_MESSAGE_BYTES",
        Reason::NotUtf8 => "the body is not UTF-8",
        Reason::NotJson => "the body is not JSON",
        Reason::NotObject => "the body is JSON, but not an object",
        Reason::RepeatedField => "a field occurs twice",
        Reason::MissingField => "a field is missing",
        Reason::WrongType => "a field is not a string",
        Reason::EmptyField => "a field is empty",
        Reason::TooLong => "a field is longer than its column",
        Reason::ControlCharacter => "a field has a control character",
        Reason::BadVoteHash => "vote_hash is not visible ASCII",
        Reason::BadLawId => "law_id has a character outside A–Z a–z 0–9 . _ : -",
        Reason::BadChoice => "choice is neither oui nor non",
        Reason::BadTimestamp => "timestamp is not RFC 3339 with an offset, of the years 1970–9999",
        Reason::WrongCell => "its vote_hash belongs to another cell, where alone it may be counted",
    }
}

fn refusal(sqlstate: &str) -> String {
    let known = match sqlstate {
        "23502" => "a column that must not be empty",
        "23503" => "a reference to a row that is not there",
        "23514" => "a check constraint",
        "22001" => "a column that is too short",
        "P0001" => "a trigger",
        "" => return "without an SQLSTATE".to_owned(),
        ODD => return "its x-sqlstate is not an SQLSTATE, so another program wrote it".to_owned(),
        code if code.starts_with("22") => "a value that the database does not accept",
        code if code.starts_with("23") => "a constraint",
        _ => return format!("SQLSTATE {sqlstate}"),
    };
    format!("{known} (SQLSTATE {sqlstate})")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const VOTE: &str = r#"{"vote_hash":"h-1","citizen_id":"citizen-1","law_id":"law-1","choice":"oui","timestamp":"2025-11-14T12:00:00Z"}"#;

    fn message(body: impl Into<Vec<u8>>, headers: Value) -> DeadLetterMessage {
        let Value::Object(headers) = headers else { panic!("headers are an object") };
        DeadLetterMessage::new(body, headers.into_iter().collect())
    }

    fn of(body: impl Into<Vec<u8>>, headers: Value) -> Examined {
        examine(&message(body, headers), 16_384, None)
    }

    fn death(reason: &str) -> Value {
        json!([
            {"reason": reason, "queue": "votes", "count": 2, "time": "2026-11-25T04:00:00Z"},
            {"reason": "older", "queue": "votes", "count": 9, "time": "2020-01-01T00:00:00Z"},
        ])
    }

    #[test]
    fn the_decoder_says_why_a_message_is_malformed() {
        for (body, label) in [
            ("", "not_json"),
            ("[]", "not_object"),
            (&VOTE.replace("oui", "maybe"), "bad_choice (choice)"),
            (&VOTE.replace("citizen_id", "citizenId"), "missing_field (citizen_id)"),
        ] {
            let found = of(body, json!({"x-death": death("rejected")}));
            assert_eq!(found.reason.label(), label);
            assert!(!found.reason.is_valid());
            assert_eq!(found.when.as_deref(), Some("2026-11-25T04:00:00Z"), "{label}");
        }
        let Examined { vote_hash, law_id, .. } = of(VOTE.replace("oui", "maybe"), json!({}));
        assert_eq!((vote_hash.as_deref(), law_id.as_deref()), (Some("h-1"), Some("law-1")));
    }

    #[test]
    fn the_decoders_limit_is_that_of_the_configuration() {
        let small = examine(&message(VOTE, json!({})), 20, None);
        assert_eq!(small.reason.code(), "too_large");
        assert!(small.reason.advice().contains("MAX_MESSAGE_BYTES"));
        assert_eq!(small.law_id, None, "nothing beyond the limit is read");
    }

    #[test]
    fn a_vote_of_another_cell_is_valid_and_is_not_replayed() {
        let of_cell = |cell: &str| {
            let cell = cell.parse().expect("a cell");
            examine(&message(VOTE, json!({"x-death": death("rejected")})), 16_384, Some(cell))
        };
        let cells = (0..4).map(|number| of_cell(&format!("crc32:{number}/4")).reason);
        let others = cells.filter(|reason| reason.code() == "wrong_cell" && !reason.is_valid());
        let others: Vec<_> = others.collect();
        assert_eq!(others.len(), 3);
        assert!(others[0].explanation().starts_with("A valid vote: "), "{:?}", others[0]);
        assert!(others[0].advice().contains("publish --cells"));
        assert_eq!(of_cell("0/4").reason.code(), "rejected");
    }

    #[test]
    fn a_valid_vote_has_the_reason_of_its_headers() {
        let refused =
            of(VOTE, json!({"x-sqlstate": "23514", "x-refused-at": "2026-11-25T04:00:01Z"}));
        assert_eq!(refused.reason, DeadLetterReason::Refused { sqlstate: "23514".to_owned() });
        assert_eq!(refused.when.as_deref(), Some("2026-11-25T04:00:01Z"));
        assert!(refused.reason.explanation().contains("check constraint"));
        for reason in ["rejected", "delivery_limit", "expired", "maxlen"] {
            let died = of(VOTE, json!({"x-death": death(reason)}));
            assert_eq!((died.reason.code(), died.deaths.len()), (reason, 2));
            assert_eq!((died.deaths[0].count, died.deaths[0].queue.as_str()), (2, "votes"));
        }
        assert_eq!(of(VOTE, json!({})).reason, DeadLetterReason::Unknown);
    }

    #[test]
    fn headers_of_any_shape_are_handled() {
        for odd in [json!(null), json!(7), json!("x"), json!([1, {"reason": 5}]), json!({"a": 1})] {
            let found = of(VOTE, json!({"x-death": odd, "x-sqlstate": odd, "x-replays": odd}));
            assert!(found.reason.is_valid());
            assert!(found.deaths.is_empty());
        }
        let counted = |replays: Value| of(VOTE, json!({"x-replays": replays})).replays;
        assert_eq!((counted(json!(2)), counted(json!("3")), counted(json!(-1))), (2, 3, 0));
        assert_eq!(counted(json!(u64::MAX)), u32::MAX);
    }

    #[test]
    fn forged_headers_of_any_length_are_shown_as_odd() {
        let long = "2".repeat(100_000);
        for sqlstate in [long.as_str(), "2351", "2351x", "23514 ", "23\u{e9}1", "\u{1b}[2J1"] {
            let found = of(VOTE, json!({"x-sqlstate": sqlstate}));
            assert_eq!((found.sqlstate.as_deref(), found.reason.code()), (Some("odd"), "odd"));
            assert_eq!(found.reason.label(), "SQLSTATE odd", "{sqlstate}");
            assert!(found.reason.explanation().contains("another program"));
        }
        let name = "n".repeat(1_000);
        let death = json!({"reason": name, "queue": name, "time": name});
        let deaths = json!(vec![death; 1_000]);
        let forged = json!({"x-death": deaths, "x-vote-hash": long, "x-refused-at": long,
                            "x-replays": long, "x-delivery-count": long});
        let found = of("{}", forged);
        assert!(format!("{found:?}").len() < 10_000, "{}", format!("{found:?}").len());
        assert_eq!((found.vote_hash.as_deref(), found.when.as_deref()), (Some("odd"), Some("odd")));
        assert_eq!((found.replays, found.deaths[0].reason.as_str()), (0, "odd"));
    }
}
