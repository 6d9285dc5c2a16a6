mod files;
mod schema;
mod style;

use proptest::prelude::*;
use serde_json::{Value, json};
use time::UtcOffset;
use time::macros::{datetime, offset};

use super::*;
use crate::adapters::store::PublishedCorrection;
use crate::model::publication::{NO_REASON, PublishedChange, State};

const EIGHT: OffsetDateTime = datetime!(2026-11-29 19:00 UTC);

fn after(seconds: i64) -> OffsetDateTime {
    EIGHT + time::Duration::seconds(seconds)
}

fn law(law_id: &str, oui: i64, non: i64) -> LawResult {
    LawResult { law_id: law_id.to_owned(), oui, non, updated_at: Some(EIGHT) }
}

/// What is read `seconds` after the opening, in the publication `id`.
fn snapshot(id: i64, state: State, seconds: i64, laws: &[LawResult]) -> Snapshot {
    let reason = Some("decree".to_owned());
    let published = Published {
        id,
        state: Some(state),
        not_before: EIGHT,
        set_at: EIGHT,
        test: false,
        reason,
        sha256: None,
    };
    let none = Snapshot::without_results(Some(published), Vec::new(), after(seconds));
    Snapshot { laws: laws.to_vec(), ..none }
}

fn counting(seconds: i64, laws: &[LawResult]) -> Snapshot {
    snapshot(1, State::Counting, seconds, laws)
}

fn board(snapshots: impl IntoIterator<Item = Snapshot>) -> Board {
    let mut board = Board::new(10);
    for snapshot in snapshots {
        let now = snapshot.as_of;
        board.read(snapshot, now);
    }
    board
}

/// Without the officials' file.
const PLAIN: Site = Site { ballot: None, language: Language::Fr, offset: UtcOffset::UTC };

/// With it.
fn listed() -> Site {
    Site { ballot: Some(ballot::tests::ballot()), language: Language::En, offset: offset!(+1) }
}

fn file(board: &Board, site: &Site, name: &str, now: OffsetDateTime) -> String {
    let files = files(board, site, now);
    let file = files.into_iter().find(|file| file.name == name).expect(name);
    String::from_utf8(file.content.to_vec()).expect("UTF-8")
}

fn json(board: &Board, now: OffsetDateTime) -> Value {
    serde_json::from_str(&file(board, &PLAIN, "results.json", now)).expect("JSON")
}

#[test]
fn a_law_moves_by_ten_votes_or_with_a_change_of_state() {
    let shown = |board: &Board| board.shown().expect("read").laws.clone();
    let first = counting(0, &[law("a", 3, 1)]);
    let mut board = board([first.clone(), counting(5, &[law("a", 9, 4), law("b", 1, 8)])]);
    assert_eq!(shown(&board), [law("a", 3, 1)], "nine votes each");
    assert_eq!(board.shown().expect("read").as_of, first.as_of, "of the numbers");
    board.read(counting(10, &[law("a", 9, 5), law("b", 1, 8)]), after(10));
    assert_eq!(shown(&board), [law("a", 9, 5)]);
    assert_eq!(board.shown().expect("read").as_of, after(10));
    board.read(snapshot(2, State::Provisional, 15, &[law("a", 9, 6), law("b", 1, 8)]), after(15));
    assert_eq!(shown(&board), [law("a", 9, 6), law("b", 1, 8)]);
}

#[test]
fn what_goes_down_without_a_correction_is_not_shown() {
    let corrected = |seconds, laws: &[LawResult]| {
        let correction = PublishedCorrection {
            corrected_at: after(1),
            law_id: "a".to_owned(),
            oui_before: 30,
            non_before: 1,
            oui_after: 29,
            non_after: 1,
            reason: None,
        };
        Snapshot { corrections: vec![correction], ..counting(seconds, laws) }
    };
    let before = [law("a", 30, 1), law("b", 40, 0)];
    for (less, read) in [
        ("a count", counting(5, &[law("a", 29, 100), law("b", 40, 0)])),
        ("a law", counting(5, &[law("a", 30, 1)])),
        ("another law than the corrected one", corrected(5, &[law("a", 29, 1), law("b", 39, 0)])),
        ("more than was corrected", corrected(5, &[law("a", 5, 1), law("b", 40, 0)])),
    ] {
        let board = board([counting(0, &before), read]);
        assert_eq!(board.stale(), Some(Stale::Decrease), "{less}");
        assert_eq!(board.shown().expect("read").laws, before, "{less}");
    }
    let after_it = [law("a", 29, 1), law("b", 40, 0)];
    let board = board([counting(0, &before), corrected(5, &after_it)]);
    assert_eq!((board.stale(), &*board.shown().expect("read").laws), (None, &after_it[..]));
    assert_eq!(json(&board, after(5))["corrections"][0]["oui_after"], 29);
    // An official accepts it by publishing anew.
    let accepted = snapshot(2, State::Counting, 9, &[law("a", 1, 1)]);
    let board = self::board([counting(0, &before), counting(5, &[law("a", 1, 1)]), accepted]);
    assert_eq!((board.stale(), board.shown().expect("read").laws.len()), (None, 1));
}

#[test]
fn what_is_older_is_not_shown_and_an_outage_is_told() {
    let newer = snapshot(2, State::Withheld, 10, &[]);
    let mut board = board([newer, counting(20, &[law("a", 30, 1)])]);
    assert_eq!(board.stale(), Some(Stale::Older));
    assert_eq!(json(&board, after(20))["laws"], json!([]));

    // As after a failover or a restore that lost publications.
    for id in [2, 3] {
        let lost = snapshot(3, State::Counting, 10, &[law("a", 30, 1)]);
        board = self::board([lost, snapshot(id, State::Withheld, 5, &[])]);
        assert_eq!((board.stale(), board.shown().expect("read").laws.len()), (None, 0), "{id}");
    }

    board = self::board([counting(10, &[law("a", 30, 1)]), counting(5, &[law("a", 50, 1)])]);
    assert_eq!(board.stale(), Some(Stale::Older));

    board.read(counting(20, &[law("a", 50, 1)]), after(20));
    assert_eq!(board.stale(), None);
    board.failed(after(25), after(30));
    assert_eq!(board.stale(), None);
    board.failed(after(36), after(40));
    assert_eq!(board.stale(), Some(Stale::Database));
    let object = json(&board, after(44));
    assert_eq!((&object["stale"], &object["stale_reason"]), (&json!(true), &json!("database")));
    assert_eq!(
        (&object["as_of"], &object["checked_at"]),
        (&json!("2026-11-29T19:00:20Z"), &json!("2026-11-29T19:00:40Z"))
    );
    board.read(counting(50, &[law("a", 50, 1)]), after(50));
    assert_eq!(board.stale(), None);
}

#[test]
fn the_later_of_two_clocks_opens() {
    let mut board = Board::new(10);
    board.read(counting(1, &[law("a", 30, 1)]), after(-1));
    let object = json(&board, after(-1));
    assert_eq!(object["publication"]["state"], "embargoed");
    assert_eq!((&object["laws"], &object["as_of"]), (&json!([]), &Value::Null));
    assert_eq!(object["publication"]["reason"], Value::Null);
    board.read(counting(2, &[law("a", 30, 1)]), after(1));
    assert_eq!(json(&board, after(1))["laws"][0]["oui"], 30);
}

#[test]
fn a_law_has_an_outcome_only_when_it_is_final() {
    let laws = [law("a", 2, 1), law("b", 1, 2), law("c", 2, 2)];
    for (state, outcomes) in [
        (State::Provisional, json!([null, null, null])),
        (State::Final, json!(["accepted", "rejected", "tie"])),
    ] {
        let object = json(&board([snapshot(1, state, 0, &laws)]), EIGHT);
        let found = object["laws"].as_array().expect("laws");
        assert_eq!(found.iter().map(|law| law["outcome"].clone()).collect::<Value>(), outcomes);
        assert_eq!(
            (&found[0]["oui_shown"], &found[0]["non_shown"]),
            (&json!("66.7"), &json!("33.3"))
        );
    }
    let csv = file(&board([counting(0, &laws[..1])]), &PLAIN, "results.csv", EIGHT);
    assert!(
        csv.ends_with("\r\na,2,1,3,66.66666666666667,33.333333333333336,2026-11-29T19:00:00Z\r\n")
    );
    assert!(files(&Board::new(10), &PLAIN, EIGHT).is_empty(), "nothing was read yet");
}

fn change(id: i64, state: State, sha256: &str) -> PublishedChange {
    let sha256 = (state == State::Final).then(|| sha256.to_owned());
    let reason = Some("decree".to_owned());
    PublishedChange { id, set_at: EIGHT, state, not_before: EIGHT, reason, sha256 }
}

proptest! {
    /// Whatever the database has while results are not public.
    #[test]
    fn files_are_the_same_whatever_is_counted(
        counts in prop::collection::vec((0_i64.., 0_i64..), 0..5),
        embargoed in any::<bool>(),
        seconds in 0_i64..100,
    ) {
        let laws: Vec<_> =
            counts.iter().enumerate().map(|(n, (oui, non))| law(&n.to_string(), *oui, *non)).collect();
        let state = if embargoed { State::Final } else { State::Withheld };
        // A view would not even have the rows.
        let mut board = Board::new(10);
        let now = if embargoed { after(-100) } else { after(0) };
        let copied = |laws: &[LawResult]| Snapshot {
            finals: [(1, laws.to_vec())].into(),
            since_final: i64::try_from(laws.len()).ok(),
            history: vec![change(1, State::Final, &laws.len().to_string())],
            ..snapshot(1, state, seconds, laws)
        };
        board.read(copied(&laws), now);
        let mut other = Board::new(10);
        other.read(Snapshot { as_of: after(0), ..copied(&[]) }, now);
        prop_assert_eq!(other.shown().and_then(|shown| shown.since_final), None);
        for site in [PLAIN, listed()] {
            prop_assert_eq!(files(&board, &site, now), files(&other, &site, now));
        }
    }

    /// No single vote shows as a change.
    #[test]
    fn counts_never_go_down_and_move_by_ten_at_least(
        added in prop::collection::vec((0_i64..8, 0_i64..8), 1..40),
    ) {
        let mut board = Board::new(10);
        let (mut oui, mut non) = (0, 0);
        let mut before = (0, 0);
        for (second, (more_oui, more_non)) in (0..).zip(added) {
            (oui, non) = (oui + more_oui, non + more_non);
            board.read(counting(second, &[law("a", oui, non)]), after(second));
            let shown = &board.shown().expect("read").laws;
            let now = shown.first().map_or((0, 0), |law| (law.oui, law.non));
            prop_assert!(now.0 >= before.0 && now.1 >= before.1 && now.0 <= oui && now.1 <= non);
            let step = now.0 - before.0 + now.1 - before.1;
            prop_assert!(second == 0 || step == 0 || step >= 10, "{}", step);
            before = now;
        }
    }
}
