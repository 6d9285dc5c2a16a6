//! The steps of a round in the log's directory. Each can be the last one of a process; the next process does the round
//! again from the intent, and comes to the same bytes or refuses.

use std::fs;

use super::log::Log;
use super::publish::Public;
use super::state::{Intent, State, Tip};
use super::{SealError, failed};
use crate::model::tlog::note::Note;
use crate::model::tlog::segment::Ordered;
use crate::model::tlog::tree::{check_consistency, prove_consistency};
use crate::operator::files::{READABLE, replace};

impl Log {
    /// Writes down that everything below `to` is sealed next. Returns the intent of an interrupted round, which goes
    /// first, instead.
    ///
    /// # Errors
    /// [`SealError`]
    pub fn intend(&mut self, to: u64, sweep: Option<u64>) -> Result<Intent, SealError> {
        if let Some(intent) = &self.state.intent {
            return Ok(intent.clone());
        }
        let intent = Intent { to, sweep, tip: None };
        self.state.intent = Some(intent.clone());
        self.state.save(&self.dir)?;
        Ok(intent)
    }

    /// Appends what the intent covers, and signs it. Nothing is signed for an intent without entries.
    ///
    /// # Errors
    /// [`SealError::Refused`] where it is not what the round before an interruption was about to sign, or where the disk
    /// has other bytes than were written. After any error the log has to be opened again.
    pub fn seal(&mut self, ordered: &Ordered) -> Result<Tip, SealError> {
        let tip = self.append(ordered)?;
        self.read_back(&tip)?;
        self.record(tip)?;
        self.sign(&tip)?;
        let before = self.commit(tip)?;
        self.publish(before)?;
        Ok(tip)
    }

    /// Ends a round that was interrupted once it was written down what would be signed, from the disk: the rows may have
    /// been changed since. `false`: there is none, or the disk does not have it, so that the round is done again.
    pub(super) fn resume(&mut self) -> Result<bool, SealError> {
        let Some(tip) = self.state.intent.as_ref().and_then(|intent| intent.tip) else {
            return Ok(false);
        };
        let whole = self.flat.cut(&tip).and_then(|()| self.read_back(&tip));
        if whole.is_err() {
            return Ok(false);
        }
        self.sign(&tip)?;
        self.commit(tip)?;
        Ok(true)
    }

    /// Step 6: behind the committed entries, instead of what an interrupted round left there.
    pub(super) fn append(&mut self, ordered: &Ordered) -> Result<Tip, SealError> {
        self.flat.cut(&self.state.tip)?;
        let tree = self.tree()?;
        self.flat.append(&self.state.tip, tree, ordered)
    }

    /// Step 7: what is signed is computed from the disk; a flipped bit in a signed tree would end the log.
    pub(super) fn read_back(&self, written: &Tip) -> Result<(), SealError> {
        let before = &self.state.tip;
        let tree = self.flat.read_back(before, self.tree()?, written)?;
        if tree.is_none_or(|tree| tree.root() != written.root) {
            return Err(self.refused(format_args!(
                "entries {} to {} on the disk are not those that were written. Check the disk and the memory, and \
                 start again: the round is done again",
                before.size, written.size
            )));
        }
        if before.size == 0 {
            return Ok(());
        }
        let proof = prove_consistency(&self.flat, written.size, before.size);
        let consistent = proof.is_ok_and(|proof| {
            let (size, root) = (written.size, written.root);
            check_consistency(&proof, (size, root), (before.size, before.root)).is_ok()
        });
        if consistent {
            Ok(())
        } else {
            Err(self.refused(format_args!(
                "the tree of {} entries on the disk does not begin with the signed one of {}",
                written.size, before.size
            )))
        }
    }

    /// Step 8: what will be signed is on the disk before it is.
    pub(super) fn record(&mut self, tip: Tip) -> Result<(), SealError> {
        let Some(intent) = &mut self.state.intent else {
            return Err(SealError::unusable(&State::path(&self.dir), "no round has begun"));
        };
        match intent.tip {
            Some(before) if before == tip => Ok(()),
            Some(before) => {
                let to = intent.to;
                Err(self.refused(format_args!(
                    "the transactions below {to} now make {} entries, and made {} before the interruption, or others: rows \
                     below the horizon were changed meanwhile. See the runbook, \"Sealing\"",
                    tip.size, before.size
                )))
            }
            None => {
                intent.tip = Some(tip);
                self.state.save(&self.dir)
            }
        }
    }

    /// Step 9. A checkpoint of that size which is there already has to be the same.
    pub(super) fn sign(&self, tip: &Tip) -> Result<(), SealError> {
        if tip.size == self.state.tip.size && tip.size > 0 {
            return Ok(());
        }
        let checkpoint = self.checkpoint_of(tip);
        if let Some(found) = self.signed(tip.size)? {
            return if found == checkpoint { Ok(()) } else { Err(self.forked(&found)) };
        }
        let mut note = Note::new(checkpoint.to_string())
            .map_err(|error| SealError::unusable(&self.dir, error))?;
        note.sign(&self.key);
        let path = self.signed_path(tip.size);
        replace(&path, note.to_string().as_bytes(), READABLE, None).map_err(failed("write", &path))
    }

    /// The round is over. Returns the size before it.
    pub(super) fn commit(&mut self, tip: Tip) -> Result<u64, SealError> {
        let before = self.state.tip.size;
        self.state.tip = tip;
        if let Some(intent) = self.state.intent.take() {
            self.state.horizon = intent.to;
        }
        self.state.save(&self.dir)?;
        Ok(before)
    }

    /// Step 11: what is new since the log had `before` entries.
    pub(super) fn publish(&self, before: u64) -> Result<(), SealError> {
        let size = self.state.tip.size;
        let path = self.signed_path(size);
        let checkpoint = fs::read(&path).map_err(failed("read", &path))?;
        Public { dir: &self.dir }.publish(&self.flat, before, (size, &checkpoint))
    }

    /// Publishes what a crash or another hand removed from public/.
    ///
    /// # Errors
    /// [`SealError`]
    pub fn publish_again(&self) -> Result<(), SealError> {
        let public = Public { dir: &self.dir };
        let size = self.state.tip.size;
        for earlier in self.sizes()?.into_iter().filter(|earlier| *earlier < size) {
            public.keep(earlier, &self.signed_path(earlier))?;
        }
        if size > 0 { self.publish(0) } else { Ok(()) }
    }
}
