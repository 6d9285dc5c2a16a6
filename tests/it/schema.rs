//! The tables: created, upgraded, adopted, shared between instances, and enough for the queries
//! that people were promised.

use std::path::Path;

use sqlx::Row;
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

async fn columns(stage: &Stage<'_>) -> Vec<String> {
    let rows = sqlx::query(
        "SELECT table_name || '.' || column_name || ' ' || data_type || \
                coalesce('(' || character_maximum_length || ')', '') || ' ' || is_nullable AS line \
         FROM information_schema.columns WHERE table_schema = 'public' \
         AND table_name <> '_sqlx_migrations' ORDER BY line",
    )
    .fetch_all(&stage.sql)
    .await
    .expect("the catalogue can be read");
    rows.iter().map(|row| row.get("line")).collect()
}

#[tokio::test]
async fn init_db_works_with_psql_and_leaves_nothing_to_migrate() {
    let scripted = Stage::new(Servers::shared(), "init").await;
    psql(&scripted, &["-f", INIT_DB]);
    psql(&scripted, &["-f", INIT_DB]);
    let migrated = Stage::migrated(Servers::shared(), "init").await;
    assert_eq!(columns(&scripted).await, columns(&migrated).await);
    // With migrations off, a start succeeds only when none is pending.
    scripted.prepare(&[("MIGRATE_ON_START", "false")]).await.expect("nothing is pending");
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

#[tokio::test]
async fn pending_migrations_with_migrating_off_are_a_clear_refusal() {
    let stage = Stage::new(Servers::shared(), "pending").await;
    let refused = stage.prepare(&[("MIGRATE_ON_START", "false")]).await.err();
    let Some(StartError::Schema { reason, .. }) = refused else { panic!("{refused:?}") };
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
    stage.until_counted(all.len()).await;
    let log = service.stop().await;
    assert_eq!(log.matches("later migrations").count(), 1, "{log}");
    stage.assert_counted_exactly(&all).await;
    let migrated = run(&stage, "migrate", &[]).await;
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    assert!(migrated.stdout.contains("nothing to do") && migrated.stdout.contains("[4]"));

    // Required by a release, and fulfilled by this one.
    execute(&stage, "INSERT INTO schema_compatibility VALUES (3, 3)").await;
    stage.prepare(&[]).await.expect("this release knows migration 3");
    execute(&stage, "INSERT INTO schema_compatibility VALUES (4, 4)").await;
    let mut service = stage.spawn(&[]).await;
    assert_eq!(service.exit_code().await, Some(78));
    let log = service.log();
    assert!(log.contains("a release that knows migration 4"), "{log}");
    assert!(log.contains("migrations up to 3"), "{log}");
    assert_eq!(run(&stage, "migrate", &[]).await.code, Some(78));
}

#[tokio::test]
async fn an_altered_schema_and_one_with_gaps_are_refused() {
    let stage = Stage::migrated(Servers::shared(), "altered").await;
    let refused = async |sql: &str| {
        execute(&stage, sql).await;
        stage.prepare(&[]).await.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let message = refused("UPDATE _sqlx_migrations SET version = 99 WHERE version = 2").await;
    assert!(message.contains("migration 99"), "{message}");
    let message = refused("UPDATE _sqlx_migrations SET version = 0 WHERE version = 99").await;
    assert!(message.contains("migration 0"), "{message}");
    let message = refused(
        "UPDATE _sqlx_migrations SET version = 2 WHERE version = 0; \
         UPDATE _sqlx_migrations SET checksum = 'x'",
    )
    .await;
    assert!(message.contains("other content"), "{message}");
}

#[tokio::test]
async fn tables_that_do_not_fit_are_refused_at_start_and_not_at_the_first_vote() {
    let stage = Stage::migrated(Servers::shared(), "misfit").await;
    sqlx::raw_sql("ALTER TABLE vote_audit DROP CONSTRAINT vote_audit_pkey CASCADE")
        .execute(&stage.sql)
        .await
        .expect("altered");
    let refused = stage.prepare(&[]).await.err();
    let Some(StartError::Schema { reason, .. }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("42P10"), "{reason}");
}

/// Each of these would take made-up short votes and refuse real ones.
#[tokio::test]
async fn columns_that_would_refuse_good_votes_are_refused_at_start() {
    for (name, alter) in [
        (
            "narrow_citizen",
            "DROP VIEW citizens_with_multiple_votes; \
             ALTER TABLE vote_audit ALTER COLUMN citizen_id TYPE varchar(60)",
        ),
        ("narrow_hash", "ALTER TABLE duplicate_attempts ALTER COLUMN law_id TYPE varchar(20)"),
        ("extra", "ALTER TABLE vote_audit ADD COLUMN station text NOT NULL"),
        ("extra_attempt", "ALTER TABLE duplicate_attempts ADD COLUMN station text NOT NULL"),
    ] {
        let stage = Stage::migrated(Servers::shared(), name).await;
        sqlx::raw_sql(alter).execute(&stage.sql).await.expect("altered");
        let refused = stage.prepare(&[]).await.err();
        assert!(matches!(refused, Some(StartError::Schema { .. })), "{alter}: {refused:?}");
    }
}

/// Made-up votes are refused by rules for real laws; that says nothing about real votes.
#[tokio::test]
async fn a_foreign_key_on_real_laws_is_no_misfit() {
    let stage = Stage::migrated(Servers::shared(), "foreignkey").await;
    sqlx::raw_sql(
        "CREATE TABLE laws (law_id varchar(50) PRIMARY KEY); \
         INSERT INTO laws SELECT 'law-00' || n FROM generate_series(0, 4) AS n; \
         ALTER TABLE vote_results ADD FOREIGN KEY (law_id) REFERENCES laws",
    )
    .execute(&stage.sql)
    .await
    .expect("a foreign key");
    let store = stage.prepare(&[]).await.expect("fits");
    let counted = store.count(Votes::new(votes(0, 10))).await.expect("counted");
    assert_eq!(counted.added(), 10);
    store.probe().await.expect("a probe passes, too");
}

/// The contract's tables as its document lists them, with rows in them.
#[tokio::test]
async fn the_predecessors_tables_are_taken_over_with_what_they_hold() {
    let stage = Stage::new(Servers::shared(), "adopted").await;
    sqlx::raw_sql(
        "CREATE TABLE vote_results (law_id VARCHAR(50) PRIMARY KEY, oui_count INTEGER DEFAULT 0, \
             non_count INTEGER DEFAULT 0, updated_at TIMESTAMP WITH TIME ZONE DEFAULT now()); \
         CREATE TABLE vote_audit (id SERIAL PRIMARY KEY, vote_hash VARCHAR(64) UNIQUE NOT NULL, \
             citizen_id VARCHAR(100), law_id VARCHAR(50), choice VARCHAR(10), \
             timestamp TIMESTAMP WITH TIME ZONE); \
         CREATE TABLE duplicate_attempts (id SERIAL PRIMARY KEY, vote_hash VARCHAR(64), \
             citizen_id VARCHAR(100), attempt_timestamp TIMESTAMP WITH TIME ZONE); \
         INSERT INTO vote_results VALUES ('law-old', 1, 0), ('law-negative', -5, 0); \
         INSERT INTO vote_audit (vote_hash, citizen_id, law_id, choice, timestamp) \
             VALUES ('old', 'c', 'law-old', 'oui', '2025-01-01Z'); \
         INSERT INTO duplicate_attempts (vote_hash, citizen_id) VALUES ('old', 'c2')",
    )
    .execute(&stage.sql)
    .await
    .expect("the old tables");
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
async fn the_views_answer_what_they_promise() {
    let stage = Stage::new(Servers::shared(), "views").await;
    let store = stage.store().await;
    let mut batch: Vec<_> = (0..3).map(|n| vote(n, "law-001", Choice::Oui)).collect();
    batch.push(vote(3, "law-001", Choice::Non));
    batch.push(vote(4, "law-002", Choice::Non));
    // One citizen, two counted votes on one law.
    batch[1].citizen_id = batch[0].citizen_id.clone();
    store.count(Votes::new(batch.clone())).await.expect("counted");

    let row = sqlx::query(
        "SELECT law_id, oui_count, non_count, total_votes, oui_percentage::float8, \
         non_percentage::float8, updated_at FROM vote_statistics WHERE law_id = 'law-001'",
    )
    .fetch_one(&stage.sql)
    .await
    .expect("a row");
    assert_eq!((row.get::<i64, _>(1), row.get::<i64, _>(2), row.get::<i64, _>(3)), (3, 1, 4));
    assert_eq!((row.get::<f64, _>(4), row.get::<f64, _>(5)), (75.0, 25.0));

    let multiple =
        sqlx::query("SELECT citizen_id, law_id, vote_count FROM citizens_with_multiple_votes")
            .fetch_all(&stage.sql)
            .await
            .expect("rows");
    assert_eq!(multiple.len(), 1);
    assert_eq!(multiple[0].get::<String, _>(0), batch[0].citizen_id);
    assert_eq!(multiple[0].get::<i64, _>(2), 2);
}

/// The documented statements, as the contract writes them.
#[tokio::test]
async fn the_contracts_sql_works_as_written() {
    let stage = Stage::new(Servers::shared(), "contract").await;
    let store = stage.store().await;
    store.count(Votes::new(votes(0, 30))).await.expect("counted");
    let first =
        psql(&stage, &["-At", "-c", "SELECT * FROM vote_results WHERE law_id = 'law-001';"]);
    assert!(first.starts_with("law-001|4|2|"), "{first}");
    let all = psql(&stage, &["-At", "-c", "SELECT * FROM vote_statistics;"]);
    assert_eq!(all.lines().count(), 5);
    let top = psql(
        &stage,
        &[
            "-At",
            "-c",
            "SELECT law_id, total_votes FROM vote_statistics ORDER BY total_votes DESC LIMIT 10;",
        ],
    );
    assert_eq!(top.lines().count(), 5);
}

/// Each index on vote_audit beyond its key costs every vote: whoever adds one changes this test
/// and names the query that needs it.
#[tokio::test]
async fn vote_audit_has_its_key_and_no_other_index() {
    let stage = Stage::migrated(Servers::shared(), "indexes").await;
    let indexes = "SELECT count(*) FROM pg_indexes WHERE tablename = 'vote_audit'";
    assert_eq!(stage.number(indexes).await, 1);
    assert!(Path::new(INIT_DB).exists());
}
