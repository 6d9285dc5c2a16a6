//! Votes that are valid but that the database refuses, and faults that only look like that.

use std::collections::BTreeSet;

use lapin::types::AMQPValue;
use vote_aggregator::model::vote::{Choice, Vote};

use crate::support::{Servers, Service, Stage, message, text, vote, votes};

/// A stage whose database refuses the votes on a law.
async fn forbidding(name: &str, law: &str) -> Stage<'static> {
    let stage = Stage::migrated(Servers::shared(), name).await;
    let check = format!("ALTER TABLE vote_audit ADD CONSTRAINT no_law CHECK (law_id <> '{law}')");
    stage.execute(&check).await;
    stage
}

#[tokio::test]
async fn a_vote_the_database_refuses_is_dead_lettered_with_its_sqlstate_and_the_rest_counted() {
    let stage = forbidding("poison", "law-x").await;
    let good = votes(0, 298);
    let poison = [vote(1_000, "law-x", Choice::Oui), vote(1_001, "law-x", Choice::Non)];
    let [first, second] = &poison;
    let (first, second) = (std::slice::from_ref(first), std::slice::from_ref(second));
    stage.publish_votes(&[&good[..17], first, &good[17..229], second, &good[229..]].concat()).await;
    let service = stage.start(&[]).await;
    stage.until_ready(&stage.dead_letter_queue(), 2).await;
    service.until_metric("aggregation_errors_total{error_type=\"unstorable\"}", 2.0).await;
    let log = stage.finish([service], &good).await;
    assert!(!log.contains("citizen-0000"), "{log}");

    let dead_letters = stage.take_dead_letters().await;
    let bodies: BTreeSet<Vec<u8>> = dead_letters.iter().map(|(body, _)| body.clone()).collect();
    assert_eq!(bodies, poison.iter().map(message).collect(), "as they were published");
    for (_, headers) in &dead_letters {
        assert_eq!(headers.get("x-sqlstate"), Some(&text("23514")));
    }
}

/// A constraint that refuses every vote of a big law is an operator's mistake, not a fault of those
/// votes: none is dead-lettered, and all are counted once it is dropped.
#[tokio::test]
async fn a_systemic_refusal_pauses_and_dead_letters_nothing() {
    let stage = forbidding("systemic", "law-001").await;
    let all = stage.publish_new(0, 300).await;
    let service = stage.spawn(&[]).await;
    service.until_logged("too many for faults of single votes").await;
    service.until_not_ready().await;
    stage.execute("ALTER TABLE vote_audit DROP CONSTRAINT no_law").await;
    until_all_are_counted(&stage, service, &all).await;
}

async fn until_all_are_counted(stage: &Stage<'_>, service: Service, all: &[Vote]) {
    stage.until_counted(all.len()).await;
    service.until_ready().await;
    stage.finish([service], all).await;
    assert_eq!(stage.ready(&stage.dead_letter_queue()).await, Some(0));
}

/// Nothing is dead-lettered for a fault of the database: the table is gone, and comes back.
#[tokio::test]
async fn a_table_that_is_missing_pauses_until_it_is_back() {
    let (stage, service) = Stage::started("renamed", &[]).await;
    stage.execute("ALTER TABLE vote_results RENAME TO vote_results_away").await;
    let all = stage.publish_new(0, 200).await;
    service.until_logged("consuming stops until a write succeeds").await;
    service.until_not_ready().await;
    assert!(service.logged("42P01") > 0, "{}", service.log());
    stage.execute("ALTER TABLE vote_results_away RENAME TO vote_results").await;
    until_all_are_counted(&stage, service, &all).await;
}

/// A dead-letter queue that takes nothing: the vote may be neither lost nor acked, the good ones
/// beside it are counted, and what is held is not requeued in a loop.
#[tokio::test]
async fn a_dead_letter_that_cannot_be_published_is_kept_and_tried_again() {
    let stage = forbidding("undeliverable", "law-x").await;
    let dead_letters = stage.dead_letter_queue();
    let full = [("x-max-length", AMQPValue::LongInt(0)), ("x-overflow", text("reject-publish"))];
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
