use super::*;

const README: &str = include_str!("../../README.md");

#[test]
fn the_arguments_are_consistent() {
    Arguments::command().debug_assert();
}

#[test]
fn run_is_the_default_and_settings_go_anywhere() {
    let parsed = Arguments::parse_from(["vote-aggregator", "--profile", "throughput"]);
    assert!(parsed.command.is_none());
    let parsed = Arguments::parse_from(["vote-aggregator", "run", "--set", "batch.size=5"]);
    assert_eq!(parsed.set, [("batch.size".to_owned(), "5".to_owned())]);
    assert!(Arguments::try_parse_from(["vote-aggregator", "--set", "batch.size"]).is_err());
}

/// The words of a command line, as far as its own arguments go: no comment behind two spaces, no
/// pipe before it, no redirection behind it.
fn words(example: &str) -> Vec<String> {
    let from = example.find("vote-aggregator").expect("an example of this program");
    let line = example[from..].split("  ").next().unwrap_or_default();
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for character in line.chars() {
        match character {
            '"' => quoted = !quoted,
            '>' | '|' if !quoted => break,
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            other => word.push(other),
        }
    }
    words.push(word);
    words.into_iter().filter(|word| !word.is_empty()).collect()
}

fn examples(command: &clap::Command) -> Vec<String> {
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let lines = help.lines().skip_while(|line| *line != "Examples:").skip(1);
    lines.take_while(|line| line.starts_with("  ")).map(str::to_owned).collect()
}

#[test]
fn every_command_has_examples_and_they_can_be_parsed() {
    let root = Arguments::command();
    for command in [&root].into_iter().chain(root.get_subcommands()) {
        let (name, examples) = (command.get_name(), examples(command));
        assert!(!examples.is_empty(), "{name} has no example");
        for example in examples {
            assert!(example.len() <= 100, "too wide for a terminal: {example}");
            let words = words(&example);
            let parsed = Arguments::command().try_get_matches_from(&words);
            let parsed = parsed.unwrap_or_else(|error| panic!("{example}: {error}"));
            if name != root.get_name() {
                assert_eq!(parsed.subcommand_name(), Some(name), "{example}");
            }
        }
    }
}

/// README, help and code agree on the exit codes.
#[test]
fn the_exit_codes_of_readme_help_and_code_agree() {
    let (_, table) = README.split_once("| exit code | meaning |\n|---|---|\n").expect("a table");
    let rows = table.lines().take_while(|line| line.starts_with('|'));
    let listed: Vec<String> = rows.map(|row| row.replace('`', "")).collect();
    let row = |(code, meaning)| format!("| {} | {meaning} |", exit::name(code));
    assert_eq!(listed, exit::TABLE.map(row));

    let codes: Vec<u8> = exit::TABLE.iter().filter_map(|(code, _)| *code).collect();
    let named = [
        exit::FINDINGS,
        exit::USAGE,
        exit::INTERNAL,
        exit::DEADLINE,
        exit::CREDENTIALS,
        exit::CONFIG,
    ];
    assert_eq!(codes, [&[0][..], &named].concat());

    let help = Arguments::command().render_long_help().to_string();
    let (_, listed) = help.split_once("Exit codes:\n").expect("exit codes");
    let (listed, _) = listed.split_once("\n\n").expect("their end");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let all = exit::TABLE.map(|(code, meaning)| format!("{} {meaning}", exit::name(code)));
    assert_eq!(words(listed), words(&all.join(" ")));
    assert!(listed.lines().all(|line| line.len() <= 80), "{listed}");
}

#[test]
fn the_readme_has_every_command() {
    for command in Arguments::command().get_subcommands() {
        let row = format!("| `{}` |", command.get_name());
        assert!(README.contains(&row), "{row}");
    }
}
