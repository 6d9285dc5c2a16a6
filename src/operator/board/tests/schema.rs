//! The files for programs, held to the schemas that are shipped.

use boon::{Compiler, SchemaIndex, Schemas};
use strum::VariantArray;

use super::*;

const RESULTS: &str = include_str!("../../../../deploy/board/results.schema.json");
const HISTORY: &str = include_str!("../../../../deploy/board/history.schema.json");

struct Validator {
    schemas: Schemas,
    results: SchemaIndex,
    history: SchemaIndex,
}

impl Validator {
    fn new() -> Self {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.enable_format_assertions();
        let at = |name: &str| format!("https://example.org/{name}.schema.json");
        for (name, text) in [("results", RESULTS), ("history", HISTORY)] {
            let schema = serde_json::from_str(text).expect("JSON");
            compiler.add_resource(&at(name), schema).expect("a schema");
        }
        let mut compile =
            |name: &str| compiler.compile(&at(name), &mut schemas).expect("a valid schema");
        let (results, history) = (compile("results"), compile("history"));
        Self { schemas, results, history }
    }

    fn check(&self, schema: SchemaIndex, object: &Value) -> Result<(), String> {
        self.schemas.validate(object, schema).map_err(|error| error.to_string())
    }

    /// Checks every JSON file of `board`; how many there are.
    fn check_all(&self, board: &Board, site: &Site, now: OffsetDateTime) -> usize {
        let files = files(board, site, now).into_iter().filter(|file| file.kind == Kind::Json);
        let checked = files.map(|File { name, content, .. }| {
            let is_history = name == "history.json";
            let schema = if is_history { self.history } else { self.results };
            let object: Value = serde_json::from_slice(&content).expect("JSON");
            self.check(schema, &object).unwrap_or_else(|error| panic!("{name}: {error} {object}"));
        });
        checked.count()
    }
}

fn full(state: State, laws: &[LawResult]) -> Snapshot {
    let correction = PublishedCorrection {
        corrected_at: after(-1),
        law_id: "typo".to_owned(),
        oui_before: 30,
        non_before: 1,
        oui_after: 29,
        non_after: 1,
        reason: Some("typing error".to_owned()),
    };
    let mut read = Snapshot {
        corrections: vec![correction],
        history: vec![change(1, State::Final, &"0".repeat(64)), change(2, State::Counting, "")],
        finals: [(1, laws.to_vec())].into(),
        ..snapshot(3, state, 0, laws)
    };
    if let Some(published) = read.published.as_mut().filter(|_| state == State::Final) {
        published.sha256 = Some("a".repeat(64));
    }
    read
}

#[test]
fn every_json_file_is_as_the_shipped_schema_says_in_every_state() {
    let validator = Validator::new();
    let none: Snapshot = Snapshot { published: None, ..counting(0, &[]) };
    let laws = [law("a", 1_000_000, 1), law("b", 2, 2), law("typo", 0, 0), law("broken", -1, 5)];
    for site in [PLAIN, listed()] {
        assert_eq!(validator.check_all(&board([none.clone()]), &site, EIGHT), 2);
        for state in State::VARIANTS {
            let mut board = board([full(*state, &laws)]);
            let copies = usize::from(*state != State::Withheld);
            assert_eq!(validator.check_all(&board, &site, EIGHT), 2 + copies, "{state}");
            board.failed(after(0), after(20));
            assert_eq!(board.stale(), Some(Stale::Database));
            validator.check_all(&board, &site, EIGHT);
            let mut embargoed = Board::new(10);
            embargoed.read(full(*state, &laws), after(-1));
            assert_eq!(validator.check_all(&embargoed, &site, after(-1)), 2, "{state}");
        }
    }
}

#[test]
fn the_schema_refuses_a_number_before_the_time_and_what_it_does_not_know() {
    let validator = Validator::new();
    let mut board = Board::new(10);
    board.read(full(State::Counting, &[law("a", 1, 2)]), after(-1));
    let text = file(&board, &listed(), "results.json", EIGHT);
    let object: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(validator.check(validator.results, &object), Ok(()));
    for (at, value) in [
        ("/laws/0/oui", json!(1)),
        ("/laws/0/turnout_percent", json!(1.5)),
        ("/as_of", json!("2026-11-29T19:00:00Z")),
        ("/unlisted/votes", json!(1)),
        ("/publication/state", json!("secret")),
        ("/checked_at", json!("19:00")),
        ("/election/date", json!("29.11.2026")),
        ("/laws/0/title", json!({"fr": "f", "en": "e", "de": "d"})),
    ] {
        let mut changed = object.clone();
        *changed.pointer_mut(at).expect("a part of it") = value;
        assert!(validator.check(validator.results, &changed).is_err(), "{at}");
    }
}

/// Officials begin with it.
#[test]
fn the_shipped_officials_file_is_valid() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/board/laws.toml");
    let ballot = Ballot::read(std::path::Path::new(path)).expect("valid");
    assert_eq!(ballot.laws.len(), 2);
}
