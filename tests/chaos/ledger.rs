//! What was published, and what the broker said to it: all that a verdict may rest on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::json;
use tokio::time::Instant;
use vote_aggregator::model::vote::Vote;

use crate::Result;
use crate::traffic::Message;

/// Everything attempted in one run.
pub struct Ledger {
    /// `vote_hash` → every different content that was sent under it.
    pub votes: BTreeMap<String, Vec<Cast>>,
    /// Bodies that belong on the dead-letter queue, and what is known of those confirmed.
    pub refused: BTreeMap<Vec<u8>, Option<Confirmed>>,
    pub counts: Counts,
    file: BufWriter<File>,
}

/// One content under a hash.
pub struct Cast {
    pub vote: Vote,
    /// At least once; otherwise indeterminate, it may have arrived or not.
    pub confirmed: bool,
}

/// When the broker took a message over, and how many votes it had confirmed by then: most of them
/// are counted before the message comes out of the queue.
#[derive(Clone, Copy)]
pub struct Confirmed {
    pub at: Instant,
    pub behind: u64,
}

/// Messages, not votes.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Counts {
    pub attempted: u64,
    pub confirmed: u64,
    /// Sent, and neither confirmed nor published again.
    pub indeterminate: u64,
    /// Distinct hashes of which at least one content is confirmed.
    pub votes_confirmed: u64,
    pub malformed: u64,
}

impl Ledger {
    /// A ledger that also writes every event to `path`, for a post mortem.
    pub fn new(path: &Path) -> Result<Self> {
        let file = BufWriter::new(File::create(path)?);
        let (votes, refused) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { votes, refused, counts: Counts::default(), file })
    }

    /// To be called before the first byte is sent.
    pub fn attempt(&mut self, message: &Message) -> Result<()> {
        self.counts.attempted += 1;
        match &message.vote {
            Some(vote) => {
                let casts = self.votes.entry(vote.vote_hash.to_string()).or_default();
                if !casts.iter().any(|cast| cast.vote == *vote) {
                    casts.push(Cast { vote: vote.clone(), confirmed: false });
                }
            }
            None => {
                self.refused.entry(message.body.clone()).or_insert_with(|| {
                    self.counts.malformed += 1;
                    None
                });
            }
        }
        let body = String::from_utf8_lossy(&message.body);
        self.note(&json!({ "attempted": message.number, "body": body }))
    }

    pub fn confirm(&mut self, message: &Message) -> Result<()> {
        self.counts.confirmed += 1;
        match &message.vote {
            Some(vote) => {
                let casts = self.votes.entry(vote.vote_hash.to_string()).or_default();
                let first = !casts.iter().any(|cast| cast.confirmed);
                self.counts.votes_confirmed += u64::from(first);
                for cast in casts.iter_mut().filter(|cast| cast.vote == *vote) {
                    cast.confirmed = true;
                }
            }
            None => {
                let confirmed =
                    Confirmed { at: Instant::now(), behind: self.counts.votes_confirmed };
                self.refused.insert(message.body.clone(), Some(confirmed));
            }
        }
        self.note(&json!({ "confirmed": message.number }))
    }

    /// Nobody will ever know whether it arrived.
    pub fn give_up(&mut self, message: &Message) -> Result<()> {
        self.counts.indeterminate += 1;
        self.note(&json!({ "indeterminate": message.number }))
    }

    pub fn flush(&mut self) -> Result<()> {
        Ok(self.file.flush()?)
    }

    fn note(&mut self, event: &serde_json::Value) -> Result<()> {
        Ok(writeln!(self.file, "{event}")?)
    }
}
