//! Rows of the audit in the binary format of COPY: times as they are stored, also those that no calendar has.

use sqlx::Error;

use super::AuditRow;
use crate::model::tlog::row::Row;
use crate::model::vote::Choice;

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// The signature, the flags, and the length of the header's extension, which is empty.
const HEADER: usize = SIGNATURE.len() + 8;
/// Columns of a row: xmin, vote_hash, citizen_id, law_id, choice, timestamp, recorded_at.
const COLUMNS: i16 = 7;
/// In place of a row's number of columns, at the end.
const TRAILER: i16 = -1;
/// PostgreSQL counts microseconds from 2000-01-01 on, the log from 1970-01-01 on.
const EPOCH: i64 = 946_684_800_000_000;

/// Decodes what arrives in pieces.
#[derive(Default)]
pub(super) struct Decoder {
    pending: Vec<u8>,
    header: bool,
    ended: bool,
}

impl Decoder {
    /// Takes in a piece, and gives each row that is complete to `each`.
    pub fn read(&mut self, piece: &[u8], each: &mut impl FnMut(AuditRow)) -> Result<(), Error> {
        self.pending.extend(piece);
        let mut rest = self.pending.as_slice();
        if !self.header {
            let Some((header, rows)) = rest.split_at_checked(HEADER) else { return Ok(()) };
            if !header.starts_with(SIGNATURE) || header[SIGNATURE.len()..] != [0; 8] {
                return Err(Error::Protocol("COPY began with another header".to_owned()));
            }
            (self.header, rest) = (true, rows);
        }
        while !self.ended {
            let mut cursor = Cursor(rest);
            match cursor.row()? {
                Found::Row(row) => each(row),
                Found::Trailer => self.ended = true,
                Found::Part => break,
            }
            rest = cursor.0;
        }
        let read = self.pending.len() - rest.len();
        self.pending.drain(..read);
        Ok(())
    }

    /// # Errors
    /// When rows may be missing.
    pub fn finish(self) -> Result<(), Error> {
        if self.ended {
            Ok(())
        } else {
            Err(Error::Protocol("COPY ended without its trailer".to_owned()))
        }
    }
}

enum Found {
    Row(AuditRow),
    Trailer,
    /// More has to arrive.
    Part,
}

/// What is left of the pieces.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn row(&mut self) -> Result<Found, Error> {
        let Some(columns) = self.array().map(i16::from_be_bytes) else { return Ok(Found::Part) };
        if columns == TRAILER {
            return Ok(Found::Trailer);
        }
        if columns != COLUMNS {
            return Err(Error::Protocol(format!("COPY sent {columns} columns")));
        }
        let mut fields = [None; COLUMNS as usize];
        for field in &mut fields {
            let Some(length) = self.array().map(i32::from_be_bytes) else { return Ok(Found::Part) };
            if let Ok(length) = usize::try_from(length) {
                let Some((value, rest)) = self.0.split_at_checked(length) else {
                    return Ok(Found::Part);
                };
                (*field, self.0) = (Some(value), rest);
            }
        }
        let [xmin, others @ ..] = fields;
        let xmin = xmin.and_then(|xmin| xmin.try_into().ok()).map(u32::from_be_bytes);
        let xmin =
            xmin.ok_or_else(|| Error::Protocol("COPY sent a row without xmin".to_owned()))?;
        Ok(Found::Row((xmin, row(others))))
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }
}

/// `None` where a column is NULL that may not be, or the choice is another.
fn row(
    [vote_hash, citizen_id, law_id, choice, timestamp, recorded_at]: [Option<&[u8]>; 6],
) -> Option<Row> {
    let text = |field: Option<&[u8]>| String::from_utf8(field?.to_vec()).ok();
    let time = |field: &[u8]| {
        let since_2000 = field.try_into().map(i64::from_be_bytes).ok()?;
        // Infinity stays the greatest there is; no time is i64::MIN, which stands for NULL.
        Some(since_2000.saturating_add(EPOCH))
    };
    let choice = choice?;
    Some(Row {
        vote_hash: text(vote_hash)?,
        citizen_id: text(citizen_id)?,
        law_id: text(law_id)?,
        choice: Choice::ALL.into_iter().find(|it| it.as_str().as_bytes() == choice)?,
        timestamp: time(timestamp?)?,
        recorded_at: match recorded_at {
            Some(recorded_at) => Some(time(recorded_at)?),
            None => None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(rows: &[[Option<&[u8]>; 7]]) -> Vec<u8> {
        let mut bytes = [SIGNATURE, &[0; 8]].concat();
        for row in rows {
            bytes.extend(COLUMNS.to_be_bytes());
            for field in row {
                let length = field.map_or(-1, |field| i32::try_from(field.len()).expect("short"));
                bytes.extend(length.to_be_bytes());
                bytes.extend(field.unwrap_or_default());
            }
        }
        bytes.extend(TRAILER.to_be_bytes());
        bytes
    }

    #[test]
    fn rows_are_read_in_whatever_pieces_they_arrive() {
        let [day, infinity] = [86_400_000_000_i64, i64::MAX].map(i64::to_be_bytes);
        let xmin = 7_u32.to_be_bytes();
        let fields = |choice: &'static str, recorded_at| {
            [&xmin[..], b"hash", "citizen-é".as_bytes(), b"law", choice.as_bytes(), &day]
                .map(Some)
                .into_iter()
                .chain([recorded_at])
                .collect::<Vec<_>>()
                .try_into()
                .expect("seven")
        };
        let bytes =
            sent(&[fields("oui", Some(&infinity[..])), fields("non", None), fields("nul", None)]);
        for length in [1, 2, 7, 50, bytes.len()] {
            let (mut decoder, mut found) = (Decoder::default(), Vec::new());
            for piece in bytes.chunks(length) {
                decoder.read(piece, &mut |row| found.push(row)).expect("readable");
            }
            decoder.finish().expect("whole");
            let rows: Vec<_> = found
                .iter()
                .map(|(xmin, row)| {
                    let row = row.as_ref()?;
                    Some((
                        *xmin,
                        row.citizen_id.as_str(),
                        row.choice,
                        row.timestamp,
                        row.recorded_at,
                    ))
                })
                .collect();
            let at = EPOCH + 86_400_000_000;
            assert_eq!(
                rows,
                [
                    Some((7, "citizen-é", Choice::Oui, at, Some(i64::MAX))),
                    Some((7, "citizen-é", Choice::Non, at, None)),
                    None
                ]
            );
        }
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        let bytes = sent(&[]);
        let mut decoder = Decoder::default();
        decoder.read(&bytes[..bytes.len() - 1], &mut |_| {}).expect("a part");
        assert!(decoder.finish().is_err());
        let mut text = Decoder::default();
        assert!(text.read(b"hash\tcitizen\tlaw\toui\t2026-11-29\n", &mut |_| {}).is_err());
    }
}
