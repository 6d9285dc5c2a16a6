//! The shipped alert rules and the dashboard, as promtool, a Prometheus and a running service see
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::process::Stdio;

use serde_json::Value;
use tokio::process::{Child, Command};
use url::Url;

use crate::metrics::promtool_path;
use crate::support::web::get;
use crate::support::{Files, Service, Stage, eventually, login, repository};

const RULES: &str = include_str!("../../deploy/prometheus/alerts.yml");
const CASES: &str = include_str!("../../deploy/prometheus/alerts_test.yml");
const CONFIGURATION: &str = include_str!("../../deploy/prometheus/prometheus.yml");
const DASHBOARD: &str = include_str!("../../deploy/grafana/vote-aggregator.json");

#[test]
fn promtool_finds_nothing_in_the_rules_and_their_tests_pass() {
    for command in [
        "check config --lint=all --lint-fatal deploy/prometheus/prometheus.yml",
        "check rules --lint=all --lint-fatal deploy/prometheus/alerts.yml",
        "test rules deploy/prometheus/alerts_test.yml",
    ] {
        let arguments: Vec<&str> = command.split(' ').collect();
        let checked = repository::run(promtool_path(), &arguments).assert(0, &["SUCCESS"]);
        let text = checked.stdout + &checked.stderr;
        assert!(!text.to_lowercase().contains("warn"), "{command}: {text}");
    }
}

/// The names behind `- alert: ` or `- record: `.
fn named(kind: &str) -> BTreeSet<&'static str> {
    RULES.lines().filter_map(|line| line.trim().strip_prefix(kind)).collect()
}

#[test]
fn every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() {
    let mut cases: BTreeMap<&str, BTreeSet<bool>> = BTreeMap::new();
    for case in CASES.split("- expr: ALERTS{alertname=\"").skip(1) {
        let (name, rest) = case.split_once('"').expect("a name in quotes");
        let (_, expected) = rest.split_once("exp_samples:").expect("an expectation");
        let fires = !expected.starts_with(" []");
        assert_eq!(fires, expected.trim_start().starts_with("- labels:"), "{name}");
        cases.entry(name).or_default().insert(fires);
    }
    assert_eq!(cases.keys().copied().collect::<BTreeSet<_>>(), named("- alert: "));
    for (name, fires) in cases {
        assert_eq!(fires, BTreeSet::from([false, true]), "{name}");
    }
}

/// Titles and queries of the dashboard's panels, with its variables filled in as Grafana would.
fn panel_queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("a title");
        for target in panel["targets"].as_array().into_iter().flatten() {
            for part in [panel, target] {
                assert_eq!(part["datasource"]["uid"], "${datasource}", "{title}");
            }
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title}: a unit");
            let query = target["expr"].as_str().expect("a query");
            let query = query.replace("$job", "vote-aggregator").replace("$__rate_interval", "1m");
            let every = ["$cell", "$instance", "$law"].into_iter();
            let query = every.fold(query, |query, name| query.replace(name, ".*"));
            assert!(!query.contains('$'), "{title}: an unknown variable: {query}");
            queries.push((title.to_owned(), query));
        }
    }
    queries
}

/// The metrics and labels with an underscore that a PromQL expression names.
fn names_in(expression: &str) -> impl Iterator<Item = &str> {
    let is_end = |c: char| !c.is_ascii_alphanumeric() && !"_:".contains(c);
    let words = expression.split('"').step_by(2).flat_map(move |code| code.split_inclusive(is_end));
    let names = words.filter(|word| word.contains('_') && !word.ends_with('('));
    names.map(move |word| word.trim_end_matches(is_end))
}

/// A Prometheus with the shipped configuration that scrapes a service, a board and a sealer, ended with this value.
struct Prometheus {
    address: String,
    _child: Child,
    _files: Files,
}

impl Prometheus {
    async fn scraping([service, board, sealer]: [&Service; 3]) -> Self {
        let [target, board] = [service.address().await, board.address().await];
        let sealer = sealer.address().await;
        let mut configuration = CONFIGURATION.to_owned();
        for (shipped, here) in [
            ("targets: [\"localhost:8001\"]", format!("targets: [\"{target}\"]")),
            ("targets: [\"localhost:8002\"]", format!("targets: [\"{board}\"]")),
            ("targets: [\"localhost:8003\"]", format!("targets: [\"{sealer}\"]")),
            ("scrape_interval: 15s", "scrape_interval: 1s".to_owned()),
            ("evaluation_interval: 15s", "evaluation_interval: 1s".to_owned()),
        ] {
            assert_eq!(configuration.matches(shipped).count(), 1, "{shipped}");
            configuration = configuration.replace(shipped, &here);
        }
        let files = Files::new("prometheus");
        files.write("prometheus.yml", &configuration);
        files.write("alerts.yml", RULES);
        let log = files.join("log");
        let options = "--config.file=prometheus.yml --storage.tsdb.path=data \
                       --web.listen-address=127.0.0.1:0";
        let mut command = Command::new(promtool_path().with_file_name("prometheus"));
        command.args(options.split(' ')).current_dir(files.path()).kill_on_drop(true);
        command.stderr(File::create(&log).expect("a log file"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.expect("prometheus is installed beside promtool");
        let mut address = String::new();
        eventually("Prometheus listens", async || {
            let log = fs::read_to_string(&log).unwrap_or_default();
            let line = log.lines().find(|line| line.contains("msg=\"Listening on\""));
            let listens = line.and_then(|line| line.split_once(" address="));
            address = listens.map_or("", |(_, address)| address.trim_matches('"')).to_owned();
            !address.is_empty()
        })
        .await;
        Self { address, _child: child, _files: files }
    }

    /// The data of an answer of its API.
    async fn ask(&self, path: &str, query: &str) -> Value {
        let mut url: Url = format!("http://{}/api/v1/{path}", self.address).parse().expect("a URL");
        url.query_pairs_mut().append_pair("query", query);
        let mut answer = get(url.as_str()).await.json();
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"].take()
    }

    /// Whether a query has a series with a number now.
    async fn has_data(&self, query: &str) -> bool {
        let data = self.ask("query", query).await;
        let series = data["result"].as_array().expect("a vector");
        series.iter().any(|series| series["value"][1].as_str().is_some_and(|v| v != "NaN"))
    }

    async fn rules(&self) -> Vec<Value> {
        let data = self.ask("rules", "").await;
        let groups = data["groups"].as_array().expect("groups");
        groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
    }
}

#[tokio::test]
async fn a_prometheus_evaluates_every_rule_and_answers_every_panel_with_data() {
    let (stage, service) = Stage::started("deploy", &[]).await;
    stage.grant_roles();
    let (files, role) = (Files::new("deploy"), stage.role("board", "IN ROLE vote_board").await);
    let arguments = ["board", "--out", &files.path(), "--admin", "127.0.0.1:0"];
    let environment = stage.environment_with(&login(&role));
    let board = Service::spawn("deployboard", &arguments, &environment).await;
    let log = files.file("log");
    let init = ["init", "--origin", "votes.example/deploy", "--dir", &log];
    stage.run("seal", &init).await.assert(0, &[]);
    let arguments = ["seal", "--dir", &log, "--admin", "127.0.0.1:0"];
    let sealer = Service::spawn("deployseal", &arguments, &stage.environment()).await;
    let prometheus = Prometheus::scraping([&service, &board, &sealer]).await;
    let publish = async |seed| {
        let flawed = ["--count", "300", "--duplicates", "0.1", "--malformed", "0.1"];
        stage.run("publish", &[&flawed[..], &["--seed", seed]].concat()).await.assert(0, &[]);
    };
    // Twice: a rate is the difference between two scrapes.
    publish("1").await;
    let both = "sum(vote_latency_seconds_count) > 0 and sum(votes_rejected_total) > 0";
    eventually("the first votes are seen", async || prometheus.has_data(both).await).await;
    publish("2").await;

    let mut queries = panel_queries();
    assert!(!queries.is_empty());
    for (title, query) in &queries {
        let what = format!("data for {title:?}: {query}");
        eventually(&what, async || prometheus.has_data(query).await).await;
    }

    let mut rules = Vec::new();
    eventually("every rule was evaluated", async || {
        rules = prometheus.rules().await;
        rules.iter().all(|rule| rule["health"] != "unknown")
    })
    .await;
    let recorded = named("- record: ");
    assert_eq!(rules.len(), named("- alert: ").len() + recorded.len());
    for rule in &rules {
        assert_eq!(rule["health"], "ok", "{}: {}", rule["name"], rule["lastError"]);
    }

    // A misspelt name would mean an alert that never fires.
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    queries.extend(rules.iter().map(|rule| (text(&rule["name"]), text(&rule["query"]))));
    let scrape = service.get("/metrics").await.body + &board.get("/metrics").await.body;
    let scrape = scrape + &sealer.get("/metrics").await.body;
    for (title, query) in queries {
        for name in names_in(&query).filter(|name| !recorded.contains(name)) {
            let parts = ["_bucket", "_sum", "_count"].iter();
            let mut families = parts.filter_map(|part| name.strip_suffix(part)).chain([name]);
            let is_metric = families.any(|name| scrape.contains(&format!("# TYPE {name} ")));
            let is_label = scrape.contains(&format!("{name}=\""));
            assert!(is_metric || is_label, "{title}: the service does not show {name}");
        }
    }
    for service in [service, board, sealer] {
        service.stop().await;
    }
}
