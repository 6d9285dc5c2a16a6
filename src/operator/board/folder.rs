//! The folder of a web server that the files are written into.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirEntry, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::File;
use crate::operator::files::{READABLE, replace};

/// The file whose lock keeps a second board away.
const LOCK: &str = ".board.lock";
/// The frozen copies: those that are not public any longer are removed.
const FINALS: &str = "final";
/// The subfolders that a board writes into.
const SUBFOLDERS: [&str; 4] = ["assets", "en", "fr", FINALS];
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
    written: BTreeMap<String, Bytes>,
    /// The frozen copies in the folder.
    finals: BTreeSet<String>,
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
        let mut folder = Self {
            path: path.to_owned(),
            _lock: lock,
            written: BTreeMap::new(),
            finals: BTreeSet::new(),
            modified: SystemTime::UNIX_EPOCH,
        };
        folder.take_in("").map_err(failed)?;
        for name in SUBFOLDERS.map(|name| format!("{name}/")) {
            folder.take_in(&name).map_err(failed)?;
        }
        Ok(folder)
    }

    /// Takes in the files that a board before this one wrote into a subfolder.
    fn take_in(&mut self, below: &str) -> io::Result<()> {
        let entries = match fs::read_dir(self.path.join(below)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !below.is_empty() => {
                return Ok(());
            }
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if is_temporary(&entry) {
                // Of a board that was killed: the web server would serve it.
                fs::remove_file(entry.path())?;
                continue;
            }
            let found = entry.metadata()?;
            self.modified = self.modified.max(found.modified()?);
            let Ok(name) = entry.file_name().into_string() else { continue };
            let is_final = below.starts_with(FINALS);
            if found.is_dir() && is_final && name.bytes().all(|byte| byte.is_ascii_digit()) {
                self.take_in(&format!("{below}{name}/"))?;
            } else if found.is_file() && is_final {
                self.finals.insert(format!("{below}{name}"));
            }
        }
        Ok(())
    }

    /// Writes those files that have changed, each as a whole, and removes the frozen copies that are not
    /// among `files`. What could not be written is tried again the next time.
    ///
    /// # Errors
    /// [`FolderError`], for the first one. The file from before is still there; without `numbers`, where the
    /// files must show none, it is removed, which a full disk allows.
    pub fn write(&mut self, files: &[File], numbers: bool) -> Result<(), FolderError> {
        self.modified = SystemTime::now().max(self.modified + MIN_MTIME_STEP);
        let mut outcome = Ok(());
        for File { name, kind, content } in files {
            if self.written.get(name) == Some(content) {
                continue;
            }
            let path = self.path.join(name);
            let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
            match folder.and_then(|()| replace(&path, content, READABLE, Some(self.modified))) {
                Ok(()) => {
                    self.written.insert(name.clone(), content.clone());
                    if name.starts_with(FINALS) {
                        self.finals.insert(name.clone());
                    }
                }
                // The others may hold what must not be shown any longer.
                Err(source) => {
                    if !numbers && kind.has_numbers() && fs::remove_file(&path).is_ok() {
                        self.written.remove(name);
                    }
                    outcome = outcome.and(Err(FolderError::Io { path, source }));
                }
            }
        }
        let kept = |name: &str| files.iter().any(|file| file.name == name);
        for name in self.finals.clone().into_iter().filter(|name| !kept(name)) {
            let path = self.path.join(&name);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    outcome = outcome.and(Err(FolderError::Io { path, source }));
                }
                _ => {
                    self.finals.remove(&name);
                    self.written.remove(&name);
                }
            }
        }
        outcome
    }
}

/// Whether it is a file that was being written: its name ends as `replace` makes it.
fn is_temporary(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    let parts = name.to_str().and_then(|name| name.strip_suffix(".new")?.rsplit_once('.'));
    parts.is_some_and(|(_, digits)| {
        digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::board::Kind;
    use crate::operator::files::tests::Directory;

    fn named(name: &str, content: &str) -> File {
        File { name: name.to_owned(), kind: Kind::Json, content: Bytes::from(content.to_owned()) }
    }

    fn file(content: &str) -> [File; 1] {
        [named("results.json", content)]
    }

    #[test]
    fn each_version_is_at_least_a_second_younger_than_the_one_before() {
        let directory = Directory::new("board");
        let mut folder = Folder::open(&directory.path("")).expect("a folder of its own");
        let path = directory.path("results.json");
        let modified = || fs::metadata(&path).and_then(|it| it.modified()).expect("there");
        folder.write(&file("1"), true).expect("written");
        let first = modified();
        folder.write(&file("2"), true).expect("written");
        let second = modified();
        assert!(second >= first + MIN_MTIME_STEP, "{first:?} and {second:?}");
        folder.write(&file("2"), true).expect("unchanged");
        assert_eq!(modified(), second);

        assert!(matches!(Folder::open(&directory.path("")), Err(FolderError::Occupied { .. })));
        drop(folder);
        // Also those of a board that ran before this one.
        let mut folder = Folder::open(&directory.path("")).expect("free again");
        folder.write(&file("3"), true).expect("written");
        assert!(modified() >= second + MIN_MTIME_STEP);
        assert!(Folder::open(&directory.path("missing")).is_err());
    }

    #[test]
    fn what_a_killed_board_left_half_written_is_removed() {
        let directory = Directory::new("boardkilled");
        fs::create_dir_all(directory.path("fr")).expect("created");
        let half = ["results.json.0123abcd.new", "fr/index.html.01234567.new"];
        let half = half.map(|name| directory.write(name, "{"));
        let others = ["results.json", "index.html.new"].map(|name| directory.write(name, "x"));
        Folder::open(&directory.path("")).expect("a folder of its own");
        assert!(!half.iter().any(|half| half.exists()));
        assert!(others.iter().all(|other| other.exists()));
    }

    #[test]
    fn a_file_that_cannot_be_written_keeps_no_other_from_being_replaced() {
        let directory = Directory::new("boardfull");
        fs::create_dir_all(directory.path("results.json")).expect("in its way");
        let mut folder = Folder::open(&directory.path("")).expect("a folder of its own");
        let [json] = file("withheld");
        assert!(folder.write(&[json, named("results.csv", "withheld")], true).is_err());
        let csv = fs::read_to_string(directory.path("results.csv"));
        assert_eq!(csv.expect("written"), "withheld");
    }

    /// As on a full disk, where nothing can be written and everything removed: here no longer name fits.
    #[test]
    fn a_file_with_numbers_that_cannot_be_replaced_is_removed_if_none_may_be_shown() {
        let directory = Directory::new("boardremoved");
        let mut folder = Folder::open(&directory.path("")).expect("a folder of its own");
        let name = "a".repeat(250);
        let path = directory.write(&name, "numbers");
        assert!(folder.write(&[named(&name, "more")], true).is_err());
        assert!(path.exists(), "numbers are public");
        let style = File { kind: Kind::Css, ..named(&name, "p {}") };
        assert!(folder.write(&[style], false).is_err());
        assert!(path.exists(), "a style shows none");
        assert!(folder.write(&[named(&name, "withheld")], false).is_err());
        assert!(!path.exists());
    }

    #[test]
    fn a_frozen_copy_that_is_not_public_any_longer_is_removed() {
        let directory = Directory::new("boardfinal");
        let mut folder = Folder::open(&directory.path("")).expect("a folder of its own");
        let copies = ["final/7/results.json", "final/9/results.json"].map(|name| named(name, "{}"));
        folder.write(&copies, true).expect("written");
        folder.write(&copies[1..], true).expect("written");
        let exists = |name: &str| directory.path(name).exists();
        assert!(!exists("final/7/results.json") && exists("final/9/results.json"));
        drop(folder);
        // Also one of a board that ran before this one, and not before something was read.
        let mut folder = Folder::open(&directory.path("")).expect("free again");
        assert!(exists("final/9/results.json"));
        folder.write(&file("withheld"), true).expect("written");
        assert!(!exists("final/9/results.json"));
        folder.write(&copies, true).expect("written");
        assert!(exists("final/7/results.json"));
    }
}
