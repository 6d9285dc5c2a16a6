//! A log as a sealer would write it, and what is exported with it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};
use vote_aggregator::model::tlog::checkpoint::Checkpoint;
use vote_aggregator::model::tlog::entry::{Close, Counts, Entry, FORMAT, Opening, VoteEntry};
use vote_aggregator::model::tlog::note::{Note, SignerKey};
use vote_aggregator::model::tlog::proof::Proof;
use vote_aggregator::model::tlog::row::{Row, Secret};
use vote_aggregator::model::tlog::tree::{
    Frontier, Hash, Levels, TILE_WIDTH, entries_path, leaf_hash, prove_inclusion, tile_path,
};
use vote_aggregator::model::vote::Choice;

pub const ORIGIN: &str = "votes.example/2026-11-29";
/// 2026-11-29, 08:00 UTC, in seconds.
pub const BEGAN: i64 = 1_795_939_200;

/// Files by their paths in the export.
pub type Exported = BTreeMap<String, Vec<u8>>;

pub struct Written {
    key: SignerKey,
    witness: SignerKey,
    secret: Secret,
    entries: Vec<Vec<u8>>,
    tree: Frontier,
    levels: Vec<Vec<Hash>>,
    rows: BTreeMap<usize, Row>,
    files: Exported,
}

/// A row that was recorded so many seconds after the beginning.
pub fn row(number: u64, second: i64) -> Row {
    Row {
        vote_hash: format!("hash-{number:08}"),
        citizen_id: format!("citoyen-{number:08}-é"),
        law_id: format!("law-{:03}", number % 3),
        choice: if number.is_multiple_of(4) { Choice::Non } else { Choice::Oui },
        timestamp: (BEGAN + second - 5) * 1_000_000 + 123,
        recorded_at: (number % 100 != 7).then_some((BEGAN + second) * 1_000_000),
    }
}

impl Written {
    /// An open log, with nothing but its opening.
    pub fn open(seed: u8) -> Self {
        let key = SignerKey::new(ORIGIN, [seed; 32]).expect("a name");
        let opening = Entry::Opening(Opening {
            format: FORMAT,
            origin: ORIGIN.into(),
            vkey: key.verifier().to_string(),
            rows: 0,
            system_identifier: "7345678901234567890".into(),
            timeline: 1,
        });
        let mut log = Self {
            key,
            witness: SignerKey::new("witness.example", [99; 32]).expect("a name"),
            secret: Secret::new(&[42; 32]),
            entries: Vec::new(),
            tree: Frontier::default(),
            levels: Vec::new(),
            rows: BTreeMap::new(),
            files: BTreeMap::new(),
        };
        log.segment(&[], &[opening], 0);
        log
    }

    /// Signs with another key from now on.
    pub fn rotate(&mut self, seed: u8) {
        self.key = SignerKey::new(ORIGIN, [seed; 32]).expect("a name");
    }

    /// Three segments of votes, then the end: 302 entries.
    pub fn closed() -> Self {
        let mut log = Self::open(1);
        for segment in 0..3_u64 {
            let second = 60 + 600 * segment as i64;
            let rows: Vec<Row> =
                (100 * segment..100 * (segment + 1)).map(|n| row(n, second)).collect();
            log.segment(&rows, &[], second + 10);
        }
        log.close(&[]);
        log
    }

    /// Seals rows and then other entries, and signs `second` seconds after the beginning.
    pub fn segment(&mut self, rows: &[Row], others: &[Entry], second: i64) {
        let mut votes: Vec<(Hash, Vec<u8>, &Row)> = Vec::new();
        for row in rows {
            let vote = VoteEntry::of(row, &self.secret.nonce(&row.vote_hash)).expect("short");
            let bytes = Entry::Vote(vote).encode().expect("short");
            votes.push((leaf_hash(&bytes), bytes, row));
        }
        votes.sort_by_key(|(hash, ..)| *hash);
        for (_, bytes, row) in votes {
            self.rows.insert(self.entries.len(), row.clone());
            self.append(bytes);
        }
        for other in others {
            self.append(other.encode().expect("short"));
        }
        let checkpoint = self.checkpoint(second).to_string().into_bytes();
        self.files.insert(format!("checkpoints/{}", self.entries.len()), checkpoint.clone());
        self.files.insert("checkpoint".into(), checkpoint);
    }

    /// Ends with the sums of all votes, less those of `lost` entries.
    pub fn close(&mut self, lost: &[usize]) {
        let mut laws: BTreeMap<String, Counts> = BTreeMap::new();
        let counted = self.rows.iter().filter(|(index, _)| !lost.contains(index));
        counted
            .for_each(|(_, row)| *laws.entry(row.law_id.clone()).or_default().of(row.choice) += 1);
        let rows = laws.values().map(|law| law.oui + law.non).sum();
        let is_withdrawal =
            |entry: &&Vec<u8>| matches!(Entry::decode(entry), Ok(Entry::Withdrawal(_)));
        let withdrawals = self.entries.iter().filter(is_withdrawal).count() as u64;
        let close = Close { rows, laws, corrections: 0, withdrawals };
        self.segment(&[], &[Entry::Close(close)], 3_600);
    }

    fn append(&mut self, entry: Vec<u8>) {
        for hash in self.tree.push(leaf_hash(&entry)) {
            let level = usize::from(hash.level);
            self.levels.resize(self.levels.len().max(level + 1), Vec::new());
            self.levels[level].push(hash.hash);
        }
        self.entries.push(entry);
    }

    fn checkpoint(&self, second: i64) -> Note {
        let checkpoint =
            Checkpoint { origin: ORIGIN.into(), size: self.tree.size(), root: self.tree.root() };
        let mut note = Note::new(checkpoint.to_string()).expect("a text");
        note.sign(&self.key);
        note.cosign(&self.witness, u64::try_from(BEGAN + second).expect("after 1970"));
        note
    }

    /// The place of the vote with this number.
    pub fn index(&self, number: u64) -> usize {
        let hash = row(number, 0).vote_hash;
        let found = self.rows.iter().find(|(_, row)| row.vote_hash == hash);
        *found.expect("it is sealed").0
    }

    /// A proof that a vote is in the log.
    pub fn proof(&self, number: u64, opened: bool) -> String {
        let index = self.index(number);
        let extra = if opened {
            json!({"row": self.exported(&self.rows[&index])})
        } else {
            json!({"leaf": BASE64_STANDARD.encode(leaf_hash(&self.entries[index]))})
        };
        let hashes = prove_inclusion(self, self.tree.size(), index as u64).expect("a proof");
        let extra = Some(extra.to_string().into_bytes());
        Proof { extra, index: index as u64, hashes, checkpoint: self.checkpoint(3_600) }.to_string()
    }

    fn exported(&self, row: &Row) -> Value {
        let nonce = self.secret.nonce(&row.vote_hash).0;
        json!({
            "vote_hash": row.vote_hash,
            "citizen_id": row.citizen_id,
            "law_id": row.law_id,
            "choice": row.choice.as_str(),
            "timestamp": row.timestamp,
            "recorded_at": row.recorded_at,
            "nonce": nonce.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        })
    }

    /// All files: of the log, and its policy, rows, results and a proof.
    pub fn export(&self) -> Exported {
        let (mut files, width) = (self.files.clone(), TILE_WIDTH as usize);
        for (level, hashes) in self.levels.iter().enumerate() {
            let level = u8::try_from(level).expect("few levels");
            for (number, tile) in hashes.chunks(width).enumerate() {
                files.insert(tile_path(level, number as u64, tile.len() as u32), tile.concat());
            }
        }
        for (number, entries) in self.entries.chunks(width).enumerate() {
            let bundle = entries.iter().flat_map(|entry| {
                let length = u16::try_from(entry.len()).expect("short");
                [&length.to_be_bytes()[..], entry].concat()
            });
            let path = entries_path(number as u64, entries.len() as u32);
            files.insert(path, bundle.collect());
        }
        let mut rows = String::new();
        let mut laws: BTreeMap<&str, [i64; 2]> = BTreeMap::new();
        for (index, row) in &self.rows {
            let mut object = self.exported(row);
            object["index"] = (*index).into();
            rows += &format!("{object}\n");
            laws.entry(&row.law_id).or_default()[usize::from(row.choice == Choice::Non)] += 1;
        }
        let law = |(law_id, [oui, non]): (&str, [i64; 2])| json!({"law_id": law_id, "oui": oui, "non": non});
        let results = json!({"laws": laws.into_iter().map(law).collect::<Vec<_>>()});
        let (log, witness) = (self.key.verifier(), self.witness.witness());
        let policy = format!("log {log}\nwitness university {witness}\nquorum university\n");
        files.insert("policy".into(), policy.into_bytes());
        files.insert("rows.ndjson".into(), rows.into_bytes());
        files.insert("results.json".into(), format!("{results}\n").into_bytes());
        files
    }
}

impl Levels for Written {
    type Error = String;

    fn read(&self, level: u8, first: u64, count: u32) -> Result<Vec<Hash>, String> {
        let first = first as usize;
        let hashes = self.levels.get(usize::from(level)).ok_or("no such level")?;
        Ok(hashes.get(first..first + count as usize).ok_or("no such hashes")?.to_vec())
    }
}

/// Writes files below a folder.
pub fn write(folder: &Path, files: &Exported) {
    for (path, content) in files {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, content).expect("written");
    }
}
