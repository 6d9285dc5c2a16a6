//! Lines of a file: bounded in memory, and each with the place where it ends.

use std::mem;

use serde::{Deserialize, Serialize};
use tokio::io::{self, AsyncBufReadExt, AsyncRead, BufReader};

/// Longest line, in bytes. A vote has some hundred, a message 16 KiB by default; something that goes
/// on for longer is no file of votes.
pub const LONGEST_LINE: usize = 16 * 1_024 * 1_024;

/// What Windows writes before UTF-8, at the beginning of a file, or of a line where files were joined.
pub const BOM: &[u8] = b"\xef\xbb\xbf";

/// A place in a file, at the end of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Bytes before it.
    pub bytes: u64,
    /// Lines before it, blank ones among them.
    pub lines: u64,
    /// Blank lines before it.
    pub blank: u64,
}

/// Whatever lines come out of.
pub type Input = Box<dyn AsyncRead + Unpin + Send>;

/// The lines of a file that are not blank.
pub struct Lines {
    input: BufReader<Input>,
    longest: usize,
    /// Behind the last line that was read to its end.
    at: Position,
    /// The beginning of the next one; what of it is taken from the input, in bytes.
    line: Vec<u8>,
    taken: u64,
    /// The rest of that line is passed over: it was told that it is too long.
    skipping: bool,
}

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// Without the white space around it, and a byte order mark before it. Bytes and not text: whether they are UTF-8 is for the
    /// service to judge.
    Body { body: Vec<u8>, end: Position },
    /// This line, counted from 1, goes on for more than [`LONGEST_LINE`].
    TooLong { number: u64 },
}

impl Lines {
    /// Lines from `at`, where `input` begins.
    pub fn new(input: Input, at: Position) -> Self {
        Self {
            input: BufReader::with_capacity(64 * 1_024, input),
            longest: LONGEST_LINE,
            at,
            line: Vec::new(),
            taken: 0,
            skipping: false,
        }
    }

    /// Behind the last line, blank or not, that was read to its end.
    pub const fn position(&self) -> Position {
        self.at
    }

    /// The next line that is not blank; `None` at the end. May be dropped half-way, nothing is lost
    /// by it.
    ///
    /// # Errors
    /// What reading ran into.
    pub async fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let chunk = self.input.fill_buf().await?;
            if chunk.is_empty() {
                let rest = if self.taken > 0 { self.finish() } else { None };
                return Ok(rest);
            }
            let end = chunk.iter().position(|&byte| byte == b'\n');
            let length = end.map_or(chunk.len(), |end| end + 1);
            let text = &chunk[..end.unwrap_or(length)];
            let too_long = !self.skipping && self.line.len() + text.len() > self.longest;
            if too_long {
                self.line = Vec::new();
                self.skipping = true;
            } else if !self.skipping {
                self.line.extend_from_slice(text);
            }
            self.input.consume(length);
            self.taken += length as u64;
            let number = self.at.lines + 1;
            let whole = if end.is_some() { self.finish() } else { None };
            if too_long {
                return Ok(Some(Line::TooLong { number }));
            }
            if whole.is_some() {
                return Ok(whole);
            }
        }
    }

    /// The line is whole; blank ones, and those that were told already, are only counted.
    fn finish(&mut self) -> Option<Line> {
        self.at.bytes += mem::take(&mut self.taken);
        self.at.lines += 1;
        let told = mem::take(&mut self.skipping);
        let body = self.line.trim_ascii();
        let body = body.strip_prefix(BOM).unwrap_or(body).trim_ascii();
        let line = match body.is_empty() {
            true => None,
            false => Some(Line::Body { body: body.to_vec(), end: self.at }),
        };
        self.line.clear();
        if line.is_none() && !told {
            self.at.blank += 1;
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn lines(text: &'static [u8], longest: usize) -> Lines {
        let mut lines = Lines::new(Box::new(Cursor::new(text)), Position::default());
        lines.longest = longest;
        lines
    }

    async fn all(mut lines: Lines) -> (Vec<Line>, Position) {
        let mut found = Vec::new();
        while let Some(line) = lines.next().await.expect("memory can be read") {
            found.push(line);
        }
        (found, lines.position())
    }

    fn body(body: &[u8], bytes: u64, lines: u64, blank: u64) -> Line {
        Line::Body { body: body.to_vec(), end: Position { bytes, lines, blank } }
    }

    #[tokio::test]
    async fn each_line_says_where_it_ends_and_blank_ones_are_counted() {
        let (found, end) = all(lines(b"a\n\n \r\n b\xff \r\nc", 100)).await;
        assert_eq!(found, [body(b"a", 2, 1, 0), body(b"b\xff", 12, 4, 2), body(b"c", 13, 5, 2)]);
        assert_eq!(end, Position { bytes: 13, lines: 5, blank: 2 });
        let (found, end) = all(lines(b"a\n\n", 100)).await;
        assert_eq!(found, [body(b"a", 2, 1, 0)]);
        assert_eq!(end, Position { bytes: 3, lines: 2, blank: 1 });
        assert_eq!(all(lines(b"", 100)).await, (vec![], Position::default()));
        let marked = b"\xef\xbb\xbfa\n\xef\xbb\xbf\n\xef\xbb\xbf b\xef\xbb\xbf\n";
        let (found, _) = all(lines(marked, 100)).await;
        assert_eq!(found, [body(b"a", 5, 1, 0), body(b"b\xef\xbb\xbf", 18, 3, 1)]);
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_named_and_the_next_one_is_whole() {
        let (found, end) = all(lines(b"a\n12345\nb\n123456\n1234\n", 4)).await;
        let (second, fourth) = (Line::TooLong { number: 2 }, Line::TooLong { number: 4 });
        assert_eq!(
            found,
            [body(b"a", 2, 1, 0), second, body(b"b", 10, 3, 0), fourth, body(b"1234", 22, 5, 0)]
        );
        assert_eq!(end, Position { bytes: 22, lines: 5, blank: 0 });
    }

    /// What is kept of a line without an end does not grow.
    #[tokio::test]
    async fn an_endless_line_is_told_at_once() {
        let mut lines = Lines::new(Box::new(tokio::io::repeat(b'x')), Position::default());
        assert_eq!(lines.next().await.expect("read"), Some(Line::TooLong { number: 1 }));
        assert!(lines.line.capacity() == 0, "let go");
    }
}
