//! Any bytes as a message. Run by `script/fuzz decode`.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The ordinary tests check the same, on the corpus.
#[path = "../../tests/fuzz/decode.rs"]
mod check;

fuzz_target!(|body: &[u8]| check::check(body));
