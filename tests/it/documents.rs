//! The documents, compared with the repository: paths and links lead somewhere, scripts and commands
//! have the options that are written, names are those of the code.

mod layout;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::BINARY;
use crate::support::repository::{ROOT, files_below, read, run};

/// Whatever begins with one of these is a path from the root.
const FOLDERS: &str = ".ci benches deploy docs examples fuzz migrations script src tests";
/// A name that ends so is a file's, also without a folder before it.
const ENDINGS: &str = ".md .mjs .patch .py .rs .sql .toml .tsv .yaml";
/// In these documents every name with an underscore has to be one of the code.
const NAMING: [&str; 3] = ["ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"];

/// The anchor of a heading, as GitHub and its like make it.
pub fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

pub fn headings(text: &str) -> Vec<&str> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings.filter_map(|line| line.trim_start_matches('#').strip_prefix(' ')).collect()
}

/// A document and its parts.
pub struct Document {
    /// From the root.
    path: String,
    /// Lines outside fences.
    prose: String,
    /// Lines within fences.
    fenced: Vec<String>,
}

impl Document {
    pub fn read(path: &str) -> Self {
        let (mut prose, mut fenced, mut within) = (String::new(), Vec::new(), false);
        for line in read(path).lines() {
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

    fn all() -> Vec<Self> {
        let docs = files_below("docs").into_iter().filter(|path| path.ends_with(".md"));
        let others = ["README.md", "tests/seeded-mutants/README.md", "tests/data/README.md"];
        let others = NAMING.iter().chain(&others).map(|path| (*path).to_owned());
        docs.chain(others).map(|path| Self::read(&path)).collect()
    }

    /// The texts between backticks.
    fn spans(&self) -> Vec<String> {
        assert_eq!(self.prose.matches('`').count() % 2, 0, "{}: backticks in pairs", self.path);
        let spans = self.prose.split('`').skip(1).step_by(2);
        spans.map(|span| span.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    /// The links within the repository, as they are written.
    pub fn links(&self) -> Vec<&str> {
        let links = self.prose.split("](").skip(1);
        let links = links.map(|rest| rest.split(')').next().expect("an end"));
        links.filter(|link| !link.contains("://")).collect()
    }

    /// The texts that may be commands: lines of fences, and spans.
    fn lines(&self) -> Vec<String> {
        self.fenced.iter().cloned().chain(self.spans()).collect()
    }

    fn folder(&self) -> PathBuf {
        Path::new(ROOT).join(&self.path).parent().expect("a folder").to_owned()
    }
}

/// What documents claim, and whether it is so.
#[derive(Default)]
struct Claims {
    seen: usize,
    wrong: Vec<String>,
}

impl Claims {
    fn add(&mut self, document: &Document, claim: &str, holds: bool) {
        self.seen += 1;
        if !holds {
            self.wrong.push(format!("{}: {claim}", document.path));
        }
    }

    fn assert(self, at_least: usize) {
        assert!(self.wrong.is_empty(), "not so: {:#?}", self.wrong);
        assert!(self.seen >= at_least, "{} were found, the documents have more", self.seen);
    }
}

/// Every file of the repository's folders.
fn all_files() -> BTreeSet<String> {
    FOLDERS.split(' ').flat_map(files_below).collect()
}

/// The path that a word is, if it looks like one of this repository's.
fn path_in(word: &str) -> Option<&str> {
    let path = word.trim_end_matches([',', '.', ';', ':', ')']);
    let written = path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-*".contains(c));
    let ours =
        path.split_once('/').is_some_and(|(first, _)| FOLDERS.split(' ').any(|f| f == first));
    let mut endings = ENDINGS.split(' ');
    let named = endings.any(|ending| path.len() > ending.len() && path.ends_with(ending));
    (written && !path.starts_with(['/', '-']) && (ours || named)).then_some(path)
}

#[test]
fn every_path_leads_somewhere() {
    let (files, mut claims) = (all_files(), Claims::default());
    for document in Document::all() {
        for span in document.spans() {
            for path in span.split(' ').filter_map(path_in) {
                let named = format!("/{path}");
                let here =
                    || [Path::new(ROOT), &document.folder()].map(|it| it.join(path).exists());
                let mut files = files.iter();
                let exists = match path.split_once('*') {
                    Some((start, end)) => {
                        files.any(|it| it.starts_with(start) && it.ends_with(end))
                    }
                    None => here().contains(&true) || files.any(|file| file.ends_with(&named)),
                };
                claims.add(&document, path, exists);
            }
        }
    }
    claims.assert(150);
}

#[test]
fn every_link_leads_somewhere() {
    let mut claims = Claims::default();
    for document in Document::all() {
        for link in document.links() {
            let (file, part) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => Path::new(ROOT).join(&document.path),
                file => document.folder().join(file),
            };
            let text = fs::read_to_string(&target).unwrap_or_default();
            let has_part = headings(&text).into_iter().any(|heading| anchor(heading) == part);
            claims.add(&document, link, target.exists() && (part.is_empty() || has_part));
        }
    }
    claims.assert(40);
}

/// The words behind each call of a program in a line, up to the command's end.
fn calls<'l>(line: &'l str, program: &str) -> Vec<Vec<&'l str>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let is_call = |word: &&str| word.trim_start_matches(['$', '(', '"']) == program;
    let calls = (0..words.len()).filter(|at| is_call(&words[*at]));
    calls
        .map(|at| {
            let rest = &words[at + 1..];
            let is_end = |word: &&str| ["--", "#", "|", "&&", ">"].contains(word);
            let end = rest.iter().position(is_end).unwrap_or(rest.len());
            let closed = rest.iter().position(|word| word.contains(')'));
            let rest = &rest[..closed.map_or(end, |closed| end.min(closed + 1))];
            rest.iter().map(|word| word.trim_end_matches([')', ';', '"'])).collect()
        })
        .collect()
}

/// The help of a program; empty when it has none.
fn help(program: &str, words: &[&str]) -> String {
    let help = run(program, &[words, &["--help"]].concat());
    if help.code == Some(0) { help.stdout } else { String::new() }
}

#[test]
fn every_command_and_option_exists() {
    let scripts = files_below("script").into_iter().map(|name| (name.clone(), name));
    let binary = ("vote-aggregator".to_owned(), BINARY.to_owned());
    let programs: Vec<(String, String)> = scripts.chain([binary]).collect();
    let mut helps: BTreeMap<String, String> = BTreeMap::new();
    let mut claims = Claims::default();
    for document in Document::all() {
        for line in document.lines() {
            for (name, program) in &programs {
                for call in calls(&line, name) {
                    // The binary's commands have a help of their own.
                    let is_word = |word: &&str| {
                        name == "vote-aggregator"
                            && word.starts_with(|c: char| c.is_ascii_lowercase())
                            && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
                    };
                    let words: Vec<&str> = call.iter().copied().take_while(is_word).collect();
                    let command = format!("{name} {}", words.join(" "));
                    let help =
                        helps.entry(command.clone()).or_insert_with(|| help(program, &words));
                    claims.add(&document, &command, !help.is_empty());
                    let is_end = |c: char| !c.is_ascii_alphanumeric() && c != '-';
                    let known: BTreeSet<&str> = help.split(is_end).chain(["--help"]).collect();
                    for option in call.iter().filter(|word| word.starts_with("--")) {
                        let option = option.split('=').next().unwrap_or_default();
                        let claim = format!("{command} {option}");
                        claims.add(&document, &claim, known.contains(option));
                    }
                }
            }
            for rest in line.split("script/").skip(1) {
                let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
                let script = rest.split(|c| !is_name(c)).next().unwrap_or_default();
                let exists = Path::new(ROOT).join("script").join(script).exists();
                claims.add(&document, &format!("script/{script}"), exists);
            }
            for (option, folder) in [("--test ", "tests"), ("--bench ", "benches")] {
                for target in line.split(option).skip(1).filter(|_| line.contains("cargo ")) {
                    let target = target.split(' ').next().unwrap_or_default();
                    let path = Path::new(ROOT).join(folder).join(target);
                    let sources = [path.join("main.rs"), path.with_extension("rs")];
                    let exists = sources.iter().any(|source| source.exists());
                    claims.add(&document, &format!("cargo {option}{target}"), exists);
                }
            }
        }
    }
    claims.assert(150);
}

/// A name with four underscores or more is a test's.
#[test]
fn every_name_is_one_of_the_code() {
    let others = ["pipeline.toml", ".env.example", "init_db.sql"].map(str::to_owned);
    let files = all_files().into_iter().chain(others);
    // Not all of them are text.
    let code = files.filter_map(|file| fs::read_to_string(Path::new(ROOT).join(file)).ok());
    let code = code.collect::<Vec<_>>().join("\n");
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let known: BTreeSet<&str> = code.split(|c| !is_name(c)).collect();
    let mut claims = Claims::default();
    for document in NAMING.map(Document::read) {
        for name in document.spans() {
            let underscores = name.matches('_').count();
            if underscores > 0 && name.chars().all(is_name) {
                let is_known = if underscores < 4 {
                    known.contains(name.as_str())
                } else {
                    code.contains(&format!("fn {name}("))
                };
                claims.add(&document, &name, is_known);
            }
        }
    }
    claims.assert(50);
}
