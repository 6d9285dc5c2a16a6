//! Layers of settings, each with where it came from, and what holds when they are merged.

use std::collections::BTreeMap;
use std::path::PathBuf;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::keys::Key;

/// Where a layer came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The `pipeline.toml` inside this program.
    Shipped { profile: String },
    /// Somebody's file.
    File { path: PathBuf, profile: String },
    /// `.env` in the working directory.
    DotEnv,
    /// The process environment.
    Environment,
    /// The command line.
    Flag,
}

impl Origin {
    /// Where exactly this origin says something about a setting.
    pub fn describe(&self, key: &Key) -> String {
        match self {
            Self::Shipped { profile } if profile == super::DEFAULT_PROFILE => {
                "shipped defaults".to_owned()
            }
            Self::Shipped { profile } => format!("shipped profile {profile}"),
            Self::File { path, profile } => {
                format!("{}: {profile}.{}", path.display(), key.path)
            }
            Self::DotEnv => format!(".env: {}", key.variable),
            Self::Environment => format!("environment variable {}", key.variable),
            Self::Flag if key.path.starts_with("--") => key.path.to_owned(),
            Self::Flag => format!("--set {}", key.path),
        }
    }
}

/// Settings of one origin.
pub(super) struct Layer {
    origin: Origin,
    /// The setting whose URL these values are the parts of.
    url: Option<&'static Key>,
    values: BTreeMap<&'static str, (&'static Key, String)>,
}

impl Layer {
    pub fn new(origin: Origin) -> Self {
        Self { origin, url: None, values: BTreeMap::new() }
    }

    /// Sets a value. An empty one counts as not set, in every layer: `RABBITMQ_PASSWORD=` in a
    /// template does not mean an empty password.
    pub fn set(&mut self, key: &'static Key, text: String) {
        if !text.is_empty() {
            self.values.insert(key.path, (key, text));
        }
    }

    fn get(&self, key: &Key) -> Option<&str> {
        self.values.get(key.path).map(|(_, text)| text.as_str())
    }

    fn is_shipped(&self) -> bool {
        matches!(self.origin, Origin::Shipped { .. })
    }

    /// What makes this layer findable again behind a merged value.
    fn label(&self) -> String {
        format!("{:?} {:?}", self.origin, self.url.map(|key| key.path))
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.label())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let mut sections: BTreeMap<String, Dict> = BTreeMap::new();
        for (key, text) in self.values.values() {
            sections
                .entry(key.section().to_owned())
                .or_default()
                .insert(key.name().to_owned(), Value::from(text.clone()));
        }
        let sections = sections.into_iter().map(|(name, dict)| (name, Value::from(dict))).collect();
        Ok(Profile::Default.collect(sections))
    }
}

/// A value that holds, and where it came from.
#[derive(Clone)]
pub(super) struct Found {
    pub text: String,
    /// For people.
    pub set_by: String,
    /// Nobody set it: it is the shipped file's.
    pub shipped: bool,
    /// The layer's place; the highest wins.
    pub rank: usize,
}

/// All layers, the lowest first.
pub(super) struct Layers {
    layers: Vec<Layer>,
    merged: Figment,
}

impl Layers {
    pub fn new(layers: Vec<Layer>) -> Self {
        let merged = Self::merge(&layers);
        Self { layers, merged }
    }

    // Every layer lies in figment's one default profile: figment lets a selected profile win over
    // the default one even when the default's value came from a later layer, so the profiles of a
    // file are told apart before, when the file is read.
    fn merge(layers: &[Layer]) -> Figment {
        layers.iter().fold(Figment::new(), |merged, layer| merged.merge(layer))
    }

    /// The value that holds for a setting.
    pub fn find(&self, key: &Key) -> Option<Found> {
        let value = self.merged.find_value(key.path).ok()?;
        let label = &self.merged.get_metadata(value.tag())?.name;
        let rank = self.layers.iter().position(|layer| layer.label() == *label)?;
        self.at(rank, key)
    }

    /// The highest value that somebody set for a setting by itself, not as a part of a URL.
    pub fn set_alone(&self, key: &Key) -> Option<Found> {
        self.layers
            .iter()
            .rposition(|layer| {
                layer.url.is_none() && !layer.is_shipped() && layer.get(key).is_some()
            })
            .and_then(|rank| self.at(rank, key))
    }

    /// Puts the parts of a URL right above the layer that the URL came from: they win over that
    /// layer's own parts, and a higher layer's parts win over them.
    pub fn insert_url_parts(
        &mut self,
        url: &'static Key,
        above: usize,
        parts: Vec<(&'static Key, String)>,
    ) {
        let mut layer = Layer { url: Some(url), ..Layer::new(self.layers[above].origin.clone()) };
        for (key, text) in parts {
            layer.set(key, text);
        }
        self.layers.insert(above + 1, layer);
        self.merged = Self::merge(&self.layers);
    }

    fn at(&self, rank: usize, key: &Key) -> Option<Found> {
        let layer = self.layers.get(rank)?;
        Some(Found {
            text: layer.get(key)?.to_owned(),
            set_by: layer.origin.describe(layer.url.unwrap_or(key)),
            shipped: layer.is_shipped(),
            rank,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys;
    use super::*;

    fn layer(origin: Origin, values: &[(&'static Key, &str)]) -> Layer {
        let mut layer = Layer::new(origin);
        for (key, text) in values {
            layer.set(key, (*text).to_owned());
        }
        layer
    }

    #[test]
    fn the_highest_layer_wins_and_is_named() {
        let layers = Layers::new(vec![
            layer(Origin::DotEnv, &[(&keys::BATCH_SIZE, "1"), (&keys::RABBITMQ_HOST, "h")]),
            layer(Origin::Environment, &[(&keys::BATCH_SIZE, "2")]),
        ]);
        let size = layers.find(&keys::BATCH_SIZE).expect("the size is set");
        assert_eq!((size.text.as_str(), size.rank), ("2", 1));
        assert_eq!(size.set_by, "environment variable BATCH_SIZE");
        let host = layers.find(&keys::RABBITMQ_HOST).expect("the host is set");
        assert_eq!(host.set_by, ".env: RABBITMQ_HOST");
        assert!(layers.find(&keys::RABBITMQ_PORT).is_none());
    }

    #[test]
    fn an_empty_value_is_not_set() {
        let layers = Layers::new(vec![
            layer(Origin::DotEnv, &[(&keys::BATCH_SIZE, "1")]),
            layer(Origin::Environment, &[(&keys::BATCH_SIZE, "")]),
        ]);
        assert_eq!(layers.find(&keys::BATCH_SIZE).map(|found| found.rank), Some(0));
    }

    #[test]
    fn parts_of_a_url_lie_between_its_layer_and_the_next() {
        let host = &keys::RABBITMQ_HOST;
        let mut layers = Layers::new(vec![
            layer(Origin::DotEnv, &[(host, "same layer")]),
            layer(Origin::Environment, &[(&keys::RABBITMQ_PORT, "1")]),
        ]);
        let parts = vec![(host, "url".to_owned()), (&keys::RABBITMQ_PORT, "2".to_owned())];
        layers.insert_url_parts(&keys::RABBITMQ_URL, 0, parts);
        let found = layers.find(host).expect("the host is set");
        assert_eq!((found.text.as_str(), found.set_by.as_str()), ("url", ".env: RABBITMQ_URL"));
        let port = layers.find(&keys::RABBITMQ_PORT).expect("the port is set");
        assert_eq!(port.text, "1");
        assert_eq!(layers.set_alone(host).map(|found| found.text).as_deref(), Some("same layer"));
    }
}
