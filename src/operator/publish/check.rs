//! A dry run: every line of a file decoded as the service would, and nothing published.

use std::collections::BTreeMap;

use indicatif::HumanCount;

use super::lines::{Line, Position};
use super::progress::bar;
use super::{PublishError, Source};
use crate::model::vote::{self, Reason};

/// Line numbers that are kept for each reason.
const FIRST: usize = 5;
/// Lines between two updates of the progress bar.
const STEP: u64 = 1_000;

/// Counts of a file's lines.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// The whole file.
    pub end: Position,
    /// Lines that are votes.
    pub votes: u64,
    /// Invalid lines, by reason and, where it is about one, field.
    pub rejected: BTreeMap<(Reason, Option<&'static str>), Rejected>,
}

/// Lines that break the same rule.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rejected {
    pub lines: u64,
    /// Numbers of the first of them, counted from 1.
    pub first: Vec<u64>,
}

impl Check {
    /// Lines that the service would dead-letter.
    pub fn malformed(&self) -> u64 {
        self.rejected.values().map(|rejected| rejected.lines).sum()
    }

    fn reject(&mut self, number: u64, reason: Reason, field: Option<&'static str>) {
        let rejected = self.rejected.entry((reason, field)).or_default();
        rejected.lines += 1;
        if rejected.first.len() < FIRST {
            rejected.first.push(number);
        }
    }
}

/// Decodes every line of `source` as the body of a message of at most `max_bytes`. Does not detect
/// duplicates: the service does when it counts.
///
/// # Errors
/// [`PublishError::Read`].
pub async fn check(source: Source, max_bytes: usize) -> Result<Check, PublishError> {
    let bar = bar("checking", source.length());
    let mut check = Check::default();
    let Source::Lines { mut lines, name, .. } = source else {
        return Ok(check);
    };
    let unreadable = |source| PublishError::Read { path: name.clone(), source };
    while let Some(line) = lines.next().await.map_err(unreadable)? {
        match line {
            Line::TooLong { number } => check.reject(number, Reason::TooLarge, None),
            Line::Body(body) => match vote::decode(&body, max_bytes) {
                Ok(_) => check.votes += 1,
                Err(rejected) => {
                    check.reject(lines.position().lines, rejected.reason, rejected.field);
                }
            },
        }
        let Position { bytes, lines, .. } = lines.position();
        if lines.is_multiple_of(STEP) {
            bar.set_position(bytes);
            bar.set_message(format!("{} lines", HumanCount(lines)));
        }
    }
    bar.finish_and_clear();
    check.end = lines.position();
    Ok(check)
}
