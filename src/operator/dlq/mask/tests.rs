//! Whatever a body looks like, what is shown of it does not reveal who voted.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn shown(body: &str) -> String {
    match show(body.as_bytes(), false) {
        Shown::Text(text) => text,
        other => panic!("{body}: {other:?}"),
    }
}

#[test]
fn a_votes_own_fields_are_shown_and_no_citizen() {
    let body = r#"{"vote_hash":"h-1","citizen_id":"alice","law_id":"law-1","choice":"oui",
        "timestamp":"2025-11-14T12:00:00Z","metadata":{"ip":"10.0.0.7","agent":["x",1.5,null]}}"#;
    assert_eq!(
        shown(body),
        r#"{"vote_hash":"h-1","citizen_id":"***","law_id":"law-1","choice":"oui","timestamp":"2025-11-14T12:00:00Z","metadata":{"ip":"***","agent":["***","***",null]}}"#
    );
}

#[test]
fn names_are_masked_however_they_are_written() {
    for body in [
        r#"{"\u0063\u0069tizen_id":"\u0061lice"}"#,
        r#"{"citizen_id":"bob","citizen_id":"alice"}"#,
        r#"{"citizen_id":"alice","citizen_id":1}"#,
        r#"{"Citizen-ID":"alice"}"#,
        r#"{"citizn_id":"alice"}"#,
        r#"{"vote":{"citizen_id":"alice"}}"#,
        r#"[[{"citizen_id":["alice"]}]]"#,
        r#"{"citizen_id":{"law_id":"alice"}}"#,
        r#"{"law_id":{"name":"alice"}}"#,
        r#"["alice"]"#,
        // Beside its own field.
        r#"{"citizen_id":"alice","vote_hash":"vote-of-alice"}"#,
        r#"{"citizen_id":"alice","choice":"alice"}"#,
        r#"{"citizen_id":"alice","alice":"oui"}"#,
    ] {
        let shown = shown(body);
        assert!(!shown.contains("alice"), "{body}: {shown}");
        serde_json::from_str::<Value>(&shown).expect("still JSON");
    }
    // Looks like a name of a field and is one of a citizen.
    assert_eq!(shown(r#"{"citizen-00000001":{"choice":"oui"}}"#), r#"{"***":{"choice":"***"}}"#);
    assert_eq!(
        shown(r#"{"citizen_id":12345,"law_id":12345}"#),
        r#"{"citizen_id":"***","law_id":"***"}"#
    );
    assert_eq!(
        shown(r#"{"law_id":7,"choice":"","citizen_id":""}"#),
        r#"{"law_id":7,"choice":"","citizen_id":""}"#
    );
}

#[test]
fn what_cannot_be_masked_is_not_shown() {
    let deep = format!("{}\"alice\"{}", "[".repeat(200), "]".repeat(200));
    let deeper = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let large = format!(r#"{{"vote_hash":"h","pad":"{}"}}"#, "x".repeat(70_000));
    for body in [
        "",
        "alice",
        r#"{"citizen_id":"alice""#,
        r#"{"citizen_id":"alice"} trailing"#,
        r#"{"citizen_id":"alice"}{"citizen_id":"bob"}"#,
        r#"{"\ud800":"alice"}"#,
        &deep,
        &deeper,
        &large,
    ] {
        assert!(matches!(show(body.as_bytes(), false), Shown::Hidden(_)), "{:.60}", body);
        assert_eq!(show(body.as_bytes(), true), Shown::Text(body.to_owned()));
    }
    assert!(matches!(show(b"\xff{}", false), Shown::Hidden(_)));
    assert_eq!(show(b"\xff{}", true), Shown::Bytes(b"\xff{}".to_vec()));
}

#[test]
fn headers_are_shown_by_name_and_never_with_a_citizen() {
    let headers = json!({
        "x-death": [{"reason": "rejected"}], "x-sqlstate": "23514", "x-vote-hash": "of-alice",
        "user": "alice", "x-user-7": 1,
    });
    let Value::Object(headers) = headers else { panic!("an object") };
    let message =
        DeadLetterMessage::new(r#"{"citizen_id":"alice"}"#, headers.into_iter().collect());
    let shown = |reveal| Value::Object(super::headers(&message, reveal).into_iter().collect());
    let masked = json!({
        "x-death": [{"reason": "rejected"}], "x-sqlstate": "23514", "x-vote-hash": "***",
        "user": "***", "***": "***",
    });
    assert_eq!(shown(false), masked);
    assert_eq!(shown(true)["user"], "alice");
}

#[test]
fn a_property_is_masked_when_it_may_be_a_citizen() {
    let sent =
        [("correlation_id", "alice"), ("app_id", "web"), ("type", "alice"), ("message_id", "m-1")];
    for (body, shown) in [
        (r#"{"citizen_id":"alice"}"#, ["***", "web", "***", "m-1"]),
        (r#"{"citizn_id":"alice"}"#, ["***", "web", "alice", "***"]),
        ("alice", ["***", "web", "alice", "***"]),
    ] {
        let mut message = DeadLetterMessage::new(body, BTreeMap::new());
        message.plain_properties.extend(sent.map(|(name, value)| (name, json!(value))));
        let masked: BTreeMap<&str, Value> = properties(&message, false).into_iter().collect();
        assert_eq!(sent.map(|(name, _)| &masked[name]), shown, "{body}");
        assert!(properties(&message, true).contains(&("type", json!("alice"))));
    }
}

#[test]
fn a_malformed_bodys_law_is_found_when_it_is_one() {
    for (body, law) in [
        (r#"{"law_id":"law-1"}"#, Some("law-1")),
        (r#"{"law_id":"law\u002d1","choice":5}"#, Some("law-1")),
        (r#"{"law_id":"law-1","law_id":"law-2"}"#, None),
        (r#"{"law_id":"law 1"}"#, None),
        (r#"{"law_id":5}"#, None),
        (r#"{"law_id":"alice","citizen_id":"alice"}"#, None),
        (r#"["law-1"]"#, None),
        ("{", None),
    ] {
        assert_eq!(law_id(body.as_bytes()).as_deref(), law, "{body}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        Just(Value::from("SECRET-7f3a")),
        "[a-z]{0,8}".prop_map(Value::from),
    ];
    let key = "citizen_id|law_id|vote_hash|SECRET-7f3a|[a-z_]{1,8}";
    leaf.prop_recursive(5, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn a_citizen_is_never_shown_wherever_else_it_stands(rest in any_json()) {
        let body = json!({"citizen_id": "SECRET-7f3a", "rest": rest}).to_string();
        let shown = shown(&body);
        prop_assert!(!shown.contains("SECRET"), "{}", shown);
        prop_assert!(serde_json::from_str::<Value>(&shown).is_ok());
    }

    #[test]
    fn any_bytes_are_handled(body in prop::collection::vec(any::<u8>(), 0..200)) {
        show(&body, false);
        law_id(&body);
    }
}
