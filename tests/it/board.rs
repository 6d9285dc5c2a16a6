//! `board`: the files that the public gets, from the embargo to the plug, and without PostgreSQL.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use vote_aggregator::model::ports::{Store, Votes};

use crate::standby::replicated;
use crate::support::{Files, Servers, Service, Stage, eventually, login, votes};

const FILES: [&str; 2] = ["results.json", "results.csv"];

/// A board on a stage, with the role for it, and its folder.
struct Board {
    files: Files,
    service: Service,
}

impl Board {
    async fn start(stage: &Stage<'_>) -> Self {
        let role = stage.role("board", "IN ROLE vote_board").await;
        let files = Files::new("board");
        let environment = stage.environment_with(&login(&role));
        let arguments = ["board", "--every", "2", "--out", &files.path()];
        let service = Service::spawn(&stage.queue, &arguments, &environment).await;
        Self { files, service }
    }

    /// Each file, without the time of the last look.
    fn read(&self) -> Option<[String; 2]> {
        let [json, csv] = FILES.map(|name| fs::read_to_string(self.files.join(name)).ok());
        let mut object: Value = serde_json::from_str(&json?).expect("whole at any time");
        object["checked_at"].take();
        Some([object.to_string(), csv?])
    }

    fn json(&self) -> Value {
        let [json, _] = self.read().expect("written");
        serde_json::from_str(&json).expect("JSON")
    }

    async fn until(&self, what: &str, mut holds: impl FnMut(&Value) -> bool) {
        eventually(what, async || self.read().is_some() && holds(&self.json())).await;
    }
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
    // On a busy machine one of them may be stale for a moment.
    eventually("the same", async || boards[0].read() == boards[1].read()).await;
    let object = boards[0].json();
    assert_eq!((&object["laws"], &object["as_of"]), (&json!([]), &Value::Null));

    for stage in [&few, &many] {
        publish(stage, "counting", "'2020-01-01 00:00Z'").await;
    }
    for (board, stage) in boards.iter().zip([&few, &many]) {
        board.until("public", |json| json["publication"]["state"] == "counting").await;
        for law in board.json()["laws"].as_array().expect("laws") {
            let results = &stage.results().await[law["law_id"].as_str().expect("a law")];
            assert_eq!((&law["oui"], &law["non"]), (&json!(results[0]), &json!(results[1])));
        }
    }
    assert_ne!(boards[0].read(), boards[1].read());

    // One vote more shows nothing, fifty do.
    let store = few.store().await;
    let total = |json: &Value| {
        let laws = json["laws"].as_array().expect("laws").iter();
        laws.map(|law| law["total"].as_i64().expect("a total")).sum::<i64>()
    };
    store.count(Votes::new(votes(50, 1))).await.expect("counted");
    store.count(Votes::new(votes(51, 50))).await.expect("counted");
    boards[0].until("fifty more", |json| total(json) >= 100).await;

    // The plug.
    publish(&few, "withheld", "'2020-01-01 00:00Z'").await;
    boards[0].until("withheld", |json| json["publication"]["state"] == "withheld").await;
    assert_eq!(boards[0].json()["laws"], json!([]));
    // The files are replaced one by one.
    let no_line = async || boards[0].read().is_some_and(|[_, csv]| csv.lines().count() == 1);
    eventually("no law in the other file", no_line).await;
    for Board { service, .. } in boards {
        service.stop().await;
    }
}

#[tokio::test]
async fn a_folder_has_one_board_and_a_board_needs_its_grants() {
    let stage = Stage::with_roles(Servers::shared(), "boardfolder").await;
    let board = Board::start(&stage).await;
    board.until("nothing", |json| json["publication"].is_null()).await;
    let second = ["--out", &board.files.path()];
    stage.run("board", &second).await.assert(78, &["another board writes into"]);
    stage.run("board", &["--out", "/nowhere/at/all"]).await.assert(78, &["/nowhere/at/all"]);
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
    let laws = board.json()["laws"].clone();
    servers.script(&["stop", "postgres"]);
    board.until("stale", |json| json["stale_reason"] == "database").await;
    assert_eq!(board.json()["laws"], laws);
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
    let arguments = ["board", "--every", "2", "--out", &files.path()];
    let service = Service::spawn(&stage.queue, &arguments, &environment).await;
    service.until_logged("it takes no writes: a standby").await;
    service.stop().await;
    assert!(!files.join("results.json").exists());
}
