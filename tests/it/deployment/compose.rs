//! compose.yaml, read strictly: a key that we don't know is a mistake until it is looked up.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{ROOT, Scratch, assert_pinned, document, is_known, load, read, scalar, text};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Compose {
    #[serde(rename = "name")]
    _name: String,
    services: BTreeMap<String, Service>,
    volumes: BTreeMap<String, Option<Value>>,
    secrets: BTreeMap<String, SecretFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SecretFile {
    file: String,
}

/// The keys of the Compose Specification that the file uses, in the forms in which it does.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    image: String,
    #[serde(default)]
    build: Option<Build>,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default, rename = "entrypoint")]
    _entrypoint: Vec<String>,
    #[serde(default)]
    environment: BTreeMap<String, Value>,
    #[serde(default)]
    secrets: Vec<String>,
    #[serde(default)]
    volumes: Vec<String>,
    #[serde(default)]
    ports: Vec<String>,
    #[serde(default)]
    depends_on: Value,
    #[serde(default)]
    healthcheck: Option<HealthCheck>,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    cap_drop: Vec<String>,
    #[serde(default)]
    security_opt: Vec<String>,
    #[serde(default)]
    stop_grace_period: Option<String>,
    restart: String,
    #[serde(default, rename = "hostname")]
    _hostname: Option<String>,
    #[serde(default, rename = "mem_limit")]
    _mem_limit: Option<String>,
    #[serde(default, rename = "shm_size")]
    _shm_size: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    context: String,
    #[serde(rename = "args")]
    _args: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HealthCheck {
    test: Vec<String>,
    #[serde(rename = "interval")]
    _interval: String,
    #[serde(rename = "timeout")]
    _timeout: String,
    #[serde(rename = "retries")]
    _retries: u32,
}

fn compose() -> Compose {
    serde_json::from_value(document("compose.yaml")).expect("keys and forms that we know")
}

fn environment(service: &Service) -> BTreeMap<String, String> {
    service.environment.iter().map(|(name, value)| (name.clone(), scalar(value))).collect()
}

#[test]
fn its_settings_are_the_services_and_fit_each_other() {
    let compose = compose();
    let scratch = Scratch::new("compose");
    let aggregator = &compose.services["aggregator"];
    let config = load(&environment(aggregator), &scratch.0);
    load(&environment(&compose.services["migrate"]), &scratch.0);

    let grace = aggregator.stop_grace_period.as_deref().expect("a grace period");
    let grace: u64 = grace.trim_end_matches('s').parse().expect("seconds");
    assert!(grace > config.shutdown.timeout.as_secs(), "killed before its own deadline");

    for (side, host) in [("rabbitmq", &config.rabbitmq.host), ("postgres", &config.postgres.host)] {
        assert_eq!(side, host, "reached by its name in the network");
    }
    let postgres = &compose.services["postgres"];
    let user = text(&postgres.environment["POSTGRES_USER"]);
    assert_eq!(config.postgres.user, user);
    assert_eq!(config.postgres.database, text(&postgres.environment["POSTGRES_DB"]));
    let broker = &compose.services["rabbitmq"].environment["RABBITMQ_DEFAULT_USER"];
    assert_eq!(config.rabbitmq.user, text(broker));

    // What the service looks at when it starts.
    for setting in ["fsync", "full_page_writes", "synchronous_commit"] {
        assert!(postgres.command.contains(&format!("--{setting}=on")), "{setting}");
    }
    let limit = postgres.command.iter().find_map(|word| word.strip_prefix("--max_connections="));
    let limit: u32 = limit.expect("a limit").parse().expect("a number");
    let instances = ports_of(&aggregator.ports[0]);
    let used = instances * (config.postgres.max_connections + 3) + 1;
    assert!(used <= limit - 3, "{instances} instances use {used} of {limit} connections");
}

/// How many ports of the host a mapping takes.
fn ports_of(mapping: &str) -> u32 {
    let host = mapping.split(':').nth(1).expect("address:port:port");
    let (first, last) = host.split_once('-').unwrap_or((host, host));
    last.parse::<u32>().expect("a port") - first.parse::<u32>().expect("a port") + 1
}

#[test]
fn its_images_are_pinned_its_ports_local_its_secrets_files() {
    let compose = compose();
    let ignored = read(".gitignore");
    for (name, secret) in &compose.secrets {
        assert_eq!(secret.file, format!("./deploy/secrets/{name}"));
    }
    assert!(ignored.lines().any(|line| line == "/deploy/secrets"), "secrets are not committed");
    for (name, service) in &compose.services {
        assert_pinned(&service.image);
        for port in &service.ports {
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port}");
        }
        for secret in &service.secrets {
            assert!(compose.secrets.contains_key(secret), "{name}: {secret}");
        }
        for (variable, value) in &service.environment {
            let value = scalar(value);
            if let Some(secret) = value.strip_prefix("/run/secrets/") {
                assert!(service.secrets.iter().any(|s| s == secret), "{name}: {variable}");
            }
            let bare = variable.ends_with("PASSWORD") || variable.ends_with("PASS");
            assert!(!bare, "{name}: {variable} is a password in the clear");
        }
        for volume in &service.volumes {
            let source = volume.split(':').next().expect("a source");
            if let Some(path) = source.strip_prefix("./") {
                assert!(Path::new(ROOT).join(path).exists(), "{name}: {volume}");
                assert!(volume.ends_with(":ro"), "{name}: {volume} may be written to");
            } else {
                assert!(compose.volumes.contains_key(source), "{name}: {volume}");
            }
        }
        let needed: Vec<&String> = match &service.depends_on {
            Value::Object(needed) => needed.keys().collect(),
            Value::Array(needed) => {
                assert!(needed.iter().all(|n| compose.services.contains_key(text(n))), "{name}");
                Vec::new()
            }
            _ => Vec::new(),
        };
        for needed_name in needed {
            let other = &compose.services[needed_name];
            match text(&service.depends_on[needed_name]["condition"]) {
                "service_healthy" => {
                    let check = other.healthcheck.as_ref().expect("something to wait for");
                    assert_eq!(check.test[0], "CMD", "{needed_name}: no shell");
                }
                "service_completed_successfully" => assert_ne!(other.restart, "unless-stopped"),
                condition => panic!("{name}: {condition}"),
            }
        }
    }
    for ours in ["migrate", "aggregator"] {
        let service = &compose.services[ours];
        let build = service.build.as_ref().expect("built from here");
        assert_eq!(build.context, ".");
        assert!(service.read_only && service.cap_drop == ["ALL"], "{ours}");
        assert_eq!(service.security_opt, ["no-new-privileges:true"], "{ours}");
    }
}

#[test]
fn prometheus_and_grafana_find_what_is_mounted() {
    let compose = compose();
    let prometheus = &compose.services["prometheus"];
    let file =
        prometheus.command.iter().find_map(|w| w.strip_prefix("--config.file=")).expect("one");
    let file = file.strip_prefix("/etc/prometheus/").expect("in the folder that is mounted");
    let configuration = document(&format!("deploy/prometheus/{file}"));
    let shipped = document("deploy/prometheus/prometheus.yml");
    assert_eq!(configuration["rule_files"], shipped["rule_files"]);
    let job = &configuration["scrape_configs"][0];
    assert_eq!(job["job_name"], "vote-aggregator", "the job that the alerts name");
    let discovered = &job["dns_sd_configs"][0];
    assert!(compose.services.contains_key(text(&discovered["names"][0])));
    let port = compose.services["aggregator"].ports[0].rsplit(':').next().expect("a port");
    assert_eq!(scalar(&discovered["port"]), port);

    let sources = document("deploy/grafana/provisioning/datasources/vote-aggregator.yml");
    for source in sources["datasources"].as_array().expect("a list") {
        let host = text(&source["url"]).trim_start_matches("http://");
        let host = host.split(':').next().expect("a host");
        assert!(compose.services.contains_key(host), "{host}");
    }
    let folder = document("deploy/grafana/provisioning/dashboards/vote-aggregator.yml");
    let folder = text(&folder["providers"][0]["options"]["path"]);
    let mounts = &compose.services["grafana"].volumes;
    let dashboard = format!("./deploy/grafana/vote-aggregator.json:{folder}/");
    assert!(mounts.iter().any(|mount| mount.starts_with(&dashboard)), "{mounts:?}");
}

#[test]
fn a_variable_that_nobody_reads_is_found() {
    assert!(is_known("RABBITMQ_HOST") && is_known("OTEL_EXPORTER_OTLP_ENDPOINT"));
    assert!(!is_known("RABBITMQ_HOTS") && !is_known("OTEL_EXPORTER_OLTP_ENDPOINT"));
    let misspelt = serde_json::json!({"image": "a:1.0", "restart": "no", "enviroment": {}});
    assert!(serde_json::from_value::<Service>(misspelt).is_err());
}
