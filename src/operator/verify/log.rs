//! `verify log`.

use std::path::{Path, PathBuf};

use super::contents::{Contents, LogIdentity};
use super::folder::{Folder, named, signed};
use super::walk::{Leaf, expect, walk};
use super::{Findings, VerifyError};
use crate::model::tlog::policy::{Policy, Signed};

/// What was verified of a log.
#[derive(Debug)]
pub struct Log {
    /// The newest checkpoint; `None` where its signature is not good.
    pub newest: Option<Signed>,
    /// Checkpoints that the log itself kept, which were compared.
    pub kept: usize,
    /// Checkpoints from elsewhere, which were compared.
    pub since: usize,
    /// Whether the entries are there, so that their order is verified as well.
    pub opened: bool,
    pub findings: Findings,
}

/// Recomputes a log from its leaves: the newest checkpoint, every one that it kept, those of the files `since`, and every
/// tile. Where the entries are there, they have to be those of the leaves, in the order of their segments.
///
/// # Errors
/// [`VerifyError`]: files that cannot be read, but for tiles, which the log has to have.
pub fn log(dir: &Path, policy: &Policy, since: &[PathBuf]) -> Result<Log, VerifyError> {
    let (folder, mut findings) = (Folder::new(dir), Findings::default());
    let newest = folder.newest(policy, &mut findings)?;
    let kept = folder.checkpoints(policy, &mut findings)?;
    let mut earlier = Vec::new();
    for path in since {
        if let Some(signed) = signed(path, policy, &mut findings)? {
            earlier.push((path.display().to_string(), signed.checkpoint));
        }
    }
    if let Some(newest) = newest.as_ref().map(|newest| &newest.checkpoint) {
        if !kept.contains_key(&newest.size) {
            findings.add(format_args!(
                "checkpoints/{}: it is not there, and each one ends a segment",
                newest.size
            ));
        }
        let earlier = earlier.iter().map(|(source, checkpoint)| (source.clone(), checkpoint));
        let expected = expect(named(&kept).chain(earlier), newest, &mut findings);
        let (mut contents, boundaries) = (Contents::default(), kept.keys().copied().collect());
        let identity = LogIdentity { origin: &newest.origin, policy };
        let each = |leaf: &Leaf<'_>, findings: &mut Findings| {
            contents.add(leaf, &identity, &boundaries, findings);
        };
        walk(&folder, newest, &expected, &mut findings, each);
    }
    Ok(Log { newest, kept: kept.len(), since: earlier.len(), opened: folder.is_opened(), findings })
}
