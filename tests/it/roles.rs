//! What `roles.sql` lets each role do, and that the service needs no more than its own.
//!
//! Roles belong to the whole server, which the tests share: those of `roles.sql` are only ever
//! created, and what is granted to them differs by database.

use std::collections::BTreeSet;

use sqlx::AssertSqlSafe;
use sqlx::Row;
use vote_aggregator::adapters::store::StartError;
use vote_aggregator::model::ports::{Store, Votes};
use vote_aggregator::model::vote::Choice;

use crate::support::{Servers, Stage, eventually, vote, votes};

const ROLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/roles.sql");
const SERVICE: &str = "vote_service";
const GROUPS: [&str; 3] = [SERVICE, "vote_results_reader", "vote_auditor"];
const RELATIONS: [&str; 10] = [
    "_sqlx_migrations",
    "vote_results",
    "vote_audit",
    "duplicate_attempts",
    "result_corrections",
    "schema_compatibility",
    "reconciliation",
    "lost_votes",
    "vote_statistics",
    "citizens_with_multiple_votes",
];

/// What a group may do with a table or view; everything else is refused to it.
fn allowed(group: &str, relation: &str) -> &'static [&'static str] {
    match (group, relation) {
        ("vote_service", "_sqlx_migrations" | "schema_compatibility") => &["SELECT"],
        ("vote_service", "vote_audit" | "duplicate_attempts" | "lost_votes") => {
            &["SELECT", "INSERT"]
        }
        ("vote_service", "vote_results" | "reconciliation") => &["SELECT", "INSERT", "UPDATE"],
        ("vote_results_reader", "vote_results" | "vote_statistics") => &["SELECT"],
        ("vote_auditor", _) => &["SELECT"],
        _ => &[],
    }
}

async fn execute(stage: &Stage<'_>, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&stage.sql).await.expect("executed");
}

/// An empty schema with the roles' grants on it.
async fn with_roles(name: &str) -> Stage<'static> {
    let stage = Stage::migrated(Servers::shared(), name).await;
    grant(&stage);
    stage
}

fn grant(stage: &Stage<'_>) {
    stage.servers.script(&["psql", "--", "-d", &stage.database, "-X", "-q", "-f", ROLES]);
}

/// Tries a statement as a role, and takes it back: the SQLSTATE of its refusal.
async fn refusal(stage: &Stage<'_>, role: &str, statement: &str) -> Option<String> {
    let mut tried = stage.sql.begin().await.expect("a transaction");
    let become_role = AssertSqlSafe(format!("SET LOCAL ROLE {role}"));
    sqlx::raw_sql(become_role).execute(&mut *tried).await.expect("the role exists");
    let done = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut *tried).await;
    tried.rollback().await.expect("taken back");
    let error = done.err()?;
    let code = error.as_database_error().and_then(|refused| refused.code());
    Some(code.unwrap_or_else(|| panic!("{statement} as {role}: {error}")).into_owned())
}

/// Every privilege, really tried, by each group on each table and view.
#[tokio::test]
async fn each_role_may_do_what_it_is_for_and_nothing_else() {
    let stage = with_roles("matrix").await;
    grant(&stage); // A second run changes nothing.
    for group in GROUPS {
        for relation in RELATIONS {
            let column = match relation {
                "_sqlx_migrations" => "description",
                "schema_compatibility" => "requires",
                "reconciliation" => "votes",
                "lost_votes" => "alarm",
                _ => "law_id",
            };
            for (privilege, statement) in [
                ("SELECT", format!("SELECT * FROM {relation}")),
                ("INSERT", format!("INSERT INTO {relation} DEFAULT VALUES")),
                ("UPDATE", format!("UPDATE {relation} SET {column} = DEFAULT WHERE false")),
                ("DELETE", format!("DELETE FROM {relation} WHERE false")),
                ("TRUNCATE", format!("TRUNCATE {relation} CASCADE")),
            ] {
                let refused = refusal(&stage, group, &statement).await;
                let message = format!("{statement} as {group}: {refused:?}");
                if allowed(group, relation).contains(&privilege) {
                    // Past the grants, a row of defaults breaks the table's own rules.
                    assert!(refused.is_none_or(|code| code.starts_with("23")), "{message}");
                } else {
                    let view = relation.starts_with("citizens") || relation == "vote_statistics";
                    // A view that can't be written is refused before anybody looks at grants.
                    let codes: &[&str] =
                        if view { &["42501", "55000", "42809"] } else { &["42501"] };
                    assert!(
                        refused.is_some_and(|code| codes.contains(&code.as_str())),
                        "{message}"
                    );
                }
            }
        }
        for statement in [
            "CREATE TABLE intruder ()",
            "CREATE INDEX intruder ON vote_audit (law_id)",
            "ALTER TABLE vote_audit ADD COLUMN intruder text",
            "ALTER TABLE vote_audit DISABLE TRIGGER ALL",
            "DROP TABLE duplicate_attempts",
            "DROP VIEW vote_statistics",
        ] {
            let refused = refusal(&stage, group, statement).await;
            assert_eq!(refused.as_deref(), Some("42501"), "{statement} as {group}");
        }
    }
}

/// The same from the catalogue, which also knows of privileges that nobody tried.
#[tokio::test]
async fn the_catalogue_holds_exactly_these_grants_and_none_for_everybody() {
    let stage = with_roles("catalogue").await;
    // What somebody granted by hand does not outlive the next run.
    execute(
        &stage,
        "GRANT ALL ON vote_audit TO vote_service; GRANT UPDATE (choice) ON vote_audit TO \
         vote_service; GRANT SELECT ON vote_audit TO PUBLIC, vote_results_reader; \
         GRANT CREATE ON SCHEMA public TO PUBLIC"
            .to_owned(),
    )
    .await;
    grant(&stage);
    let rows = sqlx::query(
        "SELECT coalesce(rolname, 'PUBLIC') AS role, relname::text, privilege_type \
         FROM pg_class, aclexplode(relacl) LEFT JOIN pg_roles ON pg_roles.oid = grantee \
         WHERE relnamespace = 'public'::regnamespace AND grantee <> relowner",
    )
    .fetch_all(&stage.sql)
    .await
    .expect("the catalogue can be read");
    let found: BTreeSet<(String, String, String)> =
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    let mut expected = BTreeSet::new();
    for (group, relation) in GROUPS.iter().flat_map(|g| RELATIONS.iter().map(move |r| (g, r))) {
        for privilege in allowed(group, relation) {
            let grant = [group, relation, privilege].map(|text| (*text).to_owned());
            let [group, relation, privilege] = grant;
            expected.insert((group, relation, privilege));
        }
    }
    assert_eq!(found, expected);
    let rows = sqlx::query(
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace \
         AND relkind IN ('r', 'p', 'v', 'm') ORDER BY 1",
    )
    .fetch_all(&stage.sql)
    .await
    .expect("the catalogue can be read");
    let relations: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(relations, RELATIONS.map(str::to_owned).into(), "none is left out above");
    let by_column = "SELECT count(*) FROM pg_attribute WHERE attacl IS NOT NULL AND attrelid IN \
                     (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)";
    assert_eq!(stage.number(by_column).await, 0);
    let login = "SELECT count(*) FROM pg_roles WHERE rolname IN ('vote_service', \
                 'vote_results_reader', 'vote_auditor') AND (rolcanlogin OR rolsuper OR rolcreaterole)";
    assert_eq!(stage.number(login).await, 0, "groups, and nothing more");
    let refused = refusal(&stage, SERVICE, "CREATE TABLE intruder ()").await;
    assert_eq!(refused.as_deref(), Some("42501"));
}

/// A login role of this stage's own that is in a group; its name.
async fn login(stage: &Stage<'_>, group: &str) -> String {
    let role = format!("login_{}", stage.database);
    execute(stage, format!("CREATE ROLE {role} LOGIN PASSWORD 'least' IN ROLE {group}")).await;
    role
}

/// From its start through a poison vote and an outage, with every vote in its place.
#[tokio::test]
async fn the_service_needs_no_more_than_its_role() {
    let stage = with_roles("leastrole").await;
    let role = login(&stage, SERVICE).await;
    execute(
        &stage,
        "ALTER TABLE vote_audit ADD CONSTRAINT no_law_x CHECK (law_id <> 'law-x')".to_owned(),
    )
    .await;
    let good = votes(0, 300);
    let mut first = good[..200].to_vec();
    first.insert(17, vote(1_000, "law-x", Choice::Oui));
    // An attempt under a hash that is counted, and a replay.
    first.push(votes(0, 1)[0].clone());
    let mut attempt = votes(1, 1)[0].clone();
    attempt.citizen_id = "another".into();
    first.push(attempt);
    stage.publish_votes(&first).await;
    let service = stage
        .start(&[
            ("POSTGRES_USER", role.as_str()),
            ("POSTGRES_PASSWORD", "least"),
            ("RETRY_DELAY_SECONDS", "0.1"),
            ("TOTALS_REFRESH_SECONDS", "1"),
        ])
        .await;
    stage.until_counted(200).await;
    eventually("the poison vote is dead-lettered", async || {
        stage.ready(&stage.dead_letter_queue()).await == Some(1)
    })
    .await;
    eventually("the totals are compared with the audit", async || {
        service.metric("results_drift_votes").await == Some(0.0)
    })
    .await;
    eventually("the attempt is recorded", async || {
        stage.number("SELECT count(*) FROM duplicate_attempts").await == 1
    })
    .await;

    // PostgreSQL ends this role's sessions and takes no new ones: an outage for this service alone.
    execute(
        &stage,
        format!(
            "ALTER ROLE {role} NOLOGIN; \
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"
        ),
    )
    .await;
    stage.publish_votes(&good[200..]).await;
    service.until_logged("consuming stops until a write succeeds").await;
    service.until_not_ready().await;
    execute(&stage, format!("ALTER ROLE {role} LOGIN")).await;
    stage.until_counted(300).await;
    service.until_ready().await;
    service.stop().await;
    stage.assert_counted_exactly(&good).await;
    stage.assert_drained().await;
}

/// One grant too few is found at start and not at the first vote that needs it.
#[tokio::test]
async fn a_missing_grant_is_a_clear_refusal_at_start() {
    let stage = with_roles("missing").await;
    let role = login(&stage, SERVICE).await;
    let as_role = [("POSTGRES_USER", role.as_str()), ("POSTGRES_PASSWORD", "least")];
    stage.prepare(&as_role).await.expect("enough");
    for (privilege, table) in [
        ("INSERT", "duplicate_attempts"),
        ("UPDATE", "vote_results"),
        ("SELECT", "vote_audit"),
        ("SELECT", "_sqlx_migrations"),
    ] {
        execute(&stage, format!("REVOKE {privilege} ON {table} FROM {SERVICE}")).await;
        let refused = stage.prepare(&as_role).await.err();
        assert!(matches!(refused, Some(StartError::Credentials { .. })), "{table}: {refused:?}");
        assert!(refused.is_some_and(|error| error.to_string().contains("roles.sql")));
        grant(&stage);
    }
    stage.prepare(&as_role).await.expect("enough again");
}

/// The grants of semantics, section 9, and no more: what the tables shared since migration 3 add, the
/// service does without.
#[tokio::test]
async fn a_role_without_grants_on_the_shared_tables_is_ready_and_notices_lost_votes() {
    let stage = with_roles("olderrole").await;
    let role = login(&stage, SERVICE).await;
    let shared = "schema_compatibility, reconciliation, lost_votes";
    execute(&stage, format!("REVOKE ALL ON {shared} FROM {SERVICE}")).await;
    let as_role = [("POSTGRES_USER", role.as_str()), ("POSTGRES_PASSWORD", "least")];
    let all = votes(0, 10);
    stage.publish_votes(&all).await;
    let service = stage.start(&as_role).await;
    stage.until_counted(10).await;
    service.until_logged("the table lost_votes cannot be used").await;

    // What an older backup restored under the service looks like.
    execute(&stage, "DELETE FROM vote_audit".to_owned()).await;
    service.until_logged("To go on without them, restart this instance").await;
    service.until_not_ready().await;
    assert_eq!(service.metric("acknowledged_votes_lost_total").await, Some(1.0));
    // With the grants it is recorded, so that a restart does not forget it.
    grant(&stage);
    eventually("the lost votes are recorded", async || {
        stage.number("SELECT count(*) FROM lost_votes").await == 1
    })
    .await;
    execute(&stage, format!("REVOKE ALL ON {shared} FROM {SERVICE}")).await;
    stage.publish_votes(&all).await;
    service.until_ready().await;
    service.stop().await;

    // A later migration may need a newer release, and only that table tells.
    execute(
        &stage,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (99, 'later', true, '', 0)"
            .to_owned(),
    )
    .await;
    let refused = stage.prepare(&as_role).await.err();
    assert!(matches!(refused, Some(StartError::Credentials { .. })), "{refused:?}");
}

/// The service's role can't migrate, and says who has to.
#[tokio::test]
async fn a_pending_migration_is_for_the_owner() {
    let stage = with_roles("upgrade").await;
    let role = login(&stage, SERVICE).await;
    execute(
        &stage,
        "DROP TABLE result_corrections; DELETE FROM _sqlx_migrations WHERE version = 2".to_owned(),
    )
    .await;
    let as_role = [("POSTGRES_USER", role.as_str()), ("POSTGRES_PASSWORD", "least")];
    let refused = stage.prepare(&as_role).await.err();
    assert!(matches!(refused, Some(StartError::Credentials { .. })), "{refused:?}");
    let message = refused.map(|error| error.to_string()).unwrap_or_default();
    assert!(message.contains("[2]") && message.contains("`vote-aggregator migrate`"), "{message}");
    // With rows in the tables, as after an upgrade.
    stage.store().await.count(Votes::new(votes(0, 10))).await.expect("migrated by the owner");
    grant(&stage);
    stage.prepare(&as_role).await.expect("the newest schema");
}

/// Tables that the service's predecessor left number their rows from sequences.
#[tokio::test]
async fn tables_with_sequences_take_votes_from_the_role() {
    let stage = Stage::new(Servers::shared(), "serial").await;
    sqlx::raw_sql(
        "CREATE TABLE vote_audit (id SERIAL PRIMARY KEY, vote_hash VARCHAR(64) UNIQUE NOT NULL, \
             citizen_id VARCHAR(100), law_id VARCHAR(50), choice VARCHAR(10), \
             timestamp TIMESTAMP WITH TIME ZONE); \
         CREATE TABLE duplicate_attempts (id SERIAL PRIMARY KEY, vote_hash VARCHAR(64), \
             citizen_id VARCHAR(100), attempt_timestamp TIMESTAMP WITH TIME ZONE)",
    )
    .execute(&stage.sql)
    .await
    .expect("the old tables");
    stage.store().await;
    grant(&stage);
    let role = login(&stage, SERVICE).await;
    let store = stage
        .prepare(&[("POSTGRES_USER", &role), ("POSTGRES_PASSWORD", "least")])
        .await
        .expect("enough");
    let mut batch = votes(0, 10);
    batch.push(batch[0].clone());
    batch[10].citizen_id = "another".into();
    let counted = store.count(Votes::new(batch)).await.expect("enough to count");
    assert_eq!((counted.added(), counted.attempts), (10, 1));
}
