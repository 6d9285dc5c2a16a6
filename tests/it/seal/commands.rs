//! `seal init`, `seal --once` and `seal`: answers, exit codes, metrics.

use std::fs;

use vote_aggregator::model::ports::{Store, Votes};
use vote_aggregator::model::vote::Choice;

use crate::deployment::sql_block;
use crate::metrics::{documented, promtool, scraped};
use crate::standby::replicated;
use crate::support::{
    BINARY, Environment, Files, Servers, Service, Stage, assert_lacks, ended, eventually, login,
    vote, votes,
};

const DOCUMENTATION: &str = include_str!("../../../docs/metrics.md");

/// A directory for a log, and the environment of a login that reads for it.
struct Begun {
    files: Files,
    origin: String,
    environment: Environment,
}

impl Begun {
    async fn new(stage: &Stage<'_>) -> Self {
        let role = stage.role("sealing", "IN ROLE vote_sealer").await;
        let origin = format!("votes.example/{}", stage.database);
        let environment = stage.environment_with(&login(&role));
        Self { files: Files::new("sealing"), origin, environment }
    }

    /// Runs `seal` with these arguments.
    async fn run(&self, stage: &Stage<'_>, arguments: &[&str]) -> crate::support::Ended {
        let mut command = stage.command(BINARY, &[&["seal"], arguments].concat());
        command.envs(&self.environment);
        ended(command).await
    }

    async fn init(&self, stage: &Stage<'_>, further: &[&str]) -> crate::support::Ended {
        let (dir, origin) = (self.files.file("log"), self.origin.as_str());
        let init = ["init", "--origin", origin, "--dir", &dir];
        self.run(stage, &[&init, further].concat()).await
    }

    async fn once(&self, stage: &Stage<'_>, min_rows: &str) -> crate::support::Ended {
        let dir = self.files.file("log");
        self.run(stage, &["--dir", &dir, "--once", "--min-rows", min_rows]).await
    }

    /// Seals until nothing is left; other tests' transactions may be older for a moment.
    async fn until_sealed(&self, stage: &Stage<'_>) {
        eventually("all is sealed", async || {
            self.once(stage, "1").await.stdout.contains("not sealed yet: 0")
        })
        .await;
    }

    async fn start(&self, further: &[&str]) -> Service {
        let dir = self.files.file("log");
        let arguments = ["seal", "--dir", &dir, "--interval", "1", "--min-rows", "10"];
        let arguments = [&arguments[..], &["--admin", "127.0.0.1:0"], further].concat();
        Service::spawn("seal", &arguments, &self.environment).await
    }
}

#[tokio::test]
async fn a_log_is_begun_sealed_and_verified_by_commands() {
    let stage = Stage::with_roles(Servers::shared(), "sealcommand").await;
    let begun = Begun::new(&stage).await;
    let init = begun.init(&stage, &[]).await.assert(0, &["0 rows to seal first", "quorum none"]);
    let policy: Vec<&str> = init.stdout.lines().skip(2).take(2).collect();
    let policy = begun.files.write("policy", policy.join("\n") + "\n");
    begun.init(&stage, &[]).await.assert(78, &["not empty"]);

    let store = stage.store().await;
    store.count(Votes::new(votes(0, 600))).await.expect("counted");
    begun
        .once(&stage, "601")
        .await
        .assert(0, &["1 entries", "votes sealed: 0; not sealed yet: 600"]);
    begun.until_sealed(&stage).await;
    begun
        .once(&stage, "1")
        .await
        .assert(0, &["601 entries", "votes sealed: 600; not sealed yet: 0"]);
    let public = begun.files.file("log/public");
    let verified = stage.run("verify", &["log", &public, "--policy", &policy]).await;
    verified.assert(0, &["601 entries", "verified"]);

    // Another process, and what is no directory of a log.
    let service = begun.start(&[]).await;
    service.until_ready().await;
    begun.once(&stage, "1").await.assert(1, &["another process seals into"]);
    service.stop().await;
    begun.run(&stage, &["--dir", &begun.files.path(), "--once"]).await.assert(78, &["seal init"]);
    begun.run(&stage, &["--once"]).await.assert(2, &["--dir"]);

    // Votes that were changed without the service.
    stage
        .execute("UPDATE vote_results SET non_count = non_count + 1 WHERE law_id = 'law-001'")
        .await;
    begun.once(&stage, "1").await.assert(1, &["the totals have +1 votes"]);
    let state = fs::read_to_string(begun.files.join("log/state.json")).expect("read");
    begun.files.write("log/state.json", state.replace("\"votes\":600", "\"votes\":601"));
    begun.once(&stage, "1").await.assert(78, &["state.json", "it was changed"]);
}

#[tokio::test]
async fn a_log_is_begun_before_the_first_vote_unless_it_is_to_contain_those() {
    let stage = Stage::with_roles(Servers::shared(), "sealfirst").await;
    let begun = Begun::new(&stage).await;
    stage.store().await.count(Votes::new(votes(0, 30))).await.expect("counted");
    begun.init(&stage, &[]).await.assert(1, &["30 votes are counted already"]);
    assert!(!begun.files.join("log").exists());
    eventually("all are below the horizon", async || {
        let began = begun.init(&stage, &["--existing-rows"]).await;
        let all = began.code == Some(0) && began.stdout.contains("30 rows to seal first");
        // Those above are sealed as any others; this test is about those below.
        all || fs::remove_dir_all(begun.files.join("log")).is_err()
    })
    .await;
    begun.once(&stage, "1000").await.assert(0, &["31 entries", "votes sealed: 30"]);

    // As a role that may not read who voted what, and without a server.
    let reader = stage.role("reader", "IN ROLE vote_results_reader").await;
    let mut other = Begun::new_as(&stage, &reader);
    other.init(&stage, &[]).await.assert(77, &["roles.sql"]);
    other.environment.insert("POSTGRES_PORT".to_owned(), "1".to_owned());
    other.init(&stage, &[]).await.assert(75, &["cannot seal"]);
}

impl Begun {
    fn new_as(stage: &Stage<'_>, role: &str) -> Self {
        let environment = stage.environment_with(&login(role));
        Self { files: Files::new("sealing"), origin: "votes.example/other".into(), environment }
    }
}

#[tokio::test]
async fn a_sealer_tells_how_far_it_is_and_who_holds_it_up() {
    let stage = Stage::with_roles(Servers::shared(), "sealmetrics").await;
    let begun = Begun::new(&stage).await;
    begun.init(&stage, &[]).await.assert(0, &[]);
    let service = begun.start(&[]).await;
    service.until_ready().await;
    let scrape = service.get("/metrics").await.body;
    let (_, table) = DOCUMENTATION.split_once("\n## The sealer\n").expect("such a part");
    assert_eq!(scraped(&scrape), documented(table));
    assert_eq!(promtool(&scrape).await, (true, String::new()));

    let mut open = stage.sql.begin().await.expect("a transaction");
    let begin = "SET LOCAL application_name = 'forgotten report'; SELECT pg_current_xact_id()";
    sqlx::raw_sql(begin).execute(&mut *open).await.expect("begun");
    let pid: i32 =
        sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *open).await.expect("its id");
    stage.store().await.count(Votes::new(votes(0, 40))).await.expect("counted");
    service.until_metric("seal_unsealed_votes", 40.0).await;
    service.until_logged(&format!("\"pid\":{pid}")).await;
    service.until_logged("forgotten report").await;
    assert!(service.metric("seal_lag_seconds").await > Some(1.0));
    assert!(service.metric("seal_held_seconds").await > Some(1.0));
    // The runbook's query finds the same.
    let query = sql_block("keeps counted votes from being sealed");
    let query = format!(
        "SELECT count(*) FROM ({}) AS f WHERE pid = {pid}",
        query.trim().trim_end_matches(';')
    );
    let found: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(query))
        .fetch_one(&stage.sql)
        .await
        .expect("a number");
    assert_eq!(found, 1);
    open.rollback().await.expect("rolled back");
    service.until_metric("seal_votes", 40.0).await;
    service.until_metric("seal_lag_seconds", 0.0).await;

    // A row that is removed before it is sealed is a finding; the others are sealed.
    let count = "BEGIN; DELETE FROM vote_audit WHERE vote_hash = 'hash-00001000'; COMMIT";
    let held = stage.hold("LOCK TABLE result_corrections IN ACCESS EXCLUSIVE MODE").await;
    let more: Vec<_> = (1_000..1_020).map(|n| vote(n, "law-000", Choice::Oui)).collect();
    stage.store().await.count(Votes::new(more)).await.expect("counted");
    stage.execute(count).await;
    held.rollback().await.expect("unlocked");
    service.until_metric("seal_findings_total", 1.0).await;
    service.until_metric("seal_votes", 59.0).await;
    service.until_logged("counted 20 votes, and 19 rows of it").await;
    service.until_metric("seal_drift_votes", 1.0).await;
    let log = service.stop().await;
    assert_lacks(&log, &["citizen", "hash-0000"]);
}

/// The service waits; so does the sealer, and a lasting refusal later does not end it.
#[tokio::test]
async fn a_sealer_waits_for_its_database() {
    let stage = Stage::with_roles(Servers::shared(), "sealoutage").await;
    let begun = Begun::new(&stage).await;
    begun.init(&stage, &[]).await.assert(0, &[]);
    let service = begun.start(&[]).await;
    service.until_ready().await;
    let role = &begun.environment["POSTGRES_USER"];
    stage.execute(&format!("ALTER ROLE {role} NOLOGIN")).await;
    stage.terminate(&format!("usename = '{role}'")).await;
    service.until_not_ready().await;
    service.until_metric("seal_stopped{reason=\"database\"}", 1.0).await;
    stage.store().await.count(Votes::new(votes(0, 40))).await.expect("counted");
    stage.execute(&format!("ALTER ROLE {role} LOGIN")).await;
    service.until_ready().await;
    service.until_metric("seal_votes", 40.0).await;
    // Another sealer of the log, with a directory of its own, has the database's lock.
    let dir = begun.files.file("copy");
    let log = begun.files.file("log");
    service.stop().await;
    std::process::Command::new("cp").args(["-a", &log, &dir]).status().expect("copied");
    let service = begun.start(&[]).await;
    service.until_ready().await;
    begun.run(&stage, &["--dir", &dir, "--once"]).await.assert(1, &["another sealer of this log"]);
    service.stop().await;
}

/// A crash of the server ends no transaction that is sealed; on another timeline, some may be gone.
#[tokio::test]
async fn a_crash_of_the_server_is_waited_for_and_a_failover_stops_sealing() {
    let servers = replicated("sealfailover");
    let stage = Stage::with_roles(&servers, "sealfailover").await;
    let begun = Begun::new(&stage).await;
    begun.init(&stage, &[]).await.assert(0, &[]);
    let service = begun.start(&[]).await;
    stage.store().await.count(Votes::new(votes(0, 40))).await.expect("counted");
    // Ids that may leave nothing on the disk, and are then assigned again.
    for _ in 0..50 {
        stage.execute("BEGIN; SELECT pg_current_xact_id(); ROLLBACK").await;
    }
    service.until_metric("seal_votes", 40.0).await;
    servers.script(&["kill", "postgres"]);
    servers.script(&["start", "postgres"]);
    eventually("it takes votes again", async || {
        let Ok(store) = stage.prepare(&[]).await else { return false };
        store.count(Votes::new(votes(100, 40))).await.is_ok()
    })
    .await;
    service.until_metric("seal_votes", 80.0).await;
    service.until_metric("seal_drift_votes", 0.0).await;
    assert_eq!(service.logged("sealing stopped"), 0);

    servers.script(&["standby", "promote"]);
    service.until_metric("seal_stopped{reason=\"lineage\"}", 1.0).await;
    service.until_logged("a standby was promoted").await;
    service.until_not_ready().await;
    stage.store().await.count(Votes::new(votes(200, 40))).await.expect("counted");
    service.stop().await;
    begun.once(&stage, "1").await.assert(1, &["sealing stopped", "timeline 2"]);
    let checkpoint = fs::read_to_string(begun.files.join("log/public/checkpoint")).expect("read");
    assert_eq!(checkpoint.lines().nth(1), Some("81"), "nothing was signed");
}
