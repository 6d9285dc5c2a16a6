//! The Debian package's list of files; script/deb --check looks into the package itself.

use std::path::Path;

use super::{ROOT, read};
use crate::documents::Document;

/// Source, target, mode.
fn assets() -> Vec<[String; 3]> {
    let manifest = read("Cargo.toml");
    let (_, assets) = manifest.split_once("\nassets = [\n").expect("a list of files");
    let (assets, _) = assets.split_once("\n]").expect("its end");
    assets
        .lines()
        .map(|line| line.trim().trim_end_matches(','))
        .filter(|line| !line.starts_with('#'))
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

#[test]
fn every_file_that_goes_into_the_package_is_there() {
    let assets = assets();
    for [source, target, mode] in &assets {
        assert!(!target.starts_with('/') && ["644", "755"].contains(&mode.as_str()), "{source}");
        if source.starts_with("target/") {
            continue;
        }
        let (folder, name) = source.rsplit_once('/').unwrap_or(("", source));
        let there = match name.strip_prefix('*') {
            None => Path::new(ROOT).join(source).exists(),
            Some(ending) => std::fs::read_dir(Path::new(ROOT).join(folder))
                .expect("a folder")
                .any(|entry| entry.expect("an entry").path().to_string_lossy().ends_with(ending)),
        };
        assert!(there, "{source}");
    }
    assert!(assets.len() >= 10, "{} files", assets.len());
    for wanted in [
        "roles.sql",
        "CHANGELOG.md",
        "docs/*.md",
        "deploy/postgres/throughput.conf",
        "deploy/prometheus/*.yml",
        "pipeline.toml",
    ] {
        assert!(assets.iter().any(|[source, ..]| source == wanted), "{wanted}");
    }
}

/// Beside the README, as they are in the repository.
#[test]
fn what_the_readme_links_to_is_in_the_package() {
    let documents = "usr/share/doc/vote-aggregator/";
    let assets = assets();
    let readme = Document::read("README.md");
    let links = readme.links().into_iter().filter_map(|link| link.split('#').next());
    let mut seen = 0;
    for link in links.filter(|link| !link.is_empty()) {
        seen += 1;
        let folder =
            link.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
        let packed = assets.iter().any(|[source, target, _]| {
            let named = match source.split_once('*') {
                None => source == link,
                Some((start, end)) => link.starts_with(start) && link.ends_with(end),
            };
            named && *target == format!("{documents}{folder}")
        });
        assert!(packed, "the README links to {link}, which the package does not have beside it");
    }
    assert!(seen >= 8, "{seen} links");
}
