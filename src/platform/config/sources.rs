//! Where settings come from, read into layers.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::PathBuf;

use super::DEFAULT_PROFILE;
use super::document::{self, PROFILES, nearest_profile};
use super::dotenv::{self, DotEnv};
use super::keys::{self, Key};
use super::layers::{Found, Layer};
use super::problems::{Problem, Refusal};
use super::unread::unread;
use super::values::plain;

const FILE_NAME: &str = "pipeline.toml";
pub(super) const DOTENV: &str = ".env";

/// What is most likely a mistake although the configuration can be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspicions {
    /// Variables that no setting reads.
    pub unread: Vec<Problem>,
    /// Settings in `.env` with another variable's value in them.
    pub expanded: Vec<Problem>,
}

/// Everything a configuration is made from. It has no `Debug`: its values may be passwords. Reading
/// it changes nothing, and looks only at the files named here; a `$NAME` outside single quotes in
/// `.env` is looked up in the process environment too.
#[derive(Clone, Default)]
pub struct Sources {
    /// Environment variables. Only the values of the names in [`keys`] are read; of others that look like
    /// them the names are reported.
    pub environment: BTreeMap<String, OsString>,
    /// Where `pipeline.toml` and `.env` are looked for, and where relative paths start. Without
    /// it neither is looked for.
    pub working_dir: Option<PathBuf>,
    /// What the command line says.
    pub flags: Overrides,
}

/// What the command line says; it wins over everything else.
#[derive(Clone, Default)]
pub struct Overrides {
    /// `--config`: the file to read instead of `pipeline.toml` in the working directory.
    pub config: Option<PathBuf>,
    /// `--profile`.
    pub profile: Option<String>,
    /// `--set PATH=VALUE`, such as `batch.size` and `500`; the last of a path holds.
    pub set: Vec<(String, String)>,
}

impl Sources {
    /// This process's environment and working directory.
    pub fn from_process(flags: Overrides) -> Self {
        Self {
            environment: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
                .collect(),
            working_dir: std::env::current_dir().ok(),
            flags,
        }
    }

    /// Where relative paths start.
    pub(super) fn base(&self) -> PathBuf {
        self.working_dir.clone().unwrap_or_default()
    }

    /// The name of the selected profile, all layers, the lowest first, and what is suspicious.
    pub(super) fn read(
        &self,
        problems: &mut Vec<Problem>,
    ) -> (&'static str, Vec<Layer>, Suspicions) {
        let DotEnv { values, expanded } = self.dotenv(problems);
        let suspicions = Suspicions { unread: unread(&self.environment, &values), expanded };
        let above = [dotenv_layer(values), self.environment(problems), self.flags.layer(problems)];
        let selected = |key: &Key| above.iter().rev().find_map(|layer| layer.get(key));
        let profile = selected_profile(selected(&keys::PIPELINE_PROFILE), problems);
        let mut layers = document::layers(document::SHIPPED, None, profile, problems);
        layers.extend(self.file(selected(&keys::PIPELINE_CONFIG), profile, problems));
        layers.extend(above);
        (profile, layers, suspicions)
    }

    /// The layers of the file that was named, else of the working directory's, if there is one.
    fn file(&self, named: Option<Found>, profile: &str, problems: &mut Vec<Problem>) -> Vec<Layer> {
        let key = &keys::PIPELINE_CONFIG;
        let path = match (&named, &self.working_dir) {
            (Some(named), _) => self.base().join(&named.text),
            (None, Some(dir)) => dir.join(FILE_NAME),
            (None, None) => return Vec::new(),
        };
        let place = path.display().to_string();
        if let Some(named) = &named
            && let Err(refusal) = plain(&named.text)
        {
            problems.push(Problem::refused(key, named, refusal));
            return Vec::new();
        }
        match std::fs::read_to_string(&path) {
            // In a checkout, and wherever the file was copied unchanged, no user chose it: it
            // must not make a prefetch "set" that only the defaults chose.
            Ok(text) if text == document::SHIPPED => Vec::new(),
            Ok(text) => document::layers(&text, Some(&place), profile, problems),
            Err(error) if named.is_none() && error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                let set_by = named.map_or_else(|| place.clone(), |named| named.set_by);
                let found = Found { text: place, set_by, shipped: false };
                let help = "name a TOML file that this service may read";
                let refusal = Refusal::new(format!("cannot be read ({error})"), help);
                problems.push(Problem::refused(key, &found, refusal));
                Vec::new()
            }
        }
    }

    /// The working directory's `.env`.
    fn dotenv(&self, problems: &mut Vec<Problem>) -> DotEnv {
        let Some(path) = self.working_dir.as_ref().map(|dir| dir.join(DOTENV)) else {
            return DotEnv::default();
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => return dotenv::parse(&text, &path, problems),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                let wrong = format!("cannot be read ({error})");
                let help = "make it readable, or remove it";
                problems.push(Problem::about(DOTENV, path.display().to_string(), wrong, help));
            }
        }
        DotEnv::default()
    }

    /// The known variables of the environment.
    fn environment(&self, problems: &mut Vec<Problem>) -> Layer {
        let mut layer = Layer::new(|key| format!("environment variable {}", key.variable));
        for key in keys::with_variables() {
            let Some(value) = self.environment.get(key.variable) else { continue };
            match value.to_str() {
                Some(text) => layer.set(key, text.to_owned()),
                None => {
                    let set_by = format!("environment variable {}", key.variable);
                    let help = "encode the value as UTF-8";
                    problems.push(Problem::about(key.path, set_by, "is not UTF-8", help));
                }
            }
        }
        layer
    }
}

impl Overrides {
    fn layer(&self, problems: &mut Vec<Problem>) -> Layer {
        let mut layer = Layer::new(|key| match key.section() {
            "" => key.path.to_owned(),
            _ => format!("--set {}", key.path),
        });
        let file = self.config.as_ref().map(|path| path.to_string_lossy().into_owned());
        layer.set(&keys::PIPELINE_CONFIG, file.unwrap_or_default());
        layer.set(&keys::PIPELINE_PROFILE, self.profile.clone().unwrap_or_default());
        for (path, text) in &self.set {
            match keys::by_path(path) {
                Some(key) => layer.set(key, text.clone()),
                None => problems.push(document::unknown_setting(path, format!("--set {path}"))),
            }
        }
        layer
    }
}

fn dotenv_layer(values: BTreeMap<String, String>) -> Layer {
    let mut layer = Layer::new(|key| format!("{DOTENV}: {}", key.variable));
    for (name, text) in values {
        if let Some(key) = keys::by_variable(&name) {
            layer.set(key, text);
        }
    }
    layer
}

fn selected_profile(named: Option<Found>, problems: &mut Vec<Problem>) -> &'static str {
    let Some(found) = named else { return DEFAULT_PROFILE };
    if let Some(profile) = PROFILES.into_iter().find(|profile| *profile == found.text) {
        return profile;
    }
    let refusal = Refusal::new("is not a profile", nearest_profile(&found.text));
    problems.push(Problem::refused(&keys::PIPELINE_PROFILE, &found, refusal));
    // The rest is read all the same, so that its problems are listed too.
    DEFAULT_PROFILE
}
