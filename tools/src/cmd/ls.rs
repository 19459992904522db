//! `oslet ls`: the OSlets of a cluster.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use oslet::config::show_size;
use oslet::limits::FRAME_SIZE;
use oslet::plan::Plan;
use oslet::wire::Status;
use oslet::{launcher, runtime};
use serde::Serialize;

use super::runtime::PLAN;
use crate::args::Global;
use crate::output;

/// How long a runtime may take to answer while others have, and while none has.
const ANSWER: Duration = Duration::from_millis(500);
const LATE_ANSWER: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  oslet ls             the OSlets of the cluster main
  oslet ls --json      the same, for programs

Exit status: 1 if no such cluster runs.";

/// List the OSlets of a cluster
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct LsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One OSlet as far as it is known.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) state: &'static str,
    pub(super) epoch: u32,
    pub(super) pid: Option<u32>,
    pub(super) cpus: String,
    pub(super) nodes: String,
    pub(super) memory_used: Option<u64>,
    pub(super) memory_total: Option<u64>,
    pub(super) volumes: Option<u32>,
    pub(super) devices: Option<u32>,
    pub(super) clients: Option<u32>,
    /// The process that starts it again; none when that has ended.
    pub(super) launcher: Option<u32>,
}

/// What a cluster without a launcher lacks.
pub(super) const LAUNCHER_ENDED: &str =
    "has ended: who dies is not started again; oslet down still stops the cluster";

pub(crate) fn run(args: LsArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let directory = global.running();
    let Some((rows, _)) = gather(&directory, false)? else {
        return not_running(&directory, args.json.then(|| serde_json::json!([])));
    };
    match args.json {
        true => output::json(&rows)?,
        false => {
            let heads =
                ["NAME", "STATE", "EPOCH", "PID", "CPUS", "NODES", "MEMORY", "VOLUMES", "DEVICES"];
            let lines: Vec<Vec<String>> = rows.iter().map(cells).collect();
            let mut text = output::table(&heads, &lines);
            if rows.iter().all(|row| row.launcher.is_none()) {
                text.push_str(&format!("The launcher {LAUNCHER_ENDED}.\n"));
            }
            output::text(&text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn cells(row: &Row) -> Vec<String> {
    let number = |n: Option<u32>| n.map(|n| n.to_string()).unwrap_or_default();
    let memory = match (row.memory_used, row.memory_total) {
        (Some(used), Some(total)) => format!("{} / {}", show_size(used), show_size(total)),
        _ => String::new(),
    };
    vec![
        row.name.clone(),
        row.state.to_owned(),
        row.epoch.to_string(),
        number(row.pid),
        row.cpus.clone(),
        row.nodes.clone(),
        memory,
        number(row.volumes),
        number(row.devices),
    ]
}

/// Says that nothing runs there, and what to do; `json` for programs. A negative answer, not an
/// error.
pub(super) fn not_running(
    directory: &Path,
    json: Option<serde_json::Value>,
) -> anyhow::Result<ExitCode> {
    if let Some(json) = json {
        output::json(&json)?;
    }
    let left = match directory.join(PLAN).exists() {
        true => "it was killed; oslet up or oslet down cleans up",
        false => "oslet up starts one; --cluster or --dir name another",
    };
    eprintln!("{}: no cluster runs there: {left}", directory.display());
    Ok(ExitCode::from(1))
}

/// Says that the OSlet of that name is none of those that are; `json` for programs.
pub(super) fn not_here(
    name: &str,
    known: &[&str],
    json: Option<serde_json::Value>,
) -> anyhow::Result<ExitCode> {
    if let Some(json) = json {
        output::json(&json)?;
    }
    eprintln!("OSlet {name:?}: not here ({})", known.join(", "));
    Ok(ExitCode::from(1))
}

/// The name of the cluster there, if one was started.
pub(super) fn cluster_of(directory: &Path, global: &Global) -> anyhow::Result<Option<String>> {
    Ok(plan(directory)?.map(|plan| plan.cluster).or_else(|| global.cluster.clone()))
}

fn plan(directory: &Path) -> anyhow::Result<Option<Plan>> {
    let path = directory.join(PLAN);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.with_context(|| path.display().to_string())?,
    };
    Ok(Some(serde_json::from_slice(&text).with_context(|| path.display().to_string())?))
}

/// Asks all runtimes at once: one that is stopped does not keep the others' answers.
fn ask_all(directory: &Path, plan: &Plan, details: bool, limit: Duration) -> Vec<Option<Status>> {
    std::thread::scope(|scope| {
        let ask = |name: String| {
            scope.spawn(move || runtime::ask(&directory.join(name), details, limit).ok())
        };
        let asked: Vec<_> = plan.oslets.iter().map(|oslet| ask(oslet.name.clone())).collect();
        asked.into_iter().map(|thread| thread.join().ok().flatten()).collect()
    })
}

/// Every OSlet and its own answer; `None` when no runtime is there to answer.
///
/// # Errors
/// When runtimes are there and none answers.
pub(super) fn gather(
    directory: &Path,
    details: bool,
) -> anyhow::Result<Option<(Vec<Row>, Vec<Option<Status>>)>> {
    let Some(plan) = plan(directory)? else { return Ok(None) };
    let mut answers = ask_all(directory, &plan, details, ANSWER);
    let lives = || launcher::try_lock(directory).map(|lock| lock.is_none());
    if answers.iter().all(Option::is_none) && lives()? {
        answers = ask_all(directory, &plan, details, LATE_ANSWER);
        if answers.iter().all(Option::is_none) && lives()? {
            bail!(
                "{}: the cluster runs, and no OSlet of it answers in {} s",
                directory.display(),
                LATE_ANSWER.as_secs()
            );
        }
    }
    // Any member's view of the words will do.
    let Some(view) = answers.iter().flatten().next().map(|status| status.members.clone()) else {
        return Ok(None);
    };
    let launcher = launcher::launcher(directory)?.map(|process| process.pid);
    let row = |(index, oslet): (usize, &oslet::plan::OsletPlan)| {
        let answer = answers.get(index).and_then(Option::as_ref);
        let (epoch, state) = view.get(index).copied().unwrap_or_default();
        let bytes = |frames: u64| frames * FRAME_SIZE as u64;
        Row {
            name: oslet.name.clone(),
            state: match (state, answer) {
                (0, _) => "left",
                (1, _) => "joining",
                (2, Some(_)) => "alive",
                (2, None) => "silent",
                (3, _) => "fencing",
                _ => "dead",
            },
            epoch,
            pid: answer.map(|status| status.process.pid),
            cpus: oslet.cpus.to_string(),
            nodes: oslet.nodes.to_string(),
            memory_used: answer.map(|s| bytes(s.frames[0].saturating_sub(s.frames[1]))),
            memory_total: answer.map(|s| bytes(s.frames[0])),
            volumes: answer.map(|status| status.volumes),
            devices: answer.map(|status| status.devices),
            clients: answer.map(|status| status.clients),
            launcher,
        }
    };
    let rows = plan.oslets.iter().enumerate().map(row).collect();
    Ok(Some((rows, answers)))
}
