//! Findings about the database and the service's role in it.

use super::{check, connected};
use crate::support::{Servers, Stage, execute, login};

#[tokio::test]
async fn a_database_that_could_lose_commits_is_an_error_unless_that_is_accepted() {
    let stage = Stage::migrated(Servers::shared(), "checklossy").await;
    for setting in ["synchronous_commit = off", "log_statement = 'mod'"] {
        execute(&stage, &format!("ALTER DATABASE {} SET {setting}", stage.database)).await;
    }
    let found = [("error", "synchronous_commit=off"), ("warning", "log_statement=mod")];
    connected(&stage, &[]).await.finds(1, &found);
    let accepted = [("POSTGRES_ALLOW_LOSSY", "true")];
    connected(&stage, &accepted).await.finds(0, &[("warning", "synchronous_commit=off")]);
    check(&stage, &["--connect", "--strict", "--json"], &accepted).await.finds(1, &[]);

    execute(&stage, "ALTER TABLE vote_results SET UNLOGGED").await;
    connected(&stage, &[]).await.finds(1, &[("error", "unlogged table vote_results")]);
}

#[tokio::test]
async fn a_missing_or_other_schema_is_reported_and_left_alone() {
    let stage = Stage::new(Servers::shared(), "checkschema").await;
    let pending = ("info", "migrations [1, 2, 3] are not applied");
    connected(&stage, &[]).await.finds(0, &[pending]);
    let off = connected(&stage, &[("MIGRATE_ON_START", "false")]).await;
    off.finds(1, &[("error", "MIGRATE_ON_START is off")]);
    let tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    assert_eq!(stage.number(tables).await, 0);

    // A role that cannot apply them.
    let role = stage.role("login", "").await;
    execute(&stage, "REVOKE CREATE ON SCHEMA public FROM PUBLIC").await;
    connected(&stage, &login(&role)).await.finds(1, &[("error", "may not create")]);

    stage.store().await;
    for (change, code, severity, named) in [
        (
            "UPDATE _sqlx_migrations SET version = 99 WHERE version = 2",
            1,
            "error",
            "migration 99 is",
        ),
        (
            "UPDATE _sqlx_migrations SET version = 2 WHERE version = 99; \
             INSERT INTO _sqlx_migrations VALUES (4, 'later', now(), true, '', 0)",
            0,
            "info",
            "migrations [4]",
        ),
        ("INSERT INTO schema_compatibility VALUES (4, 4)", 1, "error", "knows migration 4"),
    ] {
        execute(&stage, change).await;
        let ended = connected(&stage, &[]).await;
        ended.finds(code, &[(severity, named)]);
        let rehearsed = ended.stdout.contains("a batch, counted and rolled back");
        assert!(rehearsed || code == 1, "{}", ended.stdout);
    }
}

#[tokio::test]
async fn a_role_with_too_few_or_too_many_rights_is_reported() {
    let stage = Stage::with_roles(Servers::shared(), "checkroles").await;
    let role = stage.role("login", "").await;
    for (change, code, severity, named) in [
        ("SELECT", 1, "error", "42501"),
        (
            "GRANT vote_service TO {role}; GRANT DELETE ON vote_audit TO {role}",
            0,
            "warning",
            "DELETE on vote_audit",
        ),
        (
            "REVOKE DELETE ON vote_audit FROM {role}; ALTER ROLE {role} CONNECTION LIMIT 9",
            0,
            "warning",
            "limit of the role: 9",
        ),
        ("ALTER ROLE {role} SET default_transaction_read_only = on", 1, "error", "25006"),
    ] {
        execute(&stage, &change.replace("{role}", &role)).await;
        let ended = connected(&stage, &login(&role)).await;
        ended.finds(code, &[(severity, named)]);
        assert!(ended.stdout.contains("roles.sql") || named != "42501", "{}", ended.stdout);
    }
    assert_eq!(connected(&stage, &[]).await.severity("a superuser"), "warning");
}

/// A start would wait for the lock as well; a check says what is in the way.
#[tokio::test]
async fn a_locked_table_is_an_error_and_not_waited_for() {
    let stage = Stage::migrated(Servers::shared(), "checklocked").await;
    let other = stage.hold("LOCK TABLE vote_audit").await;
    let found = [("error", "55P03"), ("warning", "AccessExclusiveLock on vote_audit")];
    connected(&stage, &[]).await.finds(1, &found);
    other.rollback().await.expect("unlocked");
}
