//! All leaves of a log in order, and the tree that they make.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD, Engine};

use super::Findings;
use super::folder::Folder;
use crate::model::tlog::checkpoint::Checkpoint;
use crate::model::tlog::tree::{Frontier, Hash, TILE_WIDTH, leaf_hash};

/// A leaf of the log.
pub(super) struct Leaf<'a> {
    pub index: u64,
    pub hash: Hash,
    /// Its content, which has this hash; `None` where the log is not opened, or the content has another hash.
    pub entry: Option<&'a [u8]>,
}

/// A root that the first leaves of the log have to have, and who says so.
pub(super) struct Expected {
    pub root: Hash,
    pub source: String,
}

/// What checkpoints require of the tree below `newest`. Those of another log, and those that are longer, are findings.
pub(super) fn expect<'a>(
    checkpoints: impl IntoIterator<Item = (String, &'a Checkpoint)>,
    newest: &Checkpoint,
    findings: &mut Findings,
) -> BTreeMap<u64, Vec<Expected>> {
    let mut expected = BTreeMap::<u64, Vec<Expected>>::new();
    for (source, Checkpoint { origin, size, root }) in checkpoints {
        if *origin != newest.origin {
            findings.add(format_args!("{source}: it is of another log, {origin}"));
        } else if *size > newest.size {
            findings.add(format_args!(
                "{source}: the log had {size} entries, and its newest checkpoint has {}",
                newest.size
            ));
        } else {
            expected.entry(*size).or_default().push(Expected { root: *root, source });
        }
    }
    expected
}

/// Reads all leaves below `newest` and recomputes its tree: the root, those of `expected` checkpoints by their sizes, and
/// every tile. Gives each leaf to `each`. Whether all of them could be read and lead to the root.
pub(super) fn walk(
    folder: &Folder,
    newest: &Checkpoint,
    expected: &BTreeMap<u64, Vec<Expected>>,
    findings: &mut Findings,
    mut each: impl FnMut(&Leaf<'_>, &mut Findings),
) -> bool {
    let (mut tree, mut levels, opened) =
        (Frontier::default(), Levels::default(), folder.is_opened());
    for number in 0..newest.size.div_ceil(TILE_WIDTH.into()) {
        let first = number * u64::from(TILE_WIDTH);
        let width = u32::try_from(newest.size - first).unwrap_or(TILE_WIDTH).min(TILE_WIDTH);
        let leaves = match folder.tile(0, number, width) {
            Ok(leaves) => leaves,
            Err(problem) => {
                findings.add(problem);
                return false;
            }
        };
        let mut entries = Vec::new();
        if opened {
            entries = folder.entries(number, width).unwrap_or_else(|problem| {
                findings.add(problem);
                Vec::new()
            });
        }
        for (index, (place, hash)) in (first..).zip(leaves.into_iter().enumerate()) {
            let entry = entries.get(place).map(Vec::as_slice);
            let is_its = entry.is_none_or(|entry| leaf_hash(entry) == hash);
            if !is_its {
                findings.add(format_args!("entry {index} is not the one that its leaf commits to"));
            }
            each(&Leaf { index, hash, entry: entry.filter(|_| is_its) }, findings);
            for completed in tree.push(hash).skip(1) {
                levels.add(folder, completed.level, completed.hash, findings);
            }
            for Expected { root, source } in expected.get(&tree.size()).into_iter().flatten() {
                compare(&tree, *root, source, findings);
            }
        }
    }
    levels.finish(folder, findings);
    compare(&tree, newest.root, "checkpoint", findings)
}

fn compare(tree: &Frontier, root: Hash, source: &str, findings: &mut Findings) -> bool {
    let found = tree.root();
    if found != root {
        let [found, root] = [found, root].map(|hash| BASE64_STANDARD.encode(hash));
        let size = tree.size();
        findings.add(format_args!(
            "{source}: its root for {size} entries is {root}, and the log's leaves make {found}"
        ));
    }
    found == root
}

/// Tiles above the leaves, of which each level's last one is not complete yet.
#[derive(Default)]
struct Levels(BTreeMap<u8, (u64, Vec<Hash>)>);

impl Levels {
    fn add(&mut self, folder: &Folder, level: u8, hash: Hash, findings: &mut Findings) {
        let (number, hashes) = self.0.entry(level).or_default();
        hashes.push(hash);
        if hashes.len() == TILE_WIDTH as usize {
            compare_tile(folder, level, *number, hashes, findings);
            hashes.clear();
            *number += 1;
        }
    }

    fn finish(self, folder: &Folder, findings: &mut Findings) {
        for (level, (number, hashes)) in self.0 {
            if !hashes.is_empty() {
                compare_tile(folder, level, number, &hashes, findings);
            }
        }
    }
}

fn compare_tile(folder: &Folder, level: u8, number: u64, hashes: &[Hash], findings: &mut Findings) {
    let width = u32::try_from(hashes.len()).unwrap_or(TILE_WIDTH);
    match folder.tile(level, number, width) {
        Ok(found) if found == hashes => {}
        Ok(_) => findings
            .add(format_args!("tile {number} of level {level} is not made of the log's leaves")),
        Err(problem) => findings.add(problem),
    }
}
