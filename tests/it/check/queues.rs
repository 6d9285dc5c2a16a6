//! What `check` finds out about the queues.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lapin::types::AMQPValue;

use super::{check, closed_port, everything};
use crate::support::{Interceptor, Pass, Servers, Stage, eventually};

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

#[tokio::test]
async fn a_queue_that_loses_votes_is_told_of_with_all_its_reasons() {
    struct Case<'a> {
        name: &'a str,
        durable: bool,
        arguments: &'a [(&'a str, AMQPValue)],
        code: i32,
        found: &'a [(&'a str, &'a str)],
    }
    let to_nowhere =
        [("x-dead-letter-exchange", text("")), ("x-dead-letter-routing-key", text("nowhere"))];
    let cases = [
        Case {
            name: "checkttl",
            durable: true,
            arguments: &[
                ("x-message-ttl", AMQPValue::LongInt(60_000)),
                ("x-max-length", AMQPValue::LongInt(1_000)),
                ("x-expires", AMQPValue::LongInt(3_600_000)),
            ],
            code: 1,
            found: &[
                ("x-message-ttl=60000", "error"),
                ("x-max-length=1000 with drop-head", "error"),
                ("x-expires=3600000", "error"),
                ("declared without a dead-letter exchange", "warning"),
                ("x-queue-type=classic", "warning"),
            ],
        },
        Case {
            name: "checklimit",
            durable: true,
            arguments: &[
                ("x-queue-type", text("quorum")),
                ("x-delivery-limit", AMQPValue::LongInt(0)),
            ],
            code: 1,
            found: &[("x-delivery-limit=0", "error")],
        },
        Case {
            name: "checkroute",
            durable: true,
            arguments: &[("x-queue-type", text("quorum"))],
            code: 0,
            found: &[
                ("declared without a dead-letter exchange", "warning"),
                ("no x-delivery-limit", "info"),
            ],
        },
        Case {
            name: "checknowhere",
            durable: true,
            arguments: &to_nowhere,
            code: 1,
            found: &[("the queue \"nowhere\", which does not exist", "error")],
        },
        Case {
            name: "checkstream",
            durable: true,
            arguments: &[("x-queue-type", text("stream"))],
            code: 1,
            found: &[("x-queue-type=stream", "error")],
        },
        Case {
            name: "checktransient",
            durable: false,
            arguments: &[],
            code: 1,
            found: &[("not durable", "error")],
        },
    ];
    for Case { name, durable, arguments, code, found } in cases {
        let stage = Stage::migrated(Servers::shared(), name).await;
        stage.declare(durable, arguments).await;
        let before = everything(&stage).await;
        let ended = check(&stage, &["--connect", "--json"], &[]).await;
        assert_eq!(ended.code, Some(code), "{name}: {}", ended.stdout);
        for (words, severity) in found {
            assert_eq!(ended.severity(words), *severity, "{name}: {words}");
        }
        assert_eq!(everything(&stage).await, before, "{name}");
        let strict = check(&stage, &["--connect", "--strict"], &[]).await;
        assert_eq!(strict.code, Some(1), "{name}: {}", strict.stdout);
    }
}

#[tokio::test]
async fn a_queue_that_another_connection_has_to_itself_is_an_error() {
    let stage = Stage::migrated(Servers::shared(), "checkexclusive").await;
    let _connection = stage.exclusive_queue(&stage.queue).await;
    let ended = check(&stage, &["--connect", "--json"], &[]).await;
    assert_eq!(
        (ended.code, ended.severity("has declared it exclusive").as_str()),
        (Some(1), "error")
    );
}

/// Arguments are learnt by redeclares: one of a queue that has just vanished must not create it.
#[tokio::test]
async fn a_queue_that_vanishes_while_it_is_looked_at_is_not_created() {
    for (name, arguments) in [
        ("vanishquorum", vec![("x-queue-type", text("quorum"))]),
        ("vanishclassic", vec![("x-message-ttl", AMQPValue::LongInt(60_000))]),
    ] {
        let stage = Arc::new(Stage::migrated(Servers::shared(), name).await);
        stage.declare(true, &arguments).await;
        let (hooked, redeclares) = (Arc::clone(&stage), Arc::new(AtomicUsize::new(0)));
        let seen = Arc::clone(&redeclares);
        let interceptor = Interceptor::start(&stage, "RABBITMQ", move |part| {
            let (stage, redeclares) = (Arc::clone(&hooked), Arc::clone(&seen));
            Box::pin(async move {
                let is_redeclare = part.windows(9).any(|window| window == b"x-max-age");
                // The first one finds the queue; those behind it find none.
                if is_redeclare && redeclares.fetch_add(1, Ordering::Relaxed) == 1 {
                    stage.delete(&stage.queue).await;
                }
                Pass::Forward
            })
        })
        .await;
        let port = [("RABBITMQ_PORT", interceptor.port.as_str())];
        let ended = check(&stage, &["--connect", "--json"], &port).await;
        assert_eq!(redeclares.load(Ordering::Relaxed), 2, "{name}: {}", ended.stdout);
        assert_eq!(stage.ready(&stage.queue).await, None, "{name}");
    }
}

/// What only the management API shows: a policy, and RabbitMQ's version.
#[tokio::test]
async fn policies_are_seen_through_the_management_api() {
    let servers = Servers::private_with("checkpolicy", &["--management"]);
    let stage = Stage::migrated(&servers, "checkpolicy").await;
    stage.declare(true, &[("x-queue-type", text("quorum"))]).await;
    stage.declare_queue(&stage.dead_letter_queue(), true, &[]).await;
    let url = servers.get("RABBITMQ_MANAGEMENT_URL").to_owned();
    let management = [("RABBITMQ_MANAGEMENT_URL", url.as_str())];
    let without = check(&stage, &["--connect", "--json"], &management).await;
    assert_eq!(without.code, Some(1), "{}", without.stdout);
    assert_eq!(without.severity("the queue has no dead-letter exchange"), "error");
    let version = servers.script(&["ctl", "--", "-q", "version"]);
    assert_eq!(without.severity(&format!("RabbitMQ {}", version.trim())), "info");

    let policy = serde_json::json!({
        "dead-letter-exchange": "", "dead-letter-routing-key": stage.dead_letter_queue(),
        "dead-letter-strategy": "at-least-once", "overflow": "reject-publish",
        "delivery-limit": 5,
    });
    let pattern = format!("^{}$", stage.queue.replace('.', "\\."));
    let set = ["ctl", "--", "-q", "set_policy", "votes", &pattern, &policy.to_string()];
    servers.script(&set);
    // The API shows what is new a moment later.
    eventually("the policy is seen", async || {
        let with = check(&stage, &["--connect", "--json"], &management).await;
        with.code == Some(0) && with.severity("x-delivery-limit=5") == "warning"
    })
    .await;
    let with = check(&stage, &["--connect"], &management).await;
    assert!(!with.stdout.contains("at most once"), "{}", with.stdout);

    let nothing_bound = r#"{"dead-letter-exchange": "amq.fanout"}"#;
    servers.script(&["ctl", "--", "-q", "set_policy", "votes", &pattern, nothing_bound]);
    eventually("the policy is seen", async || {
        let unbound = check(&stage, &["--connect"], &management).await;
        unbound.code == Some(1) && unbound.stdout.contains("to which nothing is bound")
    })
    .await;

    // Its own address, at which nothing listens any more.
    let closed = closed_port().await;
    let gone = format!("http://127.0.0.1:{closed}");
    let blind =
        check(&stage, &["--connect", "--json"], &[("RABBITMQ_MANAGEMENT_URL", &gone)]).await;
    assert_eq!(blind.severity("the management API does not answer"), "warning");
    assert_eq!(blind.severity("declared without a dead-letter exchange"), "warning");
}
