//! The sealer on a real PostgreSQL.

mod commands;
mod crashes;
mod reading;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::types::time::OffsetDateTime;
use vote_aggregator::adapters::store::SealReader;
use vote_aggregator::model::tlog::entry::{Entry, VoteEntry};
use vote_aggregator::model::tlog::policy::Policy;
use vote_aggregator::model::tlog::row::Row;
use vote_aggregator::model::tlog::tree::Hash;
use vote_aggregator::model::vote::Choice;
use vote_aggregator::operator::seal::{Log, Opened, Round, RoundError, begin, round};
use vote_aggregator::operator::verify;
use vote_aggregator::platform::config::Config;

use crate::support::{Files, Stage, eventually, login};

/// A log in a directory of a test's own, and the login that reads for it.
struct Sealed {
    files: Files,
    config: Config,
    origin: String,
}

impl Sealed {
    /// Begins a log of the stage's database, which has no rows yet.
    async fn begin(stage: &Stage<'_>) -> Self {
        let sealed = Self::of(stage).await;
        let opened = sealed.opened().await;
        assert_eq!(opened.rows, 0);
        sealed.init(&opened);
        sealed
    }

    /// With a directory that does not exist yet.
    async fn of(stage: &Stage<'_>) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("sealer{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let role = stage.role(&name, "IN ROLE vote_sealer").await;
        let origin = format!("votes.example/{}", stage.database);
        Self { files: Files::new("seal"), config: stage.config(&login(&role)), origin }
    }

    async fn opened(&self) -> Opened {
        begin(&mut SealReader::new(&self.config, None)).await.expect("readable")
    }

    fn init(&self, opened: &Opened) {
        Log::init(&self.dir(), &self.origin, opened).expect("created");
    }

    fn dir(&self) -> PathBuf {
        self.files.join("log")
    }

    fn reader(&self) -> SealReader<'_> {
        SealReader::new(&self.config, Some(&self.origin))
    }

    fn open(&self) -> Log {
        Log::open(&self.dir()).expect("opened")
    }

    /// One round, of whatever is there.
    async fn round(&self) -> Result<Round, RoundError> {
        round(&mut self.open(), &mut self.reader(), 1).await
    }

    /// Rounds until so many votes are sealed; what they found wrong.
    async fn until_sealed(&self, votes: u64) -> Vec<String> {
        self.until_sealed_by(votes, 1).await
    }

    /// As [`Sealed::until_sealed`], by rounds of so many votes at least: those of other tests keep them undecided for a
    /// moment.
    async fn until_sealed_by(&self, votes: u64, min_rows: u64) -> Vec<String> {
        let (mut log, mut reader, mut findings) = (self.open(), self.reader(), Vec::new());
        eventually("all votes are sealed", async || {
            // A session of this log may end later than what it was for.
            match round(&mut log, &mut reader, min_rows).await {
                Ok(round) => findings.extend(round.findings),
                Err(RoundError::Locked) => {}
                Err(error) => panic!("{error}"),
            }
            log.state().tip.votes >= votes
        })
        .await;
        assert_eq!(log.state().tip.votes, votes);
        assert_eq!(log.state().intent, None);
        findings
    }

    /// Asserts that the log's leaves are its other entries and the rows of the audit, each once.
    async fn assert_has_each_row_once(&self, stage: &Stage<'_>, others: usize) {
        let content = fs::read(self.dir().join("hashes.0")).expect("read");
        let (hashes, rest) = content.as_chunks();
        assert!(rest.is_empty());
        let mut leaves: Vec<Hash> = hashes.to_vec();
        leaves.sort_unstable();
        let mut expected = self.leaves(stage).await;
        assert_eq!(leaves.len(), expected.len() + others);
        expected.sort_unstable();
        expected.dedup();
        leaves.retain(|leaf| expected.binary_search(leaf).is_ok());
        assert_eq!(leaves, expected);
        self.assert_verified();
    }

    /// The leaf of each row of the audit.
    async fn leaves(&self, stage: &Stage<'_>) -> Vec<Hash> {
        type Found = (String, String, String, String, OffsetDateTime, Option<OffsetDateTime>);
        let rows =
            "SELECT vote_hash, citizen_id, law_id, choice, timestamp, recorded_at FROM vote_audit";
        let rows: Vec<Found> = sqlx::query_as(rows).fetch_all(&stage.sql).await.expect("rows");
        let log = self.open();
        let microseconds = |time: OffsetDateTime| {
            i64::try_from(time.unix_timestamp_nanos() / 1_000).expect("a year that is written")
        };
        let leaf = |(vote_hash, citizen_id, law_id, choice, timestamp, recorded_at): Found| {
            let row = Row {
                vote_hash,
                citizen_id,
                law_id,
                choice: if choice == "oui" { Choice::Oui } else { Choice::Non },
                timestamp: microseconds(timestamp),
                recorded_at: recorded_at.map(microseconds),
            };
            let vote = VoteEntry::of(&row, &log.secret().nonce(&row.vote_hash)).expect("short");
            Entry::Vote(vote).leaf().expect("short")
        };
        rows.into_iter().map(leaf).collect()
    }

    fn assert_verified(&self) {
        let vkey = fs::read_to_string(self.dir().join("vkey")).expect("read");
        let policy = Policy::parse(&format!("log {}\nquorum none\n", vkey.trim()));
        let log = verify::log(&self.dir().join("public"), &policy.expect("a policy"), &[]);
        let log = log.expect("readable");
        assert_eq!(log.findings.described(), [] as [String; 0]);
    }
}
