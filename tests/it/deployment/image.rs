//! The image without an engine: its instructions are read, and its root file system is laid out,
//! entered and worked in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokio::process::Command;

use super::{ROOT, Scratch, assert_pinned, files_below, read, text};
use crate::support::{Servers, Service, Stage, votes};

/// Every instruction, its name with what follows it; continued lines are joined.
fn instructions() -> Vec<(String, String)> {
    let text = read("Dockerfile").replace("\\\n", " ");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, rest) = line.split_once(' ').expect("an instruction and its arguments");
            (name.to_owned(), rest.split_whitespace().collect::<Vec<_>>().join(" "))
        })
        .collect()
}

fn of(name: &str) -> Vec<String> {
    instructions().into_iter().filter(|(n, _)| n == name).map(|(_, rest)| rest).collect()
}

/// The one instruction of that name in the last stage, which is the image.
fn only(name: &str) -> String {
    let all = instructions();
    let last = all.rsplit(|(name, _)| name == "FROM").next().expect("a stage");
    let mut found = last.iter().filter(|(n, _)| n == name);
    let (Some((_, one)), None) = (found.next(), found.next()) else { panic!("one {name}") };
    one.clone()
}

/// The words of an instruction in exec form.
fn words(json: &str) -> Vec<String> {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{json} needs a shell: {error}"))
}

fn health_check() -> Vec<String> {
    let check = only("HEALTHCHECK");
    words(check.split_once("CMD ").expect("a command").1)
}

#[test]
fn its_instructions_need_no_shell_and_no_root() {
    let stages = of("FROM");
    let [build, last] = &stages[..] else { panic!("two stages: {stages:?}") };
    assert_eq!(last, "scratch");
    let image = build.split(' ').next().expect("an image");
    assert_pinned(image);
    let version = |text: &str| -> Vec<u32> {
        text.split('.').map(|part| part.parse().expect("a number")).collect()
    };
    let rust = image.trim_start_matches("rust:").split('-').next().expect("a version");
    assert!(version(rust) >= version(env!("CARGO_PKG_RUST_VERSION")), "{rust} is too old");
    assert!(image.ends_with("-bookworm"), "the Debian that the tests run on");

    let user = only("USER");
    assert_eq!(user, "65532:65532");
    let entry = words(&only("ENTRYPOINT"));
    assert_eq!(entry, ["/usr/bin/vote-aggregator"]);
    assert_eq!(words(&only("CMD")), ["run"]);
    assert_eq!(health_check()[..2], [entry[0].as_str(), "health-check"]);
    assert_eq!(
        only("EXPOSE"),
        vote_aggregator::platform::config::shipped_default(
            &vote_aggregator::platform::config::keys::PROMETHEUS_PORT
        )
        .expect("a default")
    );
}

/// What the build gets to see of the repository: .dockerignore takes everything away and lets these
/// back in.
fn context() -> BTreeSet<PathBuf> {
    let ignore = read(".dockerignore");
    let mut rules = ignore.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    assert_eq!(rules.next(), Some("*"), "nothing gets in by accident");
    rules.map(|rule| PathBuf::from(rule.strip_prefix('!').expect("an exception"))).collect()
}

#[test]
fn the_build_sees_all_that_it_needs_and_no_secret() {
    let context = context();
    for name in &context {
        assert!(Path::new(ROOT).join(name).exists(), "{}", name.display());
    }
    for secret in [".env", "deploy/secrets", ".git", "target"] {
        let hidden = context.iter().all(|name| !Path::new(secret).starts_with(name));
        assert!(hidden, "{secret} would be sent to the engine");
    }
    let seen = |path: &Path| context.iter().any(|name| path.starts_with(name));

    // Whatever the program is compiled from, beside its modules.
    for source in files_below("src") {
        let code = source_without_tests(&source);
        for included in code.split("include_str!(\"").skip(1) {
            let name = included.split('"').next().expect("a name");
            let folder = Path::new(ROOT).join(&source);
            let path = folder.parent().expect("a folder").join(name).canonicalize();
            let path = path.unwrap_or_else(|error| panic!("{source}: {name}: {error}"));
            let path = path.strip_prefix(Path::new(ROOT).canonicalize().expect("there"));
            let path = path.expect("in the repository");
            assert!(seen(path), "{source} includes {}", path.display());
        }
    }
    // Cargo looks for every target that the manifest names, whichever is built.
    let scratch = Scratch::new("context");
    for name in &context {
        let (from, to) = (Path::new(ROOT).join(name), scratch.0.join(name));
        fs::create_dir_all(to.parent().expect("a folder")).expect("made");
        std::os::unix::fs::symlink(from, to).expect("linked");
    }
    let all = targets(Path::new(ROOT));
    assert!(all.iter().any(|target| target == "vote-aggregator bin"), "{all:?}");
    assert_eq!(targets(&scratch.0), all);
}

/// Names and kinds of what Cargo can build in a folder.
fn targets(folder: &Path) -> BTreeSet<String> {
    let metadata = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--locked", "--format-version=1"])
        .current_dir(folder)
        .output()
        .expect("cargo runs");
    let said = String::from_utf8_lossy(&metadata.stderr);
    assert!(metadata.status.success(), "{said}");
    let metadata: Value = serde_json::from_slice(&metadata.stdout).expect("JSON");
    let targets = metadata["packages"][0]["targets"].as_array().expect("targets").iter();
    targets
        .map(|target| format!("{} {}", text(&target["name"]), text(&target["kind"][0])))
        .collect()
}

/// What a release compiles of a source file.
fn source_without_tests(path: &str) -> String {
    if path.contains("/tests/") || path.ends_with("/tests.rs") {
        return String::new();
    }
    read(path).split("#[cfg(test)]").next().unwrap_or_default().to_owned()
}

/// A program of the administrator's, whose folders need not be on everybody's path.
fn administrators(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let mut found = folders.map(|folder| folder.join(program)).filter(|path| path.exists());
    found
        .next()
        .unwrap_or_else(|| panic!("{program} is needed: apt-get install coreutils util-linux"))
}

/// What runs a program in another root: as the image's account where we are root, else as the root of
/// a user namespace, which has no rights outside it.
fn entering(root: &Path, command: &[String]) -> Command {
    let mut enter = if rustix::process::geteuid().is_root() {
        let mut chroot = Command::new(administrators("chroot"));
        chroot.arg("--userspec=65532:65532");
        chroot
    } else {
        let mut unshare = Command::new(administrators("unshare"));
        unshare.args(["--user", "--map-root-user"]).arg(administrators("chroot"));
        unshare
    };
    enter.arg(root).args(command);
    enter
}

#[tokio::test]
async fn votes_are_counted_in_its_root_file_system_and_its_health_check_answers() {
    let stage = Stage::migrated(Servers::shared(), "image").await;
    let scratch = Scratch::new("rootfs");
    let root = scratch.0.join("root");
    let program = env!("CARGO_BIN_EXE_vote-aggregator");
    let laid = Command::new(Path::new(ROOT).join("deploy/docker/rootfs"))
        .args([Path::new(program), &root])
        .output()
        .await
        .expect("the script runs");
    assert!(laid.status.success(), "{}", String::from_utf8_lossy(&laid.stderr));
    let instruction = of("RUN").concat();
    assert!(instruction.contains("deploy/docker/rootfs target/release/vote-aggregator /rootfs"));
    assert!(root.join("etc/ssl/certs/ca-certificates.crt").exists(), "authorities for TLS");
    assert!(root.join(only("WORKDIR").trim_start_matches('/')).is_dir());
    for shell in ["bin/sh", "usr/bin/sh", "bin/bash"] {
        assert!(!root.join(shell).exists(), "{shell}");
    }

    let command = [words(&only("ENTRYPOINT")), words(&only("CMD"))].concat();
    let mut environment: BTreeMap<String, String> = stage.environment();
    // An engine mounts this file; looking up a name is part of what the image has to be able to.
    fs::write(root.join("etc/hosts"), "127.0.0.1 postgres.test\n").expect("written");
    environment.insert("POSTGRES_HOST".to_owned(), "postgres.test".to_owned());
    let service = Service::spawn_as("rootfs", entering(&root, &command), &environment);
    service.until_ready().await;
    stage.publish_votes(&votes(0, 500)).await;
    stage.until_counted(500).await;

    let port = service.address().await.rsplit(':').next().expect("a port").to_owned();
    environment.insert("PROMETHEUS_PORT".to_owned(), port);
    for (port, code) in [(None, 0), (Some("1"), 1)] {
        let mut asked = environment.clone();
        asked.extend(port.map(|port| ("PROMETHEUS_PORT".to_owned(), port.to_owned())));
        let mut check =
            Service::spawn_as("rootfs-health", entering(&root, &health_check()), &asked);
        assert_eq!(check.exit_code().await, Some(code), "{}", check.log());
    }
    service.stop().await;
    stage.assert_counted_exactly(&votes(0, 500)).await;
}
