//! What keeps the service from starting, and what does not.

use lapin::types::AMQPValue;
use sqlx::AssertSqlSafe;
use vote_aggregator::adapters::store::StartError;

use crate::support::{Pooler, Servers, Service, Stage, eventually, run, votes};

async fn execute(stage: &Stage<'_>, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&stage.sql).await.expect("executed");
}

#[tokio::test]
async fn a_database_that_could_lose_commits_is_refused_unless_that_is_accepted() {
    let stage = Stage::migrated(Servers::shared(), "lossy").await;
    let database = &stage.database;
    execute(&stage, format!("ALTER DATABASE {database} SET synchronous_commit = off")).await;
    let refused = stage.prepare(&[]).await.err();
    let Some(StartError::Lossy { settings, .. }) = &refused else { panic!("{refused:?}") };
    assert_eq!(settings, "synchronous_commit=off");
    assert!(refused.is_some_and(|e| e.to_string().contains("POSTGRES_ALLOW_LOSSY")));
    stage.prepare(&[("POSTGRES_ALLOW_LOSSY", "true")]).await.expect("accepted");
}

/// Each of these passes for vote_audit, and is empty after a crash or is kept elsewhere.
#[tokio::test]
async fn a_table_that_a_crash_empties_is_refused_like_a_setting() {
    let stage = Stage::migrated(Servers::shared(), "unlogged").await;
    let cases = [
        ("ALTER TABLE duplicate_attempts SET UNLOGGED", "unlogged table duplicate_attempts"),
        ("ALTER TABLE vote_results SET UNLOGGED", "unlogged table vote_results"),
        ("ALTER TABLE vote_audit SET UNLOGGED", "unlogged table vote_audit"),
    ];
    for (alter, named) in cases {
        execute(&stage, alter.to_owned()).await;
        let refused = stage.prepare(&[]).await.err();
        let Some(StartError::Lossy { settings, remedy, .. }) = &refused else {
            panic!("{alter}: {refused:?}")
        };
        assert!(settings.contains(named), "{settings}");
        assert!(remedy.contains("SET LOGGED"), "{remedy}");
    }
    let mut service = stage.spawn(&[]).await;
    assert_eq!(service.exit_code().await, Some(78), "{}", service.log());
    stage.prepare(&[("POSTGRES_ALLOW_LOSSY", "true")]).await.expect("accepted");
    for table in ["vote_audit", "vote_results", "duplicate_attempts"] {
        execute(&stage, format!("ALTER TABLE {table} SET LOGGED")).await;
    }
    stage.prepare(&[]).await.expect("durable again");
}

/// A partition, a child, and a table on another server.
#[tokio::test]
async fn partitions_children_and_foreign_tables_are_looked_at_too() {
    let stage = Stage::new(Servers::shared(), "partitions").await;
    execute(
        &stage,
        "CREATE TABLE vote_audit (vote_hash varchar(64) COLLATE \"C\" PRIMARY KEY, \
             citizen_id varchar(100) NOT NULL, law_id varchar(50) NOT NULL, \
             choice varchar(3) NOT NULL, \"timestamp\" timestamptz NOT NULL) \
             PARTITION BY HASH (vote_hash); \
         CREATE TABLE first PARTITION OF vote_audit FOR VALUES WITH (MODULUS 2, REMAINDER 0); \
         CREATE UNLOGGED TABLE second PARTITION OF vote_audit \
             FOR VALUES WITH (MODULUS 2, REMAINDER 1)"
            .to_owned(),
    )
    .await;
    let lossy = async || match stage.prepare(&[]).await {
        Err(StartError::Lossy { settings, .. }) => settings,
        other => panic!("{:?}", other.err()),
    };
    assert_eq!(lossy().await, "unlogged table second");
    execute(
        &stage,
        "ALTER TABLE second SET LOGGED; CREATE UNLOGGED TABLE child () INHERITS (vote_results); \
         CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER far FOREIGN DATA WRAPPER nowhere; \
         CREATE FOREIGN TABLE away () INHERITS (vote_results) SERVER far"
            .to_owned(),
    )
    .await;
    assert_eq!(lossy().await, "foreign table away, unlogged table child");
}

/// On a private server, since the settings hold for all of its databases.
#[tokio::test]
async fn commits_that_wait_for_no_standby_are_warned_of_and_refused_on_request() {
    let servers = Servers::private("standbynames");
    let stage = Stage::migrated(&servers, "standbynames").await;
    let required = [("POSTGRES_REQUIRE_STANDBY", "true")];
    let mut service = stage.spawn(&required).await;
    assert_eq!(service.exit_code().await, Some(78));
    assert!(service.log().contains("synchronous_standby_names"), "{}", service.log());

    // To the server a standby is a connection that replicates.
    let mut standby = tokio::process::Command::new("script/services")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["psql", "--dir"])
        .arg(servers.dir())
        .args(["--", "-X", "dbname=postgres replication=true"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("psql runs");
    let connected = "SELECT count(*) FROM pg_stat_replication";
    eventually("it replicates", async || stage.number(connected).await == 1).await;
    // Seen by a role that may see no details, too.
    let role = format!("least_{}", stage.database);
    execute(
        &stage,
        format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'least'; \
             GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"
        ),
    )
    .await;
    let as_role = [("POSTGRES_USER", role.as_str()), ("POSTGRES_PASSWORD", "least")];
    let service = stage.start(&as_role).await;
    assert_eq!(service.logged("synchronous_standby_names is empty"), 1, "{}", service.log());
    assert_eq!(service.metric("postgres_standbys").await, Some(1.0));
    assert_eq!(service.metric("postgres_synchronous_standby").await, Some(0.0));
    let checked = run(&stage, "check", &["--connect"]).await;
    assert!(checked.stdout.contains("standbys connected: 1"), "{}", checked.stdout);
    service.stop().await;

    // Named standbys that a commit does not wait for.
    let database = &stage.database;
    execute(&stage, format!("ALTER DATABASE {database} SET synchronous_commit = local")).await;
    stage.prepare(&[]).await.expect("without names, local is as good as on");
    for statement in
        ["ALTER SYSTEM SET synchronous_standby_names = 'one'", "SELECT pg_reload_conf()"]
    {
        execute(&stage, statement.to_owned()).await;
    }
    let names = "SELECT count(*) FROM pg_settings WHERE name = 'synchronous_standby_names' \
                 AND setting <> ''";
    eventually("the names are read", async || stage.number(names).await == 1).await;
    let refused = stage.prepare(&required).await.err();
    let Some(StartError::Lossy { settings, .. }) = &refused else { panic!("{refused:?}") };
    assert_eq!(settings, "synchronous_commit=local");
    let accepted = [("POSTGRES_ALLOW_LOSSY", "true"), required[0]];
    stage.prepare(&accepted).await.expect("accepted, and standbys are named");
    standby.kill().await.expect("ended");
}

#[tokio::test]
async fn wrong_settings_are_all_named_with_where_they_come_from() {
    let stage = Stage::new(Servers::shared(), "settings").await;
    let mut service = stage
        .spawn(&[
            ("BATCH_SIZE", "many"),
            ("POSTGRES_PORT", "99999"),
            ("RABBITMQ_PREFETCH_COUNT", "0"),
            ("LOG_LEVEL", "chatty"),
        ])
        .await;
    assert_eq!(service.exit_code().await, Some(78));
    let log = service.log();
    for name in ["BATCH_SIZE", "POSTGRES_PORT", "LOG_LEVEL"] {
        assert!(log.contains(&format!("environment variable {name}")), "{name} in {log}");
    }
    for value in ["many", "99999", "chatty"] {
        assert!(log.contains(value), "{value} in {log}");
    }
    assert!(!log.contains(stage.servers.get("POSTGRES_PASSWORD")));
}

#[tokio::test]
async fn a_prefetch_below_the_batch_size_is_refused() {
    let stage = Stage::new(Servers::shared(), "prefetch").await;
    let mut service = stage.spawn(&[("RABBITMQ_PREFETCH_COUNT", "50")]).await;
    assert_eq!(service.exit_code().await, Some(78));
    assert!(service.log().contains("RABBITMQ_PREFETCH_COUNT"), "{}", service.log());
}

#[tokio::test]
async fn refused_credentials_end_with_77_and_missing_places_with_78() {
    let stage = Stage::migrated(Servers::shared(), "refused").await;
    let cases = [
        ("POSTGRES_PASSWORD", "wrong-secret", 77, "POSTGRES_PASSWORD"),
        ("RABBITMQ_PASSWORD", "wrong-secret", 77, "RABBITMQ_PASSWORD"),
        ("POSTGRES_DB", "no_such_database", 78, "POSTGRES_DB"),
        ("RABBITMQ_VHOST", "no-such-vhost", 78, "RABBITMQ_VHOST"),
    ];
    for (variable, value, code, hint) in cases {
        let mut service = stage.spawn(&[(variable, value)]).await;
        assert_eq!(service.exit_code().await, Some(code), "{variable}: {}", service.log());
        let log = service.log();
        assert!(log.contains(hint), "{hint} in {log}");
        assert!(!log.contains("wrong-secret"), "{log}");
    }
}

/// Of a stream only what arrives while a consumer is attached would be counted.
#[tokio::test]
async fn a_stream_queue_is_refused_with_what_to_do() {
    let stage = Stage::migrated(Servers::shared(), "stream").await;
    let stream = AMQPValue::LongString("stream".into());
    stage.declare(true, &[("x-queue-type", stream)]).await;
    stage.publish_votes(&votes(0, 5)).await;
    let mut service = stage.spawn(&[]).await;
    assert_eq!(service.exit_code().await, Some(78), "{}", service.log());
    let log = service.log();
    assert!(log.contains("x-queue-type=stream") && log.contains("RABBITMQ_QUEUE"), "{log}");
}

#[tokio::test]
async fn servers_that_are_down_at_start_are_waited_for() {
    let servers = Servers::private("late");
    let stage = Stage::migrated(&servers, "late").await;
    servers.script(&["stop", "rabbitmq"]);
    servers.script(&["stop", "postgres"]);
    let service = stage.spawn(&[]).await;
    service.until_logged("waiting for PostgreSQL").await;
    let readiness = service.get("/readyz").await;
    assert_eq!(readiness.status, 503);
    assert_eq!(service.get("/livez").await.status, 200, "alive, if not ready");
    servers.script(&["start", "postgres"]);
    service.until_logged("no session with RabbitMQ").await;
    let checks = service.get("/readyz").await.json()["checks"].clone();
    assert_eq!(checks["postgres"]["ok"], true);
    assert_eq!(checks["rabbitmq"]["ok"], false);
    servers.script(&["start", "rabbitmq"]);
    service.until_ready().await;
    let batch = votes(0, 150);
    stage.publish_votes(&batch).await;
    stage.until_counted(150).await;
    service.stop().await;
    stage.assert_counted_exactly(&batch).await;
}

#[tokio::test]
async fn a_metrics_port_that_is_taken_is_a_clear_refusal() {
    let stage = Stage::migrated(Servers::shared(), "port").await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let mut service = stage.spawn(&[("PROMETHEUS_PORT", port.as_str())]).await;
    assert_eq!(service.exit_code().await, Some(78));
    assert!(service.log().contains("PROMETHEUS_PORT"), "{}", service.log());
}

#[tokio::test]
async fn every_command_helps_with_an_example_and_wrong_usage_ends_with_2() {
    for arguments in
        [&["--help"][..], &["check", "--help"], &["migrate", "--help"], &["publish", "--help"]]
    {
        let help = Service::output(arguments).await;
        assert_eq!(help.0, Some(0));
        assert!(help.1.contains("Examples:"), "{arguments:?}: {}", help.1);
    }
    for arguments in [&["--no-such-flag"][..], &["publish", "--malformed", "2"], &["count"]] {
        assert_eq!(Service::output(arguments).await.0, Some(2), "{arguments:?}");
    }
}

/// Somebody holds a lock on a table for as long as it takes: the start waits, says so, and can be
/// stopped like anything else.
#[tokio::test]
async fn a_locked_table_at_start_is_waited_for_and_a_stop_is_a_stop() {
    let stage = Stage::migrated(Servers::shared(), "lockedstart").await;
    let mut other = stage.sql.begin().await.expect("a transaction");
    sqlx::raw_sql("LOCK TABLE vote_audit").execute(&mut *other).await.expect("locked");
    let stopped = stage.spawn(&[]).await;
    stopped.until_logged("waiting for PostgreSQL").await;
    stopped.stop().await;

    let patient = stage.spawn(&[]).await;
    patient.until_logged("waiting for PostgreSQL").await;
    assert!(patient.log().contains("55P03"), "{}", patient.log());
    other.rollback().await.expect("unlocked");
    patient.until_ready().await;
    patient.stop().await;
}

/// Time or an operator may change each of these, so the service waits, and says what for.
#[tokio::test]
async fn a_read_only_server_and_a_pooler_are_named_and_waited_for() {
    let stage = Stage::migrated(Servers::shared(), "readonlystart").await;
    let role = format!("least_{}", stage.database);
    execute(
        &stage,
        format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'least'; \
             ALTER ROLE {role} SET default_transaction_read_only = on; \
             GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"
        ),
    )
    .await;
    let strict = Pooler::ignoring(&stage, "search_path").await;
    let pooler = Pooler::start(&stage).await;
    let cases = [
        (
            vec![("POSTGRES_USER", role.as_str()), ("POSTGRES_PASSWORD", "least")],
            "default_transaction_read_only is on",
            "25006",
            "read-only",
        ),
        (
            vec![("POSTGRES_PORT", strict.port.as_str())],
            "ignore_startup_parameters",
            "08P01",
            "a pooler",
        ),
        (vec![("POSTGRES_PORT", pooler.port.as_str())], "pool_mode = session", "42P05", "a pooler"),
    ];
    futures::future::join_all(cases.iter().map(async |(overrides, named, code, shown)| {
        let service = stage.spawn(overrides).await;
        service.until_logged(named).await;
        assert!(service.log().contains(code), "{}", service.log());
        // Through a pooler in transaction mode the next attempt may succeed by chance.
        if *code != "42P05" {
            let readiness = service.get("/readyz").await;
            assert_eq!(readiness.status, 503);
            let reason = readiness.json()["checks"]["postgres"]["reason"].to_string();
            assert!(reason.contains(shown) && reason.contains(code), "{reason}");
        }
        service.stop().await;
    }))
    .await;
}
