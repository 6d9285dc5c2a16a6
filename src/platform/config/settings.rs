//! Takes the settings out of the merged layers, and notes everything that is wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::error::Kind;
use figment::value::magic::RelativePathBuf;
use serde::de::DeserializeOwned;

use super::keys::{self, Key};
use super::layers::{self, Found, Layer};
use super::problems::{ConfigErrors, Problem, Refusal};
use super::{rules, shipped_default, urls};

pub(super) struct Settings {
    merged: Figment,
    problems: Vec<Problem>,
    /// Where a value came from that does not stand in its own setting, by path.
    derived: BTreeMap<&'static str, String>,
}

impl Settings {
    /// Merges the layers, the lowest first. Relative paths start at `base`.
    pub fn new(mut layers: Vec<Layer>, base: &Path, mut problems: Vec<Problem>) -> Self {
        problems.extend(rules::contradicted_scheme(&layers::merge(&layers)));
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

    /// All settings. For a value that is refused, which is noted, the shipped default stands in,
    /// so that all others are checked too.
    pub fn extract<T: DeserializeOwned>(&mut self) -> Option<T> {
        let mut merged = self.merged.clone();
        let mut refused = BTreeSet::new();
        loop {
            let error = match merged.extract() {
                Ok(settings) => return Some(settings),
                Err(error) => error,
            };
            let path = error.path.join(".");
            match (keys::by_path(&path), error.kind) {
                (Some(key), Kind::Message(message)) if refused.insert(key) => {
                    self.refuse(key, Refusal::from_text(&message));
                    merged = merged.merge((key.path, shipped_default(key)));
                }
                // Such as a setting without a default in a program that was built wrongly.
                (_, kind) => {
                    let place = "the shipped pipeline.toml";
                    self.problems.push(Problem::about(path, place, kind.to_string(), "report it"));
                    return None;
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

    /// The path in a setting, if one is set.
    pub fn path(&self, key: &Key) -> Option<PathBuf> {
        let path: RelativePathBuf = self.merged.extract_inner(key.path).ok()?;
        Some(path.relative())
    }

    /// Notes what is wrong with a setting's value.
    pub fn refuse(&mut self, key: &Key, refusal: Refusal) {
        let Found { text, set_by, .. } = self.find(key).unwrap_or_default();
        self.problems.push(Problem::refused(key, &text, &set_by, refusal));
    }

    /// Notes what is wrong with more than one value.
    pub fn note(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Whether one of these was refused, so that no rule applies to its value.
    pub fn any_refused(&self, keys: &[&Key]) -> bool {
        self.problems.iter().any(|problem| keys.iter().any(|key| key.path == problem.key))
    }

    /// Records that a value follows from another setting.
    pub fn follows(&mut self, key: &'static Key, from: &Key) {
        self.set_source(key, format!("follows {} ({})", from.path, self.source(from)));
    }

    /// Records where a value came from that is not in the setting itself.
    pub fn set_source(&mut self, key: &'static Key, place: String) {
        self.derived.insert(key.path, place);
    }

    /// What was extracted, and where each value came from, by path.
    ///
    /// # Errors
    /// What was found wrong: first what is no setting, then the settings in the shipped file's order.
    pub fn finish<T>(
        mut self,
        extracted: Option<T>,
    ) -> Result<(T, BTreeMap<&'static str, String>), ConfigErrors> {
        let Some(extracted) = extracted.filter(|_| self.problems.is_empty()) else {
            let place = |problem: &Problem| keys::ALL.iter().position(|k| k.path == problem.key);
            self.problems.sort_by_key(place);
            return Err(ConfigErrors::new(self.problems));
        };
        let mut sources = self.derived;
        for key in keys::ALL {
            if let Some(found) = layers::find(&self.merged, key) {
                sources.entry(key.path).or_insert(found.set_by);
            }
        }
        Ok((extracted, sources))
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
    let (text, place) = (layers[at].get(url).unwrap_or_default(), layers[at].place(url));
    let parts = parts(text).map_err(|refusal| Problem::refused(url, text, &place, refusal))?;
    let mut layer = Layer::new(move |_| place.clone());
    for (key, text) in parts {
        layer.set(key, text);
    }
    layers.insert(at + 1, layer);
    Ok(())
}
