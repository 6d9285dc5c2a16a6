//! Any bytes as a message's routing key and properties. Run by `script/fuzz properties`.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The ordinary tests check the same, on the corpus.
#[path = "../../tests/fuzz/properties.rs"]
mod check;

fuzz_target!(|input: &[u8]| {
    // Read in pieces whose sizes follow from the input, so that a failure repeats itself.
    let mut sizes = input.iter().rev().cycle();
    let _marked = check::check(input, || sizes.next().map_or(1, |size| usize::from(*size) + 1));
});
