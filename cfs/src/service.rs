//! The volumes that one runtime serves to the others.

use std::collections::BTreeMap;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use oslet::rpc::{Replier, Request};
use parking_lot::{Mutex, RwLock};

use crate::owner::Owner;
use crate::wire::kind;

/// Requests that wait for a worker; more are refused with EAGAIN, which callers do not see unless
/// the device has stopped answering.
const QUEUE: usize = 4096;

/// The owners in this process and the threads that read devices for others.
pub struct Volumes {
    owners: RwLock<BTreeMap<u64, Arc<Owner>>>,
    work: Mutex<Option<Sender<Work>>>,
    workers: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

struct Work {
    owner: Arc<Owner>,
    request: Request,
    replier: Replier,
}

impl Volumes {
    /// No volume yet; `workers` threads read from devices.
    pub fn new(workers: usize) -> crate::Result<Arc<Self>> {
        let (sender, receiver) = bounded::<Work>(QUEUE);
        let start = |index: usize| {
            let receiver: Receiver<Work> = receiver.clone();
            let run = move || receiver.iter().for_each(Work::answer);
            std::thread::Builder::new().name(format!("fill-{index}")).spawn(run)
        };
        let workers: std::io::Result<Vec<_>> = (0..workers.max(1)).map(start).collect();
        let workers = workers.map_err(crate::Error::io("start a thread"))?;
        Ok(Arc::new(Self {
            owners: RwLock::default(),
            work: Mutex::new(Some(sender)),
            workers: Mutex::new(workers),
        }))
    }

    /// Serves a volume from now on.
    pub fn add(&self, owner: Arc<Owner>) {
        self.owners.write().insert(owner.object(), owner);
    }

    /// Serves a volume no more; what is being answered still uses it.
    pub fn remove(&self, object: u64) -> Option<Arc<Owner>> {
        self.owners.write().remove(&object)
    }

    /// The owner of a volume, if it is here.
    pub fn owner(&self, object: u64) -> Option<Arc<Owner>> {
        self.owners.read().get(&object).cloned()
    }

    /// All volumes served here.
    pub fn all(&self) -> Vec<Arc<Owner>> {
        self.owners.read().values().cloned().collect()
    }

    /// Answers a request of [`crate::wire::KINDS`]. What only reads metadata is answered on the
    /// calling thread: handing it over would cost more than it does. Pages are read by workers.
    pub fn handle(&self, request: Request, replier: Replier) {
        let Some(owner) = self.owner(request.args[0]) else {
            return replier.error(rustix::io::Errno::STALE.raw_os_error());
        };
        let work = Work { owner, request, replier };
        if !matches!(work.request.kind, kind::READ | kind::READ_COPY) {
            return work.answer();
        }
        let sender = self.work.lock().clone();
        match sender.map(|sender| sender.try_send(work)) {
            Some(Ok(())) => {}
            Some(Err(TrySendError::Full(work) | TrySendError::Disconnected(work))) => {
                work.replier.error(rustix::io::Errno::AGAIN.raw_os_error());
            }
            // Stopping: the dropped replier says EIO, and the caller finds the successor.
            None => {}
        }
    }

    /// Ends the workers, behind what they have been given.
    pub fn stop(&self) {
        self.work.lock().take();
        for worker in self.workers.lock().drain(..) {
            // A worker that panicked has ended; there is nothing more to end.
            let _ = worker.join();
        }
    }
}

impl Work {
    fn answer(self) {
        match self.owner.answer(self.request.kind, self.request.args, &self.request.body) {
            Ok(answer) => self.replier.ok(answer.args, &answer.body),
            Err(error) => self.replier.error(error.errno()),
        }
    }
}
