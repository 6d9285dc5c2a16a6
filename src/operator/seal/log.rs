//! The log's directory: its creation, and what has to hold before anything is appended.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::files::{lock, random, read, remove_leftovers};
use super::flat::Flat;
use super::publish::Public;
use super::state::{Intent, Lineage, State, Tip};
use super::{SealError, failed};
use crate::model::hex;
use crate::model::tlog::checkpoint::Checkpoint;
use crate::model::tlog::entry::{Entry, FORMAT, Opening};
use crate::model::tlog::note::{Note, SignerKey};
use crate::model::tlog::row::Secret;
use crate::model::tlog::segment::Segment;
use crate::model::tlog::tree::Frontier;
use crate::operator::files::{PRIVATE, READABLE, replace};

/// A log that this process alone appends to.
pub struct Log {
    pub(super) dir: PathBuf,
    pub(super) key: SignerKey,
    secret: Secret,
    pub(super) state: State,
    pub(super) flat: Flat,
    /// Held until the process ends, however it ends.
    _lock: File,
}

/// The database that a log begins with.
#[derive(Clone, Debug)]
pub struct Opened {
    pub lineage: Lineage,
    /// Transactions from this one on are sealed batch by batch.
    pub horizon: u64,
    /// Rows of the audit below it, which will be sealed first.
    pub rows: u64,
    /// All rows of the audit; those above the horizon are sealed with their batches.
    pub counted: u64,
}

impl Log {
    /// Creates the directory with its keys, the secret, and the first checkpoint, which has only the opening. Either
    /// all of it is there afterwards, or nothing at `dir`.
    ///
    /// # Errors
    /// [`SealError`]; also when there is something at `dir` other than an empty directory.
    pub fn init(dir: &Path, origin: &str, opened: &Opened) -> Result<String, SealError> {
        let unusable = |problem: String| SealError::unusable(dir, problem);
        if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(unusable(
                "it is not empty. A log is never begun again: choose another directory and another origin"
                    .to_owned(),
            ));
        }
        let beside = dir.with_added_extension(format!("{:08x}.new", fastrand::u32(..)));
        let vkey = Self::create(&beside, origin, opened);
        let moved = vkey.and_then(|vkey| {
            fs::rename(&beside, dir).map_err(failed("create", dir))?;
            let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            let synced = File::open(parent).and_then(|parent| parent.sync_all());
            synced.map_err(failed("write", parent))?;
            Ok(vkey)
        });
        if moved.is_err() {
            // The error above says more than one of the removal.
            fs::remove_dir_all(&beside).ok();
        }
        moved
    }

    fn create(dir: &Path, origin: &str, opened: &Opened) -> Result<String, SealError> {
        let mut builder = DirBuilder::new();
        // A web server goes through it to public/.
        builder.recursive(true).mode(0o711).create(dir).map_err(failed("create", dir))?;
        let checkpoints = dir.join("checkpoints");
        builder.create(&checkpoints).map_err(failed("create", &checkpoints))?;
        let [secret, seed] = [random(dir)?, random(dir)?];
        let key = SignerKey::new(origin, seed).map_err(|error| {
            SealError::unusable(dir, format!("the origin {origin:?} cannot name a key: {error}"))
        })?;
        let vkey = key.verifier().to_string();
        for (name, content, mode) in [
            ("secret", hex::encode(&secret), PRIVATE),
            ("key", key.secret_text(), PRIVATE),
            ("vkey", vkey.clone(), READABLE),
        ] {
            let path = dir.join(name);
            replace(&path, format!("{content}\n").as_bytes(), mode, None)
                .map_err(failed("write", &path))?;
        }
        let empty = Tip { size: 0, root: Frontier::default().root(), votes: 0, bytes: 0 };
        let Opened { lineage, horizon, rows, counted: _ } = opened.clone();
        let opening = Entry::Opening(Opening {
            format: FORMAT,
            origin: origin.to_owned(),
            vkey: vkey.clone(),
            rows,
            system_identifier: lineage.system_identifier.clone(),
            timeline: lineage.timeline,
        });
        let state = State {
            format: FORMAT,
            origin: origin.to_owned(),
            secret_sha256: Sha256::digest(secret).into(),
            lineage,
            horizon,
            tip: empty,
            intent: Some(Intent { to: horizon, sweep: None, tip: None }),
        };
        state.save(dir)?;
        let mut log = Self::open(dir)?;
        let mut segment = Segment::default();
        segment.add(&opening).map_err(|error| SealError::unusable(dir, error))?;
        log.seal(&segment.ordered())?;
        if rows > 0 {
            // The next round seals them.
            log.intend(horizon, Some(rows))?;
        }
        Ok(vkey)
    }

    /// Opens the log for appending, and compares its files with one another.
    ///
    /// # Errors
    /// [`SealError`]; [`SealError::Refused`] where a checkpoint is newer than the state, or of another tree.
    pub fn open(dir: &Path) -> Result<Self, SealError> {
        let lock = lock(dir)?;
        remove_leftovers(dir)?;
        remove_leftovers(&dir.join("checkpoints"))?;
        let state = State::load(dir)?;
        let (secret, key) = (read(dir, "secret")?, read(dir, "key")?);
        let (secret_path, key_path) = (dir.join("secret"), dir.join("key"));
        let secret = hex::decode(secret.trim_end())
            .ok_or_else(|| SealError::unusable(&secret_path, "it is not 64 hexadecimal digits"))?;
        if state.secret_sha256 != <[u8; 32]>::from(Sha256::digest(secret)) {
            let problem = "it is not the secret that this log began with: its commitments could not be opened";
            return Err(SealError::unusable(&secret_path, problem));
        }
        let key = SignerKey::parse(key.trim_end())
            .map_err(|error| SealError::unusable(&key_path, error))?;
        let vkey = key.verifier().to_string();
        if key.verifier().name() != state.origin || read(dir, "vkey")?.trim_end() != vkey {
            let problem =
                format!("it is not the key of {}, as vkey and state.json have it", state.origin);
            return Err(SealError::unusable(&key_path, problem));
        }
        let flat = Flat::open(dir)?;
        let secret = Secret::new(&secret);
        let mut log = Self { dir: dir.to_owned(), key, secret, state, flat, _lock: lock };
        log.compare_checkpoints()?;
        if !log.resume()? {
            log.flat.cut(&log.state.tip)?;
        }
        log.tree()?;
        Ok(log)
    }

    pub const fn state(&self) -> &State {
        &self.state
    }

    pub const fn secret(&self) -> &Secret {
        &self.secret
    }

    /// The tree of the committed entries, from the disk.
    pub(super) fn tree(&self) -> Result<Frontier, SealError> {
        let Tip { size, root, .. } = self.state.tip;
        let tree = Frontier::load(&self.flat, size);
        match tree {
            Ok(tree) if tree.root() == root => Ok(tree),
            Ok(_) => Err(self.refused(format_args!(
                "the hashes of the {size} entries on the disk do not lead to their signed root: they were changed"
            ))),
            Err(error) => Err(SealError::unusable(&self.dir, error)),
        }
    }

    /// The newest checkpoint has to be of the state, or of a round that was interrupted behind its signature: otherwise
    /// the directory was restored to an earlier state, and the next signature would be a second history.
    fn compare_checkpoints(&self) -> Result<(), SealError> {
        let State { tip, intent, .. } = &self.state;
        let newest = self.sizes()?.last().copied().unwrap_or_default();
        let next = intent.as_ref().and_then(|intent| intent.tip);
        let expected = [Some(*tip), next].into_iter().flatten().find(|it| it.size == newest);
        let Some(expected) = expected else {
            return Err(self.refused(format_args!(
                "checkpoints/ has one of {newest} entries, and state.json is of {}: the directory was restored to another \
                 state, or files were removed. A log is not restored from a backup; see the runbook, \"Sealing\"",
                tip.size
            )));
        };
        if newest > 0
            && let Some(found) = self.signed(newest)?
            && found != self.checkpoint_of(&expected)
        {
            return Err(self.forked(&found));
        }
        let Some(public) = Public { dir: &self.dir }.checkpoint()? else { return Ok(()) };
        // One that cannot be read is written anew.
        let public = Note::parse(&public).ok().and_then(|note| Checkpoint::parse(note.text()).ok());
        let Some(public) = public else { return Ok(()) };
        if self.signed(public.size)?.is_none_or(|kept| kept != public) {
            return Err(self.refused(format_args!(
                "public/checkpoint is of {} entries, and checkpoints/ does not have it: the directory was restored to an \
                 earlier state. A log is not restored from a backup; see the runbook, \"Sealing\"",
                public.size
            )));
        }
        Ok(())
    }

    /// The sizes of all kept checkpoints.
    pub(super) fn sizes(&self) -> Result<BTreeSet<u64>, SealError> {
        let path = self.dir.join("checkpoints");
        let mut sizes = BTreeSet::new();
        for entry in fs::read_dir(&path).map_err(failed("read", &path))? {
            let name = entry.map_err(failed("read", &path))?.file_name();
            sizes.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        Ok(sizes)
    }

    pub(super) fn signed_path(&self, size: u64) -> PathBuf {
        self.dir.join("checkpoints").join(size.to_string())
    }

    /// The kept checkpoint of this size, which our key has to have signed.
    pub(super) fn signed(&self, size: u64) -> Result<Option<Checkpoint>, SealError> {
        let path = self.signed_path(size);
        let content = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(failed("read", &path))?,
        };
        let note = Note::parse(&content).map_err(|error| SealError::unusable(&path, error))?;
        if !note.signed_by(&self.key.verifier()).unwrap_or(false) {
            return Err(SealError::unusable(
                &path,
                "the log's key did not sign it: it was changed",
            ));
        }
        let checkpoint = Checkpoint::parse(note.text());
        checkpoint.map(Some).map_err(|error| SealError::unusable(&path, error))
    }

    pub(super) fn checkpoint_of(&self, tip: &Tip) -> Checkpoint {
        Checkpoint { origin: self.state.origin.clone(), size: tip.size, root: tip.root }
    }

    pub(super) fn forked(&self, found: &Checkpoint) -> SealError {
        self.refused(format_args!(
            "checkpoints/{} is signed with another root than these entries have. See the runbook, \"Sealing\"",
            found.size
        ))
    }

    pub(super) fn refused(&self, why: std::fmt::Arguments<'_>) -> SealError {
        SealError::Refused(format!("{}: {why}", self.dir.display()))
    }
}
