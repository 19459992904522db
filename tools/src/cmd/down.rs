//! `oslet down`: stop a cluster.

use std::process::ExitCode;

use clap::Args;
use oslet::config;
use oslet::launcher::{self, Stopped};

use crate::args::Global;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  oslet down                    stop the cluster main
  oslet --cluster lab down      stop the cluster lab

Exit status: 1 if no such cluster runs.";

/// Stop a cluster: everything written, unmounted and removed
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DownArgs {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: DownArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let directory = std::path::absolute(global.running())?;
    let name = super::ls::cluster_of(&directory, global)?;
    let name = name.as_deref().unwrap_or(config::DEFAULT_NAME);
    let stopped = launcher::stop(&directory, name)?;
    let (word, text) = match stopped {
        Stopped::Cluster => ("stopped", format!("Cluster {name}: stopped\n")),
        Stopped::Leftovers => {
            ("cleaned", format!("Cluster {name}: did not run; what it had left is removed\n"))
        }
        Stopped::Nothing => {
            ("nothing", format!("Cluster {name}: does not run ({})\n", directory.display()))
        }
    };
    match args.json {
        true => output::json(&serde_json::json!({ "cluster": name, "result": word }))?,
        false => output::text(&text)?,
    }
    Ok(ExitCode::from(u8::from(stopped == Stopped::Nothing)))
}
