//! How much shared memory a cluster takes.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::{Config, Problems, show_size};
use crate::error::{Error, Result};
use crate::limits;
use crate::region::{Backing, HUGE_PAGE};
use crate::runtime::least_segment;
use crate::topology::{HugePages, Topology};

/// The region. Without a size in the configuration it takes a sixteenth of the free memory (half
/// of the free huge pages with `hugetlb`), but at most 16 GiB, and where a sixteenth is less than
/// 16 MiB an OSlet up to half: all of it is reserved at start, which takes about a second a GiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionPlan {
    /// Bytes of all runtimes' segments together.
    pub size: u64,
    /// Bytes of one runtime's segment: the size divided by the OSlets, in whole pages.
    pub segment: u64,
    /// What it is made of.
    pub backing: Backing,
    /// Huge pages.
    pub huge: bool,
    /// All memory brought in at start.
    pub prefault: bool,
    /// Bytes that were free for it when the plan was made.
    pub free: u64,
}

impl RegionPlan {
    /// Whether a file for the region can be made on this machine: on a filesystem that is memory,
    /// with room for it. Backings without a file are not looked at.
    ///
    /// # Errors
    /// If not, with what to choose instead.
    pub fn check_file(&self) -> Result<()> {
        let Backing::File(path) = &self.backing else { return Ok(()) };
        let directory = path.parent().unwrap_or(Path::new("/"));
        let refuse = |what: String| {
            let path = path.display();
            Err(Error::Invalid(format!("region: backing = \"{path}\": {what}")))
        };
        let stat = match rustix::fs::statfs(directory) {
            Err(error) => return refuse(format!("{}: {error}", directory.display())),
            Ok(stat) => stat,
        };
        // The numbers of linux/magic.h.
        let (tmpfs, ramfs, hugetlbfs) = (0x0102_1994, 0x8584_58f6, 0x9584_58f6);
        let kind = stat.f_type as u64 & 0xffff_ffff;
        if ![tmpfs, ramfs, hugetlbfs].contains(&kind) {
            let directory = directory.display();
            return refuse(format!(
                "{directory} is on a disk; choose a file in memory such as \"/dev/shm/x\""
            ));
        }
        let room = stat.f_bavail.saturating_mul(u64::try_from(stat.f_bsize).unwrap_or(0));
        // ramfs has no limit and says 0 of 0; so does tmpfs that is mounted with size=0.
        if stat.f_blocks > 0 && room < self.size {
            let (room, size) = (show_size(room), show_size(self.size));
            return refuse(format!("{room} are free there, the region takes {size}; use less"));
        }
        Ok(())
    }
}

/// The most that is taken unasked.
const MOST_BY_DEFAULT: u64 = 16 << 30;
/// What an OSlet should have unasked.
const FAIR_SEGMENT: u64 = 16 << 20;
/// Bytes of the largest segment: its frames can be named.
const MAX_SEGMENT: u64 = limits::MAX_FRAMES as u64 * limits::FRAME_SIZE as u64;

const _: () = assert!(FAIR_SEGMENT >= limits::MIN_SEGMENT && limits::MIN_SEGMENT < MAX_SEGMENT);

pub(super) fn plan(config: &Config, topology: &Topology, problems: &mut Problems) -> RegionPlan {
    let wanted = &config.region;
    let backing = wanted.backing.value.clone();
    let pool = backing == Backing::Hugetlb;
    let huge = pool || wanted.huge.value;
    let page = if huge { HUGE_PAGE as u64 } else { limits::FRAME_SIZE as u64 };
    let oslets = config.oslets.len().max(1) as u64;
    // Of huge pages, files in memory take whole ones too.
    let least_each = least_segment(config.oslets.len(), &backing).next_multiple_of(page);
    let least = oslets * least_each;
    let free = match pool {
        true => pool_pages(topology, |pool| pool.free).saturating_mul(HUGE_PAGE as u64),
        false => free_memory(topology),
    };
    let size = match &wanted.size {
        Some(size) => size.value,
        None if pool => (free / 2).min(MOST_BY_DEFAULT),
        None => {
            let fair = (free / 16).max((oslets * FAIR_SEGMENT).min(free / 2));
            fair.min(MOST_BY_DEFAULT).max(least)
        }
    };
    let segment = size / oslets / page * page;
    let line = wanted.size.as_ref().and_then(|size| size.line).or(wanted.backing.line);
    let source = if pool { "of free huge pages" } else { "of free memory" };
    let what = if wanted.size.is_some() {
        format!("region: size: {}", show_size(size))
    } else {
        format!("region: {} {source}", show_size(free))
    };
    if free < least {
        let wanted = wanted.size.as_ref().map_or(least, |size| size.value.max(least));
        let advice = match pool {
            true => more_pages(topology, wanted, free),
            false => "free some memory or start fewer".into(),
        };
        problems.add(
            line,
            format!(
                "region: {} {source} is too little for {oslets} OSlets, which take {} at least; \
                 {advice}",
                show_size(free),
                show_size(least),
            ),
        );
    } else if segment < least_each {
        let least = show_size(least);
        problems.add(line, format!("{what} is too small for {oslets} OSlets; use {least} or more"));
    } else if size > free {
        let (most, page) = (show_size(free), HUGE_PAGE as u64);
        let more = match pool {
            true => format!(", or {}", more_pages(topology, size.div_ceil(page) * page, free)),
            false => String::new(),
        };
        problems.add(line, format!("{what} is more than the {most} {source}; use less{more}"));
    } else if segment > MAX_SEGMENT {
        let most = show_size(oslets * MAX_SEGMENT);
        problems.add(line, format!("{what} is too large for {oslets} OSlets; use {most} or less"));
    }
    let size = segment.saturating_mul(oslets);
    RegionPlan { size, segment, backing, huge, prefault: wanted.prefault, free }
}

/// Free memory; where a cpuset bars some nodes, no more than the others have. (Where it bars none
/// the nodes' own figures do not matter: in virtual machines whose memory grows they lag behind.)
fn free_memory(topology: &Topology) -> u64 {
    let with_memory = || topology.nodes.iter().filter(|node| node.total > 0);
    let allowed = |id: u32| topology.allowed_nodes.contains(id);
    if with_memory().all(|node| allowed(node.id)) {
        return topology.memory.usable();
    }
    let nodes = with_memory().filter(|node| allowed(node.id));
    topology.memory.usable().min(nodes.map(|node| node.total).fold(0, u64::saturating_add))
}

/// How to have so many bytes of huge pages free.
fn more_pages(topology: &Topology, wanted: u64, free: u64) -> String {
    let missing = wanted.saturating_sub(free).div_ceil(HUGE_PAGE as u64);
    let pages = pool_pages(topology, |pool| pool.total).saturating_add(missing);
    format!("reserve them: sysctl vm.nr_hugepages={pages}")
}

/// Sums a number over the pools of the pages that segments are made of.
fn pool_pages(topology: &Topology, part: fn(&HugePages) -> u64) -> u64 {
    let pools = topology.huge_pages.iter().filter(|pool| pool.size == HUGE_PAGE as u64);
    pools.map(part).fold(0, u64::saturating_add)
}
