//! The files for deploying, compared with the code and with this machine: image, compose, Kubernetes,
//! systemd, package, runbook. No container engine is needed, and none is used.

mod compose;
mod image;
mod kubernetes;
mod package;
mod runbook;
mod systemd;

pub use self::runbook::sql_block;

use std::collections::BTreeMap;
use std::ffi::OsString;

use serde_json::Value;
use vote_aggregator::platform::config::{Config, Sources, keys};

use crate::support::Files;
use crate::support::repository::read;

const TRACES: &str = include_str!("../../docs/observability.md");

/// The documents of a YAML file.
fn documents(path: &str) -> Vec<Value> {
    let parsed = serde_saphyr::from_multiple(&read(path));
    parsed.unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The only document of a YAML file.
fn document(path: &str) -> Value {
    let mut documents = documents(path);
    assert_eq!(documents.len(), 1, "{path}");
    documents.remove(0)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("text, not {value}"))
}

/// The items of a list; none when there is no list.
fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The item of a list whose field has this value.
fn item<'v>(items: &'v Value, field: &str, value: &str) -> &'v Value {
    let found = list(items).find(|item| item[field] == value);
    found.unwrap_or_else(|| panic!("no {field} {value} in {items}"))
}

/// The entries of a map, as text; none when there is no map.
fn entries(map: &Value) -> impl Iterator<Item = (String, String)> {
    let scalar = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let map = map.as_object().into_iter().flatten();
    map.map(move |(name, value)| (name.clone(), scalar(value)))
}

/// Whether the service reads this variable, or OpenTelemetry does and docs/observability.md says so.
fn is_known(variable: &str) -> bool {
    let mut settings = keys::ALL.iter().chain(keys::SELECTORS);
    settings.any(|key| key.variable == variable)
        || (variable.starts_with("OTEL_") && TRACES.contains(&format!("`{variable}`")))
}

/// Loads the configuration that these variables make, all of which the service has to read. A file
/// of the test stands for each password file.
fn load(environment: &BTreeMap<String, String>) -> Config {
    let files = Files::new("secrets");
    let secret = files.write("password", "a-password\n");
    let environment = environment.iter().map(|(name, value)| {
        assert!(is_known(name), "the service does not read {name}");
        let is_secret = name.ends_with("_PASSWORD_FILE");
        assert!(!is_secret || value.starts_with("/run/"), "{name}={value}: in memory");
        (name.clone(), OsString::from(if is_secret { &secret } else { value }))
    });
    let sources = Sources { environment: environment.collect(), ..Sources::default() };
    Config::load(&sources).unwrap_or_else(|problems| panic!("{problems}"))
}

/// An image has to be named by a version of two numbers at least.
fn assert_pinned(image: &str) {
    let (name, tag) = image.rsplit_once(':').unwrap_or_default();
    let version = tag.trim_start_matches('v').split('-').next().unwrap_or_default();
    let is_pinned = version.contains('.') && version.split('.').all(|n| n.parse::<u32>().is_ok());
    assert!(is_pinned, "{image} is not pinned to a version");
    if name == "vote-aggregator" {
        assert_eq!(version, env!("CARGO_PKG_VERSION"), "{image} is this version");
    }
}
