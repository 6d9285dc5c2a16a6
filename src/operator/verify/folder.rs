//! The folder of an exported log: `checkpoint`, `checkpoints/SIZE`, `tile/LEVEL/...` and, once the votes are opened,
//! `tile/entries/...` (c2sp.org/tlog-tiles).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{Findings, VerifyError, bytes};
use crate::model::tlog::checkpoint::Checkpoint;
use crate::model::tlog::note::Note;
use crate::model::tlog::policy::{Policy, Signed};
use crate::model::tlog::tree::{Hash, TILE_WIDTH, entries_path, tile_path};

/// The longest checkpoint, in bytes: its three lines and the signatures of a thousand witnesses.
pub(super) const MAX_NOTE: u64 = 1 << 20;
/// The longest file of entries, in bytes: each has a length of two bytes before it.
const MAX_ENTRIES: u64 = TILE_WIDTH as u64 * (2 + u16::MAX as u64);

/// How many hashes or entries of a file are wanted, and how many it has.
struct Width {
    needed: u32,
    there: u32,
}

pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The newest checkpoint, which has to be signed as the policy says. A finding, and `None`, where it is not.
    pub fn newest(
        &self,
        policy: &Policy,
        findings: &mut Findings,
    ) -> Result<Option<Signed>, VerifyError> {
        let signed = signed(&self.path.join("checkpoint"), policy, findings)?;
        if signed.as_ref().is_some_and(|it| !it.quorum) {
            findings.add("checkpoint: too few witnesses of the policy signed it");
        }
        Ok(signed)
    }

    /// All checkpoints that the log kept, by their sizes. Each has to be signed by a log of the policy.
    pub fn checkpoints(
        &self,
        policy: &Policy,
        findings: &mut Findings,
    ) -> Result<BTreeMap<u64, Signed>, VerifyError> {
        let (mut found, path) = (BTreeMap::new(), self.path.join("checkpoints"));
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>),
        };
        for entry in entries.map_err(|error| VerifyError::Unreadable { path, error })? {
            let (name, path) = (entry.file_name(), entry.path());
            let Some(signed) = signed(&path, policy, findings)? else { continue };
            let size = signed.checkpoint.size;
            if name.to_str() == Some(size.to_string().as_str()) {
                found.insert(size, signed);
            } else {
                findings.add(format_args!("{} is of {size} entries", path.display()));
            }
        }
        Ok(found)
    }

    /// The hashes of a tile.
    pub fn tile(&self, level: u8, number: u64, width: u32) -> Result<Vec<Hash>, String> {
        let (path, width) = self.whole_or_part(width, |width| tile_path(level, number, width));
        let content = self.read(&path, u64::from(width.there) * 32)?;
        let (hashes, rest) = content.as_chunks();
        if hashes.len() == width.there as usize && rest.is_empty() {
            Ok(hashes[..width.needed as usize].to_vec())
        } else {
            Err(format!("{path} has {} bytes instead of {}", content.len(), width.there * 32))
        }
    }

    /// Whether the log's entries were exported, too.
    pub fn is_opened(&self) -> bool {
        self.path.join("tile/entries").exists()
    }

    /// The entries below a tile of leaves.
    pub fn entries(&self, number: u64, width: u32) -> Result<Vec<Vec<u8>>, String> {
        let (path, width) = self.whole_or_part(width, |width| entries_path(number, width));
        let content = self.read(&path, MAX_ENTRIES)?;
        let (mut rest, mut entries) = (content.as_slice(), Vec::new());
        while let Some((length, more)) = rest.split_first_chunk() {
            let entry = more.split_at_checked(u16::from_be_bytes(*length).into());
            let (entry, more) = entry.ok_or_else(|| format!("{path} ends within an entry"))?;
            entries.push(entry.to_vec());
            rest = more;
        }
        if rest.is_empty() && entries.len() == width.there as usize {
            entries.truncate(width.needed as usize);
            Ok(entries)
        } else {
            Err(format!("{path} has {} entries instead of {}", entries.len(), width.there))
        }
    }

    /// The file of a tile of this width, or of the full one where that part is gone: a log may remove the parts of a
    /// tile that has become full (c2sp.org/tlog-tiles, "Partial Tiles").
    fn whole_or_part(&self, needed: u32, path: impl Fn(u32) -> String) -> (String, Width) {
        let part = path(needed);
        let whole = path(TILE_WIDTH);
        if !self.path.join(&part).exists() && self.path.join(&whole).exists() {
            (whole, Width { needed, there: TILE_WIDTH })
        } else {
            (part, Width { needed, there: needed })
        }
    }

    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, String> {
        let mut content = Vec::new();
        File::open(self.path.join(path))
            // One more, so that a longer file is not taken for one of the right length.
            .and_then(|file| file.take(limit + 1).read_to_end(&mut content))
            .map_err(|error| format!("cannot read {path}: {error}"))?;
        Ok(content)
    }
}

/// Checkpoints that the log kept, with their files.
pub(super) fn named(kept: &BTreeMap<u64, Signed>) -> impl Iterator<Item = (String, &Checkpoint)> {
    kept.iter().map(|(size, signed)| (format!("checkpoints/{size}"), &signed.checkpoint))
}

/// The checkpoint in a file. A finding, and `None`, where no log of the policy signed it.
pub(super) fn signed(
    path: &Path,
    policy: &Policy,
    findings: &mut Findings,
) -> Result<Option<Signed>, VerifyError> {
    let content = bytes(path, MAX_NOTE)?;
    let read = Note::parse(&content).map_err(Into::into).and_then(|note| policy.read(&note));
    match read {
        Ok(signed) => Ok(Some(signed)),
        Err(error) => {
            findings.add(format_args!("{}: {error}", path.display()));
            Ok(None)
        }
    }
}
