//! What a set of processes costs: CPU time over a while, and memory counted once.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

/// Percent of one CPU that the processes used together during `interval`.
///
/// The kernel counts in ticks of 10 ms or so: an interval of ten seconds resolves 0.1 %.
///
/// # Errors
/// One of them is not there, or ended meanwhile: then there is no figure.
pub fn cpu_percent(pids: &[u32], interval: Duration) -> anyhow::Result<f64> {
    ensure!(!interval.is_zero(), "an interval of no length has no CPU time");
    let before = cpu_time(pids)?;
    let started = Instant::now();
    thread::sleep(interval);
    let elapsed = started.elapsed();
    let used = cpu_time(pids)?.saturating_sub(before);
    Ok(100.0 * used.as_secs_f64() / elapsed.as_secs_f64())
}

/// CPU time, user and system, that the processes have used since they began.
///
/// # Errors
/// One of them is not there.
pub fn cpu_time(pids: &[u32]) -> anyhow::Result<Duration> {
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let mut ticks: u64 = 0;
    for pid in pids {
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
        // The name in parentheses may hold anything; fields 14 and 15 follow its end.
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
        let mut fields = fields.split_whitespace().skip(11).map(str::parse::<u64>);
        let (user, system) = (fields.next(), fields.next());
        let (Some(Ok(user)), Some(Ok(system))) = (user, system) else {
            anyhow::bail!("{path}: no CPU times in it");
        };
        ticks = ticks.saturating_add(user).saturating_add(system);
    }
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

/// Memory of a set of processes, in bytes, each page counted once.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Memory {
    /// Pages of no file: heaps and stacks.
    pub anonymous: u64,
    /// Page tables of all the processes.
    pub page_tables: u64,
    /// Pages allocated to the shared-memory files that any of them has open, mapped or not.
    pub shared_files: u64,
    /// Mapped file pages of any kind, by proportional share: shows what is mapped, and overlaps
    /// with `shared_files`.
    pub mapped_files: u64,
}

impl Memory {
    /// What would be free if the processes were not there; their programs' text is left out.
    pub fn total(&self) -> u64 {
        self.anonymous + self.page_tables + self.shared_files
    }

    /// Measures the processes.
    ///
    /// # Errors
    /// One of them is not there, or belongs to somebody else.
    pub fn of(pids: &[u32]) -> anyhow::Result<Self> {
        let mut memory = Self::default();
        let mut files = BTreeMap::new();
        for pid in pids {
            let rollup = read(*pid, "smaps_rollup")?;
            memory.anonymous += kibibytes(&rollup, "Pss_Anon:")?;
            memory.mapped_files +=
                kibibytes(&rollup, "Pss_File:")? + kibibytes(&rollup, "Pss_Shmem:")?;
            memory.page_tables += kibibytes(&read(*pid, "status")?, "VmPTE:")?;
            files.extend(shared_files(*pid)?);
        }
        memory.shared_files = files.values().sum();
        Ok(memory)
    }
}

/// The shared-memory files that a process has open or mapped: (device, inode) -> bytes allocated.
fn shared_files(pid: u32) -> anyhow::Result<BTreeMap<(u64, u64), u64>> {
    let mut found = BTreeMap::new();
    for dir in ["fd", "map_files"] {
        let dir = PathBuf::from(format!("/proc/{pid}/{dir}"));
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            // map_files is root's alone; a mapping whose descriptor is closed is then not seen.
            Err(_) if dir.ends_with("map_files") => continue,
            Err(error) => return Err(error).with_context(|| dir.display().to_string()),
        };
        for entry in entries.flatten() {
            // A descriptor closed meanwhile is no file any more.
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let name = target.to_string_lossy();
            let shared = ["/memfd:", "/dev/shm/", "/dev/hugepages/", "/dev/zero"];
            if !shared.iter().any(|prefix| name.starts_with(prefix)) {
                continue;
            }
            if let Ok(metadata) = fs::metadata(entry.path()) {
                // st_blocks counts 512 bytes whatever the block size is.
                found.insert((metadata.dev(), metadata.ino()), metadata.blocks() * 512);
            }
        }
    }
    Ok(found)
}

fn read(pid: u32, file: &str) -> anyhow::Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).context(path)
}

fn kibibytes(text: &str, field: &str) -> anyhow::Result<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(field));
    let number = value.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    Ok(number.with_context(|| format!("no {field} in /proc"))?.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};

    #[test]
    fn busy_and_idle_are_told_apart() {
        let me = [std::process::id()];
        let before = cpu_time(&me).unwrap();
        let started = Instant::now();
        let mut sum = 0_u64;
        while started.elapsed() < Duration::from_millis(300) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(cpu_time(&me).unwrap() - before >= Duration::from_millis(30));
        assert!(cpu_percent(&me, Duration::from_millis(200)).unwrap() >= 0.0);
        assert!(cpu_percent(&[u32::MAX], Duration::from_millis(1)).is_err());
    }

    #[test]
    fn a_shared_file_counts_once_however_often_it_is_open() {
        const BYTES: u64 = 8 << 20;
        let file = memfd_create("bench-test", MemfdFlags::CLOEXEC).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, BYTES).unwrap();
        let id = rustix::fs::fstat(&file).unwrap();
        let _again = file.try_clone().unwrap();
        let files = shared_files(std::process::id()).unwrap();
        assert_eq!(files.get(&(id.st_dev, id.st_ino)), Some(&BYTES));
        let memory = Memory::of(&[std::process::id(), std::process::id()]).unwrap();
        assert!(memory.shared_files >= BYTES && memory.page_tables > 0, "{memory:?}");
        assert!(memory.total() >= BYTES + memory.page_tables);
    }
}
