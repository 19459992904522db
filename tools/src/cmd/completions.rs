//! `oslet completions`: scripts that teach a shell the command line.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::args::Global;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  oslet completions bash > ~/.local/share/bash-completion/completions/oslet
  oslet completions zsh > ~/.zfunc/_oslet
  oslet completions fish > ~/.config/fish/completions/oslet.fish";

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(crate) fn run(args: CompletionsArgs, _: &Global) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::args::Args::command(), "oslet", &mut script);
    output::text(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}
