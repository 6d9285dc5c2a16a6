//! `count_batch`: which transaction counted a vote, and where its rows lie in the audit.

use vote_aggregator::adapters::store::PgStore;
use vote_aggregator::model::ports::{Class, Insert, Store, Votes};
use vote_aggregator::model::vote::{Choice, Vote};

use crate::support::{FORBID_LAW_X, Servers, Stage, login, settings, vote, votes};

/// Transactions of the audit and rows of count_batch that do not belong to each other. A row of count_batch has
/// to be of the transaction that it names, and its places those of that transaction's first and last row.
const UNMATCHED: &str = "
    WITH counted AS (
        SELECT xmin::text AS xid, min(ctid) AS first_row, max(ctid) AS last_row, count(*)::int AS row_count
        FROM vote_audit GROUP BY xmin::text
    ),
    recorded AS (
        SELECT xid::xid::text, first_row, last_row, row_count FROM count_batch WHERE xmin = xid::xid
    )
    SELECT count(*) FROM (
        (SELECT * FROM counted EXCEPT ALL SELECT * FROM recorded)
        UNION ALL
        (SELECT * FROM recorded EXCEPT ALL SELECT * FROM counted)
    ) AS unmatched";
const BATCHES: &str = "SELECT count(*) FROM count_batch";

/// Asserts that so many transactions counted votes, and that count_batch has exactly those.
async fn assert_batches(stage: &Stage<'_>, batches: i64) {
    assert_eq!(
        stage.number(UNMATCHED).await,
        0,
        "transactions without their row in count_batch, or rows without"
    );
    assert_eq!(stage.number(BATCHES).await, batches);
}

/// Counts a batch; how many votes were new.
async fn count(store: &PgStore, votes: &[Vote], insert: Insert) -> u64 {
    let counted = store.count(Votes::new(votes.to_vec()).inserted(insert)).await;
    counted.expect("counted").added()
}

#[tokio::test]
async fn each_transaction_that_counts_new_votes_has_one_row_with_the_places_of_its_votes() {
    let (stage, store) = Stage::with_store("batches").await;
    for (first, insert) in [(0, Insert::Plain), (10_000, Insert::OnConflict)] {
        let batch = votes(first, 2_000);
        assert_eq!(count(&store, &batch, insert).await, 2_000);
        // Partly known: with ON CONFLICT, a row for the new ones; plainly, none, since the statement fails.
        let overlapping = votes(first + 1_999, 500);
        let plainly = Votes::new(overlapping.clone()).inserted(Insert::Plain);
        let fault = store.count(plainly).await.expect_err("one is known");
        assert_eq!(fault.class, Class::KnownHash);
        assert_eq!(count(&store, &overlapping, Insert::OnConflict).await, 499);
    }
    assert_batches(&stage, 4).await;

    // Replays and attempts are no new votes, also together with an attempt within a batch.
    assert_eq!(count(&store, &votes(0, 100), Insert::OnConflict).await, 0);
    let known = vote(1, "law-other", Choice::Oui);
    assert_eq!(count(&store, &[known], Insert::OnConflict).await, 0);
    assert_batches(&stage, 4).await;
    let first = vote(50_000, "law-a", Choice::Oui);
    let differing = Vote { choice: Choice::Non, ..first.clone() };
    assert_eq!(count(&store, &[first, differing], Insert::Plain).await, 1);
    assert_batches(&stage, 5).await;
}

/// VACUUM gives pages out again, so that the rows of one batch lie before and behind those of others.
#[tokio::test]
async fn rows_that_fill_old_pages_are_found_as_well() {
    let (stage, store) = Stage::with_store("batches_pages").await;
    count(&store, &votes(0, 3_000), Insert::Plain).await;
    stage.execute("DELETE FROM vote_audit; DELETE FROM count_batch").await;
    count(&store, &votes(3_000, 500), Insert::Plain).await;
    stage.execute("VACUUM vote_audit").await;
    for (first, insert) in [(4_000, Insert::Plain), (8_000, Insert::OnConflict)] {
        assert_eq!(count(&store, &votes(first, 3_000), insert).await, 3_000);
    }
    let before_the_first = "SELECT count(*) FROM count_batch AS later, count_batch AS first \
                            WHERE first.row_count = 500 AND later.first_row < first.first_row";
    assert!(stage.number(before_the_first).await > 0, "an old page was filled");
    assert_batches(&stage, 3).await;
}

/// Halves commit by themselves, and the refused vote leaves nothing.
#[tokio::test]
async fn each_part_of_a_bisected_batch_has_its_own_row() {
    let stage = Stage::migrated(Servers::shared(), "batches_bisected").await;
    stage.execute(FORBID_LAW_X).await;
    let good = votes(0, 99);
    stage
        .publish_votes(&[&good[..40], &[vote(1_000, "law-x", Choice::Oui)], &good[40..]].concat())
        .await;
    let service = stage.start(&settings("BATCH_SIZE=100")).await;
    stage.until_ready(&stage.dead_letter_queue(), 1).await;
    stage.finish([service], &good).await;
    assert_eq!(stage.number(UNMATCHED).await, 0);
    assert!(stage.number(BATCHES).await > 1, "bisected");
}

/// A start and a probe count made-up votes behind a savepoint, and roll back.
#[tokio::test]
async fn a_rehearsal_leaves_no_row() {
    let (stage, store) = Stage::with_store("batches_rehearsal").await;
    store.probe().await.expect("writable");
    assert_batches(&stage, 0).await;
}

/// A dump contains ids that another server assigns again.
#[tokio::test]
async fn rows_of_a_restored_dump_do_not_stop_counting_and_are_recognised() {
    let (stage, store) = Stage::with_store("batches_dump").await;
    let restored = "INSERT INTO count_batch \
                    SELECT (pg_current_xact_id()::text::bigint + n)::text::xid8, '(0,1)', '(0,9)', 9 \
                    FROM generate_series(1, 50000) AS n";
    stage.execute(restored).await;
    for (first, insert) in [(0, Insert::Plain), (100, Insert::OnConflict)] {
        assert_eq!(count(&store, &votes(first, 100), insert).await, 100);
    }
    let repeated =
        "SELECT count(*) FROM (SELECT FROM count_batch GROUP BY xid HAVING count(*) > 1) AS ids";
    assert_eq!(stage.number(repeated).await, 2, "their ids were there already");
    assert_batches(&stage, 50_002).await;
}

/// As in a rolling update: the owner migrates, and the service's role counts before roles.sql is run again.
#[tokio::test]
async fn the_migration_grants_what_counting_needs() {
    let stage = Stage::with_roles(Servers::shared(), "batches_update").await;
    let role = stage.role("login", "IN ROLE vote_service").await;
    let store = stage.prepare(&login(&role)).await.expect("enough");
    stage.execute("DROP TABLE count_batch; DELETE FROM _sqlx_migrations WHERE version = 6").await;
    let refused = stage.prepare(&login(&role)).await.err().expect("a migration is pending");
    let refused = refused.to_string();
    assert!(refused.contains("[6]") && refused.contains("`vote-aggregator migrate`"), "{refused}");

    stage.run("migrate", &[]).await.assert(0, &["migrations applied: 1\n"]);
    assert_eq!(count(&store, &votes(0, 100), Insert::OnConflict).await, 100);
    stage.prepare(&login(&role)).await.expect("enough");
    assert_batches(&stage, 1).await;
    let delete = "SELECT has_table_privilege('vote_service', 'count_batch', 'DELETE')::int::int8";
    assert_eq!(stage.number(delete).await, 0);
}

/// The owner of the audit is not always the owner of what is added later.
#[tokio::test]
async fn migrations_grant_what_counting_needs_to_each_role_that_may_insert_votes() {
    let stage = Stage::with_roles(Servers::shared(), "batches_grants").await;
    let (owner, inserting) = (stage.role("owner", "").await, stage.role("columns", "").await);
    let migrations = concat!(
        include_str!("../../migrations/0004_cell.sql"),
        include_str!("../../migrations/0006_count_batch.sql")
    );
    stage
        .execute(&format!(
            "DROP TABLE count_batch, vote_cell;
             GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {owner};
             ALTER TABLE vote_audit OWNER TO {owner};
             GRANT INSERT (vote_hash, citizen_id, law_id, choice, timestamp) ON vote_audit TO {inserting};
             {migrations}"
        ))
        .await;
    let granted = "SELECT count(*) FROM pg_roles
                   WHERE (rolname LIKE 'owner_batches_grants%' OR rolname LIKE 'columns_batches_grants%')
                     AND has_table_privilege(oid, 'count_batch', 'INSERT')
                     AND has_table_privilege(oid, 'vote_cell', 'SELECT')";
    assert_eq!(stage.number(granted).await, 2);
    let store = stage.prepare(&login(&owner)).await.expect("enough");
    assert_eq!(count(&store, &votes(0, 10), Insert::OnConflict).await, 10);

    let others = "SELECT has_table_privilege('vote_auditor', 'count_batch', 'INSERT')::int
                       + has_table_privilege('vote_auditor', 'vote_cell', 'SELECT')::int::int8";
    assert_eq!(stage.number(others).await, 0);
    stage
        .execute(&format!(
            "GRANT INSERT ON vote_audit TO PUBLIC; DROP TABLE count_batch, vote_cell; {migrations}"
        ))
        .await;
    assert_eq!(stage.number(others).await, 2);
}

const TRIGGER: &str = "
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN IF NEW.row_count > 10 THEN RAISE 'not today'; END IF; RETURN NEW; END $$;
    CREATE TRIGGER refuses BEFORE INSERT ON count_batch FOR EACH ROW EXECUTE FUNCTION refuse()";

/// The error of a trigger names no table.
#[tokio::test]
async fn a_start_with_triggers_on_it_is_refused() {
    let stage = Stage::migrated(Servers::shared(), "batches_trigger").await;
    stage.execute(TRIGGER).await;
    let refused = stage.prepare(&[]).await.err().expect("a trigger").to_string();
    assert!(refused.contains("triggers on table count_batch (refuses)"), "{refused}");
    stage.execute("ALTER TABLE count_batch DISABLE TRIGGER refuses").await;
    stage.prepare(&[]).await.expect("it is disabled");
}

/// What is added while an instance counts gets no vote dead-lettered either, and counting goes on without it.
#[tokio::test]
async fn counting_pauses_while_a_batch_is_refused() {
    const CONSTRAINT: &str = "ALTER TABLE count_batch ADD CONSTRAINT small CHECK (row_count <= 10)";
    for (name, refuse, allow, reason) in [
        ("check", CONSTRAINT, "ALTER TABLE count_batch DROP CONSTRAINT small", "constraint small"),
        ("trigger", TRIGGER, "DROP TRIGGER refuses ON count_batch", "count_batch (refuses)"),
    ] {
        let (stage, service) = Stage::started(&format!("batches_{name}"), &[]).await;
        stage.execute(refuse).await;
        let all = stage.publish_new(0, 200).await;
        service.until_logged("consuming stops until a write succeeds").await;
        assert!(service.logged(reason) > 0, "{}", service.log());
        service.until_not_ready().await;
        assert_eq!(stage.number(BATCHES).await, 0);
        stage.execute(allow).await;
        stage.until_counted(all.len()).await;
        service.until_ready().await;
        stage.finish([service], &all).await;
        assert_eq!(stage.ready(&stage.dead_letter_queue()).await, Some(0));
    }
}

/// No vote is at fault: none is isolated and dead-lettered for it.
#[tokio::test]
async fn a_batch_that_is_refused_stops_counting() {
    let (stage, store) = Stage::with_store("batches_refused").await;
    stage.execute("ALTER TABLE count_batch ADD CONSTRAINT small CHECK (row_count < 10)").await;
    for insert in [Insert::Plain, Insert::OnConflict] {
        let batch = Votes::new(votes(0, 100)).inserted(insert);
        let fault = store.count(batch).await.expect_err("refused");
        assert_eq!(fault.class, Class::Pause, "{fault}");
        assert!(fault.message.contains("constraint small"), "{fault}");
    }
    assert_batches(&stage, 0).await;
}
