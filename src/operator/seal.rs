//! The sealer: appends counted votes to a tamper-evident log in its own directory, and signs checkpoints of it.
//!
//! Architecture invariant: no two roots are ever signed for one size. A round first writes down up to which transaction
//! it seals, then what it will sign, and only then signs; after a crash at any point it comes to the same bytes, or
//! refuses. Nothing of the Merkle tree is in the database, whose superuser it has to hold out against.

mod files;
mod flat;
mod lag;
mod log;
mod monitor;
mod publish;
mod round;
mod run;
mod state;
mod steps;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

pub use self::log::{Log, Opened};
pub use self::monitor::{Monitor, Stopped};
pub use self::round::{Round, RoundError, begin, round};
pub use self::run::{Pace, once, run};
pub use self::state::{Intent, Lineage, State, Tip};

/// Why nothing is sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("cannot {doing} {}: {error}", path.display())]
    Io { doing: &'static str, path: PathBuf, error: io::Error },
    /// The directory, or a file in it, is not what it has to be.
    #[error("{}: {problem}", path.display())]
    Unusable { path: PathBuf, problem: String },
    #[error(
        "another process seals into {}: end it first; two would sign two histories of one log",
        .0.display()
    )]
    Busy(PathBuf),
    /// A signature could stand below a second root for one size.
    #[error("refused to sign: {0}")]
    Refused(String),
}

impl SealError {
    fn unusable(path: &Path, problem: impl ToString) -> Self {
        Self::Unusable { path: path.to_owned(), problem: problem.to_string() }
    }
}

/// Makes an error of `error`, met while `doing` something with the file at `path`.
fn failed(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> SealError {
    move |error| SealError::Io { doing, path: path.to_owned(), error }
}
