//! Proofs that an entry is in a log (c2sp.org/tlog-proof), for a voter who has nothing else of the log.

use std::fmt;

use base64::prelude::{BASE64_STANDARD, Engine};

use super::checkpoint::hash;
use super::note::{Note, NoteError};
use super::tree::Hash;

const HEADER: &str = "c2sp.org/tlog-proof@v1";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Not authenticated by the proof: what the leaf's hash is computed from.
    pub extra: Option<Vec<u8>>,
    pub index: u64,
    /// From the leaf's sibling up.
    pub hashes: Vec<Hash>,
    /// The checkpoint with its signatures.
    pub checkpoint: Note,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    #[error("its first line is not {HEADER}")]
    Header,
    #[error("its line {0} cannot be read")]
    Line(usize),
    #[error("its checkpoint cannot be read: {0}")]
    Checkpoint(#[from] NoteError),
}

impl Proof {
    /// # Errors
    /// [`ProofError`]
    pub fn parse(text: &str) -> Result<Self, ProofError> {
        let (head, checkpoint) = text.split_once("\n\n").ok_or(ProofError::Header)?;
        let mut lines = head.split('\n').enumerate().peekable();
        if lines.next().is_none_or(|(_, line)| line != HEADER) {
            return Err(ProofError::Header);
        }
        let extra = lines.next_if(|(_, line)| line.starts_with("extra "));
        let extra = extra.map(|(number, line)| {
            let encoded = line.strip_prefix("extra ").unwrap_or_default();
            BASE64_STANDARD.decode(encoded).map_err(|_| ProofError::Line(number + 1))
        });
        let index = lines.next().and_then(|(_, line)| line.strip_prefix("index "));
        let number = index.and_then(|text| text.parse::<u64>().ok());
        let index = number.filter(|number| index == Some(number.to_string().as_str()));
        let line = 2 + usize::from(extra.is_some());
        let hashes = lines.map(|(number, line)| hash(line).ok_or(ProofError::Line(number + 1)));
        Ok(Self {
            extra: extra.transpose()?,
            index: index.ok_or(ProofError::Line(line))?,
            hashes: hashes.collect::<Result<_, _>>()?,
            checkpoint: Note::parse(checkpoint.as_bytes())?,
        })
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}")?;
        if let Some(extra) = &self.extra {
            writeln!(f, "extra {}", BASE64_STANDARD.encode(extra))?;
        }
        writeln!(f, "index {}", self.index)?;
        for hash in &self.hashes {
            writeln!(f, "{}", BASE64_STANDARD.encode(hash))?;
        }
        write!(f, "\n{}", self.checkpoint)
    }
}
