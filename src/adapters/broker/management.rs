//! RabbitMQ's management API: the only place that shows a queue's arguments and policies.

use std::collections::BTreeMap;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use super::arguments::QueueArguments;
use crate::platform::config::ManagementUrl;

const LIMIT: &str = "x-delivery-limit";
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct Queue {
    durable: bool,
    auto_delete: bool,
    /// Also where no argument says it.
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    arguments: BTreeMap<String, Value>,
    /// Absent, or an empty list, when no policy applies.
    #[serde(default)]
    effective_policy_definition: Value,
}

/// Returns a queue's arguments and flags, with what policies add.
///
/// # Errors
/// A message without the URL's credentials.
pub(super) async fn queue(
    management: &ManagementUrl,
    vhost: &str,
    queue: &str,
) -> Result<QueueArguments, String> {
    let path = format!("queues/{}/{}", encoded(vhost), encoded(queue));
    let queue: Queue = ask(management, &path)
        .await
        .map_err(|error| format!("the management API did not describe the queue: {error}"))?;

    let mut arguments = BTreeMap::new();
    if let Value::Object(policy) = queue.effective_policy_definition {
        // A policy's keys are the arguments' without the prefix; an argument wins over a policy, except that
        // the lower delivery limit holds.
        arguments.extend(policy.into_iter().map(|(name, value)| (format!("x-{name}"), value)));
    }
    arguments.extend(queue.kind.map(|kind| ("x-queue-type".to_owned(), Value::String(kind))));
    let limit = |arguments: &BTreeMap<String, Value>| arguments.get(LIMIT)?.as_i64();
    let limits = limit(&arguments).zip(limit(&queue.arguments));
    arguments.extend(queue.arguments);
    // Negative is no limit.
    if let Some((policy @ 0.., argument)) = limits
        && (argument < 0 || policy < argument)
    {
        arguments.insert(LIMIT.to_owned(), policy.into());
    }
    let mut arguments = QueueArguments::all(arguments);
    arguments.durable = queue.durable;
    arguments.auto_delete = queue.auto_delete;
    arguments.policies = true;
    Ok(arguments)
}

/// Whether it is certain that nothing is bound to an exchange, so that it drops messages.
pub(super) async fn is_unbound(management: &ManagementUrl, vhost: &str, exchange: &str) -> bool {
    let path = format!("exchanges/{}/{}/bindings/source", encoded(vhost), encoded(exchange));
    let bindings: Result<Vec<IgnoredAny>, _> = ask(management, &path).await;
    bindings.is_ok_and(|bindings| bindings.is_empty())
}

/// Whether it answers the user at all.
///
/// # Errors
/// As [`queue`].
pub(super) async fn answers(management: &ManagementUrl) -> Result<(), String> {
    ask(management, "overview").await.map(|_: IgnoredAny| ())
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
