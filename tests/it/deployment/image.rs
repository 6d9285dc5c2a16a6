//! The image without a container engine: its instructions are read, and votes are counted in its root
//! file system.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tokio::process::Command;
use vote_aggregator::platform::config::{keys, shipped_default};

use super::{assert_pinned, list, text};
use crate::support::repository::{ROOT, files_below, read, run};
use crate::support::{BINARY, Files, Servers, Service, Stage, votes};

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

/// The one instruction of that name in the last stage, which is the image.
fn only(name: &str) -> String {
    let all = instructions();
    let last = all.rsplit(|(name, _)| name == "FROM").next().expect("a stage");
    let found: Vec<_> = last.iter().filter(|(n, _)| n == name).collect();
    let [(_, one)] = found[..] else { panic!("one {name}") };
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
    let all = instructions().into_iter().filter(|(name, _)| name == "FROM");
    let stages: Vec<String> = all.map(|(_, rest)| rest).collect();
    let [build, last] = &stages[..] else { panic!("two stages: {stages:?}") };
    assert_eq!(last, "scratch");
    let image = build.split(' ').next().expect("an image");
    assert_pinned(image);
    let version = |text: &str| -> Vec<u32> {
        text.split('.').map(|part| part.parse().expect("a number")).collect()
    };
    let (rust, debian) = image.trim_start_matches("rust:").split_once('-').expect("a version");
    assert!(version(rust) >= version(env!("CARGO_PKG_RUST_VERSION")), "{rust} is too old");
    assert_eq!(debian, "bookworm", "the Debian that the tests run on");

    assert_eq!(only("USER"), "65532:65532");
    assert_eq!(words(&only("ENTRYPOINT")), ["/usr/bin/vote-aggregator"]);
    assert_eq!(words(&only("CMD")), ["run"]);
    assert_eq!(health_check()[..2], ["/usr/bin/vote-aggregator", "health-check"]);
    assert_eq!(Some(only("EXPOSE")), shipped_default(&keys::PROMETHEUS_PORT));
}

/// What the build sees of the repository: .dockerignore excludes everything but these.
fn context() -> BTreeSet<PathBuf> {
    let ignore = read(".dockerignore");
    let mut rules = ignore.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    assert_eq!(rules.next(), Some("*"), "nothing gets in by accident");
    rules.map(|rule| PathBuf::from(rule.strip_prefix('!').expect("an exception"))).collect()
}

#[test]
fn the_build_sees_all_that_it_needs_and_no_secret() {
    let context = context();
    let seen = |path: &Path| context.iter().any(|name| path.starts_with(name));
    for secret in [".env", "deploy/secrets", ".git", "target"] {
        assert!(!seen(Path::new(secret)), "{secret} would be sent to the engine");
    }
    // What the modules include, without their tests.
    let root = fs::canonicalize(ROOT).expect("it exists");
    for source in files_below("src") {
        if source.contains("/tests/") || source.ends_with("/tests.rs") {
            continue;
        }
        let text = read(&source);
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for included in code.split("include_str!(\"").skip(1) {
            let name = included.split('"').next().expect("a name");
            let folder = root.join(&source).parent().expect("a folder").to_owned();
            let path = folder.join(name).canonicalize().expect(name);
            assert!(seen(path.strip_prefix(&root).expect(name)), "{source} includes {name}");
        }
    }
    // Cargo looks for every target that the manifest names, whichever is built.
    let files = Files::new("context");
    for name in &context {
        let link = Path::new(&files.path()).join(name);
        fs::create_dir_all(link.parent().expect("a folder")).expect("made");
        symlink(fs::canonicalize(root.join(name)).expect("it exists"), link).expect("linked");
    }
    let all = targets(&root);
    assert!(all.contains("vote-aggregator bin"), "{all:?}");
    assert_eq!(targets(Path::new(&files.path())), all);
}

/// Names and kinds of what Cargo can build in a folder.
fn targets(folder: &Path) -> BTreeSet<String> {
    let manifest = folder.join("Cargo.toml").display().to_string();
    let read = ["metadata", "--no-deps", "--offline", "--locked", "--format-version=1"];
    let metadata = run(env!("CARGO"), &[&read[..], &["--manifest-path", &manifest]].concat());
    list(&metadata.assert(0, &[]).json()["packages"])
        .flat_map(|package| list(&package["targets"]))
        .map(|target| format!("{} {}", text(&target["name"]), text(&target["kind"][0])))
        .collect()
}

/// A program that may be in a folder for administrators, which need not be in PATH.
fn administrators(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = folders.map(|folder| folder.join(program)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{program} is needed: apt-get install coreutils util-linux"))
}

/// A command in another root: as the image's account when run by root, else as the root of a user
/// namespace.
fn entering(root: &Path, command: &[String]) -> Command {
    let is_root = rustix::process::geteuid().is_root();
    let mut enter = Command::new(administrators(if is_root { "chroot" } else { "unshare" }));
    if is_root {
        enter.arg("--userspec=65532:65532");
    } else {
        enter.args(["--user", "--map-root-user"]).arg(administrators("chroot"));
    }
    enter.arg(root).args(command);
    enter
}

#[tokio::test]
async fn votes_are_counted_in_its_root_file_system_and_its_health_check_answers() {
    let stage = Stage::migrated(Servers::shared(), "image").await;
    let files = Files::new("rootfs");
    let root = files.join("root");
    run("deploy/docker/rootfs", &[BINARY, &files.file("root")]).assert(0, &[]);
    let script = "deploy/docker/rootfs target/release/vote-aggregator /rootfs";
    let runs_it = |(name, rest): &(String, String)| name == "RUN" && rest.contains(script);
    assert!(instructions().iter().any(runs_it), "the same script as in the image");
    assert!(root.join("etc/ssl/certs/ca-certificates.crt").exists(), "authorities for TLS");
    assert!(root.join(only("WORKDIR").trim_start_matches('/')).is_dir());
    for shell in ["bin/sh", "usr/bin/sh", "bin/bash"] {
        assert!(!root.join(shell).exists(), "{shell}");
    }

    // An engine mounts this file; the image has to be able to look up a name.
    fs::write(root.join("etc/hosts"), "127.0.0.1 postgres.test\n").expect("written");
    let command = [words(&only("ENTRYPOINT")), words(&only("CMD"))].concat();
    let mut environment = stage.environment_with(&[("POSTGRES_HOST", "postgres.test")]);
    let service = Service::spawn_as("rootfs", entering(&root, &command), &environment);
    service.until_ready().await;
    stage.count(0, 500).await;

    for (port, code) in [(&*service.port().await, 0), ("1", 1)] {
        environment.insert("PROMETHEUS_PORT".to_owned(), port.to_owned());
        let check = entering(&root, &health_check());
        let check = Service::spawn_as("rootfs-health", check, &environment);
        check.assert_ends(code, &[]).await;
    }
    stage.finish([service], &votes(0, 500)).await;
}
