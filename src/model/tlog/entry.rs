//! Entries of the log, and their bytes. There is one encoding for each entry: what does not encode to the bytes that it
//! was decoded from is refused, so that no two texts of one content exist.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::row::{Nonce, Row, TooLong, put_short};
use super::tree::{Hash, leaf_hash};
use crate::model::vote::Choice;

/// Version of these formats, which the opening entry names.
pub const FORMAT: u32 = 1;

const VOTE: u8 = 0x01;
const OPENING: u8 = 0x02;
const CORRECTION: u8 = 0x03;
const WITHDRAWAL: u8 = 0x04;
const LINEAGE: u8 = 0x05;
const CLOSE: u8 = 0x06;

/// What a leaf of the log stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Vote(VoteEntry),
    /// The first entry, and no other.
    Opening(Opening),
    /// A row of result_corrections.
    Correction(Correction),
    /// A vote whose row is lost, or whose citizen_id is erased.
    Withdrawal(Withdrawal),
    /// The database was restored, or another server took over.
    Lineage(Lineage),
    /// No vote comes after it.
    Close(Close),
}

/// A counted vote: what was voted, and a commitment to who did and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoteEntry {
    pub law_id: String,
    pub choice: Choice,
    pub commitment: Hash,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opening {
    pub format: u32,
    pub origin: String,
    /// The key that signs the log.
    pub vkey: String,
    /// Rows that were in the audit already, which should be none.
    pub rows: u64,
    /// By pg_control_system(); a text, since a reader of JSON may round so large a number.
    pub system_identifier: String,
    pub timeline: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Correction {
    pub id: i64,
    /// RFC 3339.
    pub at: String,
    pub law_id: String,
    pub oui_before: i64,
    pub non_before: i64,
    pub oui_after: i64,
    pub non_after: i64,
    pub reason: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Withdrawal {
    /// Of the vote's entry.
    pub index: u64,
    pub kind: Withdrawn,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Withdrawn {
    /// Its row is gone, and the vote no longer counts.
    Lost,
    /// Its citizen_id is gone; the vote still counts.
    Erased,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lineage {
    pub system_identifier_before: String,
    pub timeline_before: u32,
    pub system_identifier: String,
    pub timeline: u32,
    /// The first transaction id that was not read before, as text.
    pub horizon: String,
    pub rows_missing: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Close {
    /// Votes that count.
    pub rows: u64,
    pub laws: BTreeMap<String, Counts>,
    pub corrections: u64,
    pub withdrawals: u64,
}

/// The votes on a law.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    pub oui: u64,
    pub non: u64,
}

/// Bytes that are not an entry of this format.
#[derive(Debug, thiserror::Error)]
pub enum BadEntry {
    #[error("it is empty")]
    Empty,
    #[error("its kind {0:#04x} is unknown to this release")]
    Kind(u8),
    #[error("a vote's length, law or choice is wrong")]
    Vote,
    #[error("its JSON cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it is not encoded as this format encodes it")]
    Encoding,
}

impl Counts {
    pub const fn of(&mut self, choice: Choice) -> &mut u64 {
        match choice {
            Choice::Oui => &mut self.oui,
            Choice::Non => &mut self.non,
        }
    }
}

impl VoteEntry {
    /// The entry of a row.
    ///
    /// # Errors
    /// [`TooLong`]: no vote that this service counts is.
    pub fn of(row: &Row, nonce: &Nonce) -> Result<Self, TooLong> {
        put_short(&mut Vec::new(), "law_id", &row.law_id)?;
        let commitment = row.commitment(nonce)?;
        Ok(Self { law_id: row.law_id.clone(), choice: row.choice, commitment })
    }
}

impl Entry {
    /// The bytes whose hash is the leaf.
    ///
    /// # Errors
    /// [`TooLong`] for a law_id that no [`VoteEntry::of`] contains.
    pub fn encode(&self) -> Result<Vec<u8>, TooLong> {
        Ok(match self {
            Self::Vote(VoteEntry { law_id, choice, commitment }) => {
                let mut bytes = vec![VOTE];
                put_short(&mut bytes, "law_id", law_id)?;
                bytes.push(match choice {
                    Choice::Non => 0,
                    Choice::Oui => 1,
                });
                bytes.extend(commitment);
                bytes
            }
            Self::Opening(opening) => json(OPENING, opening),
            Self::Correction(correction) => json(CORRECTION, correction),
            Self::Withdrawal(withdrawal) => json(WITHDRAWAL, withdrawal),
            Self::Lineage(lineage) => json(LINEAGE, lineage),
            Self::Close(close) => json(CLOSE, close),
        })
    }

    /// # Errors
    /// [`BadEntry`]; also for what [`Entry::encode`] would encode in another way.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadEntry> {
        let (kind, rest) = bytes.split_first().ok_or(BadEntry::Empty)?;
        let entry = match *kind {
            VOTE => Self::Vote(vote(rest).ok_or(BadEntry::Vote)?),
            OPENING => Self::Opening(from_json(rest)?),
            CORRECTION => Self::Correction(from_json(rest)?),
            WITHDRAWAL => Self::Withdrawal(from_json(rest)?),
            LINEAGE => Self::Lineage(from_json(rest)?),
            CLOSE => Self::Close(from_json(rest)?),
            other => return Err(BadEntry::Kind(other)),
        };
        if entry.encode().is_ok_and(|encoded| encoded == bytes) {
            Ok(entry)
        } else {
            Err(BadEntry::Encoding)
        }
    }

    /// # Errors
    /// As [`Entry::encode`].
    pub fn leaf(&self) -> Result<Hash, TooLong> {
        self.encode().map(|bytes| leaf_hash(&bytes))
    }
}

fn json(kind: u8, content: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![kind];
    serde_json::to_writer(&mut bytes, content).expect("texts and numbers can be written to memory");
    bytes
}

fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BadEntry> {
    Ok(serde_json::from_slice(bytes)?)
}

fn vote(bytes: &[u8]) -> Option<VoteEntry> {
    let (length, rest) = bytes.split_first()?;
    let (law_id, rest) = rest.split_at_checked((*length).into())?;
    let law_id = std::str::from_utf8(law_id).ok()?.to_owned();
    let (choice, commitment) = rest.split_first()?;
    let choice = match choice {
        0 => Choice::Non,
        1 => Choice::Oui,
        _ => return None,
    };
    Some(VoteEntry { law_id, choice, commitment: commitment.try_into().ok()? })
}
