//! Batches that are inserted without ON CONFLICT, on real servers.

use vote_aggregator::adapters::store::PgStore;
use vote_aggregator::model::ports::{Class, Counted, Fault, Insert, Store, Votes};
use vote_aggregator::model::vote::{Choice, Vote};

use crate::support::{Service, Stage, settings, vote, votes};

const COMMITTED: &str = "plain_inserts_total{outcome=\"committed\"}";
const CONFLICT: &str = "plain_inserts_total{outcome=\"conflict\"}";

async fn count(store: &PgStore, votes: &[Vote], insert: Insert) -> Result<Counted, Fault> {
    store.count(Votes::new(votes.to_vec()).inserted(insert)).await
}

/// Asserts how many votes of a batch were added, were replays, and were attempts.
fn assert_counted(counted: Result<Counted, Fault>, expected: (u64, u64, u64)) -> Counted {
    let counted = counted.expect("counted");
    assert_eq!((counted.added(), counted.replays, counted.attempts), expected);
    counted
}

#[tokio::test]
async fn a_plain_insert_counts_what_is_new_and_refuses_a_batch_with_a_known_vote_as_a_whole() {
    let (stage, store) = Stage::with_store("plain").await;
    let batch = votes(0, 100);
    let counted = assert_counted(count(&store, &batch, Insert::Plain).await, (100, 0, 0));
    assert!(counted.marker.is_some());

    let overlapping = votes(99, 50);
    let fault = count(&store, &overlapping, Insert::Plain).await.expect_err("one is known");
    assert_eq!(fault.class, Class::KnownHash);
    stage.assert_counted_exactly(&batch).await;
    assert_counted(count(&store, &overlapping, Insert::OnConflict).await, (49, 1, 0));
    stage.assert_counted_exactly(&votes(0, 149)).await;
}

#[tokio::test]
async fn repeats_within_a_batch_are_weighed_and_what_differs_is_recorded() {
    let (stage, store) = Stage::with_store("plain_repeats").await;
    let [first, second] = [1, 2].map(|number| vote(number, "law-a", Choice::Oui));
    let repeated = [first.clone(), first.clone(), second.clone()];
    assert_counted(count(&store, &repeated, Insert::Plain).await, (2, 1, 0));

    let third = vote(3, "law-a", Choice::Oui);
    let differing = Vote { choice: Choice::Non, ..third.clone() };
    let batch = [third.clone(), differing];
    assert_counted(count(&store, &batch, Insert::Plain).await, (1, 0, 1));
    stage.assert_counted_exactly(&[first, second, third]).await;
}

#[tokio::test]
async fn a_row_that_a_trigger_keeps_out_of_the_audit_is_not_reported_as_counted() {
    let (stage, store) = Stage::with_store("plain_trigger").await;
    let trigger = "CREATE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN IF new.law_id = 'law-kept-out' THEN RETURN NULL; END IF; RETURN new; END $$;
         CREATE TRIGGER keep_out BEFORE INSERT ON vote_audit
         FOR EACH ROW EXECUTE FUNCTION keep_out()";
    stage.execute(trigger).await;
    let batch = [vote(1, "law-a", Choice::Oui), vote(2, "law-kept-out", Choice::Oui)];
    for insert in [Insert::Plain, Insert::OnConflict] {
        let fault = count(&store, &batch, insert).await.expect_err("one row is missing");
        assert_eq!(fault.class, Class::Retry, "{fault}");
    }
    stage.assert_counted_exactly(&batch[..1]).await;
}

/// A service that has counted 100 batches of 10 new votes.
async fn behind_clean_batches(name: &str) -> (Stage<'static>, Service) {
    let small = settings("BATCH_SIZE=10 RABBITMQ_PREFETCH_COUNT=10");
    let (stage, service) = Stage::started(name, &small).await;
    stage.count(0, 1_000).await;
    (stage, service)
}

#[tokio::test]
async fn a_service_inserts_clean_batches_plainly_and_stops_at_a_repeated_vote() {
    let (stage, service) = behind_clean_batches("plain_service").await;
    let plainly = service.metric(COMMITTED).await;
    assert!(plainly >= Some(20.0), "the batches behind the first 64: {plainly:?}");
    assert_eq!(service.metric(CONFLICT).await, Some(0.0));

    stage.publish_new(0, 10).await;
    service.until_metric("votes_replayed_total", 10.0).await;
    assert_eq!(service.metric(CONFLICT).await, Some(1.0));
    stage.count(1_000, 100).await;
    assert_eq!(service.metric(COMMITTED).await, plainly, "none so soon behind a repeated vote");
    service.stop().await;
    stage.assert_counted_exactly(&votes(0, 1_100)).await;
}

/// Without its key the audit would take a vote twice, and totals and audit would still agree.
#[tokio::test]
async fn an_audit_that_lost_its_key_stops_counting_also_behind_clean_batches() {
    let (stage, service) = behind_clean_batches("plain_keyless").await;
    assert!(service.metric(COMMITTED).await > Some(0.0));
    stage.execute("ALTER TABLE vote_audit DROP CONSTRAINT vote_audit_pkey CASCADE").await;
    stage.publish_new(1_000, 1_000).await;
    service.until_logged("42P10").await;
    service.stop().await;
}
