//! Pending migrations: rehearsed on the existing tables, and rolled back.

use std::cell::Cell;

use vote_aggregator::model::ports::{Store, Votes};

use super::{check, connected};
use crate::deployment::sql_block;
use crate::support::repository::migrations;
use crate::support::{PREDECESSOR, Servers, Stage, eventually, insert, login, votes};

async fn predecessor(name: &str, more: &str) -> Stage<'static> {
    let stage = Stage::new(Servers::shared(), name).await;
    stage.execute(PREDECESSOR).await;
    stage.execute(more).await;
    stage
}

/// A hash of tables, views, columns and indexes.
async fn schema(stage: &Stage<'_>) -> i64 {
    let rows = "SELECT sum(hashtext(attrelid::regclass || attname || atttypid || attnum))::bigint \
                FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid \
                WHERE relnamespace = 'public'::regnamespace";
    stage.number(rows).await
}

#[tokio::test]
async fn a_rehearsal_says_that_the_predecessors_tables_fit_and_leaves_them_alone() {
    let stage = predecessor("rehearsed", "SELECT").await;
    let before = schema(&stage).await;
    let ended = connected(&stage, &[]).await;
    let pending = format!("migrations {:?}", migrations());
    ended.finds(0, &[("info", &format!("{pending} are not applied"))]);
    ended.assert(0, &[&format!("{pending}, applied and rolled back"), "a batch, counted"]);
    assert_eq!(schema(&stage).await, before);
    assert_eq!(stage.number("SELECT count(*) FROM vote_audit").await, 1);

    let ended = check(&stage, &["--connect", "--json", "--rehearse", "0"], &[]).await;
    assert_eq!(ended.severity("--rehearse 0"), "info");
}

/// What a start would meet when the predecessor is already stopped.
#[tokio::test]
async fn tables_that_do_not_fit_are_found_before_the_migration_with_their_columns() {
    let no_key = "ALTER TABLE vote_audit DROP CONSTRAINT vote_audit_vote_hash_key";
    let narrow = "ALTER TABLE vote_audit ALTER citizen_id TYPE varchar(36)";
    let station = "ALTER TABLE vote_audit ADD station int NOT NULL DEFAULT 1; \
                   ALTER TABLE vote_audit ALTER station DROP DEFAULT";
    let choice = "CREATE TYPE choice AS ENUM ('oui', 'non'); \
                  ALTER TABLE vote_audit ALTER choice TYPE choice USING choice::choice";
    let no_citizen = "ALTER TABLE vote_audit DROP citizen_id";
    let turnout = "CREATE VIEW turnout AS SELECT sum(oui_count + non_count) FROM vote_results";
    let report = "ALTER TABLE vote_results ALTER updated_at TYPE date; \
                  CREATE VIEW report AS SELECT * FROM vote_statistics";
    let cases = [
        (no_key, "42P10", "vote_audit.vote_hash has no unique key"),
        (narrow, "22001", "vote_audit.citizen_id is character varying(36) and has to hold 100"),
        (station, "23502", "vote_audit.station is NOT NULL without a default"),
        (choice, "42804", "vote_audit.choice is choice and has to be varchar"),
        (no_citizen, "42703", "vote_audit.citizen_id does not exist"),
        (turnout, "0A000", "view turnout depends on column"),
        (report, "2BP01", "view report depends on view vote_statistics"),
    ];
    futures::future::join_all(cases.map(async |(alter, code, named)| {
        let stage = predecessor("misfit", alter).await;
        let before = schema(&stage).await;
        connected(&stage, &[]).await.finds(1, &[("error", code), ("error", named)]);
        assert_eq!(schema(&stage).await, before, "{alter}");

        // For a role that cannot rehearse it, the catalogue is read.
        if alter == no_key {
            let role = stage.role("login", "").await;
            assert_eq!(connected(&stage, &login(&role)).await.severity(named), "error");
        }
    }))
    .await;
}

/// Step by step as in the runbook.
#[tokio::test]
async fn a_view_in_a_migrations_way_is_named_with_the_steps_that_get_past_it() {
    let view =
        "CREATE VIEW turnout AS SELECT law_id, oui_count + non_count AS votes FROM vote_results";
    let stage = predecessor("viewsteps", view).await;
    let depends = ["migration 1 (votes)", "0A000", "view turnout depends on column", "oui_count"];
    let steps = ["views on the tables: turnout", "DROP VIEW"];
    stage.run("migrate", &[]).await.assert(78, &depends).assert(78, &steps);
    let definition = stage.psql(&["-At", "-c", "SELECT pg_get_viewdef('turnout')"]);
    stage.execute("DROP VIEW turnout").await;
    stage.run("migrate", &[]).await.assert(0, &[]);
    stage.execute(&format!("CREATE VIEW turnout AS {definition}")).await;
    assert_eq!(stage.number("SELECT votes::bigint FROM turnout").await, 1);
}

/// A migration that were retried on such rows would never end.
#[tokio::test]
async fn rows_that_repeat_each_other_are_an_error_and_not_retried() {
    let stage = predecessor(
        "repeated",
        "ALTER TABLE duplicate_attempts ADD law_id varchar(50), ADD choice varchar(3); \
         INSERT INTO duplicate_attempts (vote_hash, citizen_id, attempt_timestamp, law_id, choice) \
         SELECT 'old', 'citizen-0', '2025-01-01Z', 'law-old', 'non' FROM generate_series(1, 2)",
    )
    .await;
    let named = ["migration 1 (votes)", "23505", "duplicate_attempts_key", "HAVING count"];
    let refused = stage.run("migrate", &[]).await.assert(78, &named);
    assert!(!refused.stderr.contains("citizen-0"), "{}", refused.stderr);
    assert_eq!(connected(&stage, &[]).await.severity("23505"), "error");
}

/// The predecessor goes on counting during a check.
#[tokio::test]
async fn a_rehearsal_waits_for_no_lock_for_long_and_says_who_holds_it() {
    let stage = predecessor("rehearselock", "SELECT").await;
    let other = stage.hold("UPDATE vote_results SET oui_count = 2").await;
    let ended = connected(&stage, &[]).await;
    ended.finds(0, &[("warning", "the tables were not free")]);
    ended.assert(0, &["RowExclusiveLock on vote_results"]);
    other.rollback().await.expect("ended");

    // Other roles could put their objects in the place of ours.
    stage.execute("GRANT CREATE ON SCHEMA public TO PUBLIC").await;
    let revoke = "REVOKE CREATE ON SCHEMA public FROM PUBLIC";
    assert_eq!(connected(&stage, &[]).await.severity(revoke), "warning");
}

/// A predecessor that writes the audit first, while migration 1 would alter the totals first.
#[tokio::test]
async fn a_rehearsal_never_ends_in_a_deadlock_with_a_writer_of_another_order() {
    const WAITING: &str = "SELECT count(*) FROM pg_locks
        WHERE NOT granted AND relation = 'vote_audit'::regclass";
    let stage = predecessor("rehearseorder", "SELECT").await;
    let mut writer = stage.hold("UPDATE vote_audit SET choice = 'non'").await;
    let ended = Cell::new(false);
    let check = async {
        let check = check(&stage, &["--connect", "--json", "--rehearse", "5"], &[]).await;
        ended.set(true);
        check
    };
    let write = async {
        eventually("the check waits", async || ended.get() || stage.number(WAITING).await > 0)
            .await;
        sqlx::raw_sql("UPDATE vote_results SET oui_count = 2").execute(&mut *writer).await
    };
    let (written, ended) = tokio::join!(write, check);
    written.expect("the writer is never cancelled");
    ended.finds(0, &[("warning", "the tables were not free")]);
    assert!(!ended.stdout.contains("40P01"), "{}", ended.stdout);
}

#[tokio::test]
async fn a_role_that_may_not_create_tables_is_shown_the_missing_grant() {
    let stage = Stage::new(Servers::shared(), "maynotcreate").await;
    let role = stage.role("login", "").await;
    let migrate = async || stage.run_with(&["migrate"], &login(&role)).await;
    let grant = format!(r#"GRANT CREATE ON SCHEMA public TO \"{role}\""#);
    migrate().await.assert(77, &[&grant]);
    stage.execute(&grant.replace('\\', "")).await;
    migrate().await.assert(0, &[]);
}

/// Written by a session in Paris; the service writes and reads UTC. Converted as in the runbook.
#[tokio::test]
async fn times_without_a_time_zone_are_warned_of_and_can_be_converted() {
    let stage = predecessor(
        "zoneless",
        "DROP VIEW vote_statistics; ALTER TABLE vote_audit ALTER timestamp TYPE timestamp; \
         ALTER TABLE vote_results ALTER updated_at TYPE timestamp; \
         ALTER TABLE duplicate_attempts ALTER attempt_timestamp TYPE timestamp",
    )
    .await;
    // What the predecessor counted, and what comes again.
    let counted = votes(0, 2);
    for vote in &counted {
        stage.execute(&format!("SET TIME ZONE 'Europe/Paris'; {}", insert(vote))).await;
    }
    let attempts_and_replays = async |n: usize| {
        let batch = Votes::new(vec![counted[n].clone()]);
        let counted = stage.store().await.count(batch).await.expect("counted");
        (counted.attempts, counted.replays)
    };
    assert_eq!(attempts_and_replays(0).await, (1, 0), "an hour off");
    let named = "vote_audit.\"timestamp\", vote_results.updated_at without time zone";
    connected(&stage, &[]).await.finds(0, &[("warning", named)]);
    let service = stage.spawn(&[]).await;
    service.until_logged("without time zone: the service writes and reads UTC").await;
    service.stop().await;

    stage.execute(&sql_block("Europe/Paris")).await;
    assert!(!connected(&stage, &[]).await.stdout.contains("without time zone"));
    assert_eq!(attempts_and_replays(1).await, (0, 1), "recognised");
}
