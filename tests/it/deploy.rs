//! The shipped alert rules and the dashboard, as promtool, a Prometheus and a running service see
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::process::{Child, Command};

use crate::metrics::{promtool_path, scraped};
use crate::support::{PATIENCE, Servers, Service, Stage, eventually};

const RULES: &str = include_str!("../../deploy/prometheus/alerts.yml");
const CASES: &str = include_str!("../../deploy/prometheus/alerts_test.yml");
const CONFIGURATION: &str = include_str!("../../deploy/prometheus/prometheus.yml");
const DASHBOARD: &str = include_str!("../../deploy/grafana/vote-aggregator.json");

async fn promtool(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(promtool_path())
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus"))
        .output()
        .await
        .expect("promtool runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test]
async fn promtool_finds_nothing_in_the_rules_and_their_tests_pass() {
    for arguments in [
        &["check", "config", "--lint=all", "--lint-fatal", "prometheus.yml"][..],
        &["check", "rules", "--lint=all", "--lint-fatal", "alerts.yml"],
        &["test", "rules", "alerts_test.yml"],
    ] {
        let (ok, said) = promtool(arguments).await;
        assert!(ok && said.contains("SUCCESS"), "{arguments:?}: {said}");
        assert!(!said.to_lowercase().contains("warn"), "{arguments:?}: {said}");
    }
}

#[test]
fn every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() {
    let rules: BTreeSet<&str> =
        RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(!rules.is_empty());
    let mut cases: BTreeMap<&str, BTreeSet<bool>> = BTreeMap::new();
    for case in CASES.split("- expr: ALERTS{alertname=\"").skip(1) {
        let (name, rest) = case.split_once('"').expect("a name in quotes");
        let (_, expected) = rest.split_once("exp_samples:").expect("an expectation");
        let fires = !expected.starts_with(" []");
        assert_eq!(fires, expected.trim_start().starts_with("- labels:"), "{name}");
        cases.entry(name).or_default().insert(fires);
    }
    assert_eq!(cases.keys().copied().collect::<BTreeSet<_>>(), rules);
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
            for of in [panel, target] {
                assert_eq!(of["datasource"]["uid"], "${datasource}", "{title}: of no one host");
            }
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title}: a unit");
            let query = target["expr"].as_str().expect("a query");
            let query = query
                .replace("$job", "vote-aggregator")
                .replace("$instance", ".*")
                .replace("$law", ".*")
                .replace("$__rate_interval", "1m");
            assert!(!query.contains('$'), "{title}: a variable nobody knows: {query}");
            queries.push((title.to_owned(), query));
        }
    }
    queries
}

/// The metrics that a PromQL expression names: what is a name and no function, keyword, label,
/// string or duration.
fn metrics_in(expression: &str) -> BTreeSet<String> {
    const KEYWORDS: [&str; 7] = ["and", "or", "unless", "offset", "bool", "inf", "nan"];
    const BEFORE_LABELS: [&str; 6] =
        ["by", "without", "on", "ignoring", "group_left", "group_right"];
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut metrics = BTreeSet::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        let end = match first {
            // None of our strings holds a brace or a quote.
            '{' | '[' | '"' => {
                let close = match first {
                    '{' => '}',
                    '[' => ']',
                    quote => quote,
                };
                rest[1..].find(close).expect("closed") + 2
            }
            c if is_name(c) => {
                let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
                let (word, behind) = (&rest[..end], rest[end..].trim_start());
                if BEFORE_LABELS.contains(&word) {
                    assert!(behind.starts_with('('), "labels behind {word}: {expression}");
                    rest.find(')').expect("closed") + 1
                } else {
                    let name = !c.is_ascii_digit() && !behind.starts_with('(');
                    // An aggregation's labels may stand before its argument.
                    let aggregates = BEFORE_LABELS.iter().any(|w| {
                        behind.strip_prefix(w).is_some_and(|b| b.trim_start().starts_with('('))
                    }) && ["sum", "min", "max", "count", "avg"].contains(&word);
                    if name && !aggregates && !KEYWORDS.contains(&word.to_lowercase().as_str()) {
                        metrics.insert(word.to_owned());
                    }
                    end
                }
            }
            c => c.len_utf8(),
        };
        rest = &rest[end..];
    }
    metrics
}

#[test]
fn metrics_are_told_from_everything_else_in_an_expression() {
    for (expression, metrics) in [
        ("up{job=\"x\", state=\"by (y)\"} == 0", vec!["up"]),
        ("sum by (job, le) (rate(a_bucket{le!=\"1\"}[5m] offset 1m)) > 30", vec!["a_bucket"]),
        ("max(a) by (b) / on (c) group_left (d) count(e) or f unless 1e3", vec!["a", "e", "f"]),
        ("histogram_quantile(0.99, a:b) * Inf", vec!["a:b"]),
        ("sum(x) + sum", vec!["sum", "x"]),
    ] {
        let found = metrics_in(expression);
        assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), metrics, "{expression}");
    }
}

/// A Prometheus of the shipped configuration that scrapes one service, ended with this value.
struct Prometheus {
    _child: Child,
    address: String,
    dir: PathBuf,
}

impl Prometheus {
    async fn scraping(service: &Service) -> Self {
        let unique = format!("prometheus-{}", std::process::id());
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique);
        fs::create_dir_all(&dir).expect("a directory");
        let target = service.address().await;
        let mut configuration = CONFIGURATION.to_owned();
        for (shipped, here) in [
            ("targets: [\"localhost:8001\"]", format!("targets: [\"{target}\"]")),
            ("scrape_interval: 15s", "scrape_interval: 1s".to_owned()),
            ("evaluation_interval: 15s", "evaluation_interval: 1s".to_owned()),
        ] {
            assert_eq!(configuration.matches(shipped).count(), 1, "{shipped}");
            configuration = configuration.replace(shipped, &here);
        }
        fs::write(dir.join("prometheus.yml"), configuration).expect("written");
        fs::write(dir.join("alerts.yml"), RULES).expect("written");
        let log = dir.join("log");
        let child = Command::new(promtool_path().with_file_name("prometheus"))
            .arg("--config.file=prometheus.yml")
            .arg("--storage.tsdb.path=data")
            .arg("--web.listen-address=127.0.0.1:0")
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).expect("a log file"))
            .kill_on_drop(true)
            .spawn()
            .expect("prometheus is installed beside promtool");
        let mut prometheus = Self { _child: child, address: String::new(), dir };
        eventually("Prometheus listens", async || {
            let log = fs::read_to_string(&log).unwrap_or_default();
            let line = log.lines().find(|line| line.contains("msg=\"Listening on\""));
            let address = line.and_then(|line| line.split_once(" address=")).map(|(_, a)| a);
            prometheus.address = address.unwrap_or_default().trim_matches('"').to_owned();
            !prometheus.address.is_empty()
        })
        .await;
        prometheus
    }

    /// The data of an answer of its API, or what is wrong with the question.
    async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let mut url = format!("http://{}/api/v1/{path}?", self.address).parse::<url::Url>();
        let url = url.as_mut().expect("a URL");
        url.query_pairs_mut().extend_pairs(parameters);
        let url = url.to_string();
        let asked = tokio::task::spawn_blocking(move || {
            let agent = ureq::Agent::config_builder()
                .timeout_global(Some(PATIENCE))
                .proxy(None)
                .http_status_as_error(false)
                .build()
                .new_agent();
            let mut answer = agent.get(&url).call().map_err(|error| error.to_string())?;
            answer.body_mut().read_json::<Value>().map_err(|error| error.to_string())
        });
        let mut answer = asked.await.expect("no panic")?;
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"].take()),
            _ => Err(answer["error"].to_string()),
        }
    }

    /// Whether a query finds a series with a number now.
    async fn has_data(&self, query: &str) -> bool {
        let data = self.ask("query", &[("query", query)]).await;
        let data = data.unwrap_or_else(|error| panic!("{query}: {error}"));
        let series = data["result"].as_array().expect("a vector");
        series.iter().any(|series| series["value"][1].as_str().is_some_and(|v| v != "NaN"))
    }

    async fn rules(&self) -> Vec<Value> {
        let data = self.ask("rules", &[]).await.expect("its rules");
        let groups = data["groups"].as_array().expect("groups");
        groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Its log is of use to whoever looks at a failure; the data is not.
        let unused =
            if std::thread::panicking() { self.dir.join("data") } else { self.dir.clone() };
        fs::remove_dir_all(unused).ok();
    }
}

async fn publish(stage: &Stage<'_>, seed: &str) {
    let sample = ["publish", "--count", "300", "--seed", seed];
    let flawed = ["--duplicates", "0.1", "--malformed", "0.1"];
    let arguments = [&sample[..], &flawed].concat();
    let mut publisher = Service::spawn(&stage.queue, &arguments, &stage.environment()).await;
    assert_eq!(publisher.exit_code().await, Some(0));
}

#[tokio::test]
async fn a_prometheus_evaluates_every_rule_and_answers_every_panel_with_data() {
    let stage = Stage::migrated(Servers::shared(), "deploy").await;
    let service = stage.start(&[]).await;
    let prometheus = Prometheus::scraping(&service).await;
    // Twice: a rate is the difference between two scrapes.
    publish(&stage, "1").await;
    let both = "sum(vote_latency_seconds_count) > 0 and sum(votes_rejected_total) > 0";
    eventually("the first votes are seen", async || prometheus.has_data(both).await).await;
    publish(&stage, "2").await;

    let queries = panel_queries();
    assert!(!queries.is_empty());
    for (title, query) in &queries {
        eventually(&format!("data for {title:?}: {query}"), async || {
            prometheus.has_data(query).await
        })
        .await;
    }

    let evaluated = async || {
        let rules = prometheus.rules().await;
        rules.iter().all(|rule| rule["health"] != "unknown")
    };
    eventually("every rule was evaluated", evaluated).await;
    let rules = prometheus.rules().await;
    let recorded: Vec<&str> =
        RULES.lines().filter_map(|line| line.trim().strip_prefix("- record: ")).collect();
    assert_eq!(rules.len(), RULES.matches("- alert: ").count() + recorded.len());
    for rule in &rules {
        assert_eq!(rule["health"], "ok", "{}: {}", rule["name"], rule["lastError"]);
    }

    let families = scraped(&service.get("/metrics").await.body);
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let rules = rules.iter().map(|rule| (text(&rule["name"]), text(&rule["query"])));
    for (who, query) in queries.into_iter().chain(rules) {
        let metrics = metrics_in(&query);
        assert!(!metrics.is_empty(), "{who}: {query}");
        // Prometheus' own.
        let others = metrics.iter().filter(|it| *it != "up" && !recorded.contains(&it.as_str()));
        for metric in others {
            let parts = ["_bucket", "_sum", "_count"].iter();
            let family = parts.filter_map(|part| metric.strip_suffix(part));
            let known = family.chain([metric.as_str()]).any(|name| families.contains_key(name));
            assert!(known, "{who} asks for {metric}, which the service does not show");
        }
    }
    drop(prometheus);
    service.stop().await;
}
