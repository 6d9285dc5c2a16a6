//! What the entries of a log say, and the rules for their order.

use std::collections::{BTreeMap, BTreeSet};

use super::Findings;
use super::folder::{Folder, named};
use super::walk::{Leaf, expect, walk};
use crate::model::tlog::checkpoint::Checkpoint;
use crate::model::tlog::entry::{Close, Entry, FORMAT, Opening, VoteEntry, Withdrawn};
use crate::model::tlog::policy::{Policy, Signed};
use crate::model::tlog::tree::Hash;

/// What a log says besides its votes.
#[derive(Default)]
pub(super) struct Contents {
    pub opening: Option<Opening>,
    pub votes: u64,
    pub corrections: u64,
    /// Of votes that no longer count, or whose citizen_id is gone, by their index.
    pub withdrawn: BTreeMap<u64, Withdrawn>,
    pub withdrawals: u64,
    pub close: Option<Close>,
    /// Entries other than votes, which are few.
    others: BTreeSet<u64>,
    /// Within the segment that is read: the vote before, and whether another entry followed.
    last: Option<Hash>,
    ended: bool,
}

/// Corrections, withdrawals and other entries that are no votes, of one log: those of ten million votes and a bad night
/// are some thousands.
const MAX_OTHERS: usize = 1_000_000;

impl Contents {
    /// Reads all entries; `boundaries` are the sizes of the log's checkpoints, each of which ends a segment.
    pub fn add(
        &mut self,
        leaf: &Leaf<'_>,
        log: &LogIdentity<'_>,
        boundaries: &BTreeSet<u64>,
        findings: &mut Findings,
    ) {
        let index = leaf.index;
        if boundaries.contains(&index) {
            (self.last, self.ended) = (None, false);
        }
        let Some(bytes) = leaf.entry else { return };
        let entry = match Entry::decode(bytes) {
            Ok(entry) => entry,
            Err(error) => {
                self.others.insert(index);
                findings.add(format_args!("entry {index}: {error}"));
                return;
            }
        };
        if (index == 0) != matches!(entry, Entry::Opening(_)) {
            findings
                .add(format_args!("entry {index}: an opening is the first entry, and only that"));
        }
        if !matches!(entry, Entry::Vote(_)) {
            if self.others.len() == MAX_OTHERS {
                findings.add(format_args!(
                    "entry {index}: more than {MAX_OTHERS} entries are no votes, and are not verified further"
                ));
                return;
            }
            self.others.insert(index);
            // The opening stands before the first votes.
            self.ended = index > 0;
        }
        match entry {
            Entry::Vote(_) => self.vote(index, leaf.hash, findings),
            Entry::Opening(opening) => {
                if opening.format != FORMAT {
                    findings.add(format_args!("entry {index}: its format is {}", opening.format));
                }
                if opening.origin != log.origin || !log.policy.trusts(log.origin, &opening.vkey) {
                    findings.add(format_args!(
                        "entry {index}: it opens the log {} with the key {}, which is not that of {} in the policy",
                        opening.origin, opening.vkey, log.origin
                    ));
                }
                self.opening = Some(opening);
            }
            Entry::Correction(_) => self.corrections += 1,
            Entry::Withdrawal(withdrawal) => {
                self.withdrawals += 1;
                let is_vote = withdrawal.index < index && !self.others.contains(&withdrawal.index);
                let before = self.withdrawn.get(&withdrawal.index);
                // An erased vote may be lost later; nothing else happens twice.
                let again = before.is_some_and(|before| {
                    *before == Withdrawn::Lost || withdrawal.kind == Withdrawn::Erased
                });
                if !is_vote || again {
                    findings.add(format_args!(
                        "entry {index}: it withdraws entry {}, which is not a vote or was withdrawn already",
                        withdrawal.index
                    ));
                } else {
                    self.withdrawn.insert(withdrawal.index, withdrawal.kind);
                }
            }
            Entry::Lineage(_) => {}
            Entry::Close(close) => {
                if self.close.is_some() {
                    findings.add(format_args!("entry {index}: the log is closed already"));
                }
                let Close { corrections, withdrawals, .. } = close;
                if (corrections, withdrawals) != (self.corrections, self.withdrawals) {
                    findings.add(format_args!(
                        "entry {index}: it closes the log with {corrections} corrections and {withdrawals} \
                         withdrawals, and before it there are {} and {}",
                        self.corrections, self.withdrawals
                    ));
                }
                self.close = Some(close);
            }
        }
    }

    fn vote(&mut self, index: u64, hash: Hash, findings: &mut Findings) {
        self.votes += 1;
        if self.close.is_some() {
            findings.add(format_args!("entry {index}: a vote after the close"));
        }
        // Equal ones would be one row twice.
        if self.ended || self.last.is_some_and(|last| last >= hash) {
            findings.add(format_args!("entry {index}: not in the order of its segment"));
        }
        self.last = Some(hash);
    }

    /// Whether the vote at this index still counts.
    pub fn counts(&self, index: u64) -> bool {
        self.withdrawn.get(&index) != Some(&Withdrawn::Lost)
    }
}

/// What an opening has to say.
pub(super) struct LogIdentity<'a> {
    pub origin: &'a str,
    /// Also with the keys that the log had before its present one.
    pub policy: &'a Policy,
}

/// Reads a log that has to be opened, twice: what it says besides votes, then each vote for `each`. `None`, with
/// findings, where that cannot be.
pub(super) fn votes(
    folder: &Folder,
    (policy, newest): (&Policy, &Checkpoint),
    kept: &BTreeMap<u64, Signed>,
    findings: &mut Findings,
    mut each: impl FnMut(u64, &VoteEntry, &Contents, &mut Findings),
) -> Option<Contents> {
    if !folder.is_opened() {
        findings.add(
            "tile/entries: the log's entries are not there; they are published after the close",
        );
        return None;
    }
    let expected = expect(named(kept), newest, findings);
    let (mut contents, boundaries) = (Contents::default(), kept.keys().copied().collect());
    // Of the files alone, and of what the entries say.
    let (mut files, mut said) = (Findings::default(), Findings::default());
    let identity = LogIdentity { origin: &newest.origin, policy };
    let add = |leaf: &Leaf<'_>, _: &mut Findings| {
        contents.add(leaf, &identity, &boundaries, &mut said);
    };
    let complete = walk(folder, newest, &expected, &mut files, add);
    findings.append(files.clone());
    findings.append(said);
    if !complete {
        return None;
    }
    let mut again = Findings::default();
    let vote = |leaf: &Leaf<'_>, _: &mut Findings| {
        if let Some(Entry::Vote(vote)) = leaf.entry.and_then(|entry| Entry::decode(entry).ok()) {
            each(leaf.index, &vote, &contents, findings);
        }
    };
    if !walk(folder, newest, &expected, &mut again, vote) || again != files {
        findings.add("the files of the log change while they are read");
        return None;
    }
    Some(contents)
}
