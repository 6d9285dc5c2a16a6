//! What a refusal tells of a queue, and what of it is warned of.

use super::*;

fn difference(told: &str) -> Option<Difference> {
    Difference::parse(told)
}

#[test]
fn refusals_of_a_declare_are_read() {
    let head = "protocol error: AMQP soft error: PRECONDITION-FAILED: PRECONDITION_FAILED - ";
    let cases = [
        (
            "inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': received none but \
             current is the value '60000' of type 'signedint'",
            "x-message-ttl",
            Current::Value(AMQPValue::LongLongInt(60_000)),
        ),
        (
            "inequivalent arg 'x-dead-letter-exchange' for queue 'q' in vhost '/': received \
             the value '' of type 'longstr' but current is none",
            "x-dead-letter-exchange",
            Current::None,
        ),
        (
            "inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but \
             current is 'false'",
            "durable",
            Current::Flag(false),
        ),
        (
            "inequivalent arg 'x-queue-type' for queue 'it's' in vhost '/': received \
             'quorum' but current is 'classic'",
            "x-queue-type",
            Current::Untyped("classic".to_owned()),
        ),
    ];
    for (told, name, current) in cases {
        let expected = Difference { name: name.to_owned(), current };
        assert_eq!(difference(&format!("{head}{told}")), Some(expected), "{told}");
    }
}

#[test]
fn a_refusal_that_is_cut_off_or_foreign_is_no_guess() {
    assert_eq!(difference("PRECONDITION_FAILED - inequivalent arg 'x-mess"), None);
    assert_eq!(difference("RESOURCE_LOCKED - cannot obtain exclusive access"), None);
}

fn assessed(arguments: &[(&str, AMQPValue)], policies: bool) -> Examined {
    let arguments = arguments.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    let known = Known { arguments: arguments.collect(), flags: Flags::DURABLE, policies };
    assess(&known, &known.target())
}

#[test]
fn the_queue_we_create_gives_no_warning() {
    let config: Vec<(&str, AMQPValue)> = vec![
        ("x-queue-type", long_string("quorum")),
        ("x-dead-letter-exchange", long_string("")),
        ("x-dead-letter-routing-key", long_string("votes.dlq")),
        ("x-overflow", long_string("reject-publish")),
        ("x-delivery-limit", AMQPValue::LongLongInt(DELIVERY_LIMIT)),
    ];
    let examined = assessed(&config, false);
    assert_eq!((examined.route, examined.warnings.len()), (DeadLetterRoute::Yes, 0));
}

#[test]
fn what_loses_votes_is_warned_of() {
    let examined = assessed(
        &[
            ("x-message-ttl", AMQPValue::LongInt(60_000)),
            ("x-max-length", AMQPValue::LongInt(10)),
            ("x-expires", AMQPValue::LongInt(1_000)),
            ("x-delivery-limit", AMQPValue::LongInt(3)),
        ],
        true,
    );
    assert_eq!(examined.route, DeadLetterRoute::No);
    for word in ["dead-letter", "x-message-ttl", "x-max-length", "x-expires", "x-delivery-limit"] {
        assert!(examined.warnings.iter().any(|w| w.contains(word)), "{word}");
    }
    assert_eq!(assessed(&[], false).route, DeadLetterRoute::Unknown, "a policy may set one");
}

#[test]
fn a_bounded_queue_that_refuses_publishes_drops_nothing() {
    let bounded = [
        ("x-max-length", AMQPValue::LongInt(10)),
        ("x-overflow", long_string("reject-publish")),
        ("x-dead-letter-exchange", long_string("")),
        ("x-dead-letter-routing-key", long_string("votes.dlq")),
    ];
    assert_eq!(assessed(&bounded, true).warnings, Vec::<String>::new());
}

#[test]
fn a_route_is_only_a_route_when_it_leads_somewhere_else() {
    let default = ("x-dead-letter-exchange", long_string(""));
    assert_eq!(assessed(std::slice::from_ref(&default), true).route, DeadLetterRoute::No, "a loop");
    let exchange = ("x-dead-letter-exchange", long_string("dlx"));
    assert_eq!(assessed(&[exchange], true).route, DeadLetterRoute::Unknown, "bindings unseen");
}
