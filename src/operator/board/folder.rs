//! The folder of a web server that the files are written into.

use std::collections::BTreeMap;
use std::fs::{self, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::File;
use crate::operator::files::{READABLE, replace};

/// The file whose lock keeps a second board away.
const LOCK: &str = ".board.lock";
/// nginx makes its ETag of a file's length and of the whole seconds of its last change, and two versions
/// may have the same length.
const MIN_MTIME_STEP: Duration = Duration::from_secs(1);

/// Why nothing can be written into a folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("another board writes into {}", path.display())]
    Occupied { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A folder that is this board's alone as long as this value lives.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: fs::File,
    written: BTreeMap<&'static str, String>,
    /// When the files were last changed; only ever later.
    modified: SystemTime,
}

impl Folder {
    /// The folder at `path`, which exists. Removes temporary files, and leaves the others as they are.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let failed = |source| FolderError::Io { path: path.to_owned(), source };
        let lock = fs::OpenOptions::new().create(true).append(true).open(path.join(LOCK));
        let lock = lock.map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(FolderError::Occupied { path: path.to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let mut modified = SystemTime::UNIX_EPOCH;
        for entry in fs::read_dir(path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            // Of a board that was killed: the web server would serve it.
            if let Some(name) = name.to_str()
                && name.starts_with("results.")
                && name.ends_with(".new")
            {
                fs::remove_file(entry.path()).map_err(failed)?;
                continue;
            }
            let entry = entry.metadata().and_then(|entry| entry.modified()).map_err(failed)?;
            modified = modified.max(entry);
        }
        Ok(Self { path: path.to_owned(), _lock: lock, written: BTreeMap::new(), modified })
    }

    /// Writes those files that have changed, each as a whole. What could not be written is tried again
    /// the next time.
    ///
    /// # Errors
    /// [`FolderError`], for the first one; the files from before are still there.
    pub fn write(&mut self, files: &[File]) -> Result<(), FolderError> {
        self.modified = SystemTime::now().max(self.modified + MIN_MTIME_STEP);
        let mut outcome = Ok(());
        for File { name, content } in files {
            if self.written.get(name) == Some(content) {
                continue;
            }
            let path = self.path.join(name);
            match replace(&path, content.as_bytes(), READABLE, Some(self.modified)) {
                Ok(()) => _ = self.written.insert(name, content.clone()),
                // The others may hold what must not be shown any longer.
                Err(source) => outcome = outcome.and(Err(FolderError::Io { path, source })),
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::files::tests::Directory;

    fn file(content: &str) -> [File; 1] {
        [File { name: "results.json", content: content.to_owned() }]
    }

    #[test]
    fn each_version_is_at_least_a_second_younger_than_the_one_before() {
        let directory = Directory::new("board");
        let mut folder = Folder::open(&directory.path("")).expect("a folder of its own");
        let path = directory.path("results.json");
        let modified = || fs::metadata(&path).and_then(|it| it.modified()).expect("there");
        folder.write(&file("1")).expect("written");
        let first = modified();
        folder.write(&file("2")).expect("written");
        let second = modified();
        assert!(second >= first + MIN_MTIME_STEP, "{first:?} and {second:?}");
        folder.write(&file("2")).expect("unchanged");
        assert_eq!(modified(), second);

        assert!(matches!(Folder::open(&directory.path("")), Err(FolderError::Occupied { .. })));
        drop(folder);
        // Also those of a board that ran before this one.
        let mut folder = Folder::open(&directory.path("")).expect("free again");
        folder.write(&file("3")).expect("written");
        assert!(modified() >= second + MIN_MTIME_STEP);
        assert!(Folder::open(&directory.path("missing")).is_err());
    }

    #[test]
    fn what_a_killed_board_left_half_written_is_removed() {
        let directory = Directory::new("boardkilled");
        let half = directory.write("results.json.0123abcd.new", "{");
        let others = ["results.json", "index.html.new"].map(|name| directory.write(name, "x"));
        Folder::open(&directory.path("")).expect("a folder of its own");
        assert!(!half.exists());
        assert!(others.iter().all(|other| other.exists()));
    }

    #[test]
    fn a_file_that_cannot_be_written_keeps_no_other_from_being_replaced() {
        let directory = Directory::new("boardfull");
        fs::create_dir_all(directory.path("results.json")).expect("in its way");
        let mut folder = Folder::open(&directory.path("")).expect("a folder of its own");
        let csv = File { name: "results.csv", content: "withheld".to_owned() };
        let [json] = file("withheld");
        assert!(folder.write(&[json, csv]).is_err());
        let csv = fs::read_to_string(directory.path("results.csv"));
        assert_eq!(csv.expect("written"), "withheld");
    }
}
