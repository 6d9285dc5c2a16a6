//! The public page in a real browser: in every state and language, without scripts, on a phone, on paper, by keyboard,
//! with wrong clocks, and while servers are away.

mod live;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use vote_aggregator::model::ports::{Store, Votes};
use vote_aggregator::model::vote::{Choice, Vote};

use crate::support::browser::Browser;
use crate::support::web::get;
use crate::support::{
    Environment, Files, Servers, Service, Stage, assert_contains, assert_lacks, eventually, login,
    vote,
};

/// As a hostile publisher would name a law, and officials a title.
const HOSTILE: &str = "<script>document.title=1</script>";
const LAWS: &str = r#"
[election]
name = { fr = "Référendum du 29 novembre 2026", en = "Referendum of 29 November 2026" }
date = 2026-11-29
authority = "Conseil constitutionnel"
source = "https://www.example.org/referendum-2026"

[[laws]]
id = "law-001"
title = { fr = "Loi relative à la protection de l'eau et des milieux aquatiques", en = "Act on the protection of water and aquatic environments" }
registered = 40000

[[laws]]
id = "<script>document.title=1</script>"
title = { fr = "Loi <b onclick=alert(1)>relative</b> à l'air", en = "Act on <img src=x onerror=alert(1)> air" }

[[laws]]
id = "law-003"
title = { fr = "Loi relative au sol", en = "Act on soil" }
"#;
/// A time at which results are public already.
pub const PAST: &str = "2020-01-01T00:00:00Z";
const TAB: char = '\u{e004}';
const ENTER: char = '\u{e007}';

/// A board on a port of its own, with the role for it.
pub struct Board {
    pub service: Service,
    pub url: String,
    name: String,
    environment: Environment,
    files: Files,
}

impl Board {
    pub async fn start(stage: &Stage<'_>) -> Self {
        let role = stage.role("board", "IN ROLE vote_board").await;
        let environment = stage.environment_with(&login(&role));
        let files = Files::new("laws");
        let laws = files.write("laws.toml", LAWS);
        let options = "board --listen 127.0.0.1:0 --admin 127.0.0.1:0 --utc-offset +01:00 --laws";
        let arguments: Vec<&str> = options.split(' ').chain([&*laws]).collect();
        let service = Service::spawn(&stage.queue, &arguments, &environment).await;
        let url = format!("http://{}", service.listens_for("the board").await);
        eventually("the first reading", async || get(&url).await.status == 200).await;
        Self { service, url, name: stage.queue.clone(), environment, files }
    }

    /// Another one that makes the same files into a folder.
    pub async fn also_writes(&self, folder: &str) -> Service {
        let laws = self.files.file("laws.toml");
        let arguments = "board --utc-offset +01:00 --laws".split(' ');
        let arguments: Vec<&str> = arguments.chain([&*laws, "--out", folder]).collect();
        Service::spawn(&self.name, &arguments, &self.environment).await
    }

    /// Waits until its data say something.
    pub async fn until(&self, what: &str) {
        let data = format!("{}/results.json", self.url);
        eventually(what, async || get(&data).await.body.contains(what)).await;
    }
}

/// Votes on three laws of which the officials list all, and on one that they do not.
pub async fn counted(stage: &Stage<'_>) {
    let laws = ["law-001", HOSTILE, "law-003", "law-nowhere"];
    let choose = |n: u64| if n.is_multiple_of(3) { Choice::Non } else { Choice::Oui };
    let votes: Vec<Vote> =
        (0..2_000).map(|n| vote(n, laws[(n % 4) as usize], choose(n / 4))).collect();
    stage.store().await.count(Votes::new(votes)).await.expect("counted");
}

/// Publishes as an official does.
pub async fn publish(stage: &Stage<'_>, state: &str, more: &[&str]) {
    let arguments = ["set", state, "--reason", "décision no 1", "--yes"];
    stage.run("publication", &[&arguments[..], more].concat()).await.assert(0, &[]);
}

/// Where a run leaves its pictures.
fn pictures() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("board");
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// Asserts that a page is accessible in both themes, fits a phone and one sheet of paper, and shows `texts`, also
/// without scripts. Leaves pictures of it.
async fn assert_good(browser: &Browser, url: &str, name: &str, texts: &[&str]) {
    for theme in ["light", "dark"] {
        browser.prefer(&[("prefers-color-scheme", theme)]).await;
        for (device, width, height) in [("desktop", 1_280, 1_000), ("phone", 320, 640)] {
            browser.resize(width, height).await;
            browser.open(url).await;
            assert_contains(&browser.shown().await, texts);
            let inaccessible = browser.inaccessible().await;
            assert!(inaccessible.is_empty(), "{name}, {theme}, {device}: {inaccessible:#?}");
            let wide = browser.script("return document.documentElement.scrollWidth").await;
            assert!(wide.as_u64() <= Some(width.into()), "{name}: {wide} pixels wide of {width}");
            browser.screenshot(&pictures().join(format!("{name}-{theme}-{device}.png"))).await;
        }
    }
    let sheets = String::from_utf8_lossy(&browser.print().await).matches("/Type /Page\n").count();
    assert_eq!(sheets, 1, "{name}: sheets of paper");
    assert_eq!(browser.complaints().await, [""; 0], "{name}");

    browser.allow_scripts(false).await;
    browser.open(url).await;
    assert_contains(&browser.shown().await, texts);
    browser.allow_scripts(true).await;
}

#[tokio::test]
async fn every_state_is_accessible_in_both_languages_on_a_phone_on_paper_and_without_scripts() {
    let stage = Stage::with_roles(Servers::shared(), "browserstates").await;
    counted(&stage).await;
    let board = Board::start(&stage).await;
    let browser = Browser::start().await;
    let later = "2099-11-29T20:00:00+01:00";
    let public = ["--not-before", PAST, "--earlier", PAST];
    for (state, set, french, english) in [
        ("null", None, "Résultats non publiés", "Results not published"),
        (
            "embargoed",
            Some(("counting", &["--not-before", later][..])),
            "20\u{a0}h\u{a0}00 (UTC+1)",
            "20:00 (UTC+1)",
        ),
        ("counting", Some(("counting", &public[..])), "Résultats partiels", "Partial results"),
        (
            "provisional",
            Some(("provisional", &[][..])),
            "Résultats provisoires",
            "Provisional results",
        ),
        ("final", Some(("final", &[][..])), "Résultats définitifs", "Final results"),
        (
            "withheld",
            Some(("withheld", &[][..])),
            "Aucun chiffre n'est publié pour le moment.\n\nMotif : décision no 1",
            "No figures are published for the time being.\n\nReason: décision no 1",
        ),
    ] {
        if let Some((to, more)) = set {
            publish(&stage, to, more).await;
        }
        board.until(state).await;
        let is_public = ["counting", "provisional", "final"].contains(&state);
        for (language, heading, share) in [("fr", french, "66,6\u{a0}%"), ("en", english, "66.6%")]
        {
            let url = format!("{}/{language}/", board.url);
            let texts = if is_public { vec![heading, share] } else { vec![heading] };
            assert_good(&browser, &url, &format!("{state}-{language}"), &texts).await;
            if !is_public {
                assert_lacks(&browser.shown().await, &["333", share]);
            }
        }
    }
    // Names are text, wherever they come from.
    browser.open(&board.url).await;
    assert_contains(
        &browser.shown().await,
        &[HOSTILE, "Loi <b onclick=alert(1)>relative</b> à l'air"],
    );
    assert_ne!(browser.text("return document.title").await, "1");
    assert_eq!(browser.complaints().await, [""; 0]);
    board.service.stop().await;
}

/// All that a page can have beside its laws, at once.
#[tokio::test]
async fn a_stale_page_of_a_rehearsal_with_corrections_is_accessible() {
    let stage = Stage::with_roles(Servers::shared(), "browsertest").await;
    counted(&stage).await;
    let correct = "INSERT INTO result_corrections (law_id, oui_before, non_before, oui_after, non_after, reason) \
                   VALUES ('law-001', 340, 166, 334, 166, 'procès-verbal no 12'), ('law-nowhere', 1, 0, 0, 0, NULL)";
    stage.execute(correct).await;
    publish(&stage, "counting", &["--not-before", PAST, "--test"]).await;
    let board = Board::start(&stage).await;
    board.until("procès-verbal").await;
    stage.execute("UPDATE vote_results SET oui_count = 1 WHERE law_id = 'law-003'").await;
    board.until("decrease").await;
    let browser = Browser::start().await;
    for (language, texts) in [
        (
            "fr",
            [
                "TEST – chiffres fictifs",
                "un chiffre a baissé sans correction enregistrée",
                "Corrections (2)",
                "procès-verbal no 12",
                "loi non répertoriée",
            ],
        ),
        (
            "en",
            [
                "TEST – fictitious figures",
                "a count went down without a correction on record",
                "Corrections (2)",
                "procès-verbal no 12",
                "law that is not listed",
            ],
        ),
    ] {
        let url = format!("{}/{language}/", board.url);
        assert_good(&browser, &url, &format!("test-{language}"), &texts).await;
    }
    board.service.stop().await;
}

/// Nothing needs a mouse, each control shows that it has the focus and is large enough for a finger.
#[tokio::test]
async fn every_control_is_reached_and_used_by_keyboard() {
    let stage = Stage::with_roles(Servers::shared(), "browserkeys").await;
    counted(&stage).await;
    publish(&stage, "counting", &["--not-before", PAST]).await;
    let board = Board::start(&stage).await;
    let browser = Browser::start().await;
    browser.open(&board.url).await;
    let controls = "[...document.querySelectorAll('a[href], button')].map(it => it.outerHTML)";
    let expected = browser.script(&format!("return {controls}")).await;
    let expected = expected.as_array().expect("a list");
    assert!(expected.len() >= 8, "{expected:?}");
    for control in expected {
        browser.press(TAB).await;
        let focused = browser
            .script(
                "const it = document.activeElement, box = it.getBoundingClientRect(); \
                 return [it.outerHTML, getComputedStyle(it).outlineStyle, box.width >= 24 && box.height >= 24]",
            )
            .await;
        assert_eq!(focused, json!([control, "solid", true]));
    }
    browser.script("document.getElementById('pause').focus()").await;
    let pressed = "return document.getElementById('pause').getAttribute('aria-pressed')";
    for state in ["true", "false"] {
        browser.press(ENTER).await;
        assert_eq!(browser.text(pressed).await, state);
    }
    board.service.stop().await;
}
