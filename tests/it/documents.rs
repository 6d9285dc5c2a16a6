//! The documents, held to the repository: paths and links lead somewhere, scripts and commands take
//! the options that are written, names are those of the code.

mod house;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::BINARY;
use crate::support::repository::{ROOT, files_below, read};

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
pub struct Document {
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

    pub fn read(path: &str) -> Self {
        Self::new(path, &read(path))
    }

    fn all() -> Vec<Self> {
        let docs = files_below("docs").into_iter().filter(|path| path.ends_with(".md"));
        let others = ["README.md", "tests/seeded-mutants/README.md", "tests/data/README.md"];
        let others = NAMING.iter().chain(&others).map(|path| (*path).to_owned());
        docs.chain(others).map(|path| Self::read(&path)).collect()
    }

    /// What stands between backticks.
    fn spans(&self) -> Vec<String> {
        assert_eq!(self.prose.matches('`').count() % 2, 0, "{}: backticks in pairs", self.path);
        let spans = self.prose.split('`').skip(1).step_by(2);
        spans.map(|span| span.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    /// Those within the repository, as they are written.
    pub fn links(&self) -> Vec<&str> {
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

/// What was looked at, and what of it is not so.
#[derive(Debug, Default, PartialEq, Eq)]
struct Look {
    seen: usize,
    problems: Vec<String>,
}

impl Look {
    fn note(&mut self, document: &Document, problem: impl Into<String>) {
        self.problems.push(format!("{}: {}", document.path, problem.into()));
    }

    fn is_clean(&self, at_least: usize) {
        assert!(self.problems.is_empty(), "{:#?}", self.problems);
        assert!(self.seen >= at_least, "{} were found, the documents have more", self.seen);
    }
}

/// Every file of the repository's folders.
fn all_files() -> BTreeSet<String> {
    FOLDERS.into_iter().flat_map(files_below).collect()
}

/// The path that a word is, if it looks like one of this repository's.
fn path_in(word: &str) -> Option<&str> {
    let path = word.trim_end_matches([',', '.', ';', ':', ')']);
    let written = path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-*".contains(c));
    let ours = path.split_once('/').is_some_and(|(first, _)| FOLDERS.contains(&first));
    let named = ENDINGS.iter().any(|ending| path.len() > ending.len() && path.ends_with(ending));
    (written && !path.starts_with(['/', '-']) && (ours || named)).then_some(path)
}

fn exists(document: &Document, path: &str, files: &BTreeSet<String>) -> bool {
    if let Some((before, after)) = path.split_once('*') {
        return files.iter().any(|file| file.starts_with(before) && file.ends_with(after));
    }
    let is_name_of = |file: &String| Path::new(file).file_name().is_some_and(|name| name == path);
    Path::new(ROOT).join(path).exists()
        || document.folder().join(path).exists()
        || files.iter().any(is_name_of)
}

/// Paths that lead nowhere.
fn lost_paths(documents: &[Document]) -> Look {
    let (files, mut look) = (all_files(), Look::default());
    for document in documents {
        for span in document.spans() {
            for path in span.split(' ').filter_map(path_in) {
                look.seen += 1;
                if !exists(document, path, &files) {
                    look.note(document, format!("there is no {path}"));
                }
            }
        }
    }
    look
}

#[test]
fn every_path_leads_somewhere() {
    lost_paths(&Document::all()).is_clean(150);
}

/// Links that lead nowhere, or to a heading that is not there.
fn lost_links(documents: &[Document]) -> Look {
    let mut look = Look::default();
    for document in documents {
        for link in document.links() {
            look.seen += 1;
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
                look.note(document, format!("{link} leads nowhere"));
            }
        }
    }
    look
}

#[test]
fn every_link_leads_somewhere() {
    lost_links(&Document::all()).is_clean(40);
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
fn lost_options(documents: &[Document]) -> Look {
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
    let mut look = Look::default();
    for document in documents {
        for line in document.lines() {
            for (name, program) in &programs {
                for call in calls(&line, name) {
                    // The binary has commands with a help of their own.
                    let is_word = |w: &&&str| w.chars().all(|c| c.is_ascii_lowercase() || c == '-');
                    let words = call.iter().take_while(|w| !w.starts_with('-')).take_while(is_word);
                    let words: Vec<&str> =
                        words.copied().filter(|_| name == "vote-aggregator").collect();
                    let message = helps
                        .entry((name.clone(), words.join(" ")))
                        .or_insert_with(|| help(program, &words));
                    let Some(message) = message else {
                        look.note(document, format!("{line}: no such command"));
                        continue;
                    };
                    for option in call.iter().filter(|word| word.starts_with("--")) {
                        let option = option.split('=').next().unwrap_or_default();
                        let mut known =
                            message.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
                        look.seen += 1;
                        if option != "--help" && !known.any(|word| word == option) {
                            look.note(document, format!("{name} has no {option}"));
                        }
                    }
                }
            }
            for (at, _) in line.match_indices("script/") {
                let name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
                let named = line[at + 7..].split(|c| !name(c)).next().unwrap_or_default();
                if !named.is_empty() && !Path::new(ROOT).join("script").join(named).exists() {
                    look.note(document, format!("there is no script/{named}"));
                }
            }
            for (option, folder) in [("--test ", "tests"), ("--bench ", "benches")] {
                for target in line.split(option).skip(1).filter(|_| line.contains("cargo ")) {
                    let target = target.split(' ').next().unwrap_or_default();
                    let path = Path::new(ROOT).join(folder).join(target);
                    if !path.join("main.rs").exists() && !path.with_extension("rs").exists() {
                        look.note(document, format!("cargo has no {option}{target}"));
                    }
                }
            }
        }
    }
    look
}

#[test]
fn every_script_and_option_is_there() {
    lost_options(&Document::all()).is_clean(40);
}

/// Names with an underscore that nothing in the repository has. A long one is a test's.
fn lost_names(documents: &[Document]) -> Look {
    // Not all of them are text.
    let code = all_files()
        .into_iter()
        .filter(|file| file != "tests/it/documents.rs")
        .chain(["pipeline.toml", ".env.example", "init_db.sql"].map(str::to_owned))
        .filter_map(|file| fs::read_to_string(Path::new(ROOT).join(file)).ok());
    let code = code.collect::<Vec<_>>().join("\n");
    // Made-up names are in here, too, and none of them is a test's.
    let tests = code.clone() + include_str!("documents.rs");
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let known: BTreeSet<&str> = code.split(|c| !is_name(c)).collect();
    let mut look = Look::default();
    for document in documents {
        for name in document.spans() {
            let underscores = name.matches('_').count();
            if underscores == 0 || !name.chars().all(is_name) {
                continue;
            }
            look.seen += 1;
            let is_test = tests.contains(&format!("fn {name}("));
            let there = is_test || (underscores < 4 && known.contains(name.as_str()));
            if !there {
                look.note(document, format!("nothing is called {name}"));
            }
        }
    }
    look
}

#[test]
fn every_name_is_one_of_the_code() {
    lost_names(&NAMING.map(Document::read)).is_clean(50);
}

/// What stands above would not notice much if nothing were found out by it.
#[test]
fn what_is_not_so_is_found() {
    let text = "See `src/nowhere.rs`, `tests/it/main.rs` and `nowhere_at_all.md`, [this](docs/none.md), \
                [that](README.md#no-such-part), [the guarantees](README.md#guarantees).\n\
                `a_name_that_no_test_ever_had`, `no_such_name`, `vote_hash`, `script/nothing`\n\
                ```console\n$ script/chaos --minuets 3 # --no-option\n$ cargo test --test nothing\n\
                $ vote-aggregator publish --chekpoint x | wc --lines\n$ vote-aggregator count\n```\n";
    let document = [Document::new("MADE-UP.md", text)];
    let found = |Look { seen, problems }: Look| {
        let message = problems.into_iter().map(|message| message.replace("MADE-UP.md: ", ""));
        (message.collect::<Vec<_>>(), seen)
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
