//! The configuration as a whole; single values are tested beside the code that reads them.

mod defaults;
mod precedence;
mod rules;
mod secrets;
mod urls;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// An environment and nothing else.
fn environment(variables: &[(&str, &str)]) -> Sources {
    let environment =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
    Sources { environment, ..Sources::default() }
}

fn load(variables: &[(&str, &str)]) -> Config {
    loaded(&environment(variables))
}

fn loaded(sources: &Sources) -> Config {
    Config::load(sources).unwrap_or_else(|errors| panic!("{errors}"))
}

fn refused(sources: &Sources) -> Vec<Problem> {
    Config::load(sources).expect_err("the configuration must be refused").0
}

/// The one problem that these variables make.
fn problem(variables: &[(&str, &str)]) -> Problem {
    only(refused(&environment(variables)))
}

fn only(problems: Vec<Problem>) -> Problem {
    let [problem] = <[Problem; 1]>::try_from(problems).expect("one problem");
    problem
}

/// Where the value of a setting came from.
fn source(config: &Config, path: &str) -> String {
    setting(config, path).set_by
}

fn setting(config: &Config, path: &str) -> Setting {
    let mut settings = config.redacted().into_iter();
    settings.find(|setting| setting.path == path).expect("every setting is listed")
}

/// A certificate that may sign others, and its private key, as one PEM file.
fn pem() -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let certificate = params.self_signed(&key).expect("a certificate");
    certificate.pem() + &key.serialize_pem()
}

/// A directory that is removed at the end of a test.
struct Directory(PathBuf);

impl Directory {
    fn new(files: &[(&str, &str)]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("vote-aggregator-config-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a temporary directory can be made");
        let directory = Self(path);
        files.iter().for_each(|(name, text)| directory.write(name, text));
        directory
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).expect("a file can be written to it");
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// Sources that start in this directory.
    fn sources(&self, variables: &[(&str, &str)]) -> Sources {
        Sources { working_dir: Some(self.0.clone()), ..environment(variables) }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed is left to the system's own cleaning.
        drop(std::fs::remove_dir_all(&self.0));
    }
}
