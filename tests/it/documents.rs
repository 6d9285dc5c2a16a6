//! The documents, held to the repository: paths and links lead somewhere, scripts and commands take
//! the options that are written, names are those of the code, and modules use whom they are said to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::BINARY;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const ARCHITECTURE: &str = include_str!("../../ARCHITECTURE.md");
const LIBRARY: &str = include_str!("../../src/lib.rs");
/// Whatever begins with one of these is a path from the root.
const FOLDERS: [&str; 10] = [
    ".ci",
    "benches",
    "deploy",
    "docs",
    "examples",
    "fuzz",
    "migrations",
    "script",
    "src",
    "tests",
];
/// A name that ends so is a file's, also without a folder before it.
const ENDINGS: [&str; 8] = [".md", ".mjs", ".patch", ".py", ".rs", ".sql", ".toml", ".tsv"];
/// Folders that fuzzing and the peers' languages make.
const MADE: [&str; 5] = ["__pycache__", "artifacts", "corpus", "node_modules", "target"];
/// In these every name with an underscore has to be one of the code.
const NAMING: [&str; 3] = ["ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"];

/// The anchor of a heading, as GitHub and its like make it.
pub fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

pub fn headings(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| {
            line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#'))
        })
        .collect()
}

/// A document, taken apart.
struct Document {
    /// From the root.
    path: String,
    /// Lines outside fences.
    prose: String,
    /// Lines within fences.
    fenced: Vec<String>,
}

impl Document {
    fn new(path: &str, text: &str) -> Self {
        let (mut prose, mut fenced, mut within) = (String::new(), Vec::new(), false);
        for line in text.lines() {
            if line.trim_start().starts_with("```") {
                within = !within;
            } else if within {
                fenced.push(line.to_owned());
            } else {
                prose += line;
                prose.push('\n');
            }
        }
        assert!(!within, "{path}: every fence is closed");
        Self { path: path.to_owned(), prose, fenced }
    }

    fn read(path: &str) -> Self {
        let text = fs::read_to_string(Path::new(ROOT).join(path));
        Self::new(path, &text.unwrap_or_else(|error| panic!("{path}: {error}")))
    }

    fn all() -> Vec<Self> {
        let docs = fs::read_dir(Path::new(ROOT).join("docs")).expect("a folder of guides");
        let docs = docs.map(|entry| {
            let name = entry.expect("an entry").file_name();
            format!("docs/{}", name.to_str().expect("UTF-8"))
        });
        let others = ["README.md", "tests/planted/README.md", "tests/data/README.md"];
        let others = NAMING.iter().chain(&others).map(|path| (*path).to_owned());
        docs.chain(others).map(|path| Self::read(&path)).collect()
    }

    /// What stands between backticks.
    fn spans(&self) -> Vec<String> {
        assert_eq!(self.prose.matches('`').count() % 2, 0, "{}: backticks in pairs", self.path);
        let spans = self.prose.split('`').skip(1).step_by(2);
        spans.map(|span| span.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    fn links(&self) -> Vec<&str> {
        let links = self.prose.split("](").skip(1);
        let links = links.map(|rest| rest.split(')').next().expect("an end"));
        links.filter(|link| !link.contains("://")).collect()
    }

    /// Whatever may be a command: lines of fences, and spans.
    fn lines(&self) -> Vec<String> {
        self.fenced.iter().cloned().chain(self.spans()).collect()
    }

    fn folder(&self) -> PathBuf {
        Path::new(ROOT).join(&self.path).parent().expect("a folder").to_owned()
    }
}

/// What is written and not so, of all documents, or of one.
struct Problems(Vec<String>);

impl Problems {
    fn none(self, looked_at: usize, at_least: usize) {
        assert!(self.0.is_empty(), "{:#?}", self.0);
        assert!(looked_at >= at_least, "{looked_at} were found, the documents have more");
    }
}

/// Every file below the folders of the repository.
fn files(folders: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left: Vec<PathBuf> = folders.iter().map(|name| Path::new(ROOT).join(name)).collect();
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true if MADE.iter().any(|made| path.ends_with(made)) => {}
                true => left.push(path),
                false => found.push(path),
            }
        }
    }
    found
}

/// The path that a word is, if it looks like one of this repository's.
fn path_in(word: &str) -> Option<&str> {
    let path = word.trim_end_matches([',', '.', ';', ':', ')']);
    let written = path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-*".contains(c));
    let ours = path.split_once('/').is_some_and(|(first, _)| FOLDERS.contains(&first));
    let named = ENDINGS.iter().any(|ending| path.len() > ending.len() && path.ends_with(ending));
    (written && !path.starts_with(['/', '-']) && (ours || named)).then_some(path)
}

fn exists(document: &Document, path: &str, names: &BTreeSet<String>) -> bool {
    let root = Path::new(ROOT);
    if let Some((before, after)) = path.split_once('*') {
        let files = files(&FOLDERS);
        let mut paths = files.iter().filter_map(|file| file.strip_prefix(root).ok()?.to_str());
        return paths.any(|file| file.starts_with(before) && file.ends_with(after));
    }
    root.join(path).exists()
        || document.folder().join(path).exists()
        || (!path.contains('/') && names.contains(path))
}

/// Paths that lead nowhere, and how many there are.
fn lost_paths(documents: &[Document]) -> (Problems, usize) {
    let file_name = |file: &PathBuf| Some(file.file_name()?.to_str()?.to_owned());
    let names: BTreeSet<String> = files(&FOLDERS).iter().filter_map(file_name).collect();
    let (mut problems, mut seen) = (Vec::new(), 0);
    for document in documents {
        for span in document.spans() {
            for path in span.split(' ').filter_map(path_in) {
                seen += 1;
                if !exists(document, path, &names) {
                    problems.push(format!("{}: there is no {path}", document.path));
                }
            }
        }
    }
    (Problems(problems), seen)
}

#[test]
fn every_path_leads_somewhere() {
    let (problems, seen) = lost_paths(&Document::all());
    problems.none(seen, 150);
}

/// Links that lead nowhere, or to a heading that is not there.
fn lost_links(documents: &[Document]) -> (Problems, usize) {
    let (mut problems, mut seen) = (Vec::new(), 0);
    for document in documents {
        for link in document.links() {
            seen += 1;
            let (file, part) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => Path::new(ROOT).join(&document.path),
                file => document.folder().join(file),
            };
            let there = target.exists()
                && (part.is_empty()
                    || fs::read_to_string(&target).is_ok_and(|text| {
                        headings(&text).into_iter().map(anchor).any(|anchor| anchor == part)
                    }));
            if !there {
                problems.push(format!("{}: {link} leads nowhere", document.path));
            }
        }
    }
    (Problems(problems), seen)
}

#[test]
fn every_link_leads_somewhere() {
    let (problems, seen) = lost_links(&Document::all());
    problems.none(seen, 40);
}

/// What follows `name` in a line wherever it is called as a program, up to the command's end.
fn calls<'l>(line: &'l str, name: &str) -> Vec<Vec<&'l str>> {
    let mut found = Vec::new();
    for (at, _) in line.match_indices(name) {
        let before = line[..at].chars().next_back();
        let rest = &line[at + name.len()..];
        if before.is_none_or(|c| " $(\"".contains(c)) && rest.starts_with([' ', ')']) {
            let words =
                rest.split(' ').take_while(|word| !["--", "#", "|", "&&", ">"].contains(word));
            // Of $(script/x --y) the bracket is the end.
            let mut open = true;
            let words = words.take_while(|word| std::mem::replace(&mut open, !word.contains(')')));
            let words = words.map(|word| word.split([')', ';', '"']).next().unwrap_or_default());
            found.push(words.filter(|word| !word.is_empty()).collect());
        }
    }
    found
}

/// The help of a program, by its name or path; `None` when it has none.
fn help(program: &str, words: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(words)
        .arg("--help")
        .current_dir(ROOT)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// Scripts that are not there or cannot be run, and options that they or the binary do not have.
fn lost_options(documents: &[Document]) -> (Problems, usize) {
    let folder = fs::read_dir(Path::new(ROOT).join("script")).expect("a folder of scripts");
    let scripts = folder.map(|entry| entry.expect("an entry"));
    let mut programs = Vec::new();
    for script in scripts {
        let mode = script.metadata().expect("metadata").permissions().mode();
        let name = format!("script/{}", script.file_name().to_str().expect("UTF-8"));
        assert!(mode & 0o111 != 0, "{name} can be run");
        programs.push((name.clone(), format!("{ROOT}/{name}")));
    }
    programs.push(("vote-aggregator".to_owned(), BINARY.to_owned()));

    let mut helps: BTreeMap<(String, String), Option<String>> = BTreeMap::new();
    let (mut problems, mut seen) = (Vec::new(), 0);
    for document in documents {
        for line in document.lines() {
            for (name, program) in &programs {
                for call in calls(&line, name) {
                    // The binary has commands with a help of their own.
                    let is_word = |w: &&&str| w.chars().all(|c| c.is_ascii_lowercase() || c == '-');
                    let words = call.iter().take_while(|w| !w.starts_with('-')).take_while(is_word);
                    let words: Vec<&str> =
                        words.copied().filter(|_| name == "vote-aggregator").collect();
                    let told = helps
                        .entry((name.clone(), words.join(" ")))
                        .or_insert_with(|| help(program, &words));
                    let Some(told) = told else {
                        problems.push(format!("{}: {line}: no such command", document.path));
                        continue;
                    };
                    for option in call.iter().filter(|word| word.starts_with("--")) {
                        let option = option.split('=').next().unwrap_or_default();
                        let mut known =
                            told.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
                        seen += 1;
                        if option != "--help" && !known.any(|word| word == option) {
                            problems.push(format!("{}: {name} has no {option}", document.path));
                        }
                    }
                }
            }
            for (at, _) in line.match_indices("script/") {
                let name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
                let named = line[at + 7..].split(|c| !name(c)).next().unwrap_or_default();
                if !named.is_empty() && !Path::new(ROOT).join("script").join(named).exists() {
                    problems.push(format!("{}: there is no script/{named}", document.path));
                }
            }
            for (option, folder) in [("--test ", "tests"), ("--bench ", "benches")] {
                for target in line.split(option).skip(1).filter(|_| line.contains("cargo ")) {
                    let target = target.split(' ').next().unwrap_or_default();
                    let path = Path::new(ROOT).join(folder).join(target);
                    if !path.join("main.rs").exists() && !path.with_extension("rs").exists() {
                        problems.push(format!("{}: cargo has no {option}{target}", document.path));
                    }
                }
            }
        }
    }
    (Problems(problems), seen)
}

#[test]
fn every_script_and_option_is_there() {
    let (problems, seen) = lost_options(&Document::all());
    problems.none(seen, 40);
}

/// Names with an underscore that nothing in the repository has. A long one is a test's.
fn lost_names(documents: &[Document]) -> (Problems, usize) {
    let mut code: Vec<String> = files(&FOLDERS)
        .iter()
        .filter(|file| !file.ends_with("tests/it/documents.rs"))
        .filter_map(|file| fs::read_to_string(file).ok())
        .collect();
    for file in ["pipeline.toml", ".env.example", "init_db.sql"] {
        code.push(fs::read_to_string(Path::new(ROOT).join(file)).expect("it is shipped"));
    }
    let code = code.join("\n");
    // Made-up names are in here, too, and none of them is a test's.
    let tests = code.clone() + include_str!("documents.rs");
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let known: BTreeSet<&str> = code.split(|c| !is_name(c)).collect();
    let (mut problems, mut seen) = (Vec::new(), 0);
    for document in documents {
        for name in document.spans() {
            let underscores = name.matches('_').count();
            if underscores == 0 || !name.chars().all(is_name) {
                continue;
            }
            seen += 1;
            let is_test = tests.contains(&format!("fn {name}("));
            let there = is_test || (underscores < 4 && known.contains(name.as_str()));
            if !there {
                problems.push(format!("{}: nothing is called {name}", document.path));
            }
        }
    }
    (Problems(problems), seen)
}

#[test]
fn every_name_is_one_of_the_code() {
    let (problems, seen) = lost_names(&NAMING.map(Document::read));
    problems.none(seen, 50);
}

/// What stands above would not notice much if nothing were found out by it.
#[test]
fn what_is_not_so_is_found() {
    let text = "See `src/nowhere.rs`, `tests/it/main.rs` and `nowhere_at_all.md`, [this](docs/none.md), \
                [that](README.md#no-such-part), [the promise](README.md#the-promise).\n\
                `a_name_that_no_test_ever_had`, `no_such_name`, `vote_hash`, `script/nothing`\n\
                ```console\n$ script/chaos --minuets 3 # --no-option\n$ cargo test --test nothing\n\
                $ vote-aggregator publish --chekpoint x | wc --lines\n$ vote-aggregator count\n```\n";
    let document = [Document::new("MADE-UP.md", text)];
    let found = |(Problems(problems), seen): (Problems, usize)| {
        let told = problems.into_iter().map(|told| told.replace("MADE-UP.md: ", ""));
        (told.collect::<Vec<_>>(), seen)
    };
    let lost = |paths: &[&str]| paths.iter().map(|path| format!("there is no {path}")).collect();
    let paths: Vec<String> = lost(&["src/nowhere.rs", "nowhere_at_all.md", "script/nothing"]);
    assert_eq!(found(lost_paths(&document)), (paths, 4));
    let links = ["docs/none.md leads nowhere", "README.md#no-such-part leads nowhere"];
    assert_eq!(found(lost_links(&document)), (links.map(str::to_owned).to_vec(), 3));
    let options = [
        "script/chaos has no --minuets",
        "cargo has no --test nothing",
        "vote-aggregator has no --chekpoint",
        "$ vote-aggregator count: no such command",
        "there is no script/nothing",
    ];
    assert_eq!(found(lost_options(&document)), (options.map(str::to_owned).to_vec(), 2));
    let names =
        ["nothing is called a_name_that_no_test_ever_had", "nothing is called no_such_name"];
    assert_eq!(found(lost_names(&document)), (names.map(str::to_owned).to_vec(), 3));
}

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
    let own = Path::new(ROOT).join("src").join(module);
    let mut sources = vec![own.with_extension("rs")];
    if own.is_dir() {
        sources.extend(files(&[&format!("src/{module}")]));
    }
    let is_test = |file: &Path| {
        file.ends_with("tests.rs") || file.components().any(|part| part.as_os_str() == "tests")
    };
    let below = |file: &PathBuf| file.strip_prefix(ROOT).expect("below the root").to_owned();
    let mut code = String::new();
    for file in sources.iter().filter(|file| file.extension().is_some_and(|kind| kind == "rs")) {
        if is_test(&below(file)) {
            continue;
        }
        let text = fs::read_to_string(file).expect("readable");
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

/// How many there are stands in the README, and what each breaks in the part about what must hold.
#[test]
fn every_planted_mistake_is_told_of() {
    let patches = files(&["tests/planted"]);
    let names =
        patches.iter().filter_map(|file| file.file_name()?.to_str()?.strip_suffix(".patch"));
    let numbers: BTreeSet<&str> = names.filter_map(|name| Some(name.split_once('-')?.0)).collect();
    let told = format!("plants {} mistakes", numbers.len());
    assert!(include_str!("../../README.md").contains(&told), "README: {told}");
    let (_, part) = ARCHITECTURE.split_once("\n## What must hold\n").expect("such a part");
    let (part, _) = part.split_once("\n## ").expect("its end");
    let words = part.split(|c: char| !c.is_ascii_alphanumeric());
    let told = words.filter(|w| w.len() == 2 && w.bytes().all(|byte| byte.is_ascii_digit()));
    assert_eq!(told.collect::<BTreeSet<_>>(), numbers, "ARCHITECTURE.md");
}

#[test]
fn the_changelog_has_this_version() {
    let changelog = include_str!("../../CHANGELOG.md");
    let version = format!("## {} ", env!("CARGO_PKG_VERSION"));
    assert!(changelog.lines().any(|line| format!("{line} ").starts_with(&version)), "{version}");
}
