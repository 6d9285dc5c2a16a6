//! The unit as systemd's own tools see it, and as the service starts with it.

use vote_aggregator::platform::config::{keys, shipped_default};

use super::is_known;
use crate::support::repository::{ROOT, read, run};
use crate::support::{BINARY, Files, Servers, Service, Stage};

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

#[test]
fn systemd_finds_no_fault_with_the_unit_and_an_exposure_of_no_more_than_2_of_10() {
    let unit = read(UNIT);
    let installed = "ExecStart=/usr/bin/vote-aggregator ";
    assert_eq!(unit.matches(installed).count(), 1);
    // Nothing is installed where the tests run.
    let unit = unit.replace(installed, &format!("ExecStart={BINARY} "));
    let files = Files::new("unit");
    let unit = files.write("vote-aggregator.service", &unit);
    let systemd_analyze = run("script/services", &["systemd-analyze"]).assert(0, &[]).stdout;
    let verified = run(systemd_analyze.trim(), &["verify", "--man=no", &unit]).assert(0, &[]);
    assert_eq!(verified.stdout + &verified.stderr, "");
    let security = ["security", "--offline=true", "--no-pager", "--threshold=20", &unit];
    run(systemd_analyze.trim(), &security).assert(0, &["Overall exposure level"]);
}

#[test]
fn its_times_and_names_are_those_of_the_service() {
    let seconds = |text: String| text.trim_end_matches("min").parse::<f64>().expect("a number");
    let deadline = shipped_default(&keys::SHUTDOWN_TIMEOUT_SECONDS).expect("a default");
    assert!(seconds(value("TimeoutStopSec")) > seconds(deadline), "killed before its deadline");
    assert_eq!(value("Type"), "notify");
    assert!(seconds(value("WatchdogSec")) >= 10.0);
    assert_eq!(value("RestartPreventExitStatus"), "2 77 78");
    assert_eq!(value("EnvironmentFile"), "-/etc/default/vote-aggregator");
    assert_eq!(value("WorkingDirectory"), "/etc/vote-aggregator");

    let file = read("deploy/systemd/vote-aggregator.default");
    let offered = file.lines().filter_map(|line| line.strip_prefix('#')).map(str::to_owned);
    let assignments: Vec<String> = values("Environment").into_iter().chain(offered).collect();
    let names = assignments.iter().filter_map(|assignment| assignment.split_once('='));
    // A sentence has blanks before any equals sign.
    let names: Vec<&str> = names.map(|(name, _)| name).filter(|n| !n.contains(' ')).collect();
    assert!(names.len() >= 5, "{names:?}");
    for name in names {
        assert!(is_known(name), "the service does not read {name}");
    }
    let account = read("deploy/systemd/vote-aggregator.sysusers");
    assert!(account.contains(&format!("u {} ", value("User"))), "{account}");
    for (asset, path) in [
        ("deploy/systemd/vote-aggregator.default", "etc/default/vote-aggregator"),
        ("pipeline.toml", "etc/vote-aggregator/"),
    ] {
        assert!(read("Cargo.toml").contains(&format!("[\"{asset}\", \"{path}\"")), "{path}");
    }
}

#[tokio::test]
async fn its_environment_and_credentials_start_the_service() {
    let stage = Stage::migrated(Servers::shared(), "unit").await;
    // Instead of the folder that systemd calls %d.
    let files = Files::new("credentials");
    let mut environment = stage.environment();
    for credential in values("LoadCredential") {
        let (name, source) = credential.split_once(':').expect("name:path");
        assert_eq!(source, format!("/etc/vote-aggregator/secrets/{name}"));
        let password = environment.remove(&name.to_uppercase()).expect("a password of the stage");
        files.write(name, format!("{password}\n"));
    }
    for assignment in values("Environment") {
        let (name, value) = assignment.split_once('=').expect("NAME=value");
        environment.insert(name.to_owned(), value.replace("%d", &files.path()));
    }
    // The package's pipeline.toml is in the unit's working directory.
    environment.insert("PIPELINE_CONFIG".to_owned(), format!("{ROOT}/pipeline.toml"));
    assert!(!environment.contains_key("POSTGRES_PASSWORD"), "by its file alone");
    let service = Service::spawn("unit", &["run"], &environment).await;
    service.until_ready().await;
    stage.count(0, 100).await;
    service.stop().await;
}
