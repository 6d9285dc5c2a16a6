//! `recount`: what it finds, what it corrects, and votes that are counted meanwhile.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde_json::json;
use vote_aggregator::adapters::store::{self, Patience};
use vote_aggregator::model::ports::{Class, Store, Votes};
use vote_aggregator::model::vote::Choice;

use crate::support::{
    BINARY, Ended, Interceptor, PATIENCE, Pass, Servers, Stage, WAITS, ended, vote, votes,
};

async fn recount(stage: &Stage<'_>, arguments: &[&str]) -> Ended {
    stage.run("recount", arguments).await
}

/// Fifty counted votes on five laws.
async fn counted(name: &str) -> Stage<'static> {
    let stage = Stage::migrated(Servers::shared(), name).await;
    stage.store().await.count(Votes::new(votes(0, 50))).await.expect("counted");
    stage
}

/// Two votes too many on one law, one law that is missing, and one without votes in the audit.
const DAMAGE: &str = "UPDATE vote_results SET oui_count = oui_count + 2 WHERE law_id = 'law-001'; \
                      DELETE FROM vote_results WHERE law_id = 'law-002'; \
                      INSERT INTO vote_results (law_id, non_count) VALUES ('law-nowhere', 7)";

#[tokio::test]
async fn it_says_whether_results_and_audit_agree_and_where_they_do_not() {
    let stage = counted("recount").await;
    recount(&stage, &[]).await.assert(0, &["results and audit agree: 50 votes in 5 laws\n"]);
    let right = stage.results().await;

    stage.execute(DAMAGE).await;
    let text = "differ by 19 votes in 3 of 6 laws; 50 votes are in the audit";
    let differ = recount(&stage, &[]).await.assert(1, &[text]);
    let [oui, non] = right["law-001"];
    let mut rows = differ.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row = rows.find(|row| row.first() == Some(&"law-001")).expect("a row for this law");
    let expected = [&oui.to_string(), &non.to_string(), &(oui + 2).to_string()];
    assert_eq!(row[1..4], expected, "{}", differ.stdout);
    assert!(row.ends_with(&["+2", "+0"]), "{}", differ.stdout);

    let differ = recount(&stage, &["--json"]).await.assert(1, &[]);
    let counts = |[oui, non]: [i64; 2]| json!({"oui": oui, "non": non});
    let differing = |law: &str, audit, results| {
        let [audit, results] = [audit, results].map(counts);
        json!({"law_id": law, "audit": audit, "results": results})
    };
    let expected = json!({
        "agree": false, "corrected": false,
        "laws": 6, "votes": 50, "drift_laws": 3, "drift_votes": 19,
        "differing": [
            differing("law-001", right["law-001"], [oui + 2, non]),
            differing("law-002", right["law-002"], [0, 0]),
            differing("law-nowhere", [0, 0], [0, 7]),
        ],
    });
    assert_eq!(differ.json(), expected);

    // The reconciler of the running service finds the same.
    let compared = stage.store().await.compare(10).await.expect("compared");
    assert_eq!((compared.laws, compared.votes), (6, 50));
    assert_eq!((compared.drift_laws, compared.drift_votes), (3, 19));
}

#[tokio::test]
async fn a_repair_writes_the_audits_counts_and_who_changed_what() {
    let stage = counted("repair").await;
    let right = stage.results().await;
    stage.execute(DAMAGE).await;
    let damaged = stage.results().await;

    recount(&stage, &["--repair"]).await.assert(2, &["--yes"]);
    recount(&stage, &["--yes"]).await.assert(2, &[]);
    assert_eq!(stage.results().await, damaged);

    let repair = ["--repair", "--yes", "--reason", "by hand; \"9 pm\""];
    recount(&stage, &repair).await.assert(0, &["corrected: 19 votes in 3 laws"]);
    recount(&stage, &[]).await.assert(0, &[]);
    let mut results = stage.results().await;
    assert_eq!(results.remove("law-nowhere"), Some([0, 0]), "kept, since it is on record");
    assert_eq!(results, right);

    // Nothing is left to correct, and nothing is recorded.
    let again = recount(&stage, &["--repair", "--yes", "--json"]).await.assert(0, &[]);
    assert_eq!(again.json()["corrected"], false);

    let recorded = "SELECT law_id, oui_before, non_before, oui_after, non_after \
        FROM result_corrections WHERE corrected_by = session_user AND reason = 'by hand; \"9 pm\"' \
        AND corrected_at BETWEEN now() - interval '1 minute' AND now() ORDER BY law_id";
    let recorded = sqlx::query_as(recorded).fetch_all(&stage.sql).await;
    let recorded: Vec<(String, i64, i64, i64, i64)> = recorded.expect("the record can be read");
    let expected = ["law-001", "law-002", "law-nowhere"].map(|law| {
        let [before, after] = [&damaged, &right].map(|counts| counts.get(law).unwrap_or(&[0, 0]));
        (law.to_owned(), before[0], before[1], after[0], after[1])
    });
    assert_eq!(recorded, expected);
    assert_eq!(stage.number("SELECT count(*) FROM result_corrections").await, 3);
}

#[tokio::test]
async fn on_a_terminal_it_asks_and_accepts_only_a_yes() {
    let stage = counted("asked").await;
    let right = stage.results().await;
    stage.execute("UPDATE vote_results SET non_count = 0 WHERE law_id = 'law-003'").await;
    let damaged = stage.results().await;
    for (answer, code, results) in [("n", 1, &damaged), ("", 1, &damaged), ("y", 0, &right)] {
        stage.on_terminal("recount --repair", answer).await.assert(code, &["[y/N]"]);
        assert_eq!(stage.results().await, *results, "{answer:?}");
    }
}

/// A batch that was under way when the repair began is in it; one that began later waits.
#[tokio::test]
async fn a_repair_waits_for_what_is_being_counted_and_sees_it() {
    let stage = counted("underway").await;
    stage.execute(DAMAGE).await;
    let batch = "INSERT INTO vote_audit VALUES ('under way', 'c', 'law-001', 'oui', now()); \
                 UPDATE vote_results SET oui_count = oui_count + 1 WHERE law_id = 'law-001'";
    let batch = stage.hold(batch).await;
    let store = stage.store().await;
    let repair = tokio::spawn(ended(stage.command(BINARY, &["recount", "--repair", "--yes"])));
    stage.until_sessions(WAITS, 1).await;

    // Queues up behind the repair.
    let later = tokio::spawn(async move {
        loop {
            match store.count(Votes::new(vec![vote(1_000, "law-001", Choice::Non)])).await {
                // Waited for longer than lock_timeout: the pipeline tries again, too.
                Err(fault) if fault.class == Class::Retry => {}
                counted => return counted,
            }
        }
    });
    stage.until_sessions(WAITS, 2).await;
    batch.commit().await.expect("committed");
    let repaired = repair.await.expect("no panic").assert(0, &[]);
    assert!(!repaired.stderr.contains("40001"), "the lock, then the snapshot: {}", repaired.stderr);
    later.await.expect("no panic").expect("counted");
    assert_eq!(stage.number("SELECT count(*) FROM vote_audit").await, 52);
    let mut results = stage.results().await;
    results.remove("law-nowhere");
    assert_eq!(results, stage.recount().await);
}

#[tokio::test]
async fn a_repair_whose_commit_is_not_answered_says_that_it_took_effect() {
    for json in [false, true] {
        let stage = counted("unanswered").await;
        stage.execute(DAMAGE).await;
        let interceptor = Interceptor::once(&stage, "POSTGRES", "COMMIT\0", Pass::LoseAnswer).await;
        let mut arguments = vec!["recount", "--repair", "--yes"];
        arguments.extend(json.then_some("--json"));
        let link = [("POSTGRES_PORT", interceptor.port.as_str()), ("POSTGRES_SSLMODE", "disable")];
        let repaired = stage.run_with(&arguments, &link).await;
        if json {
            let object = repaired.assert(0, &[]).json();
            assert_eq!((&object["corrected"], &object["drift_votes"]), (&json!(true), &json!(19)));
            assert_eq!(object["commit_unanswered"], true);
        } else {
            repaired.assert(0, &["corrected: 19 votes in 3 laws", "did not answer the COMMIT"]);
        }
        assert_eq!(stage.number("SELECT count(*) FROM result_corrections").await, 3, "once");
        recount(&stage, &[]).await.assert(0, &[]);
    }
}

/// Each recount reads several parts in one snapshot: a batch that is counted meanwhile is in all of
/// them or in none.
#[tokio::test]
async fn recounts_and_repairs_under_load_are_of_one_moment() {
    let stage = Stage::migrated(Servers::shared(), "underload").await;
    stage.store().await.count(Votes::new(votes(0, 30_000))).await.expect("counted");
    let (one, two) = (stage.start(&[]).await, stage.start(&[]).await);
    let config = stage.config(&[]);
    let all = votes(0, 60_000);
    let repair = async |at_least: usize| {
        for _ in 0..5 {
            let parts = AtomicU64::new(0);
            let count = |_| {
                parts.fetch_add(1, Relaxed);
            };
            let recounted = store::recount(&config, Patience::new(PATIENCE), count).await;
            let recounted = recounted.expect("recounted");
            assert!(recounted.agrees(), "{recounted:?}");
            assert!(parts.into_inner() > 1, "in parts");
        }
        stage.until_counted(at_least).await;
        stage.execute("UPDATE vote_results SET oui_count = oui_count + 5").await;
        for arguments in [&["--json"][..], &["--repair", "--yes", "--json"]] {
            let found = recount(&stage, arguments).await;
            assert_eq!(found.json()["drift_votes"], 25, "{arguments:?}: {}", found.stdout);
        }
    };
    // Ten thousand votes are counted beside the recounts and each repair.
    for (number, votes) in all[30_000..].chunks(10_000).enumerate() {
        let at_least = 30_000 + 10_000 * number + 1_000;
        tokio::join!(stage.publish_votes(votes), repair(at_least));
    }
    let logs = stage.finish([one, two], &all).await;
    assert!(!logs.contains("consuming stops"), "no batch gave up: {logs}");
    recount(&stage, &[]).await.assert(0, &["60,000 votes"]);
    let right = "SELECT count(*) FROM result_corrections \
                 WHERE oui_after = oui_before - 5 AND non_after = non_before";
    assert_eq!(stage.number(right).await, 15);
}
