//! The entries that one checkpoint adds, in their order: votes ascending by their leaf hashes, so that the order says
//! nothing about when they arrived and the signer cannot choose it, then all others.

use super::entry::{Entry, VoteEntry};
use super::row::TooLong;
use super::tree::{Hash, leaf_hash};

/// The longest entry, in bytes: its length is stored in two.
pub const MAX_ENTRY: usize = u16::MAX as usize;

/// Bytes of an entry, with the hash of its leaf.
pub type Leaf = (Hash, Vec<u8>);

/// What is to be sealed together.
#[derive(Clone, Debug, Default)]
pub struct Segment {
    votes: Vec<Leaf>,
    others: Vec<Leaf>,
}

/// Entries in the order of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ordered {
    pub leaves: Vec<Leaf>,
    /// How many of them are votes.
    pub votes: u64,
    /// Votes that are left out, since the same entry is there already: one row, twice.
    pub repeated: u64,
}

/// The leaf of an entry.
///
/// # Errors
/// [`TooLong`] for an entry that does not fit into the log, such as a correction with a very long reason.
pub fn leaf(entry: &Entry) -> Result<Leaf, TooLong> {
    let bytes = entry.encode()?;
    if bytes.len() > MAX_ENTRY {
        return Err(TooLong { field: "entry", length: bytes.len(), limit: MAX_ENTRY });
    }
    Ok((leaf_hash(&bytes), bytes))
}

impl Segment {
    /// # Errors
    /// [`TooLong`]: no vote that this service counts is.
    pub fn add_vote(&mut self, vote: VoteEntry) -> Result<(), TooLong> {
        self.votes.push(leaf(&Entry::Vote(vote))?);
        Ok(())
    }

    /// Adds leaves of votes.
    pub fn add_votes(&mut self, leaves: impl IntoIterator<Item = Leaf>) {
        self.votes.extend(leaves);
    }

    /// Adds an entry that is not a vote; these keep their order.
    ///
    /// # Errors
    /// As [`leaf`].
    pub fn add(&mut self, entry: &Entry) -> Result<(), TooLong> {
        self.others.push(leaf(entry)?);
        Ok(())
    }

    /// The same for the same entries, in whatever order they were added.
    pub fn ordered(self) -> Ordered {
        let Self { votes: mut leaves, others } = self;
        let added = leaves.len();
        leaves.sort_unstable();
        leaves.dedup();
        let votes = leaves.len();
        leaves.extend(others);
        Ordered { leaves, votes: votes as u64, repeated: (added - votes) as u64 }
    }
}
