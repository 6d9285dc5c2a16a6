//! The log's hashes and entries in files that only grow: one file for each level of tiles, 32 bytes a hash, so that a
//! round needs few fsyncs; entries behind their lengths, and the place of each 256th.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{SealError, Tip, failed};
use crate::model::tlog::segment::Ordered;
use crate::model::tlog::tree::{Frontier, Hash, Levels, TILE_WIDTH, leaf_hash};
use crate::operator::files::PRIVATE;

/// Bytes of a hash.
const HASH: u64 = 32;
/// Entries for each place in `entries.index`.
const INDEXED: u64 = TILE_WIDTH as u64;
/// Bytes of a place.
const PLACE: u64 = 8;
/// Bytes of an entry's length.
const LENGTH: u64 = 2;
/// Levels of tiles that a log of 2^64 leaves could have.
const MAX_LEVELS: u8 = 8;

/// A file, and its path for messages.
struct Named {
    path: PathBuf,
    file: File,
}

pub(super) struct Flat {
    dir: PathBuf,
    entries: Named,
    index: Named,
    levels: Vec<Named>,
}

/// Hashes that a level of tiles has in a tree of `size` leaves.
pub(super) const fn hashes_in(level: u8, size: u64) -> u64 {
    size >> (8 * level as u32)
}

impl Named {
    fn open(dir: &Path, name: &str) -> Result<Self, SealError> {
        let path = dir.join(name);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(PRIVATE);
        let file = file.open(&path).map_err(failed("open", &path))?;
        Ok(Self { path, file })
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), SealError> {
        self.file.read_exact_at(buffer, offset).map_err(failed("read", &self.path))
    }

    /// Writes at `offset` what follows there.
    fn write(&self, content: &[u8], offset: u64) -> Result<(), SealError> {
        self.file
            .write_all_at(content, offset)
            .and_then(|()| self.file.sync_data())
            .map_err(failed("write", &self.path))
    }

    /// Removes what an interrupted round left behind `length`.
    fn cut(&self, length: u64) -> Result<(), SealError> {
        let found = self.file.metadata().map_err(failed("read", &self.path))?.len();
        if found < length {
            let problem = format!(
                "it has {found} bytes, and the log needs {length}: it was truncated or is of another log"
            );
            return Err(SealError::unusable(&self.path, problem));
        }
        if found > length {
            self.file.set_len(length).map_err(failed("truncate", &self.path))?;
        }
        Ok(())
    }
}

impl Flat {
    pub fn open(dir: &Path) -> Result<Self, SealError> {
        let (entries, index) = (Named::open(dir, "entries")?, Named::open(dir, "entries.index")?);
        let mut levels = Vec::new();
        // Each level's file is created with its first hash; the first one is always there.
        while levels.is_empty() || dir.join(format!("hashes.{}", levels.len())).exists() {
            levels.push(Named::open(dir, &format!("hashes.{}", levels.len()))?);
        }
        Ok(Self { dir: dir.to_owned(), entries, index, levels })
    }

    /// Removes everything behind `tip`.
    pub fn cut(&self, tip: &Tip) -> Result<(), SealError> {
        for (level, file) in (0..).zip(&self.levels) {
            file.cut(HASH * hashes_in(level, tip.size))?;
        }
        if hashes_in(u8::try_from(self.levels.len()).unwrap_or(MAX_LEVELS), tip.size) > 0 {
            let path = self.dir.join(format!("hashes.{}", self.levels.len()));
            return Err(SealError::unusable(&path, "it is not there"));
        }
        self.index.cut(PLACE * tip.size.div_ceil(INDEXED))?;
        self.entries.cut(tip.bytes)
    }

    /// Appends behind `tip`, whose tree is `tree`, after [`Flat::cut`]. On return it is on the disk.
    pub fn append(
        &mut self,
        tip: &Tip,
        mut tree: Frontier,
        ordered: &Ordered,
    ) -> Result<Tip, SealError> {
        let (mut entries, mut places) = (Vec::new(), Vec::new());
        let mut levels: Vec<Vec<u8>> = Vec::new();
        for (hash, entry) in &ordered.leaves {
            if tree.size().is_multiple_of(INDEXED) {
                places.extend((tip.bytes + entries.len() as u64).to_be_bytes());
            }
            let length = u16::try_from(entry.len()).expect("model::tlog::segment limits them");
            entries.extend(length.to_be_bytes());
            entries.extend(entry);
            for completed in tree.push(*hash) {
                let level = usize::from(completed.level);
                levels.resize(levels.len().max(level + 1), Vec::new());
                levels[level].extend(completed.hash);
            }
        }
        self.entries.write(&entries, tip.bytes)?;
        self.index.write(&places, PLACE * tip.size.div_ceil(INDEXED))?;
        for (level, hashes) in (0_u8..).zip(levels) {
            if usize::from(level) == self.levels.len() {
                self.levels.push(Named::open(&self.dir, &format!("hashes.{level}"))?);
                let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
                synced.map_err(failed("write", &self.dir))?;
            }
            self.levels[usize::from(level)].write(&hashes, HASH * hashes_in(level, tip.size))?;
        }
        Ok(Tip {
            size: tree.size(),
            root: tree.root(),
            votes: tip.votes + ordered.votes,
            bytes: tip.bytes + entries.len() as u64,
        })
    }

    /// Reads what [`Flat::append`] wrote behind `tip`, whose tree is `tree`, and computes its hashes anew from the
    /// entries. `None`: what is on the disk is not a tree of these entries.
    pub fn read_back(
        &self,
        tip: &Tip,
        mut tree: Frontier,
        written: &Tip,
    ) -> Result<Option<Frontier>, SealError> {
        let (before, mut place) = (tree.size(), tip.bytes);
        let mut levels: Vec<Vec<Hash>> = Vec::new();
        let length =
            usize::try_from(written.bytes - tip.bytes).expect("it was written from memory");
        let mut content = vec![0; length];
        self.entries.read(&mut content, place)?;
        let mut rest = content.as_slice();
        while tree.size() < written.size {
            if tree.size().is_multiple_of(INDEXED) && self.indexed(tree.size() / INDEXED)? != place
            {
                return Ok(None);
            }
            let Some((length, more)) = rest.split_first_chunk() else { return Ok(None) };
            let length = u16::from_be_bytes(*length);
            let Some((entry, more)) = more.split_at_checked(length.into()) else {
                return Ok(None);
            };
            rest = more;
            place += LENGTH + u64::from(length);
            for completed in tree.push(leaf_hash(entry)) {
                let level = usize::from(completed.level);
                levels.resize(levels.len().max(level + 1), Vec::new());
                levels[level].push(completed.hash);
            }
        }
        for (level, expected) in (0_u8..).zip(levels) {
            if self.hashes(level, hashes_in(level, before), expected.len())? != expected {
                return Ok(None);
            }
        }
        Ok(rest.is_empty().then_some(tree))
    }

    /// Hashes of a level, which has to have them.
    pub fn hashes(&self, level: u8, first: u64, count: usize) -> Result<Vec<Hash>, SealError> {
        let Some(file) = self.levels.get(usize::from(level)) else {
            let path = self.dir.join(format!("hashes.{level}"));
            return Err(failed("read", &path)(io::ErrorKind::NotFound.into()));
        };
        let mut content = vec![0; count * HASH as usize];
        file.read(&mut content, HASH * first)?;
        Ok(content.as_chunks().0.to_vec())
    }

    /// Where the entry with the number 256 times this one begins.
    fn indexed(&self, number: u64) -> Result<u64, SealError> {
        let mut place = [0; PLACE as usize];
        self.index.read(&mut place, PLACE * number)?;
        Ok(u64::from_be_bytes(place))
    }
}

impl Levels for Flat {
    type Error = SealError;

    fn read(&self, level: u8, first: u64, count: u32) -> Result<Vec<Hash>, SealError> {
        self.hashes(level, first, count as usize)
    }
}
