//! `results`: what it reads and how it shows it, with which role, and without PostgreSQL.

use serde_json::json;
use tokio::process::Command;

use crate::support::{BINARY, Ended, Servers, Service, Stage, ended, login, on_path};

/// Three laws, one of them with a name that the service would not count votes for.
const LAWS: &str = "INSERT INTO vote_results (law_id, oui_count, non_count, updated_at) VALUES \
    ('law-001', 1, 2, '2026-11-25 21:00:00+00'), \
    ('law-002', 999999, 1, '2026-11-25 22:15:03.25+01'), \
    (E'=1+1\\x1b[2J', 0, 0, 'infinity')";

impl Ended {
    fn rows(&self) -> Vec<Vec<&str>> {
        self.stdout.lines().map(|line| line.split_whitespace().collect()).collect()
    }
}

async fn results(stage: &Stage<'_>, arguments: &[&str]) -> Ended {
    stage.run("results", arguments).await
}

#[tokio::test]
async fn it_shows_the_counts_for_people_and_for_programs() {
    let stage = Stage::migrated(Servers::shared(), "results").await;
    results(&stage, &[]).await.assert(0, &["no votes are counted yet (read at 2"]);

    stage.execute(LAWS).await;
    let all = results(&stage, &[]).await.assert(0, &["\n3 laws, read at 2"]);
    let rows = all.rows();
    let first = "law-002 999,999 1 1,000,000 >99.9 <0.1 2026-11-25 21:15:03Z";
    assert_eq!(rows[2].join(" "), first);
    assert_eq!(rows[3][..6], ["law-001", "1", "2", "3", "33.3", "66.7"]);
    assert_eq!(rows[4], ["=1+1\\u{1b}[2J", "0", "0", "0", "-", "-", "-"]);
    assert_eq!(rows[5][..6], ["all", "1,000,000", "3", "1,000,003", ">99.9", "<0.1"]);
    assert!(!all.stdout.contains('\x1b'), "nothing for a terminal to obey");

    let one = results(&stage, &["--law", "law-001", "--law", "law-9", "--json"]).await;
    let mut object = one.json();
    assert!(object["read_at"].take().as_str().is_some_and(|at| at.ends_with('Z')), "{object}");
    let mut law = json!({
        "oui": 1, "non": 2, "total": 3, "oui_percent": 100.0 / 3.0, "non_percent": 200.0 / 3.0,
        "updated_at": "2026-11-25T21:00:00Z",
    });
    let mut totals = law.clone();
    law["law_id"] = "law-001".into();
    totals["laws"] = 1.into();
    let expected = json!({"read_at": null, "laws": [law], "totals": totals, "not_counted": ["law-9"], "publication": null});
    assert_eq!(object, expected);

    let csv = results(&stage, &["--csv", "--sort", "law"]).await;
    let lines: Vec<&str> = csv.stdout.split("\r\n").collect();
    assert_eq!(lines[1], "\"'=1+1\\u{1b}[2J\",0,0,0,,,");
    assert_eq!(lines[2], "law-001,1,2,3,33.333333333333336,66.66666666666667,2026-11-25T21:00:00Z");
    assert_eq!(lines[3], "law-002,999999,1,1000000,99.9999,0.0001,2026-11-25T21:15:03.25Z");

    // A reader who has seen enough.
    let head = format!("{BINARY} results --csv | true; {BINARY} results --csv | head -n 1");
    let head = ended(on_path(stage.command("sh", &["-c", &head]))).await;
    assert!(head.stdout.starts_with("law_id,") && head.stderr.is_empty(), "{}", head.stderr);

    let top = results(&stage, &["--sort", "updated", "--top", "1"]).await;
    let top = top.assert(0, &["the first 1 of 3 laws"]);
    assert_eq!((top.rows()[2][0], top.rows()[3][0]), ("law-002", "all"));
}

#[tokio::test]
async fn without_tables_or_grants_results_and_recount_end_with_a_code_of_their_own() {
    let stage = Stage::new(Servers::shared(), "resultcodes").await;
    for name in ["results", "recount"] {
        let with = async |settings: &[_]| stage.run_with(&[name], settings).await;
        with(&[]).await.assert(78, &["vote-aggregator migrate"]);
        with(&[("POSTGRES_DB", "nowhere")]).await.assert(78, &["nowhere"]);
        with(&[("BATCH_SIZE", "many")]).await.assert(78, &["BATCH_SIZE"]);
    }
    stage.store().await;
    stage.execute(LAWS).await;
    stage.grant_roles();
    let repair = ["recount", "--repair", "--yes"];
    for (group, results, recount) in
        [("vote_auditor", 0, 1), ("vote_service", 0, 1), ("vote_results_reader", 0, 77)]
    {
        let role = stage.role(group, &format!("IN ROLE {group}")).await;
        stage.run_with(&["results"], &login(&role)).await.assert(results, &["3 laws"]);
        stage.run_with(&["recount"], &login(&role)).await.assert(recount, &[]);
        stage.run_with(&repair, &login(&role)).await.assert(77, &["42501"]);
    }
    let role = stage.role("reader", "").await;
    stage.run_with(&["results"], &login(&role)).await.assert(77, &["vote_results"]);
    stage.execute(&format!("GRANT SELECT ON vote_results TO {role}")).await;
    stage.run_with(&["results"], &login(&role)).await.assert(0, &["3 laws"]);
    stage.execute("REVOKE SELECT ON published_state FROM PUBLIC").await;
    stage.run_with(&["results"], &login(&role)).await.assert(77, &["may be EMBARGOED"]);

    // A schema from before corrections were recorded.
    stage.execute("DROP TABLE result_corrections CASCADE").await;
    stage.run_with(&["recount"], &[]).await.assert(1, &[]);
    stage.run_with(&repair, &[]).await.assert(78, &["result_corrections"]);

    results(&stage, &["--json", "--csv"]).await.assert(2, &[]);
}

#[tokio::test]
async fn a_server_that_is_down_is_waited_for() {
    let servers = Servers::private("resultswait");
    let stage = Stage::migrated(&servers, "resultswait").await;
    stage.execute(LAWS).await;
    servers.script(&["stop", "postgres"]);
    let mut command = Command::new(BINARY);
    command.args(["results", "--csv"]);
    let waiting = Service::spawn_as(&stage.queue, command, &stage.environment());
    waiting.until_logged("waiting for PostgreSQL").await;
    servers.script(&["start", "postgres"]);
    waiting.assert_ends(0, &[]).await;
}

/// One-shot commands give up, and name the server.
#[tokio::test]
async fn a_server_that_stays_away_or_read_only_is_given_up() {
    let stage = Stage::new(Servers::shared(), "givenup").await;
    for name in ["results", "recount", "migrate"] {
        let away = [("POSTGRES_PORT", "1")];
        let gave_up = stage.run_with(&[name, "--retry-for", "1"], &away).await;
        let waited = "waiting for PostgreSQL, for 1 s more at most";
        gave_up.assert(75, &[waited, "gave up after 1 s (--retry-for)", &stage.database]);
    }
    stage.set_default("default_transaction_read_only = on").await;
    stage.run("migrate", &["--retry-for", "0"]).await.assert(75, &["25006"]);
}
