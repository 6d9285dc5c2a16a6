//! A PostgreSQL with a synchronous standby that goes away, and a failover to it.

use futures::future::join_all;
use vote_aggregator::model::ports::{Store, Votes};

use crate::support::{BINARY, Servers, Service, Stage, ended, eventually, votes};

/// A pair of servers of which the primary waits for its standby at each COMMIT.
pub fn replicated(name: &str) -> Servers {
    let servers = Servers::private(name);
    servers.script(&["standby", "up"]);
    // On the primary alone: once it is promoted, the standby has nothing to wait for.
    let names = "ALTER SYSTEM SET synchronous_standby_names = 'standby'";
    servers.script(&["psql", "--", "-qc", names, "-c", "SELECT pg_reload_conf()"]);
    servers
}

/// Of sessions whose COMMIT waits for the standby.
const COMMIT_WAITS: &str = "wait_event = 'SyncRep'";

async fn until_a_commit_waits(stage: &Stage<'_>, what: &str) {
    eventually(what, async || stage.sessions(COMMIT_WAITS).await > 0).await;
}

const ACKED: &str = "deliveries_settled_total{outcome=\"acked\"}";

async fn until_a_loss_shows(service: &Service) {
    service.until_logged("acknowledged votes are missing from vote_audit").await;
    service.until_check("acknowledged_votes", false).await;
}

/// The alarms in `lost_votes`, with the timelines before and after.
async fn alarms(stage: &Stage<'_>) -> Vec<(String, i64, i64)> {
    let alarms = "SELECT DISTINCT alarm, timeline_before, timeline_after FROM lost_votes";
    sqlx::query_as(alarms).fetch_all(&stage.sql).await.expect("lost_votes can be read")
}

/// Semantics, section 10: the interrupted COMMIT is visible without its standby. The rerun finds
/// replays only, and must not be acknowledged before the standby has them as well.
#[tokio::test]
async fn a_rerun_is_not_acknowledged_before_the_standby_has_its_votes() {
    let servers = replicated("standby");
    let stage = Stage::migrated(&servers, "standby").await;
    let all = votes(0, 580);
    stage.publish_votes(&all[..500]).await;
    let service = stage.start(&[]).await;
    stage.until_counted(500).await;
    stage.assert_drained().await;

    servers.script(&["standby", "stop"]);
    stage.publish_votes(&all[500..]).await;
    until_a_commit_waits(&stage, "the COMMIT waits for the standby").await;
    stage.terminate(COMMIT_WAITS).await;
    stage.until_counted(580).await;
    until_a_commit_waits(&stage, "the rerun waits, after its backend was terminated").await;
    servers.script(&["restart", "postgres"]);
    until_a_commit_waits(&stage, "the rerun waits, after a restart of the primary").await;

    // The primary is lost, and with it the 80 votes that only it had.
    servers.script(&["standby", "promote"]);
    stage.until_counted(580).await;
    service.until_ready().await;
    stage.finish([service], &all).await;
}

/// The same of a publication: found made, it is not reported before the standby has it.
#[tokio::test]
async fn a_publication_is_not_reported_before_the_standby_has_it() {
    let servers = replicated("publishstandby");
    let stage = Stage::migrated(&servers, "publishstandby").await;
    servers.script(&["standby", "stop"]);
    let time = ["--not-before", "2026-11-29T20:00:00+01:00", "--reason", "r", "--yes"];
    let set = [&["publication", "set", "counting"][..], &time].concat();
    let set = tokio::spawn(ended(stage.command(BINARY, &set)));
    until_a_commit_waits(&stage, "the COMMIT waits for the standby").await;
    stage.terminate(COMMIT_WAITS).await;
    let retry = format!("{COMMIT_WAITS} AND query LIKE '%pg_logical_emit_message%'");
    stage.until_sessions(&retry, 1).await;
    assert!(!set.is_finished(), "reported before the standby has it");
    // The primary is lost, and with it the publication, which is made again.
    servers.script(&["standby", "promote"]);
    set.await.expect("no panic").assert(0, &["publication", "counting"]);
    assert_eq!(stage.number("SELECT count(*) FROM result_publications").await, 1);
}

/// A failover to a standby that lagged: what was acknowledged and is gone raises an alarm, which ends
/// once the publisher has published its votes again.
#[tokio::test]
async fn a_failover_that_loses_acknowledged_votes_is_noticed_until_they_are_there_again() {
    let servers = Servers::private("lossy");
    let stage = Stage::migrated(&servers, "lossy").await;
    servers.script(&["standby", "up"]);
    let all = votes(0, 300);
    stage.publish_votes(&all[..100]).await;
    let service = stage.start(&[]).await;
    stage.until_counted(100).await;
    // Without synchronous_standby_names nothing waits for it.
    servers.script(&["standby", "stop"]);
    stage.publish_votes(&all[100..200]).await;
    service.until_metric(ACKED, 200.0).await;
    servers.script(&["standby", "promote"]);
    assert_eq!(stage.number("SELECT count(*) FROM vote_audit").await, 100, "the loss");

    until_a_loss_shows(&service).await;
    assert!(service.metric("acknowledged_votes_lost_total").await >= Some(1.0));
    let alarms = alarms(&stage).await;
    assert!(matches!(&alarms[..], [(_, 1, 2)]), "one alarm: {alarms:?}");
    assert_eq!(service.logged(&format!("POSTGRES_ACCEPT_LOST={}", alarms[0].0)), 1);

    // Counting goes on, and so does the alarm.
    stage.publish_votes(&all[200..]).await;
    stage.until_counted(200).await;
    assert_eq!(service.get("/readyz").await.status, 503);
    stage.publish_votes(&all).await;
    stage.until_counted(300).await;
    service.until_ready().await;
    stage.finish([service], &all).await;
}

/// The COMMIT of a batch is interrupted; its rerun finds replays and is acknowledged, since no standby is
/// named any more; then the primary is lost.
#[tokio::test]
async fn a_rerun_after_an_unknown_outcome_that_is_lost_later_is_noticed() {
    let servers = replicated("rerun");
    let stage = Stage::migrated(&servers, "rerun").await;
    let all = votes(0, 100);
    stage.publish_votes(&all[..50]).await;
    let service = stage.start(&[]).await;
    service.until_metric(ACKED, 50.0).await;
    servers.script(&["standby", "stop"]);
    stage.publish_votes(&all[50..]).await;
    until_a_commit_waits(&stage, "the COMMIT waits for the standby").await;
    stage.execute("ALTER SYSTEM RESET synchronous_standby_names").await;
    let end = "SELECT pid::bigint FROM (SELECT pid FROM pg_stat_activity \
               WHERE wait_event = 'SyncRep' LIMIT 1) AS waiting WHERE pg_terminate_backend(pid)";
    let ended = stage.number(end).await;
    // A reload answers every COMMIT that waits, that of a backend which is about to end included.
    stage.until_sessions(&format!("pid = {ended}"), 0).await;
    stage.execute("SELECT pg_reload_conf()").await;
    service.until_metric(ACKED, 100.0).await;
    // On a busy machine only a part of them is in the batch whose COMMIT waits.
    assert!(service.metric("votes_replayed_total").await >= Some(1.0), "the rerun found them");

    servers.script(&["standby", "promote"]);
    until_a_loss_shows(&service).await;
    stage.publish_votes(&all[50..]).await;
    stage.until_counted(100).await;
    service.until_ready().await;
    stage.finish([service], &all).await;
}

/// Restored while the service runs, and on the connections that it has: no reconnect shows it.
#[tokio::test]
async fn an_older_backup_under_a_running_service_is_noticed_and_can_be_accepted() {
    let stage = Stage::migrated(Servers::shared(), "restored").await;
    let all = votes(0, 60);
    stage.publish_votes(&all[..30]).await;
    let services = [stage.start(&[]).await, stage.start(&[]).await];
    stage.until_counted(30).await;
    let back_up = "CREATE TABLE audit_backup AS TABLE vote_audit; \
                   CREATE TABLE results_backup AS TABLE vote_results";
    stage.execute(back_up).await;
    stage.publish_votes(&all[30..]).await;
    eventually("all are acknowledged", async || {
        let acked = services.each_ref().map(|service| service.metric(ACKED));
        let acked = join_all(acked).await.into_iter().map(Option::unwrap_or_default);
        acked.sum::<f64>() >= 60.0
    })
    .await;
    let restore = "BEGIN; DELETE FROM vote_audit; INSERT INTO vote_audit TABLE audit_backup; \
                   DELETE FROM vote_results; INSERT INTO vote_results TABLE results_backup; COMMIT";
    stage.execute(restore).await;

    // Both show it, whichever of them counted the votes.
    for service in &services {
        service.until_not_ready().await;
    }
    let alarms = alarms(&stage).await;
    assert_eq!(alarms.len(), 1, "one alarm for both: {alarms:?}");
    for service in services {
        service.stop().await;
    }
    // It outlives the instances that noticed it.
    let again = stage.spawn(&[]).await;
    until_a_loss_shows(&again).await;
    again.stop().await;
    let accept = format!("0a1b2c3d,{}", alarms[0].0);
    stage.start(&[("POSTGRES_ACCEPT_LOST", &accept)]).await.stop().await;
}

/// A rerun after an unknown outcome finds its own votes: they are remembered like any other.
#[tokio::test]
async fn a_batch_of_replays_is_remembered_by_a_vote_that_is_there() {
    let store = Stage::new(Servers::shared(), "marker").await.store().await;
    let count = async |votes| store.count(Votes::new(votes)).await.expect("counted");
    let first = count(votes(0, 10)).await;
    let rerun = count(votes(0, 10)).await;
    assert_eq!((first.added(), rerun.replays), (10, 10));
    assert_eq!(first.marker.as_deref(), Some("hash-00000000"));
    assert_eq!(rerun.marker, first.marker);
    // Of a batch that adds some, one that it added: an older row proves nothing about this commit.
    let mixed = count(votes(0, 12)).await;
    assert_eq!((mixed.added(), mixed.marker.as_deref()), (2, Some("hash-00000010")));

    let hashes = ["hash-00000003", "hash-00000011", "hash-00000099"].map(str::to_owned);
    let found = store.look_up(hashes.to_vec(), Vec::new()).await.expect("looked up");
    let found = found.expect("a primary");
    assert_eq!((found.missing, found.alarms), (vec!["hash-00000099".to_owned()], Some(Vec::new())));
    assert!(found.timeline >= 1, "{}", found.timeline);
}
