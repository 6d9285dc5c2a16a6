//! Objects under our names that another role made.

use vote_aggregator::adapters::store::StartError;
use vote_aggregator::model::ports::{Store, Votes};

use super::pending;
use crate::support::repository::migrations;
use crate::support::{Servers, Stage, login, votes};

/// A database as PostgreSQL created them before version 15, and a role that may log in to it.
async fn open_database(name: &str) -> (Stage<'static>, String) {
    let stage = Stage::new(Servers::shared(), name).await;
    let role = stage.role("stranger", "").await;
    stage.execute("GRANT CREATE ON SCHEMA public TO PUBLIC").await;
    (stage, role)
}

/// Becomes this role, and creates functions that run with the rights of their caller; they succeed only
/// for a superuser.
fn promotion(role: &str) -> String {
    format!(
        "SET ROLE {role}; CREATE FUNCTION promote() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN EXECUTE ''ALTER ROLE {role} SUPERUSER''; RETURN NEW; END'; \
         CREATE FUNCTION versions() RETURNS bigint LANGUAGE plpgsql VOLATILE AS \
         'BEGIN EXECUTE ''ALTER ROLE {role} SUPERUSER''; RETURN 1; END'"
    )
}

/// 1 when PUBLIC may create in the schema `public`.
const PUBLIC_MAY_CREATE: &str = "SELECT count(*) FROM aclexplode((SELECT nspacl FROM pg_namespace \
    WHERE nspname = 'public')) AS acl WHERE grantee = 0 AND privilege_type = 'CREATE'";

#[tokio::test]
async fn objects_of_another_role_are_refused_before_they_are_touched() {
    let migrations = "\
        CREATE TABLE _sqlx_migrations (version bigint PRIMARY KEY, description text NOT NULL, \
        installed_on timestamptz DEFAULT now(), success boolean NOT NULL, \
        checksum bytea NOT NULL, execution_time bigint); \
        CREATE TRIGGER t BEFORE INSERT ON _sqlx_migrations FOR EACH ROW EXECUTE FUNCTION promote()";
    let view = "CREATE VIEW _sqlx_migrations AS SELECT versions() AS version, true AS success, \
                ''::bytea AS checksum";
    let compatibility =
        "CREATE TABLE schema_compatibility (migration bigint DEFAULT versions(), requires bigint)";
    let audit = "CREATE TABLE vote_audit (vote_hash varchar(64) PRIMARY KEY, \
                 citizen_id varchar(100), law_id varchar(50), choice varchar(3), \
                 \"timestamp\" timestamptz)";
    let statistics = "CREATE VIEW vote_statistics AS SELECT 1 AS law_id";
    let round =
        "CREATE FUNCTION round(numeric, bigint) RETURNS numeric LANGUAGE sql AS 'SELECT $1'";
    for (objects, named) in [
        (migrations, "table _sqlx_migrations belongs to"),
        (view, "table _sqlx_migrations is not a table"),
        (compatibility, "table schema_compatibility belongs to"),
        (audit, "table vote_audit belongs to"),
        (statistics, "view vote_statistics belongs to"),
        ("CREATE TABLE vote_audit_pkey ()", "index vote_audit_pkey"),
        (round, "function round(numeric, bigint) belongs to"),
    ] {
        let (stage, role) = open_database("objects").await;
        stage.execute(&format!("{}; {objects}; RESET ROLE", promotion(&role))).await;
        let relations = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
        let before = stage.number(relations).await;

        stage.run("migrate", &[]).await.assert(78, &[named, &role]);
        let refused = stage.prepare(&[]).await.err();
        assert!(matches!(refused, Some(StartError::Foreign { .. })), "{named}: {refused:?}");
        let checked = stage.run("check", &["--connect"]).await;
        let flat = checked.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(named) && flat.contains(&role), "{named}: {}", checked.stdout);
        assert_eq!(stage.number(relations).await, before, "{named}: nothing is created");
        let superusers = "SELECT count(*) FROM pg_roles WHERE rolsuper AND rolname = \
                          'stranger_' || current_database()";
        assert_eq!(stage.number(superusers).await, 0, "{named}");
    }
}

/// A grantee's trigger on a table that is ours.
#[tokio::test]
async fn triggers_rules_and_policies_stop_a_migration_and_no_ordinary_start() {
    let (stage, role) = open_database("grantee").await;
    stage.store().await;
    let grants = format!(
        "GRANT TRIGGER ON _sqlx_migrations TO {role}; GRANT CREATE ON SCHEMA public TO {role}"
    );
    stage.execute(&grants).await;
    let trigger = format!(
        "{}; CREATE TRIGGER t BEFORE INSERT ON _sqlx_migrations FOR EACH ROW \
         EXECUTE FUNCTION promote(); RESET ROLE",
        promotion(&role)
    );
    stage.execute(&trigger).await;
    let rule_and_policy = "CREATE RULE keep AS ON DELETE TO vote_audit DO INSTEAD NOTHING; \
                           CREATE POLICY look ON vote_results USING (true)";
    stage.execute(rule_and_policy).await;
    stage.prepare(&[]).await.expect("an ordinary start");

    pending(&stage).await;
    let named = ["trigger t", "rule keep", "policy look", &role];
    stage.run("migrate", &[]).await.assert(78, &named);
    let checked = stage.run("check", &["--connect"]).await;
    assert!(checked.stdout.contains("trigger t"), "{}", checked.stdout);
}

/// Its function belongs to the role that migrates.
#[tokio::test]
async fn a_trigger_of_the_operators_stops_nothing() {
    let (stage, _) = open_database("owntrigger").await;
    let store = stage.store().await;
    let trigger = "CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
         CREATE TRIGGER look BEFORE INSERT ON vote_audit FOR EACH ROW EXECUTE FUNCTION look()";
    stage.execute(trigger).await;
    store.count(Votes::new(votes(0, 10))).await.expect("counted");
    stage.prepare(&[]).await.expect("an ordinary start");
    pending(&stage).await;
    stage.run("migrate", &[]).await.assert(0, &[]);
}

#[tokio::test]
async fn public_loses_create_before_tables_are_created_and_owners_are_looked_at_later_too() {
    let (stage, role) = open_database("public").await;
    assert_eq!(stage.number(PUBLIC_MAY_CREATE).await, 1);
    stage.run("migrate", &[]).await.assert(0, &[]);
    assert_eq!(stage.number(PUBLIC_MAY_CREATE).await, 0);

    // Also where nothing is pending: the owner of a table can let its writers run code.
    stage.execute(&format!("ALTER TABLE vote_results OWNER TO {role}")).await;
    stage.run("migrate", &[]).await.assert(78, &["table vote_results belongs to"]);
    // A service that does not migrate leaves that to the operator.
    stage.prepare(&[("MIGRATE_ON_START", "false")]).await.expect("an ordinary start");
}

/// The database's owner can migrate without a superuser. A superuser refuses the owner's objects: a
/// table can run its owner's code with the rights of the role that writes to it.
#[tokio::test]
async fn the_owner_of_the_database_migrates_and_a_superuser_leaves_its_objects_alone() {
    let (stage, owner) = open_database("owner").await;
    stage.execute(&format!("ALTER DATABASE {} OWNER TO {owner}", stage.database)).await;
    let login_owner = login(&owner);
    let as_owner = |arguments| stage.run_with(arguments, &login_owner);
    let applied = format!("migrations applied: {}\n", migrations().len());
    as_owner(&["migrate"]).await.assert(0, &[&applied]);
    assert_eq!(stage.number(PUBLIC_MAY_CREATE).await, 0);
    pending(&stage).await;
    as_owner(&["migrate"]).await.assert(0, &[]);
    let checked = as_owner(&["check", "--connect", "--json"]).await;
    assert!(!checked.stdout.contains("belongs to"), "{}", checked.stdout);

    // A member of the owner's role.
    let member = stage.role("member", &format!("IN ROLE {owner}")).await;
    pending(&stage).await;
    stage.run_with(&["migrate"], &login(&member)).await.assert(0, &[]);

    let named = format!("table vote_audit belongs to {owner}");
    stage.run("migrate", &[]).await.assert(78, &[&named]);
}

/// The search path begins with the schema that has the user's name.
#[tokio::test]
async fn a_schema_in_front_of_ours_is_looked_at() {
    let (stage, role) = open_database("schemas").await;
    let user = stage.servers.get("POSTGRES_USER");
    stage.execute(&format!("CREATE SCHEMA {user} AUTHORIZATION {role}")).await;
    let named = format!("schema {user} belongs to {role}");
    stage.run("migrate", &[]).await.assert(78, &[&named]);
    assert_eq!(stage.number("SELECT count(*) FROM pg_class WHERE relname = 'vote_audit'").await, 0);

    // Tables behind a schema of our own are found by their names, and not altered.
    stage.execute(&format!("DROP SCHEMA {user}")).await;
    stage.store().await;
    stage.execute(&format!("CREATE SCHEMA {user}")).await;
    stage.prepare(&[]).await.expect("an ordinary start");
    stage.execute("DELETE FROM public._sqlx_migrations WHERE version = 1").await;
    let named = "table vote_audit is found in schema public by the search path";
    stage.run("migrate", &[]).await.assert(78, &[named]);
}

/// A relation that the list of names lacks would not be looked at.
#[tokio::test]
async fn every_relation_of_the_schema_is_looked_at() {
    let (stage, role) = open_database("names").await;
    stage.store().await;
    let relations = "SELECT relname::text, relkind::text FROM pg_class \
                     WHERE relnamespace = 'public'::regnamespace ORDER BY 1";
    let relations = sqlx::query_as(relations).fetch_all(&stage.sql).await;
    let relations: Vec<(String, String)> = relations.expect("the catalogue can be read");
    // Indexes and sequences follow the tables and views.
    for (name, _) in relations.iter().filter(|(_, kind)| kind == "r" || kind == "v") {
        stage.execute(&format!("ALTER TABLE {name} OWNER TO {role}")).await;
    }
    let checked = stage.run("check", &["--connect", "--json"]).await;
    for (name, _) in &relations {
        let found = format!("{name} belongs to {role}");
        assert!(checked.stdout.contains(&found), "{found} in {}", checked.stdout);
    }
}
