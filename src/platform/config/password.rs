//! A password: given itself, or by a file that is read again for each new connection.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use secrecy::{ExposeSecret as _, SecretString};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::keys::Key;
use super::problems::{HIDDEN, Refusal};
use super::values::{read_file, secret};

/// Largest password file, in bytes. A larger one is most likely the wrong file.
const LARGEST_FILE: u64 = 65_536;

/// A password. Clones share what was read last.
#[derive(Clone, Default)]
pub struct Password {
    /// The file and its variable, for messages.
    file: Option<(PathBuf, &'static str)>,
    last: Arc<Mutex<Last>>,
}

#[derive(Default)]
struct Last {
    text: SecretString,
    /// What is wrong with the file since then.
    wrong: Option<String>,
}

impl Password {
    /// A password that was given itself. It may have blanks and quotation marks anywhere, and no
    /// control character.
    pub(super) fn given(text: &str) -> Result<Self, Refusal> {
        Ok(Self::new(secret(text)?, None))
    }

    /// The password in a file, which `key` named.
    ///
    /// # Errors
    /// What is wrong with the file or the text in it.
    pub(super) fn in_file(path: PathBuf, key: &Key) -> Result<Self, Refusal> {
        let text = read(&path)?;
        // A pipe can be read once; a second time would block.
        let again = path.is_file().then_some((path, key.variable));
        Ok(Self::new(text, again))
    }

    fn new(text: String, file: Option<(PathBuf, &'static str)>) -> Self {
        Self { file, last: Arc::new(Mutex::new(Last { text: text.into(), wrong: None })) }
    }

    /// Whether a later [`Password::current`] may be another.
    pub fn is_in_file(&self) -> bool {
        self.file.is_some()
    }

    /// The password for a new connection: what the file holds now, so that a rotated password needs no
    /// restart. While the file is unusable, that is logged and the last password stays in use.
    pub fn current(&self) -> SecretString {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((path, variable)) = &self.file else { return last.text.clone() };
        let file = path.display();
        match read(path) {
            Ok(text) if text != last.text.expose_secret() => {
                tracing::info!("{variable}: {file} holds another password, used from now on");
                *last = Last { text: text.into(), wrong: None };
            }
            Ok(_) => {
                if last.wrong.take().is_some() {
                    tracing::info!("{variable}: {file} can be used again");
                }
            }
            // Connections are tried every second; a fault is logged once.
            Err(Refusal { wrong, help }) => {
                if last.wrong.as_ref() != Some(&wrong) {
                    tracing::warn!(
                        "{variable}: {file} {wrong}: the password that was read last stays in \
                         use; {help}"
                    );
                    last.wrong = Some(wrong);
                }
            }
        }
        last.text.clone()
    }
}

impl<'de> Deserialize<'de> for Password {
    fn deserialize<D: Deserializer<'de>>(setting: D) -> Result<Self, D::Error> {
        // It is `None` where the file of a higher layer replaces it.
        let text = Option::<String>::deserialize(setting)?.unwrap_or_default();
        Self::given(&text).map_err(D::Error::custom)
    }
}

impl Serialize for Password {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(HIDDEN)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Password").field(&self.file).finish()
    }
}

/// Reads a password and drops the one newline that editors and `echo` put at the end.
fn read(path: &Path) -> Result<String, Refusal> {
    let named =
        |wrong: &str| Refusal::new(wrong, "name a file that holds the password and nothing else");
    let bytes = read_file(path, LARGEST_FILE)
        .map_err(|error| named(&format!("cannot be read ({error})")))?
        .ok_or_else(|| named("is too large for a password file"))?;
    let text = String::from_utf8(bytes).map_err(|_| named("is not UTF-8"))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(named("is empty"));
    }
    secret(text)
}
