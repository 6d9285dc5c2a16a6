//! The Merkle tree of RFC 6962. Its arithmetic is that of `tlog_tiles`; here is only where hashes are kept: in memory
//! for whoever appends, and in tiles for whoever proves.
//!
//! `tlog_tiles::TileHashReader` is forbidden (clippy.toml): it accepts tiles that it did not check (CVE-2026-56865).

use std::collections::BTreeMap;
use std::fmt::Display;

use tlog_tiles::{
    Error, HashReader, Tile, check_record, check_tree, node_hash, prove_record, prove_tree,
    record_hash, split_stored_hash_index, stored_hash_index, stored_hashes_for_record_hash,
    tree_hash,
};

/// SHA-256 of a leaf or a node.
pub type Hash = [u8; 32];

/// Levels of the tree in a tile: one holds up to 256 hashes, and the hash of a full one is in the next level's.
const TILE_LEVELS: u8 = 8;
/// Hashes in a full tile.
pub const TILE_WIDTH: u32 = 1 << TILE_LEVELS;

/// The hash of a leaf with this content.
pub fn leaf_hash(entry: &[u8]) -> Hash {
    record_hash(entry).0
}

/// A tree to which leaves are appended: of its hashes, only those of its complete subtrees, at most 64.
#[derive(Clone, Debug, Default)]
pub struct Frontier {
    size: u64,
    /// By their index in the order in which `tlog_tiles` numbers all hashes of a tree.
    subtrees: BTreeMap<u64, Hash>,
}

/// A hash of a tile that an appended leaf completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileHash {
    /// Of tiles: 0 has the leaves.
    pub level: u8,
    /// Its place among all hashes of the level.
    pub number: u64,
    pub hash: Hash,
}

/// A proof that does not lead to the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it does not lead to the checkpoint's root")]
pub struct NotProven;

/// A proof that cannot be made: hashes that cannot be read, or places that are not in the tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoProof(String);

/// Hashes as tiles store them: each eighth level of the tree, from the leaves up.
pub trait Levels {
    /// Why they cannot be read.
    type Error: Display;

    /// `count` hashes, at most 256, of a level of tiles, from the `first` on.
    ///
    /// # Errors
    /// Where there are fewer, too.
    fn read(&self, level: u8, first: u64, count: u32) -> Result<Vec<Hash>, Self::Error>;
}

impl Frontier {
    /// Leaves.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The frontier of the first `size` leaves of a tree whose hashes are stored.
    ///
    /// # Errors
    /// [`NoProof`]: hashes that cannot be read, or are not there.
    pub fn load(levels: &impl Levels, size: u64) -> Result<Self, NoProof> {
        let (mut subtrees, mut first) = (BTreeMap::new(), 0);
        for level in (0..u64::BITS as u8).rev().filter(|level| size >> level & 1 == 1) {
            let index = stored_hash_index(level, first >> level);
            for hash in proof(Tiled(levels).read_hashes(&[index]))? {
                subtrees.insert(index, hash);
            }
            first += 1 << level;
        }
        Ok(Self { size, subtrees })
    }

    /// Appends a leaf by its hash. Returns the hashes that it adds to tiles: its own, and those of tiles that it fills.
    pub fn push(&mut self, leaf: Hash) -> impl Iterator<Item = TileHash> + use<> {
        let leaf = tlog_tiles::Hash(leaf);
        let completed = stored_hashes_for_record_hash(self.size, leaf, &*self)
            .expect("a frontier has the hashes of its complete subtrees");
        let levels = || (0u8..).zip(completed.iter());
        // Those on whose right a subtree is completed become part of the next larger one.
        for (level, _) in levels().skip(1) {
            let left = (self.size >> (level - 1)) - 1;
            self.subtrees.remove(&stored_hash_index(level - 1, left));
        }
        if let Some((level, top)) = levels().last() {
            self.subtrees.insert(stored_hash_index(level, self.size >> level), top.0);
        }
        let size = self.size;
        self.size += 1;
        (0u8..).zip(completed).step_by(TILE_LEVELS.into()).map(move |(level, hash)| TileHash {
            level: level / TILE_LEVELS,
            number: size >> level,
            hash: hash.0,
        })
    }

    pub fn root(&self) -> Hash {
        tree_hash(self.size, self).expect("a frontier has the hashes of its complete subtrees").0
    }
}

impl HashReader for Frontier {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<tlog_tiles::Hash>, Error> {
        let hash = |index| self.subtrees.get(index).copied().map(tlog_tiles::Hash);
        indexes.iter().map(hash).collect::<Option<_>>().ok_or(Error::IndexesNotInTree)
    }
}

/// Reads any hash of a tree from its tiles. It does not check them: they have to be the caller's own.
struct Tiled<'a, L>(&'a L);

impl<L: Levels> HashReader for Tiled<'_, L> {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<tlog_tiles::Hash>, Error> {
        let hash = |&index: &u64| {
            let (level, number) = split_stored_hash_index(index);
            let above = level % TILE_LEVELS;
            let read = self.0.read(level / TILE_LEVELS, number << above, 1 << above);
            let read = read.map_err(|error| Error::InvalidInput(error.to_string()))?;
            let mut hashes: Vec<_> = read.into_iter().map(tlog_tiles::Hash).collect();
            if hashes.len() != 1 << above {
                return Err(Error::IndexesNotInTree);
            }
            while hashes.len() > 1 {
                hashes = hashes.chunks(2).map(|pair| node_hash(pair[0], pair[1])).collect();
            }
            hashes.pop().ok_or(Error::IndexesNotInTree)
        };
        indexes.iter().map(hash).collect()
    }
}

/// The hashes that prove that the leaf at `index` is in the tree of `size` leaves, from the leaf up.
///
/// # Errors
/// [`NoProof`]; also for an index outside the tree.
pub fn prove_inclusion(levels: &impl Levels, size: u64, index: u64) -> Result<Vec<Hash>, NoProof> {
    proof(prove_record(size, index, &Tiled(levels)))
}

/// The hashes that prove that the first `before` leaves of the tree of `size` are a tree of their own.
///
/// # Errors
/// [`NoProof`]; also for sizes that are not `1 <= before <= size`.
pub fn prove_consistency(
    levels: &impl Levels,
    size: u64,
    before: u64,
) -> Result<Vec<Hash>, NoProof> {
    proof(prove_tree(size, before, &Tiled(levels)))
}

fn proof(made: Result<Vec<tlog_tiles::Hash>, Error>) -> Result<Vec<Hash>, NoProof> {
    let hashes = made.map_err(|error| NoProof(error.to_string()))?;
    Ok(hashes.into_iter().map(|hash| hash.0).collect())
}

/// Checks that `leaf` is at `index` in the tree of `size` leaves with this root.
///
/// # Errors
/// [`NotProven`]
pub fn check_inclusion(
    proof: &[Hash],
    (size, root): (u64, Hash),
    (index, leaf): (u64, Hash),
) -> Result<(), NotProven> {
    let [root, leaf] = [root, leaf].map(tlog_tiles::Hash);
    check_record(&theirs(proof), size, root, index, leaf).map_err(|_| NotProven)
}

/// Checks that the tree of `size` leaves with this root begins with the one `before`.
///
/// # Errors
/// [`NotProven`]
pub fn check_consistency(
    proof: &[Hash],
    (size, root): (u64, Hash),
    before: (u64, Hash),
) -> Result<(), NotProven> {
    let [root, old] = [root, before.1].map(tlog_tiles::Hash);
    check_tree(&theirs(proof), size, root, before.0, old).map_err(|_| NotProven)
}

fn theirs(proof: &[Hash]) -> Vec<tlog_tiles::Hash> {
    proof.iter().copied().map(tlog_tiles::Hash).collect()
}

/// The path of a tile of hashes, as C2SP tlog-tiles names it; `width` is less than 256 for the last tile of a level.
pub fn tile_path(level: u8, number: u64, width: u32) -> String {
    let path = Tile::new(TILE_LEVELS, level, number, width, false).path();
    path.replacen("tile/8/", "tile/", 1)
}

/// The path of the entries whose leaf hashes are in the tile of level 0 with this number.
pub fn entries_path(number: u64, width: u32) -> String {
    let path = Tile::new(TILE_LEVELS, 0, number, width, true).path();
    path.replacen("tile/8/data/", "tile/entries/", 1)
}
