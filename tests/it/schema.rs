//! The tables: created, upgraded, adopted, shared between instances, and enough for the documented
//! queries.

use vote_aggregator::adapters::store::{self, StartError};
use vote_aggregator::model::ports::{Store, Votes};
use vote_aggregator::model::vote::Choice;

use crate::support::repository::migrations;
use crate::support::{PREDECESSOR, Servers, Stage, assert_contains, vote, votes};

const INIT_DB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/init_db.sql");

#[test]
fn init_db_is_what_the_migrations_make() {
    let shipped = std::fs::read_to_string(INIT_DB).expect("init_db.sql is shipped");
    let update = "vote-aggregator migrate --print > init_db.sql";
    assert!(shipped == store::init_script(), "init_db.sql is not up to date: {update}");
}

#[tokio::test]
async fn init_db_works_with_psql_and_leaves_nothing_to_migrate() {
    let stage = Stage::new(Servers::shared(), "init").await;
    stage.psql(&["-f", INIT_DB]);
    stage.psql(&["-f", INIT_DB]);
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
    let applied = stage.number("SELECT count(*) FROM _sqlx_migrations").await;
    assert_eq!(applied, migrations().len() as i64);
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
const LATER: &str = "INSERT INTO _sqlx_migrations VALUES (99, 'later', now(), true, 'x', 0); \
                     ALTER TABLE vote_audit ADD COLUMN station text; \
                     CREATE TABLE stations (station text PRIMARY KEY)";

/// A rolling update, or a rollback: this release meets the schema of a later one.
#[tokio::test]
async fn a_later_schema_is_counted_on_and_one_that_requires_a_later_release_is_refused() {
    let stage = Stage::migrated(Servers::shared(), "later").await;
    stage.execute(LATER).await;
    let service = stage.start(&[]).await;
    let all = stage.publish_new(0, 300).await;
    let log = stage.finish([service], &all).await;
    assert_eq!(log.matches("later migrations").count(), 1, "{log}");
    stage.run("migrate", &[]).await.assert(0, &["nothing to do", "[99]"]);

    // Required by a release, and fulfilled by this one.
    stage.execute("INSERT INTO schema_compatibility VALUES (3, 3)").await;
    stage.prepare(&[]).await.expect("this release knows migration 3");
    stage.execute("INSERT INTO schema_compatibility VALUES (99, 99)").await;
    let newest = format!("migrations up to {}", migrations().last().expect("some"));
    let texts = ["a release that knows migration 99", &newest];
    stage.spawn(&[]).await.assert_ends(78, &texts).await;
    stage.run("migrate", &[]).await.assert(78, &[]);
}

#[tokio::test]
async fn an_altered_schema_and_one_with_gaps_are_refused() {
    let stage = Stage::migrated(Servers::shared(), "altered").await;
    let other_content = "UPDATE _sqlx_migrations SET version = 2 WHERE version = 0; \
                         UPDATE _sqlx_migrations SET checksum = 'x'";
    for (alter, text) in [
        ("UPDATE _sqlx_migrations SET version = 99 WHERE version = 2", "migration 99"),
        ("UPDATE _sqlx_migrations SET version = 0 WHERE version = 99", "migration 0"),
        (other_content, "other content"),
    ] {
        stage.execute(alter).await;
        let reason = refusal(&stage, &[]).await;
        assert!(reason.contains(text), "{reason}");
    }
}

/// Refused at the start and not at the first vote; the rehearsal's short votes would fit into some of
/// these columns, and real votes would not.
#[tokio::test]
async fn tables_that_would_refuse_votes_are_refused_at_start() {
    let narrow = "DROP VIEW citizens_with_multiple_votes; \
                  ALTER TABLE vote_audit ALTER COLUMN citizen_id TYPE varchar(60)";
    for (alter, text) in [
        ("ALTER TABLE vote_audit DROP CONSTRAINT vote_audit_pkey CASCADE", "42P10"),
        (narrow, "22001"),
        ("ALTER TABLE duplicate_attempts ALTER COLUMN law_id TYPE varchar(20)", "22001"),
        ("ALTER TABLE vote_audit ADD COLUMN station text NOT NULL", "23502"),
        ("ALTER TABLE duplicate_attempts ADD COLUMN station text NOT NULL", "23502"),
    ] {
        let stage = Stage::migrated(Servers::shared(), "misfit").await;
        stage.execute(alter).await;
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
    stage.execute(foreign_key).await;
    let store = stage.prepare(&[]).await.expect("fits");
    assert_eq!(store.count(Votes::new(votes(0, 10))).await.expect("counted").added(), 10);
    store.probe().await.expect("a probe passes, too");
}

#[tokio::test]
async fn the_predecessors_tables_are_taken_over_with_what_they_hold() {
    let stage = Stage::new(Servers::shared(), "adopted").await;
    stage.execute(PREDECESSOR).await;
    let more = "INSERT INTO vote_results VALUES ('law-negative', -5, 0); \
                INSERT INTO duplicate_attempts (vote_hash, citizen_id) VALUES ('old', 'c2')";
    stage.execute(more).await;
    let store = stage.store().await;
    let mut batch = votes(0, 10);
    batch.push(vote(100, "law-old", Choice::Non));
    batch.push(vote(101, "law-negative", Choice::Oui));
    assert_eq!(store.count(Votes::new(batch)).await.expect("counted").added(), 12);
    let totals = store.totals(vec!["law-negative".to_owned()], 1).await.expect("read");
    assert_eq!(totals.laws, [("law-negative".to_owned(), [-4, 0])], "as it is, for the gauge");
    let repeated = Votes::new(vec![vote(0, "law-z", Choice::Oui)]);
    assert_eq!(store.count(repeated).await.expect("counted").attempts, 1);
    assert_eq!(stage.results().await["law-old"], [1, 1]);
    assert_eq!(stage.number("SELECT count(*) FROM duplicate_attempts").await, 2);
}

#[tokio::test]
async fn the_views_and_the_contracts_queries_work_as_documented() {
    let (stage, store) = Stage::with_store("views").await;
    let mut batch: Vec<_> = (0..3).map(|n| vote(n, "law-001", Choice::Oui)).collect();
    batch.push(vote(3, "law-001", Choice::Non));
    batch.push(vote(4, "law-002", Choice::Non));
    // One citizen, two counted votes on one law.
    batch[1].citizen_id = batch[0].citizen_id.clone();
    store.count(Votes::new(batch)).await.expect("counted");

    let top = "SELECT law_id, total_votes FROM vote_statistics ORDER BY total_votes DESC LIMIT 10;";
    let multiple = "SELECT citizen_id, law_id, vote_count FROM citizens_with_multiple_votes;";
    for (query, answer) in [
        ("SELECT * FROM vote_results WHERE law_id = 'law-001';", "law-001|3|1|"),
        ("SELECT * FROM vote_statistics;", "law-001|3|1|4|75.00|25.00|"),
        (top, "law-001|4\nlaw-002|1\n"),
        (multiple, "citizen-00000000|law-001|2\n"),
    ] {
        assert_contains(&stage.psql(&["-At", "-c", query]), &[answer]);
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
