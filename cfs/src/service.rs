//! The volumes that one runtime serves to the others.
//!
//! Requests come on a thread that serves many rings, so it waits for no device: what can be said
//! from memory it says at once, which is quicker than to hand it over, and the rest goes to threads
//! of the volume. A volume's pages have threads of their own, and so has its metadata: a device
//! that is slow holds up neither other volumes nor what is cached of its own, and long reads hold
//! up no name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, SendError, Sender, unbounded};
use oslet::id::{Epoch, ParticipantId};
use oslet::rpc::{Replier, Request};
use parking_lot::{Mutex, RwLock};

use crate::engine::store::promptly;
use crate::owner::{Answer, Owner};
use crate::wire::kind;
use crate::{Error, Result};

/// Requests that wait for a thread; more are refused with EAGAIN, which callers do not see unless
/// the device has stopped answering.
const QUEUE: usize = 4096;

/// The owners in this process and the threads that read devices for others.
pub struct Volumes {
    served: RwLock<BTreeMap<u64, Served>>,
    /// Threads of each lane.
    workers: usize,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// A volume, and where what has to wait for its device goes; nowhere once it stops.
struct Served {
    owner: Arc<Owner>,
    lanes: Option<Lanes>,
}

#[derive(Clone)]
struct Lanes {
    metadata: Sender<Work>,
    pages: Sender<Work>,
    changes: Sender<Work>,
    /// What waits for commits, which changes must not wait for.
    syncs: Sender<Work>,
}

struct Work {
    owner: Arc<Owner>,
    request: Request,
    replier: Replier,
}

impl Volumes {
    /// No volume yet; for each `workers` threads will read metadata and as many pages.
    pub fn new(workers: usize) -> Arc<Self> {
        let (served, threads) = (RwLock::default(), Mutex::default());
        Arc::new(Self { served, workers: workers.max(1), threads })
    }

    /// Serves a volume from now on.
    ///
    /// # Errors
    /// When its threads cannot be started; it is not served then.
    pub fn add(&self, owner: Arc<Owner>) -> Result<()> {
        let mut threads = self.threads.lock();
        threads.retain(|thread| !thread.is_finished());
        let lanes = Lanes {
            metadata: self.start("meta", &mut threads)?,
            pages: self.start("fill", &mut threads)?,
            changes: self.start("change", &mut threads)?,
            syncs: self.start("sync", &mut threads)?,
        };
        let served = Served { owner: Arc::clone(&owner), lanes: Some(lanes) };
        self.served.write().insert(owner.object(), served);
        Ok(())
    }

    /// Threads that answer what is sent to them, until nobody can send any more.
    fn start(&self, name: &str, threads: &mut Vec<JoinHandle<()>>) -> Result<Sender<Work>> {
        let (sender, receiver) = unbounded::<Work>();
        for index in 0..self.workers {
            let receiver: Receiver<Work> = receiver.clone();
            let run = move || receiver.iter().for_each(Work::answer);
            let thread = std::thread::Builder::new().name(format!("{name}-{index}")).spawn(run);
            threads.push(thread.map_err(Error::io("start a thread"))?);
        }
        Ok(sender)
    }

    /// Serves a volume no more; what is being answered still uses it.
    pub fn remove(&self, object: u64) -> Option<Arc<Owner>> {
        self.served.write().remove(&object).map(|served| served.owner)
    }

    /// The owner of a volume, if it is here.
    pub fn owner(&self, object: u64) -> Option<Arc<Owner>> {
        self.served.read().get(&object).map(|served| Arc::clone(&served.owner))
    }

    /// All volumes served here.
    pub fn all(&self) -> Vec<Arc<Owner>> {
        self.served.read().values().map(|served| Arc::clone(&served.owner)).collect()
    }

    /// Answers a request of [`crate::wire::KINDS`], now or by another thread. Does not wait.
    pub fn handle(&self, request: Request, replier: Replier) {
        let (owner, lanes) = match self.served.read().get(&request.args[0]) {
            Some(Served { owner, lanes }) => (Arc::clone(owner), lanes.clone()),
            None => return replier.error(rustix::io::Errno::STALE.raw_os_error()),
        };
        let mut work = Work { owner, request, replier };
        let metadata = reads_metadata(work.request.kind);
        if metadata {
            match work.answer_promptly() {
                None => return,
                Some(left) => work = left,
            }
        }
        // Stopping: the dropped replier says EIO, and the caller finds the successor.
        let Some(lanes) = lanes else { return };
        let lane = match work.request.kind {
            _ if metadata => lanes.metadata,
            kind::CHANGE
            | kind::CHANGE_PAGES
            | kind::WRITE
            | kind::WRITE_PAGES
            | kind::HOLD
            | kind::HOLD_KNOWN
            | kind::LET_GO
            | kind::CLOSE => lanes.changes,
            kind::SYNC | kind::SYNC_ALL | kind::TRIM => lanes.syncs,
            _ => lanes.pages,
        };
        // Counted, not reserved: a queue of that length in memory for each lane is 0.4 MB that
        // nobody uses. Threads that send at once may go beyond it by one each.
        if lane.len() >= QUEUE {
            return work.replier.error(rustix::io::Errno::AGAIN.raw_os_error());
        }
        if let Err(SendError(work)) = lane.send(work) {
            work.replier.error(rustix::io::Errno::AGAIN.raw_os_error());
        }
    }

    /// A participant has ended, in that incarnation: what it held it holds no more.
    ///
    /// # Errors
    /// When what nobody else holds cannot be removed.
    pub fn forget_holder(&self, who: ParticipantId, epoch: Epoch) -> Result<()> {
        let forgotten = self.all().into_iter().map(|owner| owner.forget_holder((who, epoch)));
        forgotten.fold(Ok(()), Result::and)
    }

    /// Ends the threads, behind what they have been given.
    pub fn stop(&self) {
        for served in self.served.write().values_mut() {
            served.lanes = None;
        }
        for thread in self.threads.lock().drain(..) {
            // One that panicked has ended; there is nothing more to end.
            let _ = thread.join();
        }
    }
}

/// Whether a request can be answered from cached metadata, without a lock that is held while
/// somebody waits for a device. What is not named here is handed over unseen.
fn reads_metadata(request: u16) -> bool {
    matches!(
        request,
        kind::LOOKUP
            | kind::GETATTR
            | kind::READLINK
            | kind::READDIR
            | kind::GETXATTR
            | kind::GETXATTR_MORE
            | kind::LISTXATTR
            | kind::STATFS
            | kind::SEEK
    )
}

impl Work {
    /// Answers if that takes no device; gives itself back if it does.
    fn answer_promptly(self) -> Option<Self> {
        match promptly(|| self.compute()) {
            Some(answer) => {
                reply(self.replier, answer);
                None
            }
            None => Some(self),
        }
    }

    fn answer(self) {
        let answer = self.compute();
        reply(self.replier, answer);
    }

    fn compute(&self) -> Result<Answer> {
        let Request { from, epoch, kind, args, body } = &self.request;
        self.owner.answer((*from, *epoch), *kind, *args, body)
    }
}

fn reply(replier: Replier, answer: Result<Answer>) {
    match answer {
        Ok(answer) => replier.ok(answer.args, &answer.body),
        Err(error) => replier.error(error.errno()),
    }
}
