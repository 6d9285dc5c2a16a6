//! Sessions that keep counting waiting, as the roles of `roles.sql` see them.

use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};

use super::connected;
use crate::deployment::sql_block;
use crate::support::{Servers, Stage, eventually, execute, login, votes};

async fn session(stage: &Stage<'_>, role: &str) -> PgConnection {
    let options = PgConnectOptions::clone(&stage.sql.connect_options())
        .username(role)
        .password("least")
        .application_name("a script");
    PgConnection::connect_with(&options).await.expect("a connection")
}

#[tokio::test]
async fn a_forgotten_transaction_is_named_to_each_role_as_far_as_it_may_see_and_can_be_ended() {
    let stage = Stage::with_roles(Servers::shared(), "blocker").await;
    let counter = stage.role("counter", "IN ROLE vote_service").await;
    let script = stage.role("script", "IN ROLE vote_service").await;
    let operator = format!("operator_{}", stage.database);
    let create_operator = sql_block("CREATE ROLE vote_operator")
        .replace("vote_operator", &operator)
        .replace("change-me", "least");
    execute(&stage, &create_operator).await;
    execute(&stage, "INSERT INTO vote_results (law_id) VALUES ('law-001')").await;
    let mut forgotten = session(&stage, &script).await;
    let update = "BEGIN; UPDATE vote_results SET updated_at = now() WHERE law_id = 'law-001'";
    sqlx::raw_sql(update).execute(&mut forgotten).await.expect("a row is locked");

    // No session waits yet.
    let found = connected(&stage, &login(&counter)).await;
    found.finds(0, &[("warning", "RowExclusiveLock on vote_results")]);

    let service = stage.start(&login(&counter)).await;
    let all = votes(0, 50);
    stage.publish_votes(&all).await;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                 AND application_name = 'vote-aggregator' AND datname = current_database()";
    stage.until_number(waits, 1).await;

    let look = async |role: &str| {
        let findings = connected(&stage, &login(role)).await.findings();
        let errors = findings.iter().filter(|finding| finding["severity"] == "error");
        errors.map(ToString::to_string).find(|finding| finding.contains("wait for it"))
    };
    let mut seen = [String::new(), String::new()];
    for (role, seen) in [&counter, &operator].into_iter().zip(&mut seen) {
        // Between two attempts of a batch nothing waits.
        eventually("it is named", async || {
            *seen = look(role).await.unwrap_or_default();
            !seen.is_empty()
        })
        .await;
        for named in [script.as_str(), "a script", "RowExclusiveLock on vote_results"] {
            assert!(seen.contains(named), "{named} in {seen}");
        }
        assert!(seen.contains("pg_terminate_backend(") && !seen.contains("UPDATE"), "{seen}");
    }
    let [as_counter, as_operator] = seen;
    assert!(as_counter.contains("GRANT pg_monitor"), "{as_counter}");
    for named in ["idle in transaction", "127.0.0.1", "transaction open for"] {
        assert!(as_operator.contains(named), "{named} in {as_operator}");
        assert!(!as_counter.contains(named), "{named} in {as_counter}");
    }

    // What the finding recommends works for the operator's role.
    let (_, end) = as_operator.split_once("SELECT pg_terminate_backend(").expect("what to do");
    let pid: i32 = end.split(')').next().and_then(|pid| pid.parse().ok()).expect("a process id");
    let ended: bool = sqlx::query_scalar("SELECT pg_terminate_backend($1)")
        .bind(pid)
        .fetch_one(&mut session(&stage, &operator).await)
        .await
        .expect("pg_signal_backend is enough");
    assert!(ended);
    stage.until_counted(all.len()).await;
    service.stop().await;
    assert_eq!(look(&counter).await, None);
}
