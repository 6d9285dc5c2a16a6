//! A TOML file with profiles: parsed, checked against the known settings, and resolved to the
//! layers of one profile.

use figment::providers::{Format as _, Toml};
use figment::value::{Dict, Num, Value};
use figment::{Profile, Provider as _};

use super::DEFAULT_PROFILE;
use super::keys::{self, Key};
use super::layers::Layer;
use super::problems::{Problem, Refusal};

/// The file whose `default` profile is the defaults, part of this program.
pub(super) const SHIPPED: &str = include_str!("../../../pipeline.toml");

/// The profiles of the shipped file. There are no others: a misspelt profile would never be selected,
/// and the settings in it never read.
pub(super) const PROFILES: [&str; 2] = [DEFAULT_PROFILE, "throughput"];

const NOT_A_TABLE: &str = "is a value, not a table";
const ONE_LAYOUT: &str =
    "write settings below [default.SECTION] or [PROFILE.SECTION], such as [default.batch]";

/// The layers of a document: its `default` profile and, above it, the selected one. Without `file` it
/// is the shipped one. Every unknown name in it is a problem, in every profile.
pub(super) fn layers(
    text: &str,
    file: Option<&str>,
    selected: &str,
    problems: &mut Vec<Problem>,
) -> Vec<Layer> {
    let place = file.unwrap_or("shipped defaults");
    let mut tables = match parse(text) {
        Ok(tables) => tables,
        Err(wrong) => {
            let help = "fix the file's TOML syntax at that place";
            problems.push(Problem::about(place, place, wrong, help));
            return Vec::new();
        }
    };
    let mut layers = Vec::new();
    for profile in PROFILES {
        let table = tables.remove(profile).unwrap_or_else(|| Dict::new().into());
        let layer = layer(file, profile, table, problems);
        // A profile that is not selected is checked, too.
        if profile == DEFAULT_PROFILE || profile == selected {
            layers.push(layer);
        }
    }
    problems.extend(tables.keys().map(|unknown| unknown_profile(place, unknown)));
    layers
}

fn unknown_profile(place: &str, written: &str) -> Problem {
    let (wrong, help) = if keys::is_section(written) {
        ("is a section outside a profile", format!("write [{DEFAULT_PROFILE}.{written}]"))
    } else {
        ("is not a profile", format!("{}; {ONE_LAYOUT}", nearest_profile(written)))
    };
    Problem::about(written, format!("{place}: {written}"), wrong, help)
}

/// What to do about a name that is not a profile.
pub(super) fn nearest_profile(written: &str) -> String {
    let near = keys::closest(written, PROFILES.map(|name| (name, name)));
    let near = near.map_or(String::new(), |near| format!("did you mean {near}? "));
    format!("{near}The profiles are: {}", PROFILES.join(", "))
}

/// The settings of one profile.
fn layer(file: Option<&str>, profile: &str, table: Value, problems: &mut Vec<Problem>) -> Layer {
    let place = format!("{}: {profile}", file.unwrap_or("shipped file"));
    let mut layer = if file.is_none() {
        Layer::shipped(profile)
    } else {
        let place = place.clone();
        Layer::new(move |key| format!("{place}.{}", key.path))
    };
    let Value::Dict(_, sections) = table else {
        problems.push(Problem::about(profile, place, NOT_A_TABLE, ONE_LAYOUT));
        return layer;
    };
    for (section, settings) in sections {
        let at = format!("{place}.{section}");
        if !keys::is_section(&section) {
            let known = keys::ALL.iter().map(|key| (key.section(), key.section()));
            let help = keys::closest(&section, known)
                .map_or(ONE_LAYOUT.to_owned(), |near| format!("did you mean [{profile}.{near}]?"));
            problems.push(Problem::about(section, at, "is not a section", help));
            continue;
        }
        let Value::Dict(_, settings) = settings else {
            problems.push(Problem::about(section, at, NOT_A_TABLE, ONE_LAYOUT));
            continue;
        };
        for (name, value) in settings {
            let path = format!("{section}.{name}");
            let at = format!("{place}.{path}");
            let Some(key) = keys::by_path(&path) else {
                problems.push(unknown_setting(&path, at));
                continue;
            };
            match text_of(key, value) {
                Ok(text) => layer.set(key, text),
                Err(Refusal { wrong, help }) => {
                    problems.push(Problem::about(path, at, wrong, help));
                }
            }
        }
    }
    layer
}

/// A name that is not a setting, with the nearest one that is.
pub(super) fn unknown_setting(path: &str, set_by: String) -> Problem {
    // It may be a variable's name that was written into a section.
    let name = path.split_once('.').map_or(path, |(_, name)| name);
    let near = keys::closest_key(path).or_else(|| keys::closest_key(name));
    let help = match near {
        Some(near) => format!("did you mean {}?", near.path),
        None => "remove it; the shipped pipeline.toml lists every setting".to_owned(),
    };
    Problem::about(path, set_by, "is not a setting", help)
}

/// A TOML value as the text that every other layer would hold.
fn text_of(key: &Key, value: Value) -> Result<String, Refusal> {
    let wrong = match value {
        Value::String(_, text) => return Ok(text),
        Value::Bool(_, yes) => return Ok(yes.to_string()),
        Value::Num(_, Num::F64(_)) if key.is_secret() => {
            // 1.50 arrives as 1.5: the digits that were written are lost, and with them a password.
            let wrong = "is a number with a fraction, which TOML does not keep as written";
            return Err(Refusal::new(wrong, "put it in quotes"));
        }
        Value::Num(_, Num::F64(fraction)) => return Ok(format!("{fraction:?}")),
        Value::Num(_, Num::I64(number)) => return Ok(number.to_string()),
        Value::Array(..) => "is an array",
        _ => "is a table or a date",
    };
    Err(Refusal::new(wrong, "give one value"))
}

/// The top-level tables, or what is wrong and in which line. The excerpt of the file in the parser's
/// message is left out: it may hold a password.
fn parse(text: &str) -> Result<Dict, String> {
    let error = match Toml::string(text).data() {
        Ok(mut profiles) => return Ok(profiles.remove(&Profile::Default).unwrap_or_default()),
        Err(error) => error.kind.to_string(),
    };
    let is_excerpt = |line: &&str| {
        line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ').starts_with('|')
    };
    let lines: Vec<&str> = error.lines().filter(|line| !is_excerpt(line)).collect();
    let message = lines.join(", ");
    let place = message.split_once("TOML parse error at ").map_or("", |(_, place)| place);
    Err(format!("is not TOML: {place}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only_problem(text: &str) -> Problem {
        let mut problems = Vec::new();
        layers(text, Some("f.toml"), DEFAULT_PROFILE, &mut problems);
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems.into_iter().next().expect("there is one")
    }

    #[test]
    fn the_shipped_file_names_every_setting_and_its_variable() {
        let mut section = String::new();
        let mut named = Vec::new();
        for line in SHIPPED.lines().take_while(|line| !line.starts_with("[throughput")) {
            if let Some(name) = line.strip_prefix("[default.") {
                section = name.trim_end_matches(']').to_owned();
            }
            // A setting without a default is a comment.
            let setting = line.strip_prefix("# ").unwrap_or(line).split_once(" = ");
            if let Some((name, _)) = setting {
                named.push(format!("{section}.{name}"));
            }
        }
        assert_eq!(named, keys::ALL.iter().map(|key| key.path).collect::<Vec<_>>());
        for key in keys::ALL.iter().chain(keys::SELECTORS) {
            assert!(SHIPPED.contains(key.variable), "{}", key.variable);
        }
    }

    #[test]
    fn unknown_names_are_problems_with_a_suggestion() {
        for (text, key, help) in [
            ("[default.batch]\nsise = 1", "batch.sise", "did you mean batch.size?"),
            ("[default.batch]\nBATCH_SIZE = 1", "batch.BATCH_SIZE", "did you mean batch.size?"),
            ("[throughput.batch]\nsise = 1", "batch.sise", "did you mean batch.size?"),
            ("[default.bach]\nsize = 1", "bach", "did you mean [default.batch]?"),
            ("[throughtput.batch]\nsize = 1", "throughtput", "did you mean throughput?"),
            ("[batch]\nsize = 1", "batch", "write [default.batch]"),
            ("[default]\nsize = 1", "size", "write settings below"),
            ("[default]\nbatch = 1", "batch", "write settings below"),
            ("default = 1", "default", "write settings below"),
        ] {
            let problem = only_problem(text);
            assert_eq!(problem.key, key, "{text}");
            assert!(problem.help.contains(help), "{text}: {}", problem.help);
            assert!(problem.set_by.starts_with("f.toml: "), "{}", problem.set_by);
        }
    }

    #[test]
    fn a_value_is_not_an_array_a_table_or_a_date_and_a_password_not_a_fraction() {
        for value in ["[100]", "{ a = 1 }", "1979-05-27"] {
            let problem = only_problem(&format!("[default.batch]\nsize = {value}"));
            assert_eq!(problem.set_by, "f.toml: default.batch.size", "{value}");
        }
        let problem = only_problem("[default.rabbitmq]\npassword = 1.50");
        assert!(problem.help.contains("quotes"), "{problem}");
    }

    #[test]
    fn a_syntax_error_names_its_line_and_shows_none_of_the_file() {
        let problem = only_problem("[default.rabbitmq]\nhost = \"h\"\npassword = \"hunter2\nx = 1");
        assert!(problem.wrong.contains("line 3"), "{}", problem.wrong);
        assert!(!format!("{problem:?}").contains("hunter2"), "{problem:?}");
        assert!(!problem.to_string().contains('|'), "{problem}");
    }
}
