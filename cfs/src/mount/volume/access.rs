//! When a file was read last, as far as the kernel asks for what is read.

use super::{Sharing, Shown};
use crate::cache::InodeRecord;
use crate::change::{Caller, Change};
use crate::client::Client;
use crate::disk::inode::{InodeFlags, Kind};
use crate::disk::time::Timestamp;
use crate::engine::write::AccessTimes;
use crate::id::Ino;

/// The kernel reads a file of so many bytes anew at the first opening behind a change, so that its
/// being read is seen; of larger ones it has kept what was written, and asks for nothing perhaps.
const READ_AGAIN: u64 = 128 << 10;

/// When reading changes something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// When the time of the last reading is kept.
    pub access: AccessTimes,
    /// Directories are left out of that.
    pub not_of_directories: bool,
}

impl Shown {
    /// Whether reading it changes the time of that: a comparison.
    pub(super) fn is_access_due(&self, record: &InodeRecord) -> bool {
        let attr = &record.attr;
        let kept = attr.flags.contains(InodeFlags::NOATIME)
            || (self.times.not_of_directories && attr.kind == Kind::Directory);
        let due = || self.times.access.is_due([attr.atime, attr.mtime, attr.ctime], now());
        self.keeps_access_times() && !kept && due()
    }

    /// Where others change the volume, what is cached of it is read without a word to the owner,
    /// who may be gone.
    fn keeps_access_times(&self) -> bool {
        self.sharing == Sharing::Alone && self.times.access != AccessTimes::Never
    }

    /// It is being read. Told before the answer, behind which the kernel asks for the time again.
    pub(super) fn accessed(&self, client: &Client, ino: Ino) {
        if !self.keeps_access_times() {
            return;
        }
        let record = client.record(ino);
        if record.is_ok_and(|record| self.is_access_due(&record)) {
            // Who cannot note it reads all the same.
            let _ = client.change(ino, Change::Accessed, Caller::ROOT);
        }
    }

    /// Whether what the kernel has of a file that is opened to be read must not count.
    pub(super) fn reads_again(&self, record: &InodeRecord) -> bool {
        let small = record.attr.size <= READ_AGAIN || self.times.access == AccessTimes::Strict;
        small && record.attr.size > 0 && self.is_access_due(record)
    }
}

/// The present, to a tick of the kernel.
fn now() -> Timestamp {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    Timestamp { seconds: now.tv_sec, nanoseconds: now.tv_nsec as u32 }
}
