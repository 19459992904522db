//! Division of a machine into OSlets.
//!
//! CPUs are divided along NUMA nodes: near nodes together where there are more nodes than OSlets, a
//! node split along packages, dies, caches and cores where there are fewer. The threads of a core
//! stay together unless there are more OSlets than cores, and where cores differ each OSlet gets
//! its share of every kind. Every CPU goes to one OSlet; only when there are more OSlets than CPUs
//! do several share one.

mod group;

use std::collections::BTreeMap;

use crate::topology::{CpuSet, NodeSet, Topology};
use group::{apportion, group};

/// What one OSlet gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// Its CPUs.
    pub cpus: CpuSet,
    /// Whether other OSlets run on them too.
    pub shared: bool,
    /// Nodes that its memory comes from: those of its CPUs, or the nearest that have memory.
    pub nodes: NodeSet,
    /// Nodes without CPUs (or without CPUs that may be used) that are nearest to it: more memory,
    /// slower or special, for when it is asked for or the rest is full.
    pub memory_only: NodeSet,
}

/// Divides `cpus` into `count` sets of CPUs that are as equal as the machine allows, ordered by
/// node and number. The sets are disjoint unless there are more of them than CPUs. Empty if either
/// is zero.
pub fn divide(topology: &Topology, cpus: &CpuSet, count: usize) -> Vec<CpuSet> {
    if cpus.is_empty() || count == 0 {
        return Vec::new();
    }
    if count > cpus.len() {
        let cpus: Vec<u32> = cpus.iter().collect();
        let of = |index: usize| cpus[index * cpus.len() / count];
        return (0..count).map(|index| CpuSet::from_iter([of(index)])).collect();
    }
    let mut units = cores(topology, cpus);
    if count > units.len() {
        units = units.iter().flat_map(Unit::threads).collect();
    }
    let domains = domains(topology, units);
    let mut sets: Vec<CpuSet> = if count <= domains.len() {
        let weights: Vec<u64> = domains.iter().map(|domain| weight(&domain.units)).collect();
        let near = |a: usize, b: usize| domains[a].remoteness(&domains[b], topology);
        let groups = group(&weights, count, near);
        let set_of = |index: usize| {
            let members = domains.iter().zip(&groups).filter(|(_, group)| **group == index);
            union(members.flat_map(|(domain, _)| &domain.units))
        };
        (0..count).map(set_of).collect()
    } else {
        let sizes: Vec<(u64, usize)> =
            domains.iter().map(|domain| (weight(&domain.units), domain.units.len())).collect();
        let shares = apportion(&sizes, count);
        let split =
            domains.into_iter().zip(shares).flat_map(|(domain, share)| split(domain.units, share));
        split.map(|units| union(&units)).collect()
    };
    let first = |set: &CpuSet| {
        let nodes = set.iter().filter_map(|cpu| topology.nodes_of(cpu).first());
        (nodes.min().unwrap_or(u32::MAX), set.first())
    };
    sets.sort_by_cached_key(first);
    sets
}

/// Gives each part its nodes. Parts that name nodes already keep exactly those.
pub fn assign_nodes(topology: &Topology, parts: &mut [Part]) {
    let own: Vec<NodeSet> = parts
        .iter()
        .map(|part| {
            part.cpus.iter().fold(NodeSet::new(), |set, cpu| set.or(&topology.nodes_of(cpu)))
        })
        .collect();
    let chosen: Vec<bool> = parts.iter().map(|part| !part.nodes.is_empty()).collect();
    for (index, part) in parts.iter_mut().enumerate().filter(|(index, _)| !chosen[*index]) {
        part.nodes = own[index].and(&topology.allowed_nodes);
    }
    let distance = |index: usize, node: u32| {
        own[index].iter().map(|from| topology.distance(from, node)).min().unwrap_or(255)
    };
    // Those whose CPUs have no memory of theirs take the nearest, rather one that nobody has.
    for index in 0..parts.len() {
        if parts[index].nodes.is_empty() {
            let users = |node: u32| parts.iter().filter(|part| part.nodes.contains(node)).count();
            let nearest = topology
                .allowed_nodes
                .iter()
                .min_by_key(|&node| (distance(index, node), users(node), node));
            parts[index].nodes = nearest.into_iter().collect();
        }
    }
    let taken = parts.iter().fold(NodeSet::new(), |set, part| set.or(&part.nodes));
    for node in topology.allowed_nodes.minus(&taken).iter() {
        let share = |node: u32| {
            let users = parts.iter().filter(|part| part.nodes.contains(node)).count() as u64;
            topology.node(node).map_or(0, |node| node.total) / users.max(1)
        };
        // Of those that are equally near, the one with the least memory for a CPU.
        let load = |part: &Part| {
            let nodes = part.nodes.or(&part.memory_only);
            nodes.iter().map(share).fold(0, u64::saturating_add) / part.cpus.len().max(1) as u64
        };
        let open = (0..parts.len()).filter(|&index| !chosen[index]);
        let nearest = open.min_by_key(|&index| {
            (distance(index, node), parts[index].memory_only.len(), load(&parts[index]), index)
        });
        if let Some(index) = nearest {
            parts[index].memory_only.insert(node);
        }
    }
}

/// What is not divided further: a core, or a thread when there are more OSlets than cores.
#[derive(Debug, Clone)]
struct Unit {
    cpus: Vec<u32>,
    class: u8,
    /// Package, die, last-level cache, cluster, level-2 cache, core.
    place: [u32; LEVELS],
}

const LEVELS: usize = 6;

impl Unit {
    fn threads(&self) -> impl Iterator<Item = Self> + '_ {
        self.cpus.iter().map(|&cpu| Self { cpus: vec![cpu], ..*self })
    }

    fn order(&self) -> ([u32; LEVELS], u32) {
        (self.place, self.cpus[0])
    }
}

fn weight(units: &[Unit]) -> u64 {
    units.iter().map(|unit| unit.cpus.len() as u64).sum()
}

fn union<'a>(units: impl IntoIterator<Item = &'a Unit>) -> CpuSet {
    units.into_iter().flat_map(|unit| unit.cpus.iter().copied()).collect()
}

/// The cores that the CPUs are on, in the order of the machine's hierarchy.
fn cores(topology: &Topology, cpus: &CpuSet) -> Vec<Unit> {
    let mut cores: BTreeMap<u32, Unit> = BTreeMap::new();
    for (id, cpu) in cpus.iter().filter_map(|id| Some((id, topology.cpus.get(&id)?))) {
        let none = u32::MAX;
        let place = [
            cpu.package.unwrap_or(none),
            cpu.die.unwrap_or(none),
            cpu.last_cache,
            cpu.cluster,
            cpu.cache2,
            cpu.core,
        ];
        let new = || Unit { cpus: Vec::new(), class: cpu.class, place };
        cores.entry(cpu.core).or_insert_with(new).cpus.push(id);
    }
    let mut cores: Vec<Unit> = cores.into_values().collect();
    cores.sort_by_key(Unit::order);
    cores
}

/// CPUs with the same memory: a NUMA node, several whose tables overlap, or those of a package that
/// are in no node.
struct Domain {
    nodes: NodeSet,
    units: Vec<Unit>,
}

impl Domain {
    /// How undesirable it is to have both in one OSlet: their distance, and more when they are of
    /// different packages, so that packages, which fail and slow down as one, stay whole where
    /// another division is hardly nearer.
    fn remoteness(&self, other: &Self, topology: &Topology) -> u64 {
        /// A bit more than one hop in the firmware's tables (10 is local, 16 one hop, 22 two).
        const OTHER_PACKAGE: u64 = 8;
        let pairs = self.nodes.iter().flat_map(|a| other.nodes.iter().map(move |b| (a, b)));
        let distance = pairs.map(|(a, b)| topology.distance(a, b)).min().unwrap_or(255);
        let package = |domain: &Self| domain.units.first().map(|unit| unit.place[0]);
        let apart = package(self) != package(other);
        u64::from(distance) + if apart { OTHER_PACKAGE } else { 0 }
    }
}

fn domains(topology: &Topology, units: Vec<Unit>) -> Vec<Domain> {
    let merged = overlapping_nodes(topology);
    let mut domains: BTreeMap<(u32, u32), Domain> = BTreeMap::new();
    for unit in units {
        let node = topology.nodes_of(unit.cpus[0]).first();
        let key = match node {
            Some(node) => (merged.get(&node).copied().unwrap_or(node), 0),
            None => (u32::MAX, unit.place[0]),
        };
        let new = || Domain { nodes: NodeSet::new(), units: Vec::new() };
        let domain = domains.entry(key).or_insert_with(new);
        domain.nodes = domain.nodes.or(&topology.nodes_of(unit.cpus[0]));
        domain.units.push(unit);
    }
    domains.into_values().collect()
}

/// For each node the smallest of those that claim one of its CPUs too, directly or by way of
/// others.
fn overlapping_nodes(topology: &Topology) -> BTreeMap<u32, u32> {
    let mut smallest: BTreeMap<u32, u32> = topology.nodes.iter().map(|n| (n.id, n.id)).collect();
    let claims: Vec<NodeSet> = topology
        .online
        .iter()
        .map(|cpu| topology.nodes_of(cpu))
        .filter(|nodes| nodes.len() > 1)
        .collect();
    // Each round carries a number at least one node further.
    for _ in 0..topology.nodes.len() {
        let before = smallest.clone();
        for nodes in &claims {
            let least = nodes.iter().filter_map(|node| smallest.get(&node)).min().copied();
            for node in nodes.iter() {
                smallest.extend(least.map(|least| (node, least)));
            }
        }
        if smallest == before {
            break;
        }
    }
    smallest
}

/// Splits the units of a domain; each kind of core is split by itself, so that each part gets a
/// share of every kind. No part is empty if there are at least as many units as parts.
fn split(units: Vec<Unit>, count: usize) -> Vec<Vec<Unit>> {
    let mut by_class: BTreeMap<u8, Vec<Unit>> = BTreeMap::new();
    for unit in units {
        by_class.entry(unit.class).or_default().push(unit);
    }
    let mut parts: Vec<Vec<Unit>> = vec![Vec::new(); count];
    for (_, units) in by_class {
        let mut shares = split_equal_cores(units, count);
        // What does not divide evenly goes where the faster kinds gave least.
        shares.sort_by_key(|share| std::cmp::Reverse(weight(share)));
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by_key(|&index| (weight(&parts[index]), index));
        for (share, index) in shares.into_iter().zip(order) {
            parts[index].extend(share);
        }
    }
    parts
}

/// Splits cores of one kind along the coarsest level of the hierarchy that keeps the parts
/// balanced.
fn split_equal_cores(units: Vec<Unit>, count: usize) -> Vec<Vec<Unit>> {
    if count <= 1 {
        return vec![units];
    }
    let even = cut(&units, count);
    let tolerated = spread(&even).max(weight(&units) / count as u64 / 4);
    for level in 0..LEVELS {
        let blocks: Vec<Vec<Unit>> = units
            .chunk_by(|a, b| a.place[..=level] == b.place[..=level])
            .map(<[_]>::to_vec)
            .collect();
        if blocks.len() == 1 {
            continue;
        }
        let parts = along(blocks, count);
        if spread(&parts) <= tolerated && parts.iter().all(|part| !part.is_empty()) {
            return parts;
        }
    }
    even
}

/// Split along the borders of blocks: whole blocks together, or each block by itself.
fn along(blocks: Vec<Vec<Unit>>, count: usize) -> Vec<Vec<Unit>> {
    if blocks.len() < count {
        let sizes: Vec<(u64, usize)> =
            blocks.iter().map(|block| (weight(block), block.len())).collect();
        let shares = apportion(&sizes, count);
        return blocks
            .into_iter()
            .zip(shares)
            .flat_map(|(b, share)| split_equal_cores(b, share))
            .collect();
    }
    let weights: Vec<u64> = blocks.iter().map(|block| weight(block)).collect();
    let shared_levels = |a: usize, b: usize| {
        let (a, b) = (&blocks[a][0].place, &blocks[b][0].place);
        a.iter().zip(b).take_while(|(a, b)| a == b).count()
    };
    let groups = group(&weights, count, |a, b| (LEVELS - shared_levels(a, b)) as u64);
    let mut parts = vec![Vec::new(); count];
    for (block, group) in blocks.into_iter().zip(groups) {
        parts[group].extend(block);
    }
    parts
}

/// Neighbours together, sizes differing by one unit at most.
fn cut(units: &[Unit], count: usize) -> Vec<Vec<Unit>> {
    let at = |index: usize| index * units.len() / count;
    (0..count).map(|index| units[at(index)..at(index + 1)].to_vec()).collect()
}

fn spread(parts: &[Vec<Unit>]) -> u64 {
    let weights = || parts.iter().map(|part| weight(part));
    weights().max().unwrap_or(0) - weights().min().unwrap_or(0)
}

#[cfg(test)]
mod tests;
