//! Whose signatures a checkpoint has to have (c2sp.org/tlog-policy).

use std::collections::BTreeMap;

use super::checkpoint::Checkpoint;
use super::note::{KeyError, Kind, Note, NoteError, VerifierKey};

/// Lines that define a log, a witness or a group, at most.
const MAX_DEFINITIONS: usize = 1_000;

/// The logs that are trusted, and the witnesses that have to have seen a checkpoint.
#[derive(Clone, Debug)]
pub struct Policy {
    logs: Vec<VerifierKey>,
    members: BTreeMap<String, Member>,
    /// A name of `members`; `None`: no witness is required.
    quorum: Option<String>,
}

#[derive(Clone, Debug)]
enum Member {
    Witness(VerifierKey),
    Group { threshold: usize, names: Vec<String> },
}

/// A checkpoint that a trusted log signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    pub checkpoint: Checkpoint,
    /// By the name of each witness of the policy that signed: when it saw the checkpoint, in seconds since 1970.
    pub witnessed: BTreeMap<String, u64>,
    /// Whether the policy's quorum did.
    pub quorum: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error(
        "line {0}: it is none of: log VKEY [URL], witness NAME VKEY [URL], group NAME all|any|N NAME..., quorum NAME"
    )]
    Line(usize),
    #[error("line {0}: {1}")]
    Key(usize, KeyError),
    #[error("line {0}: the type of the key is not that of a {1}")]
    Type(usize, &'static str),
    #[error("line {0}: the key or the name is there already")]
    Repeated(usize),
    #[error(
        "line {0}: it names {1:?}, which no line above defines, or which is in a group already"
    )]
    Unknown(usize, String),
    #[error("it has no quorum line; `quorum none` requires no witness")]
    NoQuorum,
    #[error("it names no log")]
    NoLog,
}

/// Why a checkpoint is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsigned {
    #[error(transparent)]
    Note(#[from] NoteError),
    #[error(transparent)]
    Checkpoint(#[from] super::checkpoint::Malformed),
    #[error("no log of the policy signed it")]
    Log,
}

impl Policy {
    /// # Errors
    /// [`PolicyError`], with the line.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let mut policy = Self { logs: Vec::new(), members: BTreeMap::new(), quorum: None };
        let (mut quorum, mut grouped) = (false, Vec::new());
        for (number, line) in (1..).zip(text.split('\n')) {
            let words: Vec<&str> =
                line.split([' ', '\t']).filter(|word| !word.is_empty()).collect();
            let full = policy.logs.len() + policy.members.len() >= MAX_DEFINITIONS;
            match words[..] {
                [] => {}
                [first, ..] if first.starts_with('#') => {}
                _ if full => return Err(PolicyError::Line(number)),
                ["log", key] | ["log", key, _] => policy.add_log(number, key)?,
                ["witness", name, key] | ["witness", name, key, _] => {
                    let key = policy.witness(number, key)?;
                    policy.define(number, name, Member::Witness(key))?;
                }
                ["group", name, threshold, ref names @ ..] if !names.is_empty() => {
                    let threshold = match threshold {
                        "all" => Some(names.len()),
                        "any" => Some(1),
                        count => count.parse().ok().filter(|it| (1..=names.len()).contains(it)),
                    };
                    let threshold = threshold.ok_or(PolicyError::Line(number))?;
                    for member in names {
                        // Once in one group: each witness counts in one way only.
                        if !policy.members.contains_key(*member) || grouped.contains(member) {
                            return Err(PolicyError::Unknown(number, (*member).to_owned()));
                        }
                        grouped.push(member);
                    }
                    let names = names.iter().map(|name| (*name).to_owned()).collect();
                    policy.define(number, name, Member::Group { threshold, names })?;
                }
                ["quorum", name] if !quorum => {
                    quorum = true;
                    if name != "none" {
                        if !policy.members.contains_key(name) {
                            return Err(PolicyError::Unknown(number, name.to_owned()));
                        }
                        policy.quorum = Some(name.to_owned());
                    }
                }
                _ => return Err(PolicyError::Line(number)),
            }
        }
        match policy {
            _ if !quorum => Err(PolicyError::NoQuorum),
            policy if policy.logs.is_empty() => Err(PolicyError::NoLog),
            policy => Ok(policy),
        }
    }

    fn add_log(&mut self, number: usize, key: &str) -> Result<(), PolicyError> {
        let key = VerifierKey::parse(key).map_err(|error| PolicyError::Key(number, error))?;
        if key.kind() != Kind::Log {
            return Err(PolicyError::Type(number, "log"));
        }
        if self.logs.iter().any(|log| log.public() == key.public()) {
            return Err(PolicyError::Repeated(number));
        }
        self.logs.push(key);
        Ok(())
    }

    fn witness(&self, number: usize, key: &str) -> Result<VerifierKey, PolicyError> {
        let key = VerifierKey::parse(key).map_err(|error| PolicyError::Key(number, error))?;
        if key.kind() != Kind::Witness {
            return Err(PolicyError::Type(number, "witness"));
        }
        let is_its = |member: &Member| matches!(member, Member::Witness(other) if other.public() == key.public());
        if self.members.values().any(is_its) {
            return Err(PolicyError::Repeated(number));
        }
        Ok(key)
    }

    fn define(&mut self, number: usize, name: &str, member: Member) -> Result<(), PolicyError> {
        if name == "none" || self.members.contains_key(name) {
            return Err(PolicyError::Repeated(number));
        }
        self.members.insert(name.to_owned(), member);
        Ok(())
    }

    /// Whether `vkey` is a key of the log `origin`.
    pub fn trusts(&self, origin: &str, vkey: &str) -> bool {
        self.logs.iter().any(|log| log.name() == origin && log.to_string() == vkey)
    }

    /// The checkpoint of a note that a trusted log signed under the log's name, and who witnessed it.
    ///
    /// # Errors
    /// [`Unsigned`]; also for a forged signature of a known key. A missing quorum is not an error.
    pub fn read(&self, note: &Note) -> Result<Signed, Unsigned> {
        let checkpoint = Checkpoint::parse(note.text())?;
        let mut signed = false;
        for log in self.logs.iter().filter(|log| log.name() == checkpoint.origin) {
            signed |= note.signed_by(log)?;
        }
        if !signed {
            return Err(Unsigned::Log);
        }
        let mut witnessed = BTreeMap::new();
        for (name, member) in &self.members {
            if let Member::Witness(key) = member
                && let Some(time) = note.cosigned_by(key)?
            {
                witnessed.insert(name.clone(), time);
            }
        }
        let quorum = self.quorum.as_ref().is_none_or(|name| self.holds(name, &witnessed));
        Ok(Signed { checkpoint, witnessed, quorum })
    }

    /// Groups name what stands above them, so that this ends.
    fn holds(&self, name: &str, witnessed: &BTreeMap<String, u64>) -> bool {
        match self.members.get(name) {
            Some(Member::Group { threshold, names }) => {
                names.iter().filter(|name| self.holds(name, witnessed)).count() >= *threshold
            }
            Some(Member::Witness(_)) => witnessed.contains_key(name),
            None => false,
        }
    }
}
