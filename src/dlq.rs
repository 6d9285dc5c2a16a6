//! Dead letters: why each is there and what to do about it, which of them are meant, what of them
//! may be shown; and putting them back, or removing them, without losing one.
//!
//! Architecture invariant: what is decided here is decided by plain functions of one letter. How
//! letters are read and settled is the [`broker`](crate::broker)'s.

mod body;
mod filter;
mod purge;
mod removed;
mod replay;
mod scan;
mod trial;
mod why;

pub use self::body::{Shown, headers, properties, show};
pub use self::filter::{Filter, REASONS, reason, sqlstate};
pub use self::purge::{PurgeError, purge};
pub use self::removed::Removed;
pub use self::replay::{Replay, replay};
pub use self::scan::{Ended, Fingerprint, Selection, Tally, Verdict, fingerprint, scan};
pub use self::trial::{Outcome, Patience, TrialError, Tried, trial};
pub use self::why::{Death, Examined, Why, examine};
