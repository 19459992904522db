//! Where requests that are read from /dev/fuse are served: on the CPUs that they come from.
//!
//! On its caller's CPU a request takes a few microseconds; on another one it takes two wake-ups of
//! CPUs that may be asleep. The kernel gives a request to the thread that has waited longest,
//! wherever that is bound, so all of them have to be in the right place: each one looks now and
//! then where the caller of the request in its hand was running, and goes there. Of callers on
//! several CPUs each is followed by as many threads, on the average, as ask from there.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::thread::CpuSet;

use super::waits::Waits;

/// Requests that a thread serves from one look to the next, which takes as long as one of them.
const REQUESTS: u32 = 32;
/// Where there are few, it looks after this time.
const INTERVAL: Duration = Duration::from_millis(50);
/// Bytes of a `/proc/PID/stat`; a name has 15, and numbers have 20.
const STAT_LEN: usize = 1280;
/// The processor among its fields, counted from the one behind the name.
const PROCESSOR: usize = 36;

/// The place of one thread.
pub(super) struct Place<'s> {
    /// Where it may be.
    cpus: &'s [usize],
    cpu: usize,
    served: u32,
    looked: Instant,
    /// Who was looked at last.
    caller: Option<(u32, File)>,
}

impl<'s> Place<'s> {
    /// Binds the calling thread to the `index`th of these CPUs, and to others of them later on.
    /// Without any it is nowhere bound.
    pub(super) fn new(cpus: &'s [usize], index: usize) -> Self {
        let cpu = cpus.get(index % cpus.len().max(1)).copied();
        let place = Self {
            cpus,
            cpu: cpu.unwrap_or_default(),
            // The first request tells.
            served: REQUESTS,
            looked: Instant::now(),
            caller: None,
        };
        if cpu.is_some() {
            bind(place.cpu);
        }
        place
    }

    /// A request of that caller is about to be served. While it waits for the answer it does not
    /// run, and does not end: who reads of a process that ends may have to take its memory apart,
    /// with mappings of files of this very mount.
    pub(super) fn follow(&mut self, pid: u32, waits: &Waits) {
        // 0 is the kernel, for nobody who waits.
        if pid == 0 || self.cpus.len() < 2 {
            return;
        }
        self.served += 1;
        if self.served < REQUESTS && self.looked.elapsed() < INTERVAL {
            return;
        }
        self.served = 0;
        self.looked = Instant::now();
        let cpu = self.cpu_of(pid, waits);
        if let Some(cpu) = cpu.filter(|cpu| *cpu != self.cpu && self.cpus.contains(cpu)) {
            self.cpu = cpu;
            bind(cpu);
        }
    }

    /// Where a thread runs or last ran.
    fn cpu_of(&mut self, pid: u32, waits: &Waits) -> Option<usize> {
        if let Some((known, file)) = &self.caller
            && *known == pid
        {
            // Of a thread that has ended nothing can be read, whoever has its number now.
            if let Some(cpu) = read(file) {
                return Some(cpu);
            }
        }
        let file = waits.proc_of(pid, "stat")?;
        let cpu = read(&file);
        self.caller = Some((pid, file));
        cpu
    }
}

fn read(stat: &File) -> Option<usize> {
    let mut bytes = [0; STAT_LEN];
    let len = stat.read_at(&mut bytes, 0).ok()?;
    processor(&bytes[..len])
}

/// The processor in a `/proc/PID/stat`. A name may hold whatever it likes.
fn processor(stat: &[u8]) -> Option<usize> {
    let name = stat.iter().rposition(|byte| *byte == b')')?;
    let fields = std::str::from_utf8(&stat[name + 1..]).ok()?;
    fields.split_ascii_whitespace().nth(PROCESSOR)?.parse().ok()
}

/// Binds the calling thread. A CPU that has gone offline since is no reason not to serve.
fn bind(cpu: usize) {
    if cpu < CpuSet::MAX_CPU {
        let mut set = CpuSet::new();
        set.set(cpu);
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_found_behind_any_name() {
        let fields: Vec<String> = (4..53).map(|field| field.to_string()).collect();
        let stat = |name: &str| format!("17 ({name}) S {}\n", fields.join(" "));
        for name in ["cat", ") R 1 2 3", "a (b) c)", ""] {
            assert_eq!(processor(stat(name).as_bytes()), Some(39), "{name}");
        }
        for short in ["", "17 (cat", "17 (cat) S 4 5", "17 (cat) S -1"] {
            assert_eq!(processor(short.as_bytes()), None, "{short}");
        }
    }

    #[test]
    fn this_thread_is_where_it_is_bound() {
        std::thread::spawn(|| {
            let all = rustix::thread::sched_getaffinity(None).unwrap();
            let waits = Waits::new();
            for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)) {
                bind(cpu);
                let mut place = Place::new(&[], 0);
                let me = rustix::thread::gettid().as_raw_pid().cast_unsigned();
                assert_eq!(place.cpu_of(me, &waits), Some(cpu));
                // Once more by what is kept.
                assert_eq!(place.cpu_of(me, &waits), Some(cpu));
            }
        })
        .join()
        .unwrap();
    }
}
