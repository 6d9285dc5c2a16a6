//! RabbitMQ's management API: the only place that shows a queue's arguments and policies.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::types::AMQPValue;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::Value;

use super::long_string;
use crate::config::{ManagementUrl, RabbitMq as Config};

const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct Queue {
    durable: bool,
    auto_delete: bool,
    #[serde(default)]
    arguments: BTreeMap<String, Value>,
    /// Absent, or an empty list, when no policy applies.
    #[serde(default)]
    effective_policy_definition: Value,
}

/// The queue's arguments with what policies add to them, under the arguments' names, and whether it
/// is durable and auto-delete.
///
/// # Errors
/// What went wrong, for a person; the URL's credentials are not in it.
pub(super) async fn queue(
    management: &ManagementUrl,
    config: &Config,
) -> Result<(BTreeMap<String, AMQPValue>, [bool; 2]), String> {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let base = management.url.as_str().trim_end_matches('/');
    let url = format!("{base}/api/queues/{}/{}", encode(&config.vhost), encode(&config.queue));
    let (user, password) = (management.user.clone(), management.password.clone());
    let asked = tokio::task::spawn_blocking(move || ask(&url, &user, password.expose_secret()));
    let queue = asked.await.map_err(|panicked| panicked.to_string())??;

    let mut effective = BTreeMap::new();
    if let Value::Object(policy) = queue.effective_policy_definition {
        // A policy's keys are the arguments' without the prefix; an argument wins over a policy.
        effective.extend(policy.into_iter().map(|(name, value)| (format!("x-{name}"), value)));
    }
    effective.extend(queue.arguments);
    let arguments =
        effective.into_iter().filter_map(|(name, value)| Some((name, amqp(&value)?))).collect();
    Ok((arguments, [queue.durable, queue.auto_delete]))
}

fn ask(url: &str, user: &str, password: &str) -> Result<Queue, String> {
    let agent = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).build().new_agent();
    agent
        .get(url)
        .header("Authorization", basic(user, password))
        .call()
        .and_then(|mut answer| answer.body_mut().read_json())
        .map_err(|error| format!("the management API did not tell about the queue: {error}"))
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine;
    let credentials =
        base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Basic {credentials}")
}

fn amqp(value: &Value) -> Option<AMQPValue> {
    match value {
        Value::String(text) => Some(long_string(text)),
        Value::Number(number) => number.as_i64().map(AMQPValue::LongLongInt),
        Value::Bool(on) => Some(AMQPValue::Boolean(*on)),
        _ => None,
    }
}
