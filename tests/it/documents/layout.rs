//! The layout of ARCHITECTURE.md: which folder uses which, and which invariant each seeded mutant breaks; and that
//! the settings named in texts exist.

use std::collections::{BTreeMap, BTreeSet};

use vote_aggregator::platform::config::keys;

use crate::support::repository::{files_below, read, run};

const ARCHITECTURE: &str = include_str!("../../../ARCHITECTURE.md");

/// The folders of `src`, and which of them each may use; `service` and `cli` may use all.
const FOLDERS: [(&str, &[&str]); 5] = [
    ("model", &[]),
    ("platform", &["model"]),
    ("adapters", &["model", "platform"]),
    ("counting", &["model", "platform"]),
    ("operator", &["adapters", "model", "platform"]),
];

/// A Rust file's code without its tests, comments and texts; empty for a file of tests.
fn code(file: &str) -> String {
    if file.ends_with("tests.rs") || file.contains("/tests/") {
        return String::new();
    }
    let text = read(file);
    let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
    let mut code = String::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
        line.split('"').step_by(2).for_each(|part| code += part);
        code.push('\n');
    }
    code
}

/// The paths below `crate::` that code names, each as far as `depth` names go.
fn used(code: &str, depth: usize) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"_:".contains(c));
        let path: Vec<&str> = rest[..end.unwrap_or(rest.len())].split("::").collect();
        let group = rest[end.unwrap_or(rest.len())..].strip_prefix('{');
        let names = group.and_then(|group| group.split('}').next()).unwrap_or_default();
        let names = if names.is_empty() { vec![""] } else { names.split(',').collect() };
        for name in names {
            let name = name.trim().split("::").next().unwrap_or_default();
            let whole = path.iter().copied().chain([name]).filter(|part| !part.is_empty());
            paths.insert(whole.take(depth).collect::<Vec<_>>().join("::"));
        }
    }
    paths
}

fn sources(folder: &str) -> Vec<String> {
    let (own, below) = (format!("src/{folder}.rs"), format!("src/{folder}/"));
    let files = files_below("src").into_iter();
    let files = files.filter(|file| *file == own || file.starts_with(&below));
    files.filter(|file| file.ends_with(".rs")).collect()
}

#[test]
fn each_folder_uses_only_those_below_it() {
    for (folder, may_use) in FOLDERS {
        assert!(sources(folder).len() > 1, "{folder}");
        let row = format!("| `{folder}/` |");
        assert!(ARCHITECTURE.contains(&row), "ARCHITECTURE.md has a row for {folder}");
        for file in sources(folder) {
            for used in used(&code(&file), 1) {
                let allowed = used == folder || may_use.contains(&used.as_str());
                assert!(allowed, "{file} uses {used}; {folder} may use {may_use:?} only");
            }
        }
    }
    for (client, only) in [("lapin::", "adapters/broker"), ("sqlx::", "adapters/store")] {
        for file in files_below("src").into_iter().filter(|file| file.ends_with(".rs")) {
            let at_home = file.starts_with(&format!("src/{only}"));
            assert!(at_home || !code(&file).contains(client), "{client} in {file}");
        }
    }
}

/// Whoever does not trust this service builds the verification from these files, without broker and database.
#[test]
fn a_log_is_verified_without_broker_database_and_network() {
    let files: Vec<String> = files_below("src").into_iter().collect();
    let below = |folder: &'static str| {
        let of = move |file: &&String| {
            file.starts_with(&format!("{folder}/")) || **file == format!("{folder}.rs")
        };
        files.iter().filter(of).cloned().collect::<Vec<_>>()
    };
    let (pure, reads) = (below("src/model/tlog"), below("src/operator/verify"));
    assert!(pure.len() > 5 && reads.len() > 5, "{pure:?} {reads:?}");
    for file in &reads {
        let code = code(file);
        let only_model = used(&code, 1).iter().all(|used| used == "model");
        assert!(only_model && !code.contains("std::net") && !code.contains("tokio"), "{file}");
    }
    for file in &pure {
        let code = code(file);
        let impure = [
            "std::fs",
            "std::io",
            "std::net",
            "std::time",
            "std::env",
            "tokio",
            "fastrand",
            "SystemRandom",
        ];
        assert!(impure.iter().all(|name| !code.contains(name)), "{file}");
        let used = used(&code, 2);
        assert!(
            used.iter().all(|used| ["model::vote", "model::tlog"].contains(&used.as_str())),
            "{file}: {used:?}"
        );
    }
}

#[test]
fn modules_do_not_use_each_other_in_a_circle() {
    let modules = FOLDERS.iter().flat_map(|(folder, _)| {
        let code = code(&format!("src/{folder}.rs"));
        let names = code.lines().filter_map(|line| line.strip_prefix("pub mod "));
        names.map(|name| format!("{folder}::{}", name.trim_end_matches(';'))).collect::<Vec<_>>()
    });
    let mut left: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for module in modules {
        let files = sources(&module.replace("::", "/"));
        let uses = files.iter().flat_map(|file| used(&code(file), 2));
        left.insert(module.clone(), uses.filter(|used| *used != module).collect());
    }
    assert!(left.len() >= 15, "{left:?}");
    loop {
        let names: BTreeSet<String> = left.keys().cloned().collect();
        let before = left.len();
        left.retain(|_, uses| uses.iter().any(|used| names.contains(used)));
        if left.len() == before {
            break;
        }
    }
    assert!(left.is_empty(), "these use one another in a circle, or one that does: {left:?}");
}

/// Running them takes half an hour (`script/seeded-mutants`); that they fit the code takes a moment.
/// Messages and help name settings as they read best. `config` also names what is none, to say so.
#[test]
fn every_setting_that_a_text_names_exists() {
    let known: BTreeSet<&str> = keys::ALL.iter().map(|key| key.variable).collect();
    let is_name = |c: char| c.is_ascii_uppercase() || c == '_';
    let prefixes = ["RABBITMQ_", "POSTGRES_", "PROMETHEUS_", "METRICS_", "SHUTDOWN_"];
    let mut named = 0;
    let is_text = |file: &&String| !file.contains("/config/") && !file.ends_with("tests.rs");
    for file in files_below("src").iter().filter(is_text) {
        for name in read(file).split(|c| !is_name(c)) {
            if prefixes.iter().any(|prefix| name.starts_with(prefix) && name.len() > prefix.len()) {
                assert!(known.contains(name), "{file}: {name}");
                named += 1;
            }
        }
    }
    assert!(named > 100, "only {named}");
}

#[test]
fn every_seeded_mutant_applies_and_stands_behind_an_invariant() {
    let (_, invariants) = ARCHITECTURE.split_once("\n## What must hold\n").expect("such a part");
    let (invariants, _) = invariants.split_once("\n## ").expect("its end");
    let patches = files_below("tests/seeded-mutants");
    let patches: Vec<&String> = patches.iter().filter(|path| path.ends_with(".patch")).collect();
    assert!(patches.len() >= 15, "{patches:?}");
    for path in patches {
        let name = path.rsplit('/').next().and_then(|file| file.strip_suffix(".patch"));
        let name = format!("`{}`", name.expect("a patch"));
        assert!(invariants.contains(&name), "{name} in ARCHITECTURE.md");
        assert!(read(path).contains("\n# Caught by: "), "{path}");
        run("git", &["apply", "--check", path]).assert(0, &[]);
    }
}

#[test]
fn the_changelog_has_this_version() {
    let changelog = include_str!("../../../CHANGELOG.md");
    let version = format!("## {} ", env!("CARGO_PKG_VERSION"));
    assert!(changelog.lines().any(|line| format!("{line} ").starts_with(&version)), "{version}");
}
