//! The text of a machine's /sys and /proc (path and contents in turn, each ended by a zero byte),
//! and its division among OSlets.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oslet::config::{Config, Overrides};
use oslet::partition;
use oslet::plan::Plan;
use oslet::topology::{CpuSet, Memory, Topology};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let _ = CpuSet::parse_list(&text);
    let _ = CpuSet::parse_mask(&text);
    let mut tree = Memory::default();
    let mut parts = text.split('\0');
    while let (Some(path), Some(text)) = (parts.next(), parts.next()) {
        tree.set(path, text);
    }
    let Ok(topology) = Topology::read(&tree) else { return };
    for count in [1, 2, 7, 64] {
        let parts = partition::divide(&topology, &topology.allowed, count);
        assert_eq!(parts.len(), count);
        let all = parts.iter().fold(CpuSet::default(), |all, part| all.or(part));
        assert!(all.is_subset(&topology.allowed), "{all} of {}", topology.allowed);
    }
    let overrides = Overrides { oslets: Some(2), ..Overrides::default() };
    let config = Config::embedded(&overrides).expect("two OSlets");
    let _ = Plan::new(&config, &topology);
});
