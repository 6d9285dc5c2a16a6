//! Takes the settings out of the merged layers, and notes everything that is wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::error::Kind;
use serde::de::DeserializeOwned;

use super::keys::{self, Key};
use super::layers::{self, Found, Layer};
use super::password::Password;
use super::problems::{ConfigErrors, Problem, Refusal};
use super::{shipped_default, urls};

pub(super) struct Settings {
    merged: Figment,
    problems: Vec<Problem>,
    /// Where a value came from that is not in its own setting, by path.
    derived: BTreeMap<&'static str, String>,
}

impl Settings {
    /// Merges the layers, the lowest first. Relative paths start at `base`.
    pub fn new(mut layers: Vec<Layer>, base: &Path, mut problems: Vec<Problem>) -> Self {
        problems.extend(urls::contradicted_scheme(&layers::merge(&layers)));
        for (url, parts) in [
            (&keys::RABBITMQ_URL, urls::amqp as fn(&str) -> _),
            (&keys::DATABASE_URL, urls::postgres),
        ] {
            problems.extend(insert_url_parts(&mut layers, url, parts).err());
        }
        for layer in &mut layers {
            layer.metadata.source = Some(base.into());
        }
        Self { merged: layers::merge(&layers), problems, derived: BTreeMap::new() }
    }

    /// All settings. For a value that is refused, which is noted, the shipped default is used,
    /// so that all others are checked too.
    ///
    /// # Errors
    /// A setting without a value and without a default: the program was built wrongly.
    pub fn extract<T: DeserializeOwned>(&mut self) -> Result<T, ConfigErrors> {
        let mut merged = self.merged.clone();
        let mut refused = BTreeSet::new();
        loop {
            let error = match merged.extract() {
                Ok(settings) => return Ok(settings),
                Err(error) => error,
            };
            let path = error.path.join(".");
            match (keys::by_path(&path), error.kind) {
                (Some(key), Kind::Message(message)) if refused.insert(key) => {
                    self.refuse(key, Refusal::from_text(&message));
                    merged = merged.merge((key.path, shipped_default(key)));
                }
                (_, kind) => {
                    let place = "the shipped pipeline.toml";
                    let problem = Problem::about(path, place, kind.to_string(), "report it");
                    return Err(ConfigErrors(vec![problem]));
                }
            }
        }
    }

    pub fn find(&self, key: &Key) -> Option<Found> {
        layers::find(&self.merged, key)
    }

    /// Where the value of a setting comes from, for people.
    pub fn source(&self, key: &Key) -> String {
        self.find(key).unwrap_or_default().set_by
    }

    /// Notes what is wrong with a setting's value.
    pub fn refuse(&mut self, key: &Key, refusal: Refusal) {
        let found = self.find(key).unwrap_or_default();
        self.problems.push(Problem::refused(key, &found, refusal));
    }

    /// Whether one of these was refused, so that no rule applies to its value.
    pub fn any_refused(&self, keys: &[&Key]) -> bool {
        self.problems.iter().any(|problem| keys.iter().any(|key| key.path == problem.key))
    }

    /// Records that a value follows from another setting.
    pub fn follows(&mut self, key: &'static Key, from: &Key) {
        self.derived.insert(key.path, format!("follows {} ({})", from.path, self.source(from)));
    }

    /// As [`Settings::follows`], if no user set the value; returns whether it does.
    pub fn follows_unless_set(&mut self, key: &'static Key, from: &Key) -> bool {
        let shipped = self.find(key).is_some_and(|found| found.shipped);
        if shipped {
            self.follows(key, from);
        }
        shipped
    }

    /// The password in a file, if one is set. In one layer only one of the two may be given.
    pub fn password_in_file(
        &mut self,
        (key, file_key): (&'static Key, &Key),
        path: Option<PathBuf>,
    ) -> Option<Password> {
        let (path, file) = (path?, self.source(file_key));
        if let Some(given) = self.find(key) {
            let set_by = format!("{} and {file}", given.set_by);
            let wrong = format!("is given twice: as itself and as {}", file_key.path);
            self.problems.push(Problem::about(key.path, set_by, wrong, "keep one of the two"));
            return None;
        }
        self.derived.insert(key.path, file);
        Password::in_file(path, file_key).map_err(|refusal| self.refuse(file_key, refusal)).ok()
    }

    /// Where each value came from, by path.
    ///
    /// # Errors
    /// What was found wrong: first what is not a setting, then the settings in the shipped file's order.
    pub fn finish(mut self) -> Result<BTreeMap<&'static str, String>, ConfigErrors> {
        if !self.problems.is_empty() {
            self.problems.sort_by_key(|it| keys::ALL.iter().position(|key| key.path == it.key));
            return Err(ConfigErrors(self.problems));
        }
        let found = keys::ALL.iter().filter_map(|key| Some((key.path, self.find(key)?.set_by)));
        let mut sources: BTreeMap<_, _> = found.collect();
        sources.extend(self.derived);
        Ok(sources)
    }
}

/// Puts the parts of a URL right above the layer that the URL came from: they win over that layer's
/// own parts, and a higher layer's parts win over them. Of the URLs of several layers only the highest
/// counts, as a whole.
fn insert_url_parts(
    layers: &mut Vec<Layer>,
    key: &'static Key,
    parts: fn(&str) -> Result<urls::Parts, Refusal>,
) -> Result<(), Problem> {
    let mut found = layers.iter().enumerate().rev();
    let Some((at, url)) = found.find_map(|(at, layer)| Some((at, layer.get(key)?))) else {
        return Ok(());
    };
    let parts = parts(&url.text).map_err(|refusal| Problem::refused(key, &url, refusal))?;
    let mut layer = Layer::new(move |_| url.set_by.clone());
    for (key, text) in parts {
        layer.set(key, text);
    }
    layers.insert(at + 1, layer);
    Ok(())
}
