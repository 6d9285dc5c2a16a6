//! Everything a person deploys by, held to the code and to the machine: image, compose, Kubernetes,
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
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vote_aggregator::platform::config::{Config, Sources, keys};

use crate::support::repository::{ROOT, files_below, read};

const README: &str = include_str!("../../README.md");
const TRACES: &str = include_str!("../../docs/observability.md");

/// A directory of one test's own, gone with this value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let dir = dir.join(format!("deployment-{name}-{}", std::process::id()));
        fs::remove_dir_all(&dir).ok();
        fs::create_dir_all(&dir).expect("a directory");
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

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

/// The text of a scalar, as an environment gets it.
fn scalar(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Whether the service looks at this variable, or OpenTelemetry does and docs/observability.md says so.
fn is_known(variable: &str) -> bool {
    let mut settings = keys::ALL.iter().chain(keys::SELECTORS);
    settings.any(|key| key.variable == variable)
        || (variable.starts_with("OTEL_") && TRACES.contains(&format!("`{variable}`")))
}

/// Asserts that every variable is one that the service knows, and loads the configuration. Files
/// that hold a password are put in place of those that only a deployment has.
fn load(environment: &BTreeMap<String, String>, secrets: &Path) -> Config {
    for variable in environment.keys() {
        assert!(is_known(variable), "{variable} is nothing that the service looks at");
    }
    let secret = secrets.join("password");
    fs::write(&secret, "a-password\n").expect("written");
    let environment = environment.iter().map(|(name, value)| {
        let value = if name.ends_with("_PASSWORD_FILE") {
            assert!(value.starts_with("/run/"), "{name}={value}: in memory");
            secret.clone().into_os_string()
        } else {
            OsString::from(value)
        };
        (name.clone(), value)
    });
    let sources = Sources { environment: environment.collect(), ..Sources::default() };
    Config::load(&sources).unwrap_or_else(|problems| panic!("{problems}"))
}

/// Whether an image is named by a version that says which it is.
fn is_pinned(image: &str) -> bool {
    let Some((_, tag)) = image.rsplit_once(':') else { return false };
    let version = tag.trim_start_matches('v').split('-').next().unwrap_or_default();
    let numbers = version.split('.').all(|part| part.parse::<u32>().is_ok());
    numbers && version.contains('.')
}

fn assert_pinned(image: &str) {
    assert!(is_pinned(image), "{image} is not pinned to a version");
    if let Some(version) = image.strip_prefix("vote-aggregator:") {
        assert_eq!(version, env!("CARGO_PKG_VERSION"), "{image} is this version");
    }
}

#[test]
fn a_floating_image_is_told_from_a_pinned_one() {
    for pinned in ["postgres:18.4", "a.example/b/c:v3.7.3", "rust:1.95.0-bookworm"] {
        assert!(is_pinned(pinned), "{pinned}");
    }
    for floating in ["postgres", "postgres:18", "postgres:latest", "a:5000/b:nonroot"] {
        assert!(!is_pinned(floating), "{floating}");
    }
}

#[test]
fn every_yaml_file_is_one() {
    let yaml = files_below("deploy").into_iter().chain(["compose.yaml".to_owned()]);
    let yaml = yaml.filter(|path| path.ends_with(".yml") || path.ends_with(".yaml"));
    let mut seen = 0;
    for path in yaml {
        for document in documents(&path) {
            assert!(document.is_object(), "{path}");
        }
        seen += 1;
    }
    assert!(seen >= 15, "{seen} files");
}

#[test]
fn what_the_deployment_guide_names_exists() {
    let guide = read("docs/deployment.md");
    let table = guide.lines().filter(|line| line.starts_with("| `"));
    let mut named = 0;
    for row in table {
        let cell = row.split('|').nth(1).expect("a cell");
        for name in cell.split('`').skip(1).step_by(2) {
            assert!(Path::new(ROOT).join(name).exists(), "{name}");
            named += 1;
        }
    }
    assert!(named >= 8, "{named} names");
    assert!(README.contains("docs/deployment.md") && README.contains("docs/runbook.md"));
    assert!(README.contains("docs/scaling.md"));
}
