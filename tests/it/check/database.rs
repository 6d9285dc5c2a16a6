//! What `check` finds out about the database and our role in it.

use super::{as_role, check, grant, login};
use crate::support::{Servers, Stage, execute};

#[tokio::test]
async fn a_database_that_could_lose_commits_is_an_error_unless_that_is_accepted() {
    let stage = Stage::migrated(Servers::shared(), "checklossy").await;
    let database = &stage.database;
    execute(
        &stage,
        &format!(
            "ALTER DATABASE {database} SET synchronous_commit = off; \
             ALTER DATABASE {database} SET log_statement = 'mod'"
        ),
    )
    .await;
    let ended = check(&stage, &["--connect", "--json"], &[]).await;
    assert_eq!((ended.code, ended.severity("synchronous_commit=off").as_str()), (Some(1), "error"));
    assert_eq!(ended.severity("log_statement=mod"), "warning");
    let accepted = [("POSTGRES_ALLOW_LOSSY", "true")];
    let ended = check(&stage, &["--connect", "--json"], &accepted).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stdout);
    assert_eq!(ended.severity("synchronous_commit=off"), "warning");
    let ended = check(&stage, &["--connect", "--strict", "--json"], &accepted).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stdout);
}

#[tokio::test]
async fn a_schema_that_is_not_there_or_another_is_told_and_left_alone() {
    let stage = Stage::new(Servers::shared(), "checkschema").await;
    let ended = check(&stage, &["--connect", "--json"], &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stdout);
    assert_eq!(ended.severity("migrations [1, 2, 3] are not applied"), "info");
    let ended = check(&stage, &["--connect", "--json"], &[("MIGRATE_ON_START", "false")]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stdout);
    assert_eq!(ended.severity("MIGRATE_ON_START is off"), "error");
    let tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    assert_eq!(stage.number(tables).await, 0);

    // A role that can't apply them.
    let role = login(&stage).await;
    execute(&stage, "REVOKE CREATE ON SCHEMA public FROM PUBLIC").await;
    let ended = check(&stage, &["--connect", "--json"], &as_role(&role)).await;
    assert_eq!((ended.code, ended.severity("may not create").as_str()), (Some(1), "error"));

    stage.store().await;
    execute(&stage, "UPDATE _sqlx_migrations SET version = 99 WHERE version = 2").await;
    let ended = check(&stage, &["--connect", "--json"], &[]).await;
    assert_eq!((ended.code, ended.severity("migration 99 is").as_str()), (Some(1), "error"));

    // A later release was here.
    execute(
        &stage,
        "UPDATE _sqlx_migrations SET version = 2 WHERE version = 99; \
         INSERT INTO _sqlx_migrations VALUES (4, 'later', now(), true, '', 0)",
    )
    .await;
    let ended = check(&stage, &["--connect", "--json"], &[]).await;
    assert_eq!((ended.code, ended.severity("migrations [4]").as_str()), (Some(0), "info"));
    assert!(ended.stdout.contains("a batch, counted and rolled back"), "{}", ended.stdout);
    execute(&stage, "INSERT INTO schema_compatibility VALUES (4, 4)").await;
    let ended = check(&stage, &["--connect", "--json"], &[]).await;
    assert_eq!((ended.code, ended.severity("knows migration 4").as_str()), (Some(1), "error"));
}

#[tokio::test]
async fn a_table_that_a_crash_empties_is_an_error() {
    let stage = Stage::migrated(Servers::shared(), "checkunlogged").await;
    execute(&stage, "ALTER TABLE vote_results SET UNLOGGED").await;
    let ended = check(&stage, &["--connect", "--json"], &[]).await;
    let severity = ended.severity("unlogged table vote_results");
    assert_eq!((ended.code, severity.as_str()), (Some(1), "error"));
}

#[tokio::test]
async fn a_role_that_may_do_too_little_or_too_much_is_told() {
    let stage = Stage::migrated(Servers::shared(), "checkroles").await;
    grant(&stage);
    let role = login(&stage).await;
    let connect = ["--connect", "--json"];
    let ended = check(&stage, &connect, &as_role(&role)).await;
    assert_eq!((ended.code, ended.severity("42501").as_str()), (Some(1), "error"));
    assert!(ended.stdout.contains("roles.sql"), "{}", ended.stdout);

    execute(&stage, &format!("GRANT vote_service TO {role}; GRANT DELETE ON vote_audit TO {role}"))
        .await;
    let ended = check(&stage, &connect, &as_role(&role)).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stdout);
    assert_eq!(ended.severity("DELETE on vote_audit"), "warning");
    assert_eq!(check(&stage, &connect, &[]).await.severity("a superuser"), "warning");

    execute(
        &stage,
        &format!("REVOKE DELETE ON vote_audit FROM {role}; ALTER ROLE {role} CONNECTION LIMIT 9"),
    )
    .await;
    let ended = check(&stage, &connect, &as_role(&role)).await;
    assert_eq!(ended.severity("limit of the role: 9"), "warning");
    let read_only = format!("ALTER ROLE {role} SET default_transaction_read_only = on");
    execute(&stage, &read_only).await;
    let ended = check(&stage, &connect, &as_role(&role)).await;
    assert_eq!((ended.code, ended.severity("25006").as_str()), (Some(1), "error"));
}

/// A start would wait for the lock as well; a check says what is in the way.
#[tokio::test]
async fn a_table_that_somebody_has_locked_is_an_error_and_not_waited_for() {
    let stage = Stage::migrated(Servers::shared(), "checklocked").await;
    let mut other = stage.sql.begin().await.expect("a transaction");
    sqlx::raw_sql("LOCK TABLE vote_audit").execute(&mut *other).await.expect("locked");
    let ended = check(&stage, &["--connect", "--json"], &[]).await;
    assert_eq!((ended.code, ended.severity("55P03").as_str()), (Some(1), "error"));
    assert_eq!(ended.severity("AccessExclusiveLock on vote_audit"), "warning");
    other.rollback().await.expect("unlocked");
}
