//! What the broker's figures mean; where they come from is tested against real servers.

use std::ffi::OsString;

use super::*;
use crate::config::Sources;

fn config(variables: &[(&str, &str)]) -> Config {
    let environment =
        variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value)));
    let sources = Sources { environment: environment.collect(), ..Sources::default() };
    Config::load(&sources).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn a_queues_own_consumer_timeout_is_held_against_the_longest_hold() {
    let config = config(&[]);
    let severity =
        |seconds| shorter(&config, Duration::from_secs(seconds)).map(|finding| finding.severity);
    // Half of 1,800 s and one transaction of 25 s.
    assert_eq!(severity(1800), None);
    assert_eq!(severity(1799), Some(Warning));
    assert_eq!(severity(926), Some(Warning));
    assert_eq!(severity(925), Some(Error));
}

#[test]
fn dead_letters_in_two_places_are_told() {
    let config = config(&[]);
    let to =
        |queue: &str| elsewhere(&config.rabbitmq, Some(&Target::Queue(queue.to_owned()))).is_some();
    assert!(to("elsewhere") && !to("votes.aggregation.dlq"));
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
    let severity =
        |version| default_delivery_limit("votes", version).map(|finding| finding.severity);
    assert_eq!(severity(Some("3.13.7")), None);
    assert_eq!(severity(Some("4.0.5")), Some(Warning));
    assert_eq!(severity(None), Some(Info));
}

#[test]
fn a_large_prefetch_is_worth_a_note_and_no_more() {
    let noted = |prefetch| {
        let large = config(&[("RABBITMQ_PREFETCH_COUNT", prefetch)]);
        super::prefetch(&large).map(|finding| finding.severity)
    };
    assert_eq!((noted("2000"), noted("2001")), (None, Some(Info)));
}
