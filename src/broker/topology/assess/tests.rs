//! What of a queue is told, to whom, and how bad it is.

use lapin::types::AMQPValue;

use super::*;
use crate::broker::long_string;
use crate::broker::topology::{DELIVERY_LIMIT, Flags};

type Argument<'a> = (&'a str, AMQPValue);

const TTL: Argument<'_> = ("x-message-ttl", AMQPValue::LongInt(60_000));

fn known(arguments: &[Argument<'_>], flags: Flags, policies: bool) -> Known {
    let arguments = arguments.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    Known { arguments: arguments.collect(), flags, policies }
}

fn assessed(arguments: &[Argument<'_>], policies: bool) -> Assessment {
    let known = known(arguments, Flags::DURABLE, policies);
    assess("votes", &known, known.target())
}

/// The warnings at start.
fn warnings(assessment: &Assessment) -> Vec<String> {
    let told = assessment.noted.iter().filter(|noted| noted.at_start);
    told.map(|noted| noted.finding.line()).collect()
}

/// How bad the finding is whose value begins so.
fn severity(assessment: &Assessment, value: &str) -> Option<Severity> {
    let mut findings = assessment.noted.iter().map(|noted| &noted.finding);
    findings
        .find(|finding| finding.value.as_ref().is_some_and(|found| found.starts_with(value)))
        .map(|finding| finding.severity)
}

fn ours() -> Vec<Argument<'static>> {
    vec![
        ("x-queue-type", long_string("quorum")),
        ("x-dead-letter-exchange", long_string("")),
        ("x-dead-letter-routing-key", long_string("votes.dlq")),
        ("x-dead-letter-strategy", long_string("at-least-once")),
        ("x-overflow", long_string("reject-publish")),
        ("x-delivery-limit", AMQPValue::LongLongInt(DELIVERY_LIMIT)),
    ]
}

/// Our arguments without one of them.
fn without(name: &str) -> Vec<Argument<'static>> {
    ours().into_iter().filter(|(argument, _)| *argument != name).collect()
}

/// Our arguments with another value of one of them.
fn with(name: &'static str, value: AMQPValue) -> Vec<Argument<'static>> {
    let mut arguments = without(name);
    arguments.push((name, value));
    arguments
}

#[test]
fn the_queue_we_create_gives_no_finding() {
    let assessment = assessed(&ours(), false);
    assert_eq!((assessment.route, assessment.noted.len()), (DeadLetterRoute::Yes, 0));
    assert_eq!(assessment.target, Some(Target::Queue("votes.dlq".to_owned())));
}

#[test]
fn a_queue_whose_acks_mean_something_else_is_an_error_and_nothing_beside() {
    for kind in ["stream", "x-mqtt-qos0", "jms"] {
        let argument = AMQPValue::LongString(kind.into());
        let assessment = assessed(&with("x-queue-type", argument), true);
        assert_eq!(assessment.unsuitable_type.as_deref(), Some(kind));
        let [Noted { finding, at_start: true, .. }] = &assessment.noted[..] else {
            panic!("{:?}", assessment.noted);
        };
        assert_eq!(finding.severity, Error);
        assert!(finding.line().contains(&format!("x-queue-type={kind}")), "{}", finding.line());
    }
    assert_eq!(assessed(&ours(), true).unsuitable_type, None);
    assert_eq!(assessed(&[], true).unsuitable_type, None, "classic");
}

#[test]
fn what_loses_votes_is_warned_of() {
    let assessment = assessed(
        &[
            TTL,
            ("x-max-length", AMQPValue::LongInt(10)),
            ("x-expires", AMQPValue::LongInt(1_000)),
            ("x-delivery-limit", AMQPValue::LongInt(3)),
        ],
        true,
    );
    assert_eq!(assessment.route, DeadLetterRoute::No);
    let warnings = warnings(&assessment);
    for word in ["dead-letter", "x-message-ttl", "x-max-length", "x-expires", "x-delivery-limit"] {
        assert!(warnings.iter().any(|w| w.contains(word)), "{word}");
    }
    for noted in &assessment.noted {
        let Finding { subject, meaning, remedy, .. } = &noted.finding;
        assert!(subject == "queue \"votes\"" && !meaning.is_empty() && !remedy.is_empty());
    }
    assert_eq!(assessed(&[], false).route, DeadLetterRoute::Unknown, "a policy may set one");
    for lost in ["x-message-ttl", "x-max-length", "x-expires"] {
        assert_eq!(severity(&assessment, lost), Some(Error), "{lost}");
    }
}

#[test]
fn flags_that_lose_votes_are_warned_of() {
    let flags = Flags { durable: false, auto_delete: true, exclusive: true };
    let known = known(&ours(), flags, true);
    let warnings = warnings(&assess("votes", &known, known.target()));
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    for (word, warning) in ["not durable", "auto-delete", "exclusive"].iter().zip(warnings) {
        assert!(warning.contains(word), "{warning}");
    }
}

#[test]
fn a_delivery_limit_is_worse_the_sooner_it_drops() {
    for (limit, expected) in
        [(-1, Some(Error)), (0, Some(Error)), (1, Some(Warning)), (20, Some(Warning)), (21, None)]
    {
        let limited = with("x-delivery-limit", AMQPValue::LongLongInt(limit));
        assert_eq!(severity(&assessed(&limited, true), "x-delivery-limit="), expected, "{limit}");
    }
}

#[test]
fn whether_rabbitmqs_own_delivery_limit_holds_is_known() {
    assert!(assessed(&without("x-delivery-limit"), true).default_limit);
    assert!(!assessed(&ours(), true).default_limit, "it has one");
    assert!(!assessed(&[], true).default_limit, "a classic queue has none");
}

#[test]
fn a_missing_route_is_an_error_where_it_is_certain() {
    let first = |assessment: &Assessment| assessment.noted[0].finding.severity;
    assert_eq!(first(&assessed(&without("x-dead-letter-exchange"), true)), Error);
    assert_eq!(first(&assessed(&without("x-dead-letter-exchange"), false)), Warning);
    let known = known(&ours(), Flags::DURABLE, false);
    let missing = assess("votes", &known, Target::Missing("the queue \"votes.dlq\"".to_owned()));
    assert_eq!((first(&missing), missing.route), (Error, DeadLetterRoute::No));
    let unbound = assess("votes", &known, Target::Unbound("dlx".to_owned()));
    assert_eq!((first(&unbound), unbound.route), (Error, DeadLetterRoute::No));
}

#[test]
fn what_only_a_crash_can_cost_is_not_told_at_start() {
    let classic = assessed(&with("x-queue-type", long_string("classic")), true);
    assert_eq!(severity(&classic, "x-queue-type=classic"), Some(Warning));
    assert_eq!(warnings(&classic), Vec::<String>::new());
    // At-least-once needs both.
    for missing in ["x-dead-letter-strategy", "x-overflow"] {
        let careless = assessed(&without(missing), true);
        assert_eq!(severity(&careless, "dead-lettering at most once"), Some(Warning), "{missing}");
        assert_eq!(warnings(&careless), Vec::<String>::new());
    }
}

#[test]
fn dead_letters_are_not_to_be_dropped_either() {
    let plain = known(&[("x-queue-type", long_string("classic"))], Flags::DURABLE, true);
    assert_eq!(assess_dead_letters("votes.dlq", &plain), []);
    let noted = assess_dead_letters("votes.dlq", &known(&[TTL], Flags::DURABLE, true));
    assert!(noted[0].finding.meaning.contains("dead letters older than"), "{noted:?}");
}

#[test]
fn a_bounded_queue_that_refuses_publishes_drops_nothing() {
    let bounded = [
        ("x-max-length", AMQPValue::LongInt(10)),
        ("x-overflow", long_string("reject-publish")),
        ("x-dead-letter-exchange", long_string("")),
        ("x-dead-letter-routing-key", long_string("votes.dlq")),
    ];
    assert_eq!(warnings(&assessed(&bounded, true)), Vec::<String>::new());
}

#[test]
fn a_route_is_only_a_route_when_it_leads_somewhere_else() {
    let default = ("x-dead-letter-exchange", long_string(""));
    assert_eq!(assessed(std::slice::from_ref(&default), true).route, DeadLetterRoute::No, "a loop");
    let exchange = ("x-dead-letter-exchange", long_string("dlx"));
    assert_eq!(assessed(&[exchange], true).route, DeadLetterRoute::Unknown, "bindings unseen");
}

#[test]
fn a_consumer_timeout_of_the_queues_own_is_known() {
    let own = with("x-consumer-timeout", AMQPValue::LongLongInt(60_000));
    assert_eq!(assessed(&own, true).consumer_timeout, Some(Duration::from_secs(60)));
    assert_eq!(assessed(&ours(), true).consumer_timeout, None);
}
