//! How far a file is published, in a small file that is replaced as a whole each time.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::lines::Position;
use crate::model::hex;
use crate::operator::files;

/// Bytes at the beginning, and before the position reached, that identify a file.
const SAMPLE: u64 = 64 * 1_024;
/// Of the file's format; other versions are refused.
const VERSION: u32 = 1;

/// Why a checkpoint cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error(
        "{} is not a regular file: a checkpoint requires a file that can be read again from any \
         position. Without --checkpoint it can be published; what was counted is not counted twice",
        file.display()
    )]
    NotAFile { file: PathBuf },
    #[error("{} is not a checkpoint file ({reason}). Name another file, or delete it", path.display())]
    Malformed { path: PathBuf, reason: String },
    #[error(
        "the checkpoint {} belongs to another file: {} {reason}, and it was written for {written_for:?}. \
         Name the right one, or delete it to begin at the first line",
        path.display(), file.display()
    )]
    OtherFile { path: PathBuf, file: PathBuf, written_for: String, reason: &'static str },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write the checkpoint {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// What the file holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u32,
    /// Only for error messages: a file that was moved is still the same.
    file: String,
    /// Every line before it is confirmed by the broker.
    confirmed: Position,
    /// SHA-256 of the file's first bytes and of those before that position, in hexadecimal.
    content: String,
}

/// A checkpoint of one file of votes.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    file: PathBuf,
    votes: File,
}

impl Checkpoint {
    /// Reads the checkpoint at `path` of the votes in `file`, and where to go on: at the first line when
    /// there is none yet. A file that has grown at its end since then is the same file.
    ///
    /// # Errors
    /// [`CheckpointError`], for example when it was written for another file.
    pub fn open(path: &Path, file: &Path) -> Result<(Self, Position), CheckpointError> {
        let unreadable = |source| CheckpointError::Read { path: file.to_owned(), source };
        // Checked before it is opened: opening a pipe waits for its writer.
        if !fs::metadata(file).map_err(unreadable)?.is_file() {
            return Err(CheckpointError::NotAFile { file: file.to_owned() });
        }
        let votes = File::open(file).map_err(unreadable)?;
        let checkpoint = Self { path: path.to_owned(), file: file.to_owned(), votes };
        let reached = checkpoint.read()?;
        Ok((checkpoint, reached))
    }

    /// Saves that every line before `reached` is confirmed. The file is replaced as a whole.
    ///
    /// # Errors
    /// [`CheckpointError`] when it could not be written; the previous one is still there.
    pub fn save(&self, reached: Position) -> Result<(), CheckpointError> {
        let saved = Saved {
            version: VERSION,
            file: self.file.display().to_string(),
            confirmed: reached,
            content: self.content(reached).map_err(|source| self.unreadable(source))?,
        };
        serde_json::to_string_pretty(&saved)
            .map_err(io::Error::other)
            .and_then(|text| {
                files::replace(&self.path, (text + "\n").as_bytes(), files::PRIVATE, None)
            })
            .map_err(|source| CheckpointError::Write { path: self.path.clone(), source })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn unreadable(&self, source: io::Error) -> CheckpointError {
        CheckpointError::Read { path: self.file.clone(), source }
    }

    fn read(&self) -> Result<Position, CheckpointError> {
        let path = || self.path.clone();
        let malformed = |reason: String| CheckpointError::Malformed { path: path(), reason };
        let saved = match fs::read(&self.path) {
            Ok(saved) => saved,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Position::default()),
            Err(source) => return Err(CheckpointError::Read { path: path(), source }),
        };
        let saved: Saved =
            serde_json::from_slice(&saved).map_err(|error| malformed(error.to_string()))?;
        if saved.version != VERSION {
            return Err(malformed(format!("version {} and not {VERSION}", saved.version)));
        }
        let Position { bytes, .. } = saved.confirmed;
        let unreadable = |source| self.unreadable(source);
        let size = self.votes.metadata().map_err(unreadable)?.len();
        let reason = if size < bytes {
            "is shorter than what was published of it"
        } else if self.content(saved.confirmed).map_err(unreadable)? != saved.content {
            "has other lines"
        } else if let Some(bytes) = self.next_line(bytes, size).map_err(unreadable)? {
            return Ok(Position { bytes, ..saved.confirmed });
        } else {
            "has a longer last line"
        };
        let (file, written_for) = (self.file.clone(), saved.file);
        Err(CheckpointError::OtherFile { path: path(), file, written_for, reason })
    }

    /// Returns where the next line begins. A last line needs no line break; it gets one when the file
    /// grows. `None` when that line itself has grown.
    fn next_line(&self, bytes: u64, size: u64) -> io::Result<Option<u64>> {
        let Some(before) = bytes.checked_sub(1).filter(|_| bytes < size) else {
            return Ok(Some(bytes));
        };
        let mut around = [0; 3];
        let length = 3.min(usize::try_from(size - before).unwrap_or(3));
        self.votes.read_exact_at(&mut around[..length], before)?;
        Ok(match around {
            [b'\n', ..] => Some(bytes),
            [_, b'\n', _] => Some(bytes + 1),
            [_, b'\r', b'\n'] => Some(bytes + 2),
            _ => None,
        })
    }

    fn content(&self, reached: Position) -> io::Result<String> {
        let length = reached.bytes.min(SAMPLE);
        let mut sample = vec![0; usize::try_from(length).unwrap_or_default()];
        let mut hash = Sha256::new();
        for from in [0, reached.bytes - length] {
            self.votes.read_exact_at(&mut sample, from)?;
            hash.update(&sample);
        }
        Ok(hex::encode(&hash.finalize()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::files::tests::Directory;

    fn lines(count: usize) -> String {
        (0..count).map(|number| format!("line {number}\n")).collect()
    }

    fn at(bytes: usize, lines: u64) -> Position {
        Position { bytes: bytes as u64, lines, blank: 0 }
    }

    #[test]
    fn it_is_found_again_for_the_same_lines_wherever_they_are() {
        let directory = Directory::new("checkpoint-same");
        let (path, text) = (directory.path("checkpoint"), lines(30_000));
        let votes = directory.write("votes", &text);
        let (checkpoint, from) = Checkpoint::open(&path, &votes).expect("a new one");
        assert_eq!(from, Position::default());
        let reached = at(lines(20_000).len(), 20_000);
        checkpoint.save(reached).expect("saved");

        let moved = directory.path("moved");
        fs::rename(&votes, &moved).expect("moved");
        assert_eq!(Checkpoint::open(&path, &moved).expect("the same").1, reached);
        fs::write(&moved, text + "one more\n").expect("grown");
        assert_eq!(Checkpoint::open(&path, &moved).expect("the same").1, reached);
    }

    #[test]
    fn one_of_another_file_is_refused_and_stays() {
        let directory = Directory::new("checkpoint-other");
        let (path, text) = (directory.path("checkpoint"), lines(30_000));
        let votes = directory.write("votes", &text);
        let (checkpoint, _) = Checkpoint::open(&path, &votes).expect("a new one");
        checkpoint.save(at(text.len(), 30_000)).expect("saved");
        let saved = fs::read(&path).expect("there");
        for (name, other, reason) in [
            ("first", text.replacen("line 0", "line X", 1), "has other lines"),
            ("last", text.replace("line 29999", "line 2999X"), "has other lines"),
            ("short", lines(10), "is shorter"),
            ("grown", text.replace("29999\n", "29999 more\n"), "has other lines"),
        ] {
            let other = directory.write(name, &other);
            let refused = Checkpoint::open(&path, &other).expect_err(name);
            assert!(matches!(refused, CheckpointError::OtherFile { .. }), "{name}: {refused}");
            let message = refused.to_string();
            assert!(message.contains(reason) && message.contains("votes"), "{message}");
        }
        assert_eq!(fs::read(&path).expect("there"), saved);
    }

    /// What was the whole last line, without a line break, may be a part of one later.
    #[test]
    fn a_last_line_without_a_line_break_may_get_one_and_may_not_go_on() {
        let directory = Directory::new("checkpoint-unended");
        let path = directory.path("checkpoint");
        let votes = directory.write("votes", "one\ntwo");
        let (checkpoint, _) = Checkpoint::open(&path, &votes).expect("a new one");
        checkpoint.save(at(7, 2)).expect("saved");
        for (grown, next) in
            [("one\ntwo", 7), ("one\ntwo\nthree", 8), ("one\ntwo\r\nthree", 9), ("one\ntwo\n", 8)]
        {
            fs::write(&votes, grown).expect("grown");
            let opened = Checkpoint::open(&path, &votes).expect("a whole line");
            assert_eq!(opened.1, at(next, 2), "{grown:?}");
        }
        fs::write(&votes, "one\ntwo and more\n").expect("grown");
        let refused = Checkpoint::open(&path, &votes).expect_err("half a line");
        assert!(refused.to_string().contains("has a longer last line"), "{refused}");
    }

    #[test]
    fn what_is_not_a_checkpoint_or_has_none_is_refused() {
        let directory = Directory::new("checkpoint-none");
        let votes = directory.write("votes", "one\n");
        let refused = Checkpoint::open(&votes, &votes).expect_err("the votes themselves");
        assert!(matches!(refused, CheckpointError::Malformed { .. }), "{refused}");
        let newer = directory.write(
            "newer",
            r#"{"version": 2, "file": "votes", "confirmed": {"bytes": 0, "lines": 0, "blank": 0}, "content": ""}"#,
        );
        let refused = Checkpoint::open(&newer, &votes).expect_err("of a later version");
        assert!(refused.to_string().contains("version 2"), "{refused}");

        let (checkpoint, from) =
            Checkpoint::open(&directory.path("nowhere/checkpoint"), &votes).expect("a new one");
        let refused = checkpoint.save(from).expect_err("no such directory");
        assert!(matches!(refused, CheckpointError::Write { .. }), "{refused}");
        let path = directory.path("checkpoint");
        let refused = Checkpoint::open(&path, &directory.path("")).expect_err("a directory");
        assert!(matches!(refused, CheckpointError::NotAFile { .. }), "{refused}");
        let refused = Checkpoint::open(&path, &directory.path("missing")).expect_err("no votes");
        assert!(matches!(refused, CheckpointError::Read { .. }), "{refused}");
    }
}
