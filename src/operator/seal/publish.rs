//! `public/`: what anybody may read of the log, as a web server serves it (c2sp.org/tlog-tiles). It is derived from the
//! log's own files, so that none of it is synced; what a crash lost is written again at the next start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::flat::{Flat, hashes_in};
use super::{SealError, failed};
use crate::model::tlog::tree::{TILE_WIDTH, tile_path};
use crate::operator::files::READABLE;

const WIDTH: u64 = TILE_WIDTH as u64;

pub(super) struct Public<'d> {
    /// The log's directory.
    pub dir: &'d Path,
}

impl Public<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join("public").join(name)
    }

    /// The newest checkpoint that was published.
    pub fn checkpoint(&self) -> Result<Option<Vec<u8>>, SealError> {
        let path = self.path("checkpoint");
        match fs::read(&path) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// Writes the tiles that a tree of `size` leaves has and one of `before` does not, where they are not there yet, then
    /// the checkpoint.
    pub fn publish(
        &self,
        flat: &Flat,
        before: u64,
        (size, checkpoint): (u64, &[u8]),
    ) -> Result<(), SealError> {
        for level in (0_u8..8).take_while(|level| hashes_in(*level, size) > 0) {
            let (from, to) = (hashes_in(level, before), hashes_in(level, size));
            for number in from / WIDTH..to.div_ceil(WIDTH) {
                let width = (to - number * WIDTH).min(WIDTH);
                let name = tile_path(level, number, u32::try_from(width).unwrap_or(TILE_WIDTH));
                let path = self.path(&name);
                if has_length(&path, 32 * width) {
                    continue;
                }
                let count = usize::try_from(width).unwrap_or_default();
                let hashes = flat.hashes(level, number * WIDTH, count)?;
                write(&path, hashes.as_flattened())?;
                if width == WIDTH {
                    // Whoever looks for a part of it takes the whole, as tlog-tiles says.
                    let parts = path.with_extension("p");
                    match fs::remove_dir_all(&parts) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => {
                            return Err(failed("remove", &parts)(error));
                        }
                        _ => {}
                    }
                }
            }
        }
        write(&self.path(&format!("checkpoints/{size}")), checkpoint)?;
        write(&self.path("checkpoint"), checkpoint)
    }

    /// Publishes an earlier checkpoint, unless it is there.
    pub fn keep(&self, size: u64, checkpoint: &Path) -> Result<(), SealError> {
        let path = self.path(&format!("checkpoints/{size}"));
        let length = fs::metadata(checkpoint).map_err(failed("read", checkpoint))?.len();
        if has_length(&path, length) {
            return Ok(());
        }
        write(&path, &fs::read(checkpoint).map_err(failed("read", checkpoint))?)
    }
}

fn has_length(path: &Path, length: u64) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() == length)
}

/// Replaces a file as a whole. Only the process that holds the lock writes here, so that the name beside it is free.
fn write(path: &Path, content: &[u8]) -> Result<(), SealError> {
    let beside = path.with_added_extension("new");
    let written = path
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| create(&beside))
        .and_then(|mut file| file.write_all(content))
        .and_then(|()| fs::rename(&beside, path));
    written.map_err(failed("write", path))
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(READABLE).open(path)
}
