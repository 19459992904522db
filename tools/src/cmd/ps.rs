//! `oslet ps`: the processes of each OSlet.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use oslet::procfs::{self, Process};
use oslet::state::{self, State};
use serde::Serialize;

use super::ls::{not_here, not_running};
use crate::args::Global;
use crate::user;

/// List the processes inside OSlets.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  oslet ps
  oslet ps o0 --json | jq '.[].command'

Exit status: 1 if no such OSlet or cluster runs.")]
pub(crate) struct PsArgs {
    /// Only this OSlet
    pub(crate) name: Option<String>,
    /// As an array of objects
    #[arg(long)]
    pub(crate) json: bool,
}

/// A line of the listing.
#[derive(Serialize)]
struct Row {
    oslet: String,
    user: String,
    #[serde(flatten)]
    process: Process,
}

/// `oslet ps`.
///
/// # Errors
/// When /proc cannot be read, or the output not be written.
pub(crate) fn run(args: PsArgs, global: &Global) -> Result<ExitCode> {
    let directory = &global.running();
    let states = state::list(directory)?;
    let mut rows = Vec::new();
    for state in &states {
        rows.extend(of(state)?);
    }
    // An OSlet that lives has an init at least.
    if rows.is_empty() {
        return not_running(directory, args.json.then(|| serde_json::json!([])));
    }
    if let Some(name) = &args.name {
        rows.retain(|row| row.oslet == *name);
        if rows.is_empty() {
            let known: Vec<&str> = states.iter().map(|state| state.oslet.as_str()).collect();
            return not_here(name, &known, args.json.then(|| serde_json::json!([])));
        }
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &rows)?;
        writeln!(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(
        out,
        "{:<10} {:>7} {:>9} {:<10} {:>4} S {:>9} COMMAND",
        "OSLET", "PID", "HOST-PID", "USER", "CPU", "TIME"
    )?;
    for Row { oslet, user, process } in rows {
        let seconds = process.cpu_seconds;
        let time = format!("{}:{:05.2}", seconds as u64 / 60, seconds % 60.0);
        writeln!(
            out,
            "{oslet:<10} {:>7} {:>9} {user:<10} {:>4} {} {time:>9} {}",
            process.inner_pid,
            process.pid,
            process.cpu,
            process.state,
            plain(&process.command)
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// None for an OSlet that has just ended.
fn of(state: &State) -> Result<Vec<Row>> {
    let processes = match procfs::processes(state.init) {
        Err(error) if procfs::gone(&error) => Vec::new(),
        other => other.with_context(|| format!("OSlet {}: processes", state.oslet))?,
    };
    let row = |process: Process| {
        let user = user::name(process.uid);
        Row { oslet: state.oslet.clone(), user, process }
    };
    Ok(processes.into_iter().map(row).collect())
}

/// A program chooses what its command line holds; it must not write on our terminal with it.
fn plain(command: &str) -> String {
    command.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
