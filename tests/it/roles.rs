//! What `roles.sql` lets each role do, and that the service needs no more than its own.
//!
//! Roles belong to the whole server, which the tests share: those of `roles.sql` are only ever
//! created, and what is granted to them differs by database.

use std::collections::BTreeSet;

use sqlx::AssertSqlSafe;
use vote_aggregator::adapters::store::{PgStore, StartError};
use vote_aggregator::model::ports::{Store, Votes};
use vote_aggregator::model::vote::{Choice, Vote};

use crate::support::{FORBID_LAW_X, PREDECESSOR, Servers, Stage, eventually, login, vote, votes};

const IN_SERVICE: &str = "IN ROLE vote_service";
const GROUPS: [&str; 6] = [
    "vote_service",
    "vote_results_reader",
    "vote_auditor",
    "vote_publisher",
    "vote_board",
    "vote_sealer",
];
const RELATIONS: &str = "_sqlx_migrations vote_results vote_audit duplicate_attempts \
                         result_corrections schema_compatibility reconciliation lost_votes vote_cell \
                         vote_statistics citizens_with_multiple_votes result_publications \
                         certified_results published_state published_results \
                         published_corrections published_history published_finals \
                         published_since_final count_batch";
/// What a publisher may write of a publication: not who and when.
const PUBLISHED_COLUMNS: [&str; 6] =
    ["follows", "not_before", "reason", "results_sha256", "state", "test"];

/// What a group may do with a table or view; everything else is refused to it.
fn allowed(group: &str, relation: &str) -> &'static [&'static str] {
    match (group, relation) {
        ("vote_service", "_sqlx_migrations" | "schema_compatibility" | "vote_cell") => &["SELECT"],
        ("vote_service", "vote_audit" | "duplicate_attempts" | "lost_votes") => {
            &["SELECT", "INSERT"]
        }
        ("vote_service", "count_batch") => &["INSERT"],
        ("vote_service", "vote_results" | "reconciliation") => &["SELECT", "INSERT", "UPDATE"],
        ("vote_results_reader", "vote_results" | "vote_statistics" | "vote_cell") => &["SELECT"],
        ("PUBLIC", "published_state") => &["SELECT"],
        ("PUBLIC", _) | (_, "published_state") => &[],
        ("vote_auditor", _) => &["SELECT"],
        ("vote_publisher", "result_publications" | "vote_cell") => &["SELECT"],
        (
            "vote_sealer",
            "_sqlx_migrations" | "vote_audit" | "vote_results" | "result_corrections"
            | "count_batch",
        ) => &["SELECT"],
        ("vote_publisher", "certified_results") => &["INSERT"],
        ("vote_publisher" | "vote_board", view) if view.starts_with("published_") => &["SELECT"],
        _ => &[],
    }
}

/// Asserts that a start is refused for want of rights; the message.
fn assert_refused(prepared: Result<PgStore, StartError>) -> String {
    match prepared {
        Err(error @ StartError::Credentials { .. }) => error.to_string(),
        other => panic!("not refused: {:?}", other.err()),
    }
}

async fn texts(stage: &Stage<'_>, query: &'static str) -> BTreeSet<String> {
    let rows = sqlx::query_scalar(query).fetch_all(&stage.sql).await;
    rows.expect("the catalogue can be read").into_iter().collect()
}

#[tokio::test]
async fn the_catalogue_holds_exactly_these_grants() {
    let stage = Stage::with_roles(Servers::shared(), "catalogue").await;
    // What is granted by hand does not outlive the next run.
    let by_hand = "GRANT ALL ON vote_audit TO vote_service; \
                   GRANT UPDATE (choice) ON vote_audit TO vote_service; \
                   GRANT SELECT ON vote_audit, published_results TO PUBLIC, vote_results_reader; \
                   GRANT CREATE ON SCHEMA public TO PUBLIC";
    stage.execute(by_hand).await;
    stage.grant_roles();
    let found = texts(
        &stage,
        "SELECT coalesce(rolname, 'PUBLIC') || ' ' || relname || ' ' || privilege_type \
         FROM pg_class, aclexplode(relacl) LEFT JOIN pg_roles ON pg_roles.oid = grantee \
         WHERE relnamespace = 'public'::regnamespace AND grantee <> relowner",
    )
    .await;
    let mut expected = BTreeSet::new();
    for group in GROUPS.into_iter().chain(["PUBLIC"]) {
        for relation in RELATIONS.split(' ') {
            let privileges = allowed(group, relation).iter();
            expected.extend(privileges.map(|privilege| format!("{group} {relation} {privilege}")));
        }
    }
    assert_eq!(found, expected);
    let relations = texts(
        &stage,
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace \
         AND relkind IN ('r', 'p', 'v', 'm')",
    )
    .await;
    let all = RELATIONS.split(' ').map(str::to_owned).collect();
    assert_eq!(relations, all, "none is left out above");
    let on_columns = texts(
        &stage,
        "SELECT grantee::regrole || ' ' || attrelid::regclass || ' ' || attname || ' ' || privilege_type \
         FROM pg_attribute, aclexplode(attacl) WHERE attrelid IN \
         (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)",
    )
    .await;
    let may_insert = |column| format!("vote_publisher result_publications {column} INSERT");
    assert_eq!(on_columns, PUBLISHED_COLUMNS.map(may_insert).into(), "grants on columns");
    let powerful = "SELECT count(*) FROM pg_roles LEFT JOIN pg_auth_members \
                    ON member = pg_roles.oid \
                    WHERE rolname IN ('vote_service', 'vote_results_reader', 'vote_auditor', \
                    'vote_publisher', 'vote_board', 'vote_sealer') \
                    AND (rolcanlogin OR rolsuper OR rolcreaterole OR member IS NOT NULL)";
    let log_in = "groups that log in, create roles or have the rights of others";
    assert_eq!(stage.number(powerful).await, 0, "{log_in}");
    // Rights on the schema, and those of an owner.
    for group in GROUPS {
        for statement in [
            "CREATE TABLE intruder ()",
            "ALTER TABLE vote_audit DISABLE TRIGGER ALL",
            "DROP VIEW vote_statistics",
        ] {
            let mut tried = stage.sql.begin().await.expect("a transaction");
            let tries = AssertSqlSafe(format!("SET LOCAL ROLE {group}; {statement}"));
            let refused = sqlx::raw_sql(tries).execute(&mut *tried).await.expect_err("refused");
            let code = refused.as_database_error().and_then(|error| error.code());
            assert_eq!(code.as_deref(), Some("42501"), "{statement} as {group}");
        }
    }
}

/// From its start through a refused vote and an outage.
#[tokio::test]
async fn the_service_needs_no_more_than_its_role() {
    let stage = Stage::with_roles(Servers::shared(), "leastrole").await;
    let role = stage.role("login", IN_SERVICE).await;
    stage.execute(FORBID_LAW_X).await;
    let good = votes(0, 300);
    let mut first = good[..200].to_vec();
    first.insert(17, vote(1_000, "law-x", Choice::Oui));
    // A replay, and an attempt under a hash that is counted.
    first.push(good[0].clone());
    first.push(Vote { citizen_id: "another".into(), ..good[1].clone() });
    stage.publish_votes(&first).await;
    let often = [("RETRY_DELAY_SECONDS", "0.1"), ("TOTALS_REFRESH_SECONDS", "1")];
    let service = stage.start(&[&login(&role)[..], &often].concat()).await;
    stage.until_counted(200).await;
    eventually("dead-lettered, compared with the audit, and recorded as an attempt", async || {
        stage.ready(&stage.dead_letter_queue()).await == Some(1)
            && service.metric("results_drift_votes").await == Some(0.0)
            && stage.number("SELECT count(*) FROM duplicate_attempts").await == 1
    })
    .await;

    // PostgreSQL ends this role's sessions and takes no new ones: an outage for this service alone.
    stage.execute(&format!("ALTER ROLE {role} NOLOGIN")).await;
    stage.terminate(&format!("usename = '{role}'")).await;
    stage.publish_votes(&good[200..]).await;
    service.until_logged("consuming stops until a write succeeds").await;
    service.until_not_ready().await;
    stage.execute(&format!("ALTER ROLE {role} LOGIN")).await;
    service.until_ready().await;
    stage.finish([service], &good).await;
}

/// A missing grant is found at start and not at the first vote that needs it.
#[tokio::test]
async fn a_missing_grant_is_a_clear_refusal_at_start() {
    let stage = Stage::with_roles(Servers::shared(), "missing").await;
    let role = stage.role("login", IN_SERVICE).await;
    stage.prepare(&login(&role)).await.expect("enough");
    for grant in [
        "INSERT ON duplicate_attempts",
        "INSERT ON count_batch",
        "UPDATE ON vote_results",
        "SELECT ON vote_audit",
        "SELECT ON _sqlx_migrations",
    ] {
        stage.execute(&format!("REVOKE {grant} FROM vote_service")).await;
        let message = assert_refused(stage.prepare(&login(&role)).await);
        assert!(message.contains("roles.sql"), "{grant}: {message}");
        stage.grant_roles();
    }
    stage.prepare(&login(&role)).await.expect("enough again");
}

/// With the grants of semantics, section 9, and no more: the service does without the tables that are
/// shared since migration 3.
#[tokio::test]
async fn a_role_without_grants_on_the_shared_tables_is_ready_and_notices_lost_votes() {
    let stage = Stage::with_roles(Servers::shared(), "olderrole").await;
    let role = stage.role("login", IN_SERVICE).await;
    let revoke = "REVOKE ALL ON schema_compatibility, reconciliation, lost_votes FROM vote_service";
    stage.execute(revoke).await;
    let all = stage.publish_new(0, 10).await;
    let service = stage.start(&login(&role)).await;
    stage.until_counted(10).await;
    service.until_logged("the table lost_votes cannot be used").await;

    // As if an older backup were restored under the service.
    stage.execute("DELETE FROM vote_audit").await;
    service.until_logged("To continue without them, restart this instance").await;
    service.until_not_ready().await;
    assert_eq!(service.metric("acknowledged_votes_lost_total").await, Some(1.0));
    // With the grants it is recorded, so that a restart does not forget it.
    stage.grant_roles();
    stage.until_number("SELECT count(*) FROM lost_votes", 1).await;
    stage.execute(revoke).await;
    stage.publish_votes(&all).await;
    service.until_ready().await;
    service.stop().await;

    // A later migration may need a newer release, which only schema_compatibility says.
    let later = "INSERT INTO _sqlx_migrations VALUES (99, 'later', now(), true, '', 0)";
    stage.execute(later).await;
    assert_refused(stage.prepare(&login(&role)).await);
}

/// The service's role cannot migrate, and says who has to.
#[tokio::test]
async fn a_pending_migration_is_for_the_owner() {
    let stage = Stage::with_roles(Servers::shared(), "upgrade").await;
    let role = stage.role("login", IN_SERVICE).await;
    stage.execute("DROP TABLE result_corrections CASCADE").await;
    stage.execute("DELETE FROM _sqlx_migrations WHERE version IN (2, 5)").await;
    let message = assert_refused(stage.prepare(&login(&role)).await);
    assert!(
        message.contains("[2, 5]") && message.contains("`vote-aggregator migrate`"),
        "{message}"
    );
    // With rows in the tables, as after an upgrade.
    stage.store().await.count(Votes::new(votes(0, 10))).await.expect("migrated by the owner");
    stage.grant_roles();
    stage.prepare(&login(&role)).await.expect("the newest schema");
}

/// Tables that the service's predecessor left number their rows from sequences.
#[tokio::test]
async fn tables_with_sequences_take_votes_from_the_role() {
    let stage = Stage::new(Servers::shared(), "serial").await;
    stage.execute(PREDECESSOR).await;
    stage.store().await;
    stage.grant_roles();
    let role = stage.role("login", IN_SERVICE).await;
    let store = stage.prepare(&login(&role)).await.expect("enough");
    let mut batch = votes(0, 10);
    batch.push(Vote { citizen_id: "another".into(), ..batch[0].clone() });
    let counted = store.count(Votes::new(batch)).await.expect("enough to count");
    assert_eq!((counted.added(), counted.attempts), (10, 1));
}
