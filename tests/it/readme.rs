//! The README is the product's face: what it and the documents of the commands tell people to run is run
//! here, as written.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;
use vote_aggregator::model::vote;
use vote_aggregator::platform::config::{keys, shipped_default};

use crate::support::{Servers, Stage, eventually, votes};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const README: &str = include_str!("../../README.md");
const CONFIGURATION: &str = include_str!("../../docs/configuration.md");
/// In the order in which their commands can be run.
const DOCUMENTS: [&str; 4] = [
    README,
    include_str!("../../docs/commands.md"),
    include_str!("../../docs/security.md"),
    include_str!("../../docs/observability.md"),
];

/// Bodies of the fenced blocks in `language`, in order.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    let mut found = Vec::new();
    for mut rest in DOCUMENTS {
        while let Some((_, behind)) = rest.split_once(fence.as_str()) {
            let (block, after) = behind.split_once("```").expect("every fence is closed");
            found.push(block);
            rest = after;
        }
    }
    found
}

fn commands() -> Vec<&'static str> {
    blocks("bash").into_iter().flat_map(str::lines).filter(|line| !line.is_empty()).collect()
}

/// A directory with the shipped files and the built binary under the names the README uses.
struct Checkout {
    dir: PathBuf,
    path: String,
}

impl Checkout {
    fn new() -> Self {
        let dir =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("readme-{}", std::process::id()));
        std::fs::remove_dir_all(&dir).ok();
        let bin = dir.join("bin");
        std::fs::create_dir_all(&bin).expect("a directory");
        std::fs::create_dir_all(dir.join("target/release")).expect("a directory");
        let binary = env!("CARGO_BIN_EXE_vote-aggregator");
        symlink(binary, bin.join("vote-aggregator")).expect("a link");
        symlink(binary, dir.join("target/release/vote-aggregator")).expect("a link");
        for script in ["init_db.sql", "roles.sql"] {
            symlink(format!("{ROOT}/{script}"), dir.join(script)).expect("a link");
        }
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        Self { dir, path }
    }

    /// The README names the default port; ours is another, so that a service that runs on this
    /// machine is left alone. Everything else of the command stays as written.
    fn lead_curl_to(&self, address: &str) {
        let script = format!(
            "#!/bin/sh\nPATH=${{PATH#*:}}\nexec curl --silent --show-error --fail \
             --connect-to localhost:8001:{address} \"$@\"\n"
        );
        let file = self.dir.join("bin/curl");
        std::fs::write(&file, script).expect("written");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))
            .expect("executable");
    }

    async fn run(&self, command: &str, environment: &BTreeMap<String, String>) -> String {
        let child = Command::new("bash")
            .args(["-euo", "pipefail", "-c", command])
            .current_dir(&self.dir)
            .env("PATH", &self.path)
            .envs(environment)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = timeout(Duration::from_secs(120), child).await.expect("ends in time");
        let output = output.expect("bash runs");
        assert!(
            output.status.success(),
            "{command}\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[tokio::test]
async fn its_commands_work_as_written() {
    let stage = Stage::new(Servers::shared(), "readme").await;
    let checkout = Checkout::new();
    let mut environment = stage.environment();
    for (ours, theirs) in [("HOST", "PGHOST"), ("PORT", "PGPORT"), ("PASSWORD", "PGPASSWORD")] {
        let value = stage.servers.get(&format!("POSTGRES_{ours}")).to_owned();
        environment.insert(theirs.to_owned(), value);
    }
    // `-d election_votes` stands in the command: a service file can't change it, a database can.
    let mut service = None;
    let mut ran = 0;
    for command in commands() {
        match command {
            // It has a test of its own.
            "script/demo" => continue,
            // Built already, or this test would not run; its words are held to the lock file.
            "cargo build --release --locked" => {
                assert!(Path::new(ROOT).join("Cargo.lock").exists());
                continue;
            }
            _ => {}
        }
        if command.contains(" -c \"SELECT ") {
            let select = command.replace("-d election_votes", &format!("-d {}", stage.database));
            eventually("the published vote is in the results", async || {
                checkout
                    .run(&select, &environment)
                    .await
                    .contains(" law-001 |         1 |         0")
            })
            .await;
            ran += 1;
            continue;
        }
        if command.starts_with("psql ") {
            let shared = BTreeMap::from([(
                "PGOPTIONS".to_owned(),
                "-c search_path=readme_schema".to_owned(),
            )]);
            let admin = environment.clone().into_iter().chain(shared).collect();
            checkout
                .run(
                    "psql -qU postgres -d election_votes -c 'CREATE SCHEMA IF NOT EXISTS readme_schema'",
                    &environment,
                )
                .await;
            checkout.run(command, &admin).await;
            ran += 1;
            continue;
        }
        if command.contains("vote-aggregator publish") && service.is_none() {
            let started = stage.start(&[]).await;
            let address = started.address().await;
            checkout.lead_curl_to(&address);
            // For the health check, which asks the port that is configured.
            let port = address.rsplit(':').next().expect("a port").to_owned();
            environment.insert("PROMETHEUS_PORT".to_owned(), port);
            service = Some(started);
        }
        let output = checkout.run(command, &environment).await;
        assert!(!output.is_empty(), "{command} says something");
        ran += 1;
    }
    assert_eq!(ran, 13, "every command of the README is accounted for");
    let service = service.expect("started");
    eventually("the line from standard input is counted", async || {
        stage.number("SELECT count(*) FROM vote_audit WHERE vote_hash = 'readme-1'").await == 1
    })
    .await;
    service.stop().await;

    for (number, query) in blocks("sql").into_iter().enumerate() {
        let role = query.replace("election_counter", &format!("counter_{}", stage.database));
        let file = checkout.dir.join(format!("query-{number}.sql"));
        std::fs::write(&file, role).expect("written");
        let psql = format!(
            "psql -X -v ON_ERROR_STOP=1 -U postgres -d {} -f {}",
            stage.database,
            file.display()
        );
        let answer = checkout.run(&psql, &environment).await;
        if number == 0 {
            assert!(answer.contains("oui_percentage"), "{answer}");
            assert!(answer.trim_end().ends_with("(0 rows)"), "totals and audit agree: {answer}");
        }
    }

    // The comparison sees a difference on either side.
    let compare = checkout.dir.join("query-0.sql");
    for differing in [
        "INSERT INTO vote_results VALUES ('law-nowhere', 1, 0)",
        "DELETE FROM vote_results; INSERT INTO vote_results VALUES ('law-empty', 0, 0)",
    ] {
        sqlx::raw_sql(differing).execute(&stage.sql).await.expect("altered");
        let psql = format!("psql -X -U postgres -d {} -f {}", stage.database, compare.display());
        let answer = checkout.run(&psql, &environment).await;
        assert!(!answer.trim_end().ends_with("(0 rows)"), "{differing}: {answer}");
    }
}

#[test]
fn its_message_is_a_vote_and_its_readiness_is_json() {
    let json = blocks("json");
    let vote = vote::decode(json[0].as_bytes(), 16_384).expect("the example message is a vote");
    assert_eq!(vote.law_id, "law-001");
    let readiness: serde_json::Value = serde_json::from_str(json[1]).expect("JSON");
    assert_eq!(readiness["checks"]["rabbitmq"]["reason"], "consuming");
}

#[tokio::test]
async fn its_readiness_and_metrics_are_those_of_the_service() {
    let stage = Stage::migrated(Servers::shared(), "readme_shape").await;
    let service = stage.start(&[]).await;
    stage.publish_votes(&votes(0, 10)).await;
    stage.until_counted(10).await;

    let documented: serde_json::Value = serde_json::from_str(blocks("json")[1]).expect("JSON");
    let shape = |value: &serde_json::Value| -> Vec<String> {
        let checks = value["checks"].as_object().expect("checks");
        checks
            .iter()
            .flat_map(|(side, check)| {
                let fields = check.as_object().expect("a check").keys();
                fields.map(|field| format!("{side}.{field}")).collect::<Vec<_>>()
            })
            .collect()
    };
    assert_eq!(shape(&service.get("/readyz").await.json()), shape(&documented));

    let scrape = service.get("/metrics").await.body;
    let table = README.split("| metric | type |").nth(1).expect("a table of metrics");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let mut documented = 0;
    for row in rows {
        let mut cells = row.split('|').map(str::trim).skip(1);
        let (name, kind) = (cells.next().unwrap_or_default(), cells.next().unwrap_or_default());
        let line = format!("# TYPE {} {kind}", name.trim_matches('`'));
        assert!(scrape.lines().any(|scraped| scraped == line), "{line}");
        documented += 1;
    }
    assert_eq!(documented, 5, "the contract's; all others are in docs/metrics.md");
    service.stop().await;
}

#[test]
fn its_configuration_table_is_that_of_the_code() {
    let (_, rest) = CONFIGURATION.split_once("<!-- configuration: begin -->\n").expect("a begin");
    let (table, _) = rest.split_once("<!-- configuration: end -->").expect("an end");
    let mut rows = table.lines().filter(|line| line.starts_with('|')).skip(2);
    for key in keys::SELECTORS.iter().chain(keys::ALL) {
        let default = shipped_default(key).map(|value| format!("`{value}`")).unwrap_or_default();
        let row = format!("| `{}` | `{}` | {default} | ", key.variable, key.path);
        let documented = rows.next().and_then(|found| found.strip_prefix(&row));
        assert!(documented.is_some_and(|help| help.ends_with(". |")), "no such row: {row}");
    }
    assert_eq!(rows.next(), None);
}

#[test]
fn what_it_names_exists() {
    for name in [
        "docs/commands.md",
        "docs/configuration.md",
        "docs/deployment.md",
        "docs/observability.md",
        "docs/performance.md",
        "docs/reliability.md",
        "docs/runbook.md",
        "docs/scaling.md",
        "docs/security.md",
        "script/deb",
        "script/demo",
        "script/test",
        ".ci/run",
        "pipeline.toml",
        "roles.sql",
        "LICENSE",
    ] {
        assert!(README.contains(name), "{name} is named");
        assert!(Path::new(ROOT).join(name).exists(), "{name} is there");
    }
}
