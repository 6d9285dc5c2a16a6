//! The mistakes that `script/planted` plants.

use std::process::Command;

/// Catching them takes an hour; that they still fit the code takes a moment.
#[test]
fn every_planted_mistake_applies_and_says_what_catches_it() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = std::fs::read_dir(root.join("tests/planted")).expect("a folder of patches");
    let patches = folder.map(|entry| entry.expect("an entry").path());
    let patches: Vec<_> =
        patches.filter(|path| path.extension().is_some_and(|kind| kind == "patch")).collect();
    let table = include_str!("../planted/README.md");
    let rows =
        table.lines().filter(|line| line.starts_with("| ") && line[2..4].parse::<u8>().is_ok());
    assert_eq!(patches.len(), rows.count(), "patches, and rows in their table");
    assert!(patches.len() >= 20, "{} patches", patches.len());
    for patch in patches {
        let text = std::fs::read_to_string(&patch).expect("readable");
        assert!(text.contains("\n# Caught by: "), "{}", patch.display());
        let checked = Command::new("git")
            .args(["apply", "--check"])
            .arg(&patch)
            .current_dir(root)
            .output()
            .expect("git runs");
        let told = String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success(), "{}: {told}", patch.display());
    }
}
