//! What must hold for the configuration, whatever files and variables say: reading it never panics,
//! and no problem or setting that it shows holds a password that it was given.

use std::fs;
use std::path::Path;

use vote_aggregator::platform::config::{Config, Overrides, Sources, keys};

/// Stands in every password that is given.
const PASSWORD: &str = "correct-horse-battery-staple";
/// Ends one part of an input.
pub const PART: char = '\u{1e}';

/// Checks one configuration: the text of `pipeline.toml`, of `.env`, and then variables and flags,
/// each as the number of a setting (`!` is the first), what to make of it, and its value. `dir` is
/// the working directory; its two files are replaced.
///
/// # Panics
/// When reading panics or shows a password.
pub fn check(input: &[u8], dir: &Path) {
    let input = String::from_utf8_lossy(input);
    let mut parts = input.split(PART);
    for name in ["pipeline.toml", ".env"] {
        fs::write(dir.join(name), parts.next().unwrap_or_default()).expect("a writable directory");
    }
    let mut sources = Sources { working_dir: Some(dir.to_owned()), ..Sources::default() };
    let mut flags = Overrides::default();
    for part in parts {
        let mut characters = part.chars();
        let (Some(number), Some(kind)) = (characters.next(), characters.next()) else { continue };
        let value = characters.as_str();
        let settings: Vec<_> = keys::ALL.iter().chain(keys::SELECTORS).collect();
        let key = settings[(number as usize).wrapping_sub('!' as usize) % settings.len()];
        let value = match (key.is_secret(), key.name().ends_with("url")) {
            (true, true) if kind != 'r' => format!("{value}://u:{PASSWORD}@{value}"),
            (true, false) => format!("{value}{PASSWORD}"),
            // A file that is named is read whole: only such as are harmless to read.
            (false, _) if key.path == "--config" || key.name().ends_with("file") => {
                value.replace('/', "")
            }
            _ => value.to_owned(),
        };
        if kind == 'f' {
            flags.set.push((key.path.to_owned(), value));
        } else if kind == 'p' {
            flags.profile = Some(value);
        } else {
            sources.environment.insert(key.variable.to_owned(), value.into());
        }
    }
    sources.flags = flags;
    match Config::load(&sources) {
        Ok(config) => {
            for setting in config.redacted() {
                assert!(!setting.value.contains(PASSWORD), "{} shows a password", setting.path);
            }
            assert!(!format!("{config:?}").contains(PASSWORD), "a password in debug output");
            assert!(config.batches_in_flight() >= 1);
            assert!(config.batch.size <= usize::from(config.rabbitmq.prefetch));
        }
        Err(errors) => {
            assert!(!errors.problems().is_empty());
            let shown = format!("{errors}\n{errors:?}");
            assert!(!shown.contains(PASSWORD), "a password in an error:\n{shown}");
        }
    }
}
