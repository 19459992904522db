//! The log on disk while it is written: its circle of blocks and its superblock.

use std::sync::Arc;

use parking_lot::Mutex;
use zerocopy::IntoBytes;
use zerocopy::byteorder::big_endian::{I32, U32};

use super::commit::{Shape, Time};
use super::format::{
    BlockKind, CHECKSUM_CRC32C, Compat, Incompat, RawSuperblock, SUPERBLOCK_SIZE, Superblock, Tid,
};
use super::locate::LogPlace;
use crate::disk::features::{Compat as VolumeCompat, Incompat as VolumeIncompat};
use crate::disk::superblock::RawSuperblock as VolumeSuperblock;
use crate::engine::Volume;
use crate::engine::store::BlockSource;
use crate::{Error, Result};

/// The kernel's shortest log.
const MIN_BLOCKS: u32 = 1024;

/// A log that is empty at first and that transactions are appended to.
pub(super) struct Log {
    source: Arc<dyn BlockSource>,
    place: LogPlace,
    sb: Superblock,
    shape: Shape,
    /// Why the journal was given up when it was used last; 0 for nothing.
    pub(super) errno: i32,
    /// Where the next transaction begins. Changed by whoever commits.
    head: Mutex<u32>,
    /// What lies on disk, but for [`Front::stale`].
    front: Mutex<Front>,
}

/// The journal's superblock.
struct Front {
    raw: RawSuperblock,
    /// It must be written before the next transaction counts.
    stale: bool,
}

/// Where the oldest transaction of the log is that is still needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tail {
    pub(super) start: u32,
    pub(super) tid: Tid,
}

impl Log {
    /// The log of a volume, to be written from now on; `None` on a volume without a journal.
    pub(super) fn open(volume: &Volume, raw: &VolumeSuperblock) -> Result<Option<Self>> {
        let superblock = volume.superblock();
        if !superblock.features.compat.contains(VolumeCompat::HAS_JOURNAL) {
            return Ok(None);
        }
        let place = LogPlace::find(volume, raw)?;
        let source = volume.source().clone();
        let block_size = superblock.block_size;
        let mut first = vec![0; block_size as usize];
        source.read_at(place.block(0)? << superblock.block_bits, &mut first)?;
        let found = Superblock::parse(&first, block_size, place.blocks())?;
        if found.start != 0 {
            return Err(Error::NeedsRecovery);
        }
        if found.raw.header.kind.get() != BlockKind::SuperblockV2 as u32 {
            return Err(Error::Refused {
                feature: "journal version 1".into(),
                hint: " for writing; make a new one: tune2fs -O ^has_journal, tune2fs -j".into(),
            });
        }
        // The log is empty, so its format may change: to what the kernel would use.
        let front = prepared(found.raw, volume);
        let mut bytes = first;
        bytes[..SUPERBLOCK_SIZE].copy_from_slice(front.as_bytes());
        let sb = Superblock::parse(&bytes, block_size, place.blocks())?;
        if sb.last - sb.first < MIN_BLOCKS - 1 {
            let what = format!("journal of {} blocks", sb.max_len);
            let hint = format!(
                " for writing; at least {MIN_BLOCKS} are needed: tune2fs -O ^has_journal, then \
                 tune2fs -j"
            );
            return Err(Error::Refused { feature: what, hint: hint.into() });
        }
        let errno = found.raw.errno.get();
        let (shape, head) = (Shape::new(&sb), Mutex::new(sb.first));
        let front = Mutex::new(Front { raw: front, stale: true });
        Ok(Some(Self { source, place, sb, shape, errno, head, front }))
    }

    /// Where the first transaction will be.
    pub(super) fn begin(&self) -> Tail {
        Tail { start: self.sb.first, tid: self.sb.sequence }
    }

    /// Blocks of the circle.
    pub(super) fn blocks(&self) -> u32 {
        self.sb.last - self.sb.first
    }

    /// Blocks of the log that a transaction takes.
    pub(super) fn needed(&self, copies: usize, revoked: usize) -> u32 {
        u32::try_from(self.shape.blocks(copies, revoked)).unwrap_or(u32::MAX)
    }

    /// Appends a transaction, which there must be room for, and makes it durable. Returns where it
    /// starts, and where the next one will.
    pub(super) fn append(
        &self,
        tid: Tid,
        writes: &[(u64, &[u8])],
        revoked: &[u64],
        now: Time,
    ) -> Result<(Tail, Tail)> {
        let mut head = self.head.lock();
        let start = *head;
        self.prepare(Tail { start, tid }, !revoked.is_empty())?;
        let body = self.shape.body(tid, writes, revoked);
        let end = self.write(start, &body)?;
        self.source.flush()?;
        *head = self.write(end, &self.shape.commit(tid, now))?;
        self.source.flush()?;
        Ok((Tail { start, tid }, Tail { start: *head, tid: tid.next() }))
    }

    /// Writes the superblock ahead of a transaction that needs something of it.
    fn prepare(&self, first: Tail, revokes: bool) -> Result<()> {
        let mut front = self.front.lock();
        let incompat = Incompat::from_bits_retain(front.raw.incompat.get());
        if revokes && !incompat.contains(Incompat::REVOKE) {
            front.raw.incompat = U32::new((incompat | Incompat::REVOKE).bits());
            front.stale = true;
        }
        if front.raw.start.get() == 0 {
            (front.raw.start, front.raw.sequence) = (U32::new(first.start), U32::new(first.tid.0));
            front.stale = true;
        }
        if front.stale {
            // Durable with the transaction's blocks, before its commit block is written.
            self.write_front(&mut front)?;
        }
        Ok(())
    }

    /// What lies before `tail` is not needed any more. Durable when this returns.
    pub(super) fn set_tail(&self, tail: Tail) -> Result<()> {
        let mut front = self.front.lock();
        (front.raw.start, front.raw.sequence) = (U32::new(tail.start), U32::new(tail.tid.0));
        self.write_front(&mut front)?;
        self.source.flush()
    }

    /// Nothing in the log is needed any more; the next transaction will be `next`. Durable when
    /// this returns.
    pub(super) fn clear(&self, next: Tid) -> Result<()> {
        self.set_tail(Tail { start: 0, tid: next })
    }

    /// Records why the journal is given up.
    pub(super) fn set_errno(&self, errno: i32) -> Result<()> {
        let mut front = self.front.lock();
        front.raw.errno = I32::new(-errno.abs());
        self.write_front(&mut front)?;
        self.source.flush()
    }

    fn write_front(&self, front: &mut Front) -> Result<()> {
        if self.sb.incompat.checksums() {
            front.raw.checksum = U32::new(front.raw.compute_checksum());
        }
        let place = self.place.block(0)? * u64::from(self.sb.block_size);
        self.source.write_at(place, front.raw.as_bytes())?;
        front.stale = false;
        Ok(())
    }

    /// Writes whole blocks from `position` on, in as few pieces as the journal's place has. Returns
    /// the position after them.
    fn write(&self, mut position: u32, mut blocks: &[u8]) -> Result<u32> {
        let block_size = self.sb.block_size as usize;
        while !blocks.is_empty() {
            let count = (blocks.len() / block_size) as u32;
            let count = count.min(self.sb.last - position);
            let (start, count) = self.place.run(position, count)?;
            let (now, later) = blocks.split_at(count as usize * block_size);
            self.source.write_at(start * block_size as u64, now)?;
            blocks = later;
            position += count;
            if position == self.sb.last {
                position = self.sb.first;
            }
        }
        Ok(position)
    }
}

/// The superblock of an empty log with the features that the kernel would give it.
fn prepared(mut raw: RawSuperblock, volume: &Volume) -> RawSuperblock {
    let features = &volume.superblock().features;
    let mut incompat = Incompat::from_bits_retain(raw.incompat.get());
    let mut compat = Compat::from_bits_retain(raw.compat.get());
    compat -= Compat::CHECKSUM;
    incompat -= Incompat::ASYNC_COMMIT | Incompat::FAST_COMMIT;
    if features.incompat.contains(VolumeIncompat::BITS64) {
        incompat |= Incompat::BITS64;
    }
    if features.metadata_csum() {
        incompat -= Incompat::CSUM_V2;
        incompat |= Incompat::CSUM_V3;
        raw.checksum_type = CHECKSUM_CRC32C;
    }
    (raw.compat, raw.incompat) = (U32::new(compat.bits()), U32::new(incompat.bits()));
    // The volume's superblock says by then that there was an error.
    raw.errno = I32::ZERO;
    raw.head = U32::ZERO;
    raw.checksum = if incompat.checksums() { U32::new(raw.compute_checksum()) } else { U32::ZERO };
    raw
}
