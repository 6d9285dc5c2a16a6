//! Where the rows of transactions are looked for.

use std::collections::BTreeSet;

use super::CountBatch;

/// Pages that are read at once, and the transactions whose rows are wanted of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PageRange {
    pub first: i64,
    pub last: i64,
    pub xids: BTreeSet<u32>,
}

/// Concurrent transactions fill the same pages: read one by one, these were read four times over (measured, with six
/// writers).
pub(super) fn merged(batches: &[CountBatch]) -> Vec<PageRange> {
    let mut sorted: Vec<&CountBatch> = batches.iter().collect();
    sorted.sort_by_key(|batch| (batch.first_page, batch.xid));
    let mut ranges: Vec<PageRange> = Vec::new();
    for batch in sorted {
        match ranges.last_mut() {
            Some(range) if batch.first_page <= range.last => {
                range.last = range.last.max(batch.last_page);
                range.xids.insert(batch.xmin());
            }
            _ => ranges.push(PageRange {
                first: batch.first_page,
                last: batch.last_page,
                xids: BTreeSet::from([batch.xmin()]),
            }),
        }
    }
    ranges
}

/// The condition that a row was written by one of these transactions.
pub(super) fn of(xmins: &BTreeSet<u32>) -> String {
    let xmins: Vec<String> = xmins.iter().map(ToString::to_string).collect();
    format!("xmin = ANY ('{{{}}}'::xid[])", xmins.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(xid: i64, first_page: i64, last_page: i64) -> CountBatch {
        CountBatch { xid, first_page, last_page, row_count: 1 }
    }

    #[test]
    fn batches_that_share_pages_are_read_together() {
        let range = |first, last, xids: &[u32]| PageRange {
            first,
            last,
            xids: xids.iter().copied().collect(),
        };
        let high = (1 << 32) + 7;
        let batches =
            [batch(high, 20, 21), batch(3, 5, 9), batch(1, 0, 4), batch(2, 3, 4), batch(4, 9, 9)];
        assert_eq!(
            merged(&batches),
            [range(0, 4, &[1, 2]), range(5, 9, &[3, 4]), range(20, 21, &[7])]
        );
        assert!(merged(&[]).is_empty());
    }
}
