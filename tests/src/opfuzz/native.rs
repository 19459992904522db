//! A directory of a volume in this process as a subject: what system calls do, by the native
//! interface. Paths and open files, which it does not know, are walked and kept here as the kernel
//! does it; whatever it can answer by itself it answers.

mod files;
mod names;
mod volume;
mod walk;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context;
use cfs::cache::InodeRecord;
use cfs::client::Client;
use cfs::disk::time::Timestamp;
use cfs::engine::Attr;
use cfs::id::Ino;
use cfs::local::LocalVolume;
use rustix::io::Errno;

pub use volume::NativeVolume;

use super::op::{Op, Outcome, SLOTS, Shown, Stat};
use super::{Contents, Subject};

type Result<T> = std::result::Result<T, Errno>;

/// A volume that is open, unless it is being opened anew.
pub type Open = Rc<RefCell<Option<LocalVolume>>>;

/// Opens a volume again that was closed cleanly.
pub type Reopen = Box<dyn FnMut() -> anyhow::Result<LocalVolume>>;

/// A file that is open.
#[derive(Clone, Copy, Debug)]
struct OpenFile {
    ino: Ino,
    write: bool,
    append: bool,
    /// Errors of writebacks up to here have been told.
    seen: u64,
}

/// A directory of a volume in this process.
pub struct NativeSubject {
    name: String,
    volume: Open,
    reopen: Option<Reopen>,
    root: Ino,
    slots: [Option<OpenFile>; SLOTS],
    /// Inode and times of modification and change as last seen, by path.
    seen: HashMap<String, (Ino, [Timestamp; 2])>,
    /// When this began: later times are of this run.
    began: i64,
    /// Errors of the volume's writebacks up to here have been told.
    seen_of_volume: u64,
}

/// The errno of an error.
fn errno(error: cfs::Error) -> Errno {
    Errno::from_raw_os_error(error.errno())
}

impl NativeSubject {
    /// The empty directory `root` of a volume. Without a way to open it again that is left out.
    pub fn new(
        name: &str,
        volume: &Open,
        root: Ino,
        reopen: Option<Reopen>,
    ) -> anyhow::Result<Self> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        Ok(Self {
            name: name.to_owned(),
            volume: Rc::clone(volume),
            reopen,
            root,
            slots: [None; SLOTS],
            seen: HashMap::new(),
            began: now.as_secs() as i64 - 1,
            seen_of_volume: 0,
        })
    }

    fn client(&self) -> Result<Arc<Client>> {
        let volume = self.volume.borrow();
        volume.as_ref().map(|volume| Arc::clone(volume.client())).ok_or(Errno::NODEV)
    }

    fn slot(&self, slot: usize) -> Result<OpenFile> {
        self.slots[slot].ok_or(Errno::BADF)
    }

    fn execute(&mut self, op: &Op) -> Result<Outcome> {
        match op {
            Op::Stat { path } => {
                let record = self.lookup(path, false)?;
                Ok(self.stat(path, &record.attr))
            }
            Op::StatOpen { slot } => {
                let attr = self.client()?.stat(self.slot(*slot)?.ino).map_err(errno)?;
                let unnamed = format!("slot {slot}");
                self.seen.remove(&unnamed);
                Ok(self.stat(&unnamed, &attr))
            }
            Op::Sync => {
                let mut seen = self.seen_of_volume;
                let synced = self.client()?.sync_all(&mut seen);
                self.seen_of_volume = seen;
                synced.map(|()| Outcome::Done).map_err(errno)
            }
            Op::Remount => {
                self.close_all();
                let volume = self.volume.borrow_mut().take();
                match (volume, &mut self.reopen) {
                    (Some(volume), Some(reopen)) => {
                        let again = volume.close().map_err(Into::into).and_then(|()| reopen());
                        let again = again.map_err(|error: anyhow::Error| {
                            eprintln!("{}: opening again: {error:#}", self.name);
                            Errno::IO
                        });
                        *self.volume.borrow_mut() = Some(again?);
                        self.seen_of_volume = 0;
                    }
                    (volume, _) => *self.volume.borrow_mut() = volume,
                }
                Ok(Outcome::Done)
            }
            Op::Open { .. }
            | Op::Close { .. }
            | Op::Write { .. }
            | Op::Read { .. }
            | Op::Allocate { .. }
            | Op::Copy { .. }
            | Op::Seek { .. }
            | Op::Truncate { .. }
            | Op::TruncateOpen { .. }
            | Op::Fsync { .. }
            | Op::FsyncPath { .. } => self.file(op),
            Op::SetXattr { .. }
            | Op::GetXattr { .. }
            | Op::RemoveXattr { .. }
            | Op::ListXattr { .. }
            | Op::SetAcl { .. }
            | Op::SetFlags { .. }
            | Op::GetFlags { .. }
            | Op::Chmod { .. }
            | Op::Chown { .. }
            | Op::Utimens { .. } => self.attributes(op),
            _ => self.names(op),
        }
    }

    fn stat(&mut self, path: &str, attr: &Attr) -> Outcome {
        let kind = u32::from(attr.mode) & 0o170_000;
        let show = |time: Timestamp| match time.seconds >= self.began {
            // What is set to a time of the future is far away.
            true if time.seconds < self.began + 100_000 => Shown::Recent,
            _ => Shown::At(time.seconds, time.nanoseconds),
        };
        let now = [attr.mtime, attr.ctime];
        let times = [show(attr.atime), show(attr.mtime)];
        let before = self.seen.insert(path.to_owned(), (attr.ino, now));
        let before = before.filter(|(ino, _)| *ino == attr.ino);
        let changed = |index: usize| before.map(|(_, before)| before[index] != now[index]);
        Outcome::Stat(Box::new(Stat {
            mode: attr.mode.into(),
            links: attr.links,
            owner: (attr.uid, attr.gid),
            size: matches!(kind, 0o100_000 | 0o120_000).then_some(attr.size),
            device: attr.device,
            times,
            changed: [changed(0), changed(1)],
        }))
    }
}

impl Subject for NativeSubject {
    fn name(&self) -> &str {
        &self.name
    }

    fn apply(&mut self, op: &Op) -> Outcome {
        match self.execute(op) {
            Ok(outcome) => outcome,
            Err(errno) => Outcome::Error(errno.raw_os_error()),
        }
    }

    fn contents(&mut self, path: &str) -> anyhow::Result<Contents> {
        let InodeRecord { attr, .. } = self.lookup(path, false)?;
        let client = self.client()?;
        let mut contents = Contents { size: attr.size, ..Contents::default() };
        let file = client.file(attr.ino);
        let mut at = 0;
        while at < attr.size {
            let start = match client.seek(attr.ino, at, true) {
                Ok(start) => start,
                Err(cfs::Error::NoSuchOffset) => break,
                Err(error) => return Err(error).with_context(|| format!("{path}: data")),
            };
            let end = client.seek(attr.ino, start, false)?.min(attr.size);
            anyhow::ensure!(start >= at && end > start, "{path}: data {start}..{end} after {at}");
            let mut bytes = vec![0; (end - start) as usize];
            let len = file.read(start, &mut bytes)?;
            anyhow::ensure!(len == bytes.len(), "{path}: {len} bytes from {start}, not to {end}");
            contents.add(start, &bytes);
            at = end;
        }
        Ok(contents)
    }

    fn close_all(&mut self) {
        for slot in 0..SLOTS {
            // What a crash or a failed device has left cannot be told to anybody here.
            let _ = self.close(slot);
        }
    }
}
