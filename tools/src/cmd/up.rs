//! `oslet up`: make a cluster.

mod image;
mod launch;
mod show;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use oslet::config::{Config, Overrides};
use oslet::plan::Plan;
use oslet::topology::{Dir, Topology};
use serde::Serialize;

use crate::args::Global;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  oslet up                                  two OSlets on this machine, until Ctrl-C
  oslet up --image disk.img                 with a filesystem of your own
  oslet up --oslets 4 -d                    four, in the background; oslet down stops them
  oslet up --dry-run                        show the plan for this machine
  oslet up --dry-run --oslets 4 --json      four OSlets, as JSON
  oslet up --dry-run -c lab.toml            with a configuration
  oslet up --dry-run --sysfs ./captured     for another machine, from copies of its /sys and /proc";

/// The configuration that is used when there is one in the current directory.
const CONFIG: &str = "oslet.toml";

/// Make a cluster of OSlets.
///
/// Without a configuration: two OSlets, which divide this machine's CPUs along its NUMA nodes, and
/// an image oslet.img, made with mke2fs if it is not there and never overwritten, that both see at
/// /global. Runs until Ctrl-C. Root is not needed; what an ordinary user cannot have is said. The
/// keys of a configuration are in docs/configuration.md.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct UpArgs {
    /// Configuration [default: oslet.toml, if it is in the current directory]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How many OSlets, 1 to 64 [default: 2]
    #[arg(long, value_name = "N")]
    oslets: Option<usize>,
    /// The ext2, ext3 or ext4 image that all of them see [default: oslet.img]
    #[arg(long, value_name = "IMAGE")]
    image: Option<PathBuf>,
    /// Never write to the image, nor to any other volume
    #[arg(long)]
    read_only: bool,
    /// Show what would be done and start nothing
    #[arg(long)]
    dry_run: bool,
    /// Go on in the background once all OSlets serve
    #[arg(short, long, conflicts_with = "dry_run")]
    detach: bool,
    /// Plan for another machine: a directory with copies of its sys and proc
    #[arg(long, value_name = "DIR", requires = "dry_run")]
    sysfs: Option<PathBuf>,
    /// Print the plan as JSON
    #[arg(long, requires = "dry_run")]
    json: bool,
}

pub(crate) fn run(args: UpArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let plan = plan(&args, global)?;
    let directory = global.directory(&plan.cluster);
    if !args.dry_run {
        return launch::run(&plan, &directory, args.detach);
    }
    if args.json {
        output::json(&Shown { directory: &directory, plan: &plan })?;
    } else {
        output::text(&show::plan(&plan, &directory))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A plan and where its cluster's files would be.
#[derive(Serialize)]
struct Shown<'a> {
    directory: &'a Path,
    #[serde(flatten)]
    plan: &'a Plan,
}

/// What the arguments, the configuration and the machine make together.
pub(crate) fn plan(args: &UpArgs, global: &Global) -> anyhow::Result<Plan> {
    let overrides = Overrides {
        oslets: args.oslets,
        image: args.image.clone(),
        name: global.cluster.clone(),
        read_only: args.read_only,
    };
    let here = Path::new(CONFIG);
    let config = match &args.config {
        Some(file) => Config::load(file, &overrides)?,
        None if here.exists() => Config::load(here, &overrides)?,
        None => Config::embedded(&overrides)?,
    };
    let machine = match &args.sysfs {
        Some(dir) => Dir::captured(dir)?,
        None => Dir::host(),
    };
    let plan = Plan::new(&config, &Topology::read(&machine)?)?;
    if args.sysfs.is_none() {
        plan.region.check_file()?;
    }
    Ok(plan)
}
