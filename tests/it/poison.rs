//! Votes that are valid but that the database refuses, and faults that only look like that.

use std::collections::BTreeSet;

use lapin::types::AMQPValue;
use vote_aggregator::model::vote::{Choice, Vote};

use crate::support::{Servers, Stage, execute, message, vote, votes};

/// A stage whose database refuses the votes on a law.
async fn forbidding(name: &str, law: &str) -> Stage<'static> {
    let stage = Stage::migrated(Servers::shared(), name).await;
    let check = format!("ALTER TABLE vote_audit ADD CONSTRAINT no_law CHECK (law_id <> '{law}')");
    execute(&stage, &check).await;
    stage
}

#[tokio::test]
async fn a_vote_the_database_refuses_is_dead_lettered_with_its_sqlstate_and_the_rest_counted() {
    let stage = forbidding("poison", "law-x").await;
    let good = votes(0, 298);
    let poison = [vote(1_000, "law-x", Choice::Oui), vote(1_001, "law-x", Choice::Non)];
    let mut mixed: Vec<Vote> = good.clone();
    mixed.insert(17, poison[0].clone());
    mixed.insert(230, poison[1].clone());
    stage.publish_votes(&mixed).await;
    let service = stage.start(&[]).await;
    stage.until_ready(&stage.dead_letter_queue(), 2).await;
    service.until_metric("aggregation_errors_total{error_type=\"unstorable\"}", 2.0).await;
    let log = stage.finish([service], &good).await;
    assert!(!log.contains("citizen-0000"), "{log}");

    let dead_letters = stage.take_dead_letters().await;
    let bodies: BTreeSet<Vec<u8>> = dead_letters.iter().map(|(body, _)| body.clone()).collect();
    assert_eq!(bodies, poison.iter().map(message).collect(), "as they were published");
    for (_, headers) in &dead_letters {
        assert_eq!(headers.get("x-sqlstate"), Some(&AMQPValue::LongString("23514".into())));
    }
}

/// A constraint that refuses every vote of a big law is an operator's mistake, not a fault of those
/// votes: none is dead-lettered, and all are counted once it is dropped.
#[tokio::test]
async fn a_systemic_refusal_pauses_and_dead_letters_nothing() {
    let stage = forbidding("systemic", "law-001").await;
    let all = votes(0, 300);
    stage.publish_votes(&all).await;
    let service = stage.spawn(&[]).await;
    service.until_logged("too many for faults of single votes").await;
    service.until_not_ready().await;
    execute(&stage, "ALTER TABLE vote_audit DROP CONSTRAINT no_law").await;
    stage.until_counted(all.len()).await;
    service.until_ready().await;
    stage.finish([service], &all).await;
    assert_eq!(stage.ready(&stage.dead_letter_queue()).await, Some(0));
}

/// Nothing is dead-lettered for a fault of the database: the table is gone, and comes back.
#[tokio::test]
async fn a_table_that_is_missing_pauses_until_it_is_back() {
    let stage = Stage::migrated(Servers::shared(), "renamed").await;
    let service = stage.start(&[]).await;
    execute(&stage, "ALTER TABLE vote_results RENAME TO vote_results_away").await;
    let all = votes(0, 200);
    stage.publish_votes(&all).await;
    service.until_logged("consuming stops until a write succeeds").await;
    service.until_not_ready().await;
    assert!(service.logged("42P01") > 0, "{}", service.log());
    execute(&stage, "ALTER TABLE vote_results_away RENAME TO vote_results").await;
    stage.until_counted(all.len()).await;
    service.until_ready().await;
    stage.finish([service], &all).await;
    assert_eq!(stage.ready(&stage.dead_letter_queue()).await, Some(0));
}

/// A dead-letter queue that takes nothing: the vote may be neither lost nor acked, the good ones
/// beside it are counted, and what is held is not requeued in a loop.
#[tokio::test]
async fn a_dead_letter_that_cannot_be_published_is_kept_and_tried_again() {
    let stage = forbidding("undeliverable", "law-x").await;
    let dead_letters = stage.dead_letter_queue();
    let full = [
        ("x-max-length", AMQPValue::LongInt(0)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ];
    stage.declare_queue(&dead_letters, true, &full).await;
    let good = votes(0, 60);
    let mut mixed = good.clone();
    mixed.insert(30, vote(1_000, "law-x", Choice::Oui));
    stage.publish_votes(&mixed).await;
    let service = stage.spawn(&[]).await;
    service.until_logged("cannot be dead-lettered").await;
    stage.until_counted(good.len()).await;
    service.until_not_ready().await;
    assert_eq!(stage.ready(&stage.queue).await, Some(61), "requeued, not lost");
    assert_eq!(service.logged("cannot be dead-lettered"), 1, "not again and again");
    stage.delete(&dead_letters).await;
    // The service creates it anew; it tries again after the longest wait.
    stage.until_ready(&dead_letters, 1).await;
    service.until_ready().await;
    stage.finish([service], &good).await;
}
