//! A row of the audit, and the commitment to it: what shows later that a row is unchanged, and shows nothing before.

use std::fmt;

use ring::hmac;
use sha2::{Digest, Sha256};

use super::tree::Hash;
use crate::model::vote::Choice;

const BALLOT: &[u8] = b"vote-aggregator/ballot/v1\n";
const NONCE: &[u8] = b"vote-aggregator/nonce/v1\n";

/// A row of vote_audit. Without `Debug`: it shows who voted what.
#[derive(Clone, PartialEq, Eq)]
pub struct Row {
    pub vote_hash: String,
    pub citizen_id: String,
    pub law_id: String,
    pub choice: Choice,
    /// Microseconds since 1970, as stored.
    pub timestamp: i64,
    /// Microseconds since 1970; the predecessor's rows have none.
    pub recorded_at: Option<i64>,
}

/// Hides a row behind its commitment; one for each vote_hash. Whoever has it can show what the row contains.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Nonce(pub [u8; 32]);

/// What nonces are derived from. Once it is destroyed, commitments of rows that are destroyed as well show nothing.
pub struct Secret(hmac::Key);

/// A field that is longer than its length prefix can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} has {length} bytes, and at most {limit} fit into an entry of the log")]
pub struct TooLong {
    pub field: &'static str,
    pub length: usize,
    pub limit: usize,
}

impl Secret {
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// The same for the same vote_hash, so that a crash or a second signer changes no entry.
    pub fn nonce(&self, vote_hash: &str) -> Nonce {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(NONCE);
        context.update(vote_hash.as_bytes());
        let mut nonce = [0; 32];
        nonce.copy_from_slice(context.sign().as_ref());
        Nonce(nonce)
    }
}

impl Row {
    /// The commitment to everything of the row that its entry does not show.
    ///
    /// # Errors
    /// [`TooLong`] for vote_hash and citizen_id; no vote that this service counts is.
    pub fn commitment(&self, nonce: &Nonce) -> Result<Hash, TooLong> {
        let mut hidden = Vec::with_capacity(128);
        put_short(&mut hidden, "vote_hash", &self.vote_hash)?;
        let length = u16::try_from(self.citizen_id.len()).map_err(|_| TooLong {
            field: "citizen_id",
            length: self.citizen_id.len(),
            limit: u16::MAX.into(),
        })?;
        hidden.extend(length.to_be_bytes());
        hidden.extend(self.citizen_id.as_bytes());
        hidden.extend(self.timestamp.to_be_bytes());
        // PostgreSQL has no such time, so that it can stand for NULL.
        hidden.extend(self.recorded_at.unwrap_or(i64::MIN).to_be_bytes());
        let digest = Sha256::new().chain_update(BALLOT).chain_update(nonce.0).chain_update(hidden);
        Ok(digest.finalize().into())
    }
}

/// Appends a text behind its length in one byte.
pub(super) fn put_short(
    bytes: &mut Vec<u8>,
    field: &'static str,
    text: &str,
) -> Result<(), TooLong> {
    let limit = u8::MAX.into();
    let length =
        u8::try_from(text.len()).map_err(|_| TooLong { field, length: text.len(), limit })?;
    bytes.push(length);
    bytes.extend(text.as_bytes());
    Ok(())
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}
