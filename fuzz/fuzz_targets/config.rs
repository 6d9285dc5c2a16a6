//! Any text as `pipeline.toml`, `.env`, variables and flags. Run by `script/fuzz config`.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

// The ordinary tests check the same, on the shipped configuration.
#[path = "../../tests/fuzz/config.rs"]
mod check;

static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    // `script/fuzz` names a directory that it removes.
    let root = std::env::var_os("FUZZ_DIR").expect("FUZZ_DIR: run script/fuzz config");
    let dir = PathBuf::from(root).join(std::process::id().to_string());
    std::fs::create_dir_all(&dir).expect("a directory can be made");
    dir
});

fuzz_target!(|input: &[u8]| check::check(input, &DIR));
