//! What `script/fuzz` checks on millions of inputs, on those that are kept: so the checks stay
//! correct, and an input that fuzzing finds becomes a test by a line in the corpus.

mod config;
#[path = "../shared/corpus.rs"]
mod corpus;
mod decode;
mod hostile;
mod properties;
mod seeds;

use std::fs;
use std::path::PathBuf;

use vote_aggregator::model::vote;

use self::seeds::Seed;

/// Checks each seed, and `copies(length)` damaged copies of it.
fn check_all(seeds: &[Seed], copies: impl Fn(usize) -> usize, mut check: impl FnMut(&[u8])) {
    let mut random = fastrand::Rng::with_seed(1);
    for (_, seed) in seeds {
        check(seed);
        for _ in 0..copies(seed.len()) {
            let mut seed = seed.clone();
            let (_, other) = &seeds[random.usize(..seeds.len())];
            damage(&mut seed, other, &mut random);
            check(&seed);
        }
    }
}

#[test]
fn the_decoder_holds_what_is_checked_of_it_on_the_corpus_and_on_damaged_copies() {
    check_all(&seeds::messages(), |length| if length <= 1_000 { 50 } else { 0 }, decode::check);
}

/// Replaces a few bytes of `body`, or a part of it by a part of `other`.
fn damage(body: &mut Vec<u8>, other: &[u8], random: &mut fastrand::Rng) {
    let at = random.usize(..=body.len());
    if random.bool() {
        let from = random.usize(..=other.len().min(1_000));
        let to = random.usize(from..=other.len().min(1_000));
        body.splice(at.., other[from..to].iter().copied());
    } else {
        for byte in body.iter_mut().skip(at).take(random.usize(1..4)) {
            *byte = random.u8(..);
        }
    }
}

/// A stack has some megabytes; a decoder that recurses would need a stack frame for each bracket.
#[test]
fn a_hundred_thousand_brackets_are_no_stack_overflow() {
    let valid = r#"{"vote_hash":"h","citizen_id":"c","law_id":"l","choice":"oui","timestamp":"2025-11-14T12:00:00Z","deep":"#;
    let depth = 100_000;
    for (open, inner, close) in [("[", "", "]"), ("{\"k\":", "1", "}"), ("[{\"k\":", "1", "}]")] {
        let deep = [&open.repeat(depth), inner, &close.repeat(depth)].concat();
        let decoded = |body: &str| vote::decode(body.as_bytes(), usize::MAX);
        assert!(decoded(&format!("{valid}{deep}}}")).is_ok(), "ignored, {depth} deep");
        assert!(decoded(&format!("{valid}{}}}", open.repeat(depth))).is_err(), "never closed");
        assert!(decoded(&valid.replace("\"oui\"", &deep)).is_err());
        assert!(decoded(&deep).is_err());
        assert!(decoded(&open.repeat(depth)).is_err());
    }
}

#[test]
fn no_configuration_panics_or_shows_a_password() {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fuzz-config");
    fs::create_dir_all(&dir).expect("a directory can be made");
    check_all(&seeds::configurations(), |_| 2, |seed| config::check(seed, &dir));
}

#[test]
fn the_client_can_parse_what_passes_the_screen() {
    let mut read = fastrand::Rng::with_seed(4);
    let copies = |length| if length < 1_000 { 300 } else { 3 };
    check_all(&seeds::properties(), copies, |seed| {
        properties::check(seed, || read.usize(1..70_000));
    });
}

#[test]
fn the_corpus_of_properties_is_marked_as_it_says() {
    let corpus = hostile::corpus();
    assert!(corpus.len() >= 20);
    for (entry, (name, input)) in corpus.into_iter().zip(seeds::properties()) {
        assert_eq!(properties::check(&input, || 7), !entry.is_counted, "{name}");
    }
}

#[test]
fn properties_of_any_length_leave_a_message_that_the_client_takes() {
    for (length, marked) in [(200_000, false), (500_000, false), (600_000, true), (5_000_000, true)]
    {
        let input = [&[3][..], b"key", &hostile::long_header(length)].concat();
        assert_eq!(properties::check(&input, || 30_000), marked, "{length}");
    }
}

/// Writes the seeds of all targets, for `script/fuzz`.
#[test]
#[ignore = "writes files: script/fuzz asks for it"]
fn write_seeds() {
    let root = PathBuf::from(std::env::var_os("FUZZ_SEEDS").expect("FUZZ_SEEDS names a directory"));
    for (target, seeds) in [
        ("decode", seeds::messages()),
        ("config", seeds::configurations()),
        ("properties", seeds::properties()),
    ] {
        let dir = root.join(target);
        fs::create_dir_all(&dir).expect("a directory can be made");
        for (name, seed) in seeds {
            fs::write(dir.join(name), seed).expect("a seed can be written");
        }
    }
}
