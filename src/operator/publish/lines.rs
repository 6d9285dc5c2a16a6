//! Lines of a file: bounded in memory, and each with the place where it ends.

use std::mem;

use serde::{Deserialize, Serialize};
use tokio::io::{self, AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

/// Longest line, in bytes. A vote has some hundred, a message 16 KiB by default; a file with longer
/// lines holds something else.
pub const LONGEST_LINE: usize = 16 * 1_024 * 1_024;

/// Byte order mark: Windows writes it at the beginning of a file, or of a line where files were joined.
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

impl Position {
    /// Returns how many messages come before it.
    pub const fn messages(&self) -> u64 {
        self.lines - self.blank
    }
}

/// Whatever lines are read from.
pub type Input = Box<dyn AsyncRead + Unpin + Send>;

/// The lines of a file that are not blank.
pub struct Lines {
    input: BufReader<Input>,
    longest: usize,
    /// After the last line that was read to its end.
    at: Position,
    /// What is read of the next one.
    line: Vec<u8>,
    /// The rest of that line is skipped: it was reported as too long.
    skipping: bool,
}

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// Without white space around it and a byte order mark before it. Bytes and not text: the service
    /// decides whether they are UTF-8.
    Body(Vec<u8>),
    /// This line, counted from 1, is longer than [`LONGEST_LINE`].
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
            skipping: false,
        }
    }

    /// After the last line, blank or not, that was read to its end.
    pub const fn position(&self) -> Position {
        self.at
    }

    /// Returns the next line that is not blank; `None` at the end. Cancel safe: what was read of a line
    /// is kept.
    ///
    /// # Errors
    /// The error of a read.
    pub async fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let limit = self.longest + 1;
            let mut input = (&mut self.input).take((limit - self.line.len()) as u64);
            input.read_until(b'\n', &mut self.line).await?;
            if self.line.is_empty() && !self.skipping {
                return Ok(None);
            }
            self.at.bytes += self.line.len() as u64;
            if self.line.len() == limit && !self.line.ends_with(b"\n") {
                self.line = Vec::new();
                if !mem::replace(&mut self.skipping, true) {
                    return Ok(Some(Line::TooLong { number: self.at.lines + 1 }));
                }
                continue;
            }
            self.at.lines += 1;
            let body = self.line.trim_ascii();
            let body = body.strip_prefix(BOM).unwrap_or(body).trim_ascii().to_vec();
            self.line.clear();
            if mem::take(&mut self.skipping) {
                continue;
            }
            if !body.is_empty() {
                return Ok(Some(Line::Body(body)));
            }
            self.at.blank += 1;
        }
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

    /// Each line with the place where it ends, and the place after the last one.
    async fn all(mut lines: Lines) -> (Vec<(Line, Position)>, Position) {
        let mut found = Vec::new();
        while let Some(line) = lines.next().await.expect("memory can be read") {
            found.push((line, lines.position()));
        }
        (found, lines.position())
    }

    fn body(body: &[u8], bytes: u64, lines: u64, blank: u64) -> (Line, Position) {
        (Line::Body(body.to_vec()), Position { bytes, lines, blank })
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
        let found: Vec<Line> = found.into_iter().map(|(line, _)| line).collect();
        let (second, fourth) = (Line::TooLong { number: 2 }, Line::TooLong { number: 4 });
        let [a, b, c] = [&b"a"[..], b"b", b"1234"].map(|body| Line::Body(body.to_vec()));
        assert_eq!(found, [a, second, b, fourth, c]);
        assert_eq!(end, Position { bytes: 22, lines: 5, blank: 0 });
    }

    /// What is kept of a line without an end does not grow.
    #[tokio::test]
    async fn an_endless_line_is_reported_at_once() {
        let mut lines = Lines::new(Box::new(tokio::io::repeat(b'x')), Position::default());
        assert_eq!(lines.next().await.expect("read"), Some(Line::TooLong { number: 1 }));
        assert!(lines.line.capacity() == 0, "freed");
    }
}
