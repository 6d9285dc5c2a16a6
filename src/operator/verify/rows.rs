//! `verify rows`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::contents::votes;
use super::folder::Folder;
use super::{Findings, VerifyError};
use crate::model::hex;
use crate::model::tlog::entry::{VoteEntry, Withdrawn};
use crate::model::tlog::policy::{Policy, Signed};
use crate::model::tlog::row::{Nonce, Row};
use crate::model::vote::Choice;

/// Bytes of a line, at most: a row has some 400.
const MAX_LINE: u64 = 8_192;
/// How much a witness's clock and the database's may differ, in microseconds.
const CLOCKS_DIFFER: i64 = 60_000_000;

/// What was verified of exported rows.
#[derive(Debug)]
pub struct Rows {
    /// Rows whose entries they are.
    pub rows: u64,
    /// Rows without a citizen_id, which can no longer be verified.
    pub erased: u64,
    /// Rows whose recorded_at lies between two witnessed checkpoints.
    pub timed: u64,
    pub findings: Findings,
}

/// A line of the export: the row of an entry, and the nonce that hid it.
#[derive(Deserialize)]
struct Line {
    index: u64,
    #[serde(flatten)]
    row: Content,
}

/// Times are microseconds since 1970.
#[derive(Deserialize)]
pub(super) struct Content {
    pub vote_hash: String,
    /// Null once it is erased.
    pub citizen_id: Option<String>,
    pub law_id: String,
    pub choice: String,
    pub timestamp: i64,
    pub recorded_at: Option<i64>,
    /// In hexadecimal.
    pub nonce: String,
}

impl Content {
    /// The entry that this row makes; `None` for what no row is.
    pub fn entry(&self) -> Option<VoteEntry> {
        let choice = Choice::ALL.into_iter().find(|choice| choice.as_str() == self.choice)?;
        let row = Row {
            vote_hash: self.vote_hash.clone(),
            citizen_id: self.citizen_id.clone()?,
            law_id: self.law_id.clone(),
            choice,
            timestamp: self.timestamp,
            recorded_at: self.recorded_at,
        };
        VoteEntry::of(&row, &Nonce(hex::decode(&self.nonce)?)).ok()
    }
}

/// Compares exported rows, in the order of their entries, with an opened log, in both directions; and, if there is a
/// register of citizen ids, one a line, the rows with it. Memory: 16 bytes for each row and each line of the register.
///
/// # Errors
/// [`VerifyError`]: files that cannot be read.
pub fn rows(
    dir: &Path,
    policy: &Policy,
    path: &Path,
    register: Option<&Path>,
) -> Result<Rows, VerifyError> {
    let register = register.map(read_register).transpose()?;
    let (folder, mut findings) = (Folder::new(dir), Findings::default());
    let mut verified = Verified {
        export: Lines::open(path)?,
        ahead: None,
        register,
        hashes: Vec::new(),
        times: BTreeMap::new(),
        rows: Rows { rows: 0, erased: 0, timed: 0, findings: Findings::default() },
    };
    if let Some(newest) = folder.newest(policy, &mut findings)? {
        let kept = folder.checkpoints(policy, &mut findings)?;
        verified.times = times(kept.values().chain([&newest]).filter(|signed| signed.quorum));
        let contents = votes(
            &folder,
            (policy, &newest.checkpoint),
            &kept,
            &mut findings,
            |index, vote, contents, findings| {
                verified.entry(index, vote, contents.withdrawn.get(&index).copied(), findings);
            },
        );
        if contents.is_some() {
            verified.finish(&mut findings);
        }
    }
    verified.export.end()?;
    Ok(Rows { findings, ..verified.rows })
}

/// By the size of each witnessed checkpoint: the earliest and the latest time at which a witness saw it.
fn times<'a>(signed: impl Iterator<Item = &'a Signed>) -> BTreeMap<u64, (u64, u64)> {
    let witnessed = signed.filter_map(|signed| {
        let times = signed.witnessed.values();
        let seen = (*times.clone().min()?, *times.max()?);
        Some((signed.checkpoint.size, seen))
    });
    witnessed.collect()
}

struct Verified {
    export: Lines,
    /// A row that was read and whose entry did not come yet.
    ahead: Option<Line>,
    register: Option<BTreeSet<[u8; 16]>>,
    hashes: Vec<[u8; 16]>,
    times: BTreeMap<u64, (u64, u64)>,
    rows: Rows,
}

impl Verified {
    fn next(&mut self, findings: &mut Findings) -> Option<Line> {
        self.ahead.take().or_else(|| self.export.row(findings))
    }

    /// An entry, for which a row has to be there unless it is lost.
    fn entry(
        &mut self,
        index: u64,
        vote: &VoteEntry,
        withdrawn: Option<Withdrawn>,
        findings: &mut Findings,
    ) {
        while let Some(line) = self.next(findings) {
            if line.index > index {
                self.ahead = Some(line);
                break;
            }
            if line.index == index {
                return self.row(&line, vote, withdrawn, findings);
            }
            stray(&line, findings);
        }
        if withdrawn != Some(Withdrawn::Lost) {
            findings.add(format_args!("entry {index}: no row is exported for it"));
        }
    }

    fn row(
        &mut self,
        line: &Line,
        vote: &VoteEntry,
        withdrawn: Option<Withdrawn>,
        findings: &mut Findings,
    ) {
        let Line { index, row } = line;
        self.hashes.push(digest(&row.vote_hash));
        if withdrawn == Some(Withdrawn::Lost) {
            findings
                .add(format_args!("entry {index}: its row is there, and it is withdrawn as lost"));
        }
        let Some(citizen) = &row.citizen_id else {
            if withdrawn != Some(Withdrawn::Erased) {
                findings.add(format_args!(
                    "entry {index}: its row has no citizen_id, and no entry erases it"
                ));
            }
            // Without the citizen_id the commitment cannot be opened.
            if (row.law_id.as_str(), row.choice.as_str()) != (&*vote.law_id, vote.choice.as_str()) {
                findings.add(format_args!("entry {index}: its row is not the one that was sealed"));
            }
            self.rows.erased += 1;
            return;
        };
        if self.register.as_ref().is_some_and(|register| !register.contains(&digest(citizen))) {
            findings.add(format_args!("entry {index}: its citizen_id is not in the register"));
        }
        if row.entry().as_ref() == Some(vote) {
            self.rows.rows += 1;
        } else {
            findings.add(format_args!("entry {index}: its row is not the one that was sealed"));
        }
        if let Some(recorded_at) = row.recorded_at {
            self.time(*index, recorded_at, findings);
        }
    }

    /// A row was recorded after the checkpoint before it, and before its own, by the clocks of witnesses.
    fn time(&mut self, index: u64, recorded_at: i64, findings: &mut Findings) {
        let micros =
            |seconds: u64| i64::try_from(seconds.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
        let before = self.times.range(..=index).next_back();
        let behind = self.times.range(index + 1..).next();
        let early = before.is_some_and(|(_, (first, _))| {
            recorded_at < micros(*first).saturating_sub(CLOCKS_DIFFER)
        });
        let late = behind.is_some_and(|(_, (_, last))| {
            recorded_at > micros(*last).saturating_add(CLOCKS_DIFFER)
        });
        if early || late {
            let side = if early {
                "earlier than the checkpoint before it"
            } else {
                "later than its checkpoint"
            };
            findings.add(format_args!("entry {index}: its recorded_at is {side} was witnessed"));
        }
        self.rows.timed += u64::from(before.is_some() && behind.is_some());
    }

    fn finish(&mut self, findings: &mut Findings) {
        while let Some(line) = self.next(findings) {
            stray(&line, findings);
        }
        self.hashes.sort_unstable();
        let repeated = self.hashes.windows(2).filter(|pair| pair[0] == pair[1]).count();
        if repeated > 0 {
            findings.add(format_args!("{repeated} rows have the vote_hash of another row"));
        }
    }
}

fn stray(line: &Line, findings: &mut Findings) {
    findings.add(format_args!(
        "a row is exported for entry {}, which is not a vote, or has a row already",
        line.index
    ));
}

fn digest(text: &str) -> [u8; 16] {
    let digest: [u8; 32] = Sha256::digest(text).into();
    digest.first_chunk().copied().unwrap_or_default()
}

fn read_register(path: &Path) -> Result<BTreeSet<[u8; 16]>, VerifyError> {
    let (mut lines, mut register) = (Lines::open(path)?, BTreeSet::new());
    while let Some(line) = lines.next() {
        match line.as_deref().map(str::trim_end) {
            Some("") => {}
            Some(citizen) => drop(register.insert(digest(citizen))),
            None => {
                let problem = format!("line {} is not a citizen_id", lines.number);
                return Err(VerifyError::Input { path: path.to_owned(), problem });
            }
        }
    }
    lines.end()?;
    Ok(register)
}

/// The lines of a file that may be longer than memory.
struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    number: u64,
    failed: Option<io::Error>,
}

impl Lines {
    fn open(path: &Path) -> Result<Self, VerifyError> {
        let file = File::open(path)
            .map_err(|error| VerifyError::Unreadable { path: path.to_owned(), error })?;
        let reader = BufReader::new(file);
        Ok(Self { path: path.to_owned(), reader, number: 0, failed: None })
    }

    /// The next line; `Some(None)` for one that is too long or not UTF-8. None follows what cannot be read.
    fn next(&mut self) -> Option<Option<String>> {
        let mut line = Vec::new();
        let read = (&mut self.reader).take(MAX_LINE).read_until(b'\n', &mut line);
        self.number += 1;
        match read {
            Ok(0) => None,
            Ok(_) if line.len() as u64 == MAX_LINE => Some(None),
            Ok(_) => Some(String::from_utf8(line).ok()),
            Err(error) => {
                self.failed = Some(error);
                None
            }
        }
    }

    /// Behind the last line.
    fn end(self) -> Result<(), VerifyError> {
        let Self { path, failed, .. } = self;
        failed.map_or(Ok(()), |error| Err(VerifyError::Unreadable { path, error }))
    }

    /// The next line that is a row; a finding for each that is none. It shows nothing of them.
    fn row(&mut self, findings: &mut Findings) -> Option<Line> {
        loop {
            let line = self.next()?;
            match line.and_then(|line| serde_json::from_str(&line).ok()) {
                Some(row) => return Some(row),
                None => findings.add(format_args!(
                    "{}: line {} is not a row of an export",
                    self.path.display(),
                    self.number
                )),
            }
        }
    }
}
