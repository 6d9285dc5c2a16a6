//! The totals, compared with the audit while the service runs.

use std::time::Duration;

use futures::future::join_all;
use vote_aggregator::adapters::store::{PgStore, Reconciled, options};

use crate::support::{
    Pooler, Servers, Service, Stage, assert_contains, assert_lacks, eventually, login, settings,
    votes,
};

/// Often enough for a test; the pause of 20 times a short comparison comes on top.
const OFTEN: (&str, &str) = ("RECONCILE_INTERVAL_SECONDS", "0.1");
const HOUR: Duration = Duration::from_secs(3_600);

async fn until_drift(service: &Service, votes: f64, laws: f64) {
    service.until_metric("results_drift_votes", votes).await;
    service.until_metric("results_drift_laws", laws).await;
}

#[tokio::test]
async fn a_changed_total_shows_until_it_is_corrected() {
    let (stage, service) = Stage::started("drift", &[OFTEN]).await;
    stage.count(0, 50).await;
    until_drift(&service, 0.0, 0.0).await;
    let right = stage.results().await;

    // Two votes moved from one choice to the other, a law without votes added, one law removed.
    let damage = "CREATE TABLE right_results AS TABLE vote_results; \
                  UPDATE vote_results SET oui_count = oui_count + 2, non_count = non_count - 2 \
                      WHERE law_id = 'law-001'; \
                  INSERT INTO vote_results (law_id, oui_count) VALUES ('law-nowhere', 7); \
                  DELETE FROM vote_results WHERE law_id = 'law-002'";
    stage.execute(damage).await;
    until_drift(&service, 4.0 + 7.0 + 10.0, 3.0).await;
    let differs = "vote_results differs from vote_audit by 21 votes in 3 laws";
    service.until_logged(differs).await;
    let log = service.log();
    let line = log.lines().find(|line| line.contains(differs)).expect("logged");
    let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
    assert_eq!(line["level"], "ERROR");
    let message = line["message"].as_str().expect("a message");
    let [oui, non] = right["law-001"];
    let moved =
        format!("\"law-001\" audit {oui} oui {non} non, results {} oui {} non", oui + 2, non - 2);
    let added = "\"law-nowhere\" audit 0 oui 0 non, results 7 oui 0 non";
    assert_contains(message, &[&moved, added, "\"law-002\" audit"]);
    let agrees = "vote_results agrees with vote_audit again";
    assert_eq!(service.logged(agrees), 0);

    let correct = "BEGIN; DELETE FROM vote_results; INSERT INTO vote_results TABLE right_results; \
                   COMMIT";
    stage.execute(correct).await;
    until_drift(&service, 0.0, 0.0).await;
    service.until_logged(&format!("{agrees}: 50 votes in 5 laws")).await;
    service.stop().await;
}

#[tokio::test]
async fn with_sums_the_log_names_the_laws_that_differ_and_no_counts() {
    let (stage, service) = Stage::started("driftsums", &[OFTEN, ("METRICS_TOTALS", "sums")]).await;
    stage.count(0, 50).await;
    stage.execute("UPDATE vote_results SET oui_count = 4444 WHERE law_id = 'law-001'").await;
    service.until_logged("votes in 1 laws: \\\"law-001\\\"").await;
    assert_lacks(&service.stop().await, &[" oui", "4444"]);
}

/// Both tables are read in one snapshot: a comparison between the halves of a batch would see a
/// drift.
#[tokio::test]
async fn counting_never_looks_like_a_drift() {
    let stage = Stage::migrated(Servers::shared(), "nodrift").await;
    let services = [stage.start(&[]).await, stage.start(&[]).await];
    let all = votes(0, 20_000);
    let store = stage.store().await;
    let mut midway = 0;
    // From before the first vote is published until the last one is counted.
    let comparing = eventually("all votes are counted", async || {
        // Without the pause that `eventually` makes.
        for _ in 0..10 {
            let compared = store.compare(10).await.expect("compared");
            assert!(compared.agrees(), "{compared:?}");
            if compared.votes == 20_000 {
                return true;
            }
            midway += 1;
        }
        false
    });
    futures::join!(comparing, stage.publish_votes(&all));
    assert!(midway > 0, "the first comparison began before the first vote was there");
    let logs = stage.finish(services, &all).await;
    assert!(!logs.contains("differs from vote_audit"), "{logs}");
}

#[tokio::test]
async fn a_comparison_that_a_lock_holds_up_is_logged_when_it_fails_and_delays_no_stop() {
    let (stage, service) = Stage::started("blocked", &[OFTEN]).await;
    until_drift(&service, 0.0, 0.0).await;
    let lock = stage.hold("LOCK TABLE vote_audit").await;
    // Ended at once, since the pause depends on how long the comparison took.
    let waits = "wait_event_type = 'Lock' AND application_name = 'vote-aggregator reconciler'";
    stage.until_terminated(waits).await;
    service.until_logged("the totals could not be compared with the audit").await;
    service.until_metric("results_drift_votes", 0.0).await;
    drop(lock);
    let before = service.metric("last_reconciliation_age_seconds").await;
    eventually("compared again", async || {
        service.metric("last_reconciliation_age_seconds").await < before
    })
    .await;
    assert_eq!(service.logged("could not be compared"), 1, "{}", service.log());

    let lock = stage.hold("LOCK TABLE vote_audit").await;
    stage.until_sessions(waits, 1).await;
    service.stop().await;
    drop(lock);
    stage.until_sessions("application_name LIKE 'vote-aggregator%'", 0).await;
}

#[tokio::test]
async fn switched_off_it_compares_nothing_and_shows_nothing() {
    let off = settings("RECONCILE_INTERVAL_SECONDS=0 TOTALS_REFRESH_SECONDS=0.1");
    let (stage, service) = Stage::started("unreconciled", &off).await;
    stage.execute("INSERT INTO vote_results VALUES ('law-nowhere', 7, 0)").await;
    // The totals are only read.
    let seen = "current_vote_totals{choice=\"oui\",law_id=\"law-nowhere\"}";
    service.until_metric(seen, 7.0).await;
    assert_lacks(&service.get("/metrics").await.body, &["results_drift", "reconciliation"]);
    assert!(!service.stop().await.contains("differs from vote_audit"));
}

/// Records each comparison that an instance shared with the others, of which the first finds a drift.
const NOTE_SCANS: &str = "CREATE TABLE scans (at timestamptz NOT NULL); \
    CREATE FUNCTION note_scan() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
    INSERT INTO scans VALUES (clock_timestamp()); RETURN NULL; END $$; \
    CREATE TRIGGER note_scan AFTER INSERT OR UPDATE ON reconciliation \
    FOR EACH ROW EXECUTE FUNCTION note_scan(); \
    INSERT INTO vote_results VALUES ('law-nowhere', 7, 0)";

#[tokio::test]
async fn three_instances_compare_once_an_interval_and_all_show_it() {
    let stage = Stage::migrated(Servers::shared(), "shared").await;
    stage.execute(NOTE_SCANS).await;
    let start = async |interval: &str| {
        let settings = [("RECONCILE_INTERVAL_SECONDS", interval)];
        join_all((0..3).map(|_| stage.start(&settings))).await
    };
    let hourly = start("3600").await;
    for service in &hourly {
        until_drift(service, 7.0, 1.0).await;
        let age = service.metric("last_reconciliation_age_seconds").await;
        assert!(age.is_some_and(|age| age < 60.0), "{age:?}");
    }
    assert_eq!(stage.number("SELECT count(*) FROM scans").await, 1, "one scan for all three");
    let mut logs = String::new();
    for service in hourly {
        logs += &service.stop().await;
    }
    let differs = "vote_results differs from vote_audit by 7 votes";
    assert_eq!(logs.matches(differs).count(), 1, "logged by the instance that compared");

    // Again and again, and never sooner than an interval after the scan before.
    stage.execute("TRUNCATE scans").await;
    let every_second = start("1").await;
    stage.execute("DELETE FROM vote_results WHERE law_id = 'law-nowhere'").await;
    for service in &every_second {
        until_drift(service, 0.0, 0.0).await;
    }
    eventually("five scans", async || stage.number("SELECT count(*) FROM scans").await >= 5).await;
    let sooner = "SELECT count(*) FROM (SELECT at - lag(at) OVER (ORDER BY at) AS after FROM scans) \
                  AS scan WHERE after < interval '0.99 s'";
    assert_eq!(stage.number(sooner).await, 0, "scans sooner than an interval after another");
}

/// Any session may hold the lock: then nothing is compared, for which there is an alert.
#[tokio::test]
async fn nothing_is_compared_while_another_session_has_the_lock() {
    let stage = Stage::migrated(Servers::shared(), "locked").await;
    let lock = stage.hold("SELECT pg_advisory_xact_lock(4260293564701110360)").await;
    let service = stage.start(&[OFTEN]).await;
    stage.count(0, 50).await;
    assert_eq!(service.metric("results_drift_votes").await, None, "nothing was compared yet");
    drop(lock);
    until_drift(&service, 0.0, 0.0).await;
    service.stop().await;
}

/// After the database's clock was set back: the time does not show when that comparison was.
#[tokio::test]
async fn a_comparison_from_the_future_is_not_recent() {
    let (stage, store) = Stage::with_store("future").await;
    let reconcile = async || store.reconcile(HOUR, 10).await.expect("an answer");
    assert!(matches!(reconcile().await, Reconciled::Compared(_)));
    for future in ["clock_timestamp() + interval '1 day'", "'infinity'"] {
        stage.execute(&format!("UPDATE reconciliation SET compared_at = {future}")).await;
        assert!(matches!(reconcile().await, Reconciled::Compared(_)), "{future}");
        assert!(matches!(reconcile().await, Reconciled::Recent(_)), "{future}");
    }
    // Two reads of a clock may differ as much.
    let soon = "UPDATE reconciliation SET compared_at = clock_timestamp() + interval '3 seconds'";
    stage.execute(soon).await;
    let Reconciled::Recent(last) = reconcile().await else { panic!("it is recent") };
    assert_eq!(last.age, Duration::ZERO);
}

/// After an update, before `roles.sql` was run again.
#[tokio::test]
async fn a_role_that_may_not_share_compares_alone_and_says_so_once() {
    let stage = Stage::migrated(Servers::shared(), "alone").await;
    let role = stage.role("alone", "").await;
    let grants = format!(
        "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}; \
         REVOKE INSERT ON reconciliation FROM {role}"
    );
    stage.execute(&grants).await;
    let service = stage.start(&[&[OFTEN][..], &login(&role)].concat()).await;
    stage.execute("INSERT INTO vote_results VALUES ('law-nowhere', 7, 0)").await;
    until_drift(&service, 7.0, 1.0).await;
    stage.execute("DELETE FROM vote_results").await;
    until_drift(&service, 0.0, 0.0).await;
    assert_eq!(service.logged("compares the totals with the audit for itself"), 1);
    assert_eq!(stage.number("SELECT count(*) FROM reconciliation").await, 0);
    service.stop().await;
}

/// Behind a transaction pooler, where a lock or a setting of the session would be lost or would stay.
#[tokio::test]
async fn it_is_one_comparison_through_a_transaction_pooler_as_well() {
    let stage = Stage::migrated(Servers::shared(), "pooled").await;
    stage.execute(NOTE_SCANS).await;
    let pooler = Pooler::with(&stage, None, "").await;
    let config = stage.config(&[("POSTGRES_PORT", &pooler.port)]);
    let stores: Vec<PgStore> =
        (0..4).map(|_| PgStore::new(&config.postgres, options(&config.postgres))).collect();
    let mut compared = 0;
    for _ in 0..5 {
        for reconciled in join_all(stores.iter().map(|store| store.reconcile(HOUR, 10))).await {
            match reconciled.expect("an answer") {
                Reconciled::Compared(comparison) => {
                    compared += 1;
                    assert_eq!(comparison.drift_votes, 7);
                }
                Reconciled::Recent(last) => assert_eq!(last.drift_votes, 7),
                Reconciled::Busy(last) => assert!(last.is_none_or(|last| last.drift_votes == 7)),
                Reconciled::Alone(_) => panic!("the owner may use the table"),
            }
        }
    }
    assert_eq!(compared, 1);
    assert_eq!(stage.number("SELECT count(*) FROM scans").await, 1);
    stage.assert_no_advisory_lock().await;
}
