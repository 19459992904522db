//! NUMA nodes, their memory, and huge pages.

use std::collections::BTreeMap;

use super::{CpuSet, HugePages, MemoryInfo, Node, NodeSet, Tree, id_set, number, numbered, warn};

const NODES: &str = "sys/devices/system/node";

/// The online nodes, ascending. Where the kernel knows none: one, with all CPUs and all memory.
/// Fills in the machine's memory from the nodes where /proc did not tell it.
pub(super) fn read(
    tree: &dyn Tree,
    online: &CpuSet,
    memory: &mut MemoryInfo,
    warnings: &mut Vec<String>,
) -> Vec<Node> {
    let directories = numbered(tree, NODES, "node");
    let ids = match id_set(tree, &format!("{NODES}/online"), None, warnings) {
        Some(listed) => {
            let missing = listed.minus(&directories);
            if !missing.is_empty() {
                warn(
                    warnings,
                    format!("{NODES}/online names nodes {missing} that are not there; ignored"),
                );
            }
            listed.and(&directories)
        }
        None => directories,
    };
    let mut nodes: Vec<Node> = ids.iter().map(|id| one(tree, id, online, warnings)).collect();
    distances(tree, &ids, &mut nodes, warnings);
    if nodes.is_empty() {
        nodes.push(Node {
            id: 0,
            cpus: online.clone(),
            total: memory.total,
            free: memory.available,
            distance: BTreeMap::from([(0, 10)]),
            huge_pages: Vec::new(),
        });
    }
    let sum = |part: fn(&Node) -> u64| nodes.iter().map(part).fold(0, u64::saturating_add);
    if memory.total == 0 {
        *memory =
            MemoryInfo { total: sum(|n| n.total), available: sum(|n| n.free), cgroup_left: None };
    }
    nodes
}

fn one(tree: &dyn Tree, id: u32, online: &CpuSet, warnings: &mut Vec<String>) -> Node {
    let dir = format!("{NODES}/node{id}");
    let cpus = id_set(tree, &format!("{dir}/cpulist"), Some(&format!("{dir}/cpumap")), warnings);
    let table = tree.read(&format!("{dir}/meminfo")).unwrap_or_default();
    // Lines read "Node 0 MemTotal:  8386704 kB".
    let find = |key: &str| {
        table.lines().find_map(|line| kilobytes(line.trim().splitn(3, ' ').nth(2)?.trim(), key))
    };
    Node {
        id,
        cpus: cpus.unwrap_or_default().and(online),
        total: find("MemTotal").unwrap_or(0),
        free: find("MemFree").unwrap_or(0),
        distance: BTreeMap::new(),
        huge_pages: huge_pages(tree, &format!("{dir}/hugepages")),
    }
}

/// Each node has a row with a column for each online node, ascending. A kernel that has taken a
/// node offline may still print its column: then the columns are those of the possible nodes.
fn distances(tree: &dyn Tree, ids: &NodeSet, nodes: &mut [Node], warnings: &mut Vec<String>) {
    let possible = id_set(tree, &format!("{NODES}/possible"), None, warnings).unwrap_or_default();
    let listed = id_set(tree, &format!("{NODES}/online"), None, warnings).unwrap_or_default();
    for node in nodes {
        let Some(text) = tree.read(&format!("{NODES}/node{}/distance", node.id)) else { continue };
        let row: Option<Vec<u32>> = text
            .split_ascii_whitespace()
            .map(|word| word.parse().ok().filter(|&d| d <= 255))
            .collect();
        let columns =
            |row: &Vec<u32>| [ids, &listed, &possible].into_iter().find(|c| c.len() == row.len());
        match row.as_ref().and_then(|row| Some((row, columns(row)?))) {
            Some((row, columns)) => {
                node.distance = columns.iter().zip(row.iter().copied()).collect()
            }
            None => warn(
                warnings,
                format!("{NODES}/node{}/distance does not fit nodes {ids}; ignored", node.id),
            ),
        }
    }
}

/// Memory as /proc/meminfo tells it; zero where there is no such file.
pub(super) fn memory_info(tree: &dyn Tree) -> MemoryInfo {
    let table = tree.read("proc/meminfo").unwrap_or_default();
    let find = |key: &str| table.lines().find_map(|line| kilobytes(line, key));
    // Kernels before 3.14 do not tell what is available; the page cache is a fair guess.
    let guess = || {
        ["MemFree", "Buffers", "Cached"]
            .iter()
            .filter_map(|key| find(key))
            .fold(0, u64::saturating_add)
    };
    let total = find("MemTotal").unwrap_or(0);
    let available = find("MemAvailable").unwrap_or_else(guess).min(total);
    MemoryInfo { total, available, cgroup_left: None }
}

/// The bytes of a line `Key:   123 kB`, if that is its key.
fn kilobytes(line: &str, key: &str) -> Option<u64> {
    let rest = line.strip_prefix(key)?.strip_prefix(':')?;
    rest.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The pools below a directory of `hugepages-2048kB` and the like, smallest pages first.
pub(super) fn huge_pages(tree: &dyn Tree, dir: &str) -> Vec<HugePages> {
    let mut pools: Vec<HugePages> = tree
        .list(dir)
        .iter()
        .filter_map(|name| {
            let size = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()?;
            let count = |file: &str| number::<u64>(tree, &format!("{dir}/{name}/{file}"));
            let total = count("nr_hugepages")?;
            let free = count("free_hugepages").unwrap_or(0);
            Some(HugePages { size: size.checked_mul(1024)?, total, free })
        })
        .collect();
    pools.sort_by_key(|pool| pool.size);
    pools
}
