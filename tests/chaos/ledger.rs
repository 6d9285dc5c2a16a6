//! What was published, and what the broker answered: the basis of the verdict.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::json;
use tokio::time::Instant;
use vote_aggregator::model::vote::Vote;

use crate::messages::fields;
use crate::traffic::Message;

/// Everything attempted in one run.
#[derive(Default)]
pub struct Ledger {
    /// `vote_hash` → every different content that was sent under it.
    pub votes: BTreeMap<String, Vec<Cast>>,
    /// Bodies that belong on the dead-letter queue, and what is known of those confirmed.
    pub refused: BTreeMap<Vec<u8>, Option<Confirmed>>,
    pub counts: Counts,
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
    /// To be called before the first byte is sent.
    pub fn attempt(&mut self, message: &Message) {
        self.counts.attempted += 1;
        let Some(vote) = &message.vote else {
            self.refused.entry(message.body.clone()).or_insert_with(|| {
                self.counts.malformed += 1;
                None
            });
            return;
        };
        let casts = self.votes.entry(vote.vote_hash.to_string()).or_default();
        if !casts.iter().any(|cast| cast.vote == *vote) {
            casts.push(Cast { vote: vote.clone(), confirmed: false });
        }
    }

    pub fn confirm(&mut self, message: &Message) {
        self.counts.confirmed += 1;
        let Some(vote) = &message.vote else {
            let confirmed = Confirmed { at: Instant::now(), behind: self.counts.votes_confirmed };
            self.refused.insert(message.body.clone(), Some(confirmed));
            return;
        };
        let casts = self.votes.entry(vote.vote_hash.to_string()).or_default();
        let first = !casts.iter().any(|cast| cast.confirmed);
        self.counts.votes_confirmed += u64::from(first);
        for cast in casts.iter_mut().filter(|cast| cast.vote == *vote) {
            cast.confirmed = true;
        }
    }

    /// Everything, for a look into a failed run: a JSON object a line.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        for Cast { vote, confirmed } in self.votes.values().flatten() {
            let mut line = fields(vote);
            line["confirmed"] = (*confirmed).into();
            writeln!(file, "{line}")?;
        }
        for (body, confirmed) in &self.refused {
            let body = String::from_utf8_lossy(body);
            writeln!(file, "{}", json!({ "refused": body, "confirmed": confirmed.is_some() }))?;
        }
        file.flush()
    }
}
