//! Checkpoints (c2sp.org/tlog-checkpoint): how many leaves a log has, and the root of its tree.

use std::fmt;

use base64::prelude::{BASE64_STANDARD, Engine};

use super::tree::Hash;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log: the name of the key that signs it.
    pub origin: String,
    pub size: u64,
    pub root: Hash,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its text is not that of a checkpoint: origin, size, root and no more")]
pub struct Malformed;

impl Checkpoint {
    /// Reads the text of a note. Further lines are refused: no log of this service writes any.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let mut lines = text.strip_suffix('\n').ok_or(Malformed)?.split('\n');
        let (Some(origin), Some(size), Some(root), None) =
            (lines.next(), lines.next(), lines.next(), lines.next())
        else {
            return Err(Malformed);
        };
        let checkpoint = Self {
            origin: origin.to_owned(),
            size: size.parse().map_err(|_| Malformed)?,
            root: hash(root).ok_or(Malformed)?,
        };
        // One text for each checkpoint: no plus sign or leading zero in its size.
        if !origin.is_empty() && checkpoint.to_string() == text {
            Ok(checkpoint)
        } else {
            Err(Malformed)
        }
    }
}

/// The text of the note.
impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, size, root } = self;
        writeln!(f, "{origin}\n{size}\n{}", BASE64_STANDARD.encode(root))
    }
}

/// A hash in base64.
pub(super) fn hash(text: &str) -> Option<Hash> {
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}
