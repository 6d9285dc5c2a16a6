use std::fmt::Write;

use super::super::decode;

const VOTE: &str = r#"{"vote_hash":"h-1","citizen_id":"citizen-1","law_id":"law-1","choice":"oui","timestamp":"2025-11-14T12:00:00Z"}"#;

/// The reason and what else is said.
fn said(body: impl AsRef<[u8]>) -> String {
    let rejection = decode(body.as_ref(), 16_384).expect_err("no vote");
    format!("{}: {}", rejection.reason.as_str(), rejection.detail.unwrap_or("-"))
}

fn utf16(text: &str, order: fn(u16) -> [u8; 2]) -> Vec<u8> {
    text.encode_utf16().flat_map(order).collect()
}

/// As protoc's encoders write five string fields.
fn protobuf() -> Vec<u8> {
    let field = |number: u8, text: &str| {
        [&[number << 3 | 2, u8::try_from(text.len()).expect("short")], text.as_bytes()].concat()
    };
    [field(1, "h-1"), field(2, "cité"), vec![0x18, 0x96, 0x01], field(4, "\u{7f}law")].concat()
}

#[test]
fn the_first_bytes_say_what_a_body_is() {
    let bom = |bom: &[u8], rest: Vec<u8>| [bom, &rest].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xab], "not_utf8: gzip"),
        (vec![0x78, 0x9c, 0xab, 0x56, 0x2a, 0xcb, 0x2f, 0x49, 0x8d, 0xcf], "not_utf8: zlib"),
        (vec![0x28, 0xb5, 0x2f, 0xfd, 4, 0, 0xff], "not_utf8: zstd"),
        (bom(b"\xff\xfe", utf16(VOTE, u16::to_le_bytes)), "not_utf8: UTF-16 with"),
        (bom(b"\xfe\xff", utf16(VOTE, u16::to_be_bytes)), "not_utf8: UTF-16 with"),
        (utf16(VOTE, u16::to_le_bytes), "not_json: UTF-16"),
        (utf16(VOTE, u16::to_be_bytes), "not_json: UTF-16"),
        (bom(b"\xef\xbb\xbf", VOTE.into()), "not_json: a UTF-8 byte order mark"),
        (b"\xac\xed\x00\x05sr\x00".to_vec(), "not_utf8: Java serialisation"),
        (bom(b"\x00\x53\x77\xa1\x6b", VOTE.into()), "not_utf8: a section of AMQP 1.0"),
        (bom(b"\x00\x53\x77\xb1\x00\x00\x00\x6b", VOTE.into()), "not_utf8: a section of AMQP 1.0"),
        (bom(b"\x00\x53\x75\x00\x6b", VOTE.into()), "not_json: a section of AMQP 1.0"),
        (bom(b"\x00\x00\x00\x00\x07", VOTE.into()), "not_json: a schema registry's header"),
        (b"\x85\xa9vote_hash\xa3h-1".to_vec(), "not_utf8: MessagePack"),
        (b"\xa5\x69vote_hash\x63h-1".to_vec(), "not_utf8: CBOR"),
        (b"\x80\x04\x95\x10}\x94.".to_vec(), "not_utf8: Python pickle"),
        (b"\x0e\x00\x00\x00\x02a\x00\x02\x00\x00\x00h\x00\x00".to_vec(), "not_json: BSON"),
        (protobuf(), "not_utf8: what looks like Protocol Buffers"),
        (
            VOTE.replace("citizen-1", "Zo\u{eb}").chars().map(|c| c as u8).collect(),
            "not_utf8: JSON in another",
        ),
        (vec![0xff, 0, 0xc3], "not_utf8: -"),
    ];
    for (body, expected) in cases {
        let said = said(&body);
        // The varint of the sample is not UTF-8 only where 0x96 stands alone.
        assert!(said.starts_with(expected), "{said}, not {expected}");
    }
}

#[test]
fn a_text_says_which_other_format_it_is() {
    for (body, expected) in [
        ("", "not_json: an empty body"),
        (" \n", "not_json: nothing but blanks"),
        ("<vote/>", "not_json: XML"),
        (&format!("{VOTE}\n{VOTE}"), "not_json: several JSON objects"),
        (&VOTE[..VOTE.len() - 9], "not_json: JSON that ends too early"),
        (&VOTE.replace('"', "'"), "not_json: single quotes"),
        ("eyJ2b3RlX2hhc2giOiJoIn0=", "not_json: base64"),
        ("vote_hash=h&law_id=l", "not_json: a form"),
        ("vote_hash,citizen_id,law_id", "not_json: CSV"),
        ("a:1:{s:9:\"vote_hash\";s:1:\"h\";}", "not_json: PHP"),
        ("not a vote", "not_json: -"),
        (&format!("[{VOTE}]"), "not_object: an array of objects"),
        (&serde_json::json!(VOTE).to_string(), "not_object: a string that holds JSON"),
        ("[[1], {}, {}]", "not_object: a task of Celery"),
    ] {
        let said = said(body);
        assert!(said.starts_with(expected), "{said}, not {expected}");
    }
}

#[test]
fn the_names_of_the_fields_say_which_envelope_it_is() {
    let mass_transit = format!(
        r#"{{"messageId":"1","messageType":["urn:message:Vote"],"message":{VOTE},"headers":{{}}}}"#
    );
    let cloud_event =
        format!(r#"{{"specversion":"1.0","type":"vote","source":"/x","id":"1","data":{VOTE}}}"#);
    for (body, expected) in [
        (mass_transit.as_str(), "missing_field: an envelope of MassTransit"),
        (&cloud_event, "missing_field: a CloudEvents envelope"),
        (&format!(r#"{{"payload":{VOTE}}}"#), "missing_field: an envelope: the vote is below"),
        (&VOTE.replace("vote_hash", "voteHash"), "missing_field: a name is spelt another way"),
        (&VOTE.replace("law_id", "lawId"), "missing_field: a name is spelt another way"),
        (r#"{"temperature":7}"#, "missing_field: none of a vote's five fields"),
        ("{}", "missing_field: an empty object"),
        (&VOTE.replace(r#""choice":"oui","#, ""), "missing_field: -"),
        (&VOTE.replace(r#""2025-11-14T12:00:00Z""#, "1763121600"), "wrong_type: a number"),
        (&VOTE.replace(r#""law-1""#, "null"), "wrong_type: null"),
        (&VOTE.replace("\"oui\"", "\"Oui \""), "bad_choice: spelt with capitals"),
        (&VOTE.replace("\"oui\"", "\"maybe\""), "bad_choice: -"),
    ] {
        let said = said(body);
        assert!(said.starts_with(expected), "{said}, not {expected}");
    }
}

#[test]
fn a_timestamp_says_which_rule_it_breaks() {
    for (timestamp, expected) in [
        ("2025-11-14T12:00:00", "no zone"),
        ("2025-11-14T12:00:00.123", "no zone"),
        ("2025-11-14", "a date without a time"),
        ("1763121600", "a number"),
        ("1763121600.5", "a number"),
        ("2025-02-30T12:00:00Z", "a date or a time that does not exist"),
        ("2025-13-01T12:00:00Z", "a date or a time that does not exist"),
        ("2025-11-14T24:00:00Z", "a date or a time that does not exist"),
        ("2025-11-14T12:00:00+25:00", "a date or a time that does not exist"),
        ("1969-12-31T23:59:59Z", "outside the years"),
        ("9999-12-31T23:59:59-01:00", "outside the years"),
        ("1970-01-01T00:00:00+05:00", "outside the years"),
        ("9999-12-31T23:59:59.9999999Z", "outside the years"),
        ("14/11/2025 12:00:00", "the date is not written"),
        ("20251114T120000Z", "the date is not written"),
        ("2025-11-14_12:00:00Z", "neither T nor a blank"),
        ("2025-11-14T12:00Z", "the time is not written"),
        ("2025-11-14T12:00:00+0100", "the zone is neither"),
        ("2025-11-14T12:00:00 UTC", "the zone is neither"),
        ("2025-11-14T12:00:00Z[Europe/Paris]", "the zone is neither"),
        ("2025-11-14T12:00:00,5Z", "the fraction"),
        ("2025-11-14T12:00:00.Z", "the fraction"),
        (" 2025-11-14T12:00:00Z", "blanks"),
    ] {
        let said = said(VOTE.replace("2025-11-14T12:00:00Z", timestamp));
        let begin = format!("bad_timestamp: {expected}");
        assert!(said.starts_with(&begin), "{timestamp}: {said}");
    }
}

/// What is said is of the program and never of the message.
#[test]
fn nothing_of_the_message_is_said() {
    let mut all = String::new();
    for secret in ["citizen-secret", "h-secret"] {
        for body in [
            VOTE.replace("citizen-1", secret).replace("oui", secret),
            format!(r#"{{"{secret}":"{secret}"}}"#),
            format!("\u{feff}{secret}"),
            VOTE.replace("2025-11-14T12:00:00Z", secret),
        ] {
            write!(all, "{}", said(body)).expect("written");
        }
    }
    assert!(!all.contains("secret"), "{all}");
}
