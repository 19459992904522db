//! The `oslet` command.
#![forbid(unsafe_code)]

mod args;
mod cmd;
mod output;
mod user;
mod volumes;

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
    if std::env::args_os().nth(1).is_some_and(|word| word == cmd::bench::COMMAND) {
        return cmd::bench::main();
    }
    if std::env::args_os().nth(1).is_some_and(|word| word == cmd::client::COMMAND) {
        return cmd::client::main();
    }
    if std::env::args_os().nth(1).is_some_and(|word| word == cmd::awake::COMMAND) {
        return cmd::awake::main();
    }
    let result = dispatch();
    match result {
        Ok(status) => status,
        // Whoever reads the output has seen enough.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", output::causes(&error));
            ExitCode::from(FAILED)
        }
    }
}

fn dispatch() -> anyhow::Result<ExitCode> {
    let mut words = std::env::args_os();
    if words.next().is_some_and(|program| cmd::mount::is_helper(&program)) {
        return cmd::mount::helper(words);
    }
    if words.next().is_some_and(|word| word == cmd::mount::SERVE) {
        return cmd::mount::main(words);
    }
    let Args { global, command } = Args::parse();
    match command {
        Command::Up(args) => cmd::up::run(args, &global),
        Command::Down(args) => cmd::down::run(args, &global),
        Command::Ls(args) => cmd::ls::run(args, &global),
        Command::Show(args) => cmd::show::run(args, &global),
        Command::Run(args) => cmd::run::run(args, &global),
        Command::Shell(args) => cmd::shell::run(args, &global),
        Command::Ps(args) => cmd::ps::run(args, &global),
        Command::Kill(args) => cmd::kill::run(args, &global),
        Command::Completions(args) => cmd::completions::run(args, &global),
        Command::Mount(args) => cmd::mount::run(args, &global),
        Command::Bench(args) => cmd::bench::run(args, &global),
    }
}
