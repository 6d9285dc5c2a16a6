//! The lock, keys and leftovers of a log's directory.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ring::rand::{SecureRandom, SystemRandom};

use super::{SealError, failed};
use crate::operator::files::PRIVATE;

/// The lock on the directory, which ends with the process.
pub(super) fn lock(dir: &Path) -> Result<File, SealError> {
    if !dir.join("state.json").exists() {
        return Err(SealError::unusable(
            dir,
            "it is not the directory of a log: `vote-aggregator seal init` creates one",
        ));
    }
    let path = dir.join("lock");
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(PRIVATE).open(&path);
    let file = file.map_err(failed("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SealError::Busy(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
    }
}

/// A small text file of the directory.
pub(super) fn read(dir: &Path, name: &str) -> Result<String, SealError> {
    let path = dir.join(name);
    fs::read_to_string(&path).map_err(failed("read", &path))
}

/// Removes files that a replacement left when it was interrupted.
pub(super) fn remove_leftovers(dir: &Path) -> Result<(), SealError> {
    for entry in fs::read_dir(dir).map_err(failed("read", dir))? {
        let path = entry.map_err(failed("read", dir))?.path();
        if path.extension().is_some_and(|extension| extension == "new") {
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
    }
    Ok(())
}

/// 32 bytes that nobody else knows.
pub(super) fn random(dir: &Path) -> Result<[u8; 32], SealError> {
    let mut bytes = [0; 32];
    let filled = SystemRandom::new().fill(&mut bytes);
    let unavailable =
        |_| failed("create keys in", dir)(io::Error::other("the system gives no random bytes"));
    filled.map_err(unavailable).map(|()| bytes)
}
