//! Liveness, readiness, startup and the health check, through real outages of both servers.

use std::collections::BTreeMap;

use crate::support::{Servers, Service, Stage, eventually, execute, votes};

/// Exit code of `health-check` with this environment, asking `endpoint`.
async fn health_check(environment: &BTreeMap<String, String>, endpoint: &str) -> Option<i32> {
    let arguments = ["health-check", "--ask", endpoint];
    let code = Service::spawn("health-check", &arguments, environment).await.exit_code().await;
    if endpoint == "readyz" {
        let mut flag = Service::spawn("health-check", &["--health-check"], environment).await;
        assert_eq!(flag.exit_code().await, code, "as a flag it is the same");
    }
    code
}

#[tokio::test]
async fn it_tells_of_every_outage_and_of_its_end_and_of_which_server() {
    let servers = Servers::private("health");
    let stage = Stage::migrated(&servers, "health").await;
    servers.script(&["stop", "postgres"]);
    let service = stage.spawn(&[]).await;
    let address = service.address().await;
    let port = address.rsplit(':').next().expect("a port").to_owned();
    let mut environment = stage.environment();
    environment.insert("PROMETHEUS_PORT".to_owned(), port);
    assert_eq!(service.get("/livez").await.status, 200);
    let startup = service.get("/startupz").await;
    assert_eq!((startup.status, &startup.json()["status"]), (503, &"starting".into()));
    assert_eq!(startup.json()["checks"]["postgres"]["ok"], false);
    assert_eq!(service.get("/readyz").await.status, 503);
    assert_eq!(health_check(&environment, "livez").await, Some(0));
    assert_eq!(health_check(&environment, "startupz").await, Some(1));
    servers.script(&["start", "postgres"]);
    service.until_ready().await;
    assert_eq!(service.get("/startupz").await.status, 200);
    assert_eq!(health_check(&environment, "readyz").await, Some(0));

    // Without a single vote on its way: nothing fails that would tell by itself.
    for (server, check, other) in
        [("postgres", "postgres", "rabbitmq"), ("rabbitmq", "rabbitmq", "postgres")]
    {
        let healthy = service.get("/readyz").await.json()["checks"][check]["since"].clone();
        servers.script(&["stop", server]);
        service.until_not_ready().await;
        let answer = service.get("/readyz").await.json();
        assert_eq!(answer["status"], "unavailable");
        assert_eq!(answer["checks"][check]["ok"], false, "{answer}");
        assert_eq!(answer["checks"][other]["ok"], true, "{answer}");
        assert_ne!(answer["checks"][check]["since"], healthy, "{answer}");
        assert!(answer["checks"][check]["reason"].as_str().is_some_and(|why| why.len() > 10));
        assert_eq!(health_check(&environment, "readyz").await, Some(1));
        assert_eq!(health_check(&environment, "livez").await, Some(0));
        assert_eq!(service.get("/livez").await.status, 200);
        assert_eq!(service.get("/startupz").await.status, 200, "a start is not taken back");
        servers.script(&["start", server]);
        service.until_ready().await;
        assert_eq!(health_check(&environment, "readyz").await, Some(0));
    }

    // Green means that votes are counted.
    let all = votes(0, 100);
    stage.publish_votes(&all).await;
    stage.until_counted(100).await;
    service.stop().await;
    stage.assert_counted_exactly(&all).await;
    assert_eq!(health_check(&environment, "livez").await, Some(1), "nothing runs any more");
}

#[tokio::test]
async fn a_health_check_that_cannot_ask_says_no_and_why() {
    let stage = Stage::new(Servers::shared(), "cannot_ask").await;
    for (variable, value, reason) in
        [("PROMETHEUS_PORT", "0", "PROMETHEUS_PORT is 0"), ("BATCH_SIZE", "many", "BATCH_SIZE")]
    {
        let mut environment = stage.environment();
        environment.insert(variable.to_owned(), value.to_owned());
        for asking in ["health-check", "--health-check"] {
            let mut asked = Service::spawn(&stage.queue, &[asking], &environment).await;
            assert_eq!(asked.exit_code().await, Some(1));
            assert!(asked.log().contains(reason), "{}", asked.log());
        }
    }
    let both = ["--health-check", "migrate"];
    let mut confused = Service::spawn(&stage.queue, &both, &stage.environment()).await;
    assert_eq!(confused.exit_code().await, Some(2), "{}", confused.log());
}

/// A role and a user with names that nothing else has, and how they get their password back.
async fn peculiar_accounts(servers: &Servers, stage: &Stage<'_>) {
    for statement in [
        "DROP ROLE IF EXISTS peculiar_role",
        "CREATE ROLE peculiar_role LOGIN PASSWORD 'right'",
        "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO peculiar_role",
    ] {
        execute(stage, statement).await;
    }
    servers.script(&["ctl", "--", "add_vhost", "peculiar-vhost"]);
    servers.script(&["ctl", "--", "add_user", "peculiar-user", "right"]);
    let all = ["-p", "peculiar-vhost", "peculiar-user", ".*", ".*", ".*"];
    servers.script(&[&["ctl", "--", "set_permissions"], &all[..]].concat());
}

/// Every way that either side can fail, with names that give themselves away.
#[tokio::test]
async fn no_failure_shows_an_address_a_user_a_database_or_a_queue_over_http() {
    let servers = Servers::private("names");
    let stage = Stage::migrated(&servers, "peculiar").await;
    peculiar_accounts(&servers, &stage).await;
    let names = [
        ("RABBITMQ_USER", "peculiar-user"),
        ("RABBITMQ_PASSWORD", "right"),
        ("RABBITMQ_VHOST", "peculiar-vhost"),
        ("POSTGRES_USER", "peculiar_role"),
        ("POSTGRES_PASSWORD", "right"),
        ("RECONCILE_INTERVAL_SECONDS", "0"),
        ("MAX_RETRY_ATTEMPTS", "0"),
    ];
    let mut seen = Vec::new();
    let mut log = String::new();
    let look = async |service: &Service, seen: &mut Vec<String>, reason: &str| {
        eventually(&format!("{reason:?} in /readyz; {}", service.log()), async || {
            let body = service.get("/readyz").await.body;
            seen.push(body.clone());
            seen.push(service.get("/startupz").await.body);
            body.contains(reason)
        })
        .await;
    };

    // No connection, from the start on.
    for (variable, host) in
        [("POSTGRES_HOST", "127.0.0.77"), ("RABBITMQ_HOST", "peculiar-host.invalid")]
    {
        let service = stage.spawn(&[&names[..], &[(variable, host)]].concat()).await;
        look(&service, &mut seen, "no connection").await;
        service.until_logged(host).await;
        log += &service.stop().await;
    }

    let service = stage.start(&names).await;
    look(&service, &mut seen, "consuming").await;
    // The breaker, with a message that names everything.
    let trigger = format!(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         RAISE EXCEPTION 'peculiar-text {}' USING ERRCODE = '53100'; END $$; \
         CREATE TRIGGER refuse BEFORE INSERT ON vote_audit EXECUTE FUNCTION refuse()",
        stage.database
    );
    execute(&stage, &trigger).await;
    let publishing = [("RABBITMQ_USER", "peculiar-user"), ("RABBITMQ_PASSWORD", "right")];
    let publishing = [&publishing[..], &[("RABBITMQ_VHOST", "peculiar-vhost")]].concat();
    let sent = ["publish", "--count", "10"];
    let mut environment = stage.environment();
    environment.extend(publishing.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())));
    let mut publisher = Service::spawn("publish", &sent, &environment).await;
    assert_eq!(publisher.exit_code().await, Some(0), "{}", publisher.log());
    look(&service, &mut seen, "PostgreSQL takes no votes: SQLSTATE 53100").await;
    look(&service, &mut seen, "not consuming while PostgreSQL takes no votes").await;
    execute(&stage, "DROP TRIGGER refuse ON vote_audit").await;
    service.until_ready().await;

    // Credentials that are no longer good.
    servers.script(&["ctl", "--", "change_password", "peculiar-user", "wrong"]);
    servers.script(&["ctl", "--", "close_all_connections", "--vhost", "peculiar-vhost", "test"]);
    look(&service, &mut seen, "credentials, certificate or permission refused").await;
    servers.script(&["ctl", "--", "change_password", "peculiar-user", "right"]);
    service.until_ready().await;
    execute(&stage, "ALTER ROLE peculiar_role PASSWORD 'wrong'").await;
    let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                 WHERE usename = 'peculiar_role'";
    assert!(stage.number(ended).await > 0);
    look(&service, &mut seen, "credentials refused: SQLSTATE 28P01").await;
    execute(&stage, "ALTER ROLE peculiar_role PASSWORD 'right'").await;
    service.until_ready().await;

    // Servers that go away.
    for server in ["rabbitmq", "postgres"] {
        servers.script(&["stop", server]);
        service.until_not_ready().await;
        look(&service, &mut seen, "unavailable").await;
        servers.script(&["start", server]);
        service.until_ready().await;
    }
    log += &service.stop().await;

    assert!(seen.len() > 20);
    let queue = stage.queue.as_str();
    let ports = [servers.get("RABBITMQ_PORT"), servers.get("POSTGRES_PORT")];
    for body in &seen {
        let mut json: serde_json::Value = serde_json::from_str(body).expect("JSON");
        for side in ["rabbitmq", "postgres"] {
            // Digits that may be those of a port.
            json["checks"][side]["since"] = serde_json::Value::Null;
        }
        let shown = json.to_string();
        for secret in ["peculiar", "127.0.0", "localhost", queue, ports[0], ports[1]] {
            assert!(!shown.contains(secret), "{secret:?} in {shown}");
        }
    }
    for message in ["peculiar-user", "peculiar-vhost", "peculiar_role", "peculiar-text", ports[1]] {
        assert!(log.contains(message), "operators read of {message:?} in the log");
    }
}
