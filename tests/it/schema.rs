//! The tables: created, upgraded, adopted, shared between instances, and enough for the documented
//! queries.

use vote_aggregator::adapters::store::{self, StartError};
use vote_aggregator::model::ports::{Store, Votes};
use vote_aggregator::model::vote::Choice;

use crate::support::{Servers, Stage, execute, run, vote, votes};

const INIT_DB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/init_db.sql");

#[test]
fn init_db_is_what_the_migrations_make() {
    let shipped = std::fs::read_to_string(INIT_DB).expect("init_db.sql is shipped");
    assert!(
        shipped == store::init_script(),
        "init_db.sql is not up to date: vote-aggregator migrate --print > init_db.sql"
    );
}

fn psql(stage: &Stage<'_>, arguments: &[&str]) -> String {
    let database =
        ["psql", "--", "-d", stage.database.as_str(), "-X", "-q", "-v", "ON_ERROR_STOP=1"];
    stage.servers.script(&[&database, arguments].concat())
}

#[tokio::test]
async fn init_db_works_with_psql_and_leaves_nothing_to_migrate() {
    let stage = Stage::new(Servers::shared(), "init").await;
    psql(&stage, &["-f", INIT_DB]);
    psql(&stage, &["-f", INIT_DB]);
    // With migrations off, a start succeeds only when none is pending.
    stage.prepare(&[("MIGRATE_ON_START", "false")]).await.expect("nothing is pending");
}

#[tokio::test]
async fn several_instances_may_start_on_an_empty_database_at_once() {
    let stage = Stage::new(Servers::shared(), "race").await;
    let starts = (0..6).map(|_| stage.prepare(&[]));
    for started in futures::future::join_all(starts).await {
        started.expect("started");
    }
    assert_eq!(stage.number("SELECT count(*) FROM _sqlx_migrations").await, 3);
}

/// Why the schema is refused at a start.
async fn refusal(stage: &Stage<'_>, settings: &[(&str, &str)]) -> String {
    match stage.prepare(settings).await {
        Err(StartError::Schema { reason, .. }) => reason,
        other => panic!("{:?}", other.err()),
    }
}

#[tokio::test]
async fn pending_migrations_with_migrating_off_are_a_clear_refusal() {
    let stage = Stage::new(Servers::shared(), "pending").await;
    let reason = refusal(&stage, &[("MIGRATE_ON_START", "false")]).await;
    assert!(reason.contains("vote-aggregator migrate"), "{reason}");
}

/// What a release after this one may have added: a migration that this binary does not know.
const LATER: &str = "INSERT INTO _sqlx_migrations VALUES (4, 'later', now(), true, 'x', 0); \
                     ALTER TABLE vote_audit ADD COLUMN station text; \
                     CREATE TABLE stations (station text PRIMARY KEY)";

/// A rolling update, or a rollback: this release meets the schema of a later one.
#[tokio::test]
async fn a_later_schema_is_counted_on_and_one_that_requires_a_later_release_is_refused() {
    let stage = Stage::migrated(Servers::shared(), "later").await;
    execute(&stage, LATER).await;
    let service = stage.start(&[]).await;
    let all = votes(0, 300);
    stage.publish_votes(&all).await;
    let log = stage.finish([service], &all).await;
    assert_eq!(log.matches("later migrations").count(), 1, "{log}");
    run(&stage, "migrate", &[]).await.assert(0, &["nothing to do", "[4]"]);

    // Required by a release, and fulfilled by this one.
    execute(&stage, "INSERT INTO schema_compatibility VALUES (3, 3)").await;
    stage.prepare(&[]).await.expect("this release knows migration 3");
    execute(&stage, "INSERT INTO schema_compatibility VALUES (4, 4)").await;
    let texts = ["a release that knows migration 4", "migrations up to 3"];
    stage.spawn(&[]).await.assert_ends(78, &texts).await;
    run(&stage, "migrate", &[]).await.assert(78, &[]);
}

#[tokio::test]
async fn an_altered_schema_and_one_with_gaps_are_refused() {
    let stage = Stage::migrated(Servers::shared(), "altered").await;
    for (alter, text) in [
        ("UPDATE _sqlx_migrations SET version = 99 WHERE version = 2", "migration 99"),
        ("UPDATE _sqlx_migrations SET version = 0 WHERE version = 99", "migration 0"),
        (
            "UPDATE _sqlx_migrations SET version = 2 WHERE version = 0; \
             UPDATE _sqlx_migrations SET checksum = 'x'",
            "other content",
        ),
    ] {
        execute(&stage, alter).await;
        let reason = refusal(&stage, &[]).await;
        assert!(reason.contains(text), "{reason}");
    }
}

/// Refused at the start and not at the first vote; the rehearsal's short votes would fit into some of
/// these columns, and real votes would not.
#[tokio::test]
async fn tables_that_would_refuse_votes_are_refused_at_start() {
    for (alter, text) in [
        ("ALTER TABLE vote_audit DROP CONSTRAINT vote_audit_pkey CASCADE", "42P10"),
        (
            "DROP VIEW citizens_with_multiple_votes; \
             ALTER TABLE vote_audit ALTER COLUMN citizen_id TYPE varchar(60)",
            "22001",
        ),
        ("ALTER TABLE duplicate_attempts ALTER COLUMN law_id TYPE varchar(20)", "22001"),
        ("ALTER TABLE vote_audit ADD COLUMN station text NOT NULL", "23502"),
        ("ALTER TABLE duplicate_attempts ADD COLUMN station text NOT NULL", "23502"),
    ] {
        let stage = Stage::migrated(Servers::shared(), "misfit").await;
        execute(&stage, alter).await;
        let reason = refusal(&stage, &[]).await;
        assert!(reason.contains(text), "{alter}: {reason}");
    }
}

/// The foreign key refuses the made-up votes of the rehearsal, but not real votes.
#[tokio::test]
async fn a_foreign_key_on_real_laws_is_no_misfit() {
    let stage = Stage::migrated(Servers::shared(), "foreignkey").await;
    let foreign_key = "CREATE TABLE laws (law_id varchar(50) PRIMARY KEY); \
         INSERT INTO laws SELECT 'law-00' || n FROM generate_series(0, 4) AS n; \
         ALTER TABLE vote_results ADD FOREIGN KEY (law_id) REFERENCES laws";
    execute(&stage, foreign_key).await;
    let store = stage.prepare(&[]).await.expect("fits");
    let counted = store.count(Votes::new(votes(0, 10))).await.expect("counted");
    assert_eq!(counted.added(), 10);
    store.probe().await.expect("a probe passes, too");
}

/// The tables as the contract's document lists them, with rows in them.
#[tokio::test]
async fn the_predecessors_tables_are_taken_over_with_what_they_hold() {
    let stage = Stage::new(Servers::shared(), "adopted").await;
    let old_tables = "CREATE TABLE vote_results (law_id VARCHAR(50) PRIMARY KEY, oui_count INTEGER DEFAULT 0, \
             non_count INTEGER DEFAULT 0, updated_at TIMESTAMP WITH TIME ZONE DEFAULT now()); \
         CREATE TABLE vote_audit (id SERIAL PRIMARY KEY, vote_hash VARCHAR(64) UNIQUE NOT NULL, \
             citizen_id VARCHAR(100), law_id VARCHAR(50), choice VARCHAR(10), \
             timestamp TIMESTAMP WITH TIME ZONE); \
         CREATE TABLE duplicate_attempts (id SERIAL PRIMARY KEY, vote_hash VARCHAR(64), \
             citizen_id VARCHAR(100), attempt_timestamp TIMESTAMP WITH TIME ZONE); \
         INSERT INTO vote_results VALUES ('law-old', 1, 0), ('law-negative', -5, 0); \
         INSERT INTO vote_audit (vote_hash, citizen_id, law_id, choice, timestamp) \
             VALUES ('old', 'c', 'law-old', 'oui', '2025-01-01Z'); \
         INSERT INTO duplicate_attempts (vote_hash, citizen_id) VALUES ('old', 'c2')";
    execute(&stage, old_tables).await;
    let store = stage.store().await;
    let mut batch = votes(0, 10);
    batch.push(vote(100, "law-old", Choice::Non));
    batch.push(vote(101, "law-negative", Choice::Oui));
    let counted = store.count(Votes::new(batch)).await.expect("counted");
    assert_eq!(counted.added(), 12);
    let totals = store.totals(vec!["law-negative".to_owned()], 1).await.expect("read");
    assert_eq!(totals.laws, [("law-negative".to_owned(), [-4, 0])], "as it is, for the gauge");
    let repeated = vote(0, "law-z", Choice::Oui);
    let counted = store.count(Votes::new(vec![repeated])).await.expect("counted");
    assert_eq!(counted.attempts, 1);
    assert_eq!(stage.results().await["law-old"], [1, 1]);
    assert_eq!(stage.number("SELECT count(*) FROM duplicate_attempts").await, 2);
}

#[tokio::test]
async fn the_views_and_the_contracts_queries_work_as_documented() {
    let stage = Stage::new(Servers::shared(), "views").await;
    let store = stage.store().await;
    let mut batch: Vec<_> = (0..3).map(|n| vote(n, "law-001", Choice::Oui)).collect();
    batch.push(vote(3, "law-001", Choice::Non));
    batch.push(vote(4, "law-002", Choice::Non));
    // One citizen, two counted votes on one law.
    batch[1].citizen_id = batch[0].citizen_id.clone();
    store.count(Votes::new(batch)).await.expect("counted");

    for (query, answer) in [
        ("SELECT * FROM vote_results WHERE law_id = 'law-001';", "law-001|3|1|"),
        ("SELECT * FROM vote_statistics;", "law-001|3|1|4|75.00|25.00|"),
        (
            "SELECT law_id, total_votes FROM vote_statistics ORDER BY total_votes DESC LIMIT 10;",
            "law-001|4\nlaw-002|1\n",
        ),
        (
            "SELECT citizen_id, law_id, vote_count FROM citizens_with_multiple_votes;",
            "citizen-00000000|law-001|2\n",
        ),
    ] {
        let rows = psql(&stage, &["-At", "-c", query]);
        assert!(rows.contains(answer), "{query}: {rows}");
    }
}

/// Each index on vote_audit beyond its key costs every vote: a change that adds one changes this test
/// and names the query that needs it.
#[tokio::test]
async fn vote_audit_has_its_key_and_no_other_index() {
    let stage = Stage::migrated(Servers::shared(), "indexes").await;
    let indexes = "SELECT count(*) FROM pg_indexes WHERE tablename = 'vote_audit'";
    assert_eq!(stage.number(indexes).await, 1);
}
