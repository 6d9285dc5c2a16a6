//! A tamper-evident log of counted votes: what its entries commit to, its Merkle tree (RFC 6962), its checkpoints and
//! signatures (C2SP signed notes), who has to have signed, and proofs that an entry is in it.
//!
//! Architecture invariant: pure. It reads no file, no clock and no randomness; hashes that are stored somewhere come
//! through [`tree::Levels`]. So that a second program can verify a log, every format here is documented in docs/log.md.

pub mod checkpoint;
pub mod entry;
pub mod note;
pub mod policy;
pub mod proof;
pub mod row;
pub mod segment;
pub mod tree;

#[cfg(test)]
mod tests;
