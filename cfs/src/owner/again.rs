//! Writing over what is to be written back anyway, and what every write changes of the inode.

use std::sync::Arc;

use oslet::region::Bytes;

use super::Owner;
use super::dirty::File;
use super::frames::Blocks;
use super::pages::{PAGE, key};
use super::write::check_writable;
use crate::Result;
use crate::change::WriteOptions;
use crate::disk::inode::InodeFlags;
use crate::disk::time::Timestamp;
use crate::engine::write::Live;

impl Owner {
    /// Writes what lies within one page, and within blocks of it that are dirty already, if that is
    /// so and there is nothing else to do. Then no page becomes dirty and no size changes, and the
    /// inode's lock is all that it takes: whoever has the file's order, and no lock of the inode at
    /// this moment, has nothing that this could change.
    pub(super) fn write_again(
        &self,
        file: &Arc<File>,
        offset: u64,
        pieces: &[Bytes<'_>],
        options: WriteOptions,
    ) -> Result<bool> {
        let WriteOptions { append, sync, data_sync, kill_privileges, privileged: _ } = options;
        let &[bytes] = pieces else { return Ok(false) };
        let (within, len) = ((offset % PAGE) as usize, bytes.len());
        let other = append || sync || data_sync || kill_privileges;
        if other || len == 0 || within + len > PAGE as usize {
            return Ok(false);
        }
        let writer = self.writer()?;
        let mut live = file.cell.write();
        let inode = &live.inode;
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= inode.size);
        let special = live.gone
            || inode.flags.contains(InodeFlags::INLINE_DATA)
            || writer.is_sync(inode)
            || self.volume.is_journaled(inode);
        if !inside || special || check_writable(inode).is_err() {
            return Ok(false);
        }
        let blocks = self.blocks_of(within, len);
        let Some(found) = self.shown.find(key(inode.ino, offset / PAGE)?) else {
            return Ok(false);
        };
        // What is dirty stays, and stays linked under its key, while the inode's lock is held. So
        // what was found to be dirty and is linked there still needs no lock of the index.
        let (page, dirty) = (found.page(), |held: Blocks| held.dirty & blocks == blocks);
        if !self.states.get(page).is_some_and(dirty) || !found.still() {
            return Ok(false);
        }
        self.arena.region().own().overwrite(page, within, bytes)?;
        if let Some(time) = self.wrote(file, &mut live, 0)
            && !self.inodes.lock().publish_change(file.ino, time)
        {
            self.publish_live(&live)?;
        }
        Ok(true)
    }

    /// Contents have changed up to `end`. The time of that, if it shows in the inode.
    pub(super) fn wrote(&self, file: &Arc<File>, live: &mut Live, end: u64) -> Option<Timestamp> {
        let inode = &mut live.inode;
        let time = tick(inode.ctime);
        if end > inode.size {
            inode.size = end;
        } else if inode.mtime == time && inode.ctime == time {
            return None;
        }
        (inode.mtime, inode.ctime) = (time, time);
        self.files.add_times(file);
        Some(time)
    }
}

/// The present, exact: who looks before and after a write sees two times. Not before a time that
/// was shown already, unless the clock was set back.
fn tick(last: Timestamp) -> Timestamp {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let now = Timestamp { seconds: now.tv_sec, nanoseconds: now.tv_nsec as u32 };
    let next = Timestamp { seconds: now.seconds + 1, ..now };
    if now < last && last < next { last } else { now }
}
