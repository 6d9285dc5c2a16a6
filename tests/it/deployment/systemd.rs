//! The unit as systemd's own tools see it, and as the service starts with it.

use vote_aggregator::platform::config::{keys, shipped_default};

use super::is_known;
use crate::support::repository::{ROOT, read, run};
use crate::support::{BINARY, Environment, Files, Servers, Service, Stage, eventually, login};

const UNIT: &str = "deploy/systemd/vote-aggregator.service";

const BOARD: &str = "deploy/systemd/vote-aggregator-board.service";

const SEAL: &str = "deploy/systemd/vote-aggregator-seal.service";

/// Every value of a unit's setting, in order.
fn values(unit: &str, setting: &str) -> Vec<String> {
    let unit = read(unit);
    let values = unit.lines().filter_map(|line| line.strip_prefix(setting)?.strip_prefix('='));
    values.map(str::to_owned).collect()
}

fn value(unit: &str, setting: &str) -> String {
    let [one] = &values(unit, setting)[..] else { panic!("one {setting} in {unit}") };
    one.clone()
}

/// The environment that a unit makes, without its files. `credentials` is the folder that systemd calls %d.
fn environment(unit: &str, credentials: &str) -> Environment {
    let assignments = values(unit, "Environment").into_iter().map(|assignment| {
        let (name, value) = assignment.split_once('=').expect("NAME=value");
        (name.to_owned(), value.replace("%d", credentials))
    });
    assignments.collect()
}

#[test]
fn systemd_finds_no_fault_with_the_units_and_an_exposure_of_no_more_than_2_of_10() {
    let systemd_analyze = run("script/services", &["systemd-analyze"]).assert(0, &[]).stdout;
    for path in [UNIT, BOARD, SEAL] {
        let unit = read(path);
        let installed = "ExecStart=/usr/bin/vote-aggregator ";
        assert_eq!(unit.matches(installed).count(), 1);
        // Nothing is installed where the tests run.
        let unit = unit.replace(installed, &format!("ExecStart={BINARY} "));
        let files = Files::new("unit");
        let unit = files.write(path.rsplit('/').next().expect("a name"), &unit);
        let verified = run(systemd_analyze.trim(), &["verify", "--man=no", &unit]).assert(0, &[]);
        assert_eq!(verified.stdout + &verified.stderr, "", "{path}");
        let security = ["security", "--offline=true", "--no-pager", "--threshold=20", &unit];
        run(systemd_analyze.trim(), &security).assert(0, &["Overall exposure level"]);
    }
}

#[test]
fn the_times_and_names_of_the_units_are_those_of_the_service() {
    let seconds = |text: String| text.trim_end_matches("min").parse::<f64>().expect("a number");
    let deadline = shipped_default(&keys::SHUTDOWN_TIMEOUT_SECONDS).expect("a default");
    let stop = seconds(value(UNIT, "TimeoutStopSec"));
    assert!(stop > seconds(deadline), "killed before its deadline");
    assert_eq!(value(UNIT, "Type"), "notify");
    assert!(seconds(value(UNIT, "WatchdogSec")) >= 10.0);
    let manifest = read("Cargo.toml");
    let accounts = read("deploy/systemd/vote-aggregator.sysusers");
    for (unit, default, lasting) in [
        (UNIT, "vote-aggregator", "2 77 78"),
        (BOARD, "vote-aggregator-board", "2 77 78"),
        // A refusal to sign is for a person to look at.
        (SEAL, "vote-aggregator-seal", "1 2 77 78"),
    ] {
        assert_eq!(value(unit, "RestartPreventExitStatus"), lasting);
        assert_eq!(value(unit, "EnvironmentFile"), format!("-/etc/default/{default}"));
        assert_eq!(value(unit, "WorkingDirectory"), "/etc/vote-aggregator");
        assert!(accounts.contains(&format!("u {} ", value(unit, "User"))), "{accounts}");

        let file = read(format!("deploy/systemd/{default}.default"));
        let offered = file.lines().filter_map(|line| line.strip_prefix('#')).map(str::to_owned);
        let assignments: Vec<String> =
            values(unit, "Environment").into_iter().chain(offered).collect();
        let names = assignments.iter().filter_map(|assignment| assignment.split_once('='));
        // A sentence has blanks before any equals sign.
        let names: Vec<&str> = names.map(|(name, _)| name).filter(|n| !n.contains(' ')).collect();
        assert!(names.len() >= 4, "{names:?}");
        for name in names {
            let is_unit = value(unit, "ExecStart").contains(&format!("${name}"));
            assert!(is_unit || is_known(name), "neither service nor unit reads {name}");
        }
        let packed = format!("[\"deploy/systemd/{default}.default\", \"etc/default/{default}\"");
        assert!(manifest.contains(&packed), "{packed}");
        assert!(manifest.contains(&format!("\"/etc/default/{default}\"")), "a conffile");
    }
    assert!(manifest.contains("[\"pipeline.toml\", \"etc/vote-aggregator/\""));
    for unit in [BOARD, SEAL] {
        assert!(manifest.contains(&format!("[\"{unit}\", \"usr/lib/systemd/system/\"")));
    }
    // Counting comes first, and what is public is another account's than what counts.
    assert_eq!((&*value(BOARD, "CPUWeight"), &*value(BOARD, "Nice")), ("20", "10"));
    assert_eq!((&*value(SEAL, "CPUWeight"), &*value(SEAL, "Nice")), ("1", "19"));
    assert_eq!(value(SEAL, "Type"), "notify");
    let users = [UNIT, BOARD, SEAL].map(|unit| value(unit, "User"));
    assert!(users[0] != users[1] && users[1] != users[2] && users[0] != users[2]);
}

/// A unit's environment on a stage, with a file for each of its credentials.
fn started_by(unit: &str, stage: &Stage<'_>, passwords: &[(&str, &str)]) -> (Environment, Files) {
    // Instead of the folder that systemd calls %d.
    let files = Files::new("credentials");
    let loaded = values(unit, "LoadCredential");
    assert_eq!(loaded.len(), passwords.len(), "{unit}");
    for (credential, (name, password)) in loaded.iter().zip(passwords) {
        assert_eq!(*credential, format!("{name}:/etc/vote-aggregator/secrets/{name}"));
        files.write(name, format!("{password}\n"));
    }
    let mut all = stage.environment();
    all.retain(|name, _| !name.ends_with("_PASSWORD"));
    all.extend(environment(unit, &files.path()));
    // The package's pipeline.toml is in the unit's working directory.
    all.insert("PIPELINE_CONFIG".to_owned(), format!("{ROOT}/pipeline.toml"));
    (all, files)
}

#[tokio::test]
async fn the_units_environment_and_credentials_start_the_service() {
    let stage = Stage::migrated(Servers::shared(), "unit").await;
    let passwords = ["rabbitmq_password", "postgres_password"]
        .map(|name| (name, stage.servers.get(&name.to_uppercase())));
    let (environment, _credentials) = started_by(UNIT, &stage, &passwords);
    let service = Service::spawn("unit", &["run"], &environment).await;
    service.until_ready().await;
    stage.count(0, 100).await;
    service.stop().await;
}

/// With the account and the password of a role that can read what is published, and nothing else.
#[tokio::test]
async fn the_boards_unit_writes_where_nginx_reads() {
    let stage = Stage::with_roles(Servers::shared(), "boardunit").await;
    let role = stage.role("boardunit", "IN ROLE vote_board").await;
    let [_, (_, password)] = login(&role);
    let (mut environment, _credentials) =
        started_by(BOARD, &stage, &[("board_password", password)]);
    environment.insert("POSTGRES_USER".to_owned(), role);
    let folder = format!("/var/lib/{}", value(BOARD, "StateDirectory"));
    assert!(read("deploy/nginx/board.conf").contains(&format!("root {folder};")));
    let files = Files::new("boardunit");
    let command = value(BOARD, "ExecStart");
    assert_eq!(command.matches(&folder).count(), 1, "{command}");
    let command = command.replace(&folder, &files.path()).replace(":8002", ":0");
    let words = command.split(' ').skip(1).filter(|word| !word.starts_with('$'));
    let service = Service::spawn("boardunit", &words.collect::<Vec<_>>(), &environment).await;
    eventually("a page", async || files.join("index.html").exists()).await;
    service.stop().await;
}

/// With the account and the password of a role that can read votes, and nothing else.
#[tokio::test]
async fn the_sealers_unit_seals_into_its_directory() {
    let stage = Stage::with_roles(Servers::shared(), "sealunit").await;
    let role = stage.role("sealunit", "IN ROLE vote_sealer").await;
    let [_, (_, password)] = login(&role);
    let (mut environment, _credentials) = started_by(SEAL, &stage, &[("seal_password", password)]);
    environment.insert("POSTGRES_USER".to_owned(), role);
    let (files, folder) = (Files::new("sealunit"), value(SEAL, "StateDirectory"));
    let command = value(SEAL, "ExecStart");
    let command = command.replace(&format!("/var/lib/{folder}"), &files.path());
    let command = command.replace(":8003", ":0");
    let words = command.split(' ').skip(1).filter(|word| !word.starts_with('$'));
    let words: Vec<&str> = words.collect();
    let init = ["seal", "init", "--origin", "votes.example/unit", "--dir", words[2]];
    let begun = Service::spawn("sealunit", &init, &environment).await;
    begun.assert_ends(0, &[]).await;
    let service = Service::spawn("sealunit", &words, &environment).await;
    service.until_ready().await;
    assert!(files.join("log/public/checkpoint").exists());
    service.stop().await;
}
