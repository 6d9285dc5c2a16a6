//! Migrations are embedded at compile time, and in a release the git revision.

use std::env;
use std::fs;
use std::path::Path;

const REVISION: &str = "VOTE_AGGREGATOR_REVISION";

fn main() {
    println!("cargo:rerun-if-changed=migrations");
    println!("cargo:rerun-if-env-changed={REVISION}");
    // Set by who builds without a checkout; it reaches the compiler by itself.
    let given = env::var_os(REVISION).is_some_and(|revision| !revision.is_empty());
    // Other builds would be made anew with every commit.
    let release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    if !given
        && release
        // A file that is not there would have every build run this again.
        && Path::new(".git/HEAD").exists()
        && let Some(revision) = revision(Path::new(".git"))
    {
        println!("cargo:rustc-env={REVISION}={revision}");
    }
}

/// The commit that is checked out, without the help of a git program.
fn revision(git: &Path) -> Option<String> {
    let watched = |path: &Path| {
        println!("cargo:rerun-if-changed={}", path.display());
        fs::read_to_string(path).ok()
    };
    let head = watched(&git.join("HEAD"))?;
    // Written by each commit, whichever file holds the reference.
    if git.join("logs/HEAD").exists() {
        watched(&git.join("logs/HEAD"));
    }
    let commit = match head.trim().strip_prefix("ref: ") {
        None => head.trim().to_owned(),
        Some(name) => match fs::read_to_string(git.join(name)) {
            Ok(_) => watched(&git.join(name))?.trim().to_owned(),
            Err(_) => watched(&git.join("packed-refs"))?
                .lines()
                .find_map(|line| line.strip_suffix(name)?.strip_suffix(' ').map(str::to_owned))?,
        },
    };
    let is_commit = commit.len() >= 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_commit.then(|| commit[..12].to_owned())
}
