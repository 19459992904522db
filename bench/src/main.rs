//! The peers and limits alone, without a cluster of ours beside them.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;

#[derive(clap::Parser)]
#[command(name = "bench", about = "Measure what OSlets are compared with")]
struct Arguments {
    #[command(flatten)]
    options: bench::Options,
}

fn main() -> ExitCode {
    match bench::run(&Arguments::parse().options, bench::Ours::none()) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        }
    }
}
