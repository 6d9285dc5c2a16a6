//! `completions`.

use clap::{Args, Command};
use clap_complete::Shell;

use super::exit::Outcome;
use super::output;

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

pub(super) fn completions(mut command: Command, arguments: &Arguments) -> Outcome {
    let name = command.get_name().to_owned();
    // In memory first: clap_complete panics where it can't write.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, name, &mut script);
    output::answer(&script, 0)
}
