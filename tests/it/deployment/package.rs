//! The Debian package's list of files; script/deb --check looks into the package itself.

use std::path::Path;

use crate::documents::Document;
use crate::support::repository::{ROOT, files_below, read};

/// Source, target, mode.
fn assets() -> Vec<[String; 3]> {
    let manifest = read("Cargo.toml");
    let (_, assets) = manifest.split_once("\nassets = [\n").expect("a list of files");
    let (assets, _) = assets.split_once("\n]").expect("its end");
    let lines = assets.lines().map(|line| line.trim().trim_end_matches(','));
    lines
        .filter(|line| !line.starts_with('#'))
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

/// Whether a source of the list, which may have an asterisk, means this file.
fn means(source: &str, file: &str) -> bool {
    match source.split_once('*') {
        None => source == file,
        Some((start, end)) => file.starts_with(start) && file.ends_with(end),
    }
}

#[test]
fn every_file_that_goes_into_the_package_exists() {
    for [source, target, mode] in &assets() {
        assert!(!target.starts_with('/') && ["644", "755"].contains(&mode.as_str()), "{source}");
        let folder = source.split('/').next().unwrap_or_default();
        let exists = folder == "target"
            || Path::new(ROOT).join(source).exists()
            || files_below(folder).iter().any(|file| means(source, file));
        assert!(exists, "{source}");
    }
}

/// Beside the README, as they are in the repository.
#[test]
fn what_the_readme_links_to_is_in_the_package() {
    let assets = assets();
    let readme = Document::read("README.md");
    let links = readme.links().into_iter().filter_map(|link| link.split('#').next());
    let links: Vec<&str> = links.filter(|link| !link.is_empty()).collect();
    for link in &links {
        let folder = link.rsplit_once('/').map_or("", |(folder, _)| folder);
        let target = format!("usr/share/doc/vote-aggregator/{folder}");
        let packed = assets.iter().any(|[source, to, _]| {
            means(source, link) && to.trim_end_matches('/') == target.trim_end_matches('/')
        });
        assert!(packed, "the README links to {link}, which the package does not have beside it");
    }
    assert!(links.len() >= 8, "{links:?}");
}
