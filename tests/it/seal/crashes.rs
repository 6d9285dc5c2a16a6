//! The process killed at each step of a round, and a disk that is full at each size: the same bytes afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Command;
use vote_aggregator::model::ports::{Store, Votes};
use vote_aggregator::operator::seal::Log;

use super::Sealed;
use crate::support::{BINARY, Ended, Servers, Stage, ended, on_path, send, votes};

/// So many that each step takes a millisecond.
const VOTES: u64 = 6_000;

/// Files by their paths, without the lock, and without the state: the horizon is whatever it was.
type Contents = BTreeMap<PathBuf, Vec<u8>>;

fn contents(dir: &Path) -> Contents {
    let (mut found, mut folders) = (Contents::new(), vec![dir.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(dir).expect("below it").to_owned();
            if path.is_dir() {
                folders.push(path);
            } else if !["lock", "state.json"].contains(&name.to_str().expect("UTF-8")) {
                found.insert(name, fs::read(path).expect("read"));
            }
        }
    }
    found
}

/// A log behind its first round, with votes to seal.
struct Crash<'s> {
    stage: &'s Stage<'s>,
    sealed: Sealed,
    /// The directory before the round, as it was.
    before: PathBuf,
    /// What an undisturbed round makes of it.
    whole: Contents,
}

impl<'s> Crash<'s> {
    async fn new(stage: &'s Stage<'s>) -> Self {
        let sealed = Sealed::begin(stage).await;
        let store = stage.store().await;
        store.count(Votes::new(votes(0, 300))).await.expect("counted");
        sealed.until_sealed(300).await;
        for first in (1_000..1_000 + VOTES).step_by(2_000) {
            store.count(Votes::new(votes(first, 2_000))).await.expect("counted");
        }
        let before = sealed.files.join("before");
        let crash = Self { stage, sealed, before, whole: Contents::new() };
        copy(&crash.sealed.dir(), &crash.before);
        crash.sealed.until_sealed_by(300 + VOTES, VOTES).await;
        Self { whole: contents(&crash.sealed.dir()), ..crash }
    }

    fn restore(&self) {
        copy(&self.before, &self.sealed.dir());
    }

    fn command(&self) -> Command {
        self.with_program(BINARY, &["seal", "--dir", &self.sealed.files.file("log"), "--once"])
    }

    fn with_program(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = self.stage.command(program, arguments);
        let postgres = &self.sealed.config.postgres;
        command.envs([("POSTGRES_USER", &*postgres.user), ("POSTGRES_PASSWORD", "least")]);
        command
    }

    /// Seals what is left, and asserts that it comes to what an undisturbed round makes.
    async fn assert_goes_on(&self, what: &str) {
        ended(self.command()).await.assert(0, &["not sealed yet: 0"]);
        let found = contents(&self.sealed.dir());
        let names = |contents: &Contents| contents.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&self.whole), "{what}");
        assert!(found == self.whole, "other bytes: {what}");
    }

    /// How far a round is.
    fn step(&self) -> u32 {
        let dir = self.sealed.dir();
        let length = |name: &str| fs::metadata(dir.join(name)).map_or(0, |it| it.len());
        let state = fs::read_to_string(dir.join("state.json")).expect("replaced as a whole");
        let state: Value = serde_json::from_str(&state).expect("JSON");
        let (tip, intent) = (&state["state"]["tip"], &state["state"]["intent"]);
        let size = 301 + VOTES;
        if tip["size"] == size {
            return if self.published(size) { 7 } else { 6 };
        }
        match intent {
            Value::Null => 0,
            intent if intent["tip"].is_object() => {
                if dir.join(format!("checkpoints/{size}")).exists() { 5 } else { 4 }
            }
            _ if length("hashes.0") > 32 * 301 => 3,
            _ if length("entries") > tip["bytes"].as_u64().expect("a number") => 2,
            _ => 1,
        }
    }

    fn published(&self, size: u64) -> bool {
        let path = self.sealed.dir().join("public/checkpoint");
        let published = fs::read_to_string(path).unwrap_or_default();
        published.lines().nth(1) == Some(size.to_string().as_str())
    }
}

fn copy(from: &Path, to: &Path) {
    fs::remove_dir_all(to).ok();
    let copied = std::process::Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.expect("cp runs").success());
}

#[tokio::test]
async fn a_sealer_that_is_killed_at_any_step_comes_to_the_same_bytes() {
    let stage = Stage::with_roles(Servers::shared(), "sealkill").await;
    let crash = Crash::new(&stage).await;
    for step in 1..=6 {
        let mut tries = 0;
        loop {
            crash.restore();
            let mut child = crash.command().spawn().expect("it runs");
            // Nothing but the files tells how far it is, and a step takes a millisecond.
            while crash.step() < step {
                assert!(
                    child.try_wait().expect("a child of ours").is_none(),
                    "it ended before {step}"
                );
            }
            send(&child, Signal::KILL);
            child.wait().await.expect("killed");
            let killed = crash.step();
            crash.assert_goes_on(&format!("killed at step {killed}")).await;
            tries += 1;
            if killed == step {
                break;
            }
            assert!(tries < 40, "never killed at step {step}");
        }
    }
    crash.sealed.assert_has_each_row_once(&stage, 1).await;
}

/// A limit on the size of files stands for the disk: each write beyond it fails, or ends the process.
#[tokio::test]
async fn a_disk_that_is_full_at_any_size_is_an_error_and_then_the_same_bytes() {
    let stage = Stage::with_roles(Servers::shared(), "sealfull").await;
    let crash = Crash::new(&stage).await;
    let [kilobytes, hashes] =
        ["entries", "hashes.0"].map(|name| crash.whole[Path::new(name)].len() / 1_024);
    let dir = crash.sealed.dir();
    for trap in ["trap '' XFSZ", "true"] {
        for limit in [0, 1, 13, kilobytes / 2, hashes + 1, kilobytes] {
            crash.restore();
            let limited = format!(
                "{trap}; ulimit -f {limit}; exec {BINARY} seal --dir {} --once",
                dir.display()
            );
            let Ended { code, stderr, .. } =
                ended(on_path(crash.with_program("bash", &["-c", &limited]))).await;
            let what = format!("{limit} kB, {trap}: {code:?} {stderr}");
            assert!(if trap == "true" { code.is_none() } else { code == Some(70) }, "{what}");
            assert!(crash.step() < 5 && Log::open(&dir).is_ok(), "nothing was signed: {what}");
            crash.assert_goes_on(&what).await;
        }
    }
}
