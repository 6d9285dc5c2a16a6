//! A table of headers, walked with a limit on depth and on values.

use std::ops::Range;

use super::repair::short_string;

/// Deepest nesting that reaches the client: its parser and its `Drop` recurse.
const DEPTH: usize = 32;
/// Most values of one table that reach the client. Parsed, a value of one byte takes dozens.
const VALUES_AT_MOST: usize = 1_024;

/// Type of a byte array, which has the same length field as a nested table or array.
const BYTES: u8 = b'x';
const ARRAY: u8 = b'A';
const TABLE: u8 = b'F';

/// The state of a table after repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// It can be decoded. Too deep or too many values were turned into byte arrays.
    Valid,
    /// It can be decoded; a name was not UTF-8 and has been changed.
    Repaired,
    /// It can't be decoded.
    Invalid,
    /// It can be decoded, and would take too much memory.
    TooManyValues,
}

/// Returns where the value with the length at `at` ends; `None` when that is beyond `limit`.
pub(super) fn end(bytes: &[u8], at: usize, limit: usize) -> Option<usize> {
    let length = bytes.get(at..limit)?.first_chunk::<4>()?;
    let end = at + 4 + u32::from_be_bytes(*length) as usize;
    (end <= limit).then_some(end)
}

/// Makes the table whose entries are `bytes[entries]` decodable, where it stands.
pub(super) fn repair(bytes: &mut [u8], entries: Range<usize>) -> Table {
    let mut walk = Walk { bytes, values: 0, repaired: false };
    match walk.values(entries, true, 0) {
        Ok(()) if walk.repaired => Table::Repaired,
        Ok(()) => Table::Valid,
        Err(table) => table,
    }
}

struct Walk<'a> {
    bytes: &'a mut [u8],
    /// Values that are kept so far.
    values: usize,
    repaired: bool,
}

impl Walk<'_> {
    /// Walks the values of a table or an array; recurses less than [`DEPTH`] deep.
    fn values(
        &mut self,
        Range { start, end }: Range<usize>,
        is_table: bool,
        depth: usize,
    ) -> Result<(), Table> {
        let mut at = start;
        while at != end {
            self.values += 1;
            if self.values > VALUES_AT_MOST {
                return Err(Table::TooManyValues);
            }
            if is_table {
                let name = short_string(self.bytes, at, end).ok_or(Table::Invalid)?;
                at = name.0;
                self.repaired |= name.1;
            }
            let kind = at;
            let code = *self.bytes[..end].get(kind).ok_or(Table::Invalid)?;
            at += 1;
            let behind = match code {
                b'V' => Some(at),
                b't' | b'b' | b'B' => Some(at + 1),
                b's' | b'U' | b'u' => Some(at + 2),
                b'I' | b'i' | b'f' => Some(at + 4),
                b'D' => Some(at + 5),
                b'L' | b'l' | b'd' | b'T' => Some(at + 8),
                b'S' | BYTES | ARRAY | TABLE => self::end(self.bytes, at, end),
                _ => None,
            };
            at = behind.filter(|behind| *behind <= end).ok_or(Table::Invalid)?;
            if !matches!(code, ARRAY | TABLE) {
                continue;
            }
            if depth + 1 == DEPTH {
                self.bytes[kind] = BYTES;
                continue;
            }
            let before = self.values;
            match self.values(kind + 5..at, code == TABLE, depth + 1) {
                // All of them are in one value of the outermost table, which becomes a byte array.
                Err(Table::TooManyValues) if depth == 0 => {
                    self.bytes[kind] = BYTES;
                    self.values = before;
                }
                walked => walked?,
            }
        }
        Ok(())
    }
}
