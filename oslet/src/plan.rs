//! What a launcher is to do: a configuration, judged against a machine, with every choice made.

mod region;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{At, Config, Kind, OsletConfig, Problems, Source, Tmp};
use crate::error::Result;
use crate::partition::{Part, assign_nodes, divide};
use crate::topology::{CpuSet, MemoryInfo, NodeSet, Topology};

pub use region::RegionPlan;

/// A cluster in every particular.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The cluster's name.
    pub cluster: String,
    /// The configuration that it is made from, if there is a file.
    pub config: Option<PathBuf>,
    /// The machine that it is made for.
    pub machine: Machine,
    /// The shared memory.
    pub region: RegionPlan,
    /// The OSlets, in the order of their ids.
    pub oslets: Vec<OsletPlan>,
    /// The devices.
    pub devices: Vec<DevicePlan>,
    /// The volumes.
    pub volumes: Vec<VolumePlan>,
    /// What the user should know, a sentence each.
    pub warnings: Vec<String>,
}

/// What there is to divide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// CPUs that may ever be there.
    pub possible: CpuSet,
    /// CPUs that run.
    pub online: CpuSet,
    /// Those of them that may be used.
    pub allowed: CpuSet,
    /// Cores of the allowed CPUs.
    pub cores: usize,
    /// Online nodes.
    pub nodes: NodeSet,
    /// Nodes with memory that may be used.
    pub allowed_nodes: NodeSet,
    /// Memory in bytes.
    pub memory: MemoryInfo,
}

/// One OSlet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsletPlan {
    /// Its name, and the host name inside.
    pub name: String,
    /// Its CPUs.
    pub cpus: CpuSet,
    /// Whether other OSlets run on them too.
    pub shared: bool,
    /// Cores that its CPUs are on.
    pub cores: usize,
    /// Nodes that its memory is to come from.
    pub nodes: NodeSet,
    /// Nodes without CPUs that are given to it: allowed, but not used by default.
    pub memory_only: NodeSet,
    /// Bytes of its nodes; those of a node that several OSlets have are divided among them.
    pub memory: u64,
    /// What it is.
    pub kind: Kind,
    /// Whether it is started again when it dies.
    pub restart: bool,
    /// What /tmp is inside.
    pub tmp: Tmp,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicePlan {
    /// Its name in every /dev.
    pub name: String,
    /// Where its blocks are.
    pub source: Source,
    /// The OSlet that drives it.
    pub owner: String,
    /// Who may take over, the first first.
    pub standby: Vec<String>,
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumePlan {
    /// Its name.
    pub name: String,
    /// The device that its filesystem is on.
    pub device: String,
    /// Where it is mounted inside every OSlet.
    pub mount: String,
    /// Whether it is never written.
    pub read_only: bool,
}

impl OsletPlan {
    /// All nodes that it may have memory of: what its cpuset is given. The kernel takes the nearest
    /// that have some; /ltmp and the runtime keep to [`Self::nodes`].
    pub fn allowed_nodes(&self) -> NodeSet {
        self.nodes.or(&self.memory_only)
    }
}

impl Plan {
    /// Judges a configuration against a machine.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] with everything that does not fit, by line of the file.
    pub fn new(config: &Config, topology: &Topology) -> Result<Self> {
        let mut problems = config.problems();
        let mut warnings = topology.warnings.clone();
        for oslet in &config.oslets {
            check_places(oslet, topology, &mut problems);
        }
        let parts = match problems.list.is_empty() {
            true => parts(&config.oslets, topology, &mut problems),
            false => Vec::new(),
        };
        let region = region::plan(config, topology, &mut problems);
        problems.into_result()?;
        warn_of_cpus(&parts, topology, &mut warnings);
        warn_of_nodes(config, &parts, topology, &mut warnings);
        Ok(Self {
            cluster: config.name.clone(),
            config: config.file.clone(),
            machine: Machine {
                possible: topology.possible.clone(),
                online: topology.online.clone(),
                allowed: topology.allowed.clone(),
                cores: topology.allowed_cores(),
                nodes: topology.node_ids(),
                allowed_nodes: topology.allowed_nodes.clone(),
                memory: topology.memory,
            },
            region,
            oslets: oslets(config, &parts, topology),
            devices: devices(config),
            volumes: volumes(config),
            warnings,
        })
    }
}

/// Whether the CPUs and nodes that a table names are there and may be used.
fn check_places(oslet: &OsletConfig, topology: &Topology, problems: &mut Problems) {
    let mut problem = |line, what: String| {
        problems.add(line, format!("oslet \"{}\": {what}", oslet.name.value));
    };
    if let Some(At { line, value }) = &oslet.cpus {
        let absent = value.minus(&topology.online);
        let barred = value.and(&topology.online).minus(&topology.allowed);
        if !absent.is_empty() {
            let online = &topology.online;
            problem(*line, format!("cpus: {absent} are not online here; use some of {online}"));
        }
        if !barred.is_empty() {
            let what = "may not be used by this process (affinity or cpuset)";
            problem(*line, format!("cpus: {barred} {what}; use some of {}", topology.allowed));
        }
    }
    if let Some(At { line, value }) = &oslet.mem {
        let allowed = &topology.allowed_nodes;
        let absent = value.minus(&topology.node_ids());
        let barred = value.and(&topology.node_ids()).minus(allowed);
        if !absent.is_empty() {
            problem(*line, format!("mem: no node {absent} here; use some of {allowed}"));
        }
        if !barred.is_empty() {
            let what = "has no memory or may not be used by this process (cpuset)";
            problem(*line, format!("mem: node {barred} {what}; use some of {allowed}"));
        }
    }
}

/// CPUs and nodes of each OSlet. Those that are written stay; the others divide what is left.
fn parts(oslets: &[OsletConfig], topology: &Topology, problems: &mut Problems) -> Vec<Part> {
    let none = CpuSet::new();
    let written =
        |oslet: &OsletConfig| oslet.cpus.as_ref().map_or(none.clone(), |at| at.value.clone());
    let taken = oslets.iter().fold(CpuSet::new(), |set, oslet| set.or(&written(oslet)));
    let left = topology.allowed.minus(&taken);
    let open: Vec<usize> = (0..oslets.len()).filter(|&i| oslets[i].cpus.is_none()).collect();
    if left.is_empty() {
        for &index in &open {
            let name = &oslets[index].name;
            let what = "no CPU is left for it, the others name all of";
            let advice = "give cpus in its table or take some from another";
            let allowed = &topology.allowed;
            problems
                .add(name.line, format!("oslet \"{}\": {what} {allowed}; {advice}", name.value));
        }
    }
    let mut sets: Vec<Option<CpuSet>> =
        divide(topology, &left, open.len()).into_iter().map(Some).collect();
    let mut parts: Vec<Part> = oslets
        .iter()
        .map(|oslet| Part {
            cpus: written(oslet),
            shared: oslet.cpus.is_none() && open.len() > left.len(),
            nodes: oslet.mem.as_ref().map_or(NodeSet::new(), |at| at.value.clone()),
            memory_only: NodeSet::new(),
        })
        .collect();
    // Those that name their memory choose first, the CPUs that are nearest to it.
    let (choosing, rest): (Vec<usize>, Vec<usize>) =
        open.into_iter().partition(|&index| oslets[index].mem.is_some());
    for index in choosing.into_iter().chain(rest) {
        let distance = |set: &CpuSet| {
            let own = set.first().map(|cpu| topology.nodes_of(cpu)).unwrap_or_default();
            let pairs = own.iter().flat_map(|a| parts[index].nodes.iter().map(move |b| (a, b)));
            pairs.map(|(a, b)| topology.distance(a, b)).min().unwrap_or(255)
        };
        let waiting = sets.iter().enumerate().filter_map(|(i, set)| Some((i, set.as_ref()?)));
        let nearest = waiting.min_by_key(|(i, set)| (distance(set), *i)).map(|(i, _)| i);
        if let Some(set) = nearest.and_then(|nearest| sets[nearest].take()) {
            parts[index].cpus = set;
        }
    }
    assign_nodes(topology, &mut parts);
    parts
}

fn cores_of(topology: &Topology, cpus: &CpuSet) -> BTreeSet<u32> {
    cpus.iter().filter_map(|cpu| topology.cpus.get(&cpu)).map(|cpu| cpu.core).collect()
}

fn warn_of_cpus(parts: &[Part], topology: &Topology, warnings: &mut Vec<String>) {
    let union = |set: CpuSet, part: &Part| set.or(&part.cpus);
    let shared = || parts.iter().filter(|part| part.shared);
    if shared().next().is_some() {
        let cpus = shared().fold(CpuSet::new(), union);
        let most =
            cpus.iter().map(|cpu| shared().filter(|part| part.cpus.contains(cpu)).count()).max();
        warnings.push(format!(
            "{} OSlets share {}, up to {} on each: they do not run side by side",
            shared().count(),
            count(cpus.len(), "CPU"),
            most.unwrap_or(0),
        ));
    }
    let mut cores: BTreeMap<u32, usize> = BTreeMap::new();
    for part in parts.iter().filter(|part| !part.shared) {
        cores_of(topology, &part.cpus)
            .into_iter()
            .for_each(|core| *cores.entry(core).or_default() += 1);
    }
    let split = cores.values().filter(|&&oslets| oslets > 1).count();
    if split > 0 {
        warnings.push(format!(
            "threads of {} are in different OSlets, which then slow each other down",
            count(split, "core"),
        ));
    }
    let unused = topology.allowed.minus(&parts.iter().fold(CpuSet::new(), union));
    if !unused.is_empty() {
        warnings.push(format!("CPUs {unused} are in no OSlet"));
    }
}

fn warn_of_nodes(config: &Config, parts: &[Part], topology: &Topology, warnings: &mut Vec<String>) {
    for (oslet, part) in config.oslets.iter().zip(parts) {
        let own = part.cpus.iter().fold(NodeSet::new(), |set, cpu| set.or(&topology.nodes_of(cpu)));
        if oslet.mem.is_none() && own.and(&part.nodes).is_empty() {
            let (name, nodes) = (&oslet.name.value, &part.nodes);
            let what = "no memory that may be used is on the nodes of its CPUs";
            warnings.push(format!("oslet \"{name}\": {what}; node {nodes} is the nearest"));
        }
    }
}

/// `1 CPU`, `2 CPUs`.
fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn oslets(config: &Config, parts: &[Part], topology: &Topology) -> Vec<OsletPlan> {
    let share = |node: u32| {
        let users = parts.iter().filter(|part| part.nodes.contains(node)).count() as u64;
        topology.node(node).map_or(0, |node| node.total) / users.max(1)
    };
    let plan = |(oslet, part): (&OsletConfig, &Part)| OsletPlan {
        name: oslet.name.value.clone(),
        cpus: part.cpus.clone(),
        shared: part.shared,
        cores: cores_of(topology, &part.cpus).len(),
        nodes: part.nodes.clone(),
        memory_only: part.memory_only.clone(),
        memory: part.nodes.iter().map(share).fold(0, u64::saturating_add),
        kind: oslet.kind,
        restart: oslet.restart,
        tmp: oslet.tmp,
    };
    config.oslets.iter().zip(parts).map(plan).collect()
}

fn devices(config: &Config) -> Vec<DevicePlan> {
    let plan = |device: &crate::config::DeviceConfig| DevicePlan {
        name: device.name.value.clone(),
        source: device.source.clone(),
        owner: device.owner.clone(),
        standby: device.standby.clone(),
    };
    config.devices.iter().map(plan).collect()
}

fn volumes(config: &Config) -> Vec<VolumePlan> {
    let plan = |volume: &crate::config::VolumeConfig| VolumePlan {
        name: volume.name.value.clone(),
        device: volume.device.clone(),
        mount: volume.mount.clone(),
        read_only: volume.read_only,
    };
    config.volumes.iter().map(plan).collect()
}

#[cfg(test)]
mod tests;
