//! Who keeps counting waiting, as the roles of `roles.sql` see it.

use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};

use super::{as_role, check, grant, login};
use crate::deployment::sql_block;
use crate::support::{Servers, Stage, eventually, execute, votes};

/// A forgotten `BEGIN` in a psql of somebody else's.
async fn forgotten(stage: &Stage<'_>, role: &str) -> PgConnection {
    let options = PgConnectOptions::clone(&stage.sql.connect_options())
        .username(role)
        .password("least-of-all")
        .application_name("a script");
    let mut session = PgConnection::connect_with(&options).await.expect("a connection");
    let update = "BEGIN; UPDATE vote_results SET updated_at = now() WHERE law_id = 'law-001'";
    sqlx::raw_sql(update).execute(&mut session).await.expect("a row is locked");
    session
}

#[tokio::test]
async fn a_forgotten_transaction_is_named_to_each_role_as_far_as_it_may_see_and_can_be_ended() {
    let stage = Stage::migrated(Servers::shared(), "blocker").await;
    grant(&stage);
    let counter = login(&stage).await;
    let [script, operator] =
        ["script", "operator"].map(|name| format!("{name}_{}", stage.database));
    let create_operator = sql_block("CREATE ROLE vote_operator")
        .replace("vote_operator", &operator)
        .replace("change-me", "least-of-all");
    execute(
        &stage,
        &format!(
            "GRANT vote_service TO {counter}; \
             CREATE ROLE {script} LOGIN PASSWORD 'least-of-all' IN ROLE vote_service; \
             {create_operator} \
             INSERT INTO vote_results (law_id) VALUES ('law-001')"
        ),
    )
    .await;
    let session = forgotten(&stage, &script).await;
    let connect = ["--connect", "--json"];

    // Nobody waits yet.
    let ended = check(&stage, &connect, &as_role(&counter)).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stdout);
    assert_eq!(ended.severity("RowExclusiveLock on vote_results"), "warning");

    let service = stage.start(&as_role(&counter)).await;
    let all = votes(0, 50);
    stage.publish_votes(&all).await;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                 AND application_name = 'vote-aggregator' AND datname = current_database()";
    eventually("the service waits", async || stage.number(waits).await == 1).await;

    let look = async |role: &str| {
        let ended = check(&stage, &connect, &as_role(role)).await;
        let found = ended.findings().into_iter().find(|finding| {
            finding["severity"] == "error"
                && finding["meaning"]
                    .as_str()
                    .is_some_and(|meaning| meaning.contains("wait for it"))
        });
        found.map(|finding| finding.to_string())
    };
    let mut seen = [String::new(), String::new()];
    for (role, seen) in [counter.as_str(), operator.as_str()].into_iter().zip(&mut seen) {
        // Between two tries of a batch nobody waits.
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

    // As the finding says, by the role that it names.
    let (_, end) = as_operator.split_once("SELECT pg_terminate_backend(").expect("what to do");
    let pid: i32 = end.split(')').next().and_then(|pid| pid.parse().ok()).expect("a process id");
    let options = PgConnectOptions::clone(&stage.sql.connect_options())
        .username(&operator)
        .password("least-of-all");
    let mut operator = PgConnection::connect_with(&options).await.expect("a connection");
    let ended: bool = sqlx::query_scalar("SELECT pg_terminate_backend($1)")
        .bind(pid)
        .fetch_one(&mut operator)
        .await
        .expect("pg_signal_backend is enough");
    assert!(ended);
    stage.until_counted(all.len()).await;
    service.stop().await;
    drop(session);
    assert_eq!(look(&counter).await, None);
}
