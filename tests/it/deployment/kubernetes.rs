//! The manifests, read into Kubernetes' own types.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::Resource;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Namespace, PodSpec, Service};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPort};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Scratch, assert_pinned, document, documents, files_below, load, read, scalar, text};

const FOLDER: &str = "deploy/kubernetes";

/// A manifest as one of Kubernetes' types. Those skip what they don't know, so that what they give
/// back has to be what was read.
fn strictly<T: Resource + DeserializeOwned + Serialize>(manifest: &Value) -> Result<T, String> {
    let parsed: T = serde_json::from_value(manifest.clone()).map_err(|error| error.to_string())?;
    let back = serde_json::to_value(&parsed).map_err(|error| error.to_string())?;
    if back == *manifest {
        return Ok(parsed);
    }
    Err(format!("not all of it is {}:\n{manifest:#}\nbut\n{back:#}", T::KIND))
}

fn manifest<T: Resource + DeserializeOwned + Serialize>(name: &str) -> T {
    let file = format!("{FOLDER}/{name}.yaml");
    strictly(&document(&file)).unwrap_or_else(|why| panic!("{file}: {why}"))
}

fn deployment() -> (Deployment, PodSpec) {
    let deployment: Deployment = manifest("deployment");
    let pod = deployment.spec.clone().expect("a spec").template.spec.expect("a pod");
    (deployment, pod)
}

fn configured() -> BTreeMap<String, String> {
    manifest::<ConfigMap>("configmap").data.expect("data")
}

#[test]
fn a_misspelt_or_misplaced_field_is_found() {
    let mut changed = document(&format!("{FOLDER}/deployment.yaml"));
    assert!(strictly::<Deployment>(&changed).is_ok());
    changed["spec"]["template"]["spec"]["terminationGracePeriod"] = 30.into();
    assert!(strictly::<Deployment>(&changed).is_err_and(|why| why.contains("not all of it")));
    let mut changed = document(&format!("{FOLDER}/deployment.yaml"));
    changed["apiVersion"] = "apps/v1beta1".into();
    assert!(strictly::<Deployment>(&changed).is_err());
    changed["apiVersion"] = "apps/v1".into();
    changed["spec"]["replicas"] = "two".into();
    assert!(strictly::<Deployment>(&changed).is_err());
}

#[test]
fn kustomize_has_every_manifest_and_no_other() {
    let mut listed = BTreeSet::new();
    for folder in ["", "/keda", "/servicemonitor"] {
        let folder = format!("{FOLDER}{folder}");
        let kustomization = document(&format!("{folder}/kustomization.yaml"));
        let kind = if folder == FOLDER { "Kustomization" } else { "Component" };
        assert_eq!(kustomization["kind"], kind);
        let resources = kustomization["resources"].as_array().expect("a list");
        listed.extend(resources.iter().map(|name| format!("{folder}/{}", text(name))));
        listed.insert(format!("{folder}/kustomization.yaml"));
    }
    let there = files_below(FOLDER).into_iter().filter(|path| path.ends_with(".yaml"));
    assert_eq!(listed, there.collect());
    let namespace = document(&format!("{FOLDER}/kustomization.yaml"))["namespace"].clone();
    assert_eq!(manifest::<Namespace>("namespace").metadata.name.as_deref(), namespace.as_str());
}

#[test]
fn the_settings_are_the_services_and_every_secret_is_mounted() {
    let (_, pod) = deployment();
    // A Service named rabbitmq would set RABBITMQ_PORT to an address.
    assert_eq!(pod.enable_service_links, Some(false));
    let scratch = Scratch::new("kubernetes");
    let secrets = read(format!("{FOLDER}/secrets.md"));
    let volumes = pod.volumes.clone().expect("volumes");
    let containers = pod.init_containers.iter().flatten().chain(&pod.containers);
    for container in containers {
        let mut environment = configured();
        for variable in container.env.iter().flatten() {
            environment.insert(variable.name.clone(), variable.value.clone().expect("a value"));
        }
        let config = load(&environment, &scratch.0);
        assert!(!config.postgres.migrate_on_start, "migrating is the init container's task");
        let mounts = container.volume_mounts.clone().unwrap_or_default();
        for (variable, file) in environment.iter().filter(|(name, _)| name.ends_with("_FILE")) {
            let (folder, key) = file.rsplit_once('/').expect("a path");
            let mount = mounts.iter().find(|mount| mount.mount_path == folder);
            let mount = mount.unwrap_or_else(|| panic!("{}: {variable}", container.name));
            let volume = volumes.iter().find(|volume| volume.name == mount.name).expect("a volume");
            let secret = volume.secret.as_ref().expect("a Secret");
            assert_eq!(secret.default_mode, Some(0o440), "read by the account's group");
            let name = secret.secret_name.as_deref().expect("a name");
            let made = format!("create secret generic {name} ");
            let (_, made) = secrets.split_once(&made).unwrap_or_else(|| panic!("{name}: how?"));
            let made = made.split("```").next().expect("the rest of the command");
            assert!(made.contains(&format!("--from-file={key}")), "{name}: {key}");
        }
    }
    let counter = &pod.containers[0];
    assert!(
        counter.volume_mounts.iter().flatten().all(|mount| mount.name != "owner"),
        "who counts has no business with the owner's password"
    );
}

#[test]
fn probes_times_and_ports_are_those_of_the_service() {
    let (deployment, pod) = deployment();
    let scratch = Scratch::new("kubernetes-times");
    let config = load(&configured(), &scratch.0);
    let grace = pod.termination_grace_period_seconds.expect("a grace period");
    assert!(grace > i64::try_from(config.shutdown.timeout.as_secs()).expect("small"));

    let container = &pod.containers[0];
    let port = &container.ports.as_ref().expect("ports")[0];
    assert_eq!(port.container_port, i32::from(config.monitoring.port));
    let named = IntOrString::String(port.name.clone().expect("a name"));
    for (probe, path) in [
        (&container.startup_probe, "/startupz"),
        (&container.liveness_probe, "/livez"),
        (&container.readiness_probe, "/readyz"),
    ] {
        let get = probe.as_ref().and_then(|probe| probe.http_get.as_ref()).expect("a probe");
        assert_eq!((get.path.as_deref(), &get.port), (Some(path), &named));
    }
    let startup = container.startup_probe.as_ref().expect("just seen");
    let patience = startup.period_seconds.expect("set") * startup.failure_threshold.expect("set");
    assert!(patience >= 1_800, "an outage at start is no reason to kill a pod after {patience} s");

    let service: Service = manifest("service");
    assert_eq!(service.metadata.name.as_deref(), Some("vote-aggregator"), "the job of the alerts");
    let service = service.spec.expect("a spec");
    assert_eq!(service.ports.expect("ports")[0].target_port.as_ref(), Some(&named));

    let labels = deployment.spec.expect("a spec").template.metadata.expect("metadata").labels;
    let labels = labels.expect("labels");
    let budget: PodDisruptionBudget = manifest("poddisruptionbudget");
    let selected = |selector: Option<LabelSelector>| selector.and_then(|s| s.match_labels);
    let selectors = [service.selector, selected(budget.spec.expect("a spec").selector)];
    for selector in selectors.into_iter().map(|selector| selector.expect("a selector")) {
        assert!(!selector.is_empty());
        assert!(selector.iter().all(|(name, value)| labels.get(name) == Some(value)));
    }
}

/// Metrics and health to the monitoring alone; from the pods to both servers and DNS.
#[test]
fn the_network_policy_allows_the_services_own_traffic_and_no_other() {
    let (deployment, pod) = deployment();
    let scratch = Scratch::new("kubernetes-network");
    let config = load(&configured(), &scratch.0);
    let policy = manifest::<NetworkPolicy>("networkpolicy").spec.expect("a spec");
    assert_eq!(policy.policy_types, Some(vec!["Ingress".to_owned(), "Egress".to_owned()]));
    let labels = deployment.spec.expect("a spec").template.metadata.expect("metadata").labels;
    let selected = policy.pod_selector.and_then(|selector| selector.match_labels);
    let (labels, selected) = (labels.expect("labels"), selected.expect("selected labels"));
    assert!(!selected.is_empty());
    assert!(selected.iter().all(|(name, value)| labels.get(name) == Some(value)));

    let [ingress] = &policy.ingress.expect("ingress")[..] else { panic!("one rule") };
    let port = pod.containers[0].ports.as_ref().expect("ports")[0].name.clone();
    let [allowed] = &ingress.ports.as_ref().expect("ports")[..] else { panic!("one port") };
    assert_eq!(allowed.port, port.map(IntOrString::String));
    let [from] = &ingress.from.as_ref().expect("whom")[..] else { panic!("one peer") };
    let namespace = from.namespace_selector.as_ref().and_then(|s| s.match_labels.as_ref());
    assert_eq!(namespace.expect("a namespace")["kubernetes.io/metadata.name"], "monitoring");
    assert!(from.pod_selector.is_none() && from.ip_block.is_none());

    let rules = policy.egress.expect("egress");
    let ports = rules.iter().flat_map(|rule| rule.ports.as_ref().expect("ports"));
    let number = |port: &NetworkPolicyPort| match &port.port {
        Some(IntOrString::Int(number)) => *number,
        other => panic!("a number: {other:?}"),
    };
    let servers = [config.rabbitmq.port, config.postgres.port].map(i32::from);
    let expected: BTreeSet<i32> = servers.into_iter().chain([53]).collect();
    assert_eq!(ports.map(number).collect::<BTreeSet<_>>(), expected);
}

/// What Pod Security Standards ask for under the name restricted.
fn assert_restricted(pod: &PodSpec, container: &Container) {
    let name = &container.name;
    let of_pod = pod.security_context.as_ref().expect("a context");
    let of_container = container.security_context.as_ref().expect("a context");
    assert_eq!(of_pod.run_as_non_root, Some(true));
    assert_eq!(of_pod.run_as_user, Some(65_532), "as in the image");
    assert_eq!(of_pod.seccomp_profile.as_ref().map(|p| p.type_.as_str()), Some("RuntimeDefault"));
    assert_eq!(of_container.allow_privilege_escalation, Some(false), "{name}");
    assert_eq!(of_container.read_only_root_filesystem, Some(true), "{name}");
    let capabilities = of_container.capabilities.as_ref().expect("capabilities");
    assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]), "{name}");
    assert!(capabilities.add.is_none(), "{name}");
}

#[test]
fn every_container_is_pinned_bounded_and_restricted() {
    let (_, pod) = deployment();
    assert_eq!(pod.automount_service_account_token, Some(false));
    for container in pod.init_containers.iter().flatten().chain(&pod.containers) {
        assert_pinned(container.image.as_deref().expect("an image"));
        assert_restricted(&pod, container);
        let resources = container.resources.as_ref().expect("resources");
        let requests = resources.requests.as_ref().expect("requests");
        assert!(requests.contains_key("cpu") && requests.contains_key("memory"));
        assert!(resources.limits.as_ref().expect("limits").contains_key("memory"));
    }
    let labels = manifest::<Namespace>("namespace").metadata.labels.expect("labels");
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "restricted");
}

#[test]
fn the_largest_number_of_pods_fits_into_postgresql() {
    let (deployment, _) = deployment();
    let scratch = Scratch::new("kubernetes-scale");
    let config = load(&configured(), &scratch.0);
    let scaled = documents(&format!("{FOLDER}/keda/scaledobject.yaml"));
    let [scaled, authentication] = &scaled[..] else { panic!("two objects") };
    assert_eq!(
        (text(&scaled["kind"]), text(&authentication["kind"])),
        ("ScaledObject", "TriggerAuthentication")
    );
    for object in [scaled, authentication] {
        assert_eq!(object["apiVersion"], "keda.sh/v1alpha1");
    }
    let spec = &scaled["spec"];
    assert_eq!(spec["scaleTargetRef"]["name"].as_str(), deployment.metadata.name.as_deref());
    let [least, most] =
        ["minReplicaCount", "maxReplicaCount"].map(|name| spec[name].as_u64().expect("a number"));
    assert!((1..=most).contains(&least), "never 0: alerts and depths come from the pods");
    // One more during a roll-out; three connections of each are outside its pool.
    let connections = (most + 1) * (u64::from(config.postgres.max_connections) + 3);
    assert!(connections <= 100 - 3, "{connections} connections on PostgreSQL's default of 100");

    let trigger = &spec["triggers"][0];
    assert_eq!(trigger["type"], "rabbitmq");
    assert_eq!(text(&trigger["metadata"]["queueName"]), config.rabbitmq.queue);
    assert_eq!(trigger["authenticationRef"]["name"], authentication["metadata"]["name"]);
    for value in trigger["metadata"].as_object().expect("metadata").values() {
        assert!(value.is_string(), "{value}: KEDA takes text only");
    }
    let from = &authentication["spec"]["secretTargetRef"][0];
    let made = format!("create secret generic {} ", text(&from["name"]));
    let (_, made) = read(format!("{FOLDER}/secrets.md"))
        .split_once(&made)
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .expect("how it is made");
    assert!(made.contains(&format!("--from-literal={}=", text(&from["key"]))));
}

#[test]
fn the_service_monitor_scrapes_the_service() {
    let monitor = document(&format!("{FOLDER}/servicemonitor/servicemonitor.yaml"));
    assert_eq!(monitor["apiVersion"], "monitoring.coreos.com/v1");
    let labels = &document(&format!("{FOLDER}/kustomization.yaml"))["labels"][0]["pairs"];
    assert_eq!(&monitor["spec"]["selector"]["matchLabels"], labels);
    let service: Service = manifest("service");
    let port = service.spec.and_then(|spec| spec.ports).expect("ports")[0].name.clone();
    assert_eq!(monitor["spec"]["endpoints"][0]["port"].as_str(), port.as_deref());
    assert_eq!(scalar(&monitor["spec"]["endpoints"][0]["path"]), "/metrics");
}
