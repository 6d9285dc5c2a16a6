//! Cells: independent queues with a database each, among which a hash of `vote_hash` divides the votes.
//!
//! The number of cells never changes: under another one a vote that is delivered again would reach a
//! database that does not have it, and be counted twice.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crc::{CRC_32_ISO_HDLC, Crc, Table};
use serde::Serialize;

/// How many cells there may be.
pub const CELLS: RangeInclusive<u16> = 2..=1024;

/// Before a cell's text, where publishers route.
const BY_CRC32: &str = "crc32:";

/// The CRC-32 of zlib, gzip and PNG.
static CRC32: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISO_HDLC);

/// One cell of a number of cells. As text `3/16`, or `crc32:3/16` where publishers route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct Cell {
    /// From 0 on.
    pub number: u16,
    /// How many cells there are.
    pub of: u16,
    pub router: Router,
}

/// Who decides which cell a vote belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Router {
    /// An exchange, by a hash of its own: no vote can be checked.
    Exchange,
    /// Publishers, by [`of_hash`]: each vote is checked.
    Publishers,
}

/// Returns the number of the cell that a `vote_hash` belongs to where publishers route: its CRC-32 modulo
/// the number of cells.
pub fn of_hash(vote_hash: &str, cells: u16) -> u16 {
    let remainder = CRC32.checksum(vote_hash.as_bytes()) % u32::from(cells);
    u16::try_from(remainder).expect("less than the number of cells")
}

impl Cell {
    /// Whether a vote with this hash belongs to another cell, as far as that can be known.
    pub fn is_foreign(self, vote_hash: &str) -> bool {
        self.router == Router::Publishers && of_hash(vote_hash, self.of) != self.number
    }
}

/// Not a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a cell is its number, from 0 on, and the number of cells, 2 to 1024, such as 3/16; crc32:3/16 where \
     publishers route by the CRC-32 of vote_hash"
)]
pub struct NotACell;

impl FromStr for Cell {
    type Err = NotACell;

    fn from_str(text: &str) -> Result<Self, NotACell> {
        let (router, cell) = match text.strip_prefix(BY_CRC32) {
            Some(cell) => (Router::Publishers, cell),
            None => (Router::Exchange, text),
        };
        let (number, of) = cell.split_once('/').ok_or(NotACell)?;
        match (number.parse(), of.parse()) {
            (Ok(number), Ok(of)) if CELLS.contains(&of) && number < of => {
                Ok(Self { number, of, router })
            }
            _ => Err(NotACell),
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, of, router } = self;
        let prefix = if *router == Router::Publishers { BY_CRC32 } else { "" };
        write!(f, "{prefix}{number}/{of}")
    }
}

impl From<Cell> for String {
    fn from(cell: Cell) -> Self {
        cell.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_read_as_it_is_written() {
        for text in ["0/2", "3/16", "15/16", "1023/1024", "crc32:3/16"] {
            let cell: Cell = text.parse().expect(text);
            assert_eq!(cell.to_string(), text);
        }
        for wrong in ["", "3", "3/", "/16", "16/16", "0/1", "0/1025", "-1/16", "crc:3/16", "3/16/2"]
        {
            assert_eq!(wrong.parse::<Cell>(), Err(NotACell), "{wrong}");
        }
    }

    /// As `zlib.crc32` of Python, `crc32` of PHP and of PostgreSQL 18 have it.
    #[test]
    fn the_cell_of_a_hash_never_changes() {
        assert_eq!(CRC32.checksum(b"123456789"), 0xcbf4_3926);
        assert_eq!(CRC32.checksum(b""), 0);
        assert_eq!(of_hash("123456789", 16), 6);
        assert_eq!(of_hash("hash-00000001", 16), 8);
    }

    #[test]
    fn a_cell_excludes_the_votes_of_all_others_only_where_publishers_route() {
        let cells = |router| (0..16).map(move |number| Cell { number, of: 16, router });
        for number in 0..1_000 {
            let hash = format!("hash-{number}");
            let counting = cells(Router::Publishers).filter(|cell| !cell.is_foreign(&hash));
            assert_eq!(counting.count(), 1, "{hash}");
            assert!(!cells(Router::Exchange).any(|cell| cell.is_foreign(&hash)), "{hash}");
        }
    }
}
