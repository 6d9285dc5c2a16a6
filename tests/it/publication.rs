//! What the public may see: nothing before the time, whatever is counted; and who changed it, when and why.

mod public;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::AssertSqlSafe;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use vote_aggregator::model::ports::{Store, Votes};

use crate::support::{
    BINARY, Ended, Interceptor, Pass, Servers, Stage, WAITS, assert_lacks, ended, login, votes,
};

const VIEWS: [&str; 6] = [
    "published_state",
    "published_history",
    "published_results",
    "published_corrections",
    "published_finals",
    "published_since_final",
];

/// The tables, the roles, and fifty counted votes on five laws.
async fn counted(name: &str) -> Stage<'static> {
    let stage = Stage::with_roles(Servers::shared(), name).await;
    stage.store().await.count(Votes::new(votes(0, 50))).await.expect("counted");
    stage
}

/// The first text that a role of `roles.sql` reads, or the SQLSTATE of the refusal.
async fn read_as(stage: &Stage<'_>, group: &str, query: &str) -> Result<Option<String>, String> {
    let mut transaction = stage.sql.begin().await.expect("a transaction");
    let role = AssertSqlSafe(format!("SET LOCAL ROLE {group}"));
    sqlx::raw_sql(role).execute(&mut *transaction).await.expect("the role is there");
    let read = sqlx::query_scalar(AssertSqlSafe(query.to_owned()));
    read.fetch_one(&mut *transaction).await.map_err(|error| {
        let code = error.as_database_error().and_then(|error| error.code());
        code.expect("an error of the server").into_owned()
    })
}

/// Everything that a board can read, as one text.
async fn public(stage: &Stage<'_>) -> String {
    let mut public = String::new();
    for view in VIEWS {
        let rows = format!("SELECT string_agg(v::text, ';' ORDER BY v::text) FROM {view} AS v");
        let rows = read_as(stage, "vote_board", &rows).await.expect("a board may read it");
        public += &format!("{view}: {}\n", rows.unwrap_or_default());
    }
    public
}

/// Inserts a publication past the command, as the owner may.
async fn insert(stage: &Stage<'_>, state: &str, not_before: &str, sha256: &str) {
    let insert = format!(
        "INSERT INTO result_publications (follows, set_at, state, not_before, reason, test, results_sha256) \
         SELECT max(id), '2026-11-29 12:00Z', '{state}', {not_before}, \
                CASE '{state}' WHEN 'withheld' THEN 'by decree' ELSE \
                (SELECT 'rejected by ' || sum(non_count) FROM vote_results) END, false, {sha256} \
         FROM result_publications"
    );
    stage.execute(&insert).await;
}

/// A publisher's command line.
struct Publisher<'s> {
    stage: &'s Stage<'s>,
    role: String,
}

impl<'s> Publisher<'s> {
    async fn new(stage: &'s Stage<'s>, name: &str) -> Self {
        let role = stage.role(name, "IN ROLE vote_publisher, vote_auditor").await;
        Self { stage, role }
    }

    async fn run(&self, arguments: &[&str]) -> Ended {
        self.run_with(arguments, &[]).await
    }

    async fn run_with(&self, arguments: &[&str], settings: &[(&str, &str)]) -> Ended {
        let arguments = [&["publication"], arguments].concat();
        self.stage.run_with(&arguments, &[&login(&self.role)[..], settings].concat()).await
    }

    /// Sets a state, with the reason `r` and `more` arguments.
    async fn set(&self, state: &str, more: &[&str]) -> Ended {
        self.run(&[&["set", state, "--reason", "r", "--yes"], more].concat()).await
    }

    async fn states(&self) -> Vec<String> {
        let history = self.run(&["history", "--json"]).await.assert(0, &[]).json();
        let publications = history["publications"].as_array().expect("a list");
        publications.iter().map(|it| it["state"].as_str().expect("a state").to_owned()).collect()
    }
}

/// So many hours from now.
fn hours(hours: i64) -> String {
    let time = OffsetDateTime::now_utc() + Duration::hours(hours);
    time.replace_nanosecond(0).expect("a time").format(&Rfc3339).expect("a year of four digits")
}

#[tokio::test]
async fn a_night_from_the_embargo_to_the_final_copy_and_the_plug() {
    let stage = counted("night").await;
    let alice = Publisher::new(&stage, "alice").await;
    alice.run(&["show"]).await.assert(0, &["nothing was ever published"]);
    alice.run(&["withhold"]).await.assert(0, &["nothing to withhold"]);
    stage.run("results", &[]).await.assert(0, &["5 laws"]);

    // The time has to be said, and the order to be kept.
    alice.set("counting", &[]).await.assert(2, &["--not-before"]);
    let (evening, past) = (hours(1), hours(-1));
    alice
        .set("provisional", &["--not-before", &evening])
        .await
        .assert(1, &["cannot follow withheld"]);
    alice
        .run(&["set", "counting", "--not-before", &evening, "--reason", " ", "--yes"])
        .await
        .assert(2, &[]);
    alice
        .run(&["set", "counting", "--not-before", &evening, "--reason", "r"])
        .await
        .assert(2, &["--yes"]);
    assert_eq!(alice.states().await, [""; 0]);

    alice.set("counting", &["--not-before", &evening]).await.assert(0, &["counting, public from"]);
    let set = "publication set counting --reason r";
    stage
        .on_terminal(set, "no")
        .await
        .assert(1, &["Publish counting results of", "\" at 20", "[y/N]"]);
    alice.run(&["show"]).await.assert(0, &["the public sees nothing before that time"]);
    for command in ["results", "recount"] {
        let refused =
            stage.run(command, &[]).await.assert(2, &["EMBARGOED until", "--under-embargo"]);
        assert_eq!(refused.stdout, "", "{command}");
        stage.on_terminal(command, "").await.assert(0, &["EMBARGOED until"]);
    }
    let read = stage.run("results", &["--json", "--under-embargo"]).await.assert(0, &["EMBARGOED"]);
    assert_eq!(read.json()["publication"]["state"], "embargoed");
    stage.run("recount", &["--under-embargo"]).await.assert(0, &["agree"]);

    alice.set("counting", &["--not-before", &past]).await.assert(1, &["--earlier"]);
    alice.set("counting", &["--not-before", &past, "--earlier", &evening]).await.assert(1, &[]);
    alice.set("counting", &["--not-before", &past, "--earlier", &past]).await.assert(0, &[]);
    stage.on_terminal(set, "no").await.assert(1, &["\" now (the embargo ended 20"]);
    let read = stage.run("results", &["--json"]).await.assert(0, &[]).json();
    assert_eq!(read["publication"]["state"], "counting");

    // Final is what a recount agrees with, and does not move.
    alice.set("final", &[]).await.assert(1, &["cannot follow counting"]);
    alice.set("provisional", &[]).await.assert(0, &[]);
    stage
        .execute("UPDATE vote_results SET oui_count = oui_count + 2 WHERE law_id = 'law-001'")
        .await;
    alice.set("final", &[]).await.assert(1, &["differ by 2 votes in 1 laws"]);
    assert_eq!(alice.states().await, ["counting", "counting", "provisional"]);
    stage.run("recount", &["--repair", "--yes", "--reason", "typing error"]).await.assert(0, &[]);
    let results = stage.results().await;
    let lines = results.iter().map(|(law, [oui, non])| format!("{law},{oui},{non}\n"));
    let sha256: String = Sha256::digest(lines.collect::<String>())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    alice.set("final", &[]).await.assert(0, &[&sha256]);
    stage.run("results", &[]).await.assert(0, &["these are the live counts"]);
    let frozen = public(&stage).await;
    stage.store().await.count(Votes::new(votes(50, 50))).await.expect("counted");
    // Only their number is told, to the operators of a board.
    let late = frozen.replace("since_final: (0)", "since_final: (50)");
    assert!(late != frozen && public(&stage).await == late, "{late}");
    assert_eq!(
        stage.number("SELECT sum(oui_count + non_count)::bigint FROM published_results").await,
        50
    );
    alice.set("final", &[]).await.assert(1, &["cannot follow final"]);
    alice.set("counting", &[]).await.assert(1, &["cannot follow final"]);

    alice.run(&["withhold", "the wrong law"]).await.assert(0, &["withheld", "caches"]);
    let withheld = public(&stage).await;
    assert_lacks(&withheld, &["law-001", &sha256]);
    assert!(withheld.contains("the wrong law"), "{withheld}");
    stage.run("results", &[]).await.assert(2, &["WITHHELD"]);

    // All of it is on record, and cannot be changed.
    let history = alice.run(&["history", "--json"]).await.assert(0, &[]).json();
    let rows = history["publications"].as_array().expect("a list");
    let of = |field: &str| rows.iter().map(|row| row[field].clone()).collect::<Vec<Value>>();
    assert_eq!(
        json!(of("state")),
        json!(["counting", "counting", "provisional", "final", "withheld"])
    );
    assert!(of("set_by").iter().all(|by| *by == alice.role), "{history}");
    assert_eq!(rows[4]["reason"], "the wrong law");
    assert_eq!(
        (&rows[3]["results_sha256"], &rows[2]["results_sha256"]),
        (&json!(sha256), &Value::Null)
    );
    alice.run(&["history"]).await.assert(0, &["provisional", "the wrong law", &alice.role]);
    for change in [
        "UPDATE result_publications SET reason = 'x' RETURNING ''",
        "DELETE FROM result_publications RETURNING ''",
        "UPDATE certified_results SET oui_count = 0 RETURNING ''",
        "DELETE FROM certified_results RETURNING ''",
        "INSERT INTO result_publications (set_by, state, not_before, reason, test) \
         VALUES ('bob', 'withheld', now(), 'r', false) RETURNING ''",
    ] {
        let refused = read_as(&stage, "vote_publisher", change).await;
        assert_eq!(refused, Err("42501".to_owned()), "{change}");
    }
}

#[tokio::test]
async fn corrections_are_shown_and_those_behind_a_final_copy_are_not() {
    let stage = counted("corrections").await;
    let alice = Publisher::new(&stage, "alice").await;
    alice.set("counting", &["--not-before", &hours(-1)]).await.assert(0, &[]);
    alice.set("provisional", &[]).await.assert(0, &[]);
    let correct = async |reason: &str| {
        stage
            .execute("UPDATE vote_results SET oui_count = oui_count + 2 WHERE law_id = 'law-001'")
            .await;
        stage.run("recount", &["--repair", "--yes", "--reason", reason]).await.assert(0, &[]);
    };
    let shown = async || {
        let history = alice.run(&["history", "--json"]).await.assert(0, &[]).json();
        history["corrections"].as_array().expect("a list").clone()
    };
    correct("added twice").await;
    let corrections = shown().await;
    let [correction] = &corrections[..] else { panic!("{corrections:?}") };
    assert_eq!(
        (&correction["law_id"], &correction["reason"]),
        (&json!("law-001"), &json!("added twice"))
    );
    assert_lacks(&correction.to_string(), &["corrected_by"]);
    alice.run(&["history"]).await.assert(0, &["added twice"]);
    alice.set("final", &[]).await.assert(0, &[]);
    correct("after the proclamation").await;
    assert_eq!(shown().await, corrections);
    alice.run(&["withhold"]).await.assert(0, &[]);
    assert_eq!(shown().await, [Value::Null; 0]);
}

/// Withholding wins against every other change at the same time.
#[tokio::test]
async fn of_two_changes_at_once_one_is_made_and_withholding_always() {
    let stage = counted("overtaken").await;
    let alice = Publisher::new(&stage, "alice").await;
    alice.set("counting", &["--not-before", &hours(-1)]).await.assert(0, &[]);
    alice.set("provisional", &[]).await.assert(0, &[]);
    let other = |state: &str| {
        format!(
            "INSERT INTO result_publications (follows, state, not_before, reason, test) \
             SELECT max(id), '{state}', max(not_before), 'another', false FROM result_publications"
        )
    };
    let arguments = |arguments: &[&str]| {
        let mut command = stage.command(BINARY, &[&["publication"], arguments].concat());
        command.envs(login(&alice.role));
        tokio::spawn(ended(command))
    };
    // Its snapshot is older than the row that is committed meanwhile.
    let withheld = stage.hold(&other("withheld")).await;
    let frozen = arguments(&["set", "final", "--reason", "r", "--yes"]);
    stage.until_sessions(WAITS, 1).await;
    withheld.commit().await.expect("committed");
    frozen.await.expect("no panic").assert(1, &["another publication was made meanwhile"]);
    assert_eq!(alice.states().await, ["counting", "provisional", "withheld"]);
    assert_eq!(stage.number("SELECT count(*) FROM certified_results").await, 0);

    let counting = stage.hold(&other("counting")).await;
    let second = arguments(&["set", "counting", "--reason", "r", "--yes"]);
    stage.until_sessions(WAITS, 1).await;
    counting.commit().await.expect("committed");
    second.await.expect("no panic").assert(1, &["another publication was made meanwhile"]);
    assert_eq!(alice.states().await[3..], ["counting"]);

    let counting = stage.hold(&other("counting")).await;
    let withheld = arguments(&["withhold", "the plug"]);
    stage.until_sessions(WAITS, 1).await;
    counting.commit().await.expect("committed");
    withheld.await.expect("no panic").assert(0, &[]);
    assert_eq!(alice.states().await[3..], ["counting", "counting", "withheld"]);
}

#[tokio::test]
async fn a_final_whose_commit_is_not_answered_is_found_made() {
    let stage = counted("unansweredfinal").await;
    let alice = Publisher::new(&stage, "alice").await;
    alice.set("counting", &["--not-before", &hours(-1)]).await.assert(0, &[]);
    alice.set("provisional", &[]).await.assert(0, &[]);
    let interceptor = Interceptor::once(&stage, "POSTGRES", "COMMIT\0", Pass::LoseAnswer).await;
    let link = [("POSTGRES_PORT", interceptor.port.as_str()), ("POSTGRES_SSLMODE", "disable")];
    let set = ["set", "final", "--reason", "r", "--yes"];
    alice.run_with(&set, &link).await.assert(0, &["SHA-256"]);
    assert_eq!(alice.states().await, ["counting", "provisional", "final"]);
}

#[tokio::test]
async fn four_eyes_need_two_users_and_a_rehearsal_a_database_of_its_own() {
    let stage = counted("foureyes").await;
    let [alice, bob] = [Publisher::new(&stage, "alice").await, Publisher::new(&stage, "bob").await];
    let four_eyes = [("PUBLICATION_FOUR_EYES", "true")];
    let set = async |publisher: &Publisher<'_>, state: &str, more: &[&str]| {
        let set = [&["set", state, "--reason", "r", "--yes"], more].concat();
        publisher.run_with(&set, &four_eyes).await
    };
    let (evening, past) = (hours(1), hours(-1));
    set(&alice, "counting", &["--not-before", &evening, "--test"]).await.assert(0, &["a test"]);
    let earlier = ["--not-before", &past, "--earlier", &past];
    set(&alice, "counting", &earlier).await.assert(1, &["needs another database user"]);
    set(&bob, "counting", &earlier).await.assert(0, &["a test"]);
    set(&alice, "provisional", &[]).await.assert(0, &[]);
    set(&alice, "final", &[]).await.assert(1, &["needs another database user"]);
    set(&bob, "final", &[]).await.assert(0, &["a test"]);
    let state = read_as(&stage, "vote_board", "SELECT test::text FROM published_state").await;
    assert_eq!(state, Ok(Some("true".to_owned())));

    // Not by the command, and not past it.
    let real = "INSERT INTO result_publications (follows, state, not_before, reason, test) \
                SELECT max(id), 'withheld', now(), 'r', false FROM result_publications RETURNING ''";
    assert_eq!(read_as(&stage, "vote_publisher", real).await, Err("23503".to_owned()));
    let second_first = "INSERT INTO result_publications (state, not_before, reason, test) \
                        VALUES ('counting', now(), 'r', false) RETURNING ''";
    assert_eq!(read_as(&stage, "vote_publisher", second_first).await, Err("23505".to_owned()));

    let stage = counted("real").await;
    let alice = Publisher::new(&stage, "alice").await;
    alice.set("counting", &["--not-before", &evening]).await.assert(0, &[]);
    alice.set("counting", &["--test"]).await.assert(1, &["not a test's"]);
}

#[tokio::test]
async fn one_of_several_cells_publishes_nothing() {
    let stage = counted("cells").await;
    let alice = Publisher::new(&stage, "alice").await;
    let cell = "INSERT INTO vote_cell (setting) VALUES ('3/16')";
    stage.execute(cell).await;
    alice.set("counting", &["--not-before", &hours(1)]).await.assert(1, &["one of several cells"]);
}

/// Another group may read the results, and decides nothing.
#[tokio::test]
async fn only_a_publisher_publishes() {
    let stage = counted("notpublisher").await;
    for group in ["vote_service", "vote_results_reader", "vote_auditor", "vote_board"] {
        let role = stage.role(group, &format!("IN ROLE {group}")).await;
        let set =
            ["publication", "set", "counting", "--not-before", &hours(1), "--reason", "r", "--yes"];
        stage.run_with(&set, &login(&role)).await.assert(77, &["42501"]);
    }
    // Without the audit nothing can be final.
    let role = stage.role("publisher", "IN ROLE vote_publisher").await;
    let run = async |set: &[&str]| {
        let set = [&["publication", "set"], set, &["--reason", "r", "--yes"]].concat();
        stage.run_with(&set, &login(&role)).await
    };
    run(&["counting", "--not-before", &hours(1)]).await.assert(0, &[]);
    run(&["provisional"]).await.assert(0, &[]);
    run(&["final"]).await.assert(77, &["42501"]);
}
