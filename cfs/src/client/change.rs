//! Changing a volume: names, attributes and contents.

use std::sync::Arc;
use std::time::Instant;

use oslet::region::Bytes;
use oslet::rpc;

use super::view::{Route, View};
use super::{Client, record_in};
use crate::cache::InodeRecord;
use crate::change::{Caller, Change, Changed, NewInode, Order, SetAttr, WriteOptions, Written};
use crate::id::Ino;
use crate::owner::Answer;
use crate::wire::{self, kind};
use crate::{Error, Result, limits};

const PAGE: usize = oslet::limits::FRAME_SIZE;
/// Bytes that go to the owner in one message, by reference.
const WRITE_AT_ONCE: usize = 256 * PAGE;

impl Client {
    /// Makes a file, directory, node or socket, by the type in the mode.
    pub fn make(&self, dir: Ino, name: &[u8], inode: NewInode, by: Caller) -> Result<InodeRecord> {
        let change = Change::Make { name: name.to_vec(), inode, reuse: false };
        self.record_of(dir, change, by)
    }

    /// Makes a regular file unless there is one of that name. Whether it was made.
    pub fn make_or_find(
        &self,
        dir: Ino,
        name: &[u8],
        inode: NewInode,
        by: Caller,
    ) -> Result<(InodeRecord, bool)> {
        let change = Change::Make { name: name.to_vec(), inode, reuse: true };
        let changed = self.change(dir, change, by)?;
        Ok((changed.record.ok_or_else(no_record)?, changed.made))
    }

    /// Makes a file without a name, for a directory, which is held as by [`Self::hold`]: O_TMPFILE.
    pub fn make_nameless(&self, dir: Ino, inode: NewInode, by: Caller) -> Result<InodeRecord> {
        self.record_of(dir, Change::MakeNameless { inode }, by)
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, dir: Ino, name: &[u8], to: &[u8], by: Caller) -> Result<InodeRecord> {
        self.record_of(dir, Change::Symlink { name: name.to_vec(), target: to.to_vec() }, by)
    }

    /// Gives an inode another name.
    pub fn link(&self, ino: Ino, dir: Ino, name: &[u8], by: Caller) -> Result<InodeRecord> {
        self.record_of(dir, Change::Link { name: name.to_vec(), ino: ino.0 }, by)
    }

    /// Removes a name of something that is no directory.
    pub fn unlink(&self, dir: Ino, name: &[u8], by: Caller) -> Result<()> {
        self.change(dir, Change::Unlink { name: name.to_vec() }, by).map(drop)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, dir: Ino, name: &[u8], by: Caller) -> Result<()> {
        self.change(dir, Change::Rmdir { name: name.to_vec() }, by).map(drop)
    }

    /// Renames, with the flags of renameat2(2).
    pub fn rename(
        &self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        flags: u32,
        by: Caller,
    ) -> Result<()> {
        let (name, new_name) = (from.1.to_vec(), to.1.to_vec());
        let change = Change::Rename { name, to: to.0.0, new_name, flags };
        self.change(from.0, change, by).map(drop)
    }

    /// Sets attributes, the size among them.
    pub fn set_attr(&self, ino: Ino, attr: SetAttr, by: Caller) -> Result<InodeRecord> {
        self.record_of(ino, Change::Set { attr }, by)
    }

    /// Makes a file so long: what lies beyond goes, what is added is a hole.
    pub fn truncate(&self, ino: Ino, size: u64) -> Result<InodeRecord> {
        let attr = SetAttr { size: Some(size), ..SetAttr::default() };
        self.set_attr(ino, attr, Caller::ROOT)
    }

    /// Sets an extended attribute, with the flags of setxattr(2).
    pub fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        flags: u32,
        by: Caller,
    ) -> Result<()> {
        let change = Change::SetXattr { name: name.to_vec(), value: value.to_vec(), flags };
        self.change(ino, change, by).map(drop)
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&self, ino: Ino, name: &[u8], by: Caller) -> Result<()> {
        self.change(ino, Change::RemoveXattr { name: name.to_vec() }, by).map(drop)
    }

    /// What fallocate(2) does, by its mode.
    pub fn allocate(&self, ino: Ino, mode: u32, offset: u64, len: u64, by: Caller) -> Result<()> {
        self.change(ino, Change::Allocate { mode, offset, len }, by).map(drop)
    }

    /// Makes a change, complete in itself.
    pub fn change(&self, ino: Ino, change: Change, caller: Caller) -> Result<Changed> {
        let order = Order { caller, change };
        let view = self.view_to_ask()?;
        if let Route::Local(owner) = &view.route {
            let own = self.region.own();
            return owner.change((own.participant(), own.epoch()), ino, &order);
        }
        let body = rpc::encode(&order)?;
        let args = [self.object, u64::from(ino.0), 0];
        let answer = if body.len() <= oslet::limits::MAX_BODY {
            self.ask_once(&view, kind::CHANGE, args, &body)?
        } else {
            self.ask_with_pages(&view, kind::CHANGE_PAGES, args, &body)?
        };
        let record = (answer.args[0] != 0).then(|| record_in(&answer, None)).transpose()?;
        Ok(Changed { record, made: answer.args[1] != 0 })
    }

    fn record_of(&self, ino: Ino, change: Change, by: Caller) -> Result<InodeRecord> {
        self.change(ino, change, by)?.record.ok_or_else(no_record)
    }

    /// Writes bytes to a file. Fewer than all when the volume is full or the device fails: the
    /// next write says so.
    pub fn write(
        &self,
        ino: Ino,
        offset: u64,
        bytes: &[u8],
        options: WriteOptions,
    ) -> Result<Written> {
        {
            // Without a count of its own while nothing has changed.
            let view = self.view.load();
            if let Route::Local(owner) = &view.route
                && view.is_current()
            {
                return owner.write(ino, offset, &[Bytes::Own(bytes)], options);
            }
        }
        let view = self.view_to_ask()?;
        if let Route::Local(owner) = &view.route {
            return owner.write(ino, offset, &[Bytes::Own(bytes)], options);
        }
        let who = u64::from(ino.0) | options.bits() << 32;
        let mut done = Written { offset, len: 0 };
        // Nothing to write is asked for too: there may be an error.
        loop {
            let at = offset.saturating_add(done.len as u64);
            let args = [self.object, who, at];
            let rest = &bytes[done.len..];
            let by_body = rest.len() <= wire::MAX_DATA || self.connect.arena().is_none();
            let most = if by_body { wire::MAX_DATA } else { WRITE_AT_ONCE };
            let part = &rest[..rest.len().min(most)];
            let answer = match by_body {
                true => self.ask_once(&view, kind::WRITE, args, part),
                false => self.ask_with_pages(&view, kind::WRITE_PAGES, args, part),
            };
            let answer = match answer {
                Err(_) if done.len > 0 => return Ok(done),
                answer => answer?,
            };
            if done.len == 0 {
                done.offset = answer.args[0];
            }
            let len = usize::try_from(answer.args[1]).unwrap_or(usize::MAX).min(part.len());
            done.len += len;
            if len < part.len() || done.len == bytes.len() {
                return Ok(done);
            }
        }
    }

    /// Makes a file durable: all of it, or with `data_alone` what is needed to read its contents
    /// back. Tells an error that a writeback had since `seen`, which then moves on.
    pub fn sync(&self, ino: Ino, data_alone: bool, seen: &mut u64) -> Result<()> {
        let who = u64::from(ino.0) | u64::from(data_alone) << 32;
        self.sync_by(kind::SYNC, who, seen)
    }

    /// The same for the whole volume.
    pub fn sync_all(&self, seen: &mut u64) -> Result<()> {
        self.sync_by(kind::SYNC_ALL, 0, seen)
    }

    fn sync_by(&self, request: u16, who: u64, seen: &mut u64) -> Result<()> {
        let view = self.view_to_ask()?;
        let answer = self.ask_once(&view, request, [self.object, who, *seen], &[])?;
        *seen = answer.args[1];
        match i32::try_from(answer.args[0]).unwrap_or(EIO) {
            0 => Ok(()),
            errno => Err(Error::from_owner(errno)),
        }
    }

    /// Holds an inode: it stays, without any name too, until it is let go as often as it was held.
    /// Returns where errors of writebacks begin for the holder ([`Self::sync`]).
    pub fn hold(&self, ino: Ino) -> Result<u64> {
        Ok(self.ask(kind::HOLD, ino, 0, &[])?.args[0])
    }

    /// The same for who knows the inode, as that of this generation. If the number is another's by
    /// now that fails with ESTALE.
    pub fn hold_known(&self, ino: Ino, generation: u32) -> Result<u64> {
        Ok(self.ask(kind::HOLD_KNOWN, ino, generation.into(), &[])?.args[0])
    }

    /// Lets an inode go that was held so often.
    pub fn let_go(&self, ino: Ino, times: u64) -> Result<()> {
        let view = self.view_to_ask()?;
        let args = [self.object, u64::from(ino.0), times];
        self.ask_once(&view, kind::LET_GO, args, &[]).map(drop)
    }

    /// A file that was open for writing is closed. If it had been truncated to nothing before it
    /// was written, its new contents are on the disk behind this as far as they can be without a
    /// commit: no later change is durable without them.
    pub fn close(&self, ino: Ino) -> Result<()> {
        self.close_one(ino, true)
    }

    /// The same where others may have it open still, with `last` unset: what they write in place of
    /// what was truncated is to be closed, too.
    pub fn close_one(&self, ino: Ino, last: bool) -> Result<()> {
        let view = self.view_to_ask()?;
        let args = [self.object, u64::from(ino.0), u64::from(!last)];
        self.ask_once(&view, kind::CLOSE, args, &[]).map(drop)
    }

    /// Tells the device which bytes of a range nobody uses, in runs of at least `least`: FITRIM.
    /// Returns how many those were.
    pub fn trim(&self, start: u64, len: u64, least: u64) -> Result<u64> {
        let view = self.view_to_ask()?;
        let body = rpc::encode(&wire::Trim { words: [start, len, least] })?;
        Ok(self.ask_once(&view, kind::TRIM, [self.object, 0, 0], &body)?.args[0])
    }

    /// The present owner's view; waits for one for [`limits::OWNER_WAIT`].
    pub(super) fn view_to_ask(&self) -> Result<Arc<View>> {
        let view = self.view.load();
        if view.is_current() && !view.is_cut_off() {
            return Ok(Arc::clone(&view));
        }
        drop(view);
        let deadline = Instant::now() + limits::OWNER_WAIT;
        loop {
            match self.refresh(true) {
                Err(Error::NoOwner(_) | Error::Cluster(oslet::Error::Gone(_)))
                    if Instant::now() < deadline =>
                {
                    std::thread::sleep(limits::OWNER_POLL);
                }
                view => return view,
            }
        }
    }

    /// Asks once: a change whose answer was lost may have been made, and is not made again.
    fn ask_once(&self, view: &View, request: u16, args: [u64; 3], body: &[u8]) -> Result<Answer> {
        self.ask_owner_with(view, request, args, body)
    }

    /// Asks once, with bytes in frames of the own segment.
    fn ask_with_pages(
        &self,
        view: &View,
        request: u16,
        args: [u64; 3],
        bytes: &[u8],
    ) -> Result<Answer> {
        let arena = self.connect.arena().ok_or_else(|| {
            Error::TooBig(format!("{} bytes from a client without frames", bytes.len()))
        })?;
        let mut frames = arena.alloc_many(bytes.len().div_ceil(PAGE))?;
        for (frame, chunk) in frames.iter_mut().zip(bytes.chunks(PAGE)) {
            frame.bytes()?.fill()[..chunk.len()].copy_from_slice(chunk);
        }
        let pages: Vec<_> = frames.into_iter().map(|frame| frame.publish()).collect();
        let refs = pages.iter().map(|page| page.to_word()).collect();
        let body = rpc::encode(&wire::Pieces { refs, len: bytes.len() as u64 });
        let answer = body
            .map_err(Error::from)
            .and_then(|body| self.ask_owner_with(view, request, args, &body));
        // Without an answer the owner may still be reading them, and pins them then.
        arena.retire(&pages);
        answer
    }
}

const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

fn no_record() -> Error {
    Error::corrupt("an answer from the volume's owner", "it has no record")
}
