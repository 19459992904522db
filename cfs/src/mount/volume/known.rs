//! Inodes that the kernel knows, which must stay while it does, whatever happens to their names.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Sender, unbounded};
use parking_lot::Mutex;

use crate::Result;
use crate::client::Client;
use crate::id::Ino;

/// How often the kernel looked up each inode, and which of them are held at the owner.
#[derive(Default)]
pub(super) struct Known {
    inodes: Mutex<HashMap<Ino, Inode>>,
}

#[derive(Clone, Copy, Default)]
struct Inode {
    lookups: u64,
    held: bool,
    /// It was cut to nothing, and whoever did that has it open perhaps.
    cut: bool,
    /// Where the owner's errors of writebacks begin that nobody here has been told.
    errors: u64,
}

impl Known {
    /// The kernel gets to know an inode, once more.
    pub(super) fn count(&self, ino: Ino) {
        self.inodes.lock().entry(ino).or_default().lookups += 1;
    }

    /// Whether it is held.
    pub(super) fn is_held(&self, ino: Ino) -> bool {
        self.inodes.lock().get(&ino).is_some_and(|inode| inode.held)
    }

    /// The same where others may remove it at any time: it is held from the first look-up on.
    pub(super) fn hold_and_count(&self, client: &Client, ino: Ino) -> Result<()> {
        self.hold(client, ino)?;
        self.count(ino);
        Ok(())
    }

    /// The kernel gets to know an inode that is new and held already.
    pub(super) fn adopt(&self, ino: Ino) {
        let mut inodes = self.inodes.lock();
        let inode = inodes.entry(ino).or_default();
        inode.lookups += 1;
        inode.held = true;
    }

    /// Holds an inode, unless it is held already: it stays until the kernel has forgotten it.
    pub(super) fn hold(&self, client: &Client, ino: Ino) -> Result<()> {
        if self.is_held(ino) {
            return Ok(());
        }
        let errors = client.hold(ino)?;
        let again = {
            let mut inodes = self.inodes.lock();
            let inode = inodes.entry(ino).or_default();
            if !inode.held {
                inode.errors = errors;
            }
            std::mem::replace(&mut inode.held, true)
        };
        // Two did at the same time.
        if again { client.let_go(ino, 1) } else { Ok(()) }
    }

    /// An inode is about to be cut to nothing.
    pub(super) fn cut(&self, ino: Ino) {
        if let Some(inode) = self.inodes.lock().get_mut(&ino) {
            inode.cut = true;
        }
    }

    /// Whether it was, since somebody closed it for good.
    pub(super) fn is_cut(&self, ino: Ino) -> bool {
        self.inodes.lock().get(&ino).is_some_and(|inode| inode.cut)
    }

    /// The same when somebody does now.
    pub(super) fn take_cut(&self, ino: Ino) -> bool {
        self.inodes.lock().get_mut(&ino).is_some_and(|inode| std::mem::take(&mut inode.cut))
    }

    /// The kernel forgets some look-ups. Whether the owner is to let the inode go now.
    pub(super) fn forget(&self, ino: Ino, lookups: u64) -> bool {
        let mut inodes = self.inodes.lock();
        let Some(inode) = inodes.get_mut(&ino) else { return false };
        inode.lookups = inode.lookups.saturating_sub(lookups);
        if inode.lookups > 0 {
            return false;
        }
        inodes.remove(&ino).is_some_and(|inode| inode.held)
    }

    /// The kernel has forgotten everything; returns what was held.
    pub(super) fn forget_all(&self) -> Vec<Ino> {
        let inodes = std::mem::take(&mut *self.inodes.lock());
        inodes.into_iter().filter(|(_, inode)| inode.held).map(|(ino, _)| ino).collect()
    }

    /// Makes a file durable and tells of errors that writebacks of it had, each once.
    pub(super) fn sync(&self, client: &Client, ino: Ino, data_only: bool) -> Result<()> {
        self.hold(client, ino)?;
        let errors = |inodes: &HashMap<Ino, Inode>| inodes.get(&ino).map_or(0, |it| it.errors);
        let mut seen = errors(&self.inodes.lock());
        let result = client.sync(ino, data_only, &mut seen);
        if let Some(inode) = self.inodes.lock().get_mut(&ino) {
            inode.errors = inode.errors.max(seen);
        }
        result
    }
}

/// What is done behind a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// An inode is not known any more.
    LetGo(Ino),
    /// A file that was open for writing was closed.
    Close(Ino),
}

impl Work {
    pub(super) fn run(self, client: &Client) {
        // An owner that is gone has let everything go; the errors of a file that nobody has open
        // any more have nobody to be told to.
        let _ = match self {
            Self::LetGo(ino) => client.let_go(ino, 1),
            Self::Close(ino) => client.close(ino),
        };
    }
}

/// How long the thread lets work gather, for which nobody waits. Whoever gives it some while it
/// rests need not wake it, which would take as long as the request that the work belongs to.
const GATHER: Duration = Duration::from_millis(1);

/// The thread that does it, one after the other.
pub(super) struct Later {
    work: Sender<Work>,
    thread: JoinHandle<()>,
}

impl Later {
    pub(super) fn start(client: Arc<Client>) -> std::io::Result<Self> {
        let (work, queue) = unbounded::<Work>();
        let run = move || {
            while let Ok(first) = queue.recv() {
                first.run(&client);
                queue.try_iter().for_each(|work| work.run(&client));
                std::thread::sleep(GATHER);
            }
        };
        let thread = std::thread::Builder::new().name("fuse-later".into()).spawn(run)?;
        Ok(Self { work, thread })
    }

    pub(super) fn push(&self, work: Work) {
        // The thread ends when this is dropped, not before.
        let _ = self.work.send(work);
    }

    /// Waits until everything is done.
    pub(super) fn finish(self) {
        drop(self.work);
        // A panic has been reported by the hook.
        let _ = self.thread.join();
    }
}
