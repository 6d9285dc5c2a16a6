//! Rounds that are interrupted, files that are changed, directories that are restored: the same bytes, or a refusal.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::{Intent, Lineage, Log, Opened, SealError, Tip};
use crate::model::tlog::entry::VoteEntry;
use crate::model::tlog::policy::Policy;
use crate::model::tlog::row::Row;
use crate::model::tlog::segment::{Ordered, Segment};
use crate::model::vote::Choice;
use crate::operator::files::tests::Directory;
use crate::operator::verify;

const ORIGIN: &str = "votes.example/2026-11-29";
/// What a round does, in order.
const STEPS: usize = 7;

/// Files by their paths in the log's directory.
type Files = BTreeMap<String, Vec<u8>>;

fn files(dir: &Path) -> Files {
    fn add(files: &mut Files, dir: &Path, at: &Path) {
        for entry in fs::read_dir(at).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                add(files, dir, &path);
            } else {
                let name = path.strip_prefix(dir).expect("below it").display().to_string();
                files.insert(name, fs::read(&path).expect("read"));
            }
        }
    }
    let mut found = Files::new();
    add(&mut found, dir, dir);
    found
}

fn restore(dir: &Path, files: &Files) {
    fs::remove_dir_all(dir).ok();
    for (name, content) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, content).expect("written");
    }
}

fn opened(rows: u64) -> Opened {
    let system_identifier = "7345678901234567890".into();
    let lineage =
        Lineage { system_identifier, timeline: 1, vote_audit: 16_384, count_batch: 16_385 };
    Opened { lineage, horizon: 100, rows, counted: rows }
}

/// The votes of a round, by their numbers.
fn votes(log: &Log, numbers: impl IntoIterator<Item = u64>) -> Ordered {
    let mut segment = Segment::default();
    for number in numbers {
        let row = Row {
            vote_hash: format!("hash-{number}"),
            citizen_id: format!("citizen-{number}"),
            law_id: format!("law-{}", number % 3),
            choice: if number.is_multiple_of(2) { Choice::Oui } else { Choice::Non },
            timestamp: 1,
            recorded_at: None,
        };
        let nonce = log.secret().nonce(&row.vote_hash);
        segment.add_vote(VoteEntry::of(&row, &nonce).expect("short")).expect("short");
    }
    segment.ordered()
}

/// Seals the rounds that begin at these numbers: each the votes up to the next, below ten times the next.
fn seal(dir: &Path, from: u64, to: u64) -> Result<Tip, SealError> {
    let mut log = Log::open(dir)?;
    log.publish_again()?;
    let intent = log.intend(10 * to, None)?;
    assert_eq!(intent.to, 10 * to);
    log.seal(&votes(&log, from..to))
}

/// A log with a round of 300 votes behind its opening.
fn begun(name: &str) -> (Directory, std::path::PathBuf) {
    let directory = Directory::new(name);
    let dir = directory.path("log");
    Log::init(&dir, ORIGIN, &opened(0)).expect("created");
    seal(&dir, 11, 311).expect("sealed");
    (directory, dir)
}

fn assert_verified(dir: &Path, size: u64) {
    let vkey = fs::read_to_string(dir.join("vkey")).expect("read");
    let policy = Policy::parse(&format!("log {}\nquorum none\n", vkey.trim())).expect("a policy");
    let log = verify::log(&dir.join("public"), &policy, &[]).expect("readable");
    assert_eq!(log.findings.described(), [] as [String; 0]);
    assert_eq!(log.newest.expect("signed").checkpoint.size, size);
}

#[test]
fn a_log_is_verified_by_what_it_publishes() {
    let (_directory, dir) = begun("seal-verified");
    for (from, to, size) in [(311, 523, 513), (523, 524, 514), (524, 778, 768), (778, 779, 769)] {
        assert_eq!(seal(&dir, from, to).expect("sealed").size, size);
        assert_verified(&dir, size);
    }
    let log = Log::open(&dir).expect("opened");
    assert_eq!((log.state().horizon, log.state().tip.votes), (7_790, 768));
    assert!(!dir.join("public/tile/0/000.p").exists(), "parts of a full tile are removed");
    // What is removed from public/ is written again.
    fs::remove_dir_all(dir.join("public")).expect("removed");
    log.publish_again().expect("written");
    assert_verified(&dir, 769);
}

/// Runs the first `steps` of a round.
fn interrupted(log: &mut Log, ordered: &Ordered, steps: usize) {
    let intent = log.intend(100_000, None).expect("written");
    assert_eq!(intent, Intent { to: 100_000, sweep: None, tip: None });
    let mut tip = log.state().tip;
    for step in 1..steps {
        match step {
            1 => tip = log.append(ordered).expect("appended"),
            2 => log.read_back(&tip).expect("the same"),
            3 => log.record(tip).expect("written"),
            4 => log.sign(&tip).expect("signed"),
            5 => assert_eq!(log.commit(tip).expect("committed"), 301),
            6 => log.publish(301).expect("published"),
            _ => unreachable!("a round has {STEPS} steps"),
        }
    }
}

/// Does the round again that was interrupted, with all that a start does.
fn again(dir: &Path, numbers: std::ops::Range<u64>) -> Result<Files, SealError> {
    let mut log = Log::open(dir)?;
    log.publish_again()?;
    if log.state().horizon < 100_000 {
        log.intend(100_000, None)?;
        log.seal(&votes(&log, numbers))?;
    }
    drop(log);
    Ok(files(dir))
}

#[test]
fn a_round_that_is_interrupted_behind_any_step_comes_to_the_same_bytes() {
    let (_directory, dir) = begun("seal-steps");
    let before = files(&dir);
    let whole = again(&dir, 311..900).expect("sealed");
    for steps in 0..=STEPS {
        restore(&dir, &before);
        let mut log = Log::open(&dir).expect("opened");
        let ordered = votes(&log, 311..900);
        if steps > 0 {
            interrupted(&mut log, &ordered, steps);
        }
        drop(log);
        assert_eq!(again(&dir, 311..900).expect("sealed"), whole, "behind {steps} steps");
    }
    // Once it is written down what will be signed, that is signed, whatever rows were changed since.
    for (steps, recorded) in [(2, false), (3, false), (4, true), (5, true)] {
        let interrupt = || {
            restore(&dir, &before);
            let mut log = Log::open(&dir).expect("opened");
            let ordered = votes(&log, 311..900);
            interrupted(&mut log, &ordered, steps);
        };
        interrupt();
        let sealed = again(&dir, 311..899).expect("sealed");
        assert_eq!(sealed == whole, recorded, "behind {steps} steps");
        if !recorded {
            continue;
        }
        // Where the disk no longer has it, nothing else is signed instead.
        interrupt();
        let mut entries = fs::read(dir.join("entries")).expect("read");
        *entries.last_mut().expect("entries") ^= 1;
        fs::write(dir.join("entries"), entries).expect("written");
        let other = again(&dir, 311..899);
        assert!(matches!(other, Err(SealError::Refused(_))), "behind {steps} steps");
        let signed = files(&dir).keys().filter(|name| name.starts_with("checkpoints/")).count();
        assert_eq!(signed, if steps < 5 { 2 } else { 3 });
        assert_eq!(again(&dir, 311..900).expect("the rows as they were"), whole);
    }
}

/// An empty round moves the horizon and signs nothing.
#[test]
fn a_round_without_rows_signs_nothing() {
    let (_directory, dir) = begun("seal-empty");
    let before = files(&dir);
    let after = again(&dir, 0..0).expect("done");
    let changed: Vec<_> = after.iter().filter(|(name, it)| before.get(*name) != Some(it)).collect();
    assert_eq!(changed.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["state.json"]);
    assert_eq!(Log::open(&dir).expect("opened").state().horizon, 100_000);
}

#[test]
fn one_process_at_a_time() {
    let (directory, dir) = begun("seal-two");
    let log = Log::open(&dir).expect("opened");
    assert!(matches!(Log::open(&dir), Err(SealError::Busy(_))));
    drop(log);
    Log::open(&dir).expect("opened");
    // Nor is a log begun where one is, or below its name.
    let begun = Log::init(&dir, ORIGIN, &opened(0)).expect_err("there is one");
    assert!(begun.to_string().contains("not empty"), "{begun}");
    let name = Log::init(&directory.path("other"), "two words", &opened(0)).expect_err("no name");
    assert!(name.to_string().contains("two words"), "{name}");
    assert_eq!(fs::read_dir(directory.path("")).expect("read").count(), 1, "nothing is left");
}

#[test]
fn a_directory_that_was_restored_to_an_earlier_state_signs_nothing() {
    let (_directory, dir) = begun("seal-restored");
    let earlier = files(&dir);
    seal(&dir, 311, 400).expect("sealed");
    let later = files(&dir);
    let merged = |kept: &str| -> Files {
        let of_later = later.iter().filter(|(name, _)| name.starts_with(kept));
        earlier.iter().chain(of_later).map(|(name, it)| (name.clone(), it.clone())).collect()
    };
    for kept in ["public/checkpoint", "checkpoints/", "public/", "state.json", "hashes.0"] {
        restore(&dir, &merged(kept));
        let outcome = again(&dir, 311..350);
        let expected = match kept {
            // What lies behind the committed entries is of no matter.
            "hashes.0" => outcome.is_ok(),
            "state.json" => {
                matches!(outcome, Err(SealError::Unusable { .. } | SealError::Refused(_)))
            }
            _ => matches!(outcome, Err(SealError::Refused(_))),
        };
        assert!(expected, "{kept}: {:?}", outcome.err().map(|error| error.to_string()));
    }
    // Without the checkpoints that it signed, too.
    let mut files = later.clone();
    files.remove("checkpoints/390");
    restore(&dir, &files);
    assert!(matches!(again(&dir, 400..500), Err(SealError::Refused(_))));
    restore(&dir, &later);
    again(&dir, 400..500).expect("as it was");
}

#[test]
fn rows_that_were_there_already_are_sealed_first() {
    let directory = Directory::new("seal-existing");
    let dir = directory.path("log");
    Log::init(&dir, ORIGIN, &opened(5)).expect("created");
    let mut log = Log::open(&dir).expect("opened");
    assert_eq!(
        log.intend(500, None).expect("there"),
        Intent { to: 100, sweep: Some(5), tip: None }
    );
    log.seal(&votes(&log, 0..5)).expect("sealed");
    assert_eq!((log.state().horizon, log.state().tip.votes), (100, 5));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// As after a power failure, which keeps any part of what was not synced yet.
    #[test]
    fn whatever_a_crash_leaves_behind_the_committed_bytes_is_replaced(
        seed: u64, lengths in proptest::collection::vec(0.0..1.0_f64, 4)
    ) {
        let (_directory, dir) = begun(&format!("seal-torn-{seed:x}"));
        let before = files(&dir);
        let whole = again(&dir, 311..1_000).expect("sealed");
        restore(&dir, &before);
        let mut log = Log::open(&dir).expect("opened");
        let ordered = votes(&log, 311..1_000);
        interrupted(&mut log, &ordered, 2);
        drop(log);
        for (name, part) in ["entries", "entries.index", "hashes.0", "hashes.1"].into_iter().zip(lengths) {
            let (committed, mut content) = (before[name].len(), fs::read(dir.join(name)).expect("read"));
            content.truncate(committed + ((content.len() - committed) as f64 * part) as usize);
            let at = committed + seed as usize % (content.len() - committed).max(1);
            if let Some(byte) = content.get_mut(at) {
                *byte ^= 0x55;
            }
            fs::write(dir.join(name), content).expect("written");
        }
        prop_assert_eq!(again(&dir, 311..1_000).expect("sealed"), whole);
    }

    /// Between writing and reading back; the next start does the round again.
    #[test]
    fn a_bit_that_flips_on_the_disk_is_not_signed(seed: u64, file in 0..4_usize, bit in 0..8_u32) {
        let (_directory, dir) = begun(&format!("seal-flipped-{seed:x}"));
        let before = files(&dir);
        let whole = again(&dir, 311..1_000).expect("sealed");
        restore(&dir, &before);
        let mut log = Log::open(&dir).expect("opened");
        log.intend(100_000, None).expect("written");
        let ordered = votes(&log, 311..1_000);
        let tip = log.append(&ordered).expect("appended");
        let name = ["entries", "entries.index", "hashes.0", "hashes.1"][file];
        let (committed, mut content) = (before[name].len(), fs::read(dir.join(name)).expect("read"));
        let at = committed + seed as usize % (content.len() - committed);
        content[at] ^= 1 << bit;
        fs::write(dir.join(name), content).expect("written");
        prop_assert!(matches!(log.read_back(&tip), Err(SealError::Refused(_))), "{name} at {at}");
        drop(log);
        prop_assert_eq!(again(&dir, 311..1_000).expect("sealed"), whole);
    }

    /// In what is committed: it is refused, or what is published stays the same.
    #[test]
    fn a_bit_that_flips_in_a_committed_file_changes_nothing_that_is_signed(
        seed: u64, file in 0..9_usize, bit in 0..8_u32
    ) {
        let (_directory, dir) = begun(&format!("seal-committed-{seed:x}"));
        let before = files(&dir);
        let public = |files: Files| {
            files.into_iter().filter(|(name, _)| name.contains('/')).collect::<Files>()
        };
        let whole = public(again(&dir, 311..400).expect("sealed"));
        restore(&dir, &before);
        let name = [
            "state.json", "secret", "key", "vkey", "checkpoints/301", "entries", "entries.index",
            "hashes.0", "hashes.1",
        ][file];
        let mut content = before[name].clone();
        let at = seed as usize % content.len();
        content[at] ^= 1 << bit;
        fs::write(dir.join(name), content).expect("written");
        if let Ok(files) = again(&dir, 311..400) {
            // As where a hexadecimal digit became a capital.
            prop_assert_eq!(public(files), whole, "{} at {}", name, at);
        }
    }
}
