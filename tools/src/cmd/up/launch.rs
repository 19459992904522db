//! Carrying out a plan: the launcher in the foreground, or in the background.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context as _;
use oslet::config::Source;
use oslet::launcher::{Cluster, ClusterSpec, Report};
use oslet::member::heartbeat::Timing;
use oslet::plan::Plan;
use oslet::runtime::Spec;

use crate::cmd::runtime::{COMMAND, PLAN};
use crate::output;

/// Set in the environment of the launcher that goes on in the background.
const DETACHED: &str = "OSLET_DETACHED";
/// How the line begins that says that all serve.
const READY: &str = "Cluster is up: ";
/// How long the end of a fenced OSlet's I/O is waited for before that is reported.
const IO_LIMIT_MS: u64 = 30_000;

pub(super) fn run(plan: &Plan, directory: &Path, detach: bool) -> anyhow::Result<ExitCode> {
    let detached = std::env::var_os(DETACHED).is_some();
    if detach && !detached {
        return background();
    }
    for warning in &plan.warnings {
        output::text(&format!("note: {warning}\n"))?;
    }
    if detached {
        rustix::process::setsid().context("new session")?;
    }
    let directory = &std::path::absolute(directory)?;
    let plan = &with_absolute_paths(plan)?;
    for line in super::image::make(plan)? {
        output::text(&format!("{line}\n"))?;
    }
    let mut cluster = Cluster::create(spec(plan, directory))?;
    let path = directory.join(PLAN);
    fs::write(&path, serde_json::to_vec_pretty(plan)?)
        .with_context(|| path.display().to_string())?;
    let mut failed = None;
    let result = cluster.run(|report| {
        if let Err(error) = show(plan, directory, &report, detached) {
            failed.get_or_insert(error);
        }
    });
    result?;
    match failed {
        // A terminal that is gone is no reason to fail a cluster that ran.
        Some(error) if !output::is_broken_pipe(&error) => Err(error),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Runtimes that are started again must find the same files wherever they are.
fn with_absolute_paths(plan: &Plan) -> anyhow::Result<Plan> {
    let mut plan = plan.clone();
    for device in &mut plan.devices {
        if let Source::Path { path, .. } = &mut device.source {
            *path = std::path::absolute(&*path)?;
        }
    }
    Ok(plan)
}

fn spec(plan: &Plan, directory: &Path) -> ClusterSpec {
    ClusterSpec {
        name: plan.cluster.clone(),
        directory: directory.to_owned(),
        runtime: Spec {
            directory: directory.to_owned(),
            oslet: 0,
            names: plan.oslets.iter().map(|oslet| oslet.name.clone()).collect(),
            backing: plan.region.backing.clone(),
            segment: plan.region.segment,
            huge: plan.region.huge,
            prefault: plan.region.prefault,
            timing: Timing::default(),
            io_limit_ms: IO_LIMIT_MS,
        },
        restart: plan.oslets.iter().map(|oslet| oslet.restart).collect(),
        program: (PathBuf::from("/proc/self/exe"), vec![COMMAND.into()]),
    }
}

/// One line for each thing that happens.
fn show(plan: &Plan, directory: &Path, report: &Report, detached: bool) -> anyhow::Result<()> {
    let name = |oslet: &usize| plan.oslets.get(*oslet).map_or("?", |oslet| oslet.name.as_str());
    match report {
        Report::Ready { oslet, epoch, notes } => {
            let cpus = plan.oslets.get(*oslet).map(|oslet| oslet.cpus.to_string());
            let again = if *epoch > 1 { format!(", epoch {epoch}") } else { String::new() };
            let cpus = cpus.unwrap_or_default();
            output::text(&format!("{}: up on CPUs {cpus}{again}\n", name(oslet)))?;
            for note in notes {
                output::text(&format!("{}: note: {note}\n", name(oslet)))?;
            }
        }
        Report::AllReady if detached => {
            output::text(&ready(plan, directory))?;
            let path = directory.join("log");
            let log = File::options().create(true).append(true).open(&path);
            let log = log.with_context(|| path.display().to_string())?;
            rustix::stdio::dup2_stderr(&log)?;
            // Whoever waits for us sees the end of our output.
            rustix::stdio::dup2_stdout(&log)?;
        }
        Report::AllReady => {
            output::text(&ready(plan, directory))?;
            output::text("Ctrl-C stops the cluster.\n")?;
        }
        Report::Ended { oslet, how, again_ms } => {
            let log = directory.join(name(oslet)).join("log");
            let next = match again_ms {
                Some(ms) => format!("starting it again in {ms} ms"),
                None => "it is not started again".into(),
            };
            let log = log.display();
            output::text(&format!("{}: {how}; {next} (log: {log})\n", name(oslet)))?;
        }
        Report::Stopping => output::text("Stopping; once more to kill.\n")?,
    }
    Ok(())
}

fn ready(plan: &Plan, directory: &Path) -> String {
    let name = &plan.cluster;
    let count = plan.oslets.len();
    format!("{READY}{name}, {count} OSlets, files in {}\n", directory.display())
}

/// Starts the launcher in the background and shows what it says until all serve.
fn background() -> anyhow::Result<ExitCode> {
    let (reader, writer) = std::io::pipe()?;
    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    arguments.next();
    command.args(arguments).env(DETACHED, "1").stdin(Stdio::null()).stdout(Stdio::from(writer));
    let mut launcher = command.spawn().context("start the launcher")?;
    // The command holds our copy of the writing end.
    drop(command);
    let mut lines = BufReader::new(reader);
    let mut line = Vec::new();
    let mut ready = false;
    while lines.read_until(b'\n', &mut line)? > 0 {
        ready |= line.starts_with(READY.as_bytes());
        std::io::stdout().write_all(&line)?;
        line.clear();
    }
    std::io::stdout().flush()?;
    if ready {
        return Ok(ExitCode::SUCCESS);
    }
    let status = launcher.wait()?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
}
