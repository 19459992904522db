use std::path::Path;

use super::*;
use crate::config::Overrides;
use crate::region::Backing;
use crate::topology::Memory;
use crate::topology::testing::{MACHINES, capture, machine, unrestricted};

fn plan(text: &str, topology: &Topology) -> std::result::Result<Plan, String> {
    let config = Config::parse(text, Some(Path::new("oslet.toml")), &Overrides::default());
    let config = config.map_err(|problems| problems.to_string())?;
    Plan::new(&config, topology).map_err(|error| error.to_string())
}

fn error(text: &str, topology: &Topology) -> String {
    plan(text, topology).expect_err(text)
}

fn cpus(plan: &Plan) -> Vec<String> {
    plan.oslets.iter().map(|oslet| oslet.cpus.to_string()).collect()
}

#[test]
fn every_captured_machine_has_a_plan_that_survives_json() {
    for name in MACHINES {
        let machine = machine(name);
        for oslets in [2, 4, machine.nodes.len()] {
            let plan = plan(&format!("oslets = {oslets}"), &machine).unwrap();
            let json = serde_json::to_string(&plan).unwrap();
            assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan, "{name}");
            assert_eq!(plan.region.size, plan.region.segment * oslets as u64);
            assert!(plan.region.size <= plan.region.free / 2, "{name}");
            assert!(plan.oslets.iter().all(|oslet| oslet.memory > 0 && oslet.cores > 0), "{name}");
        }
    }
}

#[test]
fn the_region_follows_free_memory() {
    let mut tree = capture("2arm-2c");
    let mut region = |kib: u64, text: &str| {
        tree.set("proc/meminfo", format!("MemTotal: {kib} kB\nMemAvailable: {kib} kB\n"));
        plan(text, &Topology::read(&tree).unwrap()).map(|plan| plan.region.size >> 20)
    };
    assert_eq!(region(8 << 20, ""), Ok(512), "a sixteenth");
    assert_eq!(region(1 << 30, ""), Ok(16 << 10), "but no more than that");
    assert_eq!(region(100 << 10, ""), Ok(32), "16 MiB each");
    assert_eq!(region(40 << 10, ""), Ok(20), "or half of it");
    assert_eq!(region(8 << 20, "oslets = 64"), Ok(1 << 10));
    let message = region(100 << 10, "oslets = 64").unwrap_err();
    assert!(
        message.ends_with(
            "region: 100.0 MiB of free memory is too little for 64 OSlets, which take 768.0 MiB at \
         least; free some memory or start fewer"
        ),
        "{message}"
    );
}

#[test]
fn regions_that_do_not_fit_are_refused() {
    let machine = machine("2i386-2t-hugepagesizecount");
    let free = (105_040u64 + 452_456 + 290_968) << 10;
    let region = |line: &str| error(&format!("[region]\n{line}"), &machine);
    assert_eq!(
        region("size = \"4M\""),
        "oslet.toml:2: region: size: 4.0 MiB is too small for 2 OSlets; use 8.0 MiB or more"
    );
    assert_eq!(
        region("size = \"1T\""),
        format!(
            "oslet.toml:2: region: size: 1.0 TiB is more than the {} of free memory; use less",
            crate::config::show_size(free)
        )
    );
    assert_eq!(
        region("backing = \"hugetlb\""),
        "oslet.toml:2: region: 0 B of free huge pages is too little for 2 OSlets, which take \
         8.0 MiB at least; reserve them: sysctl vm.nr_hugepages=5"
    );
    let mut tree = capture("2i386-2t-hugepagesizecount");
    tree.set("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "513");
    tree.set("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "513");
    let machine = Topology::read(&tree).unwrap();
    let region = plan("[region]\nbacking = \"hugetlb\"", &machine).unwrap().region;
    assert_eq!((region.size, region.huge, region.backing), (512 << 20, true, Backing::Hugetlb));
    let huge = plan("[region]\nhuge = true\nsize = \"13M\"", &machine).unwrap().region;
    assert_eq!((huge.size, huge.segment), (12 << 20, 6 << 20), "whole huge pages");
    tree.set("proc/meminfo", "MemTotal: 4294967296 kB\nMemAvailable: 4294967296 kB\n");
    let message = error("[region]\nsize = \"1T\"", &Topology::read(&tree).unwrap());
    let expected = "region: size: 1.0 TiB is too large for 2 OSlets; use 512.0 GiB or less";
    assert_eq!(message, format!("oslet.toml:2: {expected}"));
}

#[test]
fn a_region_file_must_be_in_memory_and_fit() {
    let check = |path: &Path, size: u64| {
        let machine = machine("2arm-2c");
        let text = format!("[region]\nbacking = \"{}\"", path.display());
        let mut region = plan(&text, &machine).unwrap().region;
        region.size = size;
        region.check_file().map_err(|error| error.to_string())
    };
    assert_eq!(check(Path::new("/dev/shm/oslet-test"), 4096), Ok(()));
    let message = check(Path::new("/dev/shm/oslet-test"), 1 << 60).unwrap_err();
    assert!(message.contains("the region takes 1048576.0 TiB; use less"), "{message}");
    let message = check(Path::new("/proc/oslet-test"), 4096).unwrap_err();
    assert!(message.contains("choose a file in memory"), "{message}");
    let message = check(Path::new("/none/such/x"), 4096).unwrap_err();
    assert!(message.starts_with("region: backing = \"/none/such/x\": /none/such: No"), "{message}");
}

#[test]
fn nodes_that_are_barred_have_no_free_memory() {
    let machine = machine("nvidiagpunumanodes");
    let region = plan("", &machine).unwrap().region;
    assert_eq!(region.free, 129_839_104 << 10, "node 0 alone");
    let all = unrestricted("nvidiagpunumanodes");
    assert_eq!(plan("", &all).unwrap().region.free, 346_254_144 << 10, "what is available");
}

#[test]
fn cpus_and_nodes_that_are_not_there() {
    let machine = machine("16amd64-8n2c-cpusets");
    let oslet = |line: &str| error(&format!("[[oslet]]\nname = \"a\"\n{line}"), &machine);
    assert_eq!(
        oslet("cpus = \"4,20\""),
        "oslet.toml:3: oslet \"a\": cpus: 4,20 are not online here; use some of 0-3,5-15"
    );
    assert_eq!(
        oslet("cpus = \"2,8-9\""),
        "oslet.toml:3: oslet \"a\": cpus: 8-9 may not be used by this process (affinity or \
         cpuset); use some of 0-3,5-6,12-15"
    );
    assert_eq!(
        oslet("mem = \"node9\""),
        "oslet.toml:3: oslet \"a\": mem: no node 9 here; use some of 1-4"
    );
    assert_eq!(
        oslet("mem = \"node0,node1\""),
        "oslet.toml:3: oslet \"a\": mem: node 0 has no memory or may not be used by this process \
         (cpuset); use some of 1-4"
    );
    assert_eq!(
        error("[[oslet]]\ncpus = \"0-3,5-6,12-15\"\n[[oslet]]\nname = \"b\"", &machine),
        "oslet.toml:4: oslet \"b\": no CPU is left for it, the others name all of 0-3,5-6,12-15; \
         give cpus in its table or take some from another"
    );
}

#[test]
fn what_is_written_stays_and_the_rest_is_divided() {
    let machine = unrestricted("16amd64-8n2c");
    let text = "[[oslet]]\ncpus = \"0-3\"\n[[oslet]]\n[[oslet]]\nmem = \"node2\"\n";
    let plan = plan(text, &machine).unwrap();
    assert_eq!(cpus(&plan), ["0-3", "10-15", "4-9"]);
    let nodes: Vec<String> = plan.oslets.iter().map(|oslet| oslet.nodes.to_string()).collect();
    assert_eq!(nodes, ["0-1", "5-7", "2"]);
    assert_eq!(plan.warnings, Vec::<String>::new());
}

#[test]
fn the_user_is_warned_of_what_is_shared_or_left_over() {
    let pair = machine("2i386-2t-hugepagesizecount");
    let many = plan("oslets = 64", &pair).unwrap();
    let warning = "64 OSlets share 2 CPUs, up to 32 on each: they do not run side by side";
    assert_eq!(many.warnings, [warning]);
    assert!(many.oslets.iter().all(|oslet| oslet.shared));
    let split = plan("", &pair).unwrap();
    let warning = "threads of 1 core are in different OSlets, which then slow each other down";
    assert_eq!(split.warnings, [warning]);
    let machine = machine("16amd64-8n2c-cpusets");
    let text = "[[oslet]]\ncpus = \"0-1\"\n[[oslet]]\ncpus = \"2-3,5\"";
    assert_eq!(
        plan(text, &machine).unwrap().warnings,
        [
            "CPUs 6,12-15 are in no OSlet",
            "oslet \"o0\": no memory that may be used is on the nodes of its CPUs; node 3 is the \
             nearest",
        ]
    );
}

#[test]
fn memory_of_a_split_node_is_shared() {
    let machine = machine("96em64t-4no4pa3ca2co");
    let plan = plan("oslets = 8", &machine).unwrap();
    assert_eq!(plan.oslets[0].memory, (132_101_504 << 10) / 2);
    assert_eq!(plan.oslets[0].nodes.to_string(), "0");
    assert!(plan.oslets.iter().all(|oslet| oslet.cores == 12), "{:?}", cpus(&plan));
}

#[test]
fn a_machine_with_one_cpu_and_no_tables_has_two_oslets() {
    let mut tree = Memory::default();
    tree.set("sys/devices/system/cpu/online", "0\n");
    tree.set("proc/meminfo", "MemTotal: 1048576 kB\nMemAvailable: 1048576 kB\n");
    let plan = plan("", &Topology::read(&tree).unwrap()).unwrap();
    assert_eq!(cpus(&plan), ["0", "0"]);
    assert_eq!(plan.oslets[1].nodes.to_string(), "0");
}
