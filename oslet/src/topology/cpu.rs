//! CPUs, cores, caches and kinds of cores.

use std::collections::BTreeMap;

use super::{Cpu, CpuSet, Tree, id_set, number, numbered, warn};
use crate::error::{Error, Result};

const CPUS: &str = "sys/devices/system/cpu";
/// Cache descriptions of one CPU that are looked at.
const MAX_CACHES: u32 = 16;

/// The possible and the online CPUs.
pub(super) fn present(tree: &dyn Tree, warnings: &mut Vec<String>) -> Result<(CpuSet, CpuSet)> {
    let directories = numbered(tree, CPUS, "cpu");
    let switched_on =
        |cpu: &u32| tree.read(&format!("{CPUS}/cpu{cpu}/online")).is_none_or(|t| t.trim() != "0");
    let online = match id_set(tree, &format!("{CPUS}/online"), None, warnings) {
        Some(online) if !online.is_empty() => online,
        _ => directories.iter().filter(switched_on).collect(),
    };
    if online.is_empty() {
        return Err(Error::Invalid(format!("{}: no online CPU in {CPUS}", tree.name())));
    }
    let possible = id_set(tree, &format!("{CPUS}/possible"), None, warnings).unwrap_or_default();
    Ok((possible.or(&online).or(&directories), online))
}

/// What is known of each online CPU.
pub(super) fn read(
    tree: &dyn Tree,
    online: &CpuSet,
    warnings: &mut Vec<String>,
) -> BTreeMap<u32, Cpu> {
    let mut cpus: BTreeMap<u32, Cpu> =
        online.iter().map(|cpu| (cpu, one(tree, cpu, online, warnings))).collect();
    unify(&mut cpus, |cpu| &mut cpu.core);
    unify(&mut cpus, |cpu| &mut cpu.cluster);
    unify(&mut cpus, |cpu| &mut cpu.cache2);
    unify(&mut cpus, |cpu| &mut cpu.last_cache);
    for (cpu, class) in classes(tree, online, warnings) {
        if let Some(cpu) = cpus.get_mut(&cpu) {
            cpu.class = class;
        }
    }
    cpus
}

fn one(tree: &dyn Tree, cpu: u32, online: &CpuSet, warnings: &mut Vec<String>) -> Cpu {
    let dir = format!("{CPUS}/cpu{cpu}/topology");
    // Numbers that the platform does not know read as -1.
    let id = |name: &str| {
        number::<i64>(tree, &format!("{dir}/{name}")).and_then(|id| u32::try_from(id).ok())
    };
    let mut sharing = |list: String, mask: String| {
        let set = id_set(tree, &list, Some(&mask), warnings).unwrap_or_default().and(online);
        set.first().map_or(cpu, |first| first.min(cpu))
    };
    let mut siblings = |name: &str| sharing(format!("{dir}/{name}_list"), format!("{dir}/{name}"));
    let core = siblings("core_cpus").min(siblings("thread_siblings"));
    let cluster = siblings("cluster_cpus");
    let (mut cache2, mut last_cache, mut last_level) = (core, core, 0);
    for index in 0..MAX_CACHES {
        let dir = format!("{CPUS}/cpu{cpu}/cache/index{index}");
        let Some(level) = number::<u8>(tree, &format!("{dir}/level")) else { break };
        let first = sharing(format!("{dir}/shared_cpu_list"), format!("{dir}/shared_cpu_map"));
        if level == 2 {
            cache2 = first;
        }
        if level >= 2 && level >= last_level {
            (last_level, last_cache) = (level, first);
        }
    }
    Cpu {
        package: id("physical_package_id"),
        die: id("die_id"),
        last_cache,
        cache2,
        cluster,
        core,
        class: 0,
    }
}

/// Makes "points at the same CPU" transitive: in contradictory tables CPU 3 may say that it shares
/// with 2, and 2 that it shares with 0.
fn unify(cpus: &mut BTreeMap<u32, Cpu>, mut field: impl FnMut(&mut Cpu) -> &mut u32) {
    let order: Vec<u32> = cpus.keys().copied().collect();
    // A CPU points at itself or a smaller one, whose own pointer is final when this one's turn
    // comes.
    for id in order {
        let target = cpus.get_mut(&id).map_or(id, |cpu| *field(cpu));
        let root = cpus.get_mut(&target).map_or(target, |cpu| *field(cpu));
        if let Some(cpu) = cpus.get_mut(&id) {
            *field(cpu) = root;
        }
    }
}

/// The kind of each CPU's core, where there are several kinds.
///
/// The first that tells them apart: the performance-monitoring devices of hybrid x86, the
/// scheduler's capacity, the guaranteed frequency, the nominal performance (ACPI CPPC), the highest
/// frequency (which alone differs between equal cores by their quality, hence the tolerance).
fn classes(tree: &dyn Tree, online: &CpuSet, warnings: &mut Vec<String>) -> BTreeMap<u32, u8> {
    let mut pmu = |name: &str| {
        let path = format!("sys/devices/{name}/cpus");
        id_set(tree, &path, None, warnings).unwrap_or_default().and(online)
    };
    let (fast, slow, slowest) = (pmu("cpu_core"), pmu("cpu_atom"), pmu("cpu_lowpower"));
    if !fast.is_empty() && !slow.or(&slowest).is_empty() {
        let class = |cpu| if fast.contains(cpu) { 0 } else { 1 + u8::from(slowest.contains(cpu)) };
        return online.iter().map(|cpu| (cpu, class(cpu))).collect();
    }
    let sources = [
        "cpu_capacity",
        "cpufreq/base_frequency",
        "acpi_cppc/nominal_perf",
        "cpufreq/cpuinfo_max_freq",
    ];
    for source in sources {
        let value = |cpu| number::<u64>(tree, &format!("{CPUS}/cpu{cpu}/{source}"));
        let values: Option<BTreeMap<u32, u64>> =
            online.iter().map(|cpu| Some((cpu, value(cpu)?))).collect();
        let Some(values) = values else { continue };
        let classes = graded(&values);
        if classes.values().any(|&class| class > 0) {
            if classes.values().any(|&class| usize::from(class) >= MAX_CLASSES) {
                warn(
                    warnings,
                    format!(
                        "{CPUS}/cpu*/{source}: more than {MAX_CLASSES} kinds of cores; ignored"
                    ),
                );
                continue;
            }
            return classes;
        }
    }
    BTreeMap::new()
}

/// Kinds of cores that are told apart.
const MAX_CLASSES: usize = 4;

/// Values within 15 % of the best of their class are one class.
fn graded(values: &BTreeMap<u32, u64>) -> BTreeMap<u32, u8> {
    let mut sorted: Vec<(u64, u32)> = values.iter().map(|(&cpu, &value)| (value, cpu)).collect();
    sorted.sort_by_key(|&(value, cpu)| (std::cmp::Reverse(value), cpu));
    let (mut best, mut class) = (sorted.first().map_or(0, |first| first.0), 0u8);
    let mut classes = BTreeMap::new();
    for (value, cpu) in sorted {
        if u128::from(value) * 100 < u128::from(best) * 85 {
            (best, class) = (value, class.saturating_add(1));
        }
        classes.insert(cpu, class);
    }
    classes
}
