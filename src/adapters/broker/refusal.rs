//! Refusals of the broker: those that pass in time, and missing permissions.

use lapin::Error;

use super::connect::amqp_code;
use crate::model::ports::OpenError;
use crate::platform::config::RabbitMq as Config;

/// What the service needs, in the words of `rabbitmqctl list_permissions`.
const NEEDED: &str = "The service needs configure and read on its queue and its dead-letter queue, \
                      and write on the default exchange (amq.default), which dead letters are \
                      published to";

/// Returns what is occupied or not up yet, and what to do, by the reply code and text of RabbitMQ 3.10 to
/// 4.3.
fn occupied_by(code: u16, text: &str) -> Option<(&'static str, &'static str)> {
    // Names of users, queues and virtual hosts are quoted; one may be called "limit reached".
    let words: String = text.split('\'').step_by(2).collect();
    let has = |part: &str| words.contains(part);
    Some(match code {
        530 if has("channel") && has("limit") && has("reached") => (
            "the broker's limit of channels is reached",
            "Find who holds them (`rabbitmqctl list_connections user peer_host channels`), or \
             raise the limit (`rabbitmqctl set_user_limits`)",
        ),
        530 if has("limit") && has("reached") => (
            "the broker's limit of connections is reached; see rabbitmqctl list_connections",
            "Find who holds them (`rabbitmqctl list_connections user vhost peer_host state`), \
             or raise the limit (`rabbitmqctl set_user_limits`, `set_vhost_limits`, \
             connection_max of the node)",
        ),
        530 if has("is down") => (
            "the virtual host is down; see the broker's log",
            "It may be coming up; if it stays down, see the broker's log and \
             `rabbitmqctl restart_vhost`",
        ),
        403 if has("in exclusive use") => (
            "another consumer has the queue exclusively; see rabbitmqctl list_consumers",
            "Another consumer, possibly the predecessor, consumes this queue exclusively: find it \
             (`rabbitmqctl list_consumers queue_name channel_pid`, `rabbitmqctl list_connections \
             pid user peer_host`) and stop it",
        ),
        405 if has("exclusive access") => (
            "another connection has declared the queue exclusive; see rabbitmqctl list_queues",
            "Another connection declared this queue exclusive; it is deleted with that connection: \
             find it (`rabbitmqctl list_queues name owner_pid`, `rabbitmqctl list_connections pid \
             user peer_host`) and have it declare a durable one",
        ),
        404 if has("is down or inaccessible") => (
            "the node that has the queue is down; see rabbitmqctl cluster_status",
            "Start that node; the queue and its messages are on its disk",
        ),
        406 if has("queue limit") && has("reached") => (
            "the virtual host's limit of queues is reached; see rabbitmqctl list_vhost_limits",
            "Delete queues that are not needed, or raise it (`rabbitmqctl set_vhost_limits`)",
        ),
        _ => return None,
    })
}

/// Returns the error for what waiting resolves; `message` is the refusal as it is reported.
pub(super) fn occupied(error: &Error, message: &str) -> Option<OpenError> {
    let (phrase, remedy) = occupied_by(amqp_code(error)?, &error.to_string())?;
    let message = format!("{message}. {remedy}. The service waits for it");
    Some(OpenError::Occupied { phrase, message })
}

/// Whether a broker before 4.3 closed the channel because a delivery was held for too long.
pub(super) fn is_consumer_timeout(error: &Error) -> bool {
    amqp_code(error) == Some(406) && error.to_string().contains("delivery acknowledgement")
}

/// Whether a queue takes no `x-consumer-timeout` of a consumer: a classic one of RabbitMQ 4.3.
pub(super) fn is_without_timeout(error: &Error) -> bool {
    amqp_code(error) == Some(406) && error.to_string().contains("invalid arg 'x-consumer-timeout'")
}

/// Whether a queue is there, on a node that is down.
pub(super) fn is_out_of_reach(error: &Error) -> bool {
    amqp_code(error) == Some(404) && occupied_by(404, &error.to_string()).is_some()
}

/// Returns what to do about a refused access (AMQP 403).
pub(super) fn access(config: &Config, error: &Error) -> String {
    let text = error.to_string();
    if text.contains("refused for user") {
        return format!("{NEEDED}. {}", grant(config));
    }
    // Only RabbitMQ's log says why it refuses a login.
    "Check RABBITMQ_USER and RABBITMQ_PASSWORD (or RABBITMQ_URL), and the user's permissions on the \
     virtual host"
        .to_owned()
}

/// Returns the command that gives a user what the service needs.
pub fn grant(config: &Config) -> String {
    let Config { vhost, user, queue, dead_letter_queue, .. } = config;
    let queues = format!("^({}|{})$", escaped(queue), escaped(dead_letter_queue));
    format!(
        "To grant that, in place of what the user has now: `rabbitmqctl set_permissions -p {} {} \
         {queues} {} {queues}`",
        quoted(vhost),
        quoted(user),
        quoted(r"^amq\.default$"),
        queues = quoted(&queues),
    )
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A name as a regular expression that matches it alone.
fn escaped(name: &str) -> String {
    let escape = |c| r".^$*+?()[]{}|\".contains(c).then_some('\\');
    name.chars().flat_map(|c| escape(c).into_iter().chain([c])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::config::{Config as Whole, Sources};

    #[test]
    fn what_passes_in_time_is_distinguished_from_what_is_configured() {
        for (phrase, code, text) in [
            ("connections", 530, "vhost '/' refused for user 'u': connection limit (1) is reached"),
            ("connections", 530, "refused for user 'u': user connection limit (1) is reached"),
            ("connections", 530, "connection refused: node connection limit (9) is reached"),
            (
                "channels",
                530,
                "channels opened for user 'u' has reached the maximum allowed user limit",
            ),
            ("is down", 530, "access to vhost 'v' refused for user 'u': vhost 'v' is down"),
            ("another consumer", 403, "queue 'votes' in vhost '/' in exclusive use"),
            ("another connection", 405, "cannot obtain exclusive access to locked queue 'votes'"),
            ("the node", 404, "home node 'b' of durable queue 'votes' is down or inaccessible"),
            (
                "limit of queues",
                406,
                "cannot declare queue 'q': queue limit in vhost '/' (1) is reached",
            ),
        ] {
            let (found, remedy) = occupied_by(code, text).unwrap_or_else(|| panic!("{text}"));
            assert!(found.contains(phrase), "{text}: {found}");
            assert!(remedy.contains('`') || code == 404, "{text}: a command to find the holder");
        }
        for (code, text) in [
            (530, "vhost 'no such' not found"),
            (530, "access to vhost '/' refused for user 'guest'"),
            (530, "access to vhost 'limit reached' refused for user 'vhost is down'"),
            (403, "access to queue 'in exclusive use' in vhost '/' refused for user 'u'"),
            (403, "Login was refused using authentication mechanism PLAIN"),
            (404, "no queue 'votes' in vhost '/'"),
            (406, "inequivalent arg 'durable' for queue 'votes'"),
        ] {
            assert!(occupied_by(code, text).is_none(), "{text}");
        }
    }

    #[test]
    fn the_command_to_grant_permissions_can_be_typed_as_it_is() {
        let mut config = Whole::load(&Sources::default()).expect("the defaults are good").rabbitmq;
        "o'neill".clone_into(&mut config.user);
        let message = grant(&config);
        let queues = r"'^(votes\.aggregation|votes\.aggregation\.dlq)$'";
        let expected = format!(r"-p '/' 'o'\''neill' {queues} '^amq\.default$' {queues}`");
        assert!(message.ends_with(&expected), "{message}");
    }
}
