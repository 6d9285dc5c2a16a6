//! What the facts about the broker mean; where they come from is tested against real servers.

use serde_json::Value;

use super::super::tests::config;
use super::*;
use crate::adapters::broker::QueueArguments;

/// A quorum queue with these arguments, and no others.
fn facts(known: &[(&str, Value)], target: Option<DeadLetterTarget>) -> QueueFacts {
    let known = known.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    let arguments =
        QueueArguments::all(known.chain([("x-queue-type".to_owned(), "quorum".into())]));
    QueueFacts { arguments, target, ..QueueFacts::default() }
}

/// How bad the finding is whose value or subject begins so.
fn severity(findings: &[Finding], begin: &str) -> Option<Severity> {
    let begins = |finding: &&Finding| {
        finding.value.as_deref().unwrap_or_default().starts_with(begin)
            || finding.subject.starts_with(begin)
    };
    findings.iter().find(begins).map(|finding| finding.severity)
}

#[test]
fn arguments_are_judged_by_the_brokers_version_and_by_the_configuration() {
    let to = |queue: &str| Some(DeadLetterTarget::Queue(queue.to_owned()));
    let timeout = |seconds: u64| ("x-consumer-timeout", Value::from(seconds * 1_000));
    let own_limit = ("x-delivery-limit", Value::from(30));
    let version = |major, minor| Some(ServerVersion::new(major, minor));
    for (argument, target, server, begin, expected) in [
        // Half of 1,800 s and one transaction of 25 s.
        (timeout(1800), None, None, "x-consumer-timeout", None),
        (timeout(1799), None, None, "x-consumer-timeout", Some(Warning)),
        (timeout(926), None, None, "x-consumer-timeout", Some(Warning)),
        (timeout(925), None, None, "x-consumer-timeout", Some(Error)),
        (own_limit.clone(), None, None, "rabbitmq.consumer_timeout_seconds", Some(Info)),
        (own_limit, None, None, "no x-delivery-limit", None),
        (timeout(1800), None, version(3, 13), "no x-delivery-limit", None),
        (timeout(1800), None, version(4, 0), "no x-delivery-limit", Some(Warning)),
        (timeout(1800), None, version(4, 3), "no x-delivery-limit", Some(Warning)),
        // The service sets its consumer's own.
        (timeout(925), None, version(4, 3), "x-consumer-timeout", None),
        (timeout(1800), to("elsewhere"), None, "x-dead-letter-routing-key", Some(Info)),
        (timeout(1800), to("votes.aggregation.dlq"), None, "x-dead-letter-routing-key", None),
    ] {
        let facts = QueueFacts { server, ..facts(std::slice::from_ref(&argument), target) };
        let found = of_votes(&config(""), QueueStatus::default(), &facts);
        assert_eq!(severity(&found, begin), expected, "{argument:?} {server:?} {begin}");
    }
}

#[test]
fn a_report_has_all_that_was_found_before_the_look_ended() {
    let config = config("RABBITMQ_PREFETCH_COUNT=2001");
    let mut found = BrokerFacts::default();
    let Report { checked, findings } = report(&config, &found);
    assert_eq!((checked.len(), findings), (1, vec![]));
    let target = DeadLetterTarget::MissingQueue("votes.aggregation.dlq".to_owned());
    let state = QueueState::Exists(QueueStatus::default(), facts(&[], Some(target)));
    found.queue = Some(InspectedQueue { state, permitted: false });
    found.dead_letter_queue = Some(InspectedQueue { state: QueueState::Missing, permitted: false });
    found.publishing = Some(Publishing::Refused);
    let Report { checked, findings } = report(&config, &found);
    assert_eq!(checked.len(), 4);
    for (begin, expected) in [
        ("no read permission", Some(Error)),
        ("no permission to create", Some(Error)),
        ("no write permission", Some(Error)),
        ("rabbitmq.prefetch_count", Some(Info)),
        // An error of the route says so.
        ("not there", None),
    ] {
        assert_eq!(severity(&findings, begin), expected, "{begin}: {findings:#?}");
    }
}
