//! Where settings come from, read into layers.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::PathBuf;

use super::DEFAULT_PROFILE;
use super::document;
use super::dotenv::{self, DotEnv};
use super::keys::{self, Key};
use super::layers::{Found, Layer};
use super::problems::{Problem, Refusal};
use super::unread::unread;
use super::values::plain;

const FILE_NAME: &str = "pipeline.toml";
pub(super) const DOTENV: &str = ".env";

/// What a configuration works with and what is most likely a mistake all the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspicions {
    /// Variables that no setting reads.
    pub unread: Vec<Problem>,
    /// Settings in `.env` with another variable's value in them.
    pub expanded: Vec<Problem>,
}

/// Everything a configuration is made from. It has no `Debug`: its values may be passwords. Reading it changes nothing, and looks at nothing
/// else than the files named here; only a `$NAME` outside single quotes in `.env` is looked up in
/// the process environment too.
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
    pub(super) fn read(&self, problems: &mut Vec<Problem>) -> (String, Vec<Layer>, Suspicions) {
        let DotEnv { values, expanded } = self.dotenv(problems);
        let suspicions = Suspicions { unread: unread(&self.environment, &values), expanded };
        let above = [dotenv_layer(values), self.environment(problems), self.flags.layer(problems)];
        let profile = selected_profile(&above, problems);
        let mut layers = document::layers(
            document::SHIPPED,
            "shipped defaults",
            &profile,
            Layer::shipped,
            problems,
        );
        layers.extend(self.file(&above, &profile, problems));
        layers.extend(above);
        (profile, layers, suspicions)
    }

    /// The layers of the file that was named, else of the working directory's, if there is one.
    fn file(&self, above: &[Layer], profile: &str, problems: &mut Vec<Problem>) -> Vec<Layer> {
        let key = &keys::PIPELINE_CONFIG;
        let named = selected(above, key);
        let path = match (&named, &self.working_dir) {
            (Some(named), _) => self.base().join(&named.text),
            (None, Some(dir)) => dir.join(FILE_NAME),
            (None, None) => return Vec::new(),
        };
        let place = path.display().to_string();
        if let Some(named) = &named
            && let Err(refusal) = plain(&named.text)
        {
            problems.push(Problem::refused(key, &named.text, &named.set_by, refusal));
            return Vec::new();
        }
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if named.is_none() && error.kind() == ErrorKind::NotFound => {
                return Vec::new();
            }
            Err(error) => {
                let set_by = named.map_or(place.clone(), |named| named.set_by);
                let refusal = Refusal::new(
                    format!("cannot be read ({error})"),
                    "name a TOML file that this service may read",
                );
                problems.push(Problem::refused(key, &place, &set_by, refusal));
                return Vec::new();
            }
        };
        // In a checkout, and wherever the file was copied unchanged, no user chose it: it
        // must not make a prefetch "set" that only the defaults chose.
        if text == document::SHIPPED {
            return Vec::new();
        }
        let layer = |profile: &str| {
            let profile = format!("{place}: {profile}");
            Layer::new(move |key| format!("{profile}.{}", key.path))
        };
        document::layers(&text, &place, profile, layer, problems)
    }

    /// The working directory's `.env`.
    fn dotenv(&self, problems: &mut Vec<Problem>) -> DotEnv {
        let Some(path) = self.working_dir.as_ref().map(|dir| dir.join(DOTENV)) else {
            return DotEnv::default();
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => dotenv::parse(&text, &path, problems),
            Err(error) if error.kind() == ErrorKind::NotFound => DotEnv::default(),
            Err(error) => {
                let place = path.display().to_string();
                let wrong = format!("cannot be read ({error})");
                let help = "make it readable, or remove it";
                problems.push(Problem::about(DOTENV, place, wrong, help));
                DotEnv::default()
            }
        }
    }

    /// The known variables of the environment.
    fn environment(&self, problems: &mut Vec<Problem>) -> Layer {
        let mut layer = Layer::new(|key| format!("environment variable {}", key.variable));
        for key in keys::with_variables() {
            match self.environment.get(key.variable).map(|value| value.to_str()) {
                None => {}
                Some(Some(text)) => layer.set(key, text.to_owned()),
                Some(None) => problems.push(Problem::about(
                    key.path,
                    layer.place(key),
                    "is not UTF-8",
                    "encode the value as UTF-8",
                )),
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
                None => {
                    problems.push(document::unknown_setting(path, format!("--set {path}")));
                }
            }
        }
        layer
    }
}

fn dotenv_layer(mut values: BTreeMap<String, String>) -> Layer {
    let mut layer = Layer::new(|key| format!("{DOTENV}: {}", key.variable));
    for key in keys::with_variables() {
        layer.set(key, values.remove(key.variable).unwrap_or_default());
    }
    layer
}

/// The value of a selector in the highest layer that has one.
fn selected(layers: &[Layer], key: &Key) -> Option<Found> {
    layers.iter().rev().find_map(|layer| {
        let text = layer.get(key)?.to_owned();
        Some(Found { text, set_by: layer.place(key), shipped: false })
    })
}

fn selected_profile(above: &[Layer], problems: &mut Vec<Problem>) -> String {
    let key = &keys::PIPELINE_PROFILE;
    let Some(Found { text, set_by, .. }) = selected(above, key) else {
        return DEFAULT_PROFILE.to_owned();
    };
    let known = document::profiles();
    if known.contains(&text) {
        return text;
    }
    let near = keys::closest(&text, known.iter().map(|name| (name, name)))
        .map_or(String::new(), |near| format!("did you mean {near}? "));
    let help = format!("{near}There are: {}", known.join(", "));
    problems.push(Problem::refused(key, &text, &set_by, Refusal::new("is not a profile", help)));
    // The rest is read as if none had been asked for, so that its problems are listed too.
    DEFAULT_PROFILE.to_owned()
}
