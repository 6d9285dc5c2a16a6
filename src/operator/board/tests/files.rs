//! What is in the files.

use super::*;

#[test]
fn the_officials_file_gives_order_titles_and_turnout_and_what_it_does_not_list_is_told() {
    let site = listed();
    let laws = [law("a", 3, 1), law("b", 240, 160), law("typo", 5, 7)];
    let board = board([counting(0, &laws)]);
    let object: Value =
        serde_json::from_str(&file(&board, &site, "results.json", EIGHT)).expect("JSON");
    let ids = object["laws"].as_array().expect("laws").iter().map(|law| law["law_id"].clone());
    assert_eq!(ids.collect::<Value>(), json!(["b", "a"]));
    assert_eq!(object["laws"][0]["turnout_percent"], 40.0);
    assert_eq!(object["laws"][0]["title"], json!({"fr": "Loi sur l'eau", "en": "Water act"}));
    assert_eq!(object["laws"][1]["registered"], Value::Null);
    assert_eq!(object["unlisted"], json!({"laws": 1, "votes": 12}));
    assert_eq!(object["election"]["date"], "2026-11-29");
    assert_eq!(site.unlisted(&board), 1);
    for File { name, content, .. } in files(&board, &site, EIGHT) {
        assert!(!String::from_utf8_lossy(&content).contains("typo"), "{name}");
    }
    let french = file(&board, &site, "results-fr.csv", EIGHT);
    let (header, rows) = french.split_once("\r\n").expect("a header");
    assert_eq!(
        header,
        "\u{feff}Loi;Intitulé;Inscrits;Exprimés;% Exp/Ins;Oui;% Oui/Exp;Non;% Non/Exp"
    );
    assert_eq!(
        rows,
        "b;\"Loi sur l'eau\";1000;400;40;240;60;160;40\r\na;\"Loi <sur> l'air\";;4;;3;75;1;25\r\n"
    );
    let plain = file(&board, &PLAIN, "results-fr.csv", EIGHT);
    assert!(
        plain.starts_with("\u{feff}Loi;Exprimés;Oui;% Oui/Exp;Non;% Non/Exp\r\na;4;3;75;1;25\r\n")
    );

    // A law without votes has no zeros.
    let board = self::board([counting(0, &laws[..1])]);
    let object: Value =
        serde_json::from_str(&file(&board, &site, "results.json", EIGHT)).expect("JSON");
    assert_eq!(
        (&object["laws"][0]["law_id"], &object["laws"][0]["oui"]),
        (&json!("b"), &Value::Null)
    );
}

#[test]
fn a_page_says_the_state_in_words_and_escapes_what_it_is_given() {
    let page = |snapshot: Snapshot, now, name: &str| {
        let mut board = Board::new(10);
        board.read(snapshot, now);
        file(&board, &listed(), name, now)
    };
    let laws = [law("a", 702_115, 502_262), law("b", 1, 0)];
    for (state, now, french, english) in [
        (
            State::Counting,
            after(-1),
            "Résultats à partir de 20\u{a0}h\u{a0}00 (UTC+1), le 29\u{a0}novembre 2026",
            "Results from 20:00 (UTC+1) on 29\u{a0}November 2026",
        ),
        (State::Withheld, EIGHT, "Résultats non publiés", "Results not published"),
        (State::Counting, EIGHT, "Résultats partiels, non", "Partial results, unofficial"),
        (
            State::Provisional,
            EIGHT,
            "Résultats provisoires, non",
            "Provisional results, unofficial",
        ),
        (State::Final, EIGHT, "Résultats définitifs", "Final results"),
    ] {
        for (name, heading) in
            [("fr/index.html", french), ("en/index.html", english), ("index.html", english)]
        {
            let page = page(snapshot(1, state, 0, &laws), now, name);
            assert!(page.contains(&format!("<title>{heading}")), "{page}");
            assert!(page.contains(&format!("<h2>{heading}")), "{page}");
            let shows = page.contains("502");
            assert_eq!(shows, now == EIGHT && state != State::Withheld, "{state} {page}");
            // Nobody leads.
            let outcome = page.contains("class=\"outcome\"");
            assert_eq!(outcome, state == State::Final, "{state}");
            for inline in ["<style", " style=", " onclick=", "http-equiv", "<sur>"] {
                assert!(!page.contains(inline), "{inline}");
            }
        }
    }
    let page = |name| page(counting(0, &laws), EIGHT, name);
    let (french, english) = (page("fr/index.html"), page("en/index.html"));
    for part in
        ["702\u{202f}115", "58,3\u{a0}%", "1\u{202f}204\u{202f}377", "Loi &lt;sur&gt; l'air"]
    {
        assert!(french.contains(part), "{part:?} in {french}");
    }
    for part in [
        "702,115",
        "58.3%",
        "41.7%",
        "Air act",
        "lang=\"en\"",
        "only once there are at least 10 new votes",
    ] {
        assert!(english.contains(part), "{part:?} in {english}");
    }
    let hostile = [law("<script>alert(1)</script>", 1, 1)];
    let board = board([counting(0, &hostile)]);
    let page = file(&board, &PLAIN, "index.html", EIGHT);
    assert!(page.contains("&lt;script&gt;alert") && !page.contains("<script>alert"), "{page}");
}

#[test]
fn officials_words_are_marked_with_their_language_and_no_reason_is_made_up() {
    let pages = |snapshot: Snapshot| {
        let board = board([snapshot]);
        ["fr", "en"].map(|name| file(&board, &listed(), &format!("{name}/index.html"), EIGHT))
    };
    // The site's language is English.
    let [french, english] = pages(snapshot(1, State::Withheld, 0, &[]));
    assert!(french.contains("Motif : <span lang=\"en\">decree</span>"), "{french}");
    assert!(french.contains("<span lang=\"en\">Conseil constitutionnel</span>"), "{french}");
    assert!(english.contains("Reason: decree</p>") && !english.contains("<span lang"), "{english}");
    let mut silent = snapshot(1, State::Withheld, 0, &[]);
    if let Some(published) = &mut silent.published {
        published.reason = Some(NO_REASON.to_owned());
    }
    let board = self::board([silent.clone()]);
    assert_eq!(json(&board, EIGHT)["publication"]["reason"], NO_REASON, "for the record");
    let [french, english] = pages(silent);
    assert!(french.contains("Aucun chiffre") && !french.contains("Motif"), "{french}");
    assert!(english.contains("No figures") && !english.contains("Reason"), "{english}");
    for page in [french, english] {
        assert!(!page.contains(NO_REASON), "{page}");
    }
}

/// The time of the last look is in steps.
#[test]
fn numbers_are_never_later_than_the_look_that_found_them() {
    let board = board([counting(14, &[law("a", 30, 1)])]);
    let page = file(&board, &PLAIN, "en/index.html", after(14));
    assert!(page.contains("Figures of 29\u{a0}November 2026, 19:00:14 (UTC)"), "{page}");
    assert!(page.contains("Checked at 19:00:14 (UTC)"), "{page}");
    let later = file(&board, &PLAIN, "en/index.html", after(31));
    assert!(later.contains("Checked at 19:00:30 (UTC)"), "{later}");
}

#[test]
fn a_rehearsal_says_so_in_every_file_for_people() {
    let mut read = counting(0, &[law("a", 1, 1)]);
    let board = board([read.clone()]);
    assert!(!file(&board, &PLAIN, "fr/index.html", EIGHT).contains("TEST"));
    if let Some(published) = &mut read.published {
        published.test = true;
    }
    let board = self::board([read]);
    for name in ["index.html", "fr/index.html", "en/index.html"] {
        let page = file(&board, &PLAIN, name, EIGHT);
        assert!(page.contains("<title>TEST – ") && page.contains("class=\"banner\""), "{page}");
    }
    for name in ["results.json", "history.json"] {
        assert!(file(&board, &PLAIN, name, EIGHT).contains("\"test\":true"), "{name}");
    }
}

#[test]
fn each_final_is_kept_with_its_corrections_as_long_as_results_are_public() {
    let copy = [law("a", 20, 10)];
    let mut read = Snapshot {
        history: vec![change(4, State::Final, "ab12"), change(5, State::Provisional, "")],
        finals: [(4, copy.to_vec())].into(),
        ..snapshot(5, State::Provisional, 60, &[law("a", 25, 10)])
    };
    let board = board([read.clone()]);
    let object: Value =
        serde_json::from_str(&file(&board, &PLAIN, "final/4/results.json", after(100)))
            .expect("JSON");
    assert_eq!(object["publication"]["results_sha256"], "ab12");
    assert_eq!(
        (&object["laws"][0]["oui"], &object["laws"][0]["outcome"]),
        (&json!(20), &json!("accepted"))
    );
    assert_eq!(
        file(&board, &PLAIN, "final/4/results.json", after(500)),
        file(&board, &PLAIN, "final/4/results.json", after(100)),
        "it does not change"
    );
    let csv = file(&board, &PLAIN, "final/4/results.csv", EIGHT);
    assert!(csv.contains("\r\na,20,10,30,"), "{csv}");
    let history = file(&board, &PLAIN, "history.json", EIGHT);
    assert!(history.contains("\"state\":\"provisional\"") && history.contains("ab12"), "{history}");

    read.published = snapshot(6, State::Withheld, 61, &[]).published;
    let board = self::board([read]);
    for File { name, content, .. } in files(&board, &PLAIN, EIGHT) {
        assert!(!name.starts_with("final/"), "{name}");
        assert!(!String::from_utf8_lossy(&content).contains("ab12"), "{name}");
    }
}

#[test]
fn the_script_is_small() {
    assert!(page::SCRIPT.len() <= 3_000, "{} bytes", page::SCRIPT.len());
}
