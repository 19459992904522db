//! Where requests that are read from /dev/fuse are served: where their callers run.
//!
//! On its caller's CPU a request takes a few microseconds; on another one it takes two wake-ups of
//! CPUs that may be asleep or busy. The kernel gives a request to the thread that has waited
//! longest, wherever that is bound, so all of them have to be in the right place. Each one looks
//! now and then where the caller is that it has served, and goes there. Of callers on several CPUs
//! each is followed by as many threads, on the average, as ask from there.
//!
//! Who serves must not wait for a caller. `sched_getaffinity` takes no lock that is held while
//! anything is waited for, and tells where a bound caller is. Of others `/proc/PID/stat` tells it.
//! Reading that waits for execve(2), and execve for FLUSH of files that it closes: another thread
//! looks there ([`Looker`]). A caller that is not bound is followed if it stays: on a machine that
//! has nothing else to do the kernel wakes it on another CPU than the one that answers, wherever
//! that is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

use super::waits::Waits;

/// Requests of one caller from one look to the next.
const LOOK_EVERY: u32 = 32;
/// How long a thread stays where it went: going takes as long as two requests.
const STAY: Duration = Duration::from_millis(5);
/// Between two looks of the thread that looks, which take as long as some requests.
const LOOKER_REST: Duration = Duration::from_millis(10);
/// Callers that it remembers.
const CALLERS: usize = 64;
/// Looks at a caller that have found it on the same CPU: it stays there.
const STAYS: u32 = 3;
/// How long a session that ends waits for that thread, which may wait for a caller.
const LOOKER_END: Duration = Duration::from_secs(1);
/// The processor among the fields of `/proc/PID/stat`, counted from the one behind the name.
const PROCESSOR: usize = 36;

/// The place of one thread.
pub(super) struct Place {
    /// Where it may be; empty: anywhere, and it is not bound.
    cpus: Arc<[usize]>,
    looker: Option<Arc<Looker>>,
    /// Where it is without callers to follow, so that threads are spread.
    home: Option<usize>,
    cpu: Option<usize>,
    moved: Option<Instant>,
    caller: u32,
    /// Requests of that caller since it was looked at.
    served: u32,
}

impl Place {
    /// The calling thread, the `index`th of those that serve callers on `cpus`, is bound to one of
    /// these.
    pub(super) fn new(cpus: Arc<[usize]>, index: usize, looker: Option<Arc<Looker>>) -> Self {
        let home = cpus.get(index % cpus.len().max(1)).copied();
        let mut place = Self { cpus, looker, home, cpu: None, moved: None, caller: 0, served: 0 };
        if let Some(cpu) = home {
            place.go(cpu);
        }
        place
    }

    /// A request of that thread was served.
    pub(super) fn follow(&mut self, caller: u32) {
        // 0 is the kernel, or somebody outside the PID namespace.
        if caller == 0 || self.cpus.len() < 2 {
            return;
        }
        self.served += 1;
        if caller == self.caller && self.served < LOOK_EVERY {
            return;
        }
        (self.caller, self.served) = (caller, 0);
        let Some(looker) = &self.looker else { return };
        let cpu = match looker.bound_to(caller, &self.cpus) {
            None => looker.seen_on(caller),
            bound => Seen::On(bound),
        };
        let cpu = match cpu {
            Seen::Not => return,
            Seen::On(cpu) => cpu.or(self.home),
        };
        if let Some(cpu) = cpu.filter(|cpu| Some(*cpu) != self.cpu && self.cpus.contains(cpu))
            && self.moved.is_none_or(|moved| moved.elapsed() >= STAY)
        {
            self.go(cpu);
            self.moved = Some(Instant::now());
        }
    }

    /// A CPU that has gone offline since is no reason not to serve.
    fn go(&mut self, cpu: usize) {
        if cpu < CpuSet::MAX_CPU {
            let mut set = CpuSet::new();
            set.set(cpu);
            let _ = sched_setaffinity(None, &set);
            self.cpu = Some(cpu);
        }
    }
}

/// A thread that looks where callers run. It may wait for any of them, for as long as it takes:
/// nobody waits for it.
pub(super) struct Looker {
    waits: Arc<Waits>,
    started: Instant,
    /// Whom to look at next; 0: nobody.
    asked: AtomicU32,
    /// Milliseconds from the start to when it may be asked again.
    next: AtomicU64,
    /// Whom it saw last, and above that on which CPU, plus one; zero for one that does not stay.
    seen: AtomicU64,
    stopping: AtomicBool,
    thread: OnceLock<Thread>,
}

/// What is known of a caller.
enum Seen {
    /// Nothing.
    Not,
    /// It stays on that CPU, or on none.
    On(Option<usize>),
}

/// The thread.
pub(super) struct Looking {
    looker: Arc<Looker>,
    thread: JoinHandle<()>,
}

impl Looking {
    pub(super) fn start(waits: &Arc<Waits>) -> std::io::Result<Self> {
        let looker = Arc::new(Looker {
            waits: Arc::clone(waits),
            started: Instant::now(),
            asked: AtomicU32::new(0),
            next: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            thread: OnceLock::new(),
        });
        let looks = Arc::clone(&looker);
        let run = move || looks.run();
        let thread = thread::Builder::new().name("fuse-look".into()).spawn(run)?;
        let _ = looker.thread.set(thread.thread().clone());
        Ok(Self { looker, thread })
    }

    pub(super) fn looker(&self) -> Arc<Looker> {
        Arc::clone(&self.looker)
    }

    /// Ends the thread. One that waits for a caller ends by itself, when that goes on: the requests
    /// of this mount that it waits for have been answered by now, or have failed.
    pub(super) fn stop(self) {
        self.looker.stopping.store(true, Ordering::Release);
        self.thread.thread().unpark();
        let until = Instant::now() + LOOKER_END;
        while !self.thread.is_finished() {
            if Instant::now() > until {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        // A panic has been reported by the hook.
        let _ = self.thread.join();
    }
}

impl Looker {
    /// The only CPU of these that a thread may run on, if it is bound to one.
    fn bound_to(&self, caller: u32, cpus: &[usize]) -> Option<usize> {
        if !self.waits.are_callers_ours() {
            return None;
        }
        let pid = Pid::from_raw(i32::try_from(caller).ok()?)?;
        let set = sched_getaffinity(Some(pid)).ok()?;
        let mut allowed = cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU && set.is_set(**cpu));
        allowed.next().filter(|_| allowed.next().is_none()).copied()
    }

    /// Where it was seen; has it looked at now and then.
    fn seen_on(&self, caller: u32) -> Seen {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        if now >= self.next.load(Ordering::Relaxed) {
            self.next.store(now + LOOKER_REST.as_millis() as u64, Ordering::Relaxed);
            // Else it has not come to look yet, and may be waiting for somebody.
            if self.asked.swap(caller, Ordering::AcqRel) == 0 {
                self.thread.get().inspect(|thread| thread.unpark());
            }
        }
        let seen = self.seen.load(Ordering::Acquire);
        match seen as u32 == caller {
            true => Seen::On(((seen >> 32) as usize).checked_sub(1)),
            false => Seen::Not,
        }
    }

    fn run(&self) {
        let mut callers = HashMap::new();
        while !self.stopping.load(Ordering::Acquire) {
            let caller = self.asked.load(Ordering::Acquire);
            if caller == 0 {
                thread::park();
                continue;
            }
            if let Some(cpu) = self.waits.stat_of(caller).and_then(|stat| processor(&stat)) {
                let stays = stays(&mut callers, caller, cpu);
                let place = if stays { u64::from(cpu) + 1 } else { 0 };
                self.seen.store(place << 32 | u64::from(caller), Ordering::Release);
            }
            self.asked.store(0, Ordering::Release);
        }
    }
}

/// Notes where a caller is; whether it was there the last times too.
fn stays(callers: &mut HashMap<u32, (u32, u32)>, caller: u32, cpu: u32) -> bool {
    if callers.len() >= CALLERS && !callers.contains_key(&caller) {
        callers.clear();
    }
    let (last, times) = callers.entry(caller).or_insert((cpu, 0));
    *times = if *last == cpu { *times + 1 } else { 1 };
    *last = cpu;
    *times >= STAYS
}

/// The processor in a `/proc/PID/stat`. A name may hold whatever it likes.
fn processor(stat: &[u8]) -> Option<u32> {
    let name = stat.iter().rposition(|byte| *byte == b')')?;
    let fields = std::str::from_utf8(&stat[name + 1..]).ok()?;
    fields.split_ascii_whitespace().nth(PROCESSOR)?.parse().ok()
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
    fn who_comes_and_goes_does_not_stay() {
        let mut callers = HashMap::new();
        let mut seen = |cpu| stays(&mut callers, 7, cpu);
        assert_eq!([0, 0, 0, 0, 1, 0, 0, 0].map(&mut seen), {
            [false, false, true, true, false, false, false, true]
        });
        for other in 8..8 + 2 * CALLERS as u32 {
            assert!(!stays(&mut callers, other, 0));
            assert!(callers.len() <= CALLERS);
        }
    }
}
