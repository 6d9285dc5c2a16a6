//! What the broker's figures mean; where they come from is tested against real servers.

use std::ffi::OsString;

use super::*;
use crate::adapters::broker::QueueFacts;
use crate::platform::config::Sources;

fn config(variables: &[(&str, &str)]) -> Config {
    let environment =
        variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value)));
    let sources = Sources { environment: environment.collect(), ..Sources::default() };
    Config::load(&sources).unwrap_or_else(|problems| panic!("{problems}"))
}

/// Of a queue whose arguments are all known.
fn arguments(known: &[(&str, serde_json::Value)]) -> QueueArguments {
    let known = known.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    QueueArguments::all(known)
}

fn exists(target: Option<DeadLetterTarget>, permitted: bool) -> Option<QueueLook> {
    let facts = QueueFacts {
        arguments: arguments(&[("x-queue-type", "quorum".into())]),
        target,
        management_error: None,
    };
    Some(QueueLook { state: QueueState::Exists(QueueStatus::default(), facts), permitted })
}

#[test]
fn a_queues_own_consumer_timeout_is_compared_with_the_longest_hold() {
    let config = config(&[]);
    let severity = |seconds: u64| {
        let own = arguments(&[("x-consumer-timeout", (seconds * 1_000).into())]);
        consumer_timeout(&config, &own).map(|finding| finding.severity)
    };
    // Half of 1,800 s and one transaction of 25 s.
    assert_eq!(severity(1800), None);
    assert_eq!(severity(1799), Some(Warning));
    assert_eq!(severity(926), Some(Warning));
    assert_eq!(severity(925), Some(Error));
    let without = consumer_timeout(&config, &arguments(&[]));
    assert_eq!(without.map(|finding| finding.severity), Some(Info));
}

#[test]
fn dead_letters_in_two_places_are_reported() {
    let config = config(&[]);
    let to = |queue: &str| {
        let target = DeadLetterTarget::Queue(queue.to_owned());
        elsewhere(&config.rabbitmq, Some(&target)).is_some()
    };
    assert!(to("elsewhere") && !to("votes.aggregation.dlq"));
}

#[test]
fn a_report_has_all_that_was_found_before_it_ended() {
    let config = config(&[]);
    let missing = || Some(QueueLook { state: QueueState::Missing, permitted: false });
    let subjects = |facts: &BrokerFacts| report(&config, facts).checked.len();
    let mut facts = BrokerFacts::default();
    assert_eq!((subjects(&facts), report(&config, &facts).findings.len()), (1, 0));
    let gone = DeadLetterTarget::MissingQueue("votes.aggregation.dlq".to_owned());
    facts.queue = exists(Some(gone), false);
    facts.dead_letter_queue = missing();
    facts.publishing = Some(Publishing::Refused);
    assert_eq!(subjects(&facts), 4);
    let values: Vec<String> =
        report(&config, &facts).findings.into_iter().filter_map(|finding| finding.value).collect();
    for lacks in ["no read permission", "no permission to create", "no write permission"] {
        assert_eq!(values.iter().filter(|v| v.starts_with(lacks)).count(), 1, "{values:?}");
    }
    assert!(!values.contains(&"not there".to_owned()), "its route says so: {values:?}");
}

#[test]
fn a_refusal_names_the_setting_and_where_it_came_from() {
    let config = config(&[("RABBITMQ_HOST", "mq.example")]);
    let finding = refused(&config, &OpenError::Unavailable("it is down".to_owned()));
    assert_eq!((finding.severity, finding.value.as_deref()), (Error, Some("mq.example")));
    assert_eq!(finding.set_by.as_deref(), Some("environment variable RABBITMQ_HOST"));
    let refused = refused(&config, &OpenError::Credentials("403".to_owned()));
    assert_eq!(refused.subject, "rabbitmq.user");
}

#[test]
fn versions_are_compared_by_their_numbers() {
    for old in ["3.9.29", "3.8", "2.99.1"] {
        assert!(!is_at_least(old, (3, 10)), "{old}");
    }
    for new in ["3.10.0", "3.13.7", "4.0.5", "4.2.0-rc.1", "tanzu"] {
        assert!(is_at_least(new, (3, 10)), "{new}");
    }
}

#[test]
fn the_brokers_own_delivery_limit_is_low_from_version_4_on() {
    let severity = |known: &[(&str, serde_json::Value)], version| {
        let arguments = arguments(known);
        default_delivery_limit("votes", &arguments, version).map(|finding| finding.severity)
    };
    let quorum = ("x-queue-type", "quorum".into());
    let plain = std::slice::from_ref(&quorum);
    assert_eq!(severity(plain, Some("3.13.7")), None);
    assert_eq!(severity(plain, Some("4.0.5")), Some(Warning));
    assert_eq!(severity(plain, None), Some(Info));
    assert_eq!(severity(&[], None), None, "a classic queue has none");
    assert_eq!(severity(&[quorum, ("x-delivery-limit", 3.into())], None), None, "it has one");
}

#[test]
fn a_large_prefetch_is_worth_a_note_and_no_more() {
    let noted = |prefetch| {
        let large = config(&[("RABBITMQ_PREFETCH_COUNT", prefetch)]);
        super::prefetch(&large).map(|finding| finding.severity)
    };
    assert_eq!((noted("2000"), noted("2001")), (None, Some(Info)));
}
