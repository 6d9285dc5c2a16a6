//! RabbitMQ's management API: the only place that shows a queue's arguments and policies.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::types::AMQPValue;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use super::long_string;
use crate::config::ManagementUrl;

const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct Queue {
    durable: bool,
    auto_delete: bool,
    #[serde(default)]
    exclusive: bool,
    /// Also where no argument says it.
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    arguments: BTreeMap<String, Value>,
    /// Absent, or an empty list, when no policy applies.
    #[serde(default)]
    effective_policy_definition: Value,
}

#[derive(Deserialize)]
struct Overview {
    rabbitmq_version: String,
}

/// What the API tells of a queue.
pub(super) struct Told {
    /// With what policies add to them, under the arguments' names.
    pub(super) arguments: BTreeMap<String, AMQPValue>,
    pub(super) durable: bool,
    pub(super) auto_delete: bool,
    pub(super) exclusive: bool,
}

/// A queue's arguments and flags.
///
/// # Errors
/// What went wrong, for a person; the URL's credentials are not in it.
pub(super) async fn queue(
    management: &ManagementUrl,
    vhost: &str,
    queue: &str,
) -> Result<Told, String> {
    let path = format!("queues/{}/{}", encoded(vhost), encoded(queue));
    let queue: Queue = ask(management, &path)
        .await
        .map_err(|error| format!("the management API did not tell about the queue: {error}"))?;

    let mut effective = BTreeMap::new();
    if let Value::Object(policy) = queue.effective_policy_definition {
        // A policy's keys are the arguments' without the prefix; an argument wins over a policy.
        effective.extend(policy.into_iter().map(|(name, value)| (format!("x-{name}"), value)));
    }
    effective.extend(queue.kind.map(|kind| ("x-queue-type".to_owned(), Value::String(kind))));
    effective.extend(queue.arguments);
    let arguments =
        effective.into_iter().filter_map(|(name, value)| Some((name, amqp(&value)?))).collect();
    let Queue { durable, auto_delete, exclusive, .. } = queue;
    Ok(Told { arguments, durable, auto_delete, exclusive })
}

/// Whether nothing is bound to an exchange for certain: what it is given vanishes.
pub(super) async fn is_unbound(management: &ManagementUrl, vhost: &str, exchange: &str) -> bool {
    let path = format!("exchanges/{}/{}/bindings/source", encoded(vhost), encoded(exchange));
    let bindings: Result<Vec<IgnoredAny>, _> = ask(management, &path).await;
    bindings.is_ok_and(|bindings| bindings.is_empty())
}

/// RabbitMQ's version, which AMQP tells only within lapin.
///
/// # Errors
/// As [`queue`].
pub(super) async fn version(management: &ManagementUrl) -> Result<String, String> {
    let overview: Overview = ask(management, "overview").await?;
    Ok(overview.rabbitmq_version)
}

async fn ask<T: DeserializeOwned + Send + 'static>(
    management: &ManagementUrl,
    path: &str,
) -> Result<T, String> {
    let url = format!("{}/api/{path}", management.url.as_str().trim_end_matches('/'));
    let authorization = basic(&management.user, management.password.current().expose_secret());
    let asking = tokio::task::spawn_blocking(move || {
        let agent = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).build().new_agent();
        let asked = agent.get(&url).header("Authorization", authorization).call();
        asked.and_then(|mut answer| answer.body_mut().read_json())
    });
    let asked = asking.await.map_err(|panicked| panicked.to_string())?;
    asked.map_err(|error| error.to_string())
}

fn encoded(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
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
