//! `verify proof`.

use std::path::Path;

use base64::prelude::{BASE64_STANDARD, Engine};
use serde::Deserialize;

use super::rows::Content;
use super::{Findings, VerifyError, text};
use crate::model::tlog::entry::Entry;
use crate::model::tlog::policy::{Policy, Signed};
use crate::model::tlog::proof::Proof;
use crate::model::tlog::tree::{Hash, check_inclusion};

/// What a proof shows.
#[derive(Debug)]
pub struct Proven {
    /// The entry's place in the log.
    pub index: u64,
    /// `None` where its signature is not good.
    pub checkpoint: Option<Signed>,
    /// The vote, if the proof opens it, and is right.
    pub opened: Option<Opened>,
    pub findings: Findings,
}

/// What an opened proof shows of a vote: not who cast it, which its owner knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    pub vote_hash: String,
    pub law_id: String,
    pub choice: String,
}

/// What the `extra` line has: the hash of the leaf, or all that it is made of.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Extra {
    /// In base64.
    Leaf(String),
    Row(Content),
}

/// Verifies that an entry is in a log.
///
/// # Errors
/// [`VerifyError`]: a file that cannot be read or is not a proof.
pub fn proof(path: &Path, policy: &Policy) -> Result<Proven, VerifyError> {
    let input = |problem: String| VerifyError::Input { path: path.to_owned(), problem };
    let proof = Proof::parse(&text(path)?).map_err(|error| input(error.to_string()))?;
    let extra = proof.extra.as_deref().and_then(|extra| serde_json::from_slice(extra).ok());
    let no_leaf = || input("its extra line has neither a leaf nor a row".to_owned());
    let (leaf, opened) = match extra.ok_or_else(no_leaf)? {
        Extra::Leaf(hash) => (leaf(&hash).ok_or_else(no_leaf)?, None),
        Extra::Row(row) => {
            let leaf = row.entry().and_then(|entry| Entry::Vote(entry).leaf().ok());
            let Content { vote_hash, law_id, choice, .. } = row;
            (leaf.ok_or_else(no_leaf)?, Some(Opened { vote_hash, law_id, choice }))
        }
    };
    let mut findings = Findings::default();
    let checkpoint = match policy.read(&proof.checkpoint) {
        Ok(signed) => {
            let checkpoint = &signed.checkpoint;
            let tree = (checkpoint.size, checkpoint.root);
            if let Err(error) = check_inclusion(&proof.hashes, tree, (proof.index, leaf)) {
                findings.add(format_args!("the entry is not in the log: {error}"));
            }
            if !signed.quorum {
                findings.add("too few witnesses of the policy signed the checkpoint");
            }
            Some(signed)
        }
        Err(error) => {
            findings.add(error);
            None
        }
    };
    let opened = opened.filter(|_| findings.total() == 0);
    Ok(Proven { index: proof.index, checkpoint, opened, findings })
}

fn leaf(text: &str) -> Option<Hash> {
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}
