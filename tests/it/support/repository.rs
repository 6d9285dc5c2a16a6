//! The files of the repository.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Ended;

pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Folders that fuzzing and the peers' languages make.
const MADE: [&str; 5] = ["__pycache__", "artifacts", "corpus", "node_modules", "target"];

/// The text of a file, by its path from the root.
pub fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(ROOT).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Runs a program at the root, without input.
pub fn run(program: impl AsRef<OsStr>, arguments: &[&str]) -> Ended {
    let mut command = Command::new(program);
    let output = command.args(arguments).current_dir(ROOT).stdin(Stdio::null()).output();
    output.expect("the program runs").into()
}

/// Every file below a folder of the repository, as paths from its root.
pub fn files_below(folder: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(Path::new(ROOT).join(&folder)).expect("a folder") {
            let entry = entry.expect("an entry");
            let path = folder.join(entry.file_name());
            if !entry.file_type().expect("a type").is_dir() {
                found.insert(path.to_str().expect("UTF-8").to_owned());
            } else if !MADE.iter().any(|made| path.ends_with(made)) {
                folders.push(path);
            }
        }
    }
    found
}

/// The numbers of the migrations, in order.
pub fn migrations() -> Vec<i64> {
    let number = |path: &String| path.trim_start_matches("migrations/")[..4].parse();
    files_below("migrations").iter().map(|path| number(path).expect("a number")).collect()
}
