//! The layers of settings, merged, and the values that are read out of them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::keys::{self, Key};
use super::password::Password;
use super::problems::{ConfigErrors, Problem, Refusal};
use super::values::{plain, read_pem};
use super::{shipped_default, urls};

/// The text of a setting.
#[derive(Clone, Default)]
pub(super) struct Found {
    pub text: String,
    /// Where it was set, for people.
    pub set_by: String,
    /// Whether it is the shipped file's, which no user set.
    pub shipped: bool,
}

impl Found {
    pub fn new(text: impl Into<String>, set_by: impl Into<String>) -> Self {
        Self { text: text.into(), set_by: set_by.into(), shipped: false }
    }
}

/// The settings of one source.
#[derive(Clone, Default)]
pub(super) struct Layer(BTreeMap<&'static Key, Found>);

impl Layer {
    /// Sets a value. An empty one counts as not set, in every layer: `RABBITMQ_PASSWORD=` in a
    /// template does not mean an empty password.
    pub fn set(&mut self, key: &'static Key, found: Found) {
        if !found.text.is_empty() {
            self.0.insert(key, found);
        }
    }

    pub fn get(&self, key: &Key) -> Option<&Found> {
        self.0.get(key)
    }

    /// The layers, the lowest first, as one.
    pub fn merged(layers: &[Self]) -> Self {
        let mut merged = Self::default();
        for layer in layers {
            // A password replaces the file of a lower layer, and a file the password.
            for (password, file) in keys::PASSWORDS {
                if layer.0.contains_key(password) || layer.0.contains_key(file) {
                    merged.0.remove(password);
                    merged.0.remove(file);
                }
            }
            merged.0.extend(layer.0.clone());
        }
        merged
    }
}

/// Reads the settings, and notes everything that is wrong with them.
pub(super) struct Reader {
    settings: Layer,
    /// Where relative paths start.
    base: PathBuf,
    problems: Vec<Problem>,
}

impl Reader {
    /// Merges the layers, the lowest first.
    pub fn new(mut layers: Vec<Layer>, base: PathBuf, mut problems: Vec<Problem>) -> Self {
        problems.extend(urls::contradicted_scheme(&Layer::merged(&layers)));
        for (url, parts) in [
            (&keys::RABBITMQ_URL, urls::amqp as fn(&str) -> _),
            (&keys::DATABASE_URL, urls::postgres),
        ] {
            problems.extend(insert_url_parts(&mut layers, url, parts).err());
        }
        Self { settings: Layer::merged(&layers), base, problems }
    }

    pub fn find(&self, key: &Key) -> Option<&Found> {
        self.settings.get(key)
    }

    /// What `parse` makes of a setting. The shipped default stands in for a value that is refused,
    /// so that all others are checked too.
    pub fn get<T>(&mut self, key: &Key, parse: impl Fn(&str) -> Result<T, Refusal>) -> T {
        self.get_if_set(key, &parse).unwrap_or_else(|| {
            let default = shipped_default(key).unwrap_or_default();
            parse(&default).expect("the shipped defaults are valid")
        })
    }

    /// What `parse` makes of a setting that may be unset.
    pub fn get_if_set<T>(
        &mut self,
        key: &Key,
        parse: impl Fn(&str) -> Result<T, Refusal>,
    ) -> Option<T> {
        let parsed = parse(&self.find(key)?.text);
        parsed.map_err(|refusal| self.refuse(key, refusal)).ok()
    }

    /// The path of a file.
    pub fn file(&mut self, key: &Key) -> Option<PathBuf> {
        let file = self.get_if_set(key, plain)?;
        Some(self.base.join(file))
    }

    /// The path of a PEM file that holds what `check` looks for.
    pub fn pem<T>(&mut self, key: &Key, check: fn(&[u8]) -> Result<T, String>) -> Option<PathBuf> {
        let path = self.file(key)?;
        let checked = read_pem(&path).and_then(|pem| check(&pem).map_err(Refusal::of_pem));
        checked.map_err(|refusal| self.refuse(key, refusal)).ok()?;
        Some(path)
    }

    /// A password, given itself or by a file. In one layer only one of the two may be given.
    pub fn password(&mut self, key: &'static Key, file_key: &Key) -> Option<Password> {
        let password = self.get_if_set(key, Password::given);
        let Some(file) = self.find(file_key).cloned() else { return password };
        if let Some(given) = self.find(key) {
            let set_by = format!("{} and {}", given.set_by, file.set_by);
            let wrong = format!("is given twice: as itself and as {}", file_key.path);
            self.note(Problem::about(key.path, set_by, wrong, "keep one of the two"));
            return None;
        }
        let path = self.file(file_key)?;
        self.set_source(key, file.set_by);
        self.get_if_set(file_key, |_| Password::in_file(path.clone(), file_key))
    }

    /// Notes what is wrong with a setting's value.
    pub fn refuse(&mut self, key: &Key, refusal: Refusal) {
        let found = self.find(key).cloned().unwrap_or_default();
        self.note(Problem::refused(key, &found, refusal));
    }

    fn note(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Whether one of these was refused, so that no rule applies to its value.
    pub fn any_refused(&self, keys: &[&Key]) -> bool {
        self.problems.iter().any(|problem| keys.iter().any(|key| key.path == problem.key))
    }

    /// Where the value of a setting comes from, for people.
    pub fn source(&self, key: &Key) -> &str {
        self.find(key).map_or("", |found| &found.set_by)
    }

    /// Records that a value follows from another setting.
    pub fn follows(&mut self, key: &'static Key, from: &Key) {
        self.set_source(key, format!("follows {} ({})", from.path, self.source(from)));
    }

    /// As [`Reader::follows`], if no user set the value; returns whether it does.
    pub fn follows_unless_set(&mut self, key: &'static Key, from: &Key) -> bool {
        let shipped = self.find(key).is_some_and(|found| found.shipped);
        if shipped {
            self.follows(key, from);
        }
        shipped
    }

    fn set_source(&mut self, key: &'static Key, set_by: String) {
        self.settings.0.entry(key).or_default().set_by = set_by;
    }

    /// Where each value comes from, by path.
    ///
    /// # Errors
    /// What was found wrong: first what is no setting, then the settings in the shipped file's order.
    pub fn finish(mut self) -> Result<BTreeMap<&'static str, String>, ConfigErrors> {
        if self.problems.is_empty() {
            let settings = self.settings.0.into_iter();
            return Ok(settings.map(|(key, found)| (key.path, found.set_by)).collect());
        }
        self.problems.sort_by_key(|it| keys::ALL.iter().position(|key| key.path == it.key));
        Err(ConfigErrors(self.problems))
    }
}

/// Puts the parts of a URL right above the layer that the URL came from: they win over that layer's
/// own parts, and a higher layer's parts win over them. Of the URLs of several layers only the highest
/// counts, as a whole.
fn insert_url_parts(
    layers: &mut Vec<Layer>,
    url: &'static Key,
    parts: fn(&str) -> Result<urls::Parts, Refusal>,
) -> Result<(), Problem> {
    let Some(at) = layers.iter().rposition(|layer| layer.get(url).is_some()) else {
        return Ok(());
    };
    let found = layers[at].get(url).cloned().unwrap_or_default();
    let parts = parts(&found.text).map_err(|refusal| Problem::refused(url, &found, refusal))?;
    let mut layer = Layer::default();
    for (key, text) in parts {
        layer.set(key, Found::new(text, &found.set_by));
    }
    layers.insert(at + 1, layer);
    Ok(())
}
