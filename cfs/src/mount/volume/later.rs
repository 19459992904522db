//! What is done behind requests, and soon after a volume's owner has changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::Shown;
use super::shown::ino;
use crate::mount::NodeId;

/// How often is looked whether the owner is another: much sooner than inodes without names go.
const LOOK: Duration = Duration::from_millis(250);
/// How long a thread sleeps that has nothing to look for.
const LONG: Duration = Duration::from_secs(24 * 3600);

/// How long the thread lets work gather, for which nobody waits. Whoever gives it some while it
/// rests need not wake it, which would take as long as the request that the work belongs to.
const GATHER: Duration = Duration::from_millis(1);

/// What is done behind a request, at the incarnation of the owner where the inode was held.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// An inode is not known any more.
    LetGo(NodeId, u64),
    /// A file that was open for writing was closed.
    Close(NodeId, u64),
}

impl Work {
    pub(super) fn run(self, shown: &Shown) {
        let (Self::LetGo(node, at) | Self::Close(node, at)) = self;
        // An owner that is gone has let everything go, and what it had not written is lost.
        let Some(client) = shown.client_at(at) else { return };
        // The errors of a file that nobody has open any more have nobody to be told to.
        let _ = match self {
            Self::LetGo(..) => client.let_go(ino(node), 1),
            Self::Close(..) => client.close(ino(node)),
        };
    }
}

/// The thread that does it, one after the other.
pub(super) struct Later {
    work: Sender<Work>,
    ended: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Later {
    pub(super) fn start(shown: Arc<Shown>) -> std::io::Result<Self> {
        let (work, queue) = unbounded();
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let run = move || run(&shown, &queue, &end);
        let thread = std::thread::Builder::new().name("fuse-later".into()).spawn(run)?;
        Ok(Self { work, ended, thread })
    }

    pub(super) fn push(&self, work: Work) {
        // The thread ends when this is dropped, not before.
        let _ = self.work.send(work);
    }

    /// Waits until everything is done.
    pub(super) fn finish(self) {
        self.ended.store(true, Ordering::Relaxed);
        drop(self.work);
        // A panic has been reported by the hook.
        let _ = self.thread.join();
    }
}

fn run(shown: &Shown, queue: &Receiver<Work>, ended: &AtomicBool) {
    let interval = if shown.follows_owners() { LOOK } else { LONG };
    let mut next = Instant::now() + interval;
    // The incarnation at which everything is held that the kernel knows.
    let mut settled = 0;
    loop {
        match queue.recv_deadline(next) {
            Ok(first) => {
                first.run(shown);
                queue.try_iter().for_each(|work| work.run(shown));
                std::thread::sleep(GATHER);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if Instant::now() >= next {
            settle(shown, &mut settled, ended);
            next = Instant::now() + interval;
        }
    }
}

/// Holds everything that the kernel knows at the present incarnation, unless that is so.
fn settle(shown: &Shown, settled: &mut u64, ended: &AtomicBool) {
    let Some(client) = shown.present_at_once() else { return };
    if *settled == client.incarnation() {
        return;
    }
    let nodes = shown.known.unsettled(&client);
    if nodes.is_empty() {
        *settled = client.incarnation();
    }
    for node in nodes {
        if ended.load(Ordering::Relaxed) || !client.is_present() {
            return;
        }
        // What is another's by now its users hear of, and the rest is tried again.
        let _ = shown.known.renew(&client, node);
    }
}
