//! `man`: the help, as manual pages.

use std::fs;
use std::io;
use std::path::PathBuf;

use clap::{Args, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use vote_aggregator::operator::files;

use super::exit::{self, Exit, Outcome};
use super::output;

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

pub(super) fn man(command: Command, arguments: &Arguments) -> Outcome {
    let Some(dir) = &arguments.dir else {
        return output::answer(whole(&command), 0);
    };
    let write = |(name, page): (String, String)| {
        files::replace(&dir.join(name), page.as_bytes(), files::READABLE, None)
    };
    match fs::create_dir_all(dir).and_then(|()| pages(command).into_iter().try_for_each(write)) {
        Ok(()) => Ok(0),
        Err(error) => {
            output::note(format_args!("cannot write the pages to {}: {error}", dir.display()));
            Err(Exit(exit::INTERNAL))
        }
    }
}

/// File names and contents: the page about everything, and one for each command.
fn pages(mut command: Command) -> Vec<(String, String)> {
    let mut pages = vec![(format!("{}.1", command.get_name()), whole(&command))];
    // Gives the commands their full names and the global settings.
    command.build();
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let man = Man::new(sub.clone());
        let see_also = format!(".SH \"SEE ALSO\"\n.BR {} (1)\n", command.get_name());
        let page = head(&man) + &after_help(sub, "SH") + &exit_status() + &see_also;
        pages.push((man.get_filename(), page));
    }
    pages
}

/// One page about the whole tool.
fn whole(command: &Command) -> String {
    let mut page = head(&Man::new(command.clone())) + ".SH COMMANDS\n";
    for sub in command.get_subcommands() {
        let name = sub.get_name();
        let man = Man::new(sub.clone().bin_name(format!("{} {name}", command.get_name())));
        let sections = rendered(|page| {
            man.render_description_section(page)?;
            man.render_synopsis_section(page)?;
            man.render_options_section(page)
        });
        page += &format!(".SS {name}\n");
        // Within the section COMMANDS they are paragraphs.
        for line in sections.lines() {
            page += &format!("{}\n", if line.starts_with(".SH ") { ".PP" } else { line });
        }
        page += &after_help(sub, "B");
    }
    let settings = format!(".SH ENVIRONMENT\n{}\n", super::SETTINGS);
    page + &after_help(command, "SH") + &exit_status() + &settings
}

fn head(man: &Man) -> String {
    rendered(|page| {
        man.render_title(page)?;
        man.render_name_section(page)?;
        man.render_synopsis_section(page)?;
        man.render_description_section(page)?;
        man.render_options_section(page)
    })
}

fn rendered(render: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
    let mut page = Vec::new();
    render(&mut page).expect("writing to memory cannot fail");
    String::from_utf8_lossy(&page).into_owned()
}

/// What follows the options in the help: paragraphs, and examples, line by line, below a heading by this
/// macro.
fn after_help(command: &Command, heading: &str) -> String {
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let mut section = Roff::new();
    for paragraph in help.split("\n\n") {
        section.control("PP", []);
        match paragraph.split_once(":\n") {
            Some((title, lines)) if lines.starts_with("  ") => {
                section.control(heading, [title.to_uppercase().as_str()]).control("nf", []);
                for line in lines.lines() {
                    section.text([roman(line.trim_start())]);
                }
                section.control("fi", []);
            }
            _ => {
                section.text([roman(paragraph)]);
            }
        }
    }
    section.render()
}

fn exit_status() -> String {
    let mut section = Roff::new();
    section.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in exit::TABLE {
        section.control("TP", []).text([bold(exit::name(code))]).text([roman(meaning)]);
    }
    section.render()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn command() -> Command {
        super::super::Arguments::command()
    }

    fn plain(page: &str) -> String {
        let page = ["\\fB", "\\fR", "\\fI", "\\&"]
            .iter()
            .fold(page.to_owned(), |page, mark| page.replace(mark, ""));
        page.replace("\\-", "-").replace("\\*(Aq", "'")
    }

    #[test]
    fn the_page_about_everything_has_every_command_option_example_and_exit_code() {
        let page = plain(&whole(&command()));
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
            let entry = format!(".TP\n{}\n{meaning}\n", exit::name(code));
            assert!(page.contains(&entry), "{entry}");
        }
        assert_eq!(page.matches("\n.SH NAME").count(), 1);
    }

    #[test]
    fn each_command_has_a_page_with_the_global_settings() {
        let pages = pages(command());
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names.len(), 1 + command().get_subcommands().count());
        assert_eq!(names[0], "vote-aggregator.1");
        assert!(names.contains(&"vote-aggregator-publish.1"));
        for (name, page) in &pages {
            let page = plain(page);
            for part in [".SH NAME", ".SH SYNOPSIS", "--config", ".SH EXAMPLES", "EXIT STATUS"] {
                assert!(page.contains(part), "{part} in {name}");
            }
        }
    }
}
