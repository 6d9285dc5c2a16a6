//! Passwords: changed under a running service, and one that no login can have.

use sqlx::AssertSqlSafe;

use crate::support::{Files, Servers, Stage, eventually, votes};

async fn execute(stage: &Stage<'_>, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&stage.sql).await.expect("executed");
}

/// RabbitMQ's own functions: one call, where rabbitmqctl's commands would take a second each.
fn broker(stage: &Stage<'_>, erlang: &str) {
    stage.servers.script(&["ctl", "--", "eval", erlang]);
}

/// Both passwords change on the servers and in the files, and each connection is lost: the service goes on
/// with the new ones, with the last ones when a file is gone, and as soon as files that were late are right.
#[tokio::test]
async fn both_passwords_are_rotated_under_a_running_service() {
    let stage = Stage::migrated(Servers::shared(), "rotation").await;
    let user = format!("rotated_{}", stage.database);
    execute(
        &stage,
        format!(
            "CREATE ROLE {user} LOGIN PASSWORD 'first'; \
             GRANT ALL ON ALL TABLES IN SCHEMA public TO {user}; \
             GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {user}"
        ),
    )
    .await;
    let add = format!(
        "ok = rabbit_auth_backend_internal:add_user(<<\"{user}\">>, <<\"first\">>, <<\"test\">>), \
         ok = rabbit_auth_backend_internal:set_permissions(<<\"{user}\">>, <<\"/\">>, <<\".*\">>, \
         <<\".*\">>, <<\".*\">>, <<\"test\">>)."
    );
    broker(&stage, &add);
    let files = Files::new("rotation");
    let names = ["rabbitmq_password", "postgres_password"];
    let [rabbitmq, postgres] = names.map(|name| files.write(name, "first\n"));
    let service = stage
        .start(&[
            ("RABBITMQ_USER", &user),
            ("RABBITMQ_PASSWORD", ""),
            ("RABBITMQ_PASSWORD_FILE", &rabbitmq),
            ("POSTGRES_USER", &user),
            ("POSTGRES_PASSWORD", ""),
            ("POSTGRES_PASSWORD_FILE", &postgres),
            ("MIGRATE_ON_START", "false"),
            // Not read, and for another.
            ("RABITMQ_HOST", "mq.example"),
            ("RABBITMQ_DEFAULT_USER", "of the image"),
        ])
        .await;
    assert_eq!(service.logged("RABITMQ_HOST, did you mean RABBITMQ_HOST?"), 1, "{}", service.log());
    assert_eq!(service.logged("RABBITMQ_DEFAULT_USER"), 0, "{}", service.log());
    let all = votes(0, 400);
    stage.publish_votes(&all[..100]).await;
    stage.until_counted(100).await;

    let terminate =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{user}'");
    let close =
        format!("rabbit_networking:close_all_user_connections(<<\"{user}\">>, <<\"test\">>)");
    let change = "ok = rabbit_auth_backend_internal:change_password";
    execute(&stage, format!("ALTER ROLE {user} PASSWORD 'second'")).await;
    for name in names {
        files.write(name, "second\n");
    }
    broker(&stage, &format!("{change}(<<\"{user}\">>, <<\"second\">>, <<\"test\">>), {close}."));
    execute(&stage, terminate.clone()).await;
    stage.publish_votes(&all[100..200]).await;
    stage.until_counted(200).await;
    for variable in ["RABBITMQ_PASSWORD_FILE", "POSTGRES_PASSWORD_FILE"] {
        let message = format!("{variable}: ");
        let lines = service.log();
        let changed = |line: &&str| line.contains(&message) && line.contains("another password");
        assert_eq!(lines.lines().filter(changed).count(), 1, "{lines}");
    }

    for path in [&rabbitmq, &postgres] {
        std::fs::remove_file(path).expect("removed");
    }
    broker(&stage, &format!("{close}."));
    execute(&stage, terminate.clone()).await;
    stage.publish_votes(&all[200..300]).await;
    stage.until_counted(300).await;
    eventually("each file is warned of once", async || {
        service.logged("the password that was read last stays in use") == 2
    })
    .await;
    for refused in ["28P01", "ACCESS_REFUSED"] {
        assert_eq!(service.logged(refused), 0, "no login was refused until now: {}", service.log());
    }

    // The files follow later: both sides are refused, and go on without a restart.
    execute(&stage, format!("ALTER ROLE {user} PASSWORD 'third'")).await;
    broker(&stage, &format!("{change}(<<\"{user}\">>, <<\"third\">>, <<\"test\">>), {close}."));
    execute(&stage, terminate).await;
    service.until_logged("28P01").await;
    service.until_logged("ACCESS_REFUSED").await;
    for name in names {
        files.write(name, "third");
    }
    stage.publish_votes(&all[300..]).await;
    stage.until_counted(400).await;
    service.until_ready().await;
    service.stop().await;
    stage.assert_counted_exactly(&all).await;
    broker(
        &stage,
        &format!("rabbit_auth_backend_internal:delete_user(<<\"{user}\">>, <<\"test\">>)."),
    );
    execute(&stage, format!("DROP OWNED BY {user}; DROP ROLE {user}")).await;
}

/// The driver can't log in with it, and never will: not an outage.
#[tokio::test]
async fn a_password_that_the_driver_cannot_use_ends_the_service() {
    let stage = Stage::new(Servers::shared(), "unusable").await;
    let user = format!("unusable_{}", stage.database);
    let password = "pass\u{1f5f3}word";
    execute(&stage, format!("CREATE ROLE {user} LOGIN PASSWORD '{password}'")).await;
    let login = [("POSTGRES_USER", user.as_str()), ("POSTGRES_PASSWORD", password)];
    let mut service = stage.spawn(&login).await;
    assert_eq!(service.exit_code().await, Some(78), "{}", service.log());
    let log = service.log();
    assert!(log.contains("SCRAM-SHA-256") && log.contains("POSTGRES_PASSWORD_FILE"), "{log}");
    assert!(!log.contains('\u{1f5f3}') && !log.contains("1f5f3"), "{log}");
    execute(&stage, format!("DROP ROLE {user}")).await;
}
