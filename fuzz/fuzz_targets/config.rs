//! Configuration files, and the plans that they make of a machine.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use oslet::config::{self, Config, Overrides};
use oslet::plan::Plan;
use oslet::region::Backing;
use oslet::topology::{Memory, Topology};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = config::parse_size(text);
    let _ = config::check_name(text);
    match Config::parse(text, Some(Path::new("oslet.toml")), &Overrides::default()) {
        Ok(config) => {
            assert!(!config.oslets.is_empty());
            // A region file is looked for on this machine.
            if !matches!(config.region.backing.value, Backing::File(_)) {
                let _ = Plan::new(&config, machine());
            }
        }
        Err(problems) => assert!(!problems.to_string().is_empty()),
    }
});

/// Two nodes of two CPUs.
fn machine() -> &'static Topology {
    static MACHINE: OnceLock<Topology> = OnceLock::new();
    MACHINE.get_or_init(|| {
        let mut tree = Memory::default();
        for (name, text) in [("online", "0-3"), ("possible", "0-3"), ("present", "0-3")] {
            tree.set(format!("sys/devices/system/cpu/{name}"), text);
        }
        for (node, cpus) in [(0, "0-1"), (1, "2-3")] {
            let dir = format!("sys/devices/system/node/node{node}");
            tree.set(format!("{dir}/cpulist"), cpus);
            let memory =
                format!("Node {node} MemTotal: 4194304 kB\nNode {node} MemFree: 4000000 kB\n");
            tree.set(format!("{dir}/meminfo"), memory);
        }
        tree.set(
            "proc/meminfo",
            "MemTotal: 8388608 kB\nMemFree: 8000000 kB\nMemAvailable: 8000000 kB\n",
        );
        Topology::read(&tree).expect("a sound machine")
    })
}
