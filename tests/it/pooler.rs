//! Counting through a transaction pooler, with the shipped settings.

use sqlx::{Connection, PgConnection};

use crate::support::{Pooler, Servers, Stage, login};

const LIMITS: &str = include_str!("../../deploy/pgbouncer/limits.sql");

#[tokio::test]
async fn votes_are_counted_exactly_through_a_transaction_pooler_that_is_killed_meanwhile() {
    let stage = Stage::migrated(Servers::shared(), "pooled").await;
    let role = stage.role("pooled", "").await;
    stage.execute(&format!("GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")).await;
    stage.execute(&LIMITS.replace(":\"role\"", &role)).await;
    let mut pooler = Pooler::with(&stage, Some(&role), "").await;
    let all = stage.publish_new(0, 30_000).await;
    let port = [("POSTGRES_PORT", pooler.port.as_str()), ("MIGRATE_ON_START", "false")];
    // A connection waits for one of the pooler's: more batches than it has.
    let service = stage
        .start(&[&port[..], &login(&role), &[("RABBITMQ_PREFETCH_COUNT", "1000")]].concat())
        .await;
    for counted in [5_000, 15_000] {
        stage.until_counted(counted).await;
        pooler.restart().await;
    }
    let place = format!("postgres://{role}:least@127.0.0.1:{}/{}", pooler.port, stage.database);
    let mut through = PgConnection::connect(&place).await.expect("the pooler takes connections");
    let limit = sqlx::query_scalar::<_, String>("SELECT current_setting('lock_timeout')");
    assert_eq!(limit.fetch_one(&mut through).await.expect("a limit"), "3s");
    stage.finish([service], &all).await;
}
