//! Passwords that change under a running service, and one that no login can have.

use std::fs;

use crate::support::{Files, Servers, Stage, assert_lacks, eventually, settings, votes};

const FILES: [&str; 2] = ["rabbitmq_password", "postgres_password"];

/// Both passwords change on the servers and in the files, and each connection is lost: the service goes on
/// with the new ones, with the last ones when a file is gone, and as soon as files that were late are right.
#[tokio::test]
async fn both_passwords_are_rotated_under_a_running_service() {
    let stage = Stage::migrated(Servers::shared(), "rotation").await;
    let user = format!("rotated_{}", stage.database);
    // RabbitMQ's own functions: one call, where rabbitmqctl's commands would take a second each.
    let broker = |erlang: &str| {
        let erlang = erlang.replace("USER", &format!("<<\"{user}\">>"));
        stage.servers.ctl(&["eval", &erlang]);
    };
    let close = "rabbit_networking:close_all_user_connections(USER, <<\"test\">>).";
    let change = |password: &str| {
        let change = "rabbit_auth_backend_internal:change_password";
        broker(&format!("ok = {change}(USER, <<\"{password}\">>, <<\"test\">>), {close}"));
    };
    let sql = async |sql: &str| stage.execute(&sql.replace("USER", &user)).await;
    let its_sessions = &format!("usename = '{user}'");

    sql("CREATE ROLE USER LOGIN PASSWORD 'first'").await;
    sql("GRANT ALL ON ALL TABLES IN SCHEMA public TO USER").await;
    sql("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO USER").await;
    broker(
        "ok = rabbit_auth_backend_internal:add_user(USER, <<\"first\">>, <<\"test\">>), \
         ok = rabbit_auth_backend_internal:set_permissions(USER, <<\"/\">>, <<\".*\">>, <<\".*\">>, \
         <<\".*\">>, <<\"test\">>).",
    );
    let files = Files::new("rotation");
    let [rabbitmq, postgres] = FILES.map(|name| files.write(name, "first\n"));
    // Besides, a misspelt variable, and one of the broker's image.
    let users = format!(
        "RABBITMQ_USER={user} RABBITMQ_PASSWORD= POSTGRES_USER={user} POSTGRES_PASSWORD= \
         MIGRATE_ON_START=false RABITMQ_HOST=mq.example RABBITMQ_DEFAULT_USER=of-the-image"
    );
    let of_files = [("RABBITMQ_PASSWORD_FILE", &*rabbitmq), ("POSTGRES_PASSWORD_FILE", &postgres)];
    let service = stage.start(&[&settings(&users)[..], &of_files].concat()).await;
    assert_eq!(service.logged("RABITMQ_HOST, did you mean RABBITMQ_HOST?"), 1, "{}", service.log());
    assert_eq!(service.logged("RABBITMQ_DEFAULT_USER"), 0, "{}", service.log());
    let all = votes(0, 400);
    let count = async |from: usize| {
        stage.publish_votes(&all[from..from + 100]).await;
        stage.until_counted(from + 100).await;
    };
    count(0).await;

    sql("ALTER ROLE USER PASSWORD 'second'").await;
    for name in FILES {
        files.write(name, "second\n");
    }
    change("second");
    stage.terminate(its_sessions).await;
    count(100).await;
    for variable in ["RABBITMQ_PASSWORD_FILE", "POSTGRES_PASSWORD_FILE"] {
        let message = format!("{variable}: ");
        let log = service.log();
        let changed = |line: &&str| line.contains(&message) && line.contains("another password");
        assert_eq!(log.lines().filter(changed).count(), 1, "{log}");
    }

    for path in [&rabbitmq, &postgres] {
        fs::remove_file(path).expect("removed");
    }
    broker(close);
    stage.terminate(its_sessions).await;
    count(200).await;
    let unread = "the password that was read last stays in use";
    eventually("each file is warned of once", async || service.logged(unread) == 2).await;
    // No login was refused until now.
    assert_lacks(&service.log(), &["28P01", "ACCESS_REFUSED"]);

    // The files follow later: both sides are refused, and go on without a restart.
    sql("ALTER ROLE USER PASSWORD 'third'").await;
    change("third");
    stage.terminate(its_sessions).await;
    service.until_logged("28P01").await;
    service.until_logged("ACCESS_REFUSED").await;
    for name in FILES {
        files.write(name, "third");
    }
    count(300).await;
    service.until_ready().await;
    stage.finish([service], &all).await;
    broker("rabbit_auth_backend_internal:delete_user(USER, <<\"test\">>).");
    sql("DROP OWNED BY USER; DROP ROLE USER").await;
}

/// The driver can never log in with it: not an outage.
#[tokio::test]
async fn a_password_that_the_driver_cannot_use_ends_the_service() {
    let stage = Stage::new(Servers::shared(), "unusable").await;
    let password = "pass\u{1f5f3}word";
    let user = format!("unusable_{}", stage.database);
    stage.execute(&format!("CREATE ROLE {user} LOGIN PASSWORD '{password}'")).await;
    let login = [("POSTGRES_USER", user.as_str()), ("POSTGRES_PASSWORD", password)];
    let named = ["SCRAM-SHA-256", "POSTGRES_PASSWORD_FILE"];
    let log = stage.spawn(&login).await.assert_ends(78, &named).await;
    assert_lacks(&log, &["\u{1f5f3}", "1f5f3"]);
    stage.execute(&format!("DROP ROLE {user}")).await;
}
