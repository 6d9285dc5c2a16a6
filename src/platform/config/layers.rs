//! Layers of settings, and the value that holds when they are merged.

use std::collections::BTreeMap;

use figment::providers::Serialized;
use figment::value::{Dict, Map};
use figment::{Error, Figment, Metadata, Profile, Provider};

use super::keys::{self, Key};

/// The name of the layers of the shipped file, which hold defaults and nothing that a user set.
const SHIPPED: &str = "shipped";

/// The settings of one source, as text. To figment it is a provider that says in its metadata
/// where each value came from.
pub(super) struct Layer {
    pub metadata: Metadata,
    values: BTreeMap<&'static Key, String>,
}

impl Layer {
    /// A layer without values; `place` says for people where this source has a setting.
    pub fn new(place: impl Fn(&Key) -> String + Clone + Send + Sync + 'static) -> Self {
        let place = move |_: &Profile, path: &[&str]| {
            let key = keys::with_variables().find(|key| path == [key.path]);
            key.map(&place).unwrap_or_default()
        };
        Self { metadata: Metadata::default().interpolater(place), values: BTreeMap::new() }
    }

    /// A layer of the shipped file, without values.
    pub fn shipped(profile: &str) -> Self {
        let place = match profile {
            super::DEFAULT_PROFILE => "shipped defaults".to_owned(),
            profile => format!("shipped profile {profile}"),
        };
        let mut layer = Self::new(move |_| place.clone());
        layer.metadata.name = SHIPPED.into();
        layer
    }

    /// Sets a value. An empty one counts as not set, in every layer: `RABBITMQ_PASSWORD=` in a
    /// template does not mean an empty password.
    pub fn set(&mut self, key: &'static Key, text: String) {
        if !text.is_empty() {
            self.values.insert(key, text);
        }
    }

    pub fn get(&self, key: &Key) -> Option<Found> {
        let text = self.values.get(key)?;
        Some(Found::new(text, &self.metadata, key))
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        self.metadata.clone()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        let mut sections: BTreeMap<&str, BTreeMap<&str, Option<&str>>> = BTreeMap::new();
        let mut insert = |key: &'static Key, text| {
            sections.entry(key.section()).or_default().insert(key.name(), text);
        };
        // A password replaces the file of a lower layer, and a file the password.
        for (password, file) in keys::PASSWORDS {
            for (given, other) in [(password, file), (file, password)] {
                if self.values.contains_key(given) {
                    insert(other, None);
                }
            }
        }
        for (key, text) in &self.values {
            insert(key, Some(text));
        }
        Serialized::defaults(sections).data()
    }
}

/// The layers, the lowest first, as one.
// Every layer lies in figment's one default profile: figment lets a selected profile win over
// the default one even when the default's value came from a later layer, so the profiles of a
// file are separated before, when the file is read.
pub(super) fn merge(layers: &[Layer]) -> Figment {
    layers.iter().fold(Figment::new(), |merged, layer| merged.merge(layer))
}

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
    fn new(text: &str, metadata: &Metadata, key: &Key) -> Self {
        Self {
            text: text.to_owned(),
            set_by: metadata.interpolate(&Profile::Default, &[key.path]),
            shipped: metadata.name == SHIPPED,
        }
    }
}

/// The value that the merged layers have for a key.
pub(super) fn find(merged: &Figment, key: &Key) -> Option<Found> {
    let value = merged.find_value(key.path).ok()?;
    Some(Found::new(value.as_str()?, merged.get_metadata(value.tag())?, key))
}
