//! `verify log`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::contents::Contents;
use super::folder::{Folder, signed};
use super::walk::{Expected, Leaf, walk};
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
    let mut expected: BTreeMap<u64, Vec<Expected>> = BTreeMap::new();
    let mut expect = |signed: Signed, source: String| {
        let root = signed.checkpoint.root;
        expected.entry(signed.checkpoint.size).or_default().push(Expected { root, source });
    };
    let boundaries: BTreeSet<u64> = kept.keys().copied().collect();
    let mut result = Log {
        newest,
        kept: kept.len(),
        since: 0,
        opened: folder.is_opened(),
        findings: Findings::default(),
    };
    for (size, signed) in kept {
        expect(signed, format!("checkpoints/{size}"));
    }
    for path in since {
        let Some(earlier) = signed(path, policy, &mut findings)? else { continue };
        let ours = result.newest.as_ref().map(|newest| &newest.checkpoint.origin);
        if ours.is_some_and(|origin| *origin != earlier.checkpoint.origin) {
            let origin = &earlier.checkpoint.origin;
            findings.add(format_args!("{}: it is of another log, {origin}", path.display()));
            continue;
        }
        result.since += 1;
        expect(earlier, path.display().to_string());
    }
    if let Some(newest) = &result.newest {
        let size = newest.checkpoint.size;
        if !boundaries.contains(&size) {
            findings.add(format_args!(
                "checkpoints/{size}: it is not there, and each one ends a segment"
            ));
        }
        for (beyond, longer) in expected.range(size + 1..) {
            for Expected { source, .. } in longer {
                findings.add(format_args!(
                    "{source}: the log had {beyond} entries, and its newest checkpoint has {size}"
                ));
            }
        }
        let mut contents = Contents::default();
        let each = |leaf: &Leaf<'_>, findings: &mut Findings| {
            contents.add(leaf, &newest.checkpoint.origin, &boundaries, findings);
        };
        walk(&folder, &newest.checkpoint, &expected, &mut findings, each);
    }
    result.findings = findings;
    Ok(result)
}
