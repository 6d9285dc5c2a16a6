//! Liveness, readiness, startup and the health check, through real outages of both servers.

use std::collections::BTreeMap;

use crate::support::{Servers, Service, Stage, votes};

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
