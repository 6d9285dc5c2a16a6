//! `recount`: what it finds, what it puts right, and what becomes of votes that are counted meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::json;
use sqlx::Row;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use vote_aggregator::adapters::store::{self, Patience};
use vote_aggregator::model::ports::{Class, Store, Votes};
use vote_aggregator::model::vote::Choice;

use crate::support::{
    BINARY, Ended, PATIENCE, Servers, Stage, command, ended, eventually, execute, run, vote, votes,
};

const ROLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/roles.sql");

async fn recount(stage: &Stage<'_>, arguments: &[&str]) -> Ended {
    run(stage, "recount", arguments).await
}

/// Fifty counted votes on five laws.
async fn counted(name: &str) -> Stage<'static> {
    let stage = Stage::migrated(Servers::shared(), name).await;
    stage.store().await.count(Votes::new(votes(0, 50))).await.expect("counted");
    stage
}

/// Two votes too many on one law, one law that is missing, and one that nobody voted on.
const DAMAGE: &str = "UPDATE vote_results SET oui_count = oui_count + 2 WHERE law_id = 'law-001'; \
                      DELETE FROM vote_results WHERE law_id = 'law-002'; \
                      INSERT INTO vote_results (law_id, non_count) VALUES ('law-nowhere', 7)";

#[tokio::test]
async fn it_says_whether_results_and_audit_agree_and_where_they_do_not() {
    let stage = counted("recount").await;
    let agree = recount(&stage, &[]).await;
    assert_eq!(agree.code, Some(0), "{}", agree.stderr);
    assert_eq!(agree.stdout, "results and audit agree: 50 votes in 5 laws\n");
    let right = stage.results().await;

    execute(&stage, DAMAGE).await;
    let differ = recount(&stage, &[]).await;
    assert_eq!(differ.code, Some(1), "{}", differ.stderr);
    let rows: Vec<Vec<&str>> =
        differ.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    let [oui, non] = right["law-001"];
    let row = ["law-001", &oui.to_string(), &non.to_string(), &(oui + 2).to_string()];
    assert!(
        rows.iter().any(|r| r.starts_with(&row) && r.ends_with(&["+2", "+0"])),
        "{}",
        differ.stdout
    );
    let text = "differ by 19 votes in 3 of 6 laws; 50 votes are in the audit";
    assert!(differ.stdout.contains(text), "{}", differ.stdout);

    let differ = recount(&stage, &["--json"]).await;
    assert_eq!(differ.code, Some(1), "{}", differ.stderr);
    let counts = |[oui, non]: [i64; 2]| json!({"oui": oui, "non": non});
    let expected = json!({
        "agree": false, "corrected": false,
        "laws": 6, "votes": 50, "drift_laws": 3, "drift_votes": 19,
        "differing": [
            {
                "law_id": "law-001",
                "audit": counts(right["law-001"]),
                "results": counts([oui + 2, non]),
            },
            {"law_id": "law-002", "audit": counts(right["law-002"]), "results": counts([0, 0])},
            {"law_id": "law-nowhere", "audit": counts([0, 0]), "results": counts([0, 7])},
        ],
    });
    assert_eq!(differ.json(), expected);

    // What the running service compares with finds the same.
    let compared = stage.store().await.compare(10).await.expect("compared");
    assert_eq!((compared.laws, compared.votes), (6, 50));
    assert_eq!((compared.drift_laws, compared.drift_votes), (3, 19));
}

#[tokio::test]
async fn a_repair_writes_the_audits_counts_and_who_changed_what() {
    let stage = counted("repair").await;
    let right = stage.results().await;
    execute(&stage, DAMAGE).await;
    let damaged = stage.results().await;

    let refused = recount(&stage, &["--repair"]).await;
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("--yes"), "{}", refused.stderr);
    assert_eq!(recount(&stage, &["--yes"]).await.code, Some(2), "--yes to what?");
    assert_eq!(stage.results().await, damaged);

    let repaired = recount(&stage, &["--repair", "--yes", "--reason", "by hand; \"9 pm\""]).await;
    assert_eq!(repaired.code, Some(0), "{}", repaired.stderr);
    assert!(repaired.stdout.contains("corrected: 19 votes in 3 laws"), "{}", repaired.stdout);
    assert_eq!(recount(&stage, &[]).await.code, Some(0));
    let mut results = stage.results().await;
    assert_eq!(results.remove("law-nowhere"), Some([0, 0]), "kept, since it is on record");
    assert_eq!(results, right);

    // Nothing is left to correct, and nothing is recorded.
    let again = recount(&stage, &["--repair", "--yes", "--json"]).await;
    assert_eq!((again.code, again.json()["corrected"].as_bool()), (Some(0), Some(false)));

    let rows = sqlx::query(
        "SELECT law_id, oui_before, non_before, oui_after, non_after FROM result_corrections \
         WHERE corrected_by = session_user AND reason = 'by hand; \"9 pm\"' \
         AND corrected_at BETWEEN now() - interval '1 minute' AND now() ORDER BY law_id",
    )
    .fetch_all(&stage.sql)
    .await
    .expect("the record can be read");
    let recorded: Vec<(String, [i64; 2], [i64; 2])> = rows
        .iter()
        .map(|row| (row.get(0), [row.get(1), row.get(2)], [row.get(3), row.get(4)]))
        .collect();
    let [oui, non] = right["law-001"];
    let expected = [
        ("law-001".to_owned(), [oui + 2, non], [oui, non]),
        ("law-002".to_owned(), [0, 0], right["law-002"]),
        ("law-nowhere".to_owned(), [0, 7], [0, 0]),
    ];
    assert_eq!(recorded, expected);
    assert_eq!(stage.number("SELECT count(*) FROM result_corrections").await, 3);
}

#[tokio::test]
async fn on_a_terminal_it_asks_and_takes_nothing_but_a_yes() {
    let stage = counted("asked").await;
    let right = stage.results().await;
    execute(&stage, "UPDATE vote_results SET non_count = 0 WHERE law_id = 'law-003'").await;
    let damaged = stage.results().await;
    for (answer, code) in [("n", 1), ("", 1), ("y", 0)] {
        // util-linux's script gives the command a terminal.
        let on_terminal = format!(
            "printf '%s\\n' '{answer}' | script --quiet --return --command \
             '{BINARY} recount --repair' /dev/null"
        );
        let mut command = command(&stage, "bash", &["-c", &on_terminal]);
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        let asked = ended(command).await;
        assert!(asked.stdout.contains("[y/N]"), "{}{}", asked.stdout, asked.stderr);
        assert_eq!(asked.code, Some(code), "{answer:?}: {}", asked.stdout);
        let results = stage.results().await;
        assert_eq!(results, if code == 0 { right.clone() } else { damaged.clone() }, "{answer:?}");
    }
}

/// A batch that was under way when the repair began is in it; one that began later waits.
#[tokio::test]
async fn a_repair_waits_for_what_is_being_counted_and_sees_it() {
    let stage = counted("underway").await;
    execute(&stage, DAMAGE).await;
    let mut batch = stage.sql.begin().await.expect("a transaction");
    sqlx::raw_sql(
        "INSERT INTO vote_audit (vote_hash, citizen_id, law_id, choice, \"timestamp\") \
             VALUES ('under way', 'c', 'law-001', 'oui', now()); \
         UPDATE vote_results SET oui_count = oui_count + 1 WHERE law_id = 'law-001'",
    )
    .execute(&mut *batch)
    .await
    .expect("counted, not committed");
    let store = stage.store().await;
    let repair = command(&stage, BINARY, &["recount", "--repair", "--yes"]);
    let repair = tokio::spawn(ended(repair));
    let waiting = "SELECT count(*) FROM pg_stat_activity \
                   WHERE datname = current_database() AND wait_event_type = 'Lock' \
                   AND application_name = 'vote-aggregator recount'";
    eventually("it waits", async || stage.number(waiting).await == 1).await;

    // Queues up behind the repair.
    let later = tokio::spawn(async move {
        loop {
            let batch = Votes::new(vec![vote(1_000, "law-001", Choice::Non)]);
            match store.count(batch).await {
                // Waited for longer than lock_timeout: what the chain does then, too.
                Err(fault) if fault.class == Class::Retry => {}
                counted => return counted,
            }
        }
    });
    let blocked = "SELECT count(*) FROM pg_stat_activity \
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("it waits, too", async || stage.number(blocked).await == 2).await;
    batch.commit().await.expect("committed");
    let repaired = repair.await.expect("no panic");
    assert_eq!(repaired.code, Some(0), "{}", repaired.stderr);
    assert!(!repaired.stderr.contains("40001"), "the lock, then the snapshot: {}", repaired.stderr);
    later.await.expect("no panic").expect("counted");
    assert_eq!(stage.number("SELECT count(*) FROM vote_audit").await, 52);
    let mut results = stage.results().await;
    results.remove("law-nowhere");
    assert_eq!(results, stage.recount().await);
}

/// Passes everything on, until a COMMIT: the server gets it, and its answer is lost with the
/// connection. Once. Gives the port.
async fn link_that_loses_the_answer_to_a_commit(stage: &Stage<'_>) -> String {
    let server =
        format!("{}:{}", stage.servers.get("POSTGRES_HOST"), stage.servers.get("POSTGRES_PORT"));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("an address").port().to_string();
    tokio::spawn(async move {
        let lost = Arc::new(AtomicBool::new(false));
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&server).await.expect("PostgreSQL listens");
            tokio::spawn(pass_on(client, server, Arc::clone(&lost)));
        }
    });
    port
}

async fn pass_on(mut client: TcpStream, mut server: TcpStream, lost: Arc<AtomicBool>) {
    let (mut from_client, mut from_server) = (vec![0; 65_536], vec![0; 65_536]);
    let mut commit = false;
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => {
                let Ok(length @ 1..) = read else { return };
                let sent = &from_client[..length];
                commit = sent.windows(7).any(|bytes| bytes == b"COMMIT\0")
                    && !lost.swap(true, Ordering::Relaxed);
                if server.write_all(sent).await.is_err() { return }
            }
            read = server.read(&mut from_server) => {
                let Ok(length @ 1..) = read else { return };
                if commit || client.write_all(&from_server[..length]).await.is_err() { return }
            }
        }
    }
}

#[tokio::test]
async fn a_repair_whose_commit_is_not_answered_says_that_it_took_effect() {
    for json in [false, true] {
        let stage = counted("unanswered").await;
        execute(&stage, DAMAGE).await;
        let port = link_that_loses_the_answer_to_a_commit(&stage).await;
        let mut arguments = vec!["recount", "--repair", "--yes"];
        arguments.extend(json.then_some("--json"));
        let mut command = command(&stage, BINARY, &arguments);
        command.envs([("POSTGRES_PORT", port.as_str()), ("POSTGRES_SSLMODE", "disable")]);
        let repaired = ended(command).await;
        assert_eq!(repaired.code, Some(0), "{}", repaired.stderr);
        if json {
            let object = repaired.json();
            assert_eq!((&object["corrected"], &object["drift_votes"]), (&json!(true), &json!(19)));
            assert_eq!(object["commit_unanswered"], true);
        } else {
            let text = &repaired.stdout;
            assert!(text.contains("corrected: 19 votes in 3 laws"), "{text}");
            assert!(text.contains("did not answer the COMMIT"), "{text}");
        }
        assert_eq!(stage.number("SELECT count(*) FROM result_corrections").await, 3, "once");
        assert_eq!(recount(&stage, &[]).await.code, Some(0));
    }
}

/// Part by part, and still one snapshot.
#[tokio::test]
async fn a_recount_is_of_one_moment_while_votes_are_counted() {
    let stage = Stage::migrated(Servers::shared(), "onemoment").await;
    // Several parts from the start on.
    let store = stage.store().await;
    store.count(Votes::new(votes(20_000, 30_000))).await.expect("counted");
    let (one, two) = (stage.start(&[]).await, stage.start(&[]).await);
    let config = stage.config(&[]);
    let patience = Patience::new(PATIENCE);
    let all = votes(0, 20_000);
    let mut midway = 0;
    // From before the first vote is published until the last one is counted.
    let recounting = eventually("all votes are counted", async || {
        for _ in 0..10 {
            let parts = AtomicU64::new(0);
            let count = |_| {
                parts.fetch_add(1, Ordering::Relaxed);
            };
            let recounted = store::recount(&config, patience, count).await.expect("recounted");
            assert!(recounted.agrees(), "{recounted:?}");
            assert!(parts.into_inner() > 1, "in parts");
            if recounted.votes == 50_000 {
                return true;
            }
            midway += 1;
        }
        false
    });
    futures::join!(recounting, stage.publish_votes(&all));
    assert!(midway > 0, "the first recount began before the first vote was there");
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn repairs_under_load_leave_results_and_audit_equal() {
    let stage = Stage::migrated(Servers::shared(), "underload").await;
    let (one, two) = (stage.start(&[]).await, stage.start(&[]).await);
    let all = votes(0, 40_000);
    let repair = async |at_least: usize| {
        stage.until_counted(at_least).await;
        execute(&stage, "UPDATE vote_results SET oui_count = oui_count + 5").await;
        let found = recount(&stage, &["--json"]).await;
        assert_eq!(found.json()["drift_votes"], 25, "in mid stream: {}", found.stdout);
        let repaired = recount(&stage, &["--repair", "--yes", "--json"]).await;
        assert_eq!(repaired.code, Some(0), "{}", repaired.stderr);
        assert_eq!(repaired.json()["drift_votes"], 25, "{}", repaired.stdout);
    };
    // Each repair has ten thousand votes going by.
    let (flowing, last) = all.split_at(30_000);
    for (number, votes) in flowing.chunks(10_000).enumerate() {
        tokio::join!(stage.publish_votes(votes), repair(10_000 * number + 1_000));
    }
    stage.publish_votes(last).await;
    stage.until_counted(all.len()).await;
    // Read in more than one part.
    let agree = recount(&stage, &["--json"]).await;
    assert_eq!((agree.code, agree.json()["votes"].as_u64()), (Some(0), Some(40_000)));
    for service in [one, two] {
        let log = service.stop().await;
        assert!(!log.contains("consuming stops"), "no batch gave up: {log}");
    }
    stage.assert_counted_exactly(&all).await;
    stage.assert_drained().await;
    let right = "SELECT count(*) FROM result_corrections \
                 WHERE oui_after = oui_before - 5 AND non_after = non_before";
    assert_eq!(stage.number(right).await, 15);
}

#[tokio::test]
async fn what_is_missing_has_an_exit_code_of_its_own() {
    let stage = Stage::new(Servers::shared(), "codes").await;
    let with = async |arguments: &[&str], settings: &[(&str, &str)]| {
        let mut command = command(&stage, BINARY, &[&["recount"], arguments].concat());
        command.envs(settings.iter().copied());
        let ended = ended(command).await;
        (ended.code, ended.stderr)
    };
    let (code, text) = with(&[], &[]).await;
    assert!(code == Some(78) && text.contains("vote-aggregator migrate"), "no tables: {text}");
    let (code, text) = with(&[], &[("POSTGRES_DB", "nowhere")]).await;
    assert!(code == Some(78) && text.contains("nowhere"), "{text}");
    let (code, text) = with(&[], &[("BATCH_SIZE", "many")]).await;
    assert!(code == Some(78) && text.contains("BATCH_SIZE"), "{text}");

    stage.store().await.count(Votes::new(votes(0, 50))).await.expect("counted");
    execute(&stage, DAMAGE).await;
    stage.servers.script(&["psql", "--", "-d", &stage.database, "-X", "-q", "-f", ROLES]);
    for (group, check) in [("vote_auditor", 1), ("vote_service", 1), ("vote_results_reader", 77)] {
        let role = format!("{group}_{}", stage.database);
        execute(&stage, &format!("CREATE ROLE {role} LOGIN PASSWORD 'least' IN ROLE {group}"))
            .await;
        let login = [("POSTGRES_USER", role.as_str()), ("POSTGRES_PASSWORD", "least")];
        let (code, text) = with(&[], &login).await;
        assert_eq!(code, Some(check), "{group}: {text}");
        let (code, text) = with(&["--repair", "--yes"], &login).await;
        assert_eq!(code, Some(77), "{group}: {text}");
        assert!(text.contains("42501"), "{group}: {text}");
    }
    assert_eq!(stage.results().await["law-nowhere"], [0, 7], "nobody repaired it");

    // A schema from before there was a record.
    execute(&stage, "DROP TABLE result_corrections").await;
    assert_eq!(with(&[], &[]).await.0, Some(1));
    let (code, text) = with(&["--repair", "--yes"], &[]).await;
    assert!(code == Some(78) && text.contains("result_corrections"), "{text}");
}
