//! What RabbitMQ refuses: missing permissions, which a start finds, and what a start waits for.

use lapin::options::BasicConsumeOptions;
use lapin::types::FieldTable;

use crate::support::{Ended, Servers, Service, Stage, assert_contains, votes};

/// A user of the broker of this stage's own.
struct User<'s> {
    stage: &'s Stage<'s>,
    name: String,
}

impl<'s> User<'s> {
    fn new(stage: &'s Stage<'s>) -> Self {
        let user = Self { stage, name: format!("user_{}", stage.database) };
        stage.servers.ctl(&["add_user", &user.name, "least"]);
        user
    }

    fn may(&self, configure: &str, write: &str, read: &str) {
        let set = ["set_permissions", "-p", "/", &self.name, configure, write, read];
        self.stage.servers.ctl(&set);
    }

    fn settings(&self) -> [(&str, &str); 2] {
        [("RABBITMQ_USER", self.name.as_str()), ("RABBITMQ_PASSWORD", "least")]
    }

    async fn check(&self, queue: &str) -> Ended {
        let settings = [&self.settings()[..], &[("RABBITMQ_QUEUE", queue)]].concat();
        self.stage.run_with(&["check", "--connect", "--json"], &settings).await
    }
}

fn has(check: &Ended, severity: &str, words: &str) {
    let findings = check.findings();
    let found = findings.iter().find(|finding| finding.to_string().contains(words));
    let found = found.unwrap_or_else(|| panic!("{words:?} in {}", check.stdout));
    assert_eq!(found["severity"], severity, "{found}");
    let remedy = found["remedy"].as_str().unwrap_or_default();
    assert!(remedy.contains("rabbitmqctl set_permissions -p '/'"), "{found}");
}

async fn assert_reason(service: &Service, words: &str) {
    let readiness = service.get("/readyz").await;
    assert_eq!(readiness.status, 503);
    let reason = &readiness.json()["checks"]["rabbitmq"]["reason"];
    assert!(reason.as_str().is_some_and(|reason| reason.contains(words)), "{words} in {reason}");
}

#[tokio::test]
async fn missing_permissions_are_found_at_start_and_passing_refusals_are_waited_for() {
    let stage = Stage::migrated(Servers::shared(), "rights").await;
    stage.declare(true, &[]).await;
    stage.declare_queue(&stage.dead_letter_queue(), true, &[]).await;
    let user = User::new(&stage);
    // RabbitMQ 4.3 asks for configure even where a declare is passive.
    user.may(&format!("^{}(\\.dlq)?$", stage.queue.replace('.', "\\.")), "", "");
    let found = user.check(&stage.queue).await.assert(1, &[]);
    has(&found, "error", &format!("no read permission on the queue \\\"{}\\\"", stage.queue));
    has(&found, "warning", ".dlq\\\"");
    has(&found, "error", "no write permission on the default exchange");
    let found = user.check(&format!("{}.new", stage.queue)).await;
    let texts = ["configure access to queue", "no permission to create the queue"];
    assert!(texts.iter().any(|text| found.stdout.contains(text)), "{}", found.stdout);
    assert_contains(&found.stdout, &["rabbitmqctl set_permissions -p '/'"]);

    user.may(".*", "", ".*");
    let named = ["write on the default exchange (amq.default)", "rabbitmqctl set_permissions"];
    stage.spawn(&user.settings()).await.assert_ends(77, &named).await;

    user.may(".*", ".*", ".*");
    stage.servers.ctl(&["set_user_limits", &user.name, r#"{"max-connections": 0}"#]);
    let (connection, channel) = stage.channel().await;
    let exclusive = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
    let queue = stage.queue.as_str().into();
    let held = channel.basic_consume(queue, "".into(), exclusive, FieldTable::default());
    let _held = held.await.expect("a consumer, until it is dropped");
    let service = stage.spawn(&user.settings()).await;
    service.until_logged("connection limit (0) is reached").await;
    assert_reason(&service, "rabbitmqctl list_connections").await;
    stage.servers.ctl(&["clear_user_limits", &user.name, "max-connections"]);
    service.until_logged("in exclusive use").await;
    assert!(service.logged("rabbitmqctl list_consumers") > 0, "{}", service.log());
    assert_reason(&service, "rabbitmqctl list_consumers").await;
    connection.close(200, "OK".into()).await.expect("closed");
    service.until_ready().await;
    stage.count(0, 20).await;
    service.stop().await;
    stage.servers.ctl(&["delete_user", &user.name]);
}

/// Refused with 405, until that connection ends.
#[tokio::test]
async fn a_queue_that_is_exclusive_to_another_connection_is_waited_for() {
    let stage = Stage::migrated(Servers::shared(), "locked").await;
    let connection = stage.exclusive_queue(&stage.queue).await;
    let service = stage.spawn(&[]).await;
    service.until_logged("cannot obtain exclusive access").await;
    assert_reason(&service, "declared the queue exclusive").await;
    connection.close(200, "OK".into()).await.expect("closed");
    service.until_ready().await;
    service.stop().await;
}

#[tokio::test]
async fn a_dead_letter_queue_that_cannot_be_reached_keeps_no_vote_from_being_counted() {
    let stage = Stage::migrated(Servers::shared(), "deadside").await;
    stage.declare(true, &[]).await;
    let connection = stage.exclusive_queue(&stage.dead_letter_queue()).await;
    stage.publish_votes(&votes(0, 20)).await;
    let service = stage.spawn(&[]).await;
    stage.until_counted(20).await;
    service.until_ready().await;
    service.until_logged("cannot obtain exclusive access").await;
    let (log, queue) = (service.log(), stage.dead_letter_queue());
    let mut warnings = log.lines().filter(|line| line.contains("WARN") && line.contains(&queue));
    assert!(warnings.any(|line| line.contains("cannot obtain exclusive access")), "{log}");
    connection.close(200, "OK".into()).await.expect("closed");
    service.stop().await;
}
