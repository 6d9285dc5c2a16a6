//! `state.json`: what is sealed, and what is about to be.

use std::fs;
use std::path::{Path, PathBuf};

use base64::prelude::{BASE64_STANDARD, Engine};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::{SealError, failed};
use crate::model::tlog::entry::FORMAT;
use crate::model::tlog::tree::Hash;
use crate::operator::files::{PRIVATE, replace};

/// What is committed, and the intent of a round that began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub format: u32,
    pub origin: String,
    /// SHA-256 of the secret: another secret would change the entries of the same rows.
    #[serde(with = "base64_hash")]
    pub secret_sha256: Hash,
    pub lineage: Lineage,
    /// All transactions below this id (xid8) are sealed.
    pub horizon: u64,
    pub tip: Tip,
    pub intent: Option<Intent>,
}

/// Which server, and which of its histories.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lineage {
    /// By pg_control_system().
    pub system_identifier: String,
    pub timeline: u32,
    /// Object ids of the tables: a database of the same server has others, and so has one restored from a dump.
    pub vote_audit: i64,
    pub count_batch: i64,
}

/// The end of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tip {
    pub size: u64,
    #[serde(with = "base64_hash")]
    pub root: Hash,
    /// Entries that are votes.
    pub votes: u64,
    /// Length of the file of entries.
    pub bytes: u64,
}

/// What a round seals: the transactions from the horizon up to `to`, whose outcomes no longer change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    pub to: u64,
    /// All rows below `to`, whether or not count_batch has them: so many were there before the log.
    pub sweep: Option<u64>,
    /// What will be signed; written before the signature.
    pub tip: Option<Tip>,
}

/// The file: a flipped bit in an id would skip votes, and nothing else would show it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored<'a> {
    #[serde(borrow)]
    state: &'a RawValue,
    sha256: String,
}

impl State {
    pub(super) fn path(dir: &Path) -> PathBuf {
        dir.join("state.json")
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`SealError::Unusable`] also for one that is changed, or of a later format.
    pub(super) fn load(dir: &Path) -> Result<Self, SealError> {
        let path = Self::path(dir);
        let text = fs::read_to_string(&path).map_err(failed("read", &path))?;
        let unusable = |problem| SealError::unusable(&path, problem);
        let stored: Stored<'_> =
            serde_json::from_str(&text).map_err(|error| unusable(error.to_string()))?;
        if digest(stored.state.get()) != stored.sha256 {
            return Err(unusable(
                "its SHA-256 is not that of its content: it was changed. Do not edit it; see the runbook, \"Sealing\""
                    .to_owned(),
            ));
        }
        let state: Self = serde_json::from_str(stored.state.get())
            .map_err(|error| unusable(error.to_string()))?;
        if state.format != FORMAT {
            return Err(unusable(format!(
                "its format is {}, and this release writes {FORMAT}",
                state.format
            )));
        }
        Ok(state)
    }

    /// Replaces the file; on return it is on the disk.
    pub(super) fn save(&self, dir: &Path) -> Result<(), SealError> {
        let path = Self::path(dir);
        let state = serde_json::to_string(self).expect("numbers and texts can be written");
        let sha256 = digest(&state);
        let text = format!("{{\"state\":{state},\"sha256\":\"{sha256}\"}}\n");
        replace(&path, text.as_bytes(), PRIVATE, None).map_err(failed("write", &path))
    }
}

fn digest(text: &str) -> String {
    BASE64_STANDARD.encode(Sha256::digest(text))
}

mod base64_hash {
    use super::*;

    pub fn serialize<S: Serializer>(hash: &Hash, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(hash))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Hash, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64_STANDARD.decode(text).map_err(D::Error::custom)?;
        bytes.try_into().map_err(|_| D::Error::custom("a hash has 32 bytes"))
    }
}
