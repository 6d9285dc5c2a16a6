//! `board`: the files that the public gets, from the embargo to the plug, and without PostgreSQL.

mod http;
mod metrics;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vote_aggregator::model::ports::{Store, Votes};
use vote_aggregator::model::vote::Choice;

use crate::standby::replicated;
use crate::support::{Files, Servers, Service, Stage, eventually, login, vote, votes};

/// What every board serves, besides the assets.
const FILES: [&str; 7] = [
    "index.html",
    "fr/index.html",
    "en/index.html",
    "results.json",
    "results.csv",
    "results-fr.csv",
    "history.json",
];

/// A board on a stage, with the role for it, and its folder.
struct Board {
    files: Files,
    service: Service,
}

impl Board {
    async fn start(stage: &Stage<'_>) -> Self {
        let files = Files::new("board");
        let service = board(stage, &["--out", &files.path()]).await;
        Self { files, service }
    }

    /// Every file by its name.
    fn all(&self) -> BTreeMap<String, String> {
        let root = PathBuf::from(self.files.path());
        let (mut all, mut folders) = (BTreeMap::new(), vec![root.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(&root).expect("below it").display().to_string();
                    // It may be replaced at any time.
                    all.insert(name, fs::read_to_string(path).unwrap_or_default());
                }
            }
        }
        all
    }

    /// `results.json`, whole at any time.
    fn json(&self) -> Option<Value> {
        let text = fs::read_to_string(self.files.join("results.json")).ok()?;
        Some(serde_json::from_str(&text).expect("JSON"))
    }

    async fn until(&self, what: &str, mut holds: impl FnMut(&Value) -> bool) {
        eventually(what, async || self.json().is_some_and(|json| holds(&json))).await;
    }
}

/// A board that logs in as a role of the group for it, on a stage with roles.
async fn board(stage: &Stage<'_>, arguments: &[&str]) -> Service {
    let role = stage.role("board", "IN ROLE vote_board").await;
    let arguments = [&["board"], arguments].concat();
    Service::spawn(&stage.queue, &arguments, &stage.environment_with(&login(&role))).await
}

async fn publish(stage: &Stage<'_>, state: &str, not_before: &str) {
    let insert = format!(
        "INSERT INTO result_publications (follows, set_at, state, not_before, reason, test) \
         SELECT max(id), '2026-11-29 12:00Z', '{state}', {not_before}, 'by decree', false \
         FROM result_publications"
    );
    stage.execute(&insert).await;
}

#[tokio::test]
async fn the_files_are_the_same_whatever_is_counted_until_the_results_are_public() {
    let few = Stage::with_roles(Servers::shared(), "boardfew").await;
    let many = Stage::with_roles(Servers::shared(), "boardmany").await;
    few.store().await.count(Votes::new(votes(0, 50))).await.expect("counted");
    many.store().await.count(Votes::new(votes(0, 2_000))).await.expect("counted");
    for stage in [&few, &many] {
        publish(stage, "counting", "'2099-01-01 00:00Z'").await;
    }
    let boards = [Board::start(&few).await, Board::start(&many).await];
    for board in &boards {
        board.until("embargoed", |json| json["publication"]["state"] == "embargoed").await;
    }
    // The time of the last look is in steps of ten seconds, and on a busy machine one of them may be stale
    // for a moment.
    eventually("the same", async || boards[0].all() == boards[1].all()).await;
    let (all, object) = (boards[0].all(), boards[0].json().expect("written"));
    assert!(FILES.iter().all(|name| all[*name].len() > 30), "{all:?}");
    assert_eq!((&object["laws"], &object["as_of"]), (&json!([]), &Value::Null));

    for stage in [&few, &many] {
        publish(stage, "counting", "'2020-01-01 00:00Z'").await;
    }
    for (board, stage) in boards.iter().zip([&few, &many]) {
        board.until("public", |json| json["publication"]["state"] == "counting").await;
        for law in board.json().expect("written")["laws"].as_array().expect("laws") {
            let results = &stage.results().await[law["law_id"].as_str().expect("a law")];
            assert_eq!((&law["oui"], &law["non"]), (&json!(results[0]), &json!(results[1])));
        }
    }
    assert_ne!(boards[0].all(), boards[1].all());

    // Nine votes more show nothing, also when those of another law that are counted with them do; ten do.
    let total = |json: &Value, law: &str| {
        let mut laws = json["laws"].as_array().expect("laws").iter();
        laws.find(|it| it["law_id"] == law).expect(law)["total"].as_i64()
    };
    let store = few.store().await;
    let one_each = |first, laws: &[&str]| {
        Votes::new((first..).zip(laws).map(|(n, law)| vote(n, law, Choice::Oui)).collect())
    };
    let more = [["law-000"; 9], ["law-001"; 9], ["law-001"; 9]].concat();
    store.count(one_each(1_000, &more)).await.expect("counted");
    boards[0].until("the other law", |json| total(json, "law-001") == Some(28)).await;
    assert_eq!(total(&boards[0].json().expect("written"), "law-000"), Some(10));
    store.count(one_each(2_000, &["law-000"])).await.expect("counted");
    boards[0].until("the tenth", |json| total(json, "law-000") == Some(20)).await;

    // The plug. The files are replaced one by one, and then nothing tells the two apart again.
    for stage in [&few, &many] {
        publish(stage, "withheld", "'2020-01-01 00:00Z'").await;
    }
    boards[0].until("withheld", |json| json["publication"]["state"] == "withheld").await;
    eventually("the same again", async || boards[0].all() == boards[1].all()).await;
    let all = boards[0].all();
    assert!(all.values().all(|content| !content.contains("law-001")), "{all:?}");
    for Board { service, .. } in boards {
        service.stop().await;
    }
}

#[tokio::test]
async fn a_final_copy_is_served_beside_what_follows_and_disappears_when_all_is_withheld() {
    let stage = Stage::with_roles(Servers::shared(), "boardfinal").await;
    stage.store().await.count(Votes::new(votes(0, 50))).await.expect("counted");
    let official = stage.role("official", "IN ROLE vote_publisher, vote_auditor").await;
    let publication = async |arguments: &[&str]| {
        let arguments = [&["publication"], arguments].concat();
        stage.run_with(&arguments, &login(&official)).await.assert(0, &[]);
    };
    publish(&stage, "provisional", "'2020-01-01 00:00Z'").await;
    publication(&["set", "final", "--reason", "decision 7", "--yes"]).await;
    let laws = deploy("laws.toml");
    let files = Files::new("board");
    let service = board(&stage, &["--out", &files.path(), "--laws", &laws]).await;
    let board = Board { files, service };
    board.until("final", |json| json["publication"]["state"] == "final").await;
    let copy = board.files.join("final/2/results.json");
    eventually("the copy, which is written last", async || copy.exists()).await;
    let first = fs::read_to_string(&copy).expect("whole");
    // law-001 and law-002 are listed, and three more laws have votes.
    let object: Value = serde_json::from_str(&first).expect("JSON");
    assert_eq!((&object["unlisted"]["laws"], &object["publication"]["id"]), (&json!(3), &json!(2)));
    board.service.until_logged("that --laws does not list").await;

    // A publisher may add rows to a copy: those are not what was published.
    stage.execute("INSERT INTO certified_results VALUES (2, 'law-late', 1, 1)").await;
    board.service.until_logged("a frozen copy (certified_results) was changed").await;
    assert_eq!(board.json().expect("written")["unlisted"]["laws"], 3);
    stage.execute("DELETE FROM certified_results WHERE law_id = 'law-late'").await;

    publication(&["set", "provisional", "--reason", "a recount", "--yes"]).await;
    stage.store().await.count(Votes::new(votes(50, 50))).await.expect("counted");
    board.until("provisional", |json| json["publication"]["state"] == "provisional").await;
    assert_eq!(fs::read_to_string(&copy).expect("kept"), first);
    let history = &board.all()["history.json"];
    assert!(history.contains("decision 7") && !history.contains(&official), "{history}");

    // Whatever else is the matter.
    let tables = "vote_results, certified_results, result_corrections, vote_audit";
    let locked = stage.hold(&format!("LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")).await;
    publication(&["withhold", "two laws were exchanged"]).await;
    board.until("withheld", |json| json["publication"]["state"] == "withheld").await;
    eventually("removed", async || !copy.exists()).await;
    let all = board.all();
    assert!(all.values().all(|content| !content.contains("decision 7")), "{all:?}");
    drop(locked);
    board.service.stop().await;
}

/// A file that is shipped.
fn deploy(name: &str) -> String {
    format!("{}/deploy/board/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[tokio::test]
async fn a_folder_has_one_board_and_a_board_needs_its_grants() {
    let stage = Stage::with_roles(Servers::shared(), "boardfolder").await;
    let board = Board::start(&stage).await;
    board.until("nothing", |json| json["publication"].is_null()).await;
    let second = ["--out", &board.files.path()];
    stage.run("board", &second).await.assert(78, &["another board writes into"]);
    stage.run("board", &["--out", "/nowhere/at/all"]).await.assert(78, &["/nowhere/at/all"]);
    stage.run("board", &[]).await.assert(2, &["--out <DIR>|--listen <ADDRESS>"]);
    let laws = board.files.write("laws.toml", "[election]\nname = 1\n");
    let wrong = ["--out", "/nowhere", "--laws", &laws];
    stage.run("board", &wrong).await.assert(78, &["laws.toml:2: "]);
    board.service.stop().await;
    assert!(Path::new(&board.files.path()).join("results.json").exists(), "files stay");

    let files = Files::new("boardgrants");
    let role = stage.role("nobody", "").await;
    let refused = ["board", "--out", &files.path()];
    stage.run_with(&refused, &login(&role)).await.assert(77, &["42501"]);
    assert!(!files.join("results.json").exists());
}

#[tokio::test]
async fn an_outage_is_told_and_ends() {
    let servers = Servers::private("boardoutage");
    let stage = Stage::with_roles(&servers, "boardoutage").await;
    stage.store().await.count(Votes::new(votes(0, 50))).await.expect("counted");
    publish(&stage, "counting", "'2020-01-01 00:00Z'").await;
    let board = Board::start(&stage).await;
    board.until("public", |json| json["stale"] == false).await;
    let laws = board.json().expect("written")["laws"].clone();
    servers.script(&["stop", "postgres"]);
    board.until("stale", |json| json["stale_reason"] == "database").await;
    assert_eq!(board.json().expect("written")["laws"], laws);
    servers.script(&["start", "postgres"]);
    board.until("back", |json| json["stale"] == false).await;
    board.service.stop().await;
}

/// A standby that is cut off would show what is withheld by now.
#[tokio::test]
async fn a_standby_is_not_shown() {
    let servers = replicated("boardstandby");
    let stage = Stage::with_roles(&servers, "boardstandby").await;
    let files = Files::new("boardstandby");
    let environment = stage.environment_with(&[("POSTGRES_HOST", "127.0.0.2")]);
    let arguments = ["board", "--out", &files.path()];
    let service = Service::spawn(&stage.queue, &arguments, &environment).await;
    service.until_logged("it takes no writes: a standby").await;
    service.stop().await;
    assert!(!files.join("results.json").exists());
}
