//! Control groups: what binds an OSlet's CPUs and memory nodes, and what kills all of it at once.
//!
//! An OSlet has a group `oslet/CLUSTER/NAME` in the cpuset hierarchy (version 1, or version 2 where
//! that has the controller) and one in a version 2 hierarchy for `cgroup.kill`; where there is no
//! version 2, one in the freezer hierarchy. The path lies below this process's own group where that
//! may be written, else below the root of the hierarchy, else below a group between them. A group
//! of version 2 that has processes of its own binds none below it.
//! See cgroups(7), cpuset(7) and the kernel's admin-guide/cgroup-v2.

mod hierarchy;
mod kill;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::topology::{CpuSet, NodeSet};
use crate::{Error, Result, limits};
pub use hierarchy::Hierarchies;

/// What a group is there for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Version 2: kills; binds too where it has the cpuset controller.
    Unified,
    /// Version 1: binds CPUs and memory nodes.
    Cpuset,
    /// Version 1: holds processes still while they are killed.
    Freezer,
}

/// One directory of one hierarchy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Group {
    /// What for.
    pub kind: Kind,
    /// The directory.
    pub path: PathBuf,
}

/// The groups of one OSlet. Dropping this leaves them as they are.
#[derive(Debug, Default)]
pub struct Cgroup {
    groups: Vec<Group>,
    kill: Option<File>,
}

/// What [`Cgroup::create`] made.
#[derive(Debug)]
pub struct Created {
    /// The groups; perhaps none.
    pub cgroup: Cgroup,
    /// Whether CPUs and memory nodes are bound by them. If not, set affinity and policy: see
    /// [`crate::sys::numa`].
    pub bound: bool,
    /// What could not be had and what that means: a line each, for the user.
    pub warnings: Vec<String>,
}

impl Cgroup {
    /// Makes the groups of that OSlet, bound to these CPUs and memory nodes. What the system does
    /// not offer or allow becomes a warning.
    ///
    /// # Errors
    /// When the CPUs or nodes are refused (not online, or outside this process's own cpuset), or
    /// processes of an earlier cluster are still in a group of that name: see [`leftovers`].
    pub fn create(
        hierarchies: &Hierarchies,
        cluster: &str,
        oslet: &str,
        cpus: &CpuSet,
        nodes: &NodeSet,
    ) -> Result<Created> {
        let name = relative(cluster, oslet)?;
        let mut cgroup = Self::default();
        let result = cgroup.make(hierarchies, &name, cpus, nodes);
        match result {
            Ok((bound, warnings)) => Ok(Created { cgroup, bound, warnings }),
            Err(error) => {
                // The error that is reported is the first; an empty group left behind harms none.
                let _ = cgroup.remove(Duration::ZERO);
                Err(error)
            }
        }
    }

    fn make(
        &mut self,
        hierarchies: &Hierarchies,
        name: &Path,
        cpus: &CpuSet,
        nodes: &NodeSet,
    ) -> Result<(bool, Vec<String>)> {
        let mut warnings = Vec::new();
        let mut reason = "no cpuset hierarchy is mounted".to_owned();
        let mut bound = false;
        for place in hierarchies.cpuset_v1() {
            match hierarchy::make(place, name, hierarchy::inherit_cpuset) {
                Ok(path) => {
                    self.adopt(Kind::Cpuset, path.clone())?;
                    bind(&path, cpus, nodes)?;
                    bound = true;
                    break;
                }
                Err(error) => reason = error.to_string(),
            }
        }
        let wanted = !bound && hierarchies.unified_has_cpuset();
        // Rather one further up that binds than one near by that only kills.
        let binding = hierarchies.unified().iter().filter(|_| wanted).map(|place| (place, true));
        let killing = hierarchies.unified().iter().map(|place| (place, false));
        for (place, binds) in binding.chain(killing) {
            let enable = if binds { hierarchy::enable_cpuset } else { hierarchy::nothing };
            match hierarchy::make(place, name, enable) {
                Ok(path) => {
                    self.adopt(Kind::Unified, path.clone())?;
                    if binds {
                        bind(&path, cpus, nodes)?;
                        bound = true;
                    }
                    break;
                }
                Err(error) if binds => reason = error.to_string(),
                Err(_) => {}
            }
        }
        if !self.groups.iter().any(|group| group.kind == Kind::Unified) {
            for place in hierarchies.freezer_v1() {
                if let Ok(path) = hierarchy::make(place, name, hierarchy::nothing) {
                    self.adopt(Kind::Freezer, path)?;
                    break;
                }
            }
        }
        if !bound {
            warnings.push(format!(
                "CPUs {cpus} and memory nodes {nodes} are bound by affinity and memory policy \
                 only, which a process can lift: {reason}"
            ));
        }
        Ok((bound, warnings))
    }

    /// Takes a group in, unless somebody lives there.
    fn adopt(&mut self, kind: Kind, path: PathBuf) -> Result<()> {
        let processes = kill::processes(&path);
        if !processes.is_empty() {
            return Err(Error::Invalid(format!(
                "{}: processes of an earlier cluster are still there ({}): end them first",
                path.display(),
                list(&processes)
            )));
        }
        self.groups.push(Group { kind, path });
        self.open_kill();
        Ok(())
    }

    /// The groups as they were recorded, such as in [`crate::state`].
    pub fn from_groups(groups: Vec<Group>) -> Self {
        let mut cgroup = Self { groups, kill: None };
        cgroup.open_kill();
        cgroup
    }

    fn open_kill(&mut self) {
        let unified = self.groups.iter().find(|group| group.kind == Kind::Unified);
        let open = |group: &Group| File::options().write(true).open(group.path.join("cgroup.kill"));
        self.kill = unified.and_then(|group| open(group).ok());
    }

    /// The groups.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// A descriptor by which whoever holds it can kill all that is in the OSlet (see
    /// [`kill_by`]); `None` where there is no version 2 hierarchy (or a kernel before 5.14).
    ///
    /// # Errors
    /// When no descriptor is free.
    pub fn kill_descriptor(&self) -> Result<Option<OwnedFd>> {
        let clone = |file: &File| file.try_clone().map(OwnedFd::from);
        self.kill.as_ref().map(clone).transpose().map_err(Error::io("cgroup.kill: dup"))
    }

    /// Moves the calling process, with all its threads, into every group.
    ///
    /// # Errors
    /// The first that could not be joined; the others have been.
    pub fn join(&self) -> Result<()> {
        let mut result = Ok(());
        for group in &self.groups {
            let path = group.path.join("cgroup.procs");
            let joined = write(&path, "0").map_err(Error::file(&path, "join"));
            result = result.and(joined);
        }
        result
    }

    /// The numbers of the processes in the groups, as far as this process's PID namespace has them.
    pub fn processes(&self) -> Vec<u32> {
        let mut all: Vec<u32> =
            self.groups.iter().flat_map(|group| kill::processes(&group.path)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Kills every process in the groups and in those below, and waits until they have ended.
    /// The caller is not to be one of them.
    ///
    /// # Errors
    /// [`Error::Timeout`], naming those that are left, when that takes longer.
    pub fn kill(&self, limit: Duration) -> Result<()> {
        kill::kill(&self.groups, self.kill.as_ref(), limit)
    }

    /// Removes the groups, those below, and the parents that are now empty.
    ///
    /// # Errors
    /// When a group could not be removed within that time: something still runs in it.
    pub fn remove(&self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        let mut result = Ok(());
        for group in &self.groups {
            result = result.and(hierarchy::remove(&group.path, OSLET_LEVELS, end));
        }
        result
    }
}

/// An OSlet's group is so many levels below the place where they are made: `oslet/CLUSTER/OSLET`.
const OSLET_LEVELS: usize = 3;

/// Kills all that is in the group that the descriptor was opened in. A group that is gone has
/// nothing in it.
///
/// # Errors
/// When it is no descriptor of a `cgroup.kill` file, opened for writing.
pub fn kill_by(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    match rustix::io::write(descriptor.as_fd(), b"1") {
        Ok(_) | Err(rustix::io::Errno::NODEV) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The groups that an earlier cluster of that name has left, by OSlet. Whoever holds the cluster's
/// lock may [`Cgroup::kill`] and [`Cgroup::remove`] them.
///
/// # Errors
/// When the name is none.
pub fn leftovers(hierarchies: &Hierarchies, cluster: &str) -> Result<Vec<(String, Cgroup)>> {
    let parent = relative(cluster, cluster)?;
    let parent = parent.parent().unwrap_or(Path::new(""));
    let mut found = std::collections::BTreeMap::<String, Vec<Group>>::new();
    for (kind, place) in hierarchies.all() {
        let Ok(entries) = fs::read_dir(place.join(parent)) else { continue };
        for entry in entries.flatten() {
            let is_group = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if let (true, Ok(name)) = (is_group, entry.file_name().into_string()) {
                let group = Group { kind, path: entry.path() };
                found.entry(name).or_default().push(group);
            }
        }
    }
    Ok(found.into_iter().map(|(name, groups)| (name, Cgroup::from_groups(groups))).collect())
}

/// Removes the cluster's own groups once those of its OSlets are gone: whoever removed the last of
/// them may have found these busy.
///
/// # Errors
/// When one could not be removed within that time.
pub fn remove_cluster(hierarchies: &Hierarchies, cluster: &str, limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    let inner = relative(cluster, cluster)?;
    let path = inner.parent().unwrap_or(Path::new(""));
    let mut groups = hierarchies.all().map(|(_, place)| place.join(path));
    groups.try_for_each(|group| hierarchy::remove(&group, OSLET_LEVELS - 1, end))
}

/// The CPUs first need nodes: a cpuset without memory takes no process.
fn bind(path: &Path, cpus: &CpuSet, nodes: &NodeSet) -> Result<()> {
    for (file, members, what) in
        [("cpuset.mems", nodes, "memory nodes"), ("cpuset.cpus", cpus, "CPUs")]
    {
        write(&path.join(file), &members.to_string()).map_err(Error::io(format!(
            "{}: {what} {members}: not there, or not this process's to give",
            path.join(file).display()
        )))?;
    }
    Ok(())
}

/// `oslet/CLUSTER/NAME`, when both are names.
fn relative(cluster: &str, oslet: &str) -> Result<PathBuf> {
    for name in [cluster, oslet] {
        if !is_name(name) {
            return Err(Error::Invalid(format!(
                "name {name:?}: letters, digits, '_', '-' and inner '.' only, at most {} of them",
                limits::MAX_NAME
            )));
        }
    }
    Ok(Path::new("oslet").join(cluster).join(oslet))
}

/// Whether that can be a directory, a host and a part of a path without further thought.
pub(crate) fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    (1..=limits::MAX_NAME).contains(&name.len())
        && name.bytes().all(plain)
        && !name.starts_with(['.', '-'])
}

/// Numbers as the kernel's lists have them: `0-3,8`.
pub fn list(numbers: &[u32]) -> String {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in sorted {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let run = |&(first, last): &(u32, u32)| match last - first {
        0 => first.to_string(),
        _ => format!("{first}-{last}"),
    };
    runs.iter().map(run).collect::<Vec<_>>().join(",")
}

/// One write, as these files want it.
fn write(path: &Path, text: &str) -> io::Result<()> {
    File::options().write(true).open(path)?.write_all(text.as_bytes())
}
