use proptest::prelude::*;
use time::macros::datetime;

use super::*;
use crate::model::cell::Router;

fn message(timestamp: &str) -> String {
    format!(
        r#"{{"vote_hash":"h1","citizen_id":"c1","law_id":"law-001","choice":"oui","timestamp":"{timestamp}"}}"#
    )
}

fn decoded_timestamp(text: &str) -> Result<OffsetDateTime, Reason> {
    decode(message(text).as_bytes(), 16_384)
        .map(|vote| vote.timestamp)
        .map_err(|rejection| rejection.reason)
}

#[test]
fn timestamps_become_utc_microseconds_rounded_to_nearest_ties_to_even() {
    let cases = [
        ("2025-11-14T12:00:00Z", datetime!(2025-11-14 12:00 UTC)),
        ("2025-11-14T13:30:00+01:30", datetime!(2025-11-14 12:00 UTC)),
        ("2025-11-14T12:00:00.1234564Z", datetime!(2025-11-14 12:00:00.123456 UTC)),
        ("2025-11-14T12:00:00.1234565Z", datetime!(2025-11-14 12:00:00.123456 UTC)),
        ("2025-11-14T12:00:00.1234575Z", datetime!(2025-11-14 12:00:00.123458 UTC)),
        ("2025-11-14T12:00:00.9999996Z", datetime!(2025-11-14 12:00:01 UTC)),
        ("1970-01-01T00:00:00Z", datetime!(1970-01-01 0:00 UTC)),
        ("9999-12-31T23:59:59.999999Z", datetime!(9999-12-31 23:59:59.999999 UTC)),
    ];
    for (text, expected) in cases {
        assert_eq!(decoded_timestamp(text), Ok(expected), "{text}");
    }
}

#[test]
fn a_body_of_exactly_the_limit_is_taken_and_one_byte_more_is_not() {
    let body = message("2025-11-14T12:00:00Z");
    assert!(decode(body.as_bytes(), body.len()).is_ok());
    let over = decode(body.as_bytes(), body.len() - 1).map_err(|rejection| rejection.reason);
    assert_eq!(over, Err(Reason::TooLarge));
}

#[test]
fn a_valid_hash_is_named_in_the_rejection_and_an_invalid_one_is_not() {
    let body = message("yesterday");
    let rejection = decode(body.as_bytes(), 16_384).expect_err("the timestamp is invalid");
    assert_eq!(rejection.vote_hash.as_deref(), Some("h1"));
    assert_eq!(rejection.to_string(), "bad_timestamp (timestamp)");

    let body = body.replace("\"h1\"", "\"h\\u0007\"");
    let rejection = decode(body.as_bytes(), 16_384).expect_err("the hash rings a bell");
    assert_eq!((rejection.reason, rejection.vote_hash), (Reason::ControlCharacter, None));
}

#[test]
fn debug_output_does_not_reveal_who_voted() {
    let body = message("2025-11-14T12:00:00Z").replace("c1", "citizen-secret");
    let vote = decode(body.as_bytes(), 16_384).expect("a valid vote");
    assert_eq!(vote.citizen_id, "citizen-secret");
    assert!(!format!("{vote:?}").contains("citizen-secret"));
}

/// A valid vote in the shape a publisher sends, with text that needs escaping.
fn any_vote() -> impl Strategy<Value = Vote> {
    (
        "[!-~]{1,64}",
        proptest::collection::vec(
            any::<char>().prop_filter("no control characters", |c| !c.is_control()),
            1..=MAX_CITIZEN_ID,
        ),
        "[A-Za-z0-9._:-]{1,50}",
        any::<bool>(),
        0_i64..253_402_300_800_000_000,
    )
        .prop_map(|(vote_hash, citizen, law_id, oui, micros)| Vote {
            vote_hash: vote_hash.into(),
            citizen_id: citizen.into_iter().collect(),
            law_id: law_id.into(),
            choice: if oui { Choice::Oui } else { Choice::Non },
            timestamp: OffsetDateTime::UNIX_EPOCH + time::Duration::microseconds(micros),
        })
}

fn encode(vote: &Vote) -> serde_json::Value {
    let timestamp = vote
        .timestamp
        .format(&time::format_description::well_known::Rfc3339)
        .expect("a year RFC 3339 can write");
    serde_json::json!({
        "vote_hash": vote.vote_hash,
        "citizen_id": vote.citizen_id,
        "law_id": vote.law_id,
        "choice": vote.choice.as_str(),
        "timestamp": timestamp,
        "metadata": { "ip": "192.0.2.1", "nested": [1, null, { "law_id": 7 }] },
    })
}

proptest! {
    #[test]
    fn every_valid_vote_survives_the_round_trip(vote in any_vote()) {
        let body = encode(&vote).to_string();
        prop_assert_eq!(decode(body.as_bytes(), 16_384), Ok(vote));
    }

    #[test]
    fn arbitrary_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(decode(&body, 16_384).is_err(), "no random bytes make a vote");
    }

    #[test]
    fn a_damaged_vote_is_rejected_or_still_valid(
        vote in any_vote(), at in any::<prop::sample::Index>(), byte in any::<u8>()
    ) {
        let mut body = encode(&vote).to_string().into_bytes();
        let at = at.index(body.len());
        body[at] = byte;
        if let Ok(vote) = decode(&body, 16_384) {
            // What is let through must be storable.
            prop_assert!(vote.vote_hash.len() <= MAX_VOTE_HASH && !vote.vote_hash.is_empty());
            prop_assert!(vote.citizen_id.chars().count() <= MAX_CITIZEN_ID);
            prop_assert!(!vote.citizen_id.chars().any(char::is_control));
            prop_assert!(vote.law_id.len() <= MAX_LAW_ID && vote.law_id.is_ascii());
        }
    }

    /// The reader of the usual message may spare work, and change no verdict.
    #[test]
    fn the_usual_message_is_read_as_any_other(
        vote in any_vote(),
        at in any::<prop::sample::Index>(),
        damage in proptest::option::of(r#"["\\\\{}\[\]:, u0-9a-z]{0,2}"#),
    ) {
        let mut body = encode(&vote).to_string();
        if let Some(damage) = damage {
            let places: Vec<usize> = body.char_indices().map(|(at, _)| at).collect();
            let at = *at.get(&places);
            let length = body[at..].chars().next().map_or(0, char::len_utf8);
            body.replace_range(at..at + length, &damage);
        }
        let read = |fields: &json::Fields<'_>| {
            (fields.complete(), fields.texts().map(str::to_owned))
        };
        let [one, other] = [json::parse, json::parse_any].map(|parse| parse(&body).map(|f| read(&f)));
        prop_assert_eq!(one, other, "{}", body);
    }

    #[test]
    fn leaving_out_doubling_or_retyping_any_field_is_rejected(vote in any_vote(), field in 0_usize..5) {
        let name = ["vote_hash", "citizen_id", "law_id", "choice", "timestamp"][field];
        let reason_of = |body: String| decode(body.as_bytes(), 65_536).map_err(|r| (r.reason, r.field));

        let mut missing = encode(&vote);
        missing.as_object_mut().expect("an object").remove(name);
        prop_assert_eq!(reason_of(missing.to_string()), Err((Reason::MissingField, Some(name))));

        let whole = encode(&vote);
        let doubled = whole.to_string().replacen('{', &format!("{{\"{name}\":{},", whole[name]), 1);
        prop_assert_eq!(reason_of(doubled), Err((Reason::RepeatedField, Some(name))));

        let mut retyped = encode(&vote);
        retyped[name] = serde_json::json!({ "deep": [1, 2, 3] });
        prop_assert_eq!(reason_of(retyped.to_string()), Err((Reason::WrongType, Some(name))));
    }
}

#[test]
fn invalid_properties_come_before_whatever_the_body_breaks() {
    for (body, hash) in [("{}", None), (r#"{"vote_hash":"h"}"#, Some("h"))] {
        let rejection = decode_message(body.as_bytes(), false, 100, None).expect_err("malformed");
        assert_eq!((rejection.reason, rejection.vote_hash.as_deref()), (Reason::Properties, hash));
    }
}

/// One message of the corpus under `tests/data`.
#[derive(serde::Deserialize)]
struct Entry {
    name: String,
    body: Option<String>,
    body_base64: Option<String>,
    repeat: Option<Repeat>,
    #[serde(default)]
    invalid_properties: bool,
    verdict: String,
    field: Option<String>,
}

#[derive(serde::Deserialize)]
struct Repeat {
    before: String,
    unit: String,
    times: usize,
    after: String,
}

impl Entry {
    fn bytes(&self) -> Vec<u8> {
        use base64::Engine;
        match (&self.body, &self.body_base64, &self.repeat) {
            (Some(body), None, None) => body.clone().into_bytes(),
            (None, Some(encoded), None) => {
                base64::engine::general_purpose::STANDARD.decode(encoded).expect("base64")
            }
            (None, None, Some(Repeat { before, unit, times, after })) => {
                [before.as_str(), &unit.repeat(*times), after].concat().into_bytes()
            }
            _ => panic!("{}: exactly one of body, body_base64 and repeat", self.name),
        }
    }
}

#[test]
fn every_message_of_the_corpus_gets_its_verdict() {
    let corpus = include_str!("../../../tests/data/messages.ndjson");
    let mut wrong = Vec::new();
    let mut reasons = std::collections::BTreeSet::new();
    for line in corpus.lines() {
        let entry: Entry = serde_json::from_str(line).expect("one JSON object a line");
        let (verdict, field) =
            match decode_message(&entry.bytes(), !entry.invalid_properties, 16_384, None) {
                Ok(_) => ("vote", None),
                Err(rejection) => (rejection.reason.as_str(), rejection.field.map(str::to_owned)),
            };
        if (verdict, &field) != (entry.verdict.as_str(), &entry.field) {
            wrong.push(format!("{}: {verdict} {field:?}, not {}", entry.name, entry.verdict));
        }
        reasons.insert(verdict);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // All but the one that depends on the queue.
    assert_eq!(reasons.len(), Reason::ALL.len(), "every reason has a message that breaks it");
}

#[test]
fn a_vote_of_another_cell_is_rejected_after_every_other_rule() {
    let cell = |number| Some(Cell { number, of: 16, router: Router::Publishers });
    let decoded = |body: &str, number| decode_message(body.as_bytes(), true, 16_384, cell(number));
    let vote = message("2025-11-14T12:00:00Z").replace("h1", "123456789");
    assert!(decoded(&vote, 6).is_ok());
    let rejected = decoded(&vote, 7).expect_err("its CRC-32 modulo 16 is 6");
    assert_eq!((rejected.reason, rejected.field), (Reason::WrongCell, Some("vote_hash")));
    assert_eq!(rejected.vote_hash.as_deref(), Some("123456789"));
    let malformed = decoded(&vote.replace("oui", "maybe"), 7).expect_err("not a choice");
    assert_eq!(malformed.reason, Reason::BadChoice);
}
