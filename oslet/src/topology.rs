//! What a machine is made of: CPUs, cores, caches, NUMA nodes and memory, read from /sys and /proc.
//!
//! Sources: `Documentation/admin-guide/cputopology.rst`,
//! `Documentation/ABI/stable/sysfs-devices-*`, `Documentation/admin-guide/cgroup-v1/cpusets.rst`
//! and `cgroup-v2.rst`. The text is untrusted: a machine whose tables contradict each other is read
//! as far as they agree, and [`Topology::warnings`] says what was not believed.

mod allowed;
mod cpu;
mod node;
mod set;
mod tree;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub(crate) use set::shorten;
pub use set::{CpuSet, IdSet, MAX_ID, NodeSet};
pub use tree::{Dir, Memory, Tree};

/// A machine as it may be used from here.
#[derive(Debug, Clone)]
pub struct Topology {
    /// CPUs that may ever be there: FUSE over io_uring wants a queue for each.
    pub possible: CpuSet,
    /// CPUs that run.
    pub online: CpuSet,
    /// CPUs that run and that affinity mask and cpuset leave to this process.
    pub allowed: CpuSet,
    /// What is known of each online CPU.
    pub cpus: BTreeMap<u32, Cpu>,
    /// The online NUMA nodes, by number; one node without distances where the kernel knows none.
    pub nodes: Vec<Node>,
    /// Nodes that have memory and from which this process may allocate.
    pub allowed_nodes: NodeSet,
    /// Pools of huge pages of the whole machine.
    pub huge_pages: Vec<HugePages>,
    /// Memory of the whole machine.
    pub memory: MemoryInfo,
    /// What was contradictory and how it was taken, a sentence each.
    pub warnings: Vec<String>,
}

/// Where one CPU lies. Two CPUs lie in the same package, die, cluster, core or under the same cache
/// if the numbers are the same; the numbers mean nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu {
    /// The physical package (socket).
    pub package: Option<u32>,
    /// The die.
    pub die: Option<u32>,
    /// The smallest of the CPUs with the same last-level cache.
    pub last_cache: u32,
    /// The smallest of the CPUs with the same level-2 cache.
    pub cache2: u32,
    /// The smallest of the CPUs in the same cluster (of cores that share more than a die's do).
    pub cluster: u32,
    /// The smallest of the CPUs on the same core.
    pub core: u32,
    /// The kind of core: 0 is the fastest; machines with equal cores have only 0.
    pub class: u8,
}

/// A NUMA node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The kernel's number.
    pub id: u32,
    /// Its online CPUs; none in a node of memory alone. In contradictory tables a CPU may be in
    /// two.
    pub cpus: CpuSet,
    /// Its memory in bytes; 0 in a node without memory.
    pub total: u64,
    /// Its free memory in bytes, page cache not counted as free.
    pub free: u64,
    /// Distance to other nodes by their number, 10 is local. Missing where the table is unusable.
    pub distance: BTreeMap<u32, u32>,
    /// Its pools of huge pages.
    pub huge_pages: Vec<HugePages>,
}

/// A pool of huge pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugePages {
    /// Bytes of a page.
    pub size: u64,
    /// Pages in the pool.
    pub total: u64,
    /// Pages that nobody has.
    pub free: u64,
}

/// How much memory there is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryInfo {
    /// All of it.
    pub total: u64,
    /// What can be had without swapping, as far as the machine goes.
    pub available: u64,
    /// What the memory cgroups above this process leave, if they limit it.
    pub cgroup_left: Option<u64>,
}

impl MemoryInfo {
    /// What this process can have without swapping.
    pub fn usable(&self) -> u64 {
        self.cgroup_left.map_or(self.available, |left| left.min(self.available))
    }
}

impl Topology {
    /// Reads a machine.
    ///
    /// # Errors
    /// If no CPU or no memory is left to use, or what says so cannot be read.
    pub fn read(tree: &dyn Tree) -> Result<Self> {
        let mut warnings = Vec::new();
        let (possible, online) = cpu::present(tree, &mut warnings)?;
        let cpus = cpu::read(tree, &online, &mut warnings);
        let mut memory = node::memory_info(tree);
        let nodes = node::read(tree, &online, &mut memory, &mut warnings);
        let limits = allowed::read(tree, &mut warnings);
        memory.cgroup_left = limits.memory_left;
        let allowed = online.and(limits.cpus.as_ref().unwrap_or(&online));
        if allowed.is_empty() {
            let cpus = limits.cpus.unwrap_or_default();
            return Err(Error::Invalid(format!(
                "{}: CPUs {online} are online, but only {cpus} are allowed here ({}); change the \
                 affinity mask or the cpuset",
                tree.name(),
                limits.origin
            )));
        }
        let with_memory: NodeSet = nodes.iter().filter(|n| n.total > 0).map(|n| n.id).collect();
        let allowed_nodes = with_memory.and(limits.nodes.as_ref().unwrap_or(&with_memory));
        if allowed_nodes.is_empty() {
            let nodes = limits.nodes.map_or("none".into(), |nodes| nodes.to_string());
            return Err(Error::Invalid(format!(
                "{}: nodes {with_memory} have memory, but only {nodes} are allowed here ({}); \
                 change the cpuset",
                tree.name(),
                limits.origin
            )));
        }
        let huge_pages = node::huge_pages(tree, "sys/kernel/mm/hugepages");
        Ok(Self {
            possible,
            online,
            allowed,
            cpus,
            nodes,
            allowed_nodes,
            huge_pages,
            memory,
            warnings,
        })
    }

    /// The node with that number.
    pub fn node(&self, id: u32) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// The numbers of the online nodes.
    pub fn node_ids(&self) -> NodeSet {
        self.nodes.iter().map(|node| node.id).collect()
    }

    /// The nodes that a CPU is in: one, none if the tables forgot it, several if they contradict
    /// each other.
    pub fn nodes_of(&self, cpu: u32) -> NodeSet {
        self.nodes.iter().filter(|node| node.cpus.contains(cpu)).map(|node| node.id).collect()
    }

    /// Distance of two nodes; far if the tables do not tell, 10 to itself.
    pub fn distance(&self, from: u32, to: u32) -> u32 {
        let told = |a: u32, b: u32| self.node(a).and_then(|node| node.distance.get(&b)).copied();
        let unknown = if from == to { 10 } else { 255 };
        told(from, to).or_else(|| told(to, from)).unwrap_or(unknown)
    }

    /// How many cores the allowed CPUs are on.
    pub fn allowed_cores(&self) -> usize {
        let cores = self.allowed.iter().filter_map(|cpu| self.cpus.get(&cpu)).map(|cpu| cpu.core);
        cores.collect::<std::collections::BTreeSet<_>>().len()
    }
}

/// A file with one number.
fn number<T: std::str::FromStr>(tree: &dyn Tree, path: &str) -> Option<T> {
    tree.read(path)?.trim().parse().ok()
}

/// A file with a list, or one beside it with a mask. An unreadable one is as good as none.
fn id_set(
    tree: &dyn Tree,
    list: &str,
    mask: Option<&str>,
    warnings: &mut Vec<String>,
) -> Option<IdSet> {
    let (path, parsed) = match (tree.read(list), mask) {
        (Some(text), _) => (list, IdSet::parse_list(&text)),
        (None, Some(mask)) => (mask, IdSet::parse_mask(&tree.read(mask)?)),
        (None, None) => return None,
    };
    match parsed {
        Ok(set) => Some(set),
        Err(what) => {
            warn(warnings, format!("{path}: {what}; ignored"));
            None
        }
    }
}

/// Numbers of the directories `<prefix>0`, `<prefix>1`, ... in a directory.
fn numbered(tree: &dyn Tree, dir: &str, prefix: &str) -> IdSet {
    let names = tree.list(dir);
    let digits = |rest: &&str| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit());
    let rests = names.iter().filter_map(|name| name.strip_prefix(prefix)).filter(digits);
    rests.filter_map(|rest| rest.parse().ok()).collect()
}

/// Adds a warning, unless there are so many that nobody would read on.
fn warn(warnings: &mut Vec<String>, what: String) {
    const MAX_WARNINGS: usize = 16;
    if warnings.len() < MAX_WARNINGS {
        warnings.push(what);
    } else if warnings.len() == MAX_WARNINGS {
        warnings.push("more contradictions in /sys are not listed".into());
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
