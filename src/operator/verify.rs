//! Verification of a log of counted votes and of what was exported with it: by its files alone, without a network and
//! without a database.
//!
//! Architecture invariant: nothing that a file says is trusted before the tree is recomputed from its leaves and leads
//! to the root of a checkpoint that a log of the policy signed.

mod contents;
mod folder;
mod log;
mod proof;
mod rows;
mod sums;
mod walk;

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use self::log::{Log, log};
pub use self::proof::{Opened, Proven, proof};
pub use self::rows::{Rows, rows};
pub use self::sums::{Sums, sums};
use crate::model::tlog::policy::{Policy, PolicyError};

/// Findings that are described; further ones are counted.
const DESCRIBED: usize = 100;
/// The longest file that is read as a whole, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// What is wrong, and how often.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    described: Vec<String>,
    total: u64,
}

impl Findings {
    fn add(&mut self, finding: impl Display) {
        self.total += 1;
        if self.described.len() < DESCRIBED {
            self.described.push(finding.to_string());
        }
    }

    fn append(&mut self, further: Self) {
        let free = DESCRIBED.saturating_sub(self.described.len());
        self.total += further.total;
        self.described.extend(further.described.into_iter().take(free));
    }

    /// The first hundred.
    pub fn described(&self) -> &[String] {
        &self.described
    }

    pub const fn total(&self) -> u64 {
        self.total
    }
}

/// What stops a verification before there is a result.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("cannot read {}: {error}", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{}: {error}", path.display())]
    Policy { path: PathBuf, error: PolicyError },
    #[error("{}: {problem}", path.display())]
    Input { path: PathBuf, problem: String },
}

/// Reads a policy file.
///
/// # Errors
/// [`VerifyError`]
pub fn policy(path: &Path) -> Result<Policy, VerifyError> {
    Policy::parse(&text(path)?)
        .map_err(|error| VerifyError::Policy { path: path.to_owned(), error })
}

/// A whole file, of at most `max` bytes.
fn bytes(path: &Path, max: u64) -> Result<Vec<u8>, VerifyError> {
    let unreadable = |error| VerifyError::Unreadable { path: path.to_owned(), error };
    let mut content = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(max + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() as u64 > max {
        return Err(unreadable(io::Error::other(format!("it is longer than {max} bytes"))));
    }
    Ok(content)
}

/// A whole file that has to be UTF-8.
fn text(path: &Path) -> Result<String, VerifyError> {
    String::from_utf8(bytes(path, MAX_FILE)?)
        .map_err(|_| VerifyError::Input { path: path.to_owned(), problem: "not UTF-8".to_owned() })
}
