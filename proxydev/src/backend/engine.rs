//! What runs the disk operations of a process: one io_uring, or a few threads where it is not to
//! be had.
//!
//! Whoever submits a request puts it into the ring; a thread of the engine waits for completions,
//! and any thread that waits for one may collect them too ([`Engine::poll`]): the waiter that polls
//! is spared two wake-ups, and a caller that does not wait needs no thread of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, unbounded};
use oslet::region::Region;
use oslet::sys::disk::Io;
use oslet::sys::uring_io::{Finished, Ring};
use rustix::io::Errno;

use super::file::Job;
use crate::{Error, Result, limits};

/// How often an operation is repeated that the kernel gave up because a thread or signal ended.
const RETRIES: u8 = 8;
/// How long the engine's thread sleeps at most.
const IDLE: Duration = Duration::from_secs(1);

/// How an engine is made.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Operations that the kernel is given at a time.
    pub depth: usize,
    /// Whether io_uring is tried at all.
    pub uring: bool,
    /// Whether the own segment's frames are registered with the kernel.
    pub register: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { depth: limits::ENGINE_DEPTH, uring: true, register: true }
    }
}

/// Runs disk operations; one serves all files of a process. Dropping it waits for what is in
/// flight.
pub struct Engine {
    kind: Kind,
    warnings: Vec<String>,
    registered: bool,
}

enum Kind {
    Uring { shared: Arc<Shared>, thread: Option<JoinHandle<()>> },
    Threads { queue: Option<Sender<Task>>, threads: Vec<JoinHandle<()>> },
}

struct Shared {
    ring: Ring<Task>,
    stop: AtomicBool,
}

/// Who an operation is run for, and how often it was repeated.
struct Task {
    job: Job,
    retries: u8,
    /// Set where the ring does not carry the operation.
    io: Option<Io>,
}

impl Engine {
    /// An engine for files whose data lie in frames of `region`.
    ///
    /// # Errors
    /// When no thread can be started. A kernel without io_uring is none: see [`Self::warnings`].
    pub fn new(region: &Arc<Region>, options: EngineOptions) -> Result<Arc<Self>> {
        let mut warnings = Vec::new();
        if options.uring {
            match Ring::new(options.depth) {
                Ok(ring) => return Self::with_ring(ring, region, options),
                Err(error) => warnings.push(format!(
                    "{error}; disks are served by {} threads instead, which is slower",
                    limits::ENGINE_THREADS
                )),
            }
        }
        let (queue, tasks) = unbounded();
        let threads = (0..limits::ENGINE_THREADS).map(|index| {
            let tasks = tasks.clone();
            spawn(format!("disk-{index}"), move || work(&tasks))
        });
        let threads = threads.collect::<Result<_>>()?;
        let kind = Kind::Threads { queue: Some(queue), threads };
        Ok(Arc::new(Self { kind, warnings, registered: false }))
    }

    fn with_ring(
        mut ring: Ring<Task>,
        region: &Arc<Region>,
        options: EngineOptions,
    ) -> Result<Arc<Self>> {
        let mut warnings = Vec::new();
        let mut registered = false;
        if options.register {
            match ring.register(region.own()) {
                Ok(()) => registered = true,
                Err(error) => warnings.push(format!("{error}; disks are served without")),
            }
        }
        let shared = Arc::new(Shared { ring, stop: AtomicBool::new(false) });
        let mine = Arc::clone(&shared);
        let thread = Some(spawn("disk".into(), move || serve(&mine))?);
        Ok(Arc::new(Self { kind: Kind::Uring { shared, thread }, warnings, registered }))
    }

    /// What the user should know: one line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether operations go through io_uring, and whether own frames are registered with it.
    pub fn abilities(&self) -> (bool, bool) {
        (matches!(self.kind, Kind::Uring { .. }), self.registered)
    }

    /// Completes on this thread what has ended, without waiting.
    pub fn poll(&self) {
        if let Kind::Uring { shared, .. } = &self.kind {
            let mut finished = Vec::new();
            shared.ring.try_reap(&mut finished);
            settle(&shared.ring, &mut finished);
        }
    }

    pub(super) fn submit(&self, operations: impl IntoIterator<Item = (Io, Job)>) {
        let operations = operations.into_iter();
        match &self.kind {
            Kind::Uring { shared, .. } => {
                let tasks = operations.map(|(io, job)| (io, Task { job, retries: 0, io: None }));
                shared.ring.submit(tasks);
            }
            Kind::Threads { queue, .. } => {
                for (io, job) in operations {
                    let task = Task { job, retries: 0, io: Some(io) };
                    // The queue is there until the engine is dropped; a task that cannot be
                    // queued completes as abandoned when it is dropped.
                    queue.as_ref().map(|queue| queue.send(task).ok());
                }
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let threads = match &mut self.kind {
            Kind::Uring { shared, thread } => {
                shared.stop.store(true, Ordering::SeqCst);
                shared.ring.wake();
                thread.take().into_iter().collect()
            }
            Kind::Threads { queue, threads } => {
                queue.take();
                std::mem::take(threads)
            }
        };
        for thread in threads {
            // The last owner may be a completion, which runs on a thread of ours: that one ends
            // by itself.
            if thread.thread().id() != std::thread::current().id() {
                // One that panicked has ended as well.
                let _ = thread.join();
            }
        }
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let spawned = std::thread::Builder::new().name(name).spawn(body);
    spawned.map_err(|e| Error::Region(oslet::Error::io("start a disk thread")(e)))
}

/// The thread behind a ring.
fn serve(shared: &Shared) {
    let mut finished = Vec::new();
    loop {
        shared.ring.reap(&mut finished);
        settle(&shared.ring, &mut finished);
        if shared.ring.in_flight() == 0 && shared.stop.load(Ordering::SeqCst) {
            break;
        }
        shared.ring.wait(IDLE);
    }
}

/// Tells jobs how their operations ended, and starts what is next for them.
fn settle(ring: &Ring<Task>, finished: &mut Vec<Finished<Task>>) {
    if finished.is_empty() {
        return;
    }
    let mut next = Vec::new();
    for (io, task, result) in finished.drain(..) {
        next.extend(step(io, task, result));
    }
    if !next.is_empty() {
        ring.submit(next);
    }
}

fn step(io: Io, mut task: Task, result: std::io::Result<usize>) -> Option<(Io, Task)> {
    let result = result.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO));
    if let Err(Errno::CANCELED | Errno::INTR | Errno::AGAIN) = result
        && task.retries < RETRIES
    {
        // What a thread submitted and the kernel had not begun is given up when the thread ends.
        task.retries += 1;
        return Some((io, task));
    }
    let (io, job) = task.job.advance(io, result)?;
    Some((io, Task { job, retries: 0, io: None }))
}

/// A thread of the engine that has no ring.
fn work(tasks: &Receiver<Task>) {
    while let Ok(mut task) = tasks.recv() {
        let mut next = task.io.take().map(|io| (io, task));
        while let Some((io, task)) = next {
            let result = io.run();
            next = step(io, task, result);
        }
    }
}
