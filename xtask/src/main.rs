//! The project's own commands: `cargo xtask tidy|test|bench`.
#![forbid(unsafe_code)]

use std::process::{Command, ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

mod fuzz;
mod kernel;
mod packages;
mod programs;
mod report;
mod run;
mod steps;
mod test;
mod tidy;
mod tree;

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check the house rules that no compiler checks: layers, unsafe, sizes, links, names.
    Tidy,
    /// Check everything: format, lints, tidy, dependencies, documentation, tests, models.
    #[command(after_help = "The last line is `N passed, N failed, N skipped`. Exit status: 0 all \
        passed, 1 something failed, 2 a package or tool is missing.")]
    Test(test::Options),
    /// Run the fuzz targets on seeds cut out of real images.
    #[command(
        after_help = "Inputs that were worth keeping stay in fuzz/corpus, those that crash in \
        fuzz/artifacts: `cargo xtask fuzz TARGET` runs on from there. Exit status: 0 nothing \
        crashed, 1 something did, 2 the targets could not be run."
    )]
    Fuzz(fuzz::Options),
    /// Fetch a kernel of Debian's into the build directory, for the tests that boot one.
    Kernel,
    /// Measure in a release build; arguments are passed on.
    Bench {
        /// Arguments of the benchmarks.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Task::Tidy => tidy::run(),
        Task::Test(options) => test::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Kernel => kernel::run(),
        Task::Bench { arguments } => bench(&arguments),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::from(2)
    })
}

fn bench(arguments: &[String]) -> anyhow::Result<ExitCode> {
    let status = Command::new(tree::cargo())
        .args(["run", "--release", "--quiet", "--package", "tools", "--", "bench"])
        .args(arguments)
        .current_dir(tree::root()?)
        .status()
        .context("cargo run")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
