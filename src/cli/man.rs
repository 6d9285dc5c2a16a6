//! `man`: the help, as manual pages.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command};
use clap_mangen::Man;

use vote_aggregator::operator::publish::files;

use super::exit;
use super::output::{answer, note};

/// Manual pages are for everybody.
const READABLE: u32 = 0o644;

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator man > vote-aggregator.1       one page about everything: man ./vote-aggregator.1
  vote-aggregator man --dir /usr/local/share/man/man1

The Debian package has installed them already.")]
pub(super) struct Arguments {
    /// Write that page and one for each command into this directory, which is made if need be
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn man(command: Command, arguments: &Arguments) -> ExitCode {
    let Some(dir) = &arguments.dir else {
        return match whole(&command) {
            Ok(page) => answer(&page, 0),
            Err(error) => failed("the page", &error),
        };
    };
    match pages(command).and_then(|pages| write(dir, &pages)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&format!("the pages to {}", dir.display()), &error),
    }
}

fn failed(what: &str, error: &io::Error) -> ExitCode {
    note(format_args!("cannot write {what}: {error}"));
    ExitCode::from(exit::INTERNAL)
}

fn write(dir: &Path, pages: &[(String, Vec<u8>)]) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    pages.iter().try_for_each(|(name, page)| files::replace(&dir.join(name), page, READABLE))
}

/// File names and contents: the page about everything, and one a command.
fn pages(mut command: Command) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut pages = vec![(format!("{}.1", command.get_name()), whole(&command)?)];
    // Gives the commands their full names and the settings that go anywhere.
    command.build();
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let name = sub.get_display_name().unwrap_or(sub.get_name()).to_owned();
        let man = Man::new(sub.clone());
        let mut page = head(&man)?;
        page.extend(examples(sub));
        page.extend(exit_status());
        page.extend(format!(".SH \"SEE ALSO\"\n.BR {} (1)\n", text(command.get_name())).bytes());
        pages.push((format!("{name}.1"), page));
    }
    Ok(pages)
}

/// One page about the whole tool.
fn whole(command: &Command) -> io::Result<Vec<u8>> {
    let mut page = head(&Man::new(command.clone()))?;
    page.extend(b".SH COMMANDS\n");
    for sub in command.get_subcommands() {
        let full = format!("{} {}", command.get_name(), sub.get_name());
        let man = Man::new(sub.clone().bin_name(full));
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        page.extend(format!(".SS {}\n{}\n.PP\n", text(sub.get_name()), text(&about)).bytes());
        let mut part = Vec::new();
        man.render_synopsis_section(&mut part)?;
        if sub.get_arguments().next().is_some() {
            part.extend(b".PP\n");
            man.render_options_section(&mut part)?;
        }
        part.extend(examples(sub));
        page.extend(without_headings(&part).bytes());
    }
    page.extend(examples(command));
    page.extend(exit_status());
    let settings = text(super::SETTINGS);
    page.extend(format!(".SH ENVIRONMENT\n{settings}\n").bytes());
    Ok(page)
}

fn head(man: &Man) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    Ok(page)
}

/// What stands behind the options in the help: examples as they are typed, then the rest.
fn examples(command: &Command) -> Vec<u8> {
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let mut section = String::new();
    for paragraph in help.split("\n\n") {
        match paragraph.split_once(":\n") {
            Some((heading, lines)) if lines.starts_with("  ") => {
                let heading = text(&heading.to_uppercase());
                let lines: Vec<String> =
                    lines.lines().map(|line| text(line.trim_start())).collect();
                section += &format!(".SH \"{heading}\"\n.nf\n{}\n.fi\n", lines.join("\n"));
            }
            _ => section += &format!(".PP\n{}\n", text(paragraph)),
        }
    }
    section.into_bytes()
}

fn exit_status() -> Vec<u8> {
    let mut section = ".SH \"EXIT STATUS\"\n".to_owned();
    for (code, meaning) in exit::TABLE {
        section += &format!(".TP\n.B {}\n{}\n", text(&exit::name(code)), text(meaning));
    }
    section.into_bytes()
}

/// A part of another page within ours: what were sections are paragraphs, and what stands at the
/// beginning of a page is there already.
fn without_headings(part: &[u8]) -> String {
    let mut page = String::new();
    for line in String::from_utf8_lossy(part).lines() {
        match line.strip_prefix(".SH ").map(|heading| heading.trim_matches('"')) {
            Some("SYNOPSIS" | "OPTIONS") => {}
            Some(heading) => {
                let (first, rest) = heading.split_at(heading.len().min(1));
                page += &format!(".PP\n.I \"{first}{}\"\n.br\n", rest.to_lowercase());
            }
            None if line.starts_with(".ie ") || line.starts_with(".el ") => {}
            None => page += &format!("{line}\n"),
        }
    }
    page
}

/// Text that roff takes for nothing else.
fn text(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    let lines = escaped.lines().map(|line| match line.starts_with(['.', '\'']) {
        true => format!("\\&{line}"),
        false => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn command() -> Command {
        super::super::Arguments::command()
    }

    fn plain(page: &[u8]) -> String {
        let page = String::from_utf8(page.to_vec()).expect("UTF-8");
        ["\\fB", "\\fR", "\\fI", "\\&"]
            .iter()
            .fold(page, |page, mark| page.replace(mark, ""))
            .replace("\\-", "-")
    }

    #[test]
    fn the_page_about_everything_has_every_command_option_example_and_exit_code() {
        let page = plain(&whole(&command()).expect("written to memory"));
        for sub in command().get_subcommands() {
            assert!(page.contains(&format!("\n.SS {}\n", sub.get_name())), "{}", sub.get_name());
            for argument in sub.get_arguments() {
                if let Some(long) = argument.get_long() {
                    assert!(page.contains(&format!("--{long}")), "--{long}");
                }
            }
            let help = sub.get_after_help().expect("examples").to_string();
            let example = help.lines().nth(1).expect("an example").trim();
            assert!(page.contains(example), "{example}");
        }
        for (code, meaning) in exit::TABLE {
            let entry = format!(".TP\n.B {}\n{meaning}\n", exit::name(code));
            assert!(page.contains(&entry), "{entry}");
        }
        assert_eq!(page.matches("\n.SH NAME").count(), 1);
        assert_eq!(page.matches("EXTRA").count(), 0);
    }

    #[test]
    fn each_command_has_a_page_with_the_settings_that_go_anywhere() {
        let pages = pages(command()).expect("written to memory");
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names.len(), 1 + command().get_subcommands().count());
        assert!(
            names.contains(&"vote-aggregator.1") && names.contains(&"vote-aggregator-publish.1")
        );
        for (name, page) in &pages {
            let page = plain(page);
            for part in [".SH NAME", ".SH SYNOPSIS", "--config", ".SH \"EXAMPLES\"", "EXIT STATUS"]
            {
                assert!(page.contains(part), "{part} in {name}");
            }
        }
    }

    #[test]
    fn roff_obeys_nothing_in_a_text() {
        assert_eq!(text(".x\n'y\na\\b --c"), "\\&.x\n\\&'y\na\\eb \\-\\-c");
    }
}
