//! The house as ARCHITECTURE.md has it: modules, whom they use, what each seeded mutant breaks.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use crate::support::repository::{files_below, read};

const ARCHITECTURE: &str = include_str!("../../../ARCHITECTURE.md");
const LIBRARY: &str = include_str!("../../../src/lib.rs");

fn modules() -> BTreeSet<&'static str> {
    let modules = LIBRARY.lines().filter_map(|line| line.strip_prefix("pub mod "));
    modules.map(|name| name.trim_end_matches(';')).collect()
}

/// Of each row of the table of modules: its name, and whom it uses.
fn told() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let (_, table) = ARCHITECTURE.split_once("| module | knows |").expect("a table of modules");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let names = |cell: &'static str| cell.split('`').skip(1).step_by(2);
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let [module, _, _, uses] = cells[..] else { panic!("four columns: {row}") };
        (names(module).next().expect("a name"), names(uses).collect())
    })
    .collect()
}

/// A module's code without its tests, comments and texts.
fn code(module: &str) -> String {
    let (own, folder) = (format!("src/{module}.rs"), format!("src/{module}/"));
    let mut code = String::new();
    for file in files_below("src") {
        let is_test = file.ends_with("tests.rs") || file.contains("/tests/");
        if is_test || !(file == own || file.starts_with(&folder) && file.ends_with(".rs")) {
            continue;
        }
        let text = read(file);
        let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            line.split('"').step_by(2).for_each(|part| code += part);
            code.push('\n');
        }
    }
    code
}

/// The library's modules that a module's code names.
fn used(module: &str, modules: &BTreeSet<&'static str>) -> BTreeSet<&'static str> {
    let code = code(module);
    let mut named: BTreeSet<&str> = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let listed = rest.strip_prefix('{').and_then(|list| list.split('}').next());
        for path in listed.unwrap_or(rest).split(',').take(if listed.is_some() { 99 } else { 1 }) {
            let name = path.trim().split(|c: char| !c.is_ascii_lowercase() && c != '_').next();
            named.extend(name);
        }
    }
    modules.iter().copied().filter(|name| *name != module && named.contains(name)).collect()
}

#[test]
fn the_table_of_modules_is_what_the_code_has() {
    let (modules, told) = (modules(), told());
    assert!(modules.len() >= 15, "{modules:?}");
    assert_eq!(told.keys().copied().collect::<BTreeSet<_>>(), modules);
    for (module, uses) in &told {
        assert_eq!(*uses, used(module, &modules), "whom {module} uses");
        let row = format!("//! | [`{module}`] |");
        assert!(LIBRARY.contains(&row), "src/lib.rs has a row for {module}");
    }
    for (client, only) in [("lapin::", "broker"), ("sqlx::", "store")] {
        for module in &modules {
            assert_eq!(code(module).contains(client), *module == only, "{client} in {module}");
        }
    }
}

#[test]
fn arrows_run_one_way() {
    let mut left = told();
    loop {
        let names: BTreeSet<&str> = left.keys().copied().collect();
        let before = left.len();
        left.retain(|_, uses| uses.iter().any(|used| names.contains(used)));
        if left.len() == before {
            break;
        }
    }
    assert!(left.is_empty(), "these use one another in a circle, or one that does: {left:?}");
}

/// Running them takes half an hour (`script/seeded-mutants`); that they fit the code takes a moment.
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
        let checked = Command::new("git")
            .args(["apply", "--check", path])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("git runs");
        let stderr = String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success(), "{path}: {stderr}");
    }
}

#[test]
fn the_changelog_has_this_version() {
    let changelog = include_str!("../../../CHANGELOG.md");
    let version = format!("## {} ", env!("CARGO_PKG_VERSION"));
    assert!(changelog.lines().any(|line| format!("{line} ").starts_with(&version)), "{version}");
}
