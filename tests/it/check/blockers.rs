//! Sessions that keep counting waiting, as the roles of `roles.sql` see them.

use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};

use super::connected;
use crate::deployment::sql_block;
use crate::support::{Servers, Stage, assert_contains, assert_lacks, eventually, login};

async fn session(stage: &Stage<'_>, role: &str) -> PgConnection {
    let options = PgConnectOptions::clone(&stage.sql.connect_options()).username(role);
    let options = options.password("least").application_name("a script");
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
    stage.execute(&create_operator).await;
    stage.execute("INSERT INTO vote_results (law_id) VALUES ('law-001')").await;
    let mut forgotten = session(&stage, &script).await;
    let update = "BEGIN; UPDATE vote_results SET updated_at = now() WHERE law_id = 'law-001'";
    sqlx::raw_sql(update).execute(&mut forgotten).await.expect("a row is locked");

    // No session waits yet.
    let found = connected(&stage, &login(&counter)).await;
    found.finds(0, &[("warning", "RowExclusiveLock on vote_results")]);

    let service = stage.start(&login(&counter)).await;
    let all = stage.publish_new(0, 50).await;
    let waits = "wait_event_type = 'Lock' AND application_name = 'vote-aggregator'";
    stage.until_sessions(waits, 1).await;

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
        assert_contains(seen, &[&script, "a script", "RowExclusiveLock on vote_results"]);
        assert_contains(seen, &["pg_terminate_backend("]);
        assert_lacks(seen, &["UPDATE"]);
    }
    let [as_counter, as_operator] = seen;
    assert_contains(&as_counter, &["GRANT pg_monitor"]);
    let for_monitors = ["idle in transaction", "127.0.0.1", "transaction open for"];
    assert_contains(&as_operator, &for_monitors);
    assert_lacks(&as_counter, &for_monitors);

    // What the finding recommends works for the operator's role.
    let (_, end) = as_operator.split_once("SELECT pg_terminate_backend(").expect("what to do");
    let pid: i32 = end.split(')').next().and_then(|pid| pid.parse().ok()).expect("a process id");
    let end = sqlx::query_scalar::<_, bool>("SELECT pg_terminate_backend($1)").bind(pid);
    let ended = end.fetch_one(&mut session(&stage, &operator).await).await;
    assert!(ended.expect("pg_signal_backend is enough"));
    stage.until_counted(all.len()).await;
    service.stop().await;
    assert_eq!(look(&counter).await, None);
}
