//! compose.yaml.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::{assert_pinned, document, entries, is_known, item, list, load, text};
use crate::support::repository::{ROOT, read};
use crate::support::{Files, Servers, Service, Stage, eventually};

/// The keys of the Compose Specification that the services use; a misspelt key is not among them.
const KEYS: &str = "build cap_drop command cpu_shares depends_on entrypoint environment healthcheck hostname \
                    image mem_limit ports read_only restart secrets security_opt shm_size \
                    stop_grace_period volumes";

fn compose() -> Value {
    document("compose.yaml")
}

fn seconds(text: &str) -> u64 {
    text.trim_end_matches('s').parse().expect("seconds")
}

#[test]
fn its_settings_are_the_services_and_fit_each_other() {
    let services = &compose()["services"];
    let [aggregator, migrate, postgres] =
        ["aggregator", "migrate", "postgres"].map(|name| &services[name]);
    load(&entries(&migrate["environment"]).collect());
    let config = load(&entries(&aggregator["environment"]).collect());
    let grace = seconds(text(&aggregator["stop_grace_period"]));
    assert!(grace > config.shutdown.timeout.as_secs(), "killed before its own deadline");

    // Each side is reached by its name in the network.
    let hosts = [&config.rabbitmq.host, &config.postgres.host].map(ToString::to_string);
    assert_eq!(hosts, ["rabbitmq", "postgres"]);
    assert_eq!(config.postgres.user, text(&postgres["environment"]["POSTGRES_USER"]));
    assert_eq!(config.postgres.database, text(&postgres["environment"]["POSTGRES_DB"]));
    let broker = &services["rabbitmq"]["environment"]["RABBITMQ_DEFAULT_USER"];
    assert_eq!(config.rabbitmq.user, text(broker));

    // What the service checks at start.
    for setting in ["fsync", "full_page_writes", "synchronous_commit"] {
        let on = format!("--{setting}=on");
        assert!(list(&postgres["command"]).any(|word| *word == on), "{setting}");
    }
    let limit = list(&postgres["command"]).find_map(|w| text(w).strip_prefix("--max_connections="));
    let limit: u32 = limit.expect("a limit").parse().expect("a number");
    let ports = text(&aggregator["ports"][0]).split(':').nth(1).expect("address:ports:port");
    let (first, last) = ports.split_once('-').expect("a port for each instance");
    let instances =
        last.parse::<u32>().expect("a port") - first.parse::<u32>().expect("a port") + 1;
    let used = instances * (config.postgres.max_connections + 3) + 1;
    assert!(used <= limit - 3, "{instances} instances use {used} of {limit} connections");
}

#[test]
fn its_images_are_pinned_its_ports_local_its_secrets_files() {
    let compose = compose();
    for (name, file) in entries(&compose["secrets"]) {
        assert_eq!(file, json!({"file": format!("./deploy/secrets/{name}")}).to_string());
    }
    let ignored = read(".gitignore");
    assert!(ignored.lines().any(|line| line == "/deploy/secrets"), "secrets are not committed");
    for (name, service) in compose["services"].as_object().expect("services") {
        for key in service.as_object().expect("a service").keys() {
            assert!(KEYS.split(' ').any(|known| known == key), "{name}: {key}");
        }
        assert_pinned(text(&service["image"]));
        for port in list(&service["ports"]) {
            assert!(text(port).starts_with("127.0.0.1:"), "{name}: {port}");
        }
        for secret in list(&service["secrets"]) {
            assert!(compose["secrets"][text(secret)].is_object(), "{name}: {secret}");
        }
        for (variable, value) in entries(&service["environment"]) {
            if let Some(secret) = value.strip_prefix("/run/secrets/") {
                assert!(list(&service["secrets"]).any(|s| s == secret), "{name}: {variable}");
            }
            let bare = variable.ends_with("PASSWORD") || variable.ends_with("PASS");
            assert!(!bare, "{name}: {variable} is a password in the clear");
        }
        for volume in list(&service["volumes"]).map(text) {
            let source = volume.split(':').next().expect("a source");
            if let Some(path) = source.strip_prefix("./") {
                assert!(Path::new(ROOT).join(path).exists(), "{name}: {volume}");
                assert!(volume.ends_with(":ro"), "{name}: {volume} may be written to");
            } else {
                assert!(compose["volumes"].get(source).is_some(), "{name}: {volume}");
            }
        }
        for (needed, how) in service["depends_on"].as_object().into_iter().flatten() {
            let other = &compose["services"][needed];
            match text(&how["condition"]) {
                "service_healthy" => assert_eq!(other["healthcheck"]["test"][0], "CMD", "{needed}"),
                "service_completed_successfully" => {
                    assert_ne!(other["restart"], "unless-stopped", "{needed}");
                }
                condition => panic!("{name}: {condition}"),
            }
        }
    }
    for ours in ["migrate", "aggregator", "board"] {
        let service = &compose["services"][ours];
        assert_eq!(service["build"]["context"], ".", "{ours}");
        assert_eq!(service["read_only"], true, "{ours}");
        assert_eq!(service["cap_drop"], json!(["ALL"]), "{ours}");
        assert_eq!(service["security_opt"], json!(["no-new-privileges:true"]), "{ours}");
    }
}

#[test]
fn prometheus_and_grafana_find_what_is_mounted() {
    let services = &compose()["services"];
    let mut words = list(&services["prometheus"]["command"]).map(text);
    let file = words.find_map(|w| w.strip_prefix("--config.file=/etc/prometheus/"));
    let file = file.expect("in the folder that is mounted");
    let configuration = document(&format!("deploy/prometheus/{file}"));
    let shipped = document("deploy/prometheus/prometheus.yml");
    assert_eq!(configuration["rule_files"], shipped["rule_files"]);
    let aggregator = text(&services["aggregator"]["ports"][0]).rsplit(':').next();
    let board = &services["board"]["environment"]["PROMETHEUS_PORT"];
    for (name, service, port) in [
        ("vote-aggregator", "aggregator", aggregator.expect("a port")),
        ("vote-aggregator-board", "board", text(board)),
    ] {
        // The jobs that the alerts name.
        let job = item(&configuration["scrape_configs"], "job_name", name);
        let discovered = &job["dns_sd_configs"][0];
        assert!(services[service].is_object() && discovered["names"] == json!([service]), "{name}");
        assert_eq!(discovered["port"].to_string(), port, "{name}");
        item(&shipped["scrape_configs"], "job_name", name);
    }

    let sources = document("deploy/grafana/provisioning/datasources/vote-aggregator.yml");
    for source in list(&sources["datasources"]) {
        let host = text(&source["url"]).trim_start_matches("http://");
        let host = host.split(':').next().expect("a host");
        assert!(services[host].is_object(), "{host}");
    }
    let folder = document("deploy/grafana/provisioning/dashboards/vote-aggregator.yml");
    let folder = text(&folder["providers"][0]["options"]["path"]);
    let dashboard = format!("./deploy/grafana/vote-aggregator.json:{folder}/");
    let mut mounts = list(&services["grafana"]["volumes"]);
    assert!(mounts.any(|mount| text(mount).starts_with(&dashboard)), "{dashboard}");
    assert!(is_known("RABBITMQ_HOST") && !is_known("RABBITMQ_HOTS"));
}

/// It reads as a login of its own, and asks itself where it listens.
#[tokio::test]
async fn the_boards_login_reads_what_is_published_and_nothing_else() {
    let services = &compose()["services"];
    let board = &services["board"];
    let environment: BTreeMap<String, String> = entries(&board["environment"]).collect();
    let config = load(&environment);
    assert_eq!(config.postgres.host.to_string(), "postgres");
    let admin = format!("0.0.0.0:{}", config.monitoring.port);
    let words: Vec<&str> = list(&board["command"]).map(text).collect();
    assert!(words.windows(2).any(|pair| pair == ["--admin", &admin]), "{words:?}");
    let public = words.windows(2).find(|pair| pair[0] == "--listen").expect("an address")[1];
    let port = public.rsplit(':').next().expect("a port");
    assert!(text(&board["ports"][0]).ends_with(&format!(":{port}")), "only the public port");
    assert_eq!(list(&board["ports"]).count(), 1);

    let stage = Stage::migrated(Servers::shared(), "composeboard").await;
    let files = Files::new("composeboard");
    let secret = files.write("password", "of the 'board'\n");
    let login = read("deploy/postgres/board-login.sql");
    let mut login = login.replace("/run/secrets/board_password", &secret);
    // Roles belong to a whole server, which other tests use.
    let user = format!("composed_{}", text(&board["environment"]["POSTGRES_USER"]));
    for (before, after) in [("ROLE ", ""), ("TO ", ""), ("'", "'")] {
        login = login.replace(&format!("{before}board{after}"), &format!("{before}{user}{after}"));
    }
    let login = files.write("login.sql", login);
    let entrypoint = text(&services["roles"]["entrypoint"][2]);
    assert!(entrypoint.contains("--file=/roles.sql --file=/board-login.sql"), "{entrypoint}");
    for _ in 0..2 {
        stage.grant_roles();
        stage.psql(&["-f", &login]);
    }
    let settings = [("POSTGRES_USER", &*user), ("POSTGRES_PASSWORD", "of the 'board'")];
    let folder = Files::new("composeboard");
    let arguments = ["board", "--out", &folder.path()];
    let service =
        Service::spawn("composeboard", &arguments, &stage.environment_with(&settings)).await;
    eventually("it reads", async || folder.join("results.json").exists()).await;
    service.stop().await;
    stage.run_with(&["results"], &settings).await.assert(77, &["42501"]);
}
