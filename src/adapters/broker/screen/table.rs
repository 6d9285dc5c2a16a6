//! A table of headers, walked without recursion.

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

/// What became of a table.
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

/// A table or an array that is being walked.
#[derive(Clone, Copy)]
struct Level {
    end: usize,
    is_table: bool,
    /// Where its type stands.
    kind: usize,
    /// Values that were kept before it.
    values: usize,
}

/// Returns where the value with the length at `at` ends; `None` when that is beyond `limit`.
pub(super) fn end(bytes: &[u8], at: usize, limit: usize) -> Option<usize> {
    let length = bytes.get(at..limit)?.first_chunk::<4>()?;
    let end = at + 4 + u32::from_be_bytes(*length) as usize;
    (end <= limit).then_some(end)
}

/// Makes the table whose entries are `bytes[entries]` decodable, where it stands.
pub(super) fn repair(bytes: &mut [u8], entries: Range<usize>) -> Table {
    let outermost = Level { end: entries.end, is_table: true, kind: 0, values: 0 };
    let mut levels = [outermost; DEPTH];
    let (mut depth, mut at, mut values, mut repaired) = (0, entries.start, 0, false);
    loop {
        let level = levels[depth];
        if at == level.end {
            if depth == 0 {
                return if repaired { Table::Repaired } else { Table::Valid };
            }
            depth -= 1;
            continue;
        }
        values += 1;
        if values > VALUES_AT_MOST {
            if depth == 0 {
                return Table::TooManyValues;
            }
            // They are all in one value of the outermost table, which is turned as a whole.
            bytes[levels[1].kind] = BYTES;
            at = levels[1].end;
            values = levels[1].values;
            depth = 0;
            continue;
        }
        if level.is_table {
            let Some((behind, changed)) = short_string(bytes, at, level.end) else {
                return Table::Invalid;
            };
            repaired |= changed;
            at = behind;
        }
        if at == level.end {
            return Table::Invalid;
        }
        let kind = at;
        at += 1;
        let behind = match bytes[kind] {
            b'V' => Some(at),
            b't' | b'b' | b'B' => Some(at + 1),
            b's' | b'U' | b'u' => Some(at + 2),
            b'I' | b'i' | b'f' => Some(at + 4),
            b'D' => Some(at + 5),
            b'L' | b'l' | b'd' | b'T' => Some(at + 8),
            b'S' | BYTES | ARRAY | TABLE => end(bytes, at, level.end),
            _ => None,
        };
        let Some(behind) = behind.filter(|behind| *behind <= level.end) else {
            return Table::Invalid;
        };
        if !matches!(bytes[kind], ARRAY | TABLE) {
            at = behind;
        } else if depth + 1 == DEPTH {
            bytes[kind] = BYTES;
            at = behind;
        } else {
            depth += 1;
            levels[depth] = Level { end: behind, is_table: bytes[kind] == TABLE, kind, values };
            at += 4;
        }
    }
}
