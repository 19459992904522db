//! The machine that figures come from, and the processors to take them on.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

/// The processors of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpus {
    /// Where the measuring thread runs.
    pub first: usize,
    /// Where its partner runs: another processor, where there is one.
    pub second: Option<usize>,
}

impl Cpus {
    /// The first two processors that this process may use. They should be cores of their own, so
    /// a hyperthread of the first is taken only when there is nothing else.
    ///
    /// # Errors
    /// The kernel does not say what may be used.
    pub fn choose() -> anyhow::Result<Self> {
        let allowed = sched_getaffinity(None).context("sched_getaffinity")?;
        let all: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
        ensure!(!all.is_empty(), "this process may use no processor");
        let first = all[0];
        let siblings = siblings(first);
        let others = || all.iter().copied().filter(|&cpu| cpu != first);
        let second = others().find(|cpu| !siblings.contains(cpu)).or_else(|| others().next());
        Ok(Self { first, second })
    }

    /// Binds the calling thread to `cpu`.
    ///
    /// # Errors
    /// The kernel refuses: the processor went offline, or is not allowed.
    pub fn pin(cpu: usize) -> anyhow::Result<()> {
        let mut set = CpuSet::new();
        set.set(cpu);
        sched_setaffinity(None, &set).with_context(|| format!("pinning to CPU {cpu}"))
    }
}

/// The calling thread bound to one processor; when this is dropped it may use what it could before.
#[derive(Debug)]
pub struct Pinned {
    before: CpuSet,
}

impl Pinned {
    /// Binds the calling thread to `cpu` for a while.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn to(cpu: usize) -> anyhow::Result<Self> {
        let before = sched_getaffinity(None).context("sched_getaffinity")?;
        Cpus::pin(cpu)?;
        Ok(Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // It was allowed before; if it is no more, the thread stays where it is.
        let _ = sched_setaffinity(None, &self.before);
    }
}

/// The hyperthreads of a core, as the kernel lists them: `0,4` or `0-1`.
fn siblings(cpu: usize) -> Vec<usize> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    let list = fs::read_to_string(path).unwrap_or_default();
    let mut found = Vec::new();
    for part in list.trim().split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(from), Ok(to)) = (from.parse::<usize>(), to.parse::<usize>()) {
            found.extend((from..=to).take(CpuSet::MAX_CPU));
        }
    }
    found
}

/// What is told of the machine beside its figures.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The processor's model, as it names itself.
    pub processor: String,
    /// Processors that this process may use.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// The kernel's release.
    pub kernel: String,
    /// The hypervisor, if the processor says that there is one.
    pub virtualised: bool,
    /// Whether huge pages are given without being asked for.
    pub transparent_hugepage: String,
    /// How busy the machine was when the run began: the load of the last minute.
    pub load: f64,
    /// The same of the moment before: percent of all processors' time, 0 at rest.
    pub busy: f64,
}

/// How long the machine is watched before a run.
const WATCH: Duration = Duration::from_millis(500);

impl Machine {
    /// Looks at this machine, for a moment. What cannot be found out is empty or 0.
    pub fn describe() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let value = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, v)| v.trim().to_owned())
        };
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = meminfo
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
        let loadavg = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let thp = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        Self {
            processor: value("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cpus: sched_getaffinity(None).map_or(0, |set| set.count()),
            memory: kib.and_then(|kib| kib.parse().ok()).map_or(0, |kib: u64| kib * 1024),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            virtualised: value("flags").is_some_and(|f| f.split(' ').any(|f| f == "hypervisor")),
            transparent_hugepage: thp.unwrap_or_default().trim().to_owned(),
            load: loadavg.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
            busy: busy(WATCH),
        }
    }

    /// One line for the reader of a table.
    pub fn quiet(&self) -> String {
        let (load, busy) = (self.load, self.busy);
        let word = if busy < QUIET { "at rest" } else { "busy with other work" };
        format!(
            "the machine was {word} before this run: {busy:.0} % of its CPU time, load {load:.1}"
        )
    }
}

/// Percent of CPU time below which a machine is at rest.
const QUIET: f64 = 5.0;

/// Percent of all processors' time that is used for something during `watch`.
fn busy(watch: Duration) -> f64 {
    let before = cpu_times();
    std::thread::sleep(watch);
    let (after, Some(before)) = (cpu_times(), before) else { return 0.0 };
    after.map_or(0.0, |(idle, all)| {
        let all = all.saturating_sub(before.1).max(1) as f64;
        100.0 * (1.0 - idle.saturating_sub(before.0) as f64 / all).max(0.0)
    })
}

/// Ticks that all processors were idle or waited for disks, and ticks in all.
fn cpu_times() -> Option<(u64, u64)> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let ticks = stat.lines().next()?.split_whitespace().skip(1);
    // What guests take (the last two) is in the others already.
    let ticks: Vec<u64> = ticks.take(8).map_while(|ticks| ticks.parse().ok()).collect();
    Some((ticks.get(3)? + ticks.get(4)?, ticks.iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let machine = Machine::describe();
        assert!(machine.cpus >= 1 && machine.memory > 1 << 20, "{machine:?}");
        assert!(!machine.kernel.is_empty() && !machine.processor.is_empty());
        assert!((0.0..=100.0).contains(&machine.busy), "{machine:?}");
    }

    #[test]
    fn work_is_noticed() {
        let spun = std::thread::spawn(|| {
            let started = std::time::Instant::now();
            while started.elapsed() < 2 * WATCH {
                std::hint::spin_loop();
            }
        });
        assert!(busy(WATCH) > 100.0 / 4.0 / processors());
        spun.join().unwrap();
    }

    fn processors() -> f64 {
        std::thread::available_parallelism().map_or(1, usize::from) as f64
    }

    #[test]
    fn a_thread_can_be_pinned_to_what_was_chosen() {
        let cpus = Cpus::choose().unwrap();
        let pinned = std::thread::spawn(move || {
            Cpus::pin(cpus.first).unwrap();
            sched_getaffinity(None).unwrap().count()
        });
        assert_eq!(pinned.join().unwrap(), 1);
        assert_ne!(Some(cpus.first), cpus.second);
    }
}
