use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::topology::Memory;
use crate::topology::testing::{MACHINES, machine, unrestricted};

/// The whole division of all allowed CPUs.
fn parts(topology: &Topology, count: usize) -> Vec<Part> {
    let sets = divide(topology, &topology.allowed, count);
    let mut parts: Vec<Part> =
        sets.into_iter().map(|cpus| Part { cpus, ..Part::default() }).collect();
    assign_nodes(topology, &mut parts);
    parts
}

/// One line a part: CPUs, nodes, and nodes of memory alone.
fn lines(parts: &[Part]) -> Vec<String> {
    let line = |part: &Part| match part.memory_only.is_empty() {
        true => format!("{} @ {}", part.cpus, part.nodes),
        false => format!("{} @ {} + {}", part.cpus, part.nodes, part.memory_only),
    };
    parts.iter().map(line).collect()
}

fn core_count(topology: &Topology, cpus: &CpuSet) -> usize {
    cpus.iter().map(|cpu| topology.cpus[&cpu].core).collect::<BTreeSet<_>>().len()
}

/// What holds for every division of every machine.
fn check(name: &str, topology: &Topology, count: usize) -> Vec<Part> {
    let parts = parts(topology, count);
    let about = format!("{name} in {count}: {:?}", lines(&parts));
    assert_eq!(parts.len(), count, "{about}");
    assert!(parts.iter().all(|part| !part.cpus.is_empty() && !part.nodes.is_empty()), "{about}");
    let union = parts.iter().fold(CpuSet::new(), |set, part| set.or(&part.cpus));
    assert_eq!(union, topology.allowed, "{about}");
    if count <= topology.allowed.len() {
        let sum: usize = parts.iter().map(|part| part.cpus.len()).sum();
        assert_eq!(sum, topology.allowed.len(), "a CPU in two OSlets: {about}");
    }
    if count <= topology.allowed_cores() {
        let cores: usize = parts.iter().map(|part| core_count(topology, &part.cpus)).sum();
        assert_eq!(cores, topology.allowed_cores(), "siblings apart: {about}");
    }
    let nodes = parts.iter().map(|part| part.nodes.or(&part.memory_only));
    let all = nodes.fold(NodeSet::new(), |set, nodes| set.or(&nodes));
    assert_eq!(all, topology.allowed_nodes, "a node in no OSlet: {about}");
    let alone: usize = parts.iter().map(|part| part.memory_only.len()).sum();
    let union = parts.iter().fold(NodeSet::new(), |set, part| set.or(&part.memory_only));
    assert_eq!(alone, union.len(), "a node of memory in two OSlets: {about}");
    parts
}

fn balance(parts: &[Part]) -> (usize, usize) {
    let sizes = || parts.iter().map(|part| part.cpus.len());
    (sizes().min().unwrap(), sizes().max().unwrap())
}

#[test]
fn every_captured_machine_is_divided_sensibly() {
    for name in MACHINES {
        for topology in [machine(name), unrestricted(name)] {
            for count in [2, 4, topology.nodes.len(), 1, 3, 64] {
                let parts = check(name, &topology, count);
                let (least, most) = balance(&parts);
                // Whole cores, and nodes that are not split, set how even it can be.
                let even = most <= 2 * least || count > topology.allowed_cores();
                assert!(even, "{name} in {count}: {:?}", lines(&parts));
            }
        }
    }
}

/// (machine, OSlets, CPUs @ nodes + nodes of memory alone), worked out by hand from the machine.
const GOLDEN: [(&str, usize, &[&str]); 17] = [
    ("16amd64-8n2c", 2, &["0-7 @ 0-3", "8-15 @ 4-7"]),
    ("16amd64-8n2c-cpusets", 2, &["0-3,5 @ 1-2", "6,12-15 @ 3 + 4"]),
    ("16em64t-4s2c2t-offlines", 2, &["0-1,4,8-9,12 @ 0", "3,6-7,10-11,15 @ 0"]),
    ("16em64t-4s2c2t-offlines", 4, &["0,4,8,12 @ 0", "1,9 @ 0", "3,7,11,15 @ 0", "6,10 @ 0"]),
    ("20em64t-hybrid-1p6c2t+2ca4co1t", 2, &["0-5,12-15 @ 0", "6-11,16-19 @ 0"]),
    (
        "20em64t-hybrid-1p6c2t+2ca4co1t",
        4,
        &["0-1,12-13 @ 0", "2-5,16-17 @ 0", "6-7,14-15 @ 0", "8-11,18-19 @ 0"],
    ),
    ("256ppc-8n8s4t", 4, &["0-63 @ 0-1", "64-127 @ 4-5", "128-191 @ 8-9", "192-255 @ 12-13"]),
    ("2arm-2c", 2, &["0 @ 0", "1 @ 0"]),
    ("2i386-2t-hugepagesizecount", 2, &["0 @ 0", "1 @ 0"]),
    ("32amd64-4s2n4c-cgroup2", 2, &["0-3 @ 0 + 2,4", "4-5 @ 1 + 3,5"]),
    ("32em64t-2n8c+dax+nvme+mic+dimms", 4, &["0-3 @ 0", "4-7 @ 0", "8-11 @ 1", "12-15 @ 1"]),
    ("64amd64-4s2n4ca2co", 2, &["0-15,48-63 @ 0-1,6-7", "16-47 @ 2-5"]),
    ("64amd64-4s2n4ca2co", 4, &["0-15 @ 0-1", "16-31 @ 2-3", "32-47 @ 4-5", "48-63 @ 6-7"]),
    ("8em64t-2s2ca2c-buggynuma", 2, &["0,2,4,6 @ 0-7", "1,3,5,7 @ 0-7"]),
    ("8em64t-2s2ca2c-buggynuma", 4, &["0,2 @ 0-7", "1,3 @ 0-7", "4,6 @ 0-7", "5,7 @ 0-7"]),
    ("96em64t-4no4pa3ca2co", 4, &["0-23 @ 0", "24-47 @ 1", "48-71 @ 2", "72-95 @ 3"]),
    ("offline-cpu0-node0", 2, &["5,7,9,11,13,15,17,19 @ 1", "4,6,8,10,12,14,16,18,20 @ 1"]),
];

#[test]
fn divisions_are_those_that_a_person_would_make() {
    for (name, count, expected) in GOLDEN {
        assert_eq!(lines(&check(name, &machine(name), count)), expected, "{name} in {count}");
    }
    let nvidia = unrestricted("nvidiagpunumanodes");
    let expected = ["0-15 @ 0 + 250,252,254", "88-103 @ 8 + 251,253,255"];
    assert_eq!(lines(&check("nvidia", &nvidia, 2)), expected);
    assert_eq!(lines(&parts(&machine("nvidiagpunumanodes"), 2)), ["0-7 @ 0", "8-15 @ 0"]);
    let cgroup = unrestricted("32amd64-4s2n4c-cgroup2");
    let expected = ["0-7 @ 0-1", "8-15 @ 2-3", "16-23 @ 4-5", "24-31 @ 6-7"];
    assert_eq!(lines(&check("32amd64", &cgroup, 4)), expected);
}

#[test]
fn near_nodes_are_together() {
    // 64amd64, whose packages have two nodes each: of all halves made of whole packages, no other
    // has less distance within.
    let machine = machine("64amd64-4s2n4ca2co");
    let within = |nodes: &[u32]| -> u32 {
        let pairs = nodes.iter().flat_map(|&a| nodes.iter().map(move |&b| (a, b)));
        pairs.filter(|(a, b)| a < b).map(|(a, b)| machine.distance(a, b)).sum()
    };
    let cost = |half: &[u32]| {
        let other: Vec<u32> = (0..8).filter(|node| !half.contains(node)).collect();
        within(half) + within(&other)
    };
    let whole = |mask: &u32| (0..4).all(|p| matches!(mask >> (2 * p) & 3, 0 | 3));
    let halves = (0u32..256).filter(|mask| mask.count_ones() == 4).filter(whole);
    let nodes = |mask: u32| (0..8).filter(|bit| mask & (1 << bit) != 0).collect::<Vec<u32>>();
    let least = halves.map(|mask| cost(&nodes(mask))).min().unwrap();
    let found: Vec<u32> = parts(&machine, 2)[0].nodes.iter().collect();
    assert_eq!(cost(&found), least, "{found:?}");
}

#[test]
fn more_oslets_than_cpus_share_evenly() {
    let machine = machine("2arm-2c");
    let sets = divide(&machine, &machine.allowed, 64);
    assert_eq!(sets.iter().filter(|set| set.contains(0)).count(), 32);
    assert_eq!(sets.iter().filter(|set| set.contains(1)).count(), 32);
    assert!(sets.iter().all(|set| set.len() == 1));
    assert!(divide(&machine, &CpuSet::new(), 2).is_empty());
}

#[test]
fn chosen_nodes_stay_and_the_others_take_the_rest() {
    let machine = unrestricted("nvidiagpunumanodes");
    let sets = divide(&machine, &machine.allowed, 2);
    let part = |cpus: &CpuSet, nodes: &[u32]| Part {
        cpus: cpus.clone(),
        nodes: nodes.iter().copied().collect(),
        ..Part::default()
    };
    let mut parts = [part(&sets[0], &[0, 250]), part(&sets[1], &[])];
    assign_nodes(&machine, &mut parts);
    assert_eq!(lines(&parts), ["0-15 @ 0,250", "88-103 @ 8 + 251-255"]);
}

/// A machine of `shape` (nodes, cores of a node, threads of a core), numbered as big machines are:
/// threads last, with CPUs taken offline and the tables of some garbled.
fn generated(shape: (u32, u32, u32), offline: &[u32], garbled: &[(u32, String)]) -> Memory {
    let (nodes, cores, threads) = shape;
    let all = nodes * cores * threads;
    let mut tree = Memory::default();
    let online: CpuSet = (0..all).filter(|cpu| *cpu == 0 || !offline.contains(cpu)).collect();
    tree.set("sys/devices/system/cpu/online", online.to_string());
    for cpu in 0..all {
        let core = cpu % (nodes * cores);
        let dir = format!("sys/devices/system/cpu/cpu{cpu}");
        let siblings: CpuSet = (0..threads).map(|thread| core + thread * nodes * cores).collect();
        tree.set(format!("{dir}/topology/thread_siblings_list"), siblings.to_string());
        tree.set(format!("{dir}/topology/physical_package_id"), (core / cores / 2).to_string());
    }
    for node in 0..nodes {
        let dir = format!("sys/devices/system/node/node{node}");
        let cpus: CpuSet = (0..all).filter(|cpu| cpu % (nodes * cores) / cores == node).collect();
        let row: Vec<String> =
            (0..nodes).map(|to| (10 + 11 * node.abs_diff(to)).to_string()).collect();
        tree.set(format!("{dir}/cpulist"), cpus.to_string());
        tree.set(format!("{dir}/distance"), row.join(" "));
        tree.set(format!("{dir}/meminfo"), format!("Node {node} MemTotal: 1048576 kB\n"));
    }
    let files: Vec<String> = tree.files.keys().cloned().collect();
    for (index, text) in garbled {
        let path = &files[*index as usize % files.len()];
        if !path.ends_with("cpu/online") {
            tree.set(path.clone(), text.clone());
        }
    }
    tree
}

#[test]
fn large_machines_take_no_time() {
    let started = std::time::Instant::now();
    for (shape, counts) in [((64, 4, 2), [2, 24, 63]), ((4, 32, 8), [2, 24, 64])] {
        let topology = Topology::read(&generated(shape, &[], &[])).unwrap();
        for count in counts {
            check("large", &topology, count);
        }
    }
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_machine_is_divided(
        shape in (1u32..9, 1u32..9, 1u32..5),
        offline in prop::collection::vec(0u32..288, 0..40),
        garbled in prop::collection::vec((any::<u32>(), "[0-9,\\-]{0,12}|\\PC{0,20}"), 0..6),
        count in 1usize..65,
    ) {
        let tree = generated(shape, &offline, &garbled);
        // Garbled memory tables may leave no memory at all: an error, not a panic.
        if let Ok(topology) = Topology::read(&tree) {
            check("generated", &topology, count);
        } else {
            prop_assert!(!garbled.is_empty());
        }
    }

    #[test]
    fn a_sound_machine_is_divided_evenly(
        shape in (1u32..9, 1u32..9, 1u32..5),
        count in 1usize..33,
    ) {
        let topology = Topology::read(&generated(shape, &[], &[])).unwrap();
        let parts = check("sound", &topology, count);
        if count <= topology.allowed_cores() {
            let (least, most) = balance(&parts);
            // A node that is split beside one that is not: half of an odd number of cores.
            prop_assert!(most <= 2 * least + shape.2 as usize, "{:?}", lines(&parts));
            let nodes = shape.0 as usize;
            if nodes.is_multiple_of(count) {
                prop_assert_eq!(least, most);
                prop_assert!(parts.iter().all(|part| part.nodes.len() == nodes / count));
            }
        }
    }
}
