//! Requests that have to wait: for a device, or for another OSlet.
//!
//! A thread that waits serves nobody, so of the threads that take requests one always stays free.
//! The others may wait themselves, which is the quickest way; what they must not wait for goes to
//! threads made for it, as many as there are such requests, up to a bound.
//!
//! # Callers that are killed
//!
//! The kernel tells once of a signal that a caller got (FUSE_INTERRUPT), whatever the signal, and
//! lets nobody go whose request is in hand. Programs do not expect EINTR from a disk's filesystem,
//! so only those that are being killed get it: from then on they are watched until they are
//! answered.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use super::notify;
use super::ops::{NodeId, Request};
use super::reply::Reply;
use super::session::{Guard, Shared};

/// Threads that wait; further requests wait for one of them.
const MAX_THREADS: usize = 64;
/// How long one without work stays.
const IDLE: Duration = Duration::from_secs(5);
/// Between looks at callers that got a signal.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);
/// Interruptions remembered that came before their request was registered.
const EARLY: usize = 256;

type Job = Box<dyn FnOnce() + Send>;

/// The waiting requests of one session.
pub struct Waits {
    state: Mutex<State>,
    changed: Condvar,
    session: OnceLock<Weak<Shared>>,
    /// A proc filesystem of the PID namespace that callers are numbered in.
    proc: Mutex<PathBuf>,
    /// They are numbered as they are here.
    ours: AtomicBool,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
    /// Threads that take requests and may wait, and those of them that do.
    takers: usize,
    blocked: usize,
    stopping: bool,
    waiting: HashMap<u64, Waiter>,
    early: VecDeque<u64>,
    watched: bool,
}

struct Waiter {
    pid: u32,
    interrupted: bool,
    reply: Arc<dyn Refuse>,
}

trait Refuse: Send + Sync {
    fn refuse(&self, errno: Errno);
}

impl<K> Refuse for Mutex<Option<Reply<K>>> {
    fn refuse(&self, errno: Errno) {
        let reply = self.lock().take();
        if let Some(reply) = reply {
            reply.error(errno);
        }
    }
}

/// The obligation to answer a request that waits, unless its caller was let go meanwhile.
pub struct Held<K> {
    reply: Arc<Mutex<Option<Reply<K>>>>,
    unique: u64,
    waits: Arc<Waits>,
}

impl<K> Held<K> {
    /// To answer now. `None`: nobody waits any more.
    pub fn take(self) -> Option<Reply<K>> {
        self.reply.lock().take()
    }
}

impl<K> Drop for Held<K> {
    fn drop(&mut self) {
        self.waits.state.lock().waiting.remove(&self.unique);
    }
}

impl Waits {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            session: OnceLock::new(),
            proc: Mutex::new("/proc".into()),
            ours: AtomicBool::new(true),
        })
    }

    pub(super) fn set_proc(&self, proc: PathBuf) {
        *self.proc.lock() = proc;
        self.ours.store(false, Ordering::Release);
    }

    /// Whether callers have the numbers that they have for this process.
    pub(super) fn are_callers_ours(&self) -> bool {
        self.ours.load(Ordering::Acquire)
    }

    /// A thread's `/proc/PID/stat`. May wait for that thread, so never call this where requests are
    /// served.
    pub(super) fn stat_of(&self, pid: u32) -> Option<Vec<u8>> {
        std::fs::read(self.proc_of(pid)?.join("stat")).ok()
    }

    /// Where files about a thread are. 0 is the kernel, or somebody outside the namespace.
    fn proc_of(&self, pid: u32) -> Option<PathBuf> {
        (pid != 0).then(|| self.proc.lock().join(pid.to_string()))
    }

    /// Its threads belong to that session from now on.
    pub(super) fn attach(&self, session: &Arc<Shared>) {
        let _ = self.session.set(Arc::downgrade(session));
    }

    /// So many threads take requests, of which all but one may wait.
    pub(super) fn set_takers(&self, count: usize) {
        self.state.lock().takers = count;
    }

    /// Runs `work`, which may wait for long and then answers: here where that holds up nobody, else
    /// on another thread.
    pub fn run<K: 'static>(
        self: &Arc<Self>,
        request: &Request,
        reply: Reply<K>,
        work: impl FnOnce(Held<K>) + Send + 'static,
    ) {
        let reply = Arc::new(Mutex::new(Some(reply)));
        let held =
            Held { reply: Arc::clone(&reply), unique: request.unique, waits: Arc::clone(self) };
        let here = {
            let mut state = self.state.lock();
            if state.stopping {
                // The reply is dropped, behind the lock.
                drop(state);
                return;
            }
            let early = state.early.iter().position(|unique| *unique == request.unique);
            let interrupted = early.is_some_and(|at| state.early.remove(at).is_some());
            let waiter = Waiter { pid: request.pid, interrupted, reply };
            state.waiting.insert(request.unique, waiter);
            if interrupted {
                self.watch(&mut state);
            }
            let here = state.blocked + 1 < state.takers;
            state.blocked += usize::from(here);
            here
        };
        if here {
            let _unblock = Unblock(self);
            work(held);
        } else {
            self.hand_over(Box::new(move || work(held)));
        }
    }

    /// Attributes changed by a request after which the kernel goes on believing what it knew.
    pub fn attributes_changed(&self, node: NodeId) {
        if let Some(session) = self.session.get().and_then(Weak::upgrade) {
            // It knows nothing of the inode, or has ended the mount.
            let _ = session.notifier().attributes(node);
        }
    }

    /// A caller got a signal.
    pub fn interrupt(self: &Arc<Self>, unique: u64) {
        let mut state = self.state.lock();
        match state.waiting.get_mut(&unique) {
            Some(waiter) => {
                waiter.interrupted = true;
                self.watch(&mut state);
            }
            // Answered already, or not registered yet: the two come by different threads.
            None => {
                if state.early.len() == EARLY {
                    state.early.pop_front();
                }
                state.early.push_back(unique);
            }
        }
    }

    /// Ends the threads; what waits for one of them is refused.
    pub(super) fn stop(&self) {
        let queue = {
            let mut state = self.state.lock();
            state.stopping = true;
            std::mem::take(&mut state.queue)
        };
        self.changed.notify_all();
        drop(queue);
    }

    fn hand_over(self: &Arc<Self>, job: Job) {
        let mut state = self.state.lock();
        if state.stopping {
            drop(state);
            return drop(job);
        }
        state.queue.push_back(job);
        let enough = state.idle >= state.queue.len() || state.threads >= MAX_THREADS;
        if !enough && self.spawn("fuse-wait", Self::work) {
            state.threads += 1;
        }
        // Without any thread nobody would ever answer.
        let orphans = if state.threads == 0 { std::mem::take(&mut state.queue) } else { [].into() };
        drop(state);
        drop(orphans);
        self.changed.notify_one();
    }

    fn spawn(self: &Arc<Self>, name: &str, run: impl FnOnce(&Arc<Self>) + Send + 'static) -> bool {
        let Some(session) = self.session.get().and_then(Weak::upgrade) else { return false };
        let (waits, guard) = (Arc::clone(self), Guard::idle(&session));
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            notify::this_thread_serves();
            run(&waits);
            drop(guard);
        });
        thread.is_ok()
    }

    /// A thread that waits for the requests given to it.
    fn work(self: &Arc<Self>) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                // The panic has been reported by the hook, and its reply dropped.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
                state = self.state.lock();
                continue;
            }
            if state.stopping {
                break;
            }
            state.idle += 1;
            let waited = self.changed.wait_for(&mut state, IDLE);
            state.idle -= 1;
            if waited.timed_out() && state.queue.is_empty() {
                break;
            }
        }
        state.threads -= 1;
    }

    /// Has callers that got a signal watched.
    fn watch(self: &Arc<Self>, state: &mut State) {
        if !state.watched && !state.stopping {
            state.watched = self.spawn("fuse-watch", Self::watch_callers);
        }
    }

    fn watch_callers(self: &Arc<Self>) {
        loop {
            let watched: Vec<(u64, u32)> = {
                let mut state = self.state.lock();
                let watched = state.waiting.iter().filter(|(_, waiter)| waiter.interrupted);
                let watched: Vec<_> =
                    watched.map(|(&unique, waiter)| (unique, waiter.pid)).collect();
                if watched.is_empty() || state.stopping {
                    state.watched = false;
                    return;
                }
                watched
            };
            for (unique, pid) in watched {
                if self.is_being_killed(pid) {
                    let waiter = self.state.lock().waiting.remove(&unique);
                    if let Some(waiter) = waiter {
                        waiter.reply.refuse(Errno::INTR);
                    }
                }
            }
            std::thread::sleep(WATCH_INTERVAL);
        }
    }

    /// Whether a thread has SIGKILL pending, as all threads of a process have that a signal ends.
    fn is_being_killed(&self, pid: u32) -> bool {
        let status = self.proc_of(pid).map(|proc| proc.join("status"));
        let status = status.and_then(|path| std::fs::read_to_string(path).ok());
        status.is_some_and(|status| has_kill_pending(&status))
    }
}

/// Looks at the masks of pending signals in a `/proc/PID/status`.
fn has_kill_pending(status: &str) -> bool {
    const KILL: u64 = 1 << 8;
    let masks = status
        .lines()
        .filter_map(|line| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")));
    masks.filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok()).any(|mask| mask & KILL != 0)
}

/// A thread that takes requests waits while this lives.
struct Unblock<'w>(&'w Waits);

impl Drop for Unblock<'_> {
    fn drop(&mut self) {
        self.0.state.lock().blocked -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_kill_is_seen_in_either_mask() {
        let status = |own: &str, shared: &str| {
            format!(
                "Name:\tSigPnd: 1\nSigPnd:\t{own}\nShdPnd:\t{shared}\nSigBlk:\t0000000000000100\n"
            )
        };
        assert!(has_kill_pending(&status("0000000000000100", "0000000000000000")));
        assert!(has_kill_pending(&status("0000000000000000", "0000000000004100")));
        assert!(!has_kill_pending(&status("0000000000004000", "0000000000000001")));
        assert!(!has_kill_pending("SigPnd:\tnothing"));
    }
}
