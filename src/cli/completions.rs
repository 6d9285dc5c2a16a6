//! `completions`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;

use super::exit;

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator completions bash > ~/.local/share/bash-completion/completions/vote-aggregator
  vote-aggregator completions zsh > /usr/local/share/zsh/site-functions/_vote-aggregator
  vote-aggregator completions fish > ~/.config/fish/completions/vote-aggregator.fish

The Debian package has installed those of bash, zsh and fish already.")]
pub(super) struct Arguments {
    /// The shell that is to complete
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn completions(mut command: Command, arguments: &Arguments) -> ExitCode {
    let name = command.get_name().to_owned();
    // In memory first: clap_complete panics where it can't write.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, name, &mut script);
    print(&script)
}

/// To standard output. A reader who has seen enough is no failure.
pub(super) fn print(bytes: &[u8]) -> ExitCode {
    match io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("cannot write to standard output: {error}");
            ExitCode::from(exit::INTERNAL)
        }
        _ => ExitCode::SUCCESS,
    }
}
