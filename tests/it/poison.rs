//! Votes that are valid but that the database refuses, and faults that only look like that.

use std::collections::BTreeSet;

use lapin::types::AMQPValue;
use vote_aggregator::model::vote::{Choice, Vote};

use crate::support::{Servers, Stage, eventually, message, vote, votes};

async fn forbid(stage: &Stage<'_>, check: &'static str) {
    sqlx::raw_sql(check).execute(&stage.sql).await.expect("a constraint");
}

const FORBID_LAW_X: &str =
    "ALTER TABLE vote_audit ADD CONSTRAINT no_law_x CHECK (law_id <> 'law-x')";

#[tokio::test]
async fn a_vote_the_database_refuses_is_dead_lettered_with_its_sqlstate_and_the_rest_counted() {
    let stage = Stage::migrated(Servers::shared(), "poison").await;
    forbid(&stage, FORBID_LAW_X).await;
    let good = votes(0, 298);
    let poison = [vote(1_000, "law-x", Choice::Oui), vote(1_001, "law-x", Choice::Non)];
    let mut mixed: Vec<Vote> = good.clone();
    mixed.insert(17, poison[0].clone());
    mixed.insert(230, poison[1].clone());
    stage.publish_votes(&mixed).await;
    let service = stage.start(&[]).await;
    stage.until_counted(good.len()).await;
    eventually("both are dead-lettered", async || {
        stage.ready(&stage.dead_letter_queue()).await == Some(2)
    })
    .await;
    assert_eq!(
        service.metric("aggregation_errors_total{error_type=\"unstorable\"}").await,
        Some(2.0)
    );
    let log = service.stop().await;
    assert!(!log.contains("citizen-0000"), "{log}");
    stage.assert_counted_exactly(&good).await;
    stage.assert_drained().await;

    let letters = stage.take_dead_letters().await;
    let bodies: BTreeSet<Vec<u8>> = letters.iter().map(|(body, _)| body.clone()).collect();
    assert_eq!(bodies, poison.iter().map(message).collect(), "as they were published");
    for (_, headers) in &letters {
        assert_eq!(headers.get("x-sqlstate"), Some(&AMQPValue::LongString("23514".into())));
    }
}

/// A constraint that refuses every vote of a big law is somebody's mistake, not a fault of those
/// votes: none is dead-lettered, and all are counted once it is mended.
#[tokio::test]
async fn a_systemic_refusal_pauses_and_dead_letters_nothing() {
    let stage = Stage::migrated(Servers::shared(), "systemic").await;
    forbid(&stage, "ALTER TABLE vote_audit ADD CONSTRAINT oops CHECK (law_id <> 'law-001')").await;
    let all = votes(0, 300);
    stage.publish_votes(&all).await;
    let service = stage.spawn(&[]).await;
    service.until_logged("too many for faults of single votes").await;
    service.until_not_ready().await;
    assert_eq!(stage.ready(&stage.dead_letter_queue()).await, Some(0));
    sqlx::raw_sql("ALTER TABLE vote_audit DROP CONSTRAINT oops")
        .execute(&stage.sql)
        .await
        .expect("mended");
    stage.until_counted(all.len()).await;
    service.until_ready().await;
    service.stop().await;
    stage.assert_counted_exactly(&all).await;
    stage.assert_drained().await;
    assert_eq!(stage.ready(&stage.dead_letter_queue()).await, Some(0));
}

/// Nothing is dead-lettered for a fault of the database: the table is gone, and comes back.
#[tokio::test]
async fn a_table_that_is_missing_pauses_until_it_is_back() {
    let stage = Stage::migrated(Servers::shared(), "renamed").await;
    let service = stage.start(&[]).await;
    sqlx::raw_sql("ALTER TABLE vote_results RENAME TO vote_results_away")
        .execute(&stage.sql)
        .await
        .expect("renamed");
    let all = votes(0, 200);
    stage.publish_votes(&all).await;
    service.until_logged("consuming stops until a write succeeds").await;
    service.until_not_ready().await;
    assert!(service.logged("42P01") > 0, "{}", service.log());
    sqlx::raw_sql("ALTER TABLE vote_results_away RENAME TO vote_results")
        .execute(&stage.sql)
        .await
        .expect("back");
    stage.until_counted(all.len()).await;
    service.until_ready().await;
    service.stop().await;
    stage.assert_counted_exactly(&all).await;
    stage.assert_drained().await;
    assert_eq!(stage.ready(&stage.dead_letter_queue()).await, Some(0));
}

/// A dead-letter queue that takes nothing: the vote may be neither lost nor acked, the good ones
/// beside it are counted, and what is held does not go round in circles.
#[tokio::test]
async fn a_dead_letter_that_cannot_be_published_is_kept_and_tried_again() {
    let stage = Stage::migrated(Servers::shared(), "undeliverable").await;
    forbid(&stage, FORBID_LAW_X).await;
    stage
        .declare_queue(
            &stage.dead_letter_queue(),
            true,
            &[
                ("x-max-length", AMQPValue::LongInt(0)),
                ("x-overflow", AMQPValue::LongString("reject-publish".into())),
            ],
        )
        .await;
    let good = votes(0, 60);
    let mut mixed = good.clone();
    mixed.insert(30, vote(1_000, "law-x", Choice::Oui));
    stage.publish_votes(&mixed).await;
    let service = stage.spawn(&[]).await;
    service.until_logged("cannot be dead-lettered").await;
    stage.until_counted(good.len()).await;
    service.until_not_ready().await;
    assert_eq!(stage.ready(&stage.queue).await, Some(61), "given back, not lost");
    assert_eq!(service.logged("cannot be dead-lettered"), 1, "no storm");
    stage.delete(&stage.dead_letter_queue()).await;
    // The service creates it anew; the longest wait before it tries is what this takes.
    eventually("dead-lettered at last", async || {
        stage.ready(&stage.dead_letter_queue()).await == Some(1)
    })
    .await;
    service.until_ready().await;
    service.stop().await;
    stage.assert_counted_exactly(&good).await;
    stage.assert_drained().await;
}
