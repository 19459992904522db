//! A plan as text that a person takes in at a glance.

use std::fmt::Write;
use std::path::Path;

use oslet::config::{Kind, Source, Tmp, show_size};
use oslet::plan::{OsletPlan, Plan};

use crate::output::table;

pub(super) fn plan(plan: &Plan, directory: &Path) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_plan(&mut text, plan, directory);
    text
}

fn write_plan(text: &mut String, plan: &Plan, directory: &Path) -> std::fmt::Result {
    let machine = &plan.machine;
    let directory = directory.display();
    let from = plan.config.as_ref().map(|file| format!(" (from {})", file.display()));
    let from = from.unwrap_or_default();
    writeln!(text, "Cluster  {}{from}, files in {directory}", plan.cluster)?;
    let other = machine.online.len() - machine.allowed.len();
    let barred = if other > 0 { format!("; {other} more may not be used") } else { String::new() };
    writeln!(
        text,
        "Machine  {} on {}, {}{barred}; {} of {} free",
        counted(machine.allowed.len(), "CPU"),
        counted(machine.cores, "core"),
        counted(machine.nodes.len(), "node"),
        show_size(machine.memory.usable()),
        show_size(machine.memory.total),
    )?;
    let region = &plan.region;
    let mut how = region.backing.to_string();
    for (chosen, word) in [(region.huge, ", huge pages"), (region.prefault, ", prefaulted")] {
        how += if chosen { word } else { "" };
    }
    let (size, segment) = (show_size(region.size), show_size(region.segment));
    writeln!(text, "Region   {size} in {how}: {segment} for each OSlet")?;
    let rows: Vec<Vec<String>> = plan.oslets.iter().map(oslet).collect();
    let heads = ["OSLET", "CPUS", "CORES", "NODES", "MEMORY", "KIND", "TMP", "RESTART"];
    write!(text, "\n{}", table(&heads, &rows))?;
    let rows: Vec<Vec<String>> = plan
        .devices
        .iter()
        .map(|device| {
            let source = match &device.source {
                Source::Path { path, create: true } => {
                    format!("{} (made if it is not there)", path.display())
                }
                Source::Path { path, create: false } => path.display().to_string(),
                Source::Ram { bytes } => format!("memory, {}", show_size(*bytes)),
            };
            let (name, owner) = (device.name.clone(), device.owner.clone());
            vec![name, owner, device.standby.join(" "), source]
        })
        .collect();
    if !rows.is_empty() {
        write!(text, "\n{}", table(&["DEVICE", "OWNER", "STANDBY", "SOURCE"], &rows))?;
    }
    let volume = |volume: &oslet::plan::VolumePlan| {
        let access = if volume.read_only { "read-only" } else { "read-write" };
        vec![volume.name.clone(), volume.device.clone(), volume.mount.clone(), access.into()]
    };
    let rows: Vec<Vec<String>> = plan.volumes.iter().map(volume).collect();
    if !rows.is_empty() {
        write!(text, "\n{}", table(&["VOLUME", "DEVICE", "MOUNT", "ACCESS"], &rows))?;
    }
    if !plan.warnings.is_empty() {
        writeln!(text)?;
    }
    for warning in &plan.warnings {
        writeln!(text, "warning: {warning}")?;
    }
    Ok(())
}

fn oslet(oslet: &OsletPlan) -> Vec<String> {
    let shared = if oslet.shared { " (shared)" } else { "" };
    let nodes = match oslet.memory_only.is_empty() {
        true => oslet.nodes.to_string(),
        false => format!("{} + {}", oslet.nodes, oslet.memory_only),
    };
    let kind = match oslet.kind {
        Kind::Namespace => "namespace",
    };
    let tmp = match oslet.tmp {
        Tmp::Host => "host",
        Tmp::Global => "global",
        Tmp::Local => "local",
    };
    let restart = if oslet.restart { "yes" } else { "no" };
    vec![
        oslet.name.clone(),
        format!("{}{shared}", oslet.cpus),
        oslet.cores.to_string(),
        nodes,
        show_size(oslet.memory),
        kind.into(),
        tmp.into(),
        restart.into(),
    ]
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
