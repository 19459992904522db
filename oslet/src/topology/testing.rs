//! Captured machines for tests.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::{Memory, Topology};

/// Every captured machine, by the name of its archive.
pub(crate) const MACHINES: [&str; 14] = [
    "16amd64-8n2c",
    "16amd64-8n2c-cpusets",
    "16em64t-4s2c2t-offlines",
    "20em64t-hybrid-1p6c2t+2ca4co1t",
    "256ppc-8n8s4t",
    "2arm-2c",
    "2i386-2t-hugepagesizecount",
    "32amd64-4s2n4c-cgroup2",
    "32em64t-2n8c+dax+nvme+mic+dimms",
    "64amd64-4s2n4ca2co",
    "8em64t-2s2ca2c-buggynuma",
    "96em64t-4no4pa3ca2co",
    "nvidiagpunumanodes",
    "offline-cpu0-node0",
];

/// `OSLET_TOPOLOGIES`, or the copies in the repository.
fn archives() -> PathBuf {
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/topologies");
    std::env::var_os("OSLET_TOPOLOGIES").map_or_else(here, PathBuf::from)
}

/// The files of a captured machine that a reader may want, without what no reader looks at.
pub(crate) fn capture(machine: &str) -> Memory {
    let path = archives().join(format!("{machine}.tar.bz2"));
    let packed = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut archive = tar::Archive::new(bzip2_rs::DecoderReader::new(packed));
    let mut tree = Memory::default();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        let Some((_, path)) = path.split_once('/') else { continue };
        let unread = ["proc/device-tree", "sys/bus", "sys/class", "sys/devices/pci"];
        if !entry.header().entry_type().is_file() || unread.iter().any(|dir| path.starts_with(dir))
        {
            continue;
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        tree.set(path, String::from_utf8_lossy(&bytes));
    }
    tree
}

/// A captured machine, read.
pub(crate) fn machine(name: &str) -> Topology {
    Topology::read(&capture(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A captured machine as it is for a process that nothing restricts.
pub(crate) fn unrestricted(name: &str) -> Topology {
    let mut tree = capture(name);
    tree.files.retain(|path, _| !path.starts_with("proc/self/"));
    tree.files.retain(|path, _| !path.contains("mounts") || !path.starts_with("proc/"));
    Topology::read(&tree).unwrap_or_else(|error| panic!("{name}: {error}"))
}
