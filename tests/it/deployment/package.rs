//! The Debian package's list of files; script/deb --check looks into the package itself.

use std::path::Path;

use super::{ROOT, read};

#[test]
fn every_file_that_goes_into_the_package_is_there() {
    let manifest = read("Cargo.toml");
    let (_, assets) = manifest.split_once("\nassets = [\n").expect("a list of files");
    let (assets, _) = assets.split_once("\n]").expect("its end");
    let mut seen = 0;
    for line in assets.lines() {
        let line = line.trim().trim_end_matches(',');
        if line.starts_with('#') {
            continue;
        }
        let [source, target, mode]: [String; 3] =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(!target.starts_with('/') && ["644", "755"].contains(&mode.as_str()), "{line}");
        seen += 1;
        if source.starts_with("target/") {
            continue;
        }
        let (folder, name) = source.rsplit_once('/').unwrap_or(("", &source));
        let there = match name.strip_prefix('*') {
            None => Path::new(ROOT).join(&source).exists(),
            Some(ending) => std::fs::read_dir(Path::new(ROOT).join(folder))
                .expect("a folder")
                .any(|entry| entry.expect("an entry").path().to_string_lossy().ends_with(ending)),
        };
        assert!(there, "{source}");
    }
    assert!(seen >= 10, "{seen} files");
    for wanted in
        ["roles.sql", "CHANGELOG.md", "docs/*.md", "deploy/prometheus/*.yml", "pipeline.toml"]
    {
        assert!(assets.contains(wanted), "{wanted}");
    }
}
