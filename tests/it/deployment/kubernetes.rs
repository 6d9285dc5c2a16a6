//! The manifests.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::Resource;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{assert_pinned, document, documents, entries, item, list, load, text};
use crate::support::repository::{files_below, read};

const FOLDER: &str = "deploy/kubernetes";

fn manifest(name: &str) -> Value {
    document(&format!("{FOLDER}/{name}.yaml"))
}

fn pod() -> Value {
    pod_of("deployment")
}

fn pod_of(deployment: &str) -> Value {
    manifest(deployment)["spec"]["template"]["spec"].take()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(&pod["initContainers"]).chain(list(&pod["containers"]))
}

fn configured() -> BTreeMap<String, String> {
    entries(&manifest("configmap")["data"]).collect()
}

/// The command of secrets.md that makes a Secret.
fn made(secret: &Value) -> String {
    let secrets = read(format!("{FOLDER}/secrets.md"));
    let made = secrets.split_once(&format!("create secret generic {} ", text(secret)));
    let (_, made) = made.unwrap_or_else(|| panic!("how is {secret} made?"));
    made.split("```").next().expect("the rest of the command").to_owned()
}

/// Kubernetes' types skip unknown fields, so that what they write has to be what was read.
fn assert_read_as<T: Resource + DeserializeOwned + Serialize>(name: &str) {
    let manifest = manifest(name);
    let parsed: T = serde_json::from_value(manifest.clone()).expect(name);
    assert_eq!(serde_json::to_value(&parsed).expect("JSON"), manifest, "{name} as {}", T::KIND);
}

#[test]
fn kubernetes_types_read_every_field_of_each_manifest() {
    assert_read_as::<ConfigMap>("configmap");
    assert_read_as::<Deployment>("deployment");
    assert_read_as::<Namespace>("namespace");
    assert_read_as::<NetworkPolicy>("networkpolicy");
    assert_read_as::<PodDisruptionBudget>("poddisruptionbudget");
    assert_read_as::<Service>("service");
    assert_read_as::<Deployment>("board/deployment");
    assert_read_as::<NetworkPolicy>("board/networkpolicy");
    assert_read_as::<Service>("board/service");
}

#[test]
fn kustomize_has_every_manifest_and_no_other() {
    let mut listed = BTreeSet::new();
    for (folder, kind) in [
        ("", "Kustomization"),
        ("board/", "Component"),
        ("keda/", "Component"),
        ("servicemonitor/", "Component"),
    ] {
        let kustomization = manifest(&format!("{folder}kustomization"));
        assert_eq!(kustomization["kind"], kind);
        let resources = list(&kustomization["resources"]).map(text).chain(["kustomization.yaml"]);
        listed.extend(resources.map(|name| format!("{FOLDER}/{folder}{name}")));
    }
    let there = files_below(FOLDER).into_iter().filter(|path| path.ends_with(".yaml"));
    assert_eq!(listed, there.collect());
    let namespace = &manifest("kustomization")["namespace"];
    assert_eq!(&manifest("namespace")["metadata"]["name"], namespace);
}

#[test]
fn the_settings_are_the_services_and_every_secret_is_mounted() {
    let pod = pod();
    // A Service named rabbitmq would set RABBITMQ_PORT to an address.
    assert_eq!(pod["enableServiceLinks"], false);
    for container in containers(&pod) {
        let mut environment = configured();
        let own = list(&container["env"]).map(|v| (text(&v["name"]), text(&v["value"])));
        environment.extend(own.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let config = load(&environment);
        assert!(!config.postgres.migrate_on_start, "migrating is the init container's task");
        for (_, file) in environment.iter().filter(|(name, _)| name.ends_with("_FILE")) {
            let (folder, key) = file.rsplit_once('/').expect("a path");
            let mount = item(&container["volumeMounts"], "mountPath", folder);
            let secret = &item(&pod["volumes"], "name", text(&mount["name"]))["secret"];
            assert_eq!(secret["defaultMode"], 0o440, "read by the account's group");
            assert!(made(&secret["secretName"]).contains(&format!("--from-file={key}")), "{key}");
        }
    }
    let mut mounts = list(&pod["containers"][0]["volumeMounts"]);
    assert!(mounts.all(|mount| mount["name"] != "owner"), "only migrating needs this password");
}

#[test]
fn probes_times_ports_and_selectors_are_those_of_the_service() {
    let (pod, config) = (pod(), load(&configured()));
    let grace = pod["terminationGracePeriodSeconds"].as_u64().expect("a grace period");
    assert!(grace > config.shutdown.timeout.as_secs());

    let container = &pod["containers"][0];
    let port = &container["ports"][0];
    assert_eq!(port["containerPort"], config.monitoring.port);
    for (probe, path) in
        [("startupProbe", "/startupz"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]
    {
        assert_eq!(container[probe]["httpGet"], json!({"path": path, "port": port["name"]}));
    }
    let startup = ["periodSeconds", "failureThreshold"]
        .map(|name| container["startupProbe"][name].as_u64().expect("a number"));
    assert!(startup[0] * startup[1] >= 1_800, "an outage at start is no reason to kill a pod");

    let service = manifest("service");
    assert_eq!(service["metadata"]["name"], "vote-aggregator", "the job of the alerts");
    assert_eq!(service["spec"]["ports"][0]["targetPort"], port["name"]);
    let labels = &manifest("deployment")["spec"]["template"]["metadata"]["labels"];
    assert!(labels.is_object());
    assert_eq!(&service["spec"]["selector"], labels);
    for (name, selector) in [
        ("deployment", "selector"),
        ("poddisruptionbudget", "selector"),
        ("networkpolicy", "podSelector"),
    ] {
        assert_eq!(&manifest(name)["spec"][selector]["matchLabels"], labels, "{name}");
    }

    let monitor = document(&format!("{FOLDER}/servicemonitor/servicemonitor.yaml"));
    assert_eq!(monitor["apiVersion"], "monitoring.coreos.com/v1");
    let labels = &manifest("kustomization")["labels"][0]["pairs"];
    assert_eq!(&monitor["spec"]["selector"]["matchLabels"], labels);
    let endpoint = &monitor["spec"]["endpoints"][0];
    assert_eq!(endpoint["port"], service["spec"]["ports"][0]["name"]);
    assert_eq!(endpoint["path"], "/metrics");
}

/// Metrics and health are open to the monitoring only; the pods reach both servers and DNS.
#[test]
fn the_network_policy_allows_the_services_own_traffic_and_no_other() {
    let (spec, config) = (&manifest("networkpolicy")["spec"], load(&configured()));
    assert_eq!(spec["policyTypes"], json!(["Ingress", "Egress"]));
    let monitoring = json!({"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}});
    let port = &pod()["containers"][0]["ports"][0]["name"];
    let ingress = json!([{
        "from": [{"namespaceSelector": monitoring}],
        "ports": [{"protocol": "TCP", "port": port}],
    }]);
    assert_eq!(spec["ingress"], ingress);
    let ports = list(&spec["egress"]).flat_map(|rule| list(&rule["ports"]));
    let ports: BTreeSet<u64> = ports.map(|port| port["port"].as_u64().expect("a port")).collect();
    let servers = [config.rabbitmq.port, config.postgres.port, 53].map(u64::from);
    assert_eq!(ports, servers.into());
}

/// As the level "restricted" of the Pod Security Standards requires.
#[test]
fn every_container_is_pinned_bounded_and_restricted() {
    let restricted = json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    });
    for pod in ["deployment", "board/deployment"].map(pod_of) {
        assert_eq!(pod["automountServiceAccountToken"], false);
        let account = &pod["securityContext"];
        assert_eq!(account["runAsNonRoot"], true);
        assert_eq!(account["runAsUser"], 65_532, "as in the image");
        assert_eq!(account["seccompProfile"]["type"], "RuntimeDefault");
        for container in containers(&pod) {
            assert_pinned(text(&container["image"]));
            assert_eq!(container["securityContext"], restricted, "{}", container["name"]);
            for bound in ["/requests/cpu", "/requests/memory", "/limits/memory"] {
                assert!(container["resources"].pointer(bound).is_some(), "{bound}");
            }
        }
    }
    let labels = &manifest("namespace")["metadata"]["labels"];
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "restricted");
}

#[test]
fn the_largest_number_of_pods_fits_into_postgresql() {
    let config = load(&configured());
    let scaled = documents(&format!("{FOLDER}/keda/scaledobject.yaml"));
    let [scaled, authentication] = &scaled[..] else { panic!("two objects") };
    for (object, kind) in [(scaled, "ScaledObject"), (authentication, "TriggerAuthentication")] {
        assert_eq!(object["kind"], kind);
        assert_eq!(object["apiVersion"], "keda.sh/v1alpha1", "{kind}");
    }
    let spec = &scaled["spec"];
    assert_eq!(spec["scaleTargetRef"]["name"], manifest("deployment")["metadata"]["name"]);
    let count = |name: &str| spec[name].as_u64().expect("a number");
    let [least, most] = ["minReplicaCount", "maxReplicaCount"].map(count);
    assert!((1..=most).contains(&least), "never 0: alerts and depths come from the pods");
    // One more during a roll-out; three connections of each are outside its pool.
    let connections = (most + 1) * (u64::from(config.postgres.max_connections) + 3);
    assert!(connections <= 100 - 3, "{connections} connections on PostgreSQL's default of 100");

    let trigger = &spec["triggers"][0];
    assert_eq!(trigger["type"], "rabbitmq");
    assert_eq!(trigger["metadata"]["queueName"], *config.rabbitmq.queue);
    assert_eq!(trigger["authenticationRef"]["name"], authentication["metadata"]["name"]);
    let mut metadata = trigger["metadata"].as_object().expect("metadata").values();
    assert!(metadata.all(Value::is_string), "KEDA takes text only");
    let from = &authentication["spec"]["secretTargetRef"][0];
    assert!(made(&from["name"]).contains(&format!("--from-literal={}=", text(&from["key"]))));
}

/// It has a login of its own, its files exist, everybody reaches the page and only the monitoring the rest; without
/// PostgreSQL its pods go on showing what they have.
#[test]
fn the_board_is_public_on_one_port_and_reads_as_a_login_of_its_own() {
    let pod = pod_of("board/deployment");
    assert_eq!(pod["enableServiceLinks"], false);
    let container = &pod["containers"][0];
    let environment: BTreeMap<String, String> = list(&container["env"])
        .map(|it| (text(&it["name"]).to_owned(), text(&it["value"]).to_owned()))
        .collect();
    let config = load(&environment);
    assert_ne!(config.postgres.user, load(&configured()).postgres.user);
    let (folder, key) = environment["POSTGRES_PASSWORD_FILE"].rsplit_once('/').expect("a path");
    let volume = |folder: &str| {
        let mount = item(&container["volumeMounts"], "mountPath", folder);
        item(&pod["volumes"], "name", text(&mount["name"])).clone()
    };
    let secret = &volume(folder)["secret"];
    assert_eq!(secret["defaultMode"], 0o440);
    assert!(made(&secret["secretName"]).contains(&format!("--from-file={key}=")), "{key}");

    let arguments: Vec<&str> = list(&container["args"]).map(text).collect();
    let argument = |name: &str| {
        let found = arguments.iter().find_map(|it| it.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("no {name} in {arguments:?}"))
    };
    let (folder, file) = argument("--laws").rsplit_once('/').expect("a path");
    let laws = text(&volume(folder)["configMap"]["name"]).to_owned();
    let secrets = read(format!("{FOLDER}/secrets.md"));
    assert!(secrets.contains(&format!("create configmap {laws} --from-file={file}")), "{laws}");

    for (option, port) in [("--listen", "public"), ("--admin", "admin")] {
        let address = argument(option).rsplit(':').next().expect("a port");
        let port = item(&container["ports"], "name", port);
        assert_eq!(port["containerPort"].to_string(), address, "{option}");
    }
    assert_eq!(container["livenessProbe"]["httpGet"], json!({"path": "/livez", "port": "admin"}));
    assert_eq!(container["readinessProbe"]["httpGet"], json!({"path": "/", "port": "public"}));

    let labels = &manifest("board/deployment")["spec"]["template"]["metadata"]["labels"];
    assert_ne!(labels, &manifest("deployment")["spec"]["template"]["metadata"]["labels"]);
    let service = manifest("board/service");
    assert_eq!(service["metadata"]["name"], "vote-aggregator-board", "the job of the alerts");
    assert_eq!(&service["spec"]["selector"], labels);
    let monitor = document(&format!("{FOLDER}/servicemonitor/servicemonitor.yaml"));
    let endpoint = item(&monitor["spec"]["endpoints"], "port", "admin");
    assert_eq!(item(&service["spec"]["ports"], "name", "admin")["targetPort"], endpoint["port"]);
    for (name, selector) in [("deployment", "selector"), ("networkpolicy", "podSelector")] {
        assert_eq!(&manifest(&format!("board/{name}"))["spec"][selector]["matchLabels"], labels);
    }
    // Two would show different counts, also for the moment of an update.
    let spec = &manifest("board/deployment")["spec"];
    assert_eq!((&spec["replicas"], &spec["strategy"]), (&json!(1), &json!({"type": "Recreate"})));

    let policy = &manifest("board/networkpolicy")["spec"];
    let own = &manifest("networkpolicy")["spec"];
    let monitoring = &own["ingress"][0]["from"];
    let ingress = json!([
        {"ports": [{"protocol": "TCP", "port": "public"}]},
        {"from": monitoring, "ports": [{"protocol": "TCP", "port": "admin"}]},
    ]);
    assert_eq!(policy["ingress"], ingress);
    let ports = list(&policy["egress"]).flat_map(|rule| list(&rule["ports"]));
    let ports: BTreeSet<u64> = ports.map(|port| port["port"].as_u64().expect("a port")).collect();
    assert_eq!(ports, BTreeSet::from([u64::from(config.postgres.port), 53]), "never RabbitMQ");
}
