//! Liveness, readiness, startup and the health check, through real outages of both servers.

use std::collections::BTreeMap;

use crate::support::{
    Servers, Service, Stage, assert_contains, assert_lacks, eventually, login, settings,
};

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

/// From a start without both servers on: it waits for them, and shows each outage and its end.
#[tokio::test]
async fn health_shows_every_outage_its_server_and_its_end() {
    let servers = Servers::private("health");
    let stage = Stage::migrated(&servers, "health").await;
    servers.script(&["stop", "rabbitmq"]);
    servers.script(&["stop", "postgres"]);
    let service = stage.spawn(&[]).await;
    service.until_logged("waiting for PostgreSQL").await;
    let environment = stage.environment_with(&[("PROMETHEUS_PORT", &service.port().await)]);
    assert_eq!(service.get("/livez").await.status, 200);
    let startup = service.get("/startupz").await;
    assert_eq!((startup.status, &startup.json()["status"]), (503, &"starting".into()));
    assert_eq!(startup.json()["checks"]["postgres"]["ok"], false);
    assert_eq!(service.get("/readyz").await.status, 503);
    assert_eq!(health_check(&environment, "livez").await, Some(0));
    assert_eq!(health_check(&environment, "startupz").await, Some(1));
    servers.script(&["start", "postgres"]);
    service.until_logged("no session with RabbitMQ").await;
    let checks = service.checks().await;
    assert_eq!(checks["postgres"]["ok"], true);
    assert_eq!(checks["rabbitmq"]["ok"], false);
    servers.script(&["start", "rabbitmq"]);
    service.until_ready().await;
    assert_eq!(service.get("/startupz").await.status, 200);
    assert_eq!(health_check(&environment, "readyz").await, Some(0));

    // Without votes on their way, no failing batch shows the outage.
    for (server, other) in [("postgres", "rabbitmq"), ("rabbitmq", "postgres")] {
        let healthy = service.checks().await[server]["since"].clone();
        servers.script(&["stop", server]);
        service.until_not_ready().await;
        let answer = service.get("/readyz").await.json();
        assert_eq!(answer["status"], "unavailable");
        let checks = &answer["checks"];
        assert_eq!(checks[server]["ok"], false, "{answer}");
        assert_eq!(checks[other]["ok"], true, "{answer}");
        assert_ne!(checks[server]["since"], healthy, "{answer}");
        assert!(checks[server]["reason"].as_str().is_some_and(|why| why.len() > 10));
        assert_eq!(health_check(&environment, "readyz").await, Some(1));
        assert_eq!(health_check(&environment, "livez").await, Some(0));
        assert_eq!(service.get("/livez").await.status, 200);
        assert_eq!(service.get("/startupz").await.status, 200, "a start is not taken back");
        servers.script(&["start", server]);
        service.until_ready().await;
        assert_eq!(health_check(&environment, "readyz").await, Some(0));
    }

    // Ready means that votes are counted.
    let all = stage.publish_new(0, 100).await;
    stage.finish([service], &all).await;
    assert_eq!(health_check(&environment, "livez").await, Some(1), "nothing runs any more");
}

#[tokio::test]
async fn a_health_check_that_cannot_ask_says_no_and_why() {
    let stage = Stage::new(Servers::shared(), "cannot_ask").await;
    for (setting, reason) in
        [(("PROMETHEUS_PORT", "0"), "PROMETHEUS_PORT is 0"), (("BATCH_SIZE", "many"), "BATCH_SIZE")]
    {
        let environment = stage.environment_with(&[setting]);
        for asking in ["health-check", "--health-check"] {
            let asked = Service::spawn(&stage.queue, &[asking], &environment).await;
            asked.assert_ends(1, &[reason]).await;
        }
    }
    let both = ["--health-check", "migrate"];
    let refused = Service::spawn(&stage.queue, &both, &stage.environment()).await;
    refused.assert_ends(2, &[]).await;
}

/// Every way in which either server can fail, with names that are easy to find in an answer.
#[tokio::test]
async fn no_failure_shows_an_address_a_user_a_database_or_a_queue_over_http() {
    let servers = Servers::private("names");
    let stage = Stage::migrated(&servers, "peculiar").await;
    let role = stage.role("peculiar_role", "").await;
    stage.execute(&format!("GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")).await;
    servers.ctl(&["add_vhost", "peculiar-vhost"]);
    servers.ctl(&["add_user", "peculiar-user", "right"]);
    servers.ctl(&["set_permissions", "-p", "peculiar-vhost", "peculiar-user", ".*", ".*", ".*"]);
    let user = "RABBITMQ_USER=peculiar-user RABBITMQ_PASSWORD=right RABBITMQ_VHOST=peculiar-vhost";
    let user = settings(user);
    let others = settings("RECONCILE_INTERVAL_SECONDS=0 MAX_RETRY_ATTEMPTS=0");
    let names = [&user[..], &login(&role), &others].concat();
    let (mut seen, mut log) = (Vec::new(), String::new());
    let mut until_shown = async |service: &Service, reason: &str| {
        eventually(&format!("{reason:?} in /readyz; {}", service.log()), async || {
            let body = service.get("/readyz").await.body;
            let shown = body.contains(reason);
            seen.extend([body, service.get("/startupz").await.body]);
            shown
        })
        .await;
    };

    // No connection, from the start on.
    for (variable, host) in
        [("POSTGRES_HOST", "127.0.0.77"), ("RABBITMQ_HOST", "peculiar-host.invalid")]
    {
        let service = stage.spawn(&[&names[..], &[(variable, host)]].concat()).await;
        until_shown(&service, "no connection").await;
        service.until_logged(host).await;
        log += &service.stop().await;
    }

    let service = stage.start(&names).await;
    until_shown(&service, "consuming").await;
    // The breaker opens, with a message that contains the database's name.
    let trigger = format!(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         RAISE EXCEPTION 'peculiar-text {}' USING ERRCODE = '53100'; END $$; \
         CREATE TRIGGER refuse BEFORE INSERT ON vote_audit EXECUTE FUNCTION refuse()",
        stage.database
    );
    stage.execute(&trigger).await;
    stage.run_with(&["publish", "--count", "10"], &user).await.assert(0, &[]);
    until_shown(&service, "PostgreSQL does not commit votes: SQLSTATE 53100").await;
    until_shown(&service, "not consuming while PostgreSQL does not commit votes").await;
    stage.execute("DROP TRIGGER refuse ON vote_audit").await;
    service.until_ready().await;

    // Credentials that are no longer valid.
    servers.ctl(&["change_password", "peculiar-user", "wrong"]);
    servers.ctl(&["close_all_connections", "--vhost", "peculiar-vhost", "test"]);
    until_shown(&service, "credentials, certificate or permission refused").await;
    servers.ctl(&["change_password", "peculiar-user", "right"]);
    service.until_ready().await;
    stage.execute(&format!("ALTER ROLE {role} PASSWORD 'wrong'")).await;
    assert!(stage.terminate("usename LIKE 'peculiar_role%'").await > 0);
    until_shown(&service, "credentials refused: SQLSTATE 28P01").await;
    stage.execute(&format!("ALTER ROLE {role} PASSWORD 'least'")).await;
    service.until_ready().await;

    // Servers that stop.
    for server in ["rabbitmq", "postgres"] {
        servers.script(&["stop", server]);
        service.until_not_ready().await;
        until_shown(&service, "unavailable").await;
        servers.script(&["start", server]);
        service.until_ready().await;
    }
    log += &service.stop().await;

    assert!(seen.len() > 20);
    let ports = [servers.get("RABBITMQ_PORT"), servers.get("POSTGRES_PORT")];
    for body in &seen {
        let mut json: serde_json::Value = serde_json::from_str(body).expect("JSON");
        for side in ["rabbitmq", "postgres"] {
            // Digits that may be those of a port.
            json["checks"][side]["since"] = serde_json::Value::Null;
        }
        assert_lacks(&json.to_string(), &["peculiar", "127.0.0", "localhost", &stage.queue]);
        assert_lacks(&json.to_string(), &ports);
    }
    let names = ["peculiar-user", "peculiar-vhost", "peculiar_role", "peculiar-text", ports[1]];
    assert_contains(&log, &names);
}
