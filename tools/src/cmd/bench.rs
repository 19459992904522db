//! `oslet bench`: this machine, ours beside what it would otherwise use.

mod cluster;
mod idle;
mod inside;
mod member;
mod memory;
mod message;
mod mount;
mod native;
mod pages;
mod partner;
mod stat;
mod up;

use std::process::ExitCode;
use std::rc::Rc;

use bench::{Change, Native, Ours, Through, Work};
use clap::Args;

use crate::args::Global;

pub(crate) use partner::{COMMAND, main};

const EXAMPLES: &str = "\
Examples:
  oslet bench                        everything, some minutes
  oslet bench --only message         what has this in its name
  oslet bench --only native:         writing by the owner of a volume
  oslet bench --only mount:          writing through a mount of one image
  oslet bench --json                 for programs
  oslet bench --huge                 with the region on huge pages
  oslet bench --quick                try it all, prove nothing

The rows that need a kernel mount or a cluster say so where they are not allowed.";

/// Measure this machine: OSlets beside what it would otherwise use
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    options: bench::Options,
    /// Put the region of all rows on huge pages, not only that of the memory rows
    #[arg(long)]
    huge: bool,
}

pub(crate) fn run(args: BenchArgs, _: &Global) -> anyhow::Result<ExitCode> {
    bench::run(&args.options, ours(args.huge))?;
    Ok(ExitCode::SUCCESS)
}

/// Our side of all work.
fn ours(huge: bool) -> Ours {
    let images = Rc::new(pages::Images::default());
    let reads = |ours: Ours, (work, copied): (Work, bool)| {
        let images = Rc::clone(&images);
        ours.with(work, move |environment| {
            pages::side(environment, &images, work.walk(environment.sizes), copied, huge)
        })
    };
    let ours = Ours::none().with(Work::MessageRoundTrip, message::side);
    let ours = [
        (Work::ReferenceSmall, false),
        (Work::ReferenceLarge, false),
        (Work::ReferenceChain, false),
        (Work::CopySmall, true),
        (Work::CopyLarge, true),
    ]
    .into_iter()
    .fold(ours, reads);
    let ours = [(Work::MemoryOfTwo, 2), (Work::MemoryOfEight, 8)].into_iter().fold(
        ours,
        |ours, (work, oslets)| {
            let images = Rc::clone(&images);
            ours.with(work, move |environment| memory::side(environment, &images, oslets))
        },
    );
    writing(ours)
        .with(Work::Stat, |environment| stat::side(environment, stat::Naming::Path))
        .with(Work::Lookup, |environment| stat::side(environment, stat::Naming::Name))
        .with(Work::Idle, idle::side)
        .with_mount(mount::mount)
        .with_writable_mount(mount::mount_writable)
}

/// What changes something: natively, and through the mounts of a cluster.
fn writing(mut ours: Ours) -> Ours {
    let cluster = Rc::new(inside::Cluster::default());
    for change in Change::ALL {
        for native in Native::ALL {
            ours = ours.with(Work::NativeChange(native, change), move |environment| {
                native::side(environment, native, change)
            });
        }
        for (through, oslet) in [(Through::Owner, "o0"), (Through::Other, "o1")] {
            let cluster = Rc::clone(&cluster);
            ours = ours.with(Work::MountChange(through, change), move |environment| {
                inside::side(environment, &cluster, oslet, change)
            });
        }
    }
    ours
}
