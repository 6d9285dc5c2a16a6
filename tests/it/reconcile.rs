//! The totals, compared with the audit while the service runs.

use rustix::process::Signal;
use sqlx::AssertSqlSafe;

use vote_aggregator::adapters::store::{PgStore, Reconciled, options};

use crate::support::{Pooler, Servers, Service, Stage, eventually, votes};

/// Often enough for a test, and the pause of 20 times a short while goes on top.
const OFTEN: (&str, &str) = ("RECONCILE_INTERVAL_SECONDS", "0.1");

async fn execute(stage: &Stage<'_>, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&stage.sql).await.expect("executed");
}

async fn until_drift(service: &Service, votes: f64, laws: f64) {
    eventually(&format!("{votes} votes in {laws} laws; see {}", service.log()), async || {
        let shown = [
            service.metric("results_drift_votes").await,
            service.metric("results_drift_laws").await,
        ];
        shown == [Some(votes), Some(laws)]
    })
    .await;
}

#[tokio::test]
async fn a_changed_total_shows_until_it_is_put_right() {
    let stage = Stage::migrated(Servers::shared(), "drift").await;
    let service = stage.start(&[OFTEN]).await;
    stage.publish_votes(&votes(0, 50)).await;
    stage.until_counted(50).await;
    until_drift(&service, 0.0, 0.0).await;
    let right = stage.results().await;

    // Two votes moved from one choice to the other, a law that nobody voted on, one gone.
    execute(
        &stage,
        "UPDATE vote_results SET oui_count = oui_count + 2, non_count = non_count - 2 \
             WHERE law_id = 'law-001'; \
         INSERT INTO vote_results (law_id, oui_count) VALUES ('law-nowhere', 7); \
         DELETE FROM vote_results WHERE law_id = 'law-002'",
    )
    .await;
    until_drift(&service, 4.0 + 7.0 + 10.0, 3.0).await;
    service.until_logged("vote_results differs from vote_audit by 21 votes in 3 laws").await;
    let log = service.log();
    let line = log.lines().find(|line| line.contains("differs from vote_audit by 21"));
    let line: serde_json::Value = serde_json::from_str(line.expect("logged")).expect("JSON");
    assert_eq!(line["level"], "ERROR");
    let message = line["message"].as_str().expect("a message");
    let [oui, non] = right["law-001"];
    for law in [
        format!("\"law-001\" audit {oui} oui {non} non, results {} oui {} non", oui + 2, non - 2),
        "\"law-nowhere\" audit 0 oui 0 non, results 7 oui 0 non".to_owned(),
        "\"law-002\" audit".to_owned(),
    ] {
        assert!(message.contains(&law), "{law}: {message}");
    }
    assert_eq!(service.logged("vote_results agrees with vote_audit again"), 0);

    execute(
        &stage,
        "UPDATE vote_results SET oui_count = oui_count - 2, non_count = non_count + 2 \
             WHERE law_id = 'law-001'; \
         DELETE FROM vote_results WHERE law_id = 'law-nowhere'",
    )
    .await;
    let [oui, non] = right["law-002"];
    execute(&stage, &format!("INSERT INTO vote_results VALUES ('law-002', {oui}, {non})")).await;
    until_drift(&service, 0.0, 0.0).await;
    service.until_logged("vote_results agrees with vote_audit again: 50 votes in 5 laws").await;
    service.stop().await;
}

/// Both tables from one snapshot: a comparison between the halves of a batch would see a drift.
#[tokio::test]
async fn counting_never_looks_like_a_drift() {
    let stage = Stage::migrated(Servers::shared(), "nodrift").await;
    let (one, two) = (stage.start(&[]).await, stage.start(&[]).await);
    let all = votes(0, 20_000);
    let store = stage.store().await;
    let mut midway = 0;
    // From before the first vote is published until the last one is counted.
    let comparing = eventually("all votes are counted", async || {
        // As often as it goes, and not at the pace of the waiting.
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
    for service in [one, two] {
        assert!(!service.stop().await.contains("differs from vote_audit"));
    }
    stage.assert_counted_exactly(&all).await;
}

/// Its connections, as far as a lock holds them up.
const WAITING: &str = "SELECT count(*) FROM pg_stat_activity \
                       WHERE datname = current_database() AND wait_event_type = 'Lock' \
                       AND application_name = 'vote-aggregator reconciler'";

#[tokio::test]
async fn what_keeps_it_from_comparing_is_told_and_ends_by_itself() {
    let stage = Stage::migrated(Servers::shared(), "blocked").await;
    let service = stage.start(&[OFTEN]).await;
    until_drift(&service, 0.0, 0.0).await;
    let mut other = stage.sql.begin().await.expect("a transaction");
    sqlx::raw_sql("LOCK TABLE vote_audit").execute(&mut *other).await.expect("locked");
    // Ended at once, since the pause goes by the time that the comparison took.
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
               WHERE datname = current_database() AND wait_event_type = 'Lock' \
               AND application_name = 'vote-aggregator reconciler'";
    eventually("a comparison is ended", async || stage.number(end).await == 1).await;
    service.until_logged("the totals could not be compared with the audit").await;
    assert_eq!(service.metric("results_drift_votes").await, Some(0.0), "the last that is known");
    other.rollback().await.expect("unlocked");
    let before = service.metric("last_reconciliation_age_seconds").await;
    eventually("compared again", async || {
        service.metric("last_reconciliation_age_seconds").await < before
    })
    .await;
    assert_eq!(service.logged("could not be compared"), 1, "{}", service.log());
    service.stop().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_comparison() {
    let stage = Stage::migrated(Servers::shared(), "abandoned").await;
    let mut service = stage.start(&[OFTEN]).await;
    until_drift(&service, 0.0, 0.0).await;
    let mut other = stage.sql.begin().await.expect("a transaction");
    sqlx::raw_sql("LOCK TABLE vote_audit").execute(&mut *other).await.expect("locked");
    eventually("it compares", async || stage.number(WAITING).await == 1).await;
    service.signal(Signal::TERM);
    assert_eq!(service.exit_code().await, Some(0), "{}", service.log());
    other.rollback().await.expect("unlocked");
    eventually("nothing is left of it", async || {
        let left = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                    AND application_name LIKE 'vote-aggregator%'";
        stage.number(left).await == 0
    })
    .await;
}

#[tokio::test]
async fn switched_off_it_compares_nothing_and_shows_nothing() {
    let stage = Stage::migrated(Servers::shared(), "unreconciled").await;
    let off = [("RECONCILE_INTERVAL_SECONDS", "0"), ("TOTALS_REFRESH_SECONDS", "0.1")];
    let service = stage.start(&off).await;
    execute(&stage, "INSERT INTO vote_results VALUES ('law-nowhere', 7, 0)").await;
    // Its totals are read; that is all that happens to them.
    let seen = "current_vote_totals{choice=\"oui\",law_id=\"law-nowhere\"}";
    eventually(seen, async || service.metric(seen).await == Some(7.0)).await;
    let scrape = service.get("/metrics").await.body;
    assert!(!scrape.contains("results_drift") && !scrape.contains("reconciliation"), "{scrape}");
    assert!(!service.stop().await.contains("differs from vote_audit"));
}

/// Notes when a comparison was shared.
const NOTE_SCANS: &str = "CREATE TABLE scans (at timestamptz NOT NULL); \
    CREATE FUNCTION note_scan() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
    INSERT INTO scans VALUES (clock_timestamp()); RETURN NULL; END $$; \
    CREATE TRIGGER note_scan AFTER INSERT OR UPDATE ON reconciliation \
    FOR EACH ROW EXECUTE FUNCTION note_scan(); \
    INSERT INTO vote_results VALUES ('law-nowhere', 7, 0)";

#[tokio::test]
async fn three_instances_compare_once_an_interval_and_all_show_it() {
    let stage = Stage::migrated(Servers::shared(), "shared").await;
    execute(&stage, NOTE_SCANS).await;
    let hourly = [("RECONCILE_INTERVAL_SECONDS", "3600")];
    let (one, two, three) =
        futures::join!(stage.start(&hourly), stage.start(&hourly), stage.start(&hourly));
    for service in [&one, &two, &three] {
        until_drift(service, 7.0, 1.0).await;
        let age = service.metric("last_reconciliation_age_seconds").await;
        assert!(age.is_some_and(|age| age < 60.0), "{age:?}");
    }
    assert_eq!(stage.number("SELECT count(*) FROM scans").await, 1, "one scan for all three");
    let message = "vote_results differs from vote_audit by 7 votes";
    let logs = [one.stop().await, two.stop().await, three.stop().await];
    assert_eq!(logs.iter().filter(|log| log.contains(message)).count(), 1, "logged by who scanned");

    // Again and again, and never sooner than an interval after the scan before.
    execute(&stage, "TRUNCATE scans").await;
    let every_second = [("RECONCILE_INTERVAL_SECONDS", "1")];
    let (one, two, three) = futures::join!(
        stage.start(&every_second),
        stage.start(&every_second),
        stage.start(&every_second)
    );
    execute(&stage, "DELETE FROM vote_results WHERE law_id = 'law-nowhere'").await;
    for service in [&one, &two, &three] {
        until_drift(service, 0.0, 0.0).await;
    }
    eventually("five scans", async || stage.number("SELECT count(*) FROM scans").await >= 5).await;
    let sooner = "SELECT count(*) FROM (SELECT at - lag(at) OVER (ORDER BY at) AS after FROM scans) \
                  AS scan WHERE after < interval '0.99 s'";
    assert_eq!(stage.number(sooner).await, 0, "scans sooner than an interval after another");
    for service in [one, two, three] {
        service.stop().await;
    }
}

/// Any session may hold the lock: then nothing is compared, which an alert tells.
#[tokio::test]
async fn nothing_is_compared_while_another_session_has_the_lock() {
    let stage = Stage::migrated(Servers::shared(), "locked").await;
    let mut other = stage.sql.begin().await.expect("a transaction");
    let lock = "SELECT pg_advisory_xact_lock(4260293564701110360)";
    sqlx::raw_sql(lock).execute(&mut *other).await.expect("locked");
    let service = stage.start(&[OFTEN]).await;
    stage.publish_votes(&votes(0, 50)).await;
    stage.until_counted(50).await;
    assert_eq!(service.metric("results_drift_votes").await, None, "nobody has compared yet");
    other.rollback().await.expect("unlocked");
    until_drift(&service, 0.0, 0.0).await;
    service.stop().await;
}

/// After the database's clock was set back: the time says nothing about when that comparison was.
#[tokio::test]
async fn a_comparison_from_the_future_is_not_recent() {
    let stage = Stage::migrated(Servers::shared(), "future").await;
    let store = stage.store().await;
    let hour = std::time::Duration::from_secs(3_600);
    for (compared_at, recent) in [
        ("clock_timestamp() + interval '1 day'", false),
        ("'infinity'", false),
        // As far as two reads of a clock may differ.
        ("clock_timestamp() + interval '3 seconds'", true),
    ] {
        let reconciled = store.reconcile(hour, 10).await.expect("an answer");
        assert!(!matches!(reconciled, Reconciled::Alone(_)), "{reconciled:?}");
        execute(&stage, &format!("UPDATE reconciliation SET compared_at = {compared_at}")).await;
        let reconciled = store.reconcile(hour, 10).await.expect("an answer");
        match (reconciled, recent) {
            (Reconciled::Compared(_), false) => {
                let reconciled = store.reconcile(hour, 10).await.expect("an answer");
                assert!(matches!(reconciled, Reconciled::Recent(_)), "{reconciled:?}");
            }
            (Reconciled::Recent(last), true) => assert_eq!(last.age, std::time::Duration::ZERO),
            (other, _) => panic!("{compared_at}: {other:?}"),
        }
    }
}

/// After an update, before `roles.sql` was run again.
#[tokio::test]
async fn a_role_that_may_not_share_compares_alone_and_says_so_once() {
    let stage = Stage::migrated(Servers::shared(), "alone").await;
    let role = stage.database.clone();
    execute(
        &stage,
        &format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'alone'; \
             GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}; \
             REVOKE INSERT ON reconciliation FROM {role}"
        ),
    )
    .await;
    let service =
        stage.start(&[OFTEN, ("POSTGRES_USER", &role), ("POSTGRES_PASSWORD", "alone")]).await;
    execute(&stage, "INSERT INTO vote_results VALUES ('law-nowhere', 7, 0)").await;
    until_drift(&service, 7.0, 1.0).await;
    execute(&stage, "DELETE FROM vote_results").await;
    until_drift(&service, 0.0, 0.0).await;
    assert_eq!(service.logged("compares the totals with the audit for itself"), 1);
    assert_eq!(stage.number("SELECT count(*) FROM reconciliation").await, 0);
    service.stop().await;
    execute(&stage, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

/// Behind a transaction pooler, where a lock or a setting of the session would be lost or would stay.
#[tokio::test]
async fn it_is_one_comparison_through_a_transaction_pooler_as_well() {
    let stage = Stage::migrated(Servers::shared(), "pooled").await;
    execute(&stage, NOTE_SCANS).await;
    let pooler = Pooler::start(&stage).await;
    let config = stage.config(&[("POSTGRES_PORT", &pooler.port)]);
    let stores: Vec<PgStore> =
        (0..4).map(|_| PgStore::new(&config.postgres, options(&config.postgres))).collect();
    let (mut compared, hour) = (0, std::time::Duration::from_secs(3_600));
    for _ in 0..5 {
        let asking = stores.iter().map(|store| store.reconcile(hour, 10));
        for reconciled in futures::future::join_all(asking).await {
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
    let left = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = \
                (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(stage.number(left).await, 0, "no lock stays with a connection of the pool");
}
