//! The unit as systemd's own tools see it, and as the service meets it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use vote_aggregator::platform::config::{keys, shipped_default};

use super::{ROOT, Scratch, is_known, read};
use crate::support::{Servers, Service, Stage, votes};

const UNIT: &str = "deploy/systemd/vote-aggregator.service";

/// Every value of a setting, in order.
fn values(setting: &str) -> Vec<String> {
    let unit = read(UNIT);
    let values = unit.lines().filter_map(|line| line.strip_prefix(setting)?.strip_prefix('='));
    values.map(str::to_owned).collect()
}

fn value(setting: &str) -> String {
    let [one] = &values(setting)[..] else { panic!("one {setting}") };
    one.clone()
}

/// The path of systemd-analyze, installed if need be; a machine that has no way to get it fails.
fn systemd_analyze() -> PathBuf {
    let script = Path::new(ROOT).join("script/services");
    let found = Command::new(script).arg("systemd-analyze").output().expect("script/services runs");
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    PathBuf::from(String::from_utf8_lossy(&found.stdout).trim())
}

fn analyze(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(systemd_analyze())
        .args(arguments)
        .env("SYSTEMD_COLORS", "0")
        .output()
        .expect("systemd-analyze runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// The unit with a program that is there: nothing is installed where the tests run.
fn unit_with(scratch: &Scratch, from: &str, to: &str) -> String {
    let unit = read(UNIT);
    let installed = "ExecStart=/usr/bin/vote-aggregator ";
    assert_eq!(unit.matches(installed).count(), 1);
    let unit = unit
        .replace(installed, &format!("ExecStart={} ", env!("CARGO_BIN_EXE_vote-aggregator")))
        .replace(from, to);
    let path = scratch.0.join("vote-aggregator.service");
    fs::write(&path, unit).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn systemd_finds_no_fault_with_the_unit() {
    let scratch = Scratch::new("unit");
    let unit = unit_with(&scratch, "", "");
    let (ok, said) = analyze(&["verify", "--man=no", &unit]);
    assert!(ok && said.is_empty(), "{said}");
    // A setting that systemd does not know is only told.
    let unit = unit_with(&scratch, "WatchdogSec=", "WatchdogSecs=");
    let (_, said) = analyze(&["verify", "--man=no", &unit]);
    assert!(said.contains("WatchdogSecs"), "{said}");
}

#[test]
fn the_unit_is_exposed_to_no_more_than_2_of_10() {
    let scratch = Scratch::new("exposure");
    let threshold = ["security", "--offline=true", "--no-pager", "--threshold=20"];
    let unit = unit_with(&scratch, "", "");
    let (ok, said) = analyze(&[&threshold[..], &[unit.as_str()]].concat());
    assert!(ok && said.contains("Overall exposure level"), "{said}");
    let unit = unit_with(&scratch, "SystemCallFilter=", "#");
    let (ok, said) = analyze(&[&threshold[..], &[unit.as_str()]].concat());
    assert!(!ok && said.contains("Overall exposure level"), "{said}");
}

#[test]
fn its_times_and_names_are_those_of_the_service() {
    let seconds = |text: String| text.trim_end_matches("min").parse::<f64>().expect("a number");
    let deadline = shipped_default(&keys::SHUTDOWN_TIMEOUT_SECONDS).expect("a default");
    assert!(seconds(value("TimeoutStopSec")) > seconds(deadline), "killed before its deadline");
    assert_eq!(value("Type"), "notify");
    assert!(seconds(value("WatchdogSec")) >= 10.0);
    assert_eq!(value("RestartPreventExitStatus"), "2 77 78");

    let assignments = values("Environment");
    let names = assignments.iter().map(|a| a.split('=').next().expect("a name").to_owned());
    let file = read("deploy/systemd/vote-aggregator.default");
    let offered = file.lines().filter_map(|line| line.strip_prefix('#')?.split_once('='));
    // Sentences have blanks before any equals sign.
    let offered: Vec<_> =
        offered.filter(|(name, _)| !name.contains(' ')).map(|(name, _)| name.to_owned()).collect();
    assert!(offered.len() >= 5, "{offered:?}");
    for name in names.chain(offered) {
        assert!(is_known(&name), "{name} is nothing that the service looks at");
    }
    let account = read("deploy/systemd/vote-aggregator.sysusers");
    assert!(account.contains(&format!("u {} ", value("User"))), "{account}");
    for (asset, path) in [
        ("deploy/systemd/vote-aggregator.default", "etc/default/vote-aggregator"),
        ("pipeline.toml", "etc/vote-aggregator/"),
    ] {
        assert!(read("Cargo.toml").contains(&format!("[\"{asset}\", \"{path}\"")), "{path}");
    }
    assert_eq!(value("EnvironmentFile"), "-/etc/default/vote-aggregator");
    assert_eq!(value("WorkingDirectory"), "/etc/vote-aggregator");
}

#[tokio::test]
async fn its_environment_and_credentials_start_the_service() {
    let stage = Stage::migrated(Servers::shared(), "unit").await;
    let scratch = Scratch::new("credentials");
    // What systemd would put into the folder that it calls %d.
    let mut environment: BTreeMap<String, String> = stage.environment();
    for credential in values("LoadCredential") {
        let (name, source) = credential.split_once(':').expect("name:path");
        assert_eq!(source, format!("/etc/vote-aggregator/secrets/{name}"));
        let variable = name.to_uppercase();
        let password = environment.remove(&variable).expect("a password of the stage");
        fs::write(scratch.0.join(name), format!("{password}\n")).expect("written");
    }
    for assignment in values("Environment") {
        let (name, value) = assignment.split_once('=').expect("NAME=value");
        let value = value.replace("%d", scratch.0.to_str().expect("UTF-8"));
        environment.insert(name.to_owned(), value);
    }
    // The package's pipeline.toml, which the working directory of the unit leads to.
    let settings = Path::new(ROOT).join("pipeline.toml");
    environment.insert("PIPELINE_CONFIG".to_owned(), settings.display().to_string());
    assert!(!environment.contains_key("POSTGRES_PASSWORD"), "by its file alone");
    let service = Service::spawn("unit", &["run"], &environment).await;
    service.until_ready().await;
    stage.publish_votes(&votes(0, 100)).await;
    stage.until_counted(100).await;
    service.stop().await;
}
