use super::testing::{MACHINES, capture, machine, unrestricted};
use super::*;

/// (machine, allowed CPUs, cores, packages, nodes, nodes with memory that may be used, core
/// classes): read from the archives by hand. A core of the 64amd64 machine is a module of two
/// integer units.
const EXPECTED: [(&str, &str, usize, usize, &str, &str, usize); 14] = [
    ("16amd64-8n2c", "0-15", 16, 8, "0-7", "0-7", 1),
    ("16amd64-8n2c-cpusets", "0-3,5-6,12-15", 10, 6, "0-7", "1-4", 1),
    ("16em64t-4s2c2t-offlines", "0-1,3-4,6-12,15", 7, 4, "0", "0", 1),
    ("20em64t-hybrid-1p6c2t+2ca4co1t", "0-19", 14, 1, "0", "0", 2),
    ("256ppc-8n8s4t", "0-255", 64, 1, "0-1,4-5,8-9,12-13", "0-1,4-5,8-9,12-13", 1),
    ("2arm-2c", "0-1", 2, 1, "0", "0", 1),
    ("2i386-2t-hugepagesizecount", "0-1", 1, 1, "0", "0", 1),
    ("32amd64-4s2n4c-cgroup2", "0-5", 6, 1, "0-7", "0-5", 1),
    ("32em64t-2n8c+dax+nvme+mic+dimms", "0-15", 16, 2, "0-1", "0-1", 1),
    ("64amd64-4s2n4ca2co", "0-63", 32, 4, "0-7", "0-7", 1),
    ("8em64t-2s2ca2c-buggynuma", "0-7", 8, 2, "0-7", "0-7", 1),
    ("96em64t-4no4pa3ca2co", "0-95", 96, 16, "0-3", "0-3", 1),
    ("nvidiagpunumanodes", "0-15", 4, 1, "0,8,250-255", "0", 1),
    ("offline-cpu0-node0", "4-20", 17, 2, "1", "1", 1),
];

#[test]
fn captured_machines_are_read_as_they_are() {
    for (name, allowed, cores, packages, nodes, allowed_nodes, classes) in EXPECTED {
        let machine = machine(name);
        let distinct = |part: fn(&Cpu) -> u64| {
            let cpus = machine.allowed.iter().map(|cpu| part(&machine.cpus[&cpu]));
            cpus.collect::<std::collections::BTreeSet<_>>().len()
        };
        assert_eq!(machine.allowed.to_string(), allowed, "{name}: allowed CPUs");
        assert_eq!(machine.allowed_cores(), cores, "{name}: cores");
        let found = distinct(|cpu| cpu.package.map_or(u64::MAX, u64::from));
        assert_eq!(found, packages, "{name}: packages");
        assert_eq!(machine.node_ids().to_string(), nodes, "{name}: nodes");
        assert_eq!(machine.allowed_nodes.to_string(), allowed_nodes, "{name}: allowed nodes");
        assert_eq!(distinct(|cpu| u64::from(cpu.class)), classes, "{name}: classes");
        assert!(machine.memory.total > 0 && machine.memory.available > 0, "{name}: memory");
    }
    assert_eq!(EXPECTED.map(|row| row.0), MACHINES);
}

#[test]
fn nothing_is_warned_of_on_sound_machines() {
    for name in MACHINES {
        assert_eq!(machine(name).warnings, Vec::<String>::new(), "{name}");
    }
}

#[test]
fn memory_only_nodes_are_seen_without_the_cpuset() {
    let machine = unrestricted("nvidiagpunumanodes");
    assert_eq!(machine.allowed.to_string(), "0-15,88-103");
    assert_eq!(machine.allowed_nodes.to_string(), "0,8,250-255");
    let gpu = machine.node(250).unwrap();
    assert!(gpu.cpus.is_empty());
    assert_eq!(gpu.total, 15_728_640 << 10);
    assert_eq!(machine.distance(0, 8), 40);
    assert_eq!(machine.distance(0, 250), 80);
}

#[test]
fn distances_belong_to_the_columns_nodes() {
    let ppc = machine("256ppc-8n8s4t");
    assert_eq!(
        [(0, 1), (0, 4), (12, 13), (4, 5)].map(|(a, b)| ppc.distance(a, b)),
        [20, 40, 20, 20]
    );
    let offline = machine("offline-cpu0-node0");
    assert_eq!((offline.distance(1, 1), offline.distance(1, 0)), (10, 21));
    assert_eq!(offline.nodes_of(5).to_string(), "1");
    assert_eq!(offline.nodes_of(4).to_string(), "");
}

#[test]
fn caches_and_kinds_of_cores() {
    let hybrid = machine("20em64t-hybrid-1p6c2t+2ca4co1t");
    let class = |wanted| -> CpuSet {
        hybrid.cpus.iter().filter(|(_, cpu)| cpu.class == wanted).map(|(&id, _)| id).collect()
    };
    assert_eq!(class(0).to_string(), "0-11");
    assert_eq!(class(1).to_string(), "12-19");
    assert_eq!(hybrid.cpus[&15].cache2, 12);
    assert_eq!(hybrid.cpus[&19].cache2, 16);
    assert_eq!(hybrid.cpus[&19].last_cache, 0);
    let buggy = machine("8em64t-2s2ca2c-buggynuma");
    assert_eq!(buggy.cpus[&7].cache2, 5);
    assert_eq!(buggy.nodes_of(3).len(), 8);
}

#[test]
fn huge_pages_and_absurd_sizes() {
    let machine = machine("2i386-2t-hugepagesizecount");
    let sizes: Vec<u64> = machine.huge_pages.iter().map(|pool| pool.size).collect();
    assert_eq!(sizes, [2 << 20, 16 << 30]);
    assert_eq!(machine.memory.total, 400_016_779_264 << 10);
    let mut tree = capture("2arm-2c");
    tree.set(
        "proc/meminfo",
        "MemTotal: 99999999999999999999 kB\nMemFree: 18446744073709551615 kB\n",
    );
    assert!(Topology::read(&tree).is_err(), "no memory that can be counted");
}

#[test]
fn hybrid_cores_by_their_performance_monitors_or_capacity() {
    let mut tree = capture("2arm-2c");
    tree.set("sys/devices/cpu_core/cpus", "1\n");
    tree.set("sys/devices/cpu_atom/cpus", "0\n");
    let classes = |tree: &Memory| -> Vec<u8> {
        Topology::read(tree).unwrap().cpus.values().map(|cpu| cpu.class).collect()
    };
    assert_eq!(classes(&tree), [1, 0]);
    let mut tree = capture("2arm-2c");
    tree.set("sys/devices/system/cpu/cpu0/cpu_capacity", "1024\n");
    tree.set("sys/devices/system/cpu/cpu1/cpu_capacity", "1010\n");
    assert_eq!(classes(&tree), [0, 0]);
    tree.set("sys/devices/system/cpu/cpu1/cpu_capacity", "446\n");
    assert_eq!(classes(&tree), [0, 1]);
}

#[test]
fn restrictions_of_both_cgroup_versions_and_the_affinity_mask_add_up() {
    let mut tree = capture("16amd64-8n2c");
    tree.set("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-13\nMems_allowed_list:\t0-6\n");
    tree.set("proc/self/cgroup", "7:memory:/m\n5:cpu,cpuset:/a/b\n0::/u/v w\n");
    tree.set(
        "proc/self/mountinfo",
        "1 1 0:1 /a /cg\\0401 rw shared:1 - cgroup cgroup rw,cpu,cpuset\n\
         2 1 0:2 / /cg2 rw - cgroup2 cgroup2 rw,nsdelegate\n\
         3 1 0:3 / /mem rw - cgroup cgroup rw,memory\n",
    );
    // The mount shows /a: cgroup /a/b is b below it. Version 2 has no cpuset in the innermost.
    tree.set("cg 1/b/cpuset.cpus", "2-15\n");
    tree.set("cg 1/b/cpuset.mems", "1-7\n");
    tree.set("cg2/u/cpuset.cpus.effective", "0-7,12\n");
    tree.set("mem/m/memory.limit_in_bytes", "9223372036854771712\n");
    tree.set("mem/memory.limit_in_bytes", "1000000\n");
    tree.set("mem/memory.usage_in_bytes", "600000\n");
    tree.set("mem/memory.stat", "inactive_file 7\ntotal_inactive_file 50000\n");
    tree.set("cg2/u/v w/memory.max", "700000\n");
    let machine = Topology::read(&tree).unwrap();
    assert_eq!(machine.allowed.to_string(), "2-7,12");
    assert_eq!(machine.allowed_nodes.to_string(), "1-6");
    assert_eq!(machine.memory.cgroup_left, Some(450_000));
    assert_eq!(machine.memory.usable(), 450_000);
    assert!(machine.warnings.is_empty(), "{:?}", machine.warnings);

    tree.set("cg2/u/cpuset.cpus.effective", "0-1\n");
    let message = Topology::read(&tree).unwrap_err().to_string();
    assert!(message.contains("/cg2/u/cpuset.cpus.effective"), "{message}");
    tree.set("cg2/u/cpuset.cpus.effective", "0-7,zwölf\n");
    let machine = Topology::read(&tree).unwrap();
    assert_eq!(machine.allowed.to_string(), "2-13");
    assert!(machine.warnings[0].contains("zwölf"), "{:?}", machine.warnings);
}

#[test]
fn a_tree_with_no_more_than_directories_is_one_node() {
    let mut tree = Memory::default();
    for cpu in 0..3 {
        tree.set(format!("sys/devices/system/cpu/cpu{cpu}/uevent"), "");
    }
    tree.set("sys/devices/system/cpu/cpu1/online", "0\n");
    tree.set("proc/meminfo", "MemTotal: 4096 kB\nMemFree: 1024 kB\n");
    let machine = Topology::read(&tree).unwrap();
    assert_eq!(machine.allowed.to_string(), "0,2");
    assert_eq!(machine.allowed_cores(), 2);
    assert_eq!(machine.nodes.len(), 1);
    assert_eq!(machine.nodes[0].total, 4 << 20);
    assert!(Topology::read(&Memory::default()).is_err());
}
