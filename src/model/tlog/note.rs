//! Signed notes (c2sp.org/signed-note) and cosignatures (c2sp.org/tlog-cosignature): their text, and Ed25519 by `ring`.

use std::fmt;

use base64::prelude::{BASE64_STANDARD, Engine};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use sha2::{Digest, Sha256};

/// The longest note that is read, in bytes.
pub const MAX_NOTE: usize = 100_000;
/// The most signatures in a note; any one reader has to accept 16.
const MAX_SIGNATURES: usize = 100;
/// Bytes of a key's id, before the signature.
const ID_LENGTH: usize = 4;
/// Bytes of a cosignature's time, before its signature.
const TIME_LENGTH: usize = 8;
const SIGNATURE: &str = "\u{2014} ";
const PRIVATE: &str = "PRIVATE+KEY+";

/// A text and the signatures below it, none of which is verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<Signature>,
}

/// A line that claims to be a signature.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Signature {
    name: String,
    id: [u8; ID_LENGTH],
    bytes: Vec<u8>,
}

/// What a key signs, by its byte in the key's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Notes: a log's key (0x01).
    Log,
    /// The time at which it saw a checkpoint, and the checkpoint: a witness's key (0x04).
    Witness,
}

/// A public key and the name it signs under: `NAME+ID+KEY`, a `vkey`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    kind: Kind,
    public: [u8; 32],
}

/// A private key of a log: `PRIVATE+KEY+NAME+ID+KEY`. Its text is a secret, and no error shows it.
pub struct SignerKey {
    name: String,
    seed: [u8; 32],
    pair: Ed25519KeyPair,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    #[error("not a signed note: {0}")]
    Malformed(&'static str),
    #[error("the signature of {name} is wrong")]
    Forged { name: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("a key has the form NAME+ID+KEY, as vkey files have it")]
    Form,
    #[error("the name of a key is empty, or has spaces or a plus sign in it")]
    Name,
    #[error("the id of the key is not the hash of its name and key: one of the three is changed")]
    Id,
    #[error("the type of the key is neither 1 (Ed25519, a log) nor 4 (Ed25519, a witness)")]
    Type,
}

impl Note {
    /// A note that has no signatures yet.
    ///
    /// # Errors
    /// A text that no signature can stand below.
    pub fn new(text: String) -> Result<Self, NoteError> {
        check_text(&text)?;
        Ok(Self { text, signatures: Vec::new() })
    }

    /// # Errors
    /// [`NoteError::Malformed`]
    pub fn parse(note: &[u8]) -> Result<Self, NoteError> {
        if note.len() > MAX_NOTE {
            return Err(NoteError::Malformed("it is longer than 100,000 bytes"));
        }
        let note = std::str::from_utf8(note);
        let note = note.map_err(|_| NoteError::Malformed("it is not UTF-8"))?;
        // The last blank line: the text may have blank lines, too.
        let split = note.rfind("\n\n").ok_or(NoteError::Malformed("it has no blank line"))?;
        let (text, lines) = (&note[..=split], &note[split + 2..]);
        check_text(text)?;
        let Some(lines) = lines.strip_suffix('\n') else {
            return Err(NoteError::Malformed("it does not end with a signature's line"));
        };
        let signatures: Option<Vec<Signature>> = lines.split('\n').map(Signature::parse).collect();
        match signatures {
            None => Err(NoteError::Malformed("a line below the blank one is not a signature")),
            Some(many) if many.len() > MAX_SIGNATURES => {
                Err(NoteError::Malformed("it has more than 100 signatures"))
            }
            Some(signatures) => Ok(Self { text: text.to_owned(), signatures }),
        }
    }

    /// What is signed; ends with a line break.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Signs as a log.
    pub fn sign(&mut self, key: &SignerKey) {
        let bytes = key.pair.sign(self.text.as_bytes()).as_ref().to_vec();
        self.add(&key.verifier(), bytes);
    }

    /// Signs as a witness that saw the checkpoint `time` seconds after 1970.
    pub fn cosign(&mut self, key: &SignerKey, time: u64) {
        let mut bytes = time.to_be_bytes().to_vec();
        bytes.extend(key.pair.sign(cosigned(&self.text, time).as_bytes()).as_ref());
        self.add(&key.witness(), bytes);
    }

    fn add(&mut self, key: &VerifierKey, bytes: Vec<u8>) {
        self.signatures.push(Signature { name: key.name.clone(), id: key.id(), bytes });
    }

    /// Whether this log's key signed. Signatures of other keys are ignored.
    ///
    /// # Errors
    /// [`NoteError::Forged`] for a signature under the name and id of the key that is not the key's.
    pub fn signed_by(&self, key: &VerifierKey) -> Result<bool, NoteError> {
        let mut signed = false;
        for signature in self.of(key, Kind::Log) {
            key.check(self.text.as_bytes(), &signature.bytes)?;
            signed = true;
        }
        Ok(signed)
    }

    /// When this witness saw the checkpoint, in seconds since 1970: the earliest time that it signed. `None` where it
    /// did not.
    ///
    /// # Errors
    /// As [`Note::signed_by`].
    pub fn cosigned_by(&self, key: &VerifierKey) -> Result<Option<u64>, NoteError> {
        let mut seen = None;
        for signature in self.of(key, Kind::Witness) {
            let forged = || NoteError::Forged { name: key.name.clone() };
            let (time, bytes) = signature.bytes.split_at_checked(TIME_LENGTH).ok_or_else(forged)?;
            let time = u64::from_be_bytes(time.try_into().map_err(|_| forged())?);
            key.check(cosigned(&self.text, time).as_bytes(), bytes)?;
            seen = Some(seen.unwrap_or(u64::MAX).min(time));
        }
        Ok(seen)
    }

    fn of(&self, key: &VerifierKey, kind: Kind) -> impl Iterator<Item = &Signature> {
        let (name, id) = (key.name.clone(), key.id());
        let is_its = move |it: &&Signature| it.name == name && it.id == id;
        let of_kind = key.kind == kind;
        self.signatures.iter().filter(move |it| of_kind && is_its(it))
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        for Signature { name, id, bytes } in &self.signatures {
            let encoded = BASE64_STANDARD.encode([&id[..], bytes].concat());
            writeln!(f, "{SIGNATURE}{name} {encoded}")?;
        }
        Ok(())
    }
}

impl Signature {
    fn parse(line: &str) -> Option<Self> {
        let (name, encoded) = line.strip_prefix(SIGNATURE)?.split_once(' ')?;
        let bytes = BASE64_STANDARD.decode(encoded).ok()?;
        let (id, bytes) = bytes.split_first_chunk()?;
        let sound = is_name(name) && !bytes.is_empty();
        sound.then(|| Self { name: name.to_owned(), id: *id, bytes: bytes.to_vec() })
    }
}

impl Kind {
    const fn byte(self) -> u8 {
        match self {
            Self::Log => 0x01,
            Self::Witness => 0x04,
        }
    }
}

impl VerifierKey {
    /// # Errors
    /// [`KeyError`]
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, id, bytes) = parts(text)?;
        let (kind, public) = bytes.split_first().ok_or(KeyError::Form)?;
        let kind = match kind {
            0x01 => Kind::Log,
            0x04 => Kind::Witness,
            _ => return Err(KeyError::Type),
        };
        let public = public.try_into().map_err(|_| KeyError::Form)?;
        let key = Self { name: name.to_owned(), kind, public };
        if key.id() == id { Ok(key) } else { Err(KeyError::Id) }
    }

    /// The name that it signs under: of a log's key, the log's origin.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub const fn kind(&self) -> Kind {
        self.kind
    }

    pub const fn public(&self) -> &[u8; 32] {
        &self.public
    }

    fn id(&self) -> [u8; ID_LENGTH] {
        id(&self.name, self.kind, &self.public)
    }

    fn check(&self, text: &[u8], signature: &[u8]) -> Result<(), NoteError> {
        UnparsedPublicKey::new(&ED25519, self.public)
            .verify(text, signature)
            .map_err(|_| NoteError::Forged { name: self.name.clone() })
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = [&[self.kind.byte()], &self.public[..]].concat();
        write!(f, "{}+{}+{}", self.name, hex(self.id()), BASE64_STANDARD.encode(key))
    }
}

impl SignerKey {
    /// The key that this seed makes; the seed has to be random and secret.
    ///
    /// # Errors
    /// [`KeyError::Name`]
    pub fn new(name: &str, seed: [u8; 32]) -> Result<Self, KeyError> {
        if !is_name(name) {
            return Err(KeyError::Name);
        }
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| KeyError::Form)?;
        Ok(Self { name: name.to_owned(), seed, pair })
    }

    /// # Errors
    /// [`KeyError`]
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, id, bytes) = parts(text.strip_prefix(PRIVATE).ok_or(KeyError::Form)?)?;
        let (kind, seed) = bytes.split_first().ok_or(KeyError::Form)?;
        if *kind != Kind::Log.byte() {
            return Err(KeyError::Type);
        }
        let key = Self::new(name, seed.try_into().map_err(|_| KeyError::Form)?)?;
        if key.verifier().id() == id { Ok(key) } else { Err(KeyError::Id) }
    }

    /// The text that [`SignerKey::parse`] reads: a secret.
    pub fn secret_text(&self) -> String {
        let key = [&[Kind::Log.byte()], &self.seed[..]].concat();
        let id = hex(self.verifier().id());
        format!("{PRIVATE}{}+{id}+{}", self.name, BASE64_STANDARD.encode(key))
    }

    /// The key for its signatures as a log.
    pub fn verifier(&self) -> VerifierKey {
        self.as_kind(Kind::Log)
    }

    /// The key for its signatures as a witness.
    pub fn witness(&self) -> VerifierKey {
        self.as_kind(Kind::Witness)
    }

    fn as_kind(&self, kind: Kind) -> VerifierKey {
        let mut public = [0; 32];
        public.copy_from_slice(self.pair.public_key().as_ref());
        VerifierKey { name: self.name.clone(), kind, public }
    }
}

impl fmt::Debug for SignerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignerKey").field("name", &self.name).finish_non_exhaustive()
    }
}

fn cosigned(text: &str, time: u64) -> String {
    format!("cosignature/v1\ntime {time}\n{text}")
}

fn check_text(text: &str) -> Result<(), NoteError> {
    if !text.ends_with('\n') {
        return Err(NoteError::Malformed("its text does not end with a line break"));
    }
    if text.bytes().any(|byte| byte < b' ' && byte != b'\n') {
        return Err(NoteError::Malformed("its text has a control character"));
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+')
}

/// Name, id and decoded key of `NAME+ID+KEY`. The key, in base64, may have plus signs.
fn parts(text: &str) -> Result<(&str, [u8; ID_LENGTH], Vec<u8>), KeyError> {
    let mut parts = text.splitn(3, '+');
    let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(KeyError::Form);
    };
    if !is_name(name) {
        return Err(KeyError::Name);
    }
    let is_id = id.len() == 2 * ID_LENGTH && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = u32::from_str_radix(id, 16).ok().filter(|_| is_id).ok_or(KeyError::Form)?;
    let key = BASE64_STANDARD.decode(key).map_err(|_| KeyError::Form)?;
    Ok((name, id.to_be_bytes(), key))
}

fn id(name: &str, kind: Kind, public: &[u8; 32]) -> [u8; ID_LENGTH] {
    let hashed = Sha256::new()
        .chain_update(name)
        .chain_update([b'\n', kind.byte()])
        .chain_update(public)
        .finalize();
    let mut id = [0; ID_LENGTH];
    id.copy_from_slice(&hashed[..ID_LENGTH]);
    id
}

fn hex(bytes: [u8; ID_LENGTH]) -> String {
    format!("{:08x}", u32::from_be_bytes(bytes))
}
