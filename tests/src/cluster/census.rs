//! What a running cluster takes of the machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{Cluster, traces};

/// Counts at one moment, or the largest of several.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Census {
    /// Mount namespaces that the cluster's filesystem is mounted in.
    pub namespaces: usize,
    /// Control groups of OSlets in the hierarchy that has most.
    pub groups: usize,
    /// Descriptors of the runtime that has most, and of the launcher if that has more.
    pub descriptors: usize,
    /// Segments, the control page too, that the runtime with most of them has mapped.
    pub segments: usize,
    /// Threads of the runtime that has most.
    pub threads: usize,
    /// KiB of the runtime that has most in memory, shared memory left out.
    pub private_kib: usize,
}

impl Census {
    /// Counts a cluster of so many OSlets, all of which serve.
    ///
    /// # Errors
    /// When an OSlet is not up.
    pub fn take(cluster: &Cluster, oslets: usize) -> Result<Self> {
        let mut census = Self::default();
        for oslet in 0..oslets {
            let state = cluster.state(oslet)?.with_context(|| format!("o{oslet} is not up"))?;
            let process = format!("/proc/{}", state.runtime.pid);
            let process = Path::new(&process);
            census = census.most(Self {
                descriptors: fs::read_dir(process.join("fd"))?.count(),
                segments: segments(&fs::read_to_string(process.join("maps"))?),
                threads: fs::read_dir(process.join("task"))?.count(),
                private_kib: anonymous(&fs::read_to_string(process.join("status"))?),
                ..Self::default()
            });
        }
        if let Some(launcher) = cluster.launcher() {
            let descriptors = fs::read_dir(format!("/proc/{launcher}/fd"))?.count();
            census = census.most(Self { descriptors, ..Self::default() });
        }
        for group in traces::group_paths(cluster.name())? {
            let oslets = fs::read_dir(group)?.flatten().filter(|entry| entry.path().is_dir());
            census.groups = census.groups.max(oslets.count());
        }
        census.namespaces = namespaces(cluster.name());
        Ok(census)
    }

    /// The larger of each two counts.
    #[must_use]
    pub fn most(self, other: Self) -> Self {
        Self {
            namespaces: self.namespaces.max(other.namespaces),
            groups: self.groups.max(other.groups),
            descriptors: self.descriptors.max(other.descriptors),
            segments: self.segments.max(other.segments),
            threads: self.threads.max(other.threads),
            private_kib: self.private_kib.max(other.private_kib),
        }
    }

    /// Fails if one count is larger than its bound.
    ///
    /// # Errors
    /// With all counts and all bounds.
    pub fn within(self, bounds: Self) -> Result<()> {
        ensure!(self.most(bounds) == bounds, "leak: {self:?}, at most {bounds:?} expected");
        Ok(())
    }
}

/// Files of shared memory in the text of /proc/PID/maps.
fn segments(maps: &str) -> usize {
    let files = maps.lines().filter(|line| line.contains("/memfd:oslet:"));
    files.filter_map(|line| line.split_whitespace().nth(4)).collect::<BTreeSet<_>>().len()
}

fn anonymous(status: &str) -> usize {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

fn namespaces(cluster: &str) -> usize {
    let source = format!("oslet:{cluster}");
    let inside = |pid: &u32| {
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        mounts.split(' ').any(|word| word == source)
    };
    let processes = traces::processes().into_iter().filter(inside);
    let namespaces = processes.filter_map(|pid| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok());
    namespaces.collect::<BTreeSet<_>>().len()
}
