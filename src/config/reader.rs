//! Takes settings out of the merged layers, checks them, and notes what is wrong with each.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::keys::Key;
use super::layers::{Found, Layers};
use super::password::Password;
use super::problems::{Problem, Refusal};
use super::urls::Parts;
use super::values::{pem_file, plain, secret};
use crate::tls;

pub(super) struct Reader {
    layers: Layers,
    /// Where relative paths start.
    base: PathBuf,
    problems: Vec<Problem>,
    /// Where each setting's value came from, by path.
    sources: BTreeMap<&'static str, String>,
}

impl Reader {
    pub fn new(layers: Layers, base: PathBuf, problems: Vec<Problem>) -> Self {
        Self { layers, base, problems, sources: BTreeMap::new() }
    }

    /// What was found wrong, and where each value came from.
    pub fn finish(self) -> (Vec<Problem>, BTreeMap<&'static str, String>) {
        (self.problems, self.sources)
    }

    pub fn find(&self, key: &Key) -> Option<Found> {
        self.layers.find(key)
    }

    /// The highest value that somebody set for a setting by itself, not as a part of a URL.
    pub fn set_alone(&self, key: &Key) -> Option<Found> {
        self.layers.set_alone(key)
    }

    /// Notes a value that contradicts another.
    pub fn refuse(&mut self, key: &Key, found: &Found, wrong: String, help: String) {
        let refusal = Refusal::new(wrong, help);
        self.problems.push(Problem::refused(key, &found.text, &found.set_by, refusal));
    }

    /// Says that a value follows from another setting.
    pub fn derived(&mut self, key: &'static Key, from: &Key) {
        let source = match self.layers.find(from) {
            Some(found) => format!("follows {} ({})", from.path, found.set_by),
            None => format!("follows {}", from.path),
        };
        self.sources.insert(key.path, source);
    }

    /// A setting that must have a value; none when it is missing or refused, which is noted.
    pub fn required<T>(
        &mut self,
        key: &'static Key,
        check: impl FnOnce(&str) -> Result<T, Refusal>,
    ) -> Option<T> {
        let value = self.optional(key, check)?;
        if value.is_none() {
            let help = format!("set {} or {}", key.path, key.variable);
            self.problems.push(Problem::about(key.path, "nothing", "has no value", help));
        }
        value
    }

    /// A setting that may be unset: the outer option is none when the value is refused, which is
    /// noted, the inner one when there is no value.
    pub fn optional<T>(
        &mut self,
        key: &'static Key,
        check: impl FnOnce(&str) -> Result<T, Refusal>,
    ) -> Option<Option<T>> {
        let Some(found) = self.layers.find(key) else {
            return Some(None);
        };
        match check(&found.text) {
            Ok(value) => {
                self.sources.insert(key.path, found.set_by);
                Some(Some(value))
            }
            Err(refusal) => {
                self.problems.push(Problem::refused(key, &found.text, &found.set_by, refusal));
                None
            }
        }
    }

    /// Path and bytes of a PEM file that `check` takes, if one is set. Options as for
    /// [`Reader::optional`].
    pub fn pem(
        &mut self,
        key: &'static Key,
        check: impl Fn(&[u8]) -> Result<(), String>,
    ) -> Option<Option<(PathBuf, Vec<u8>)>> {
        let base = self.base.clone();
        self.optional(key, pem_file(&base, check))
    }

    /// The path of a file of authorities, if one is set. Options as for [`Reader::optional`].
    pub fn authorities(&mut self, key: &'static Key) -> Option<Option<PathBuf>> {
        let file = self.pem(key, |pem| tls::authorities(pem).map(drop))?;
        Some(file.map(|(path, _)| path))
    }

    /// Replaces the URL that holds by the settings it stands for. Of the URLs of several layers
    /// only the highest counts, as a whole.
    pub fn take_apart(&mut self, key: &'static Key, parts: fn(&str) -> Result<Parts, Refusal>) {
        let Some(found) = self.layers.find(key) else {
            return;
        };
        match parts(&found.text) {
            Ok(parts) => self.layers.insert_url_parts(key, found.rank, parts),
            Err(refusal) => {
                self.problems.push(Problem::refused(key, &found.text, &found.set_by, refusal));
            }
        }
    }

    /// A password that was given itself or as a file. The higher layer's wins; in one layer only
    /// one of the two may be given. Options as for [`Reader::optional`].
    pub fn password(
        &mut self,
        key: &'static Key,
        file_key: &'static Key,
    ) -> Option<Option<Password>> {
        let given = self.layers.find(key);
        let Some(file) = self.layers.find(file_key) else {
            return self.plain_password(key, given);
        };
        match given {
            Some(given) if given.rank > file.rank => self.plain_password(key, Some(given)),
            Some(given) if given.rank == file.rank => {
                self.problems.push(Problem::about(
                    key.path,
                    format!("{} and {}", given.set_by, file.set_by),
                    format!("is given twice: as itself and as {}", file_key.path),
                    "keep one of the two",
                ));
                None
            }
            _ => match self.password_file(&file.text, file_key) {
                Ok(password) => {
                    self.sources.insert(key.path, file.set_by);
                    Some(Some(password))
                }
                Err(Refusal { wrong, help }) => {
                    self.refuse(file_key, &file, wrong, help);
                    None
                }
            },
        }
    }

    /// A password may have blanks and quotation marks anywhere, and no control character.
    fn plain_password(
        &mut self,
        key: &'static Key,
        given: Option<Found>,
    ) -> Option<Option<Password>> {
        let Some(given) = given else { return Some(None) };
        if let Err(Refusal { wrong, help }) = secret(&given.text) {
            self.refuse(key, &given, wrong, help);
            return None;
        }
        self.sources.insert(key.path, given.set_by);
        Some(Some(Password::given(given.text)))
    }

    fn password_file(&self, path: &str, key: &Key) -> Result<Password, Refusal> {
        plain(path)?;
        Password::in_file(self.base.join(path), key)
    }
}
