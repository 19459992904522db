//! The `oslet` command.
#![forbid(unsafe_code)]

mod args;
mod cmd;
mod output;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};

/// The status of a command that could not do what it was asked; 1 is a negative answer.
const FAILED: u8 = 2;

fn main() -> ExitCode {
    let Args { global, command } = Args::parse();
    let result = match command {
        Command::Up(args) => cmd::up::run(args, &global),
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
