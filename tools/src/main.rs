//! The `oslet` command.
#![forbid(unsafe_code)]

mod args;
mod cmd;
mod output;
mod user;

use std::process::ExitCode;

use clap::Parser;
use oslet::container;

use args::{Args, Command};

/// The status of a command that could not do what it was asked; 1 is a negative answer.
const FAILED: u8 = 2;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == container::INIT_COMMAND) {
        return container::init::main();
    }
    if std::env::args_os().nth(1).is_some_and(|word| word == cmd::runtime::COMMAND) {
        return cmd::runtime::main();
    }
    let Args { global, command } = Args::parse();
    let result = match command {
        Command::Up(args) => cmd::up::run(args, &global),
        Command::Down(args) => cmd::down::run(args, &global),
        Command::Ls(args) => cmd::ls::run(args, &global),
        Command::Show(args) => cmd::show::run(args, &global),
        Command::Run(args) => cmd::run::run(args, &global),
        Command::Shell(args) => cmd::shell::run(args, &global),
        Command::Ps(args) => cmd::ps::run(args, &global),
        Command::Kill(args) => cmd::kill::run(args, &global),
        Command::Completions(args) => cmd::completions::run(args, &global),
    };
    match result {
        Ok(status) => status,
        // Whoever reads the output has seen enough.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(FAILED)
        }
    }
}
