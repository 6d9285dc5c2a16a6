//! Findings about the database and the service's role in it.

use super::{RELATIONS, check, connected};
use crate::support::repository::migrations;
use crate::support::{Servers, Stage, login};

#[tokio::test]
async fn a_database_that_could_lose_commits_is_an_error_unless_that_is_accepted() {
    let stage = Stage::migrated(Servers::shared(), "checklossy").await;
    stage.set_default("synchronous_commit = off").await;
    stage.set_default("log_statement = 'mod'").await;
    let found = [("error", "synchronous_commit=off"), ("warning", "log_statement=mod")];
    connected(&stage, &[]).await.finds(1, &found);
    let accepted = [("POSTGRES_ALLOW_LOSSY", "true")];
    connected(&stage, &accepted).await.finds(0, &[("warning", "synchronous_commit=off")]);
    check(&stage, &["--connect", "--strict", "--json"], &accepted).await.finds(1, &[]);

    stage.execute("ALTER TABLE vote_results SET UNLOGGED").await;
    connected(&stage, &[]).await.finds(1, &[("error", "unlogged table vote_results")]);
}

#[tokio::test]
async fn a_missing_or_other_schema_is_reported_and_left_alone() {
    let stage = Stage::new(Servers::shared(), "checkschema").await;
    let pending = format!("migrations {:?} are not applied", migrations());
    connected(&stage, &[]).await.finds(0, &[("info", &pending)]);
    let off = connected(&stage, &[("MIGRATE_ON_START", "false")]).await;
    off.finds(1, &[("error", "MIGRATE_ON_START is off")]);
    assert_eq!(stage.number(RELATIONS).await, 0);

    // A role that cannot apply them.
    let role = stage.role("login", "").await;
    stage.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC").await;
    connected(&stage, &login(&role)).await.finds(1, &[("error", "may not create")]);

    stage.store().await;
    let gap = "UPDATE _sqlx_migrations SET version = 99 WHERE version = 2";
    let later = "UPDATE _sqlx_migrations SET version = 2 WHERE version = 99; \
                 INSERT INTO _sqlx_migrations VALUES (98, 'later', now(), true, '', 0)";
    let required = "INSERT INTO schema_compatibility VALUES (98, 98)";
    for (change, code, found) in [
        (gap, 1, ("error", "migration 99 is")),
        (later, 0, ("info", "migrations [98]")),
        (required, 1, ("error", "knows migration 98")),
    ] {
        stage.execute(change).await;
        let ended = connected(&stage, &[]).await;
        ended.finds(code, &[found]);
        let rehearsed = ended.stdout.contains("a batch, counted and rolled back");
        assert!(rehearsed || code == 1, "{}", ended.stdout);
    }
}

/// The port of the metrics would show partial results.
#[tokio::test]
async fn results_that_are_not_public_are_not_to_be_at_a_port_that_others_reach() {
    let stage = Stage::with_roles(Servers::shared(), "checkleak").await;
    let role = stage.role("login", "IN ROLE vote_service").await;
    let warned = async |settings: &[(&str, &str)]| {
        let ended = connected(&stage, &[&login(&role)[..], settings].concat()).await;
        ended.findings().iter().any(|found| found["subject"] == "monitoring.totals")
    };
    let open = ("PROMETHEUS_HOST", "0.0.0.0");
    assert!(!warned(&[open]).await, "nothing is said about a publication");
    let publish = |not_before: &str| {
        format!(
            "INSERT INTO result_publications (follows, state, not_before, reason, test) \
             SELECT max(id), 'counting', {not_before}, 'r', false FROM result_publications"
        )
    };
    stage.execute(&publish("now() + interval '1 hour'")).await;
    assert!(warned(&[open]).await);
    assert!(!warned(&[open, ("METRICS_TOTALS", "sums")]).await);
    assert!(!warned(&[("PROMETHEUS_HOST", "127.0.0.1")]).await);
    stage.execute(&publish("now()")).await;
    assert!(!warned(&[open]).await, "they are public");
}

#[tokio::test]
async fn a_role_with_too_few_or_too_many_rights_is_reported() {
    let stage = Stage::with_roles(Servers::shared(), "checkroles").await;
    let role = stage.role("login", "").await;
    let too_many = format!("GRANT vote_service TO {role}; GRANT DELETE ON vote_audit TO {role}");
    let limited =
        format!("REVOKE DELETE ON vote_audit FROM {role}; ALTER ROLE {role} CONNECTION LIMIT 9");
    let read_only = format!("ALTER ROLE {role} SET default_transaction_read_only = on");
    for (change, code, found) in [
        ("SELECT", 1, ("error", "42501")),
        (&too_many, 0, ("warning", "DELETE on vote_audit")),
        (&limited, 0, ("warning", "limit of the role: 9")),
        (&read_only, 1, ("error", "25006")),
    ] {
        stage.execute(change).await;
        let ended = connected(&stage, &login(&role)).await;
        ended.finds(code, &[found]);
        assert!(ended.stdout.contains("roles.sql") || found.1 != "42501", "{}", ended.stdout);
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
