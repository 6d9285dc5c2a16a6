//! Objects under our names that another role made.

use sqlx::Row;
use vote_aggregator::adapters::store::StartError;
use vote_aggregator::model::ports::{Store, Votes};

use super::pending;
use crate::support::{BINARY, Servers, Stage, command, ended, execute, run, votes};

/// A database as PostgreSQL made them before version 15, and a role that may log in to it.
async fn open_database(name: &str) -> (Stage<'static>, String) {
    let stage = Stage::new(Servers::shared(), name).await;
    let role = format!("stranger_{}", stage.database);
    execute(
        &stage,
        &format!("CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT CREATE ON SCHEMA public TO PUBLIC"),
    )
    .await;
    (stage, role)
}

async fn as_role(stage: &Stage<'_>, role: &str, sql: &str) {
    execute(stage, &format!("SET ROLE {role}; {sql}; RESET ROLE")).await;
}

const VERSIONS: &str = "CREATE TABLE _sqlx_migrations (version bigint PRIMARY KEY, \
                        description text NOT NULL, installed_on timestamptz DEFAULT now(), \
                        success boolean NOT NULL, checksum bytea NOT NULL, execution_time bigint)";

/// Runs as whoever calls it; only a superuser succeeds.
fn promotion(role: &str) -> String {
    format!(
        "CREATE FUNCTION promote() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN EXECUTE ''ALTER ROLE {role} SUPERUSER''; RETURN NEW; END'; \
         CREATE FUNCTION versions() RETURNS bigint LANGUAGE plpgsql VOLATILE AS \
         'BEGIN EXECUTE ''ALTER ROLE {role} SUPERUSER''; RETURN 1; END'"
    )
}

#[tokio::test]
async fn objects_of_another_role_are_refused_before_they_are_touched() {
    let cases: [(&str, String, &str); 7] = [
        (
            "trigger",
            format!(
                "{VERSIONS}; CREATE TRIGGER t BEFORE INSERT ON _sqlx_migrations FOR EACH ROW \
                 EXECUTE FUNCTION promote()"
            ),
            "table _sqlx_migrations belongs to",
        ),
        (
            "versionsview",
            "CREATE VIEW _sqlx_migrations AS SELECT versions() AS version, true AS success, \
             ''::bytea AS checksum"
                .to_owned(),
            "table _sqlx_migrations is not a table",
        ),
        (
            "defaults",
            "CREATE TABLE schema_compatibility (migration bigint DEFAULT versions(), \
             requires bigint)"
                .to_owned(),
            "table schema_compatibility belongs to",
        ),
        (
            "audit",
            "CREATE TABLE vote_audit (vote_hash varchar(64) PRIMARY KEY, citizen_id varchar(100), \
             law_id varchar(50), choice varchar(3), \"timestamp\" timestamptz)"
                .to_owned(),
            "table vote_audit belongs to",
        ),
        (
            "statistics",
            "CREATE VIEW vote_statistics AS SELECT 1 AS law_id".to_owned(),
            "view vote_statistics belongs to",
        ),
        ("keyname", "CREATE TABLE vote_audit_pkey ()".to_owned(), "index vote_audit_pkey"),
        (
            "overload",
            "CREATE FUNCTION round(numeric, bigint) RETURNS numeric LANGUAGE sql AS 'SELECT $1'"
                .to_owned(),
            "function round(numeric, bigint) belongs to",
        ),
    ];
    for (name, objects, named) in cases {
        let (stage, role) = open_database(name).await;
        as_role(&stage, &role, &format!("{}; {objects}", promotion(&role))).await;
        let relations = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
        let before = stage.number(relations).await;

        let refused = run(&stage, "migrate", &[]).await;
        assert_eq!(refused.code, Some(78), "{name}: {}", refused.stderr);
        assert!(refused.stderr.contains(named), "{name}: {}", refused.stderr);
        assert!(refused.stderr.contains(&role), "{name} names the owner: {}", refused.stderr);
        let refused = stage.prepare(&[]).await.err();
        assert!(matches!(refused, Some(StartError::Foreign { .. })), "{name}: {refused:?}");
        let checked = run(&stage, "check", &["--connect"]).await;
        let flat = checked.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(named) && flat.contains(&role), "{name}: {}", checked.stdout);
        assert_eq!(stage.number(relations).await, before, "{name}: nothing is created");
        let superusers = "SELECT count(*) FROM pg_roles WHERE rolsuper AND rolname = \
                          'stranger_' || current_database()";
        assert_eq!(stage.number(superusers).await, 0, "{name}");
    }
}

/// A grantee's trigger on a table that is ours.
#[tokio::test]
async fn triggers_rules_and_policies_stop_a_migration_and_no_ordinary_start() {
    let (stage, role) = open_database("grantee").await;
    stage.store().await;
    execute(
        &stage,
        &format!(
            "GRANT TRIGGER ON _sqlx_migrations TO {role}; GRANT CREATE ON SCHEMA public TO {role}"
        ),
    )
    .await;
    as_role(
        &stage,
        &role,
        &format!(
            "{}; CREATE TRIGGER t BEFORE INSERT ON _sqlx_migrations FOR EACH ROW \
             EXECUTE FUNCTION promote()",
            promotion(&role)
        ),
    )
    .await;
    execute(
        &stage,
        "CREATE RULE keep AS ON DELETE TO vote_audit DO INSTEAD NOTHING; \
         CREATE POLICY look ON vote_results USING (true)",
    )
    .await;
    stage.prepare(&[]).await.expect("an ordinary start");

    pending(&stage).await;
    let refused = run(&stage, "migrate", &[]).await;
    assert_eq!(refused.code, Some(78), "{}", refused.stderr);
    for named in ["trigger t", "rule keep", "policy look", role.as_str()] {
        assert!(refused.stderr.contains(named), "{named} in {}", refused.stderr);
    }
    let checked = run(&stage, "check", &["--connect"]).await;
    assert!(checked.stdout.contains("trigger t"), "{}", checked.stdout);
}

/// Its function belongs to the role that migrates.
#[tokio::test]
async fn a_trigger_of_the_operators_stops_nothing() {
    let (stage, _) = open_database("owntrigger").await;
    let store = stage.store().await;
    execute(
        &stage,
        "CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
         CREATE TRIGGER look BEFORE INSERT ON vote_audit FOR EACH ROW EXECUTE FUNCTION look()",
    )
    .await;
    store.count(Votes::new(votes(0, 10))).await.expect("counted");
    stage.prepare(&[]).await.expect("an ordinary start");
    pending(&stage).await;
    let migrated = run(&stage, "migrate", &[]).await;
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
}

#[tokio::test]
async fn public_loses_create_before_tables_are_created_and_owners_are_looked_at_later_too() {
    let (stage, role) = open_database("public").await;
    let may = "SELECT count(*) FROM aclexplode((SELECT nspacl FROM pg_namespace \
               WHERE nspname = 'public')) AS acl WHERE grantee = 0 AND privilege_type = 'CREATE'";
    assert_eq!(stage.number(may).await, 1);
    let migrated = run(&stage, "migrate", &[]).await;
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    assert_eq!(stage.number(may).await, 0);

    // Also where nothing is pending: whoever owns a table can have code run by those who write to it.
    execute(&stage, &format!("ALTER TABLE vote_results OWNER TO {role}")).await;
    let refused = run(&stage, "migrate", &[]).await;
    assert_eq!(refused.code, Some(78), "{}", refused.stderr);
    assert!(refused.stderr.contains("table vote_results belongs to"), "{}", refused.stderr);
    // A service that does not migrate leaves that to the operator.
    stage.prepare(&[("MIGRATE_ON_START", "false")]).await.expect("an ordinary start");
}

/// The database's owner needs no superuser, and a superuser refuses what the owner made: a table runs
/// code of its owner's as whoever writes to it.
#[tokio::test]
async fn the_owner_of_the_database_migrates_and_a_superuser_leaves_its_objects_alone() {
    let (stage, owner) = open_database("owner").await;
    execute(&stage, &format!("ALTER DATABASE {} OWNER TO {owner}", stage.database)).await;
    let as_owner = |arguments: &[&str]| {
        let mut command = command(&stage, BINARY, arguments);
        command.envs([("POSTGRES_USER", owner.as_str()), ("POSTGRES_PASSWORD", "x")]);
        ended(command)
    };
    let migrated = as_owner(&["migrate"]).await;
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    assert_eq!(migrated.stdout, "migrations applied: 3\n");
    let may = "SELECT count(*) FROM aclexplode((SELECT nspacl FROM pg_namespace \
               WHERE nspname = 'public')) AS acl WHERE grantee = 0 AND privilege_type = 'CREATE'";
    assert_eq!(stage.number(may).await, 0, "PUBLIC may not create");
    pending(&stage).await;
    assert_eq!(as_owner(&["migrate"]).await.code, Some(0));
    let checked = as_owner(&["check", "--connect", "--json"]).await;
    assert!(!checked.stdout.contains("belongs to"), "{}", checked.stdout);

    // A group of the owner's.
    let member = format!("member_{}", stage.database);
    execute(&stage, &format!("CREATE ROLE {member} LOGIN PASSWORD 'x' IN ROLE {owner}")).await;
    pending(&stage).await;
    let mut as_member = command(&stage, BINARY, &["migrate"]);
    as_member.envs([("POSTGRES_USER", member.as_str()), ("POSTGRES_PASSWORD", "x")]);
    let migrated = ended(as_member).await;
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);

    let refused = run(&stage, "migrate", &[]).await;
    assert_eq!(refused.code, Some(78), "{}", refused.stderr);
    let named = format!("table vote_audit belongs to {owner}");
    assert!(refused.stderr.contains(&named), "{}", refused.stderr);
}

/// The search path begins with the schema that has the user's name.
#[tokio::test]
async fn a_schema_in_front_of_ours_is_looked_at() {
    let (stage, role) = open_database("schemas").await;
    let user = stage.servers.get("POSTGRES_USER");
    execute(&stage, &format!("CREATE SCHEMA {user} AUTHORIZATION {role}")).await;
    let refused = run(&stage, "migrate", &[]).await;
    assert_eq!(refused.code, Some(78), "{}", refused.stderr);
    let named = format!("schema {user} belongs to {role}");
    assert!(refused.stderr.contains(&named), "{}", refused.stderr);
    assert_eq!(stage.number("SELECT count(*) FROM pg_class WHERE relname = 'vote_audit'").await, 0);

    // Tables behind a schema of our own are found by their names, and not altered.
    execute(&stage, &format!("DROP SCHEMA {user}")).await;
    stage.store().await;
    execute(&stage, &format!("CREATE SCHEMA {user}")).await;
    stage.prepare(&[]).await.expect("an ordinary start");
    execute(&stage, "DELETE FROM public._sqlx_migrations WHERE version = 1").await;
    let refused = run(&stage, "migrate", &[]).await;
    assert_eq!(refused.code, Some(78), "{}", refused.stderr);
    let named = "table vote_audit is found in schema public by the search path";
    assert!(refused.stderr.contains(named), "{}", refused.stderr);
}

/// A relation that the list of names lacks would not be looked at.
#[tokio::test]
async fn every_relation_of_the_schema_is_looked_at() {
    let (stage, role) = open_database("names").await;
    stage.store().await;
    let rows = sqlx::query(
        "SELECT relname::text, relkind::text FROM pg_class \
         WHERE relnamespace = 'public'::regnamespace ORDER BY 1",
    )
    .fetch_all(&stage.sql)
    .await
    .expect("the catalogue can be read");
    for row in &rows {
        let (name, kind): (&str, &str) = (row.get(0), row.get(1));
        if kind == "r" || kind == "v" {
            // Indexes and sequences follow.
            execute(&stage, &format!("ALTER TABLE {name} OWNER TO {role}")).await;
        }
    }
    let checked = run(&stage, "check", &["--connect", "--json"]).await;
    for row in &rows {
        let name: &str = row.get(0);
        let found = format!("{name} belongs to {role}");
        assert!(checked.stdout.contains(&found), "{found} in {}", checked.stdout);
    }
}
