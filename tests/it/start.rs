//! What ends a start, and what it waits for.

use std::process::Stdio;

use futures::future::join_all;
use vote_aggregator::adapters::store::StartError;

use crate::support::repository::ROOT;
use crate::support::{Pooler, Servers, Stage, assert_lacks, eventually, listen, login, text};

/// The settings that could lose commits and for which the start is refused, and their remedy.
async fn lossy(stage: &Stage<'_>, settings: &[(&str, &str)]) -> (String, String) {
    match stage.prepare(settings).await {
        Err(StartError::Lossy { settings, remedy, .. }) => (settings, remedy),
        other => panic!("{:?}", other.err()),
    }
}

#[tokio::test]
async fn a_database_that_could_lose_commits_is_refused_unless_that_is_accepted() {
    let stage = Stage::migrated(Servers::shared(), "lossy").await;
    stage.set_default("synchronous_commit = off").await;
    assert_eq!(lossy(&stage, &[]).await.0, "synchronous_commit=off");
    stage.spawn(&[]).await.assert_ends(78, &["POSTGRES_ALLOW_LOSSY"]).await;
    stage.prepare(&[("POSTGRES_ALLOW_LOSSY", "true")]).await.expect("accepted");
}

#[tokio::test]
async fn a_table_that_a_crash_empties_is_refused_like_a_setting() {
    let stage = Stage::migrated(Servers::shared(), "unlogged").await;
    // In an order that the foreign keys allow.
    let tables = ["duplicate_attempts", "vote_results", "vote_audit"];
    for table in tables {
        stage.execute(&format!("ALTER TABLE {table} SET UNLOGGED")).await;
        let (settings, remedy) = lossy(&stage, &[]).await;
        assert!(settings.contains(&format!("unlogged table {table}")), "{settings}");
        assert!(remedy.contains("SET LOGGED"), "{remedy}");
    }
    stage.prepare(&[("POSTGRES_ALLOW_LOSSY", "true")]).await.expect("accepted");
    for table in tables.iter().rev() {
        stage.execute(&format!("ALTER TABLE {table} SET LOGGED")).await;
    }
    stage.prepare(&[]).await.expect("durable again");
}

/// A partition, a child, and a table on another server.
#[tokio::test]
async fn partitions_children_and_foreign_tables_are_looked_at_too() {
    let stage = Stage::new(Servers::shared(), "partitions").await;
    let partitioned = "\
        CREATE TABLE vote_audit (vote_hash varchar(64) COLLATE \"C\" PRIMARY KEY, \
            citizen_id varchar(100) NOT NULL, law_id varchar(50) NOT NULL, \
            choice varchar(3) NOT NULL, \"timestamp\" timestamptz NOT NULL) \
            PARTITION BY HASH (vote_hash); \
        CREATE TABLE first PARTITION OF vote_audit FOR VALUES WITH (MODULUS 2, REMAINDER 0); \
        CREATE UNLOGGED TABLE second PARTITION OF vote_audit \
            FOR VALUES WITH (MODULUS 2, REMAINDER 1)";
    stage.execute(partitioned).await;
    assert_eq!(lossy(&stage, &[]).await.0, "unlogged table second");
    let children = "\
        ALTER TABLE second SET LOGGED; CREATE UNLOGGED TABLE child () INHERITS (vote_results); \
        CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER far FOREIGN DATA WRAPPER nowhere; \
        CREATE FOREIGN TABLE away () INHERITS (vote_results) SERVER far";
    stage.execute(children).await;
    assert_eq!(lossy(&stage, &[]).await.0, "foreign table away, unlogged table child");
}

/// On a private server, since the settings hold for all of its databases.
#[tokio::test]
async fn commits_that_wait_for_no_standby_are_warned_of_and_refused_on_request() {
    let servers = Servers::private("standbynames");
    let stage = Stage::migrated(&servers, "standbynames").await;
    let required = [("POSTGRES_REQUIRE_STANDBY", "true")];
    stage.spawn(&required).await.assert_ends(78, &["synchronous_standby_names"]).await;

    // To the server a standby is a connection that replicates.
    let mut standby = tokio::process::Command::new("script/services");
    standby.args(["psql", "--dir"]).arg(servers.dir()).current_dir(ROOT).kill_on_drop(true);
    standby.args(["--", "-X", "dbname=postgres replication=true"]);
    let standby = standby.stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let mut standby = standby.expect("psql runs");
    stage.until_number("SELECT count(*) FROM pg_stat_replication", 1).await;
    // A role without the right to see the details notices it, too.
    let role = stage.role("least", "").await;
    stage.execute(&format!("GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")).await;
    let service = stage.start(&login(&role)).await;
    assert_eq!(service.logged("synchronous_standby_names is empty"), 1, "{}", service.log());
    service.until_metric("postgres_standbys", 1.0).await;
    service.until_metric("postgres_synchronous_standby", 0.0).await;
    let checked = stage.run("check", &["--connect"]).await;
    assert!(checked.stdout.contains("standbys connected: 1"), "{}", checked.stdout);
    service.stop().await;

    // Named standbys that a commit does not wait for.
    stage.set_default("synchronous_commit = local").await;
    stage.prepare(&[]).await.expect("without names, local means the same as on");
    stage.execute("ALTER SYSTEM SET synchronous_standby_names = 'one'").await;
    stage.execute("SELECT pg_reload_conf()").await;
    let names = "SELECT count(*) FROM pg_settings WHERE name = 'synchronous_standby_names' \
                 AND setting <> ''";
    stage.until_number(names, 1).await;
    assert_eq!(lossy(&stage, &required).await.0, "synchronous_commit=local");
    let accepted = [("POSTGRES_ALLOW_LOSSY", "true"), required[0]];
    stage.prepare(&accepted).await.expect("accepted, and standbys are named");
    standby.kill().await.expect("ended");
}

/// Waiting repairs none of these.
#[tokio::test]
async fn what_is_refused_at_start_ends_it_with_an_exit_code_and_a_hint() {
    let stage = Stage::migrated(Servers::shared(), "refused").await;
    let (_taken, port) = listen().await;
    // Of a stream only what arrives while a consumer is attached would be counted.
    let stream = format!("{}.stream", stage.queue);
    stage.declare_queue(&stream, true, &[("x-queue-type", text("stream"))]).await;
    let wrong = [("BATCH_SIZE", "many"), ("POSTGRES_PORT", "99999"), ("LOG_LEVEL", "chatty")];
    let named = wrong.map(|(name, value)| [format!("environment variable {name}"), value.into()]);
    let named = named.concat();
    let named: Vec<&str> = named.iter().map(String::as_str).collect();
    for (settings, code, texts) in [
        (&[("POSTGRES_PASSWORD", "wrong-secret")][..], 77, &["POSTGRES_PASSWORD"][..]),
        (&[("RABBITMQ_PASSWORD", "wrong-secret")], 77, &["RABBITMQ_PASSWORD"]),
        (&[("POSTGRES_DB", "no_such_database")], 78, &["POSTGRES_DB"]),
        (&[("RABBITMQ_VHOST", "no-such-vhost")], 78, &["RABBITMQ_VHOST"]),
        (&[("RABBITMQ_QUEUE", &stream)], 78, &["x-queue-type=stream", "RABBITMQ_QUEUE"]),
        (&[("PROMETHEUS_PORT", &port)], 78, &["PROMETHEUS_PORT"]),
        (&wrong, 78, &named),
    ] {
        let log = stage.spawn(settings).await.assert_ends(code, texts).await;
        assert_lacks(&log, &["wrong-secret", stage.servers.get("POSTGRES_PASSWORD")]);
    }
}

/// The start waits for a lock on a table as long as it takes, logs that, and can be stopped
/// meanwhile.
#[tokio::test]
async fn a_locked_table_at_start_is_waited_for_and_a_stop_is_a_stop() {
    let stage = Stage::migrated(Servers::shared(), "lockedstart").await;
    let lock = stage.hold("LOCK TABLE vote_audit").await;
    let [stopped, patient] = [stage.spawn(&[]).await, stage.spawn(&[]).await];
    for service in [&stopped, &patient] {
        service.until_logged("waiting for PostgreSQL").await;
    }
    stopped.stop().await;
    assert!(patient.log().contains("55P03"), "{}", patient.log());
    drop(lock);
    patient.until_ready().await;
    patient.stop().await;
}

/// Time or an operator may change each of these, so the service waits and names the reason.
#[tokio::test]
async fn a_read_only_server_and_a_pooler_are_named_and_waited_for() {
    let stage = Stage::migrated(Servers::shared(), "readonlystart").await;
    let role = stage.role("least", "").await;
    let read_only = format!(
        "ALTER ROLE {role} SET default_transaction_read_only = on; \
         GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"
    );
    stage.execute(&read_only).await;
    let strict = Pooler::with(&stage, None, "ignore_startup_parameters = search_path").await;
    let pooler = Pooler::with(&stage, None, "max_prepared_statements = 0").await;
    let [strict, pooled] = [&strict, &pooler].map(|it| [("POSTGRES_PORT", it.port.as_str())]);
    let cases = [
        (&login(&role)[..], "default_transaction_read_only is on", "25006", Some("read-only")),
        (&strict, "ignore_startup_parameters", "08P01", Some("a pooler")),
        // Through a pooler in transaction mode the next attempt may succeed by chance.
        (&pooled, "max_prepared_statements", "42P05", None),
    ];
    join_all(cases.iter().map(async |(settings, named, code, shown)| {
        let service = stage.spawn(settings).await;
        service.until_logged(named).await;
        assert!(service.log().contains(code), "{}", service.log());
        if let Some(shown) = shown {
            eventually(&format!("{shown} and {code} in /readyz"), async || {
                let reason = service.checks().await["postgres"]["reason"].to_string();
                reason.contains(shown) && reason.contains(code)
            })
            .await;
        }
        service.stop().await;
    }))
    .await;
}
