//! Which facts about a queue are findings, how bad they are, and which are reported at start.

use serde_json::Value;

use super::*;

type Argument = (&'static str, Value);

fn facts(arguments: Vec<Argument>, policies: bool, target: DeadLetterTarget) -> QueueFacts {
    let known = arguments.into_iter().map(|(name, value)| (name.to_owned(), value));
    let mut arguments = QueueArguments::all(known);
    arguments.policies = policies;
    QueueFacts { arguments, target: Some(target), ..QueueFacts::default() }
}

/// Our queue with other values of some arguments.
fn with(changed: &[Argument]) -> QueueFacts {
    let mut arguments = vec![
        ("x-queue-type", "quorum".into()),
        ("x-dead-letter-strategy", "at-least-once".into()),
        ("x-overflow", "reject-publish".into()),
        ("x-delivery-limit", 1_000.into()),
    ];
    arguments.extend_from_slice(changed);
    facts(arguments, true, DeadLetterTarget::Queue("votes.dlq".to_owned()))
}

/// A finding's value, how bad it is, and whether it is reported at start.
fn found(facts: &QueueFacts) -> Vec<(Option<String>, Severity, bool)> {
    let findings = of_queue("votes", facts).into_iter();
    findings.map(|found| (found.finding.value, found.finding.severity, found.at_start)).collect()
}

#[test]
fn each_argument_that_loses_votes_is_reported() {
    assert_eq!((route(&with(&[])), found(&with(&[]))), (DeadLetterRoute::Yes, vec![]));
    for (argument, value, severity, at_start) in [
        (("x-message-ttl", 60_000.into()), "x-message-ttl=60000", Error, true),
        (("x-expires", 1_000.into()), "x-expires=1000", Error, true),
        (("x-delivery-limit", (-1).into()), "x-delivery-limit=-1", Error, true),
        (("x-delivery-limit", 0.into()), "x-delivery-limit=0", Error, true),
        (("x-delivery-limit", 1.into()), "x-delivery-limit=1", Warning, true),
        (("x-delivery-limit", 20.into()), "x-delivery-limit=20", Warning, true),
        // Acks of these mean something else; nothing else matters then.
        (("x-queue-type", "stream".into()), "x-queue-type=stream", Error, true),
        (("x-queue-type", "jms".into()), "x-queue-type=jms", Error, true),
        // Only a crash of the broker loses votes.
        (("x-queue-type", "classic".into()), "x-queue-type=classic", Warning, false),
        (("x-overflow", "drop-head".into()), "dead-lettering at most once", Warning, false),
        (
            ("x-dead-letter-strategy", "at-most-once".into()),
            "dead-lettering at most once",
            Warning,
            false,
        ),
    ] {
        let facts = with(std::slice::from_ref(&argument));
        assert_eq!(found(&facts), [(Some(value.to_owned()), severity, at_start)]);
    }
    for harmless in [("x-delivery-limit", 21.into()), ("x-max-length", 10.into())] {
        assert_eq!(found(&with(std::slice::from_ref(&harmless))), [], "{harmless:?}");
    }
    let dropping = with(&[("x-max-length", 10.into()), ("x-overflow", "drop-head".into())]);
    let value = Some("x-max-length=10 with drop-head".to_owned());
    assert!(found(&dropping).contains(&(value, Error, true)), "{:?}", found(&dropping));
    let mut flags = with(&[]);
    (flags.arguments.durable, flags.arguments.auto_delete) = (false, true);
    assert_eq!(found(&flags), [(None, Error, true), (None, Error, true)]);
}

#[test]
fn a_route_that_is_missing_for_certain_is_an_error() {
    use DeadLetterTarget::{
        Exchange, MissingExchange, MissingQueue, Nowhere, SameQueue, UnboundExchange,
    };
    let name = || "dlx".to_owned();
    for (target, policies, expected) in [
        (Nowhere, true, DeadLetterRoute::No),
        // A policy may set one.
        (Nowhere, false, DeadLetterRoute::Unknown),
        (SameQueue, false, DeadLetterRoute::No),
        (MissingQueue(name()), false, DeadLetterRoute::No),
        (MissingExchange(name()), false, DeadLetterRoute::No),
        (UnboundExchange(name()), true, DeadLetterRoute::No),
        // Its bindings can't be seen.
        (Exchange(name()), false, DeadLetterRoute::Unknown),
    ] {
        let facts = facts(vec![("x-queue-type", "quorum".into())], policies, target);
        assert_eq!(route(&facts), expected, "{facts:?}");
        let severity = if expected == DeadLetterRoute::No { Error } else { Warning };
        assert_eq!(found(&facts)[0].1, severity, "{facts:?}");
    }
}

#[test]
fn what_is_not_known_is_one_warning_and_no_guess() {
    let nothing = QueueFacts::default();
    assert_eq!(route(&nothing), DeadLetterRoute::Unknown);
    let [finding] = &of_queue("votes", &nothing)[..] else { panic!("{nothing:?}") };
    assert_eq!(finding.finding.severity, Warning);
    assert!(finding.finding.remedy.contains("RABBITMQ_MANAGEMENT_URL"), "{finding:?}");
    let mut some = with(&[]);
    some.arguments.complete = false;
    assert_eq!(found(&some).len(), 1, "the route is known, what drops votes is not");
}

#[test]
fn dead_letters_are_not_to_be_dropped_either() {
    let plain = facts(vec![("x-queue-type", "classic".into())], true, DeadLetterTarget::Nowhere);
    assert_eq!(of_dead_letter_queue("votes.dlq", &plain), []);
    let dropping = of_dead_letter_queue("votes.dlq", &with(&[("x-message-ttl", 1.into())]));
    assert!(dropping[0].finding.meaning.contains("dead letters older than"), "{dropping:?}");
}

#[test]
fn an_unset_limit_is_rabbitmqs_own_from_version_4_on() {
    let meanings = |server: Option<ServerVersion>, returned: u32| {
        let facts = with(&[("x-delivery-limit", Value::Null)]);
        let facts = QueueFacts { server, returned, ..facts };
        let found = of_queue("votes", &facts).into_iter();
        found.map(|found| (found.finding.severity, found.finding.meaning)).collect::<Vec<_>>()
    };
    let version = |major, minor| Some(ServerVersion::new(major, minor));
    assert_eq!(meanings(None, 500), [], "another broker");
    assert_eq!(meanings(version(3, 13), 500), [], "no limit");
    let [(Warning, old)] = &meanings(version(4, 2), 14)[..] else { panic!("no warning") };
    assert!(old.contains("more than 20 times is dropped; each outage of PostgreSQL"), "{old}");
    let [(Warning, new)] = &meanings(version(4, 3), 14)[..] else { panic!("no warning") };
    assert!(new.contains("an outage of PostgreSQL does not"), "{new}");
    let [(Warning, _), (Error, last)] = &meanings(version(4, 3), 15)[..] else { panic!("silent") };
    assert!(last.contains("has come back 15 times; after 20 times"), "{last}");
}

#[test]
fn the_last_returns_of_a_vote_are_an_error_whatever_the_limit() {
    let found = |limit: i64, returned| {
        let facts = with(&[("x-delivery-limit", limit.into())]);
        let facts = QueueFacts { returned, ..facts };
        of_queue("votes", &facts).into_iter().any(|found| found.summary.contains("about to"))
    };
    assert!(!found(1_000, 994) && found(1_000, 995));
    assert!(!found(3, 0) && found(3, 1), "as soon as one has come back");
    assert!(!found(-1, 5_000), "no limit");
}
