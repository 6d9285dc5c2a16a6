//! Dead letters: why each was dead-lettered and what to do about it, which ones a command selects,
//! what of them may be shown; and replaying or purging them without losing one.
//!
//! Architecture invariant: decisions are plain functions of one message. Reading and settling is
//! the [`broker`](crate::adapters::broker)'s.

mod archive;
mod filter;
mod mask;
mod purge;
mod reason;
mod replay;
mod scan;
mod trial;

pub use self::archive::{ArchiveError, PurgeArchive};
pub use self::filter::{Filter, REASONS, reason, sqlstate};
pub use self::mask::{Shown, headers, properties, show};
pub use self::purge::{PurgeError, purge};
pub use self::reason::{DeadLetterReason, Death, Examined, examine};
pub use self::replay::{Target, replay};
pub use self::scan::{Ended, Fingerprint, Reader, Selection, Tally, fingerprint, scan};
pub use self::trial::{Outcome, TrialError, TrialResults, TrialTimeouts, trial};
